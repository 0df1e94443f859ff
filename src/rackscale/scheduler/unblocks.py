"""The ways to let a waiting gang start: what the scheduler does next, and what it would take otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import ceil, inf

from msgspec.structs import replace

from rackscale.events import Claim, Move, Preempt, Reserve, Start, Unreserve
from rackscale.fleet.gangs import Gang
from rackscale.fleet.health import LEMON
from rackscale.fleet.occupancy import members
from rackscale.fleet.topology import Rooms
from rackscale.scheduler.answers import Obstacle, Reservation, Step, Unblock, UnblockKind
from rackscale.scheduler.clear import clearing_for
from rackscale.scheduler.cycle import Blocked, Cycle
from rackscale.scheduler.defragment import Opening, opening
from rackscale.scheduler.obstacles import Judge
from rackscale.scheduler.place import least_charge
from rackscale.scheduler.preempt import Clearer
from rackscale.scheduler.price import Taker, guard
from rackscale.scheduler.reserve import earliest
from rackscale.scheduler.victims import Ask, Clearing
from rackscale.workload import Offer

ANYONE = 1 << 31
"""A priority above every other: asks what would have to move if priority were no object."""
FIXES = 64
"""Domains looked at for nodes that could be repaired or undrained."""
SOLVED = ("next-cycle", "claimed", "never-fits", "booking", "announced", "policy")
"""Obstacles that moving others does not help against."""
LIMITS = ("queue-limit", "queue-gangs", "user-limit", "borrows")


def unblocks(judge: Judge, obstacle: Obstacle, choice: int, start: Reservation | None) -> tuple[Unblock, ...]:
    """All ways that are known, asked after `decide.make_room`: those of the scheduler itself first, then by cost."""
    found = list(_all(judge, obstacle, choice, start))
    found.sort(key=lambda u: (not u.allowed, u.cost_gpu_h, u.kind))
    if not found:
        return ()
    best = min(found, key=lambda u: (bool(u.forbidden_by), u.cost_gpu_h, not u.allowed))
    return tuple(replace(u, cheapest=True) if u is best else u for u in found)


def _all(judge: Judge, obstacle: Obstacle, choice: int, start: Reservation | None) -> Iterator[Unblock]:
    cycle, gang = judge.cycle, judge.gang
    done = next_step(cycle, gang)
    if done is not None:
        yield done
    if start is not None and start.start_s > cycle.now_s:
        waits_h = (start.start_s - cycle.now_s) / 3600 * obstacle.needs_gpus
        yield Unblock(
            kind="wait", allowed=start.promised, at_s=start.start_s, domains=start.domains, cost_gpu_h=waits_h
        )
    if obstacle.code in LIMITS:
        yield _raised(obstacle)
    if obstacle.code in ("maintenance", "expiry"):
        kind: UnblockKind = "extend" if obstacle.code == "expiry" else "call-off"
        yield Unblock(kind=kind, allowed=False, subject=obstacle.subject, domains=obstacle.domains)
    if obstacle.code in SOLVED or obstacle.code in LIMITS or judge.job.cpu_only:
        return
    offer = judge.job.choices[choice]
    yield from _mended(judge, offer, obstacle)
    if done is None:
        yield from _cleared(judge, offer, choice)
        yield from _opened(judge)


def next_step(cycle: Cycle, gang: Gang) -> Unblock | None:
    """What this decision does to make room for the gang; None: nothing."""
    claim = next((a for a in cycle.actions if isinstance(a, Claim) and a.gang == gang.name), None)
    if claim is None:
        return None
    sent = [a for a in cycle.actions if isinstance(a, Preempt | Move) and a.reason.for_gang == gang.name]
    codes = {a.reason.code for a in sent}
    kind: UnblockKind = "preempt"
    if "moved-for" in codes:
        kind = "defragment"
    elif "reclaimed-for" in codes:
        kind = "reclaim"
    elif codes == {"shrunk-for"}:
        kind = "shrink"
    cost_gpu_s = sum(a.reason.lost_gpu_s + a.reason.restart_gpu_s + a.reason.penalty_gpu_s for a in sent)
    return Unblock(
        kind=kind, allowed=True, gangs=tuple(a.gang for a in sent), cost_gpu_h=cost_gpu_s / 3600,
        domains=tuple(s.domain for s in claim.binding), saves_gpu_h=sum(a.reason.gain_gpu_s for a in sent) / 3600,
        at_s=cycle.now_s + max((a.grace_s for a in sent), default=0.0),
    )  # fmt: skip


def _raised(obstacle: Obstacle) -> Unblock:
    if obstacle.code == "borrows":
        return Unblock(
            kind="make-preemptible", allowed=False, subject=obstacle.subject, unit=obstacle.unit,
            limit=obstacle.used + obstacle.asks,
        )  # fmt: skip
    limit = obstacle.used + obstacle.asks
    if obstacle.unit != "domains":
        limit = ceil(limit)
    return Unblock(
        kind="raise-limit", allowed=False, subject=obstacle.subject, unit=obstacle.unit, limit=limit
    )


def _cleared(judge: Judge, offer: Offer, choice: int) -> Iterator[Unblock]:
    """Whom to send away if priority were no object; why the scheduler doesn't."""
    cycle, gang, state = judge.cycle, judge.gang, judge.state
    clearer = Clearer(state, cycle.now_s, cycle.leaving, cycle.evicted)
    charge = least_charge(cycle, judge.job, choice)
    taker = Taker(gang.priority, gang.queue, charge)
    at = judge.cls.entries.index((not gang.front, gang.seq, gang.name))
    lawful = clearing_for(cycle, clearer, judge.key, Blocked(judge.key, judge.cls, at), gang)
    found = lawful[0] if lawful else clearer.clear(Ask(judge.job, offer, taker._replace(priority=ANYONE)))
    if found is None or not found.victims:
        return
    guards = Counter(
        code for name in found.victims if (code := guard(state, state.gangs[name], taker, cycle.now_s))
    )
    forbidden = dict(sorted(guards.items()))
    if not state.policy.preemption:
        forbidden["policy"] = 0
    elif (
        not forbidden
    ):  # its turn has not come: others ahead of it are cleared for, or it has a promise in the way
        forbidden["not-its-turn" if lawful else "promised"] = 0
    yield Unblock(
        kind="shrink" if set(found.victims) == set(found.shrunk) else "preempt", allowed=False, gangs=found.victims,
        cost_gpu_h=found.price / 3600, domains=_domains(found), forbidden_by=forbidden,
    )  # fmt: skip


def _domains(found: Clearing) -> tuple[str, ...]:
    return tuple(segment.domain for segment in found.binding)


def _opened(judge: Judge) -> Iterator[Unblock]:
    """Moves that would open a domain, as advice."""
    cycle, gang, state = judge.cycle, judge.gang, judge.state
    at = judge.cls.entries.index((not gang.front, gang.seq, gang.name))
    found: Opening | None = opening(cycle, Blocked(judge.key, judge.cls, at), gang)
    if found is None or state.policy.defragment == "off":
        return
    why = "policy" if state.policy.defragment == "advise" else "not-its-turn"
    yield Unblock(
        kind="defragment", allowed=False, gangs=tuple(m.gang for m in found.moves), domains=(found.segment.domain,),
        cost_gpu_h=found.price_gpu_s / 3600, saves_gpu_h=found.gain_gpu_s / 3600, forbidden_by={why: 0},
    )  # fmt: skip


def _mended(judge: Judge, offer: Offer, obstacle: Obstacle) -> Iterator[Unblock]:
    """The fewest domains whose failed (or drained) nodes have to be back for the gang to fit, the soonest first."""
    if obstacle.code not in ("topology", "capacity", "health", "fabric"):
        return
    for kind in ("repair", "undrain"):
        ready: dict[int, float] = {}
        rooms = dict[int, int]()
        for at_s, d, nodes in sorted(_idle(judge, offer, kind))[:FIXES]:
            rooms[d] = nodes
            ready[d] = at_s
            found = judge.fits(offer, books=_with(judge, rooms))
            if found is None:
                continue
            used = sorted({d for d in found.domains if d in ready})
            done_s = max(judge.cycle.now_s, *(ready[d] for d in used))
            names = tuple(judge.state.domains[d].name for d in used)
            if kind == "repair":
                known = done_s < inf
                waits_h = (done_s - judge.cycle.now_s) / 3600 * obstacle.needs_gpus if known else 0.0
                when_s = done_s if known else None
                yield Unblock(kind="repair", allowed=False, domains=names, at_s=when_s, cost_gpu_h=waits_h)
            else:
                yield Unblock(kind="undrain", allowed=False, domains=names)
            break


def _idle(judge: Judge, offer: Offer, kind: str) -> Iterator[tuple[float, int, int]]:
    """(when they are expected back, domain, room then) of domains with nodes that nobody holds and that are out."""
    state = judge.state
    health, occupancy = state.machines.health, state.occupancy
    lemons = {d: mask for (d, why), mask in health.closures.items() if why == LEMON}
    for group in state.topology.groups(offer.system or judge.job.system, judge.job.cluster):
        for d in members(group.domains):
            drained = health.drained[d] | lemons.get(d, 0)
            out = health.failed[d] & ~drained if kind == "repair" else drained & ~health.failed[d]
            others = (
                sum(mask for (e, why), mask in health.closures.items() if e == d and why != LEMON)
                if out
                else 0
            )
            out &= ~(occupancy.held[d] | occupancy.claimed[d] | health.absent[d] | others)
            if out:
                free = occupancy.free[d] | out
                back_s = (
                    max(health.back_s.get((d, n), inf) for n in members(out)) if kind == "repair" else 0.0
                )
                yield back_s, d, max(0, free.bit_count() - occupancy.spares[d])


def _with(judge: Judge, rooms: dict[int, int]) -> Rooms:
    """The books as they are, but for these domains."""
    books, occupancy = Rooms(), judge.state.occupancy
    mended = sum(1 << d for d in rooms)
    books.buckets = [bits & ~mended for bits in occupancy.buckets]
    for d, room in rooms.items():
        books.add(d, room)
    return books


# -- when it starts by itself ------------------------------------------------------------------------------------------


def reservation(judge: Judge) -> Reservation | None:
    """The promise that the gang has after this decision, or else what is expected today.

    None: nobody knows, or it starts or has room cleared at once.
    """
    cycle, name, state = judge.cycle, judge.gang.name, judge.state
    if judge.job.cpu_only or judge.job.booking is not None:
        return None
    mine = [a for a in cycle.actions if getattr(a, "gang", "") == name]
    if any(isinstance(a, Start | Claim) for a in mine):
        return None
    kept = next((a for a in mine if isinstance(a, Reserve)), state.reserved.get(name))
    if kept is not None and not any(isinstance(a, Unreserve) for a in mine):
        return _reservation(judge, kept.start_s, kept.domains, kept.choice, promised=True)
    found = earliest(cycle, judge.gang, judge.job, cycle.promises.spans())
    if found is None:
        return None
    choice, (start_s, where) = found
    if start_s <= cycle.now_s:  # the expectation knows nothing of what is in the way
        return None
    names = tuple(state.domains[d].name for d in where)
    return _reservation(judge, start_s, names, choice, promised=False)


def _reservation(
    judge: Judge, start_s: float, domains: tuple[str, ...], choice: int, *, promised: bool
) -> Reservation:
    steps = [step for name in dict.fromkeys(domains) for step in _steps(judge, name, start_s)]
    steps.sort(key=lambda s: (s.at_s or 0.0, s.domain, s.subject))
    return Reservation(start_s=start_s, domains=domains, choice=choice, promised=promised, steps=tuple(steps))


def _steps(judge: Judge, domain: str, start_s: float) -> Iterator[Step]:
    """What is expected to free nodes of the domain by then."""
    state, now_s = judge.state, judge.cycle.now_s
    machines, d = state.machines, state.index[domain]
    for name, mask in state.tenants.on[d].items():
        gang = state.gangs[name]
        at_s = machines.expected_end_s(gang, now_s)
        if at_s <= start_s:
            kind = "leaves" if name in state.leaving else "ends"
            yield Step(kind=kind, subject=name, domain=domain, nodes=mask.bit_count(), at_s=at_s)  # type: ignore[arg-type]
    for at_s, mask in machines.health.comebacks(d):
        if at_s <= start_s and mask:
            kind = "delivery" if machines.health.absent[d] else "repair"
            yield Step(kind=kind, subject=domain, domain=domain, nodes=mask.bit_count(), at_s=at_s)  # type: ignore[arg-type]
