"""What it costs to stop a gang, and whether it may be stopped at all."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from rackscale.fleet.gangs import DAY_S, Gang, Status
from rackscale.fleet.queues import Charge
from rackscale.fleet.state import FleetState
from rackscale.workload import Durability, Job, Policy, Queue


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


def price(state: FleetState, gang: Gang, now_s: float) -> float:
    """The total of `cost`, for a gang that holds nodes."""
    job = state.jobs[gang.job]
    durability, lost_s, gpus = job.durability, gang.at_risk_s(now_s), gang.gpus
    if lost_s > durability.checkpoint_s and saves_on_request(durability):
        lost_s = durability.checkpoint_s
    return lost_s * gpus + durability.restart_s * gpus + job.eviction_penalty_gpu_h * 3600.0


class Rule(NamedTuple):
    """What a taker may do to gangs of one queue, now."""

    owed: bool
    """Whether the taker reclaims from it, whatever the priority."""
    spent: bool
    """Whether no more of its gangs may be preempted today."""
    gpus: float
    """What it may lose; below 0: nothing."""
    micro_domains: float

    def can_lose(self, gives: Charge) -> bool:
        return gives.gpus <= self.gpus and gives.domains <= self.micro_domains


class Rules:
    """Whom one taker may interrupt. What depends on the queue alone is worked out once, until `changed`."""

    def __init__(self, state: FleetState, taker: Taker, now_s: float, *, straddle: bool = False) -> None:
        self._state, self._taker, self._now_s = state, taker, now_s
        self.straddle = straddle
        self._known: dict[str, Rule] = {}

    def gave(self, name: str, gives: Charge, gangs: int) -> None:
        """The queue lost so much to the taker (`gangs` = 1) or got it back (-1)."""
        rule = self._known.get(name)
        self._known.clear()  # queues above it hold other amounts, too
        if rule is not None and not self.straddle:
            left = rule.gpus - gangs * gives.gpus, rule.micro_domains - gangs * gives.domains
            self._known[name] = Rule(rule.owed, rule.spent, *left)

    def of(self, name: str) -> Rule:
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._work_out(name)
        return found

    def _work_out(self, name: str) -> Rule:
        state, taker = self._state, self._taker
        tree, queue = state.tree, state.queues.get(name)
        spent = queue is not None and evictions_left(state, queue, self._now_s) <= 0
        if not tree.guaranteed:
            return Rule(False, spent, inf, inf)
        owed = state.policy.reclaim and tree.owed(name, taker.queue, taker.charge)
        return Rule(owed, spent, *tree.can_spare(name, taker.queue, straddle=self.straddle and owed))

    def reach(self, name: str) -> float:
        """The priority below which gangs of the queue may be interrupted, guards of their own and quotas aside."""
        rule = self.of(name)
        if rule.spent:
            return -inf
        return inf if rule.owed else self._taker.priority

    def interruptible(self, gang: Gang) -> str | None:
        """Why the gang may not be interrupted for the taker, quotas aside."""
        state, rule = self._state, self.of(gang.queue)
        found = at_rest(gang, state.jobs[gang.job], state.policy, self._now_s)
        if found in ("not-running", "not-preemptible"):
            return found
        if gang.priority >= self._taker.priority and not rule.owed:
            return "priority"
        return found or ("queue-budget" if rule.spent else None)


def at_rest(gang: Gang, job: Job, policy: Policy, now_s: float) -> str | None:
    """Why nobody may interrupt the gang now, whoever it is."""
    if gang.status is not Status.RUNNING:
        return "not-running"
    if not job.preemptible:
        return "not-preemptible"
    assert gang.started_s is not None
    ran_s = now_s - gang.started_s
    if ran_s < policy.min_runtime_s or ran_s < job.durability.restart_s:
        return "minimum-run-time"
    most = policy.max_evictions_per_day
    if gang.evictions_today >= most and gang.evicted_today(now_s) >= most:
        return "gang-budget"
    return None


def guard(state: FleetState, gang: Gang, taker: Taker, now_s: float) -> str | None:
    """Why the gang may not be evicted for the taker, or None if it may."""
    rules = Rules(state, taker, now_s)
    found = rules.interruptible(gang)
    if found is None and not rules.of(gang.queue).can_lose(gang.charge):
        return "quota"
    return found


def interruptible(state: FleetState, gang: Gang, taker: Taker, now_s: float) -> str | None:
    """Why the gang may not be interrupted for the taker, quotas aside."""
    return Rules(state, taker, now_s).interruptible(gang)


def evictions_left(state: FleetState, queue: Queue, now_s: float) -> float:
    """Gangs of the queue that may still be preempted today."""
    if queue.max_evictions_per_day is None:
        return inf
    day, count = state.queue_evictions.get(queue.name, (-1, 0))
    return queue.max_evictions_per_day - (count if day == int(now_s // DAY_S) else 0)
