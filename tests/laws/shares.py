"""The laws of queues: quotas, borrowing limits, limits of gangs and users, and what a queue can't lose."""

from __future__ import annotations

from collections import Counter, defaultdict

from rackscale import events as ev
from rackscale.workload import Job, Queue
from tests.laws.facts import EVICTIONS, Facts, Life, held

TOLERANCE = 1e-5
"""Domains are counted in fractions."""


def gpus(facts: Facts, job: Job, binding: ev.Binding) -> int:
    """GPUs of all nodes held."""
    if job.cpu_only:
        return 0
    return sum(len(s.held) * facts.specs[s.domain].gpus_per_node for s in binding)


def domains(facts: Facts, job: Job, binding: ev.Binding) -> float:
    """A segment that leaves no room for another of its size counts as a domain, a smaller one as its share."""
    if job.cpu_only:
        return 0.0
    total = 0.0
    for segment in binding:
        spec = facts.specs[segment.domain]
        share = len(segment.held) / (spec.nodes - spec.spares)
        total += 1.0 if share > 0.5 else share
    return total


class Usage:
    """What queues and users hold, while a plan is read."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.gpus: defaultdict[str, float] = defaultdict(float)
        self.domains: defaultdict[str, float] = defaultdict(float)
        self.gangs: Counter[str] = Counter()
        self.user_gpus: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.user_gangs: Counter[tuple[str, str]] = Counter()
        for life in facts.lives.values():
            if life.binding:
                self.add(life, life.binding)
            elif life.claim:  # it starts there for sure
                self.add(life, life.claim)

    def add(self, life: Life, binding: ev.Binding, sign: int = 1) -> None:
        if not binding:
            return
        g, d = gpus(self.facts, life.job, binding), domains(self.facts, life.job, binding)
        for queue in self.facts.path(life.job.queue):
            self.gpus[queue.name] += sign * g
            self.domains[queue.name] += sign * d
            self.gangs[queue.name] += sign
        key = (life.job.queue, life.job.user)
        self.user_gpus[key] += sign * g
        self.user_gangs[key] += sign

    def follow(self, action: object) -> None:
        """Count what the action gives or takes: who is told to leave holds no more than it goes on with."""
        life = self.facts.lives.get(getattr(action, "gang", ""))
        match action:
            case ev.Start() | ev.Restart() | ev.Move():
                assert life is not None
                self.add(life, life.binding or life.claim, -1)
                self.add(life, action.binding)
            case ev.Claim():
                assert life is not None
                self.add(life, action.binding)
            case ev.Preempt() | ev.Stop() | ev.Requeue():
                assert life is not None
                self.add(life, life.binding, -1)
            case ev.Unclaim() if life is not None and not life.binding:
                self.add(life, life.claim, -1)
            case _:
                pass

    def check_start(self, life: Life, binding: ev.Binding) -> None:
        """Limits hold with the gang on top of what is held.

        Who may not be interrupted does not borrow. Where room was cleared for it, that was asked when it was claimed;
        others of its queue may have borrowed since.
        """
        g, d = gpus(self.facts, life.job, binding), domains(self.facts, life.job, binding)
        for queue in self.facts.path(life.job.queue):
            self._check_queue(queue, g, d)
        own = self.facts.queues.get(life.job.queue)
        key = (life.job.queue, life.job.user)
        if own is not None and own.max_gangs_per_user is not None:
            assert self.user_gangs[key] + 1 <= own.max_gangs_per_user, "user's gangs"
        if own is not None and own.max_gpus_per_user is not None:
            assert self.user_gpus[key] + g <= own.max_gpus_per_user, "user's GPUs"
        in_force = any(queue.guaranteed for queue in self.facts.queues.values())
        if in_force and not life.job.preemptible and not life.job.cpu_only and not life.claim:
            assert own is not None, "not preemptible, and borrows"
            assert within_quota(own, self.gpus[own.name] + g, self.domains[own.name] + d), "borrows for good"

    def _check_queue(self, queue: Queue, g: float, d: float) -> None:
        name = queue.name
        if queue.borrow_gpus is not None:
            most = (queue.quota_gpus or 0) + queue.borrow_gpus
            assert self.gpus[name] + g <= most, f"{name}: borrows too many GPUs"
        if queue.borrow_domains is not None:
            limit = (queue.quota_domains or 0.0) + queue.borrow_domains
            assert self.domains[name] + d <= limit + TOLERANCE, f"{name}: borrows too many domains"
        if queue.max_gangs is not None:
            assert self.gangs[name] + 1 <= queue.max_gangs, f"{name}: too many gangs"

    def check_move(self, life: Life, action: ev.Preempt | ev.Move) -> None:
        """A gang that grows stays within the limits."""
        assert isinstance(action, ev.Move)
        self.add(life, life.binding, -1)
        self.check_start(life, action.binding)
        self.add(life, life.binding)


def within_quota(queue: Queue, g: float, d: float) -> bool:
    if not queue.guaranteed:
        return False
    fits = queue.quota_gpus is None or g <= queue.quota_gpus
    return fits and (queue.quota_domains is None or d <= queue.quota_domains + TOLERANCE)


def check_quotas_kept(facts: Facts, plan: ev.Plan) -> None:
    """Nobody is evicted whose queue falls below what it is guaranteed (unless for a gang of that very queue).

    What the plan gives a queue before counts as held; who leaves already, for whatever reason, does not. A gang that
    lies across its queue's quota may be reclaimed: without the last gang the queue holds more than its quota.
    """
    usage = Usage(facts)
    for life in facts.lives.values():
        if life.status == "leaving":
            usage.add(life, life.binding, -1)
            usage.add(life, life.claim)
    for action in plan.actions:
        if not isinstance(action, ev.Preempt | ev.Move) or action.reason.code not in EVICTIONS:
            usage.follow(action)
            continue
        life, taker = facts.lives[action.gang], action.reason.for_gang or ""
        common = _above(facts, taker)
        before = {q.name: (usage.gpus[q.name], usage.domains[q.name]) for q in facts.path(life.job.queue)}
        usage.follow(action)
        for queue in facts.path(life.job.queue):
            if queue.name in common:
                break
            after = (usage.gpus[queue.name], usage.domains[queue.name])
            reclaimed = action.reason.code == "reclaimed-for"
            _check_keeps(queue, before[queue.name] if reclaimed else after, straddle=reclaimed)


def _above(facts: Facts, taker: str) -> set[str]:
    if taker.startswith("@"):
        return {q.name for q in facts.path(facts.bookings[taker[1:]].queue)}
    return {q.name for q in facts.path(facts.lives[taker].job.queue)}


def _check_keeps(queue: Queue, holds: tuple[float, float], *, straddle: bool) -> None:
    g, d = holds
    said = f"{queue.name} is left below its quota"
    if queue.quota_gpus is not None:
        assert g > queue.quota_gpus if straddle else g >= queue.quota_gpus, said
    if queue.quota_domains is not None:
        limit = queue.quota_domains
        assert d > limit + TOLERANCE / 2 if straddle else d >= limit - TOLERANCE, said


def check_may_reclaim(usage: Usage, victim: Life, taker: Job, binding: ev.Binding) -> None:
    """The taker's queue, or one above it that is not the victim's, stays within its own quota with `binding`.

    `usage`: what the plan has given so far, the taker's binding aside.
    """
    facts = usage.facts
    assert facts.policy.reclaim
    theirs = {queue.name for queue in facts.path(victim.job.queue)}
    mine = [queue for queue in facts.path(taker.queue) if queue.name not in theirs]
    g, d = gpus(facts, taker, binding), domains(facts, taker, binding)
    owed = [within_quota(q, usage.gpus[q.name] + g, usage.domains[q.name] + d) for q in mine]
    assert any(owed), f"{taker.name} reclaims, but its queues are owed nothing"
    assert held(victim.binding)
