"""Reservations: when and where the first of those who wait are expected to start, so that nobody behind delays them.

The first `Policy.reservations` waiting gangs in order get one each (conservative backfill), and so do bookings that
have not begun; all others start wherever that delays none of these (EASY). A reservation counts nodes that are free,
that gangs free at their expected ends, that come back from repair, or that are delivered. It is worked out anew every
`preemption_retry_s`, and at once for a gang that has just come.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from rackscale.events import Reason, Reserve, Unreserve
from rackscale.fleet.gangs import Gang
from rackscale.fleet.horizon import NOW
from rackscale.fleet.topology import Group
from rackscale.scheduler.choices import ranked
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.order import Key
from rackscale.workload import Job, Nearness, Shape

BOOKING = "@"
"""Stands before the name of a booking where a gang's name is expected."""
LOOK_AHEAD = 512
"""Domains looked at for one reservation beyond those it needs, in order of time."""


class Wanted(NamedTuple):
    """Somebody who needs room in the future."""

    shape: Shape
    system: str | None
    cluster: str | None
    nearness: Nearness
    not_before_s: float
    lasts_s: float


class Found(NamedTuple):
    start_s: float
    domains: tuple[int, ...]


def reserve(cycle: Cycle) -> None:
    """Renew the reservations of bookings and of the first gangs in line."""
    state = cycle.state
    calendar = state.machines.calendar
    kept = _Kept(cycle)
    for name, booking in calendar.bookings.items():
        if name in calendar.holding or any(getattr(a, "booking", "") == name for a in cycle.actions):
            continue
        wanted = Wanted(
            booking.shape, booking.system, booking.cluster, booking.nearness,
            max(cycle.now_s, booking.start_s), booking.end_s - booking.start_s,
        )  # fmt: skip
        found = soonest(cycle, wanted, kept.ahead)
        if found is not None:
            kept.promise(BOOKING + name, 0, found, booking.shape)
    for gang in _first(cycle):
        job = state.jobs[gang.job]
        best = earliest(cycle, gang, job, kept.ahead)
        if best is not None:
            choice, found = best
            kept.promise(gang.name, choice, found, job.choices[choice].shape)
    for name in [name for name in state.reserved if name not in kept.names and _still_waits(cycle, name)]:
        cycle.actions.append(Unreserve(gang=name, reason=Reason(code="no-longer-reserved")))


def _still_waits(cycle: Cycle, name: str) -> bool:
    """Whether a reservation is still there when this plan is folded: starting and claiming end it by themselves."""
    return not any(
        getattr(a, "gang", None) == name and not isinstance(a, Reserve | Unreserve) for a in cycle.actions
    ) and not any(BOOKING + getattr(a, "booking", "") == name for a in cycle.actions)


class _Kept:
    """The promises of this cycle, and how many nodes of a domain they take together."""

    def __init__(self, cycle: Cycle) -> None:
        self.cycle = cycle
        self.names: set[str] = set()
        self.ahead: dict[int, int] = {}

    def promise(self, name: str, choice: int, found: Found, shape: Shape) -> None:
        """Say it where it is news."""
        state = self.cycle.state
        self.names.add(name)
        for d in found.domains:
            self.ahead[d] = self.ahead.get(d, 0) + shape.nodes_held_per_segment
        domains = tuple(state.domains[d].name for d in found.domains)
        before = state.reserved.get(name)
        if before is not None and (before.start_s, before.domains, before.choice) == (
            found.start_s,
            domains,
            choice,
        ):
            return
        reason = Reason(code="reserved", start_s=found.start_s)
        self.cycle.actions.append(
            Reserve(gang=name, start_s=found.start_s, domains=domains, reason=reason, choice=choice)
        )


def _first(cycle: Cycle) -> list[Gang]:
    """The first gangs in line for which there is no room, as many as get reservations.

    When it is not due, only those that had one and those that have just come are looked at.
    """
    state, order = cycle.state, cycle.order
    most = state.policy.reservations
    gone = {getattr(a, "gang", "") for a in cycle.actions if not isinstance(a, Unreserve)} | cycle.claimed
    found: list[tuple[Key, str]] = []
    for key, name in _in_line(cycle):
        if len(found) == most:
            break
        if name not in gone:
            found.append((key, name))
    if not cycle.due:
        known = {name for _, name in found}
        found += [
            (order.of(state.gangs[name]), name)
            for name in state.reserved
            if name in state.gangs and name not in gone and name not in known
        ]
    return [state.gangs[name] for _, name in sorted(found)[:most]]


def _in_line(cycle: Cycle) -> Iterator[tuple[Key, str]]:
    """Blocked gangs that reservations are made for, in order."""
    heads = [
        (blocked.key, n, blocked.at)
        for n, blocked in enumerate(cycle.blocked)
        if blocked.cls.job.booking is None and not blocked.cls.job.cpu_only
    ]
    heapq.heapify(heads)
    while heads:
        key, n, at = heapq.heappop(heads)
        cls = cycle.blocked[n].cls
        yield key, cls.entries[at][2]
        if at + 1 < len(cls.entries):
            heapq.heappush(heads, (cycle.order.of_entry(cls, at + 1), n, at + 1))


def earliest(cycle: Cycle, gang: Gang, job: Job, ahead: dict[int, int]) -> tuple[int, Found] | None:
    """The choice that is expected to be done first, and where it would start."""
    state = cycle.state
    cls = state.waiting.of(gang.name)
    assert cls is not None
    best: tuple[float, int, Found] | None = None
    for choice in ranked(state.topology, state.policy, job):
        offer = job.choices[choice]
        lasts_s = job.durability.restart_s + cls.lasts_s / offer.throughput
        wanted = Wanted(
            offer.shape, offer.system or job.system, job.cluster, job.nearness, cycle.now_s, lasts_s
        )
        found = soonest(cycle, wanted, ahead)
        if found is not None:
            done_s = found.start_s + (lasts_s if lasts_s < inf else 0.0)
            if best is None or done_s < best[0]:
                best = (done_s, choice, found)
    return None if best is None else (best[1], best[2])


def soonest(cycle: Cycle, wanted: Wanted, ahead: dict[int, int]) -> Found | None:
    """When and where room is expected first, over all clusters that will do; None: nobody knows."""
    best: Found | None = None
    for group in cycle.state.topology.groups(wanted.system, wanted.cluster):
        if group.largest < wanted.shape.nodes_held_per_segment:
            continue
        found = _soonest_in(cycle, group, wanted, ahead)
        if found is not None and (best is None or found.start_s < best.start_s):
            best = found
    return best


def _soonest_in(cycle: Cycle, group: Group, wanted: Wanted, ahead: dict[int, int]) -> Found | None:
    topology, near = cycle.state.topology, wanted.nearness
    segments = wanted.shape.segments
    by_unit: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    """Unit -> domains that no other segment may use."""
    for looked, (at_s, d) in enumerate(_candidates(cycle, group, wanted, ahead)):
        if looked > segments + LOOK_AHEAD and near == Nearness():
            return None
        unit = topology.unit(near.within, d) if near.within is not None else 0
        if near.spread not in (None, "domain"):
            if used.get(unit, 0) >> d & 1:
                continue
            used[unit] = used.get(unit, 0) | topology.unit(near.spread, d)
        chosen = by_unit.setdefault(unit, [])
        chosen.append(d)
        if len(chosen) == segments:
            return Found(max(at_s, wanted.not_before_s), tuple(sorted(chosen)))
    return None


def _candidates(
    cycle: Cycle, group: Group, wanted: Wanted, ahead: dict[int, int]
) -> Iterator[tuple[float, int]]:
    """(time, domain) for each segment that a domain could take, by time."""
    state, shape = cycle.state, wanted.shape
    horizon, nodes = state.machines.horizon, shape.nodes_held_per_segment
    most = group.largest // nodes if shape.may_share_domain and wanted.nearness.spread is None else 1
    counts = range(1, min(most, shape.segments) + 1)
    streams = [horizon.soonest(count * nodes, cycle.now_s) for count in counts]
    taken = sorted(
        (horizon.when(d, held + count * nodes, cycle.now_s), d)
        for d, held in ahead.items()
        for count in counts
    )
    free = (pair for pair in heapq.merge(*streams) if pair[1] not in ahead)
    for at_s, d in heapq.merge(free, (pair for pair in taken if pair[0] < inf)):
        start_s = max(at_s, wanted.not_before_s) if at_s > NOW else wanted.not_before_s
        if group.domains >> d & 1 and _open(cycle, d, start_s, start_s + wanted.lasts_s, nodes):
            yield at_s, d


def _open(cycle: Cycle, d: int, from_s: float, until_s: float, nodes: int) -> bool:
    """Whether no maintenance or return of capacity is in the way of so many nodes of domain d."""
    calendar = cycle.state.machines.calendar
    windows = calendar.on.get(d)
    if not windows:
        return True
    mask = 0
    for window in windows:
        if window.start_s < until_s and window.end_s > from_s:
            mask |= window.mask
    full = cycle.state.machines.health.full[d]
    return (full & ~mask).bit_count() - cycle.state.occupancy.spares[d] >= nodes
