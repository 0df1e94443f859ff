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

from rackscale.events import Hold, Reason, Reserve, Segment, Unreserve
from rackscale.fleet.gangs import Gang
from rackscale.fleet.horizon import NOW
from rackscale.fleet.occupancy import members
from rackscale.fleet.queues import Charge
from rackscale.fleet.topology import Group
from rackscale.scheduler.choices import ranked
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.order import Key
from rackscale.scheduler.place import refused
from rackscale.scheduler.promises import Span, Spans
from rackscale.workload import Booking, Job, Nearness, Shape

BOOKING = "@"
"""Stands before the name of a booking where a gang's name is expected."""
LONG_LINE = 64
"""Where more gangs wait, reservations are renewed only when it is due: somebody comes or starts all the time."""
LOOK_AHEAD = 512
"""Domains looked at for one reservation beyond those it needs, in order of time."""


PLAIN = Nearness()


class Wanted(NamedTuple):
    """Somebody who needs room in the future."""

    shape: Shape
    system: str | None
    cluster: str | None
    nearness: Nearness
    not_before_s: float
    lasts_s: float


def wanted_by(booking: Booking, now_s: float) -> Wanted:
    """What a booking that has not begun asks for."""
    return Wanted(
        booking.shape, booking.system, booking.cluster, booking.nearness, max(now_s, booking.start_s),
        booking.end_s - booking.start_s,
    )  # fmt: skip


class Found(NamedTuple):
    start_s: float
    domains: tuple[int, ...]


def reserve(cycle: Cycle) -> None:
    """Renew the reservations of bookings and of the first gangs in line."""
    state = cycle.state
    calendar = state.machines.calendar
    if not cycle.due and _stands(cycle):
        return
    kept = _Kept(cycle)
    for name, booking in calendar.bookings.items():
        if name in calendar.holding or any(getattr(a, "booking", "") == name for a in cycle.actions):
            continue
        wanted = wanted_by(booking, cycle.now_s)
        found = soonest(cycle, wanted, kept.ahead)
        if found is not None:
            kept.promise(BOOKING + name, 0, found, booking.shape, wanted.lasts_s)
    for gang in _first(cycle):
        job = state.jobs[gang.job]
        best = earliest(cycle, gang, job, kept.ahead)
        if best is not None:
            choice, found = best
            kept.promise(
                gang.name, choice, found, job.choices[choice].shape, _lasts_s(cycle, gang, job, choice)
            )
    for name in [name for name in state.reserved if name not in kept.names and _still_waits(cycle, name)]:
        cycle.actions.append(Unreserve(gang=name, reason=Reason(code="no-longer-reserved")))


def _stands(cycle: Cycle) -> bool:
    """Whether all that is promised may stay as it is: nobody took of it, and nobody has come who goes before."""
    state, calendar = cycle.state, cycle.state.machines.calendar
    if any(n not in calendar.holding and BOOKING + n not in state.reserved for n in calendar.bookings):
        return False
    if any(isinstance(a, Hold) for a in cycle.actions):
        return False
    if state.reserved and state.waiting.size > LONG_LINE:
        return True
    promises = cycle.promises.all()
    if len(promises) != len(state.reserved) or any(
        cycle.disturbed & promise.nodes.keys() for promise in promises
    ):
        return False
    most = state.policy.reservations
    gone = {getattr(a, "gang", "") for a in cycle.actions}
    newcomer = next(
        (key for key, name in _in_line(cycle) if name not in gone and name not in state.reserved), None
    )
    if newcomer is None or not most:
        return True
    keys = [promise.key for promise in promises if not promise.name.startswith(BOOKING)]
    return len(keys) >= most and newcomer > keys[-1]


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
        self.ahead: Spans = {}

    def promise(self, name: str, choice: int, found: Found, shape: Shape, lasts_s: float) -> None:
        """Say it where it is news."""
        state = self.cycle.state
        self.names.add(name)
        for d in found.domains:
            span = Span(found.start_s, found.start_s + lasts_s, shape.nodes_held_per_segment)
            self.ahead.setdefault(d, []).append(span)
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


def _lasts_s(cycle: Cycle, gang: Gang, job: Job, choice: int) -> float:
    """How long the gang is expected to hold its nodes in this choice."""
    cls = cycle.state.waiting.of(gang.name)
    assert cls is not None
    return job.durability.restart_s + cls.lasts_s / job.choices[choice].throughput


def earliest(cycle: Cycle, gang: Gang, job: Job, ahead: Spans) -> tuple[int, Found] | None:
    """The choice that is expected to be done first, and where it would start."""
    state = cycle.state
    best: tuple[float, int, Found] | None = None
    for choice in ranked(state.topology, state.policy, job):
        offer = job.choices[choice]
        lasts_s = _lasts_s(cycle, gang, job, choice)
        wanted = Wanted(
            offer.shape, offer.system or job.system, job.cluster, job.nearness, cycle.now_s, lasts_s
        )
        found = soonest(cycle, wanted, ahead)
        # What its queue's limits hold back is promised nothing: nobody else could use the nodes meanwhile.
        if found is not None and refused(cycle, gang, job, _charge(cycle, found, offer.shape)) is None:
            done_s = found.start_s + (lasts_s if lasts_s < inf else 0.0)
            if best is None or done_s < best[0]:
                best = (done_s, choice, found)
    return None if best is None else (best[1], best[2])


def _charge(cycle: Cycle, found: Found, shape: Shape) -> Charge:
    """What the gang would cost its queue there."""
    domains = cycle.state.domains
    nodes, spares = shape.nodes_per_segment, shape.spares_per_segment
    return cycle.state.machines.charge(
        tuple(
            Segment(
                domain=domains[d].name, nodes=tuple(range(nodes)), spares=tuple(range(nodes, nodes + spares))
            )
            for d in found.domains
        )
    )


def soonest(cycle: Cycle, wanted: Wanted, ahead: Spans) -> Found | None:
    """When and where room is expected first, over all clusters that will do; None: nobody knows."""
    best: Found | None = None
    for group in cycle.state.topology.groups(wanted.system, wanted.cluster):
        if group.largest < wanted.shape.nodes_held_per_segment:
            continue
        found = _soonest_in(cycle, group, wanted, ahead, inf if best is None else best.start_s)
        if found is not None and (best is None or found.start_s < best.start_s):
            best = found
    return best


def roomy_domains(cycle: Cycle, wanted: Wanted, ahead: Spans) -> int:
    """Domains that have room for one segment at the very time that is asked for, in the cluster with the most."""
    most = 0
    for group in cycle.state.topology.groups(wanted.system, wanted.cluster):
        view = _View(cycle, group, wanted, ahead)
        most = max(most, sum(view.has_room(d, 1, wanted.not_before_s) for d in members(group.domains)))
    return most


def _soonest_in(cycle: Cycle, group: Group, wanted: Wanted, ahead: Spans, before_s: float) -> Found | None:
    """The soonest room in one group of domains, if it is before `before_s`."""
    topology, near = cycle.state.topology, wanted.nearness
    segments = wanted.shape.segments
    by_unit: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    """Unit -> domains that no other segment may use."""
    view = _View(cycle, group, wanted, ahead)
    for looked, (at_s, d) in enumerate(view.candidates()):
        if at_s >= before_s or (looked > segments + LOOK_AHEAD and near == PLAIN):
            return None
        unit = topology.unit(near.within, d) if near.within is not None else 0
        if near.spread not in (None, "domain"):
            if used.get(unit, 0) >> d & 1:
                continue
            used[unit] = used.get(unit, 0) | topology.unit(near.spread, d)
        chosen = by_unit.setdefault(unit, [])
        chosen.append(d)
        if len(chosen) == segments:
            start_s = max(at_s, wanted.not_before_s)
            gone = [other for other in set(chosen) if not view.stays(other, chosen.count(other), start_s)]
            if not gone:
                return Found(start_s, tuple(sorted(chosen)))
            for other in gone:
                for count in range(1, chosen.count(other) + 1):
                    view.again(other, count, start_s)
            by_unit[unit] = [other for other in chosen if other not in gone]
            if near.spread not in (None, "domain"):
                used[unit] = sum(topology.unit(near.spread, other) for other in by_unit[unit])
    return None


class _View:
    """Domains by when they have room for somebody, with what is promised ahead of him and what is planned."""

    def __init__(self, cycle: Cycle, group: Group, wanted: Wanted, ahead: Spans) -> None:
        self._machines, self._now_s = cycle.state.machines, cycle.now_s
        self._group, self._wanted, self._ahead = group, wanted, ahead
        self._nodes = wanted.shape.nodes_held_per_segment
        self._later: list[tuple[float, int, int]] = []
        """(time, domain, segments): looked at before, and to be looked at again."""

    def candidates(self) -> Iterator[tuple[float, int]]:
        """(time, domain) for each segment that a domain could take, by time."""
        shape = self._wanted.shape
        most = 1
        if shape.may_share_domain and self._wanted.nearness.spread is None:
            most = min(self._group.largest // self._nodes, shape.segments)
        streams = [self._stream(count) for count in range(1, most + 1)]
        for d in self._ahead:
            for count in range(1, most + 1):
                self.again(d, count, NOW)
        free = (entry for entry in heapq.merge(*streams) if entry[1] not in self._ahead)
        for entry in free:
            while self._later and self._later[0] < entry:
                at_s, d, _ = heapq.heappop(self._later)
                yield at_s, d
            at_s, d, count = entry
            if self.stays(d, count, at_s):
                yield at_s, d
            else:
                self.again(d, count, at_s)
        while self._later:
            at_s, d, _ = heapq.heappop(self._later)
            yield at_s, d

    def _stream(self, count: int) -> Iterator[tuple[float, int, int]]:
        for at_s, d in self._machines.horizon.soonest(count * self._nodes, self._now_s, self._group.number):
            yield at_s, d, count

    def again(self, d: int, count: int, from_s: float) -> None:
        """Look at the domain again when next it could take so many segments, from `from_s` on."""
        if not self._group.domains >> d & 1:
            return
        windows = self._machines.calendar.on.get(d, ())
        times = [at_s for at_s, _ in self._machines.horizon.profile(d, self._now_s)]
        times += [window.end_s for window in windows]
        times += [span.end_s for span in self._ahead.get(d, ())]
        for at_s in sorted({max(at_s, from_s) for at_s in times if at_s < inf}):
            if self.stays(d, count, at_s):
                heapq.heappush(self._later, (at_s, d, count))
                return

    def stays(self, d: int, count: int, at_s: float) -> bool:
        """Whether domain d can take so many segments then, for as long as they last."""
        if d not in self._ahead and d not in self._machines.calendar.on:
            return True  # it has room by then, and room only grows
        return self.has_room(d, count, at_s)

    def has_room(self, d: int, count: int, at_s: float) -> bool:
        """The same of a domain of which nothing is known."""
        nodes, wanted = count * self._nodes, self._wanted
        from_s = max(at_s, wanted.not_before_s)
        until_s = from_s + wanted.lasts_s
        spans = self._ahead.get(d, ())
        busy = self._busy(d, from_s, until_s)
        # Nodes that are held may be those that go out of use; those that are free now are no help then.
        nodes += (self._machines.gpu.occupancy.free[d] & busy).bit_count()
        for time_s in (from_s, *(span.start_s for span in spans if from_s < span.start_s < until_s)):
            taken = sum(span.nodes for span in spans if span.start_s <= time_s < span.end_s)
            if self._machines.horizon.room(d, time_s, self._now_s) < nodes + taken:
                return False
        left = (self._machines.health.full[d] & ~busy).bit_count()
        return left - self._machines.gpu.occupancy.spares[d] >= count * self._nodes

    def _busy(self, d: int, from_s: float, until_s: float) -> int:
        """Nodes that maintenance or a return of capacity takes out of use in that time."""
        mask = 0
        for window in self._machines.calendar.on.get(d, ()):
            if window.start_s < until_s and window.end_s > from_s:
                mask |= window.mask
        return mask
