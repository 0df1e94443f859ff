"""`why`: answers from the same code that decides. Nothing here decides anything, and the state stays as it is.

For a gang that waits, the next decision is tried as it will be when all that wait are looked at again: those ahead of
it have their turn, then its obstacle is judged, then room is made. What it says the scheduler will do is what the
scheduler then does, unless something happens before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from rackscale.errors import UnknownNameError
from rackscale.events import (
    Binding,
    Claim,
    Decided,
    Event,
    Move,
    Preempt,
    Refuse,
    Requeue,
    Restart,
    Start,
    Stop,
    Submitted,
    Unclaim,
)
from rackscale.fleet.gangs import Ended, Gang, Status
from rackscale.fleet.queues import LN2, NOTHING
from rackscale.fleet.state import FleetState
from rackscale.scheduler.answers import (
    ChoiceJudged,
    DomainRoom,
    Happened,
    InLine,
    Largest,
    Obstacle,
    Placed,
    Reservation,
    Share,
    Why,
)
from rackscale.scheduler.choices import ranked, values
from rackscale.scheduler.cycle import Cycle, what_if
from rackscale.scheduler.decide import fill, make_room
from rackscale.scheduler.elastic import forbidden, growth, smaller
from rackscale.scheduler.obstacles import Judge
from rackscale.scheduler.order import Order
from rackscale.scheduler.place import least_charge
from rackscale.scheduler.price import Taker, cost, guard, interruptible
from rackscale.scheduler.rooms import SHOWN, best_rooms, room_of
from rackscale.scheduler.unblocks import ANYONE, LIMITS, reservation, unblocks
from rackscale.workload import LEVELS, Job

REMEMBERED = 16
"""Decisions about a gang that are told, the last ones."""


class History:
    """What is told from the journal: decisions about these gangs, and jobs that are gone from the state."""

    def __init__(self, events: Iterable[Event], names: Iterable[str], job: str) -> None:
        self.of: dict[str, deque[Happened]] = {name: deque(maxlen=REMEMBERED) for name in names}
        self.job: Job | None = None
        for event in events:
            if isinstance(event, Decided):
                for action in event.plan.actions:
                    kept = self.of.get(getattr(action, "gang", ""))
                    if kept is not None and isinstance(
                        action, Start | Restart | Preempt | Move | Stop | Requeue
                    ):
                        kept.append(_happened(event.at_s, action))
            elif isinstance(event, Submitted) and event.job.name == job:
                self.job = event.job


def _happened(at_s: float, action: Start | Restart | Preempt | Move | Stop | Requeue) -> Happened:
    reason = action.reason
    binding: Binding = getattr(action, "binding", ())
    return Happened(
        at_s=at_s, action=type(action).__name__.lower(), attempt=action.attempt, code=reason.code,
        for_gang=reason.for_gang, window=reason.window, domains=_domains(binding),
        lost_gpu_h=reason.lost_gpu_s / 3600, restart_gpu_h=reason.restart_gpu_s / 3600,
        penalty_gpu_h=reason.penalty_gpu_s / 3600, free_nodes_left=reason.free_nodes_left,
    )  # fmt: skip


def why(
    state: FleetState, name: str, history: Iterable[Event] = (), *, now_s: float | None = None
) -> tuple[Why, ...]:
    """Explain a job (all its gangs) or one gang. Raises UnknownNameError.

    `history`: events of the journal, to tell past departures from. `now_s`: the time, if it is later than the state's.
    """
    names, job = _named(state, name)
    told = History(history, names, job)
    at_s = state.now_s if now_s is None else max(now_s, state.now_s)
    before_s = state.machines.now_s
    try:
        state.machines.now_s = at_s
        waiting = _waiting(state, [n for n in names if state.waiting.of(n) is not None], told, at_s)
        return tuple(waiting.get(gang) or _why(state, gang, told, at_s) for gang in names)
    finally:
        state.machines.now_s = before_s


def _named(state: FleetState, name: str) -> tuple[list[str], str]:
    """The gangs that the name means, and their job."""
    job = state.jobs.get(name)
    if job is not None:
        return [n for n in job.gangs() if n in state.gangs or n in state.ended], name
    if name in state.gangs:
        return [name], state.gangs[name].job
    if name in state.ended:
        return [name], state.ended[name].job
    ended = [n for n, e in state.ended.items() if e.job == name]
    if not ended:
        raise UnknownNameError("job", name, [*state.jobs, *state.gangs, *state.ended])
    return ended, name


def _why(state: FleetState, name: str, told: History, now_s: float) -> Why:
    history = tuple(told.of[name])
    gang = state.gangs.get(name)
    if gang is None:
        return _ended(state, name, state.ended[name], told, now_s)
    if gang.paused_until_s is not None:
        return _paused(state, gang, history, now_s)
    if gang.status is Status.WAITING:
        return _claimed(state, gang, history, now_s)
    return _placed(state, gang, history, now_s)


# -- waiting -----------------------------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """A waiting gang after those ahead of it had their turn."""

    judge: Judge
    obstacles: dict[int, Obstacle]
    """By choice, the most valuable first."""
    rooms: tuple[DomainRoom, ...]


def _waiting(state: FleetState, names: list[str], told: History, now_s: float) -> dict[str, Why]:
    """Explain gangs in line, all from one decision that is tried."""
    if not names:
        return {}
    lines = {name: _in_line(state, state.gangs[name], now_s) for name in names}
    with what_if(state, now_s, due=True) as cycle:
        fill(cycle)
        known: dict[int, Judged] = {}
        judged = {name: _judged(cycle, state.gangs[name], known) for name in names}
        make_room(cycle)
        return {name: _answer(judged[name], lines[name], tuple(told.of[name])) for name in names}


def _judged(cycle: Cycle, gang: Gang, known: dict[int, Judged]) -> Judged:
    """Judge the gang in each of its choices; gangs of one class are alike."""
    state, cls = cycle.state, cycle.state.waiting.of(gang.name)
    assert cls is not None
    judge = Judge(cycle, gang, cycle.order.of(gang), cls)
    starts = {a.gang: a.choice for a in cycle.actions if isinstance(a, Start)}
    same = known.get(id(cls))
    if same is not None and gang.name not in starts:
        return same._replace(judge=judge)
    refused = any(isinstance(a, Refuse) and a.job == gang.job for a in cycle.actions)
    order = ranked(state.topology, state.policy, judge.job)
    obstacles = {n: Obstacle(code="never-fits") if refused else judge.judge(n) for n in order}
    if gang.name in starts:
        obstacles[starts[gang.name]] = Obstacle(code="next-cycle")
    found = Judged(judge, obstacles, _rooms(judge, order[0]))
    if gang.name not in starts:
        known[id(cls)] = found
    return found


def _answer(judged: Judged, line: InLine, history: tuple[Happened, ...]) -> Why:
    """After room was made: what comes next for the gang, and what would have to."""
    judge, obstacles, rooms = judged
    gang, job, state, cycle = judge.gang, judge.job, judge.state, judge.cycle
    limited = all(obstacle.code in LIMITS for obstacle in obstacles.values())
    start = None if limited else reservation(judge)
    mine = next((a for a in cycle.actions if isinstance(a, Start | Claim) and a.gang == gang.name), None)
    choice = _chosen(obstacles, mine or start)
    obstacle = obstacles[choice]
    if isinstance(mine, Start):
        obstacle = Obstacle(code="next-cycle", domains=_domains(mine.binding))
    solved = obstacle.code in ("next-cycle", "never-fits")
    return Why(
        gang=gang.name, status=gang.status, now_s=cycle.now_s, since_s=gang.since_s, constraint=obstacle.code,
        obstacle=obstacle, choice=choice, choices=_choices(state, job, obstacles) if job.offers else (), line=line,
        reservation=start, domains=rooms, unblocks=unblocks(judge, obstacle, choice, start),
        guards={} if solved else _guards(judge, choice), due_s=state.retry_at_s, ran_before=gang.cause,
        evictions=gang.evictions, history=history, attempts=gang.attempt,
        largest=_largest(state, job) if obstacle.code == "never-fits" else (),
    )  # fmt: skip


def _chosen(obstacles: dict[int, Obstacle], coming: Start | Claim | Reservation | None) -> int:
    """The shape to speak of: the one that comes next or is promised, else the most valuable that ever fits."""
    if coming is not None:
        return coming.choice
    return next(
        (n for n, obstacle in obstacles.items() if obstacle.code != "never-fits"), next(iter(obstacles))
    )


def _rooms(judge: Judge, choice: int) -> tuple[DomainRoom, ...]:
    """The best domains for the choice, and what each lacks."""
    job, state = judge.job, judge.state
    if job.cpu_only or job.booking is not None:
        return ()
    offer = job.choices[choice]
    within = 0
    for group in state.topology.groups(offer.system or job.system, job.cluster):
        within |= group.domains
    return best_rooms(state, within, offer.shape.nodes_held_per_segment)


def _choices(state: FleetState, job: Job, judged: dict[int, Obstacle]) -> tuple[ChoiceJudged, ...]:
    value = values(state.topology, state.policy, job)
    missing = [n for n in range(len(job.choices)) if n not in judged]
    return tuple(
        ChoiceJudged(
            choice=n, segments=offer.shape.segments, nodes_per_segment=offer.shape.nodes_held_per_segment,
            system=offer.system or job.system, throughput=offer.throughput, value_per_h=value.get(n),
            obstacle=judged.get(n, Obstacle(code="never-fits")),
        )
        for n, offer in ((n, job.choices[n]) for n in (*judged, *missing))
    )  # fmt: skip


def _in_line(state: FleetState, gang: Gang, now_s: float) -> InLine:
    """Who goes before the gang, and what fair share counts."""
    order = Order(state, now_s)
    mine = order.of(gang)
    ahead, last = 0, None
    booking = state.jobs[gang.job].booking
    for cls in state.waiting.classes.values():
        if cls.job.booking != booking:  # it waits for other nodes
            continue
        at = bisect_left(range(len(cls.entries)), mine, key=lambda n, cls=cls: order.of_entry(cls, n))  # type: ignore[misc]
        ahead += at
        if at:
            last = max(
                last or (order.of_entry(cls, at - 1), ""),
                (order.of_entry(cls, at - 1), cls.entries[at - 1][2]),
            )
    return InLine(ahead=ahead, next_ahead=last[1] if last else None, shares=_shares(state, gang, now_s))


def _shares(state: FleetState, gang: Gang, now_s: float) -> tuple[Share, ...]:
    half_life_s = state.tree.half_life_s
    return tuple(
        Share(
            queue=node.spec.name, weight=node.spec.weight, held_gpus=node.used.gpus, quota_gpus=node.spec.quota_gpus,
            quota_domains=node.spec.quota_domains,
            used_gpus=None if half_life_s is None else node.used.now(now_s, half_life_s) * LN2 / half_life_s,
        )
        for node in reversed(state.tree.node(gang.queue).path)
    )  # fmt: skip


def _guards(judge: Judge, choice: int) -> dict[str, int]:
    """Why those who hold nodes may not be evicted for the gang, by guard."""
    state, gang = judge.state, judge.gang
    if judge.job.cpu_only or judge.job.booking is not None:
        return {}
    taker = Taker(gang.priority, gang.queue, least_charge(judge.cycle, judge.job, choice))
    counts = Counter(
        guard(state, other, taker, judge.cycle.now_s) or "allowed"
        for other in state.gangs.values()
        if other.binding and not state.jobs[other.job].cpu_only
    )
    return dict(sorted(counts.items()))


def _paused(state: FleetState, gang: Gang, history: tuple[Happened, ...], now_s: float) -> Why:
    """Its program failed, and it is not in line yet."""
    most = state.jobs[gang.job].durability.max_restarts
    obstacle = Obstacle(code="paused", at_s=gang.paused_until_s, used=gang.restarts, limit=most)
    return Why(
        gang=gang.name, status=gang.status, now_s=now_s, since_s=gang.since_s, constraint="paused", obstacle=obstacle,
        ran_before=gang.cause, evictions=gang.evictions, history=history, attempts=gang.attempt,
    )  # fmt: skip


def _claimed(state: FleetState, gang: Gang, history: tuple[Happened, ...], now_s: float) -> Why:
    """Nodes are kept for it."""
    domains = _domains(gang.claim)
    rooms = tuple(room_of(state, state.index[domain], 0) for domain in domains[:SHOWN])
    masks = state.claimants[gang.name]
    on = {name for d, mask in masks for name, held in state.tenants.on[d].items() if held & mask}
    ends_s = max((state.machines.expected_end_s(state.gangs[name], now_s) for name in on), default=now_s)
    with what_if(state, now_s, due=True) as cycle:
        fill(cycle)
        mine = [action for action in cycle.actions if getattr(action, "gang", "") == gang.name]
    code, broken = "claimed", any(isinstance(a, Unclaim) for a in mine)
    if any(isinstance(a, Start) for a in mine):
        code = "next-cycle"
    obstacle = Obstacle(
        code=code, domains=domains, detail="broken" if broken else None, at_s=None if ends_s == inf else ends_s,
        subject=", ".join(sorted(on)) or None,
    )  # fmt: skip
    return Why(
        gang=gang.name, status=gang.status, now_s=now_s, since_s=gang.since_s, constraint=code, obstacle=obstacle,
        choice=gang.claim_choice, domains=rooms, ran_before=gang.cause, evictions=gang.evictions, history=history,
        attempts=gang.attempt,
    )  # fmt: skip


# -- placed ------------------------------------------------------------------------------------------------------------


def _placed(state: FleetState, gang: Gang, history: tuple[Happened, ...], now_s: float) -> Why:
    domains = _domains(gang.binding)
    rooms = tuple(room_of(state, state.index[domain], 0) for domain in domains[:SHOWN])
    job = state.jobs[gang.job]
    value = values(state.topology, state.policy, job)
    judged = {n: Obstacle(code="next-cycle") for n in ranked(state.topology, state.policy, job)}
    return Why(
        gang=gang.name, status=gang.status, now_s=now_s, since_s=gang.since_s, constraint=gang.cause,
        choice=gang.choice, choices=_choices(state, job, judged) if job.offers else (), domains=rooms,
        placed=_place(state, gang, value.get(gang.choice), now_s), evictions=gang.evictions, history=history,
        attempts=gang.attempt,
    )  # fmt: skip


def _place(state: FleetState, gang: Gang, value: float | None, now_s: float) -> Placed:
    domains = _domains(gang.binding)
    price = cost(state, gang, now_s)
    end_s = state.machines.expected_end_s(gang, now_s)
    protected = interruptible(state, gang, Taker(ANYONE, gang.queue, NOTHING), now_s)
    leave = state.evacuating.get(gang.name)
    return Placed(
        attempt=gang.attempt, domains=domains, nodes=sum(len(s.held) for s in gang.binding), choice=gang.choice,
        value_per_h=value, expected_end_s=None if end_s == inf else end_s, spans=_spans(state, domains),
        lost_gpu_h=price.lost_gpu_s / 3600, restart_gpu_h=price.restart_gpu_s / 3600,
        penalty_gpu_h=price.penalty_gpu_s / 3600, kept_h=gang.kept_now_s(now_s) / 3600, protected_by=protected,
        protected_until_s=_until_s(state, gang, protected), taken_by=_takers(state, gang),
        taken_within=_keeps_within(state, gang),
        shrinks=bool(smaller(state, gang)), growth=_growth(state, gang, now_s), back_on=_domains(gang.claim),
        must_leave_s=None if leave is None else max(leave[0], now_s), must_leave_for=leave[1] if leave else None,
    )  # fmt: skip


def _spans(state: FleetState, domains: tuple[str, ...]) -> dict[str, int]:
    """Units of every fabric level that the domains lie in."""
    indices = [state.index[domain] for domain in domains]
    return {level: len({state.topology.unit(level, d) for d in indices}) for level in LEVELS}


def _until_s(state: FleetState, gang: Gang, protected: str | None) -> float | None:
    """When the guard ends by itself, where time alone ends it."""
    if protected == "minimum-run-time" and gang.started_s is not None:
        return gang.started_s + max(state.policy.min_runtime_s, state.jobs[gang.job].durability.restart_s)
    return None


def _takers(state: FleetState, gang: Gang) -> tuple[str, ...]:
    """Who may preempt it when no guard is in the way."""
    policy, tree = state.policy, state.tree
    if not state.jobs[gang.job].preemptible:
        return ()
    above = [
        name for name, priority in policy.priorities.items() if priority > gang.priority and policy.preemption
    ]
    path = tree.node(gang.queue).path
    if (
        policy.preemption
        and policy.reclaim
        and any(n.spec.guaranteed and not n.within_quota(NOTHING) for n in path)
    ):
        above.append("reclaim")
    return tuple(sorted(above, key=lambda name: policy.priorities.get(name, ANYONE)))


def _keeps_within(state: FleetState, gang: Gang) -> str | None:
    """The first queue on the gang's path that would fall below its quota without it."""
    for node in state.tree.node(gang.queue).path if state.tree.guaranteed else ():
        gpus, domains = node.can_spare()
        if node.spec.guaranteed and (gang.charge.gpus > gpus or gang.charge.domains > domains):
            return node.spec.name
    return None


def _growth(state: FleetState, gang: Gang, now_s: float) -> str | None:
    """Why an elastic gang does not grow, in the next decision as it would be."""
    if gang.name not in state.elastic:
        return None
    with what_if(state, now_s, due=True) as cycle:
        fill(cycle)
        make_room(cycle)
        if any(
            isinstance(a, Move) and a.gang == gang.name and a.reason.code == "grown" for a in cycle.actions
        ):
            return "grows"
        verdict = forbidden(cycle) or growth(cycle, gang)
        return verdict if isinstance(verdict, str) else "no-room"


# -- ended -------------------------------------------------------------------------------------------------------------


def _ended(state: FleetState, name: str, ended: Ended, told: History, now_s: float) -> Why:
    constraint = ended.detail if ended.outcome == "refused" else ended.outcome
    return Why(
        gang=name, status="ended", now_s=now_s, since_s=ended.at_s, constraint=constraint,
        outcome=ended.outcome, detail=ended.detail, attempts=ended.attempts, history=tuple(told.of[name]),
        largest=_largest(state, told.job) if ended.detail == "never-fits" else (),
    )  # fmt: skip


def _largest(state: FleetState, job: Job | None) -> tuple[Largest, ...]:
    """What each cluster that would do could hold at most."""
    groups = state.topology.groups(*((job.system, job.cluster) if job is not None else (None, None)))
    if not groups:
        groups = state.topology.groups(None, None)
    return tuple(
        Largest(
            cluster=group.cluster, system=group.system, nodes_per_segment=group.largest,
            domains=(_empty(state, group.largest) & group.domains).bit_count(),
        )
        for group in groups[:SHOWN]
    )  # fmt: skip


def _empty(state: FleetState, nodes: int) -> int:
    """Domains that give so many nodes when they are empty."""
    buckets = state.topology.empty.buckets
    return buckets[nodes] if nodes < len(buckets) else 0


def _domains(binding: Binding) -> tuple[str, ...]:
    return tuple(dict.fromkeys(segment.domain for segment in binding))
