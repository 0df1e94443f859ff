"""`why`: answers from the same code that decides. Nothing here decides anything."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from rackscale.errors import UnknownNameError
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import members
from rackscale.fleet.queues import Charge
from rackscale.fleet.state import FleetState
from rackscale.scheduler.fit import ever_fits, place
from rackscale.scheduler.preempt import Clearer
from rackscale.scheduler.price import Taker, cost, guard
from rackscale.scheduler.victims import Ask, Clearing

ANYONE = 1 << 31
"""A priority above every other: asks what would have to move if priority were no object."""
SHOWN = 5


class DomainRoom(Struct, frozen=True, kw_only=True):
    """What one domain has of what a segment needs, in nodes."""

    domain: str
    room: int
    lacks: int
    held_by: tuple[str, ...]


class Unblock(Struct, frozen=True, kw_only=True):
    """The cheapest set of gangs whose leaving would let this one start."""

    domains: tuple[str, ...]
    victims: tuple[str, ...]
    lost_gpu_h: float
    """Lost work, restarts and penalties, GPU-hours."""
    allowed: bool
    """Whether priority and guards let the scheduler do it by itself."""


class Why(Struct, frozen=True, kw_only=True):
    """The explanation of one gang. `constraint` is a word for machines, `text` a sentence for people."""

    gang: str
    status: str
    since_s: float | None
    constraint: str
    text: str
    domains: tuple[DomainRoom, ...] = ()
    unblock: Unblock | None = None
    guards: dict[str, int] = {}
    """Why running gangs may not be evicted for this one: reason -> number of gangs."""


def why(state: FleetState, name: str) -> tuple[Why, ...]:
    """Explain a job (all its gangs) or one gang. Raises UnknownNameError."""
    job = state.jobs.get(name)
    names = [n for n in job.gangs() if n in state.gangs or n in state.ended] if job else [name]
    if not job and name not in state.gangs and name not in state.ended:
        ended = [n for n, e in state.ended.items() if e.job == name]
        if not ended:
            raise UnknownNameError("job", name, [*state.jobs, *state.gangs, *state.ended])
        names = ended
    return tuple(_why(state, n) for n in names)


def _why(state: FleetState, name: str) -> Why:
    gang = state.gangs.get(name)
    if gang is None:
        ended = state.ended[name]
        detail = f": {ended.detail}" if ended.detail else ""
        text = f"{ended.outcome} after {ended.attempts} attempt(s){detail}"
        return Why(gang=name, status="ended", since_s=ended.at_s, constraint=ended.outcome, text=text)
    if gang.status is Status.WAITING:
        return _why_waiting(state, gang)
    return _why_placed(state, gang)


def _why_placed(state: FleetState, gang: Gang) -> Why:
    where = ", ".join(f"{s.domain} ({len(s.nodes)} nodes)" for s in gang.binding)
    text = {
        Status.STARTING: f"attempt {gang.attempt} starts on {where} ({gang.cause})",
        Status.RUNNING: f"attempt {gang.attempt} runs on {where} ({gang.cause})",
        Status.BROKEN: f"a node under it failed on {where}",
        Status.LEAVING: f"it was told to leave {where} ({gang.cause})",
    }[gang.status]
    lost = cost(state, gang, state.now_s)
    text += f"; stopping it now would cost {lost.total / 3600:.2f} GPU-h"
    rooms = tuple(_room(state, state.index[s.domain], 0) for s in gang.binding)
    return Why(
        gang=gang.name, status=gang.status, since_s=gang.since_s, constraint=gang.cause, text=text,
        domains=rooms[:SHOWN],
    )  # fmt: skip


def _room(state: FleetState, d: int, needed: int) -> DomainRoom:
    room = state.occupancy.room[d]
    return DomainRoom(
        domain=state.domains[d].name, room=room, lacks=max(0, needed - room),
        held_by=tuple(sorted(state.tenants.on[d])),
    )  # fmt: skip


def _why_waiting(state: FleetState, gang: Gang) -> Why:
    job = state.jobs[gang.job]
    shape = job.shape
    groups = state.topology.groups(job.system, job.cluster)
    free = sum(
        room * (bits & group.domains).bit_count() * group.gpus_per_node
        for group in groups
        for room, bits in enumerate(state.occupancy.buckets)
    )
    best = _best(state, [group.domains for group in groups], shape.nodes_per_segment)
    if gang.claim:
        held = {n for s in gang.claim for n in state.tenants.on[state.index[s.domain]]}
        where = ", ".join(s.domain for s in gang.claim)
        constraint, text = (
            "claimed",
            f"{where} is being cleared for it; it starts when {', '.join(sorted(held))} left",
        )
    elif not ever_fits(state, job):
        constraint = "never-fits"
        largest = max((group.largest for group in groups), default=0)
        text = (
            f"no cluster could ever hold {shape.segments} x {shape.nodes_per_segment} nodes"
            f" (the largest segment that fits is {largest} nodes)"
        )
    elif place(state, job.choices[0], job) is not None:
        constraint, text = "next-cycle", "it fits now and starts in the next cycle"
    else:
        constraint = "topology" if free >= state.gpus(gang) else "capacity"
        have = sum(1 for r in best if r.lacks == 0)
        text = (
            f"{free} GPUs are free, but {have} of the {shape.segments} domain(s) it needs have"
            f" {shape.nodes_per_segment} free nodes"
        )
        if best and best[0].lacks:
            text += f"; the best, {best[0].domain}, has {best[0].room}"
    if gang.cause:
        text += f" (it ran before: {gang.cause})"
    unblock, guards = (None, {}) if constraint in ("claimed", "never-fits") else _unblock(state, gang)
    return Why(
        gang=gang.name, status=gang.status, since_s=gang.since_s, constraint=constraint, text=text,
        domains=tuple(best), unblock=unblock, guards=guards,
    )  # fmt: skip


def _best(state: FleetState, groups: list[int], needed: int) -> list[DomainRoom]:
    """The domains with the most room."""
    within = 0
    for domains in groups:
        within |= domains
    found: list[DomainRoom] = []
    for bits in reversed(state.occupancy.buckets):
        for d in members(bits & within):
            found.append(_room(state, d, needed))
            if len(found) == SHOWN:
                return found
    return found


def _unblock(state: FleetState, gang: Gang) -> tuple[Unblock | None, dict[str, int]]:
    job = state.jobs[gang.job]
    state.occupancy.begin()
    try:
        charge = Charge(job.shape.nodes_held * 4)
        ask = Ask(job, job.choices[0], Taker(gang.priority, gang.queue, charge))
        clearer = Clearer(state, state.now_s, set(), {})
        allowed = clearer.clear(ask)
        found = allowed or clearer.clear(ask._replace(taker=Taker(ANYONE, gang.queue, charge)))
    finally:
        state.occupancy.end()
    reasons = Counter(
        guard(state, other, ask.taker, state.now_s) or "allowed"
        for other in state.gangs.values()
        if other.binding
    )
    return (_describe(found, allowed is not None) if found else None), dict(sorted(reasons.items()))


def _describe(found: Clearing, allowed: bool) -> Unblock:
    return Unblock(
        domains=tuple(s.domain for s in found.binding), victims=found.victims, lost_gpu_h=found.price / 3600,
        allowed=allowed,
    )  # fmt: skip
