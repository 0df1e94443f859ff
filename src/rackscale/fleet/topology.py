"""The fleet's shape: clusters and systems as sets of domains. Grows when domains are delivered, never shrinks."""

from __future__ import annotations

from math import inf

from rackscale.events import DomainSpec


class Group:
    """Domains of one system in one cluster: what a gang may spread over, since clusters share no fabric."""

    __slots__ = ("cluster", "domains", "gpus_per_node", "largest", "members", "price", "system")

    def __init__(self, spec: DomainSpec) -> None:
        self.cluster, self.system = spec.cluster, spec.system
        self.gpus_per_node = spec.gpus_per_node
        self.price = inf if spec.usd_per_gpu_hour is None else spec.usd_per_gpu_hour
        """US dollars per GPU-hour; infinite where unknown."""
        self.domains = 0
        """Set of domain indices, as an integer."""
        self.members = 0
        self.largest = 0
        """Nodes that an empty domain gives to normal placement (its spares stay free)."""


class Topology:
    """Domains in fabric order, with their groups."""

    __slots__ = ("_groups", "_matches", "domains", "index")

    def __init__(self) -> None:
        self.domains: list[DomainSpec] = []
        self.index: dict[str, int] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._matches: dict[tuple[str | None, str | None], tuple[Group, ...]] = {}

    def add(self, spec: DomainSpec) -> int:
        """Append a domain; returns its index. A name that is known already is an invariant broken."""
        assert spec.name not in self.index, f"domain {spec.name} delivered twice"
        d = len(self.domains)
        self.domains.append(spec)
        self.index[spec.name] = d
        key = (spec.cluster, spec.system)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(spec)
            self._matches.clear()
        group.domains |= 1 << d
        group.members += 1
        group.largest = max(group.largest, spec.nodes - spec.spares)
        return d

    def groups(self, system: str | None, cluster: str | None) -> tuple[Group, ...]:
        """Groups that a job with these constraints may use: cheapest first, then in order of delivery.

        A group without a price counts as the dearest.
        """
        key = (system, cluster)
        found = self._matches.get(key)
        if found is None:
            matching = [
                g
                for g in self._groups.values()
                if system in (None, g.system) and cluster in (None, g.cluster)
            ]
            found = self._matches[key] = tuple(sorted(matching, key=lambda g: g.price))
        return found
