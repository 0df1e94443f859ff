"""What is known to come: maintenance, capacity that goes back, and bookings."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import accumulate
from math import inf
from operator import or_

from msgspec import Struct

from rackscale.events import Binding
from rackscale.fleet.health import EXPIRED
from rackscale.fleet.occupancy import Occupancy
from rackscale.workload import Booking, Maintenance


class Window(Struct, frozen=True, kw_only=True, order=True):
    """A time during which nodes of one domain are out of use. Ordered by its start."""

    start_s: float
    end_s: float
    d: int
    mask: int
    whole: bool
    """Whether all nodes of the domain go out of use."""
    name: str
    """Of the maintenance, or `expired`."""

    @property
    def code(self) -> str:
        """Why what runs there has to leave: a code of `events.REASONS`."""
        return EXPIRED if self.name == EXPIRED else "maintenance"


class Calendar:
    """Windows in order of their start, and bookings by name."""

    def __init__(self) -> None:
        self.maintenance: dict[str, Maintenance] = {}
        self.bookings: dict[str, Booking] = {}
        self.holding: dict[str, Binding] = {}
        """Booking that has begun -> the nodes kept for it."""
        self.coming: list[Window] = []
        """Not begun."""
        self.open: dict[tuple[str, int], Window] = {}
        """Begun: (name, domain) -> window."""
        self.on: dict[int, list[Window]] = {}
        """Those to come, by domain."""
        self._whole: dict[bool, dict[float, int]] = {True: {}, False: {}}
        """Windows of whole domains, start -> set of domains; those that expire under True."""
        self._so_far: dict[bool, tuple[list[float], list[int]]] = {}
        """The same by time: starts, and the domains of windows that start before each of them and after the last."""
        self._parts: dict[int, int] = {}
        """Domain -> windows of some of its nodes."""

    def add(self, window: Window) -> None:
        self._so_far.clear()
        insort(self.coming, window)
        self.on.setdefault(window.d, []).append(window)
        if window.whole:
            starts = self._whole[window.name == EXPIRED]
            starts[window.start_s] = starts.get(window.start_s, 0) | 1 << window.d
        else:
            self._parts[window.d] = self._parts.get(window.d, 0) + 1

    def begin(self, name: str, d: int) -> None:
        """The window begins: it is in force, and no longer to come."""
        window = self._drop(name, d)
        if window is not None and window.end_s < inf:
            self.open[name, d] = window

    def forget(self, name: str, d: int) -> None:
        """The window is over, or called off."""
        self._drop(name, d)
        self.open.pop((name, d), None)

    def _drop(self, name: str, d: int) -> Window | None:
        self._so_far.clear()
        windows = self.on.get(d, [])
        window = next((w for w in windows if w.name == name), None)
        if window is None:
            return None
        del self.coming[bisect_left(self.coming, window)]
        windows.remove(window)
        if not windows:
            del self.on[d]
        if not window.whole:
            self._parts[d] -= 1
            if not self._parts[d]:
                del self._parts[d]
            return window
        starts, same = self._whole[name == EXPIRED], (name == EXPIRED, window.start_s)
        if not any(w.whole and (w.name == EXPIRED, w.start_s) == same for w in windows):
            starts[window.start_s] ^= 1 << d
            if not starts[window.start_s]:
                del starts[window.start_s]
        return window

    def shut(self, until_s: float, assumed_s: float, nodes: int, occupancy: Occupancy) -> int:
        """Domains where a segment of `nodes` can't stay until `until_s`.

        `assumed_s` counts instead where it is only maintenance that comes, and nobody knows how long the gang takes.
        """
        found = 0
        if not self.coming:
            return found
        for expires, last_s in ((True, until_s), (False, assumed_s)):
            starts, so_far = self._so_far.get(expires) or self._by_time(expires)
            found |= so_far[bisect_left(starts, last_s)]
        for d in self._parts:
            busy = self.busy(d, assumed_s)
            if busy and (occupancy.free[d] & ~busy).bit_count() - occupancy.spares[d] < nodes:
                found |= 1 << d
        return found

    def _by_time(self, expires: bool) -> tuple[list[float], list[int]]:
        whole = self._whole[expires]
        starts = sorted(whole)
        so_far = list(accumulate((whole[start_s] for start_s in starts), or_, initial=0))
        found = self._so_far[expires] = (starts, so_far)
        return found

    def busy(self, d: int, until_s: float) -> int:
        """Nodes of domain d that go out of use before `until_s`."""
        mask = 0
        for window in self.on.get(d, ()):
            if window.start_s < until_s:
                mask |= window.mask
        return mask
