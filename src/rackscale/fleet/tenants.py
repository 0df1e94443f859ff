"""Who holds which nodes of a domain, and which domains hold enough that a given priority could evict."""

from __future__ import annotations


class Below:
    """Per domain, the nodes held by preemptible gangs under one priority; domains by that number."""

    __slots__ = ("buckets", "nodes")

    def __init__(self, domains: int) -> None:
        self.nodes = [0] * domains
        self.buckets = [(1 << domains) - 1]
        """buckets[k]: the set of domains with k such nodes, as an integer."""

    def change(self, d: int, by: int) -> None:
        before = self.nodes[d]
        after = self.nodes[d] = before + by
        while len(self.buckets) <= after:
            self.buckets.append(0)
        self.buckets[before] ^= 1 << d
        self.buckets[after] |= 1 << d


class Tenants:
    """`on[d]`: gang -> mask of the nodes that it holds in domain d."""

    __slots__ = ("_below", "_levels", "on")

    def __init__(self) -> None:
        self.on: list[dict[str, int]] = []
        self._levels: dict[str, int] = {}
        """Preemptible gang -> its priority."""
        self._below: dict[int, Below] = {}

    def add_domain(self) -> None:
        self.on.append({})
        self._below.clear()

    def clear(self) -> None:
        """Nobody is anywhere, until all are added again."""
        for on in self.on:
            on.clear()
        self._levels.clear()
        self._below.clear()

    def add(self, d: int, gang: str, mask: int, level: int | None) -> None:
        """`level`: the gang's priority if it may be preempted, else None. A gang's level must not change."""
        on = self.on[d]
        assert not on.get(gang, 0) & mask
        on[gang] = on.get(gang, 0) | mask
        if level is not None:
            self._levels[gang] = level
            self._change(level, d, mask.bit_count())

    def remove(self, d: int, gang: str) -> None:
        """The gang leaves the domain. A gang that is not there is not missed: two segments may share a domain."""
        mask = self.on[d].pop(gang, 0)
        level = self._levels.get(gang)
        if mask and level is not None:
            self._change(level, d, -mask.bit_count())

    def forget(self, gang: str) -> None:
        """The gang holds nothing any more."""
        self._levels.pop(gang, None)

    def _change(self, level: int, d: int, by: int) -> None:
        for priority, below in self._below.items():
            if level < priority:
                below.change(d, by)

    def below(self, priority: int) -> Below:
        """What gangs of this priority could evict, guards and prices aside. Kept up to date once it was asked for."""
        found = self._below.get(priority)
        if found is None:
            found = self._below[priority] = Below(len(self.on))
            for d, on in enumerate(self.on):
                nodes = sum(
                    mask.bit_count()
                    for gang, mask in on.items()
                    if self._levels.get(gang, priority) < priority
                )
                if nodes:
                    found.change(d, nodes)
        return found

    def any_below(self, priority: int) -> bool:
        """Whether there is anybody at all to evict."""
        below = self.below(priority)
        return below.buckets[0].bit_count() < len(self.on)
