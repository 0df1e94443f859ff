"""When gangs have to leave: drains, maintenance, capacity that goes back, the end of bookings.

A gang is told its grace period before; what it is told, and when, is in `FleetState.evacuating`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from rackscale import events as ev
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.health import EXPIRED

if TYPE_CHECKING:
    from rackscale.fleet.state import FleetState

AT_ONCE = -inf


class Departures:
    """Folds what people say of nodes into a state."""

    def __init__(self, state: FleetState) -> None:
        self._state = state

    def folds(self) -> dict[type, Callable[..., None]]:
        """What it takes in, by type of event."""
        return {
            ev.Extended: self.extended, ev.Drained: self.drained, ev.Undrained: self.undrained,
            ev.Planned: self.planned, ev.Unplanned: self.unplanned, ev.Booked: self.booked,
            ev.Unbooked: self.unbooked,
        }  # fmt: skip

    def extended(self, event: ev.Extended) -> None:
        for name in event.domains:
            d = self._state.index[name]
            self._state.machines.extend(d, event.expires_s)
            self.look_again(d)
            if event.expires_s is not None:
                self._send(d, self._state.machines.health.full[d], event.expires_s, EXPIRED)
        self._state.dirty = True

    def drained(self, event: ev.Drained) -> None:
        d = self._state.index[event.domain]
        mask = self._state.machines.mask(d, event.nodes)
        self._state.machines.health.drain(d, mask, event.deadline_s)
        self._state.health(d)
        self._send(d, mask, AT_ONCE if event.deadline_s is None else event.deadline_s, "drain")

    def _send(self, d: int, mask: int, by_s: float, why: str) -> None:
        """Gangs on these nodes must have left by then; those that are told to leave earlier stay so."""
        for books in (self._state.machines.gpu, self._state.machines.cpu):
            for name, held in books.tenants.on[d].items():
                if held & mask:
                    self.evacuate(self._state.gangs[name], by_s, why)

    def evacuate(self, gang: Gang, by_s: float, why: str) -> None:
        if gang.status not in (Status.STARTING, Status.RUNNING):
            return
        tell_s = by_s - self._state.jobs[gang.job].durability.grace_s
        if tell_s < self._state.evacuating.get(gang.name, (inf, ""))[0]:
            self._state.evacuating[gang.name] = (tell_s, why)
            self._state.tell_s = min(self._state.tell_s, tell_s)
        self._state.dirty = True

    def undrained(self, event: ev.Undrained) -> None:
        d = self._state.index[event.domain]
        self._state.machines.health.undrain(d, self._state.machines.mask(d, event.nodes))
        self._state.health(d)
        self.look_again(d)

    def look_again(self, d: int) -> None:
        """Gangs of domain d that had to leave may stay, unless something else sends them away."""
        for books in (self._state.machines.gpu, self._state.machines.cpu):
            for name in books.tenants.on[d]:
                if self._state.evacuating.pop(name, None) is not None:
                    self.expect(self._state.gangs[name])

    def expect(self, gang: Gang) -> None:
        """When the gang must leave the nodes that it holds: they are drained, or go out of use."""
        calendar, health = self._state.machines.calendar, self._state.machines.health
        for d, mask in self._state.machines.masks(gang.binding):
            by_s = health.leave_by_s(d, mask)
            if by_s < inf:
                self.evacuate(gang, by_s, "drain")
            for window in calendar.on.get(d, ()):
                if window.mask & mask:
                    self.evacuate(gang, window.start_s, window.code)
        booking = calendar.bookings.get(self._state.jobs[gang.job].booking or "")
        if booking is not None:
            self.evacuate(gang, booking.end_s, "booking-over")

    def planned(self, event: ev.Planned) -> None:
        maintenance = event.maintenance
        if maintenance.name in self._state.machines.calendar.maintenance:
            return
        self._state.machines.plan(maintenance)
        d = self._state.index[maintenance.domain]
        for window in self._state.machines.calendar.on.get(d, ()):
            if window.name == maintenance.name:
                self._send(d, window.mask, window.start_s, window.code)
        self._state.dirty = True

    def unplanned(self, event: ev.Unplanned) -> None:
        maintenance = self._state.machines.calendar.maintenance.get(event.maintenance)
        if maintenance is not None:
            self._state.machines.unplan(event.maintenance)
            self.look_again(self._state.index[maintenance.domain])
            self._state.dirty = True

    def booked(self, event: ev.Booked) -> None:
        self._state.machines.calendar.bookings.setdefault(event.booking.name, event.booking)
        self._state.dirty = True

    def unbooked(self, event: ev.Unbooked) -> None:
        if event.booking in self._state.machines.calendar.bookings:
            self.forget_booking(event.booking)
            self._state.dirty = True

    def forget_booking(self, name: str) -> None:
        """The booking is over: its nodes are free, and what runs on them has to leave."""
        calendar = self._state.machines.calendar
        for d, mask in self._state.machines.masks(calendar.holding.pop(name, ())):
            self._state.occupancy.unclaim(d, mask)
            self._state.machines.horizon.touch(d)
        self._state.reserved.pop(f"@{name}", None)
        del calendar.bookings[name]
        for gang in self._state.gangs.values():
            if self._state.jobs[gang.job].booking == name:
                self.evacuate(gang, AT_ONCE, "booking-over")
