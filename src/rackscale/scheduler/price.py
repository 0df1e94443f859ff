"""What it costs to stop a gang, and whether it may be stopped at all."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from rackscale.fleet.gangs import DAY_S, Gang, Status
from rackscale.fleet.queues import Charge
from rackscale.fleet.state import FleetState
from rackscale.workload import Durability, Queue


class Taker(NamedTuple):
    """A gang that wants nodes which others hold."""

    priority: int
    queue: str
    charge: Charge
    """What it would cost its queue."""


class Cost(NamedTuple):
    """What evicting one gang costs now, GPU-seconds by part."""

    lost_gpu_s: float
    restart_gpu_s: float
    penalty_gpu_s: float

    @property
    def total(self) -> float:
        return self.lost_gpu_s + self.restart_gpu_s + self.penalty_gpu_s


def saves_on_request(durability: Durability) -> bool:
    """Whether the program checkpoints when it is asked to leave, and has the time for it."""
    return (
        durability.checkpoint_interval_s is not None and 0.0 < durability.checkpoint_s <= durability.grace_s
    )


def lost_s(state: FleetState, gang: Gang, now_s: float) -> float:
    """Seconds of work that stopping the gang costs: those since its last checkpoint, or the time for one more."""
    at_risk_s = gang.at_risk_s(now_s)
    durability = state.jobs[gang.job].durability
    return min(at_risk_s, durability.checkpoint_s) if saves_on_request(durability) else at_risk_s


def cost(state: FleetState, gang: Gang, now_s: float) -> Cost:
    """Price of stopping the gang now."""
    job = state.jobs[gang.job]
    gpus = state.gpus(gang)
    return Cost(
        lost_gpu_s=lost_s(state, gang, now_s) * gpus,
        restart_gpu_s=job.durability.restart_s * gpus,
        penalty_gpu_s=job.eviction_penalty_gpu_h * 3600.0,
    )


def guard(state: FleetState, gang: Gang, taker: Taker, now_s: float, *, straddle: bool = False) -> str | None:
    """Why the gang may not be evicted for the taker, or None if it may.

    `straddle`: reclaiming may take the one gang that lies across its queue's quota.
    """
    return interruptible(state, gang, taker, now_s) or protected(
        state, gang, taker, gang.charge, straddle=straddle
    )


def interruptible(state: FleetState, gang: Gang, taker: Taker, now_s: float) -> str | None:
    """Why the gang may not be interrupted for the taker, quotas aside."""
    if gang.status is not Status.RUNNING:
        return "not-running"
    job, policy, tree = state.jobs[gang.job], state.policy, state.tree
    if not job.preemptible:
        return "not-preemptible"
    if gang.priority >= taker.priority and not (
        tree.guaranteed and policy.reclaim and tree.owed(gang.queue, taker.queue, taker.charge)
    ):
        return "priority"
    assert gang.started_s is not None
    if now_s - gang.started_s < max(policy.min_runtime_s, job.durability.restart_s):
        return "minimum-run-time"
    if gang.evicted_today(now_s) >= policy.max_evictions_per_day:
        return "gang-budget"
    queue = state.queues.get(gang.queue)
    if queue is not None and evictions_left(state, queue, now_s) <= 0:
        return "queue-budget"
    return None


def protected(state: FleetState, gang: Gang, taker: Taker, gives: Charge, *, straddle: bool) -> str | None:
    """Whether the quota of the gang's queues keeps the taker from getting `gives` of what it holds."""
    tree = state.tree
    if not tree.guaranteed:
        return None
    straddle = straddle and state.policy.reclaim and tree.owed(gang.queue, taker.queue, taker.charge)
    return None if tree.can_lose(gang.queue, taker.queue, gives, straddle=straddle) else "quota"


def evictions_left(state: FleetState, queue: Queue, now_s: float) -> float:
    """Gangs of the queue that may still be preempted today."""
    if queue.max_evictions_per_day is None:
        return inf
    day, count = state.queue_evictions.get(queue.name, (-1, 0))
    return queue.max_evictions_per_day - (count if day == int(now_s // DAY_S) else 0)
