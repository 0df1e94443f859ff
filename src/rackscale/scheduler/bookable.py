"""Whether bookings have room beside each other and beside maintenance, if nobody else were on the fleet.

What runs leaves for a booking or ends; what else is planned does not. Bookings are placed as `reserve` places them: in
the order in which they were made, each at its time or as soon after it as there is room.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from rackscale.events import Announced, Configured, Delivered, Planned
from rackscale.fleet.state import FleetState
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.promises import Span, Spans
from rackscale.scheduler.reserve import roomy_domains, soonest, wanted_by
from rackscale.workload import Booking, Maintenance


class Vacancy(Struct, frozen=True, kw_only=True):
    """Room for one booking beside those that were made before it."""

    booking: Booking
    start_s: float | None
    """When it is first free for as long as the booking lasts, from its start on; None: nobody knows."""
    roomy_domains: int
    """Domains of one cluster, the best, with room for one of its segments at the time that it asks for."""
    beside: tuple[str, ...]
    """Bookings and maintenance of that time."""

    def in_time(self, now_s: float) -> bool:
        """Whether it can begin when it is meant to."""
        return self.start_s is not None and self.start_s <= max(now_s, self.booking.start_s)


def vacancy(state: FleetState, booking: Booking, now_s: float) -> Vacancy:
    """Where a new booking stands. Costs a fleet without gangs; the state stays as it is."""
    *_, found = _vacancies(state, (booking,), (), now_s)
    return found


def crowded_out(state: FleetState, maintenance: Maintenance, now_s: float) -> list[Vacancy]:
    """Bookings that can't begin in time beside a new maintenance."""
    found = _vacancies(state, (), (maintenance,), now_s)
    return [v for v in found if not v.in_time(now_s) and maintenance.name in v.beside]


def _vacancies(
    state: FleetState, bookings: tuple[Booking, ...], maintenance: tuple[Maintenance, ...], now_s: float
) -> Iterator[Vacancy]:
    """All bookings that have not begun, then these, each placed beside those before it."""
    calendar = state.machines.calendar
    planned = (*calendar.maintenance.values(), *maintenance)
    cycle = Cycle(_without_gangs(state, planned, now_s), now_s, due=True)
    ahead: Spans = {}
    for name, binding in calendar.holding.items():
        end_s = calendar.bookings[name].end_s
        for d, mask in state.machines.masks(binding):
            ahead.setdefault(d, []).append(Span(now_s, end_s, mask.bit_count()))
    made = [b for b in calendar.bookings.values() if b.name not in calendar.holding]
    for booking in (*made, *bookings):
        wanted = wanted_by(booking, now_s)
        found = soonest(cycle, wanted, ahead)
        others: list[Booking | Maintenance] = [
            b for b in calendar.bookings.values() if b.name != booking.name
        ]
        others += planned
        yield Vacancy(
            booking=booking, start_s=None if found is None else found.start_s,
            roomy_domains=roomy_domains(cycle, wanted, ahead),
            beside=tuple(o.name for o in others if o.start_s < booking.end_s and o.end_s > booking.start_s),
        )  # fmt: skip
        if found is not None:
            until_s = found.start_s + wanted.lasts_s
            for d in found.domains:
                span = Span(found.start_s, until_s, wanted.shape.nodes_held_per_segment)
                ahead.setdefault(d, []).append(span)


def _without_gangs(state: FleetState, maintenance: tuple[Maintenance, ...], now_s: float) -> FleetState:
    """The same domains in the same order, healthy and empty, with what is planned for them."""
    bare, ready_s = FleetState(), state.machines.health.ready_s
    bare.fold(Configured(at_s=now_s, policy=state.policy, queues=()))
    for d, spec in enumerate(state.domains):
        if d in ready_s:
            bare.fold(Announced(at_s=now_s, ready_s=ready_s[d], domains=(spec,)))
        else:
            bare.fold(Delivered(at_s=now_s, domains=(spec,)))
    for planned in maintenance:
        bare.fold(Planned(at_s=now_s, maintenance=planned))
    return bare
