"""What will happen, in simulated time."""

from __future__ import annotations

from heapq import heappush
from typing import Protocol

from rackscale.events import Input


class Happening(Protocol):
    """Something with a time in the future."""

    def happen(self, at_s: float, ticket: int) -> Input | None:
        """Its time has come. Returns what the control loop hears of it, or None if it came to nothing."""


class Agenda:
    """Future happenings by time; those of the same time in the order in which they were put in."""

    __slots__ = ("_tickets", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Happening]] = []
        self._tickets = 0

    def put(self, at_s: float, happening: Happening) -> int:
        """Put it in. Returns its ticket, by which an owner who changed its mind knows what is stale."""
        ticket = self._tickets = self._tickets + 1
        heappush(self.heap, (at_s, ticket, happening))
        return ticket

    def put_before(self, at_s: float, happening: Happening, *, rank: int) -> None:
        """Put it in before all others of its time. At most one happening of a rank may be in."""
        heappush(self.heap, (at_s, -rank, happening))
