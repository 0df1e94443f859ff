"""Which of its shapes a job should run in, by value.

What an hour in a shape is worth is its throughput times what the work is worth to the owner, less what the nodes cost.
An owner who doesn't say is taken to value work at the price of the shape that gets the most done per US dollar (per
GPU where prices are unknown), divided by `Policy.marginal_throughput`: at 0.5, an extra GPU is worth taking while it
brings at least half of what a GPU brings in the most efficient shape.
"""

from __future__ import annotations

from math import inf

from rackscale.fleet.topology import Topology
from rackscale.workload import Job, Offer, Policy

ONLY = (0,)


def ranked(topology: Topology, policy: Policy, job: Job) -> tuple[int, ...]:
    """The numbers of the job's choices, the most valuable first; those that no system offers are left out."""
    if not job.offers:
        return ONLY
    value = values(topology, policy, job)
    return tuple(sorted(value, key=lambda n: (-value[n], n))) or ONLY


def values(topology: Topology, policy: Policy, job: Job) -> dict[int, float]:
    """What an hour in each choice is worth, in US dollars (GPUs where prices are unknown), nodes paid; by number.

    Choices that no system offers are left out.
    """
    choices = job.choices
    rates = {n: rate for n, offer in enumerate(choices) if (rate := _rate(topology, job, offer)) < inf}
    worth = job.usd_per_hour
    if worth is None and rates:
        worth = min(rate / choices[n].throughput for n, rate in rates.items()) / policy.marginal_throughput
    return {n: (worth or 0.0) * choices[n].throughput - rate for n, rate in rates.items()}


def _rate(topology: Topology, job: Job, offer: Offer) -> float:
    """US dollars per hour of the shape on the cheapest system that it may use; GPUs where prices are unknown."""
    groups = topology.groups(offer.system or job.system, job.cluster)
    if not groups:
        return inf
    # Where any system has no price, all count the same.
    priced = all(group.price < inf for group in topology.groups(None, None))
    return min((g.price if priced else 1.0) * offer.shape.nodes_held * g.gpus_per_node for g in groups)
