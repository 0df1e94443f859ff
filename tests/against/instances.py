"""Random small fleets in the middle of their work, for exact answers: a state, and the same facts counted by hand.

`pick` chooses one of a few things, by a seeded stream.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rackscale.events import (
    Action,
    Checkpointed,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    GangRunning,
    NodeFailed,
    Plan,
    Reason,
    Segment,
    Start,
    Submitted,
    Ticked,
)
from rackscale.fleet.state import FleetState
from rackscale.workload import Durability, Job, Level, Nearness, Offer, Policy, Queue, Shape
from tests.against.cpsat import Box, Law, Less, Tenant

T = TypeVar("T")
NOW_S = 10_000.0
MIN_RUNTIME_S = 500.0
GUARDED = ("a", "b")
"""Queues of the gangs that run."""
WEIGHTS = {"low": 1, "normal": 2, "high": 4}
"""What starting a gang is worth, per node."""


class Pick(Protocol):
    def __call__(self, among: Sequence[T]) -> T: ...


class Seeded:
    """Picks by a seeded stream."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, among: Sequence[T]) -> T:
        return self._random.choice(among)


@dataclass
class Instance:
    """A fleet with gangs on it, at `NOW_S`."""

    state: FleetState
    pick: Pick
    held: list[int]
    """Nodes held, by domain."""
    failed: list[int]
    tenants: list[Tenant] = field(default_factory=list)
    """Those that may be taken, guards considered one by one."""
    queues: tuple[Queue, ...] = ()
    used_gpus: dict[str, int] = field(default_factory=dict)
    """GPUs held, by queue."""

    def boxes(self) -> list[Box]:
        return [
            Box(
                name=spec.name,
                group=(spec.cluster, spec.system),
                free=spec.nodes - self.held[d] - self.failed[d],
                spares=spec.spares,
                fabric=(spec.region, spec.building, spec.spine, spec.leaf),
            )
            for d, spec in enumerate(self.state.domains)
        ]

    def law(self) -> Law:
        budgets = {
            q.name: q.max_evictions_per_day for q in self.queues if q.max_evictions_per_day is not None
        }
        above = {
            q.name: self.used_gpus.get(q.name, 0) - q.quota_gpus
            for q in self.queues
            if q.quota_gpus is not None
        }
        return Law(budgets=budgets, above=above)


def fleet(pick: Pick, *, most_domains: int = 6) -> tuple[DomainSpec, ...]:
    """One or two clusters of small domains on a fabric of leaves and spines."""
    found = []
    for c in range(pick((1, 1, 2))):
        for d in range(pick(range(1, most_domains + 1))):
            leaf = pick((0, 1, 2))
            found.append(
                DomainSpec(
                    name=f"c{c}/us-{d:03}", system=f"s{c}", nodes=pick((2, 3, 4, 5, 6, 6)), gpus_per_node=c + 1,
                    cluster=f"c{c}", spares=pick((0, 0, 1)), region="r", building="b", spine=f"sp{leaf // 2}",
                    leaf=f"l{leaf}",
                )
            )  # fmt: skip
    return tuple(found)


def shape(pick: Pick) -> Shape:
    return Shape(
        segments=pick((1, 1, 2, 2, 3)),
        nodes_per_segment=pick((1, 2, 3, 4)),
        may_share_domain=pick((False, False, True)),
        spares_per_segment=pick((0, 0, 0, 1)),
    )


def nearness(pick: Pick) -> Nearness:
    levels: tuple[Level | None, ...] = (None, None, None, "leaf", "spine")
    within, spread = pick(levels), pick(levels)
    return Nearness(within=within) if within is not None else Nearness(spread=spread)


def queues(pick: Pick) -> tuple[Queue, ...]:
    quotas = (None, None, 2, 4, 8)
    return tuple(
        Queue(name=name, quota_gpus=pick(quotas), max_evictions_per_day=pick((None, None, 0, 1, 2)))
        for name in GUARDED
    )


def busy(pick: Pick, *, most_gangs: int = 10, elastic: bool = False, guarded: bool = True) -> Instance:
    """A fleet with up to so many gangs that run, some nodes of which failed where nobody was."""
    state = FleetState()
    some = queues(pick) if guarded else ()
    policy = Policy(min_runtime_s=MIN_RUNTIME_S, growth=False)
    state.fold(Configured(at_s=0.0, policy=policy, queues=some))
    specs = fleet(pick)
    state.fold(Delivered(at_s=0.0, domains=specs))
    instance = Instance(state, pick, [0] * len(specs), [0] * len(specs), queues=some)
    for number in range(pick(range(most_gangs + 1))):
        _settle(instance, f"t{number}", elastic=elastic)
    for d, spec in enumerate(specs):
        if instance.held[d] < spec.nodes and pick((True, False, False)):
            state.fold(NodeFailed(at_s=NOW_S, domain=spec.name, nodes=(spec.nodes - 1,)))
            instance.failed[d] = 1
    state.fold(Ticked(at_s=NOW_S))
    return instance


def _settle(instance: Instance, name: str, *, elastic: bool) -> None:
    """Let a gang run somewhere, as far as events can say."""
    pick, state = instance.pick, instance.state
    nodes, domains = pick((1, 2, 3)), state.domains
    cluster = pick(tuple(dict.fromkeys(spec.cluster for spec in domains)))
    fitting = [
        d for d, s in enumerate(domains) if s.cluster == cluster and s.nodes - instance.held[d] >= nodes
    ]
    if not fitting:
        return
    at = pick(range(len(fitting)))
    on = sorted({fitting[at], fitting[(at + pick((0, 0, 1))) % len(fitting)]})
    job = Job(
        name=name, kind="training", priority=pick(("low", "normal", "normal", "high")), queue=pick(GUARDED),
        preemptible=pick((True,) * 5 + (False,)), shape=Shape(segments=len(on), nodes_per_segment=nodes),
        eviction_penalty_gpu_h=pick((0.0, 0.0, 0.5)), durability=Durability(restart_s=pick((30.0, 900.0))),
        elastic=elastic, offers=_smaller(pick, len(on), nodes) if elastic else (),
    )  # fmt: skip
    binding = tuple(
        Segment(domain=domains[d].name, nodes=tuple(range(instance.held[d], instance.held[d] + nodes)))
        for d in on
    )
    saved_s, began_s, running = _lives(instance, job, binding)
    for d in on:
        instance.held[d] += nodes
    gpus_per_node = domains[on[0]].gpus_per_node
    gpus = len(on) * nodes * gpus_per_node
    instance.used_gpus[job.queue] = instance.used_gpus.get(job.queue, 0) + gpus
    if running and job.preemptible and job.priority != "high" and _ran_enough(job, began_s):
        instance.tenants.append(_tenant(instance, job, on, NOW_S - saved_s, gpus_per_node))


def _smaller(pick: Pick, segments: int, nodes: int) -> tuple[Offer, ...]:
    found = []
    if segments > 1 and pick((True, False)):
        found.append(Offer(shape=Shape(segments=1, nodes_per_segment=nodes), throughput=0.5))
    if nodes > 1 and pick((True, True, False)):
        found.append(Offer(shape=Shape(segments=segments, nodes_per_segment=nodes - 1), throughput=0.6))
    return tuple(found)


def _lives(instance: Instance, job: Job, binding: tuple[Segment, ...]) -> tuple[float, float, bool]:
    """(since when its work is not saved, when it began, whether it runs)."""
    pick, state = instance.pick, instance.state
    at_s = max(pick((0.0, 5000.0, NOW_S - 600.0, NOW_S - 400.0)), state.now_s)
    state.fold(Submitted(at_s=at_s, job=job))
    act(state, at_s, Start(gang=job.name, attempt=1, binding=binding, reason=Reason(code="fits")))
    if pick((False,) + (True,) * 5):
        state.fold(GangRunning(at_s=at_s, gang=job.name, attempt=1))
        if pick((True, False)):
            saved_s = at_s + pick((10.0, 50.0))
            state.fold(Checkpointed(at_s=saved_s, gang=job.name, attempt=1))
            return saved_s, at_s, True
        return at_s, at_s, True
    return at_s, at_s, False


def _ran_enough(job: Job, began_s: float) -> bool:
    return NOW_S - began_s >= max(MIN_RUNTIME_S, job.durability.restart_s)


def _tenant(instance: Instance, job: Job, on: Sequence[int], unsaved_s: float, gpus_per_node: int) -> Tenant:
    nodes = job.shape.nodes_per_segment
    gpus = len(on) * nodes * gpus_per_node
    price = round((unsaved_s + job.durability.restart_s) * gpus + job.eviction_penalty_gpu_h * 3600.0)
    return Tenant(
        name=job.name,
        on=tuple(nodes if d in on else 0 for d in range(len(instance.held))),
        gpus_per_node=gpus_per_node,
        price=price,
        queue=job.queue,
        less=tuple(
            Less(
                offer.shape,
                round(unsaved_s * gpus + job.durability.restart_s * offer.shape.nodes * gpus_per_node),
            )
            for offer in job.offers
        ),
    )


def act(state: FleetState, at_s: float, *actions: Action) -> None:
    state.fold(Decided(at_s=at_s, plan=Plan(at_s=at_s, actions=actions)))


def wanted(pick: Pick, name: str = "new", **more: Any) -> Job:
    """A gang that asks for room."""
    return Job(name=name, kind="training", shape=shape(pick), nearness=nearness(pick), **more)
