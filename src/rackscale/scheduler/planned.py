"""What is planned for nodes: bookings and maintenance, and whom they concern. Decides nothing."""

from __future__ import annotations

from math import inf

from rackscale.errors import UnknownNameError
from rackscale.fleet.occupancy import members
from rackscale.fleet.state import FleetState
from rackscale.scheduler.answers import Holder, WhyBooking, WhyMaintenance
from rackscale.scheduler.reserve import BOOKING
from rackscale.workload import Booking, Maintenance

__all__ = ["BOOKING", "planned", "why_planned"]

Planned = WhyBooking | WhyMaintenance


def planned(state: FleetState, *, now_s: float | None = None) -> tuple[Planned, ...]:
    """All of it, by when it begins."""
    calendar = state.machines.calendar
    at_s = state.now_s if now_s is None else max(now_s, state.now_s)
    found: list[Planned] = [_booking(state, booking, at_s) for booking in calendar.bookings.values()]
    found += [_maintenance(state, maintenance, at_s) for maintenance in calendar.maintenance.values()]
    return tuple(sorted(found, key=lambda plan: (plan.start_s, plan.name)))


def why_planned(state: FleetState, name: str, *, now_s: float | None = None) -> Planned:
    """A booking (also as `@name`) or a maintenance by its name. Raises UnknownNameError."""
    calendar = state.machines.calendar
    at_s = state.now_s if now_s is None else max(now_s, state.now_s)
    booking = calendar.bookings.get(name.removeprefix(BOOKING))
    if booking is not None:
        return _booking(state, booking, at_s)
    if name not in calendar.maintenance:
        raise UnknownNameError("booking or maintenance", name, [*calendar.bookings, *calendar.maintenance])
    return _maintenance(state, calendar.maintenance[name], at_s)


def _booking(state: FleetState, booking: Booking, now_s: float) -> WhyBooking:
    binding = state.machines.calendar.holding.get(booking.name)
    promise = state.reserved.get(f"{BOOKING}{booking.name}")
    late = promise is not None and promise.start_s > max(now_s, booking.start_s)
    domains = tuple(segment.domain for segment in binding or ()) or (promise.domains if promise else ())
    if binding is not None:
        status = "kept"
    else:
        status = "to-come" if now_s < booking.start_s else "due"
    jobs = [job for job in state.jobs.values() if job.booking == booking.name]
    inside = {
        job.name: sum(bool(state.gangs[g].binding) for g in job.gangs() if g in state.gangs) for job in jobs
    }
    return WhyBooking(
        name=booking.name, now_s=now_s, status=status, start_s=booking.start_s, end_s=booking.end_s,
        queue=booking.queue, priority=booking.priority, segments=booking.shape.segments,
        nodes_per_segment=booking.shape.nodes_held_per_segment, domains=tuple(dict.fromkeys(domains)),
        expected_s=promise.start_s if promise is not None else None,
        jobs=tuple(sorted(name for name, held in inside.items() if held)),
        waiting=tuple(sorted(name for name, held in inside.items() if not held)),
        in_the_way=_staying(state, {state.index[name]: -1 for name in domains}, booking.start_s, now_s) if late else (),
    )  # fmt: skip


def _maintenance(state: FleetState, maintenance: Maintenance, now_s: float) -> WhyMaintenance:
    d = state.index[maintenance.domain]
    mask = state.machines.mask(d, maintenance.nodes)
    return WhyMaintenance(
        name=maintenance.name, now_s=now_s, status="on" if (maintenance.name, d) in state.machines.calendar.open
        else "to-come", start_s=maintenance.start_s, end_s=maintenance.end_s, domain=maintenance.domain,
        nodes=tuple(members(mask)) if maintenance.nodes is not None else None,
        must_leave=_staying(state, {d: mask}, maintenance.start_s, now_s),
    )  # fmt: skip


def _staying(state: FleetState, masks: dict[int, int], start_s: float, now_s: float) -> tuple[Holder, ...]:
    """Gangs on these nodes that are not expected to have ended by then, the largest first."""
    nodes: dict[str, int] = {}
    for d, mask in masks.items():
        for name, held in state.tenants.on[d].items():
            if held & mask:
                nodes[name] = nodes.get(name, 0) + (held & mask).bit_count()
    found = []
    for name, count in sorted(nodes.items(), key=lambda item: (-item[1], item[0])):
        end_s = state.machines.expected_end_s(state.gangs[name], now_s)
        if end_s > start_s:
            found.append(Holder(gang=name, nodes=count, expected_end_s=None if end_s == inf else end_s))
    return tuple(found)
