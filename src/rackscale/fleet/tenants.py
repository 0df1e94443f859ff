"""Who holds which nodes of a domain, and which domains hold somebody that a given priority could evict."""

from __future__ import annotations


class Tenants:
    """`on[d]`: gang -> mask of the nodes that it holds in domain d. `below(p)` is a set of domains as an integer."""

    __slots__ = ("_counts", "_levels", "on")

    def __init__(self) -> None:
        self.on: list[dict[str, int]] = []
        self._counts: dict[int, dict[int, int]] = {}
        self._levels: dict[int, int] = {}

    def add(self, d: int, gang: str, mask: int, level: int | None) -> None:
        """`level`: the gang's priority if it may be preempted, else None."""
        on = self.on[d]
        if gang in on:
            on[gang] |= mask
            return
        on[gang] = mask
        if level is not None:
            counts = self._counts.setdefault(level, {})
            counts[d] = counts.get(d, 0) + 1
            self._levels[level] = self._levels.get(level, 0) | 1 << d

    def remove(self, d: int, gang: str, level: int | None) -> None:
        if self.on[d].pop(gang, None) is None or level is None:
            return
        counts = self._counts[level]
        counts[d] -= 1
        if not counts[d]:
            del counts[d]
            self._levels[level] ^= 1 << d

    def below(self, priority: int) -> int:
        """Domains with a preemptible tenant of lower priority."""
        found = 0
        for level, domains in self._levels.items():
            if level < priority:
                found |= domains
        return found
