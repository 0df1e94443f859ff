"""When NVLink domains are expected to have room: from expected ends, repairs and deliveries.

A domain's profile says how many of its nodes will be free from when on, if nothing new starts. It is worked out again
only where something changed, and so is the index of domains by the time when they have room for a given segment: a
question costs what changed since the last one, not what the fleet has.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from math import ceil, inf
from typing import Protocol

NOW = -inf
"""Stands for "already"."""
OVERRUN = 0.1
"""A gang that runs longer than expected is taken to need this share of the expected time more, again and again."""
LEAST_S = 60.0
IDLE = 64
"""Questions about other sizes after which an index is dropped."""

Profile = tuple[tuple[float, int], ...]
"""(time, nodes free from then on), ascending in both; the first entry is what is free already."""


class Source(Protocol):
    """Where a profile comes from."""

    def changes(self, d: int) -> Iterable[tuple[float, int]]:
        """(expected time, nodes that come free then) of domain d; what is free already at NOW. Overrun ends are in
        the past."""

    def spare(self, d: int) -> int:
        """Nodes of domain d that normal placement leaves alone."""

    def area(self, d: int) -> int:
        """Domains of different areas are never asked about together: the number of d's."""


class Index:
    """Domains by the time when they have room for one size, area by area."""

    __slots__ = ("idle", "nodes", "order", "when")

    def __init__(self, nodes: int) -> None:
        self.nodes, self.idle = nodes, 0
        self.order: dict[int, list[tuple[float, int]]] = {}
        """Area -> (time, domain), ascending."""
        self.when: dict[int, float] = {}

    def put(self, area: int, d: int, at_s: float) -> None:
        before = self.when.get(d)
        if before == at_s:
            return
        order = self.order.setdefault(area, [])
        if before is not None:
            del order[bisect_left(order, (before, d))]
            del self.when[d]
        if at_s < inf:
            insort(order, (at_s, d))
            self.when[d] = at_s


class Horizon:
    """Profiles of domains, and indices of domains by when they have room."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._domains = 0
        self._touched: set[int] = set()
        """Domains that changed since the indices were last brought up to date."""
        self._profiles: dict[int, Profile] = {}
        self.worked_out: list[int] = []
        """Domains looked at since somebody cleared it."""
        self._stale: set[int] = set()
        """Domains that changed since the last question."""
        self.touch = self._stale.add
        """`touch(d)`: something about domain d changed."""
        self._indices: dict[int, Index] = {}

    def grow(self) -> None:
        """One more domain."""
        self.touch(self._domains)
        self._domains += 1

    def _notice(self) -> None:
        """Forget what is known of domains that changed."""
        for d in self._stale:
            self._profiles.pop(d, None)
        self._touched |= self._stale
        self._stale.clear()

    def profile(self, d: int, now_s: float) -> Profile:
        """What will be free when; gangs that overran their time are taken to need a little more."""
        if self._stale:
            self._notice()
        found = self._profiles.get(d)
        if found is None or (len(found) > 1 and found[1][0] < now_s):
            if found is not None:
                self._touched.add(d)  # every index has to hear of it
            found = self._profiles[d] = self._work_out(d, now_s)
        return found

    def _work_out(self, d: int, now_s: float) -> Profile:
        self.worked_out.append(d)
        free, later = 0, []
        for at_s, nodes in self._source.changes(d):
            if at_s <= NOW:
                free += nodes
            elif at_s < inf:
                later.append((overrun(at_s, at_s, now_s), nodes))
        found = [(NOW, free)]
        for at_s, nodes in sorted(later):
            free += nodes
            if at_s == found[-1][0]:
                found[-1] = (at_s, free)
            else:
                found.append((at_s, free))
        return tuple(found)

    def room(self, d: int, at_s: float, now_s: float) -> int:
        """Nodes of domain d that normal placement could use at a time, if nothing new starts."""
        free = 0
        for from_s, nodes in self.profile(d, now_s):
            if from_s > at_s:
                break
            free = nodes
        return free - self._source.spare(d)

    def when(self, d: int, nodes: int, now_s: float) -> float:
        """From when on domain d has room for so many nodes; infinite: nobody knows."""
        wanted = nodes + self._source.spare(d)
        for at_s, free in self.profile(d, now_s):
            if free >= wanted:
                return at_s
        return inf

    def soonest(self, nodes: int, now_s: float, area: int = 0) -> Iterator[tuple[float, int]]:
        """Domains of an area by when they have room for so many nodes, the soonest first: (time, domain)."""
        index = self._refresh(nodes, now_s)
        order, at = index.order.get(area, []), 0
        while at < len(order):
            at_s, d = order[at]
            if at_s > NOW and self._overran(
                d, now_s
            ):  # somebody there did: look again, which can only move it later
                later_s = self.when(d, nodes, now_s)
                if later_s != at_s:
                    index.put(area, d, later_s)
                    continue
            yield order[at]
            at += 1

    def _overran(self, d: int, now_s: float) -> bool:
        """Whether what is known of domain d expected somebody to be gone who is still there."""
        profile = self._profiles.get(d)
        return profile is None or (len(profile) > 1 and profile[1][0] < now_s)

    def _refresh(self, nodes: int, now_s: float) -> Index:
        for other in [i for i in self._indices.values() if i.nodes != nodes]:
            other.idle += 1
            if other.idle > IDLE:
                del self._indices[other.nodes]
        if self._stale:
            self._notice()
        for d in self._touched:
            area = self._source.area(d)
            for index in self._indices.values():
                index.put(area, d, self.when(d, index.nodes, now_s))
        self._touched.clear()
        found = self._indices.get(nodes)
        if found is None:
            found = self._indices[nodes] = Index(nodes)
            for at_s, d in sorted((self.when(d, nodes, now_s), d) for d in range(self._domains)):
                if at_s < inf:
                    found.order.setdefault(self._source.area(d), []).append((at_s, d))
                    found.when[d] = at_s
        found.idle = 0
        return found


def overrun(end_s: float, began_s: float, now_s: float) -> float:
    """When a gang that was expected to end at `end_s` will end: later by whole steps if that is past."""
    if end_s >= now_s:
        return end_s
    step_s = max(LEAST_S, OVERRUN * (end_s - began_s))
    return max(now_s, end_s + step_s * ceil((now_s - end_s) / step_s))
