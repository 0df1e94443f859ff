"""What gangs that wait were promised, and what nobody behind them may therefore use.

A promise names domains, nodes in each, and a time. Somebody behind it in the order may use a domain of it only if he
is expected to be gone by then, or if enough nodes will be free then beside him.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from rackscale.fleet.gangs import coarse, remaining_s
from rackscale.fleet.state import FleetState
from rackscale.scheduler.order import FIRST, Key, Order


class Span(NamedTuple):
    """Nodes of one domain that somebody was promised, and for how long he is expected to keep them."""

    start_s: float
    end_s: float
    nodes: int


Spans = dict[int, list[Span]]
"""By domain."""


class Promise(NamedTuple):
    """One reservation, ready to be compared with."""

    key: Key
    name: str
    start_s: float
    end_s: float
    nodes: dict[int, int]
    """Domain -> nodes."""
    domains: int


class Promises:
    """The state's reservations, in order. Built when the first question is asked: many decisions need none."""

    def __init__(self, state: FleetState, order: Order, now_s: float) -> None:
        self._state, self._order, self._now_s = state, order, now_s
        self._all: list[Promise] | None = None
        self._slacks: dict[int, list[tuple[float, int, list[int]]]] = {}
        """How many promises are ahead -> (start, domains, slack) of each; slack[n]: domains that could give n + 1
        nodes beside all that is promised ahead, at that time."""
        self._kept: set[str] = set()
        """Who starts in this decision: what was promised him is no longer in anybody's way."""

    def all(self) -> list[Promise]:
        """Those that are still open, in order."""
        if self._all is None:
            self._all = sorted(self._build(name) for name in self._state.reserved if name not in self._kept)
            self._slacks.clear()
        return self._all

    def keep(self, name: str) -> None:
        """He starts, or room is cleared for him: the promise is kept."""
        if name in self._state.reserved:
            self._kept.add(name)
            self._all = None

    def changed(self, domains: int) -> None:
        """Nodes of these domains were given away in this decision."""
        if self._all is not None and any(promise.domains & domains for promise in self._all):
            self._slacks.clear()

    def _build(self, name: str) -> Promise:
        state = self._state
        reserve = state.reserved[name]
        booking = state.machines.calendar.bookings.get(name[1:]) if name.startswith("@") else None
        if booking is not None:
            key, shape, end_s = FIRST, booking.shape, booking.end_s
        else:
            gang = state.gangs[name]
            job = state.jobs[gang.job]
            offer = job.choices[reserve.choice]
            key, shape = self._order.of(gang), offer.shape
            lasts_s = job.durability.restart_s + coarse(remaining_s(gang, job)) / offer.throughput
            end_s = max(reserve.start_s, self._now_s) + lasts_s
        nodes = Counter[int]()
        for domain in reserve.domains:
            nodes[state.index[domain]] += shape.nodes_held_per_segment
        domains = sum(1 << d for d in nodes)
        return Promise(key, name, reserve.start_s, end_s, dict(nodes), domains)

    def _slack(self, ahead: int) -> list[tuple[float, int, list[int]]]:
        """For the first so many promises: what is left beside all of them at the start of each."""
        found = self._slacks.get(ahead)
        if found is not None:
            return found
        horizon, now_s = self._state.machines.horizon, self._now_s
        first = self.all()[:ahead]
        found = self._slacks[ahead] = []
        for promise in first:
            at_s, slack = max(promise.start_s, now_s), list[int]()
            there = [p for p in first if max(p.start_s, now_s) <= at_s < p.end_s or p is promise]
            for d in promise.nodes:
                spare = horizon.room(d, at_s, now_s) - sum(p.nodes.get(d, 0) for p in there)
                slack += [0] * (spare - len(slack))
                for n in range(spare):
                    slack[n] |= 1 << d
            found.append((promise.start_s, promise.domains, slack))
        return found

    def closed(self, key: Key, until_s: float, nodes: int) -> int:
        """Domains that a gang with this key may not use for a segment of `nodes` that it holds until then."""
        if not self._state.reserved:
            return 0
        ahead = sum(promise.key < key for promise in self.all())
        found = 0
        for start_s, domains, slack in self._slack(ahead):
            if until_s > start_s:
                found |= domains & ~(slack[nodes - 1] if nodes <= len(slack) else 0)
        return found

    def has_after(self, key: Key, d: int) -> bool:
        """Whether something of domain d is promised to somebody behind this key."""
        return any(promise.key > key and d in promise.nodes for promise in self.all())

    def kind(self, key: Key, until_s: float) -> Iterator[int]:
        """Sets of domains to leave alone where that costs a gang nothing, so that promises to those behind it hold.

        All but what it was promised itself, then what was promised to them.
        """
        if not self._state.reserved:
            return
        later, own = 0, 0
        for promise in self.all():
            if promise.key == key:
                own = promise.domains
            elif promise.key > key and until_s > promise.start_s:
                later |= promise.domains
        if later and own:
            yield ~own
        if later:
            yield later

    def holders(self, key: Key, domains: int) -> list[str]:
        """Whose promises lie on some of these domains, ahead of this key."""
        return [p.name for p in self.all() if p.key < key and p.domains & domains]

    def spans(self) -> Spans:
        """What is promised, by domain."""
        found: Spans = {}
        for promise in self.all():
            for d, nodes in promise.nodes.items():
                found.setdefault(d, []).append(Span(promise.start_s, promise.end_s, nodes))
        return found
