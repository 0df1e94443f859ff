"""What gangs that wait were promised, and what nobody behind them may therefore use.

A promise names domains, nodes in each, and a time. Somebody behind it in the order may use a domain of it only if he
is expected to be gone by then, or if enough nodes will be free then beside him.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from rackscale.fleet.state import FleetState
from rackscale.scheduler.order import FIRST, Key, Order


class Promise(NamedTuple):
    """One reservation, ready to be compared with."""

    key: Key
    name: str
    start_s: float
    nodes: dict[int, int]
    """Domain -> nodes."""
    slack: list[int]
    """slack[n]: domains that could give n nodes beside what is promised, at that time."""
    domains: int


class Promises:
    """The state's reservations, in order. Built when the first question is asked: many decisions need none."""

    def __init__(self, state: FleetState, order: Order, now_s: float) -> None:
        self._state, self._order, self._now_s = state, order, now_s
        self._all: list[Promise] | None = None
        self._kept: set[str] = set()
        """Who starts in this decision: what was promised him is no longer in anybody's way."""

    def all(self) -> list[Promise]:
        """Those that are still open, in order."""
        if self._all is None:
            self._all = sorted(self._build(name) for name in self._state.reserved if name not in self._kept)
        return self._all

    def keep(self, name: str) -> None:
        """He starts, or room is cleared for him: the promise is kept."""
        if name in self._state.reserved:
            self._kept.add(name)
            self._all = None

    def changed(self, domains: int) -> None:
        """Nodes of these domains were given away in this decision."""
        if self._all is not None and any(promise.domains & domains for promise in self._all):
            self._all = None

    def _build(self, name: str) -> Promise:
        state = self._state
        reserve = state.reserved[name]
        booking = state.machines.calendar.bookings.get(name[1:]) if name.startswith("@") else None
        if booking is not None:
            key, shape = FIRST, booking.shape
        else:
            gang = state.gangs[name]
            key, shape = self._order.of(gang), state.jobs[gang.job].choices[reserve.choice].shape
        nodes = Counter[int]()
        for domain in reserve.domains:
            nodes[state.index[domain]] += shape.nodes_held_per_segment
        return self.promise(key, name, reserve.start_s, dict(nodes))

    def promise(self, key: Key, name: str, start_s: float, nodes: dict[int, int]) -> Promise:
        horizon, now_s = self._state.machines.horizon, self._now_s
        slack: list[int] = []
        domains = 0
        for d, count in nodes.items():
            domains |= 1 << d
            spare = horizon.room(d, max(start_s, now_s), now_s) - count
            while len(slack) < spare:
                slack.append(0)
            for n in range(spare):
                slack[n] |= 1 << d
        return Promise(key, name, start_s, nodes, slack, domains)

    def closed(self, key: Key, until_s: float, nodes: int) -> int:
        """Domains that a gang with this key may not use for a segment of `nodes` that it holds until then."""
        if not self._state.reserved:
            return 0
        found = 0
        for promise in self.all():
            if promise.key >= key:
                break
            if until_s > promise.start_s:
                fits = promise.slack[nodes - 1] if nodes <= len(promise.slack) else 0
                found |= promise.domains & ~fits
        return found

    def holders(self, key: Key, domains: int) -> list[str]:
        """Whose promises lie on some of these domains, ahead of this key."""
        return [p.name for p in self.all() if p.key < key and p.domains & domains]
