"""The fleet's shape: clusters, systems and fabric levels as sets of domains.

Grows when domains are announced or delivered, never shrinks.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from math import inf
from operator import itemgetter

from rackscale.events import DomainSpec
from rackscale.fleet.fabric import Units
from rackscale.fleet.occupancy import members
from rackscale.fleet.queues import segment_charge
from rackscale.workload import LEVELS, Level, Shape

Path = tuple[str, ...]
"""Cluster and labels from the widest level inwards: (cluster, region, building, spine, leaf), or its beginning."""
DEPTH: dict[Level, int] = {"region": 2, "building": 3, "spine": 4, "leaf": 5}
"""How much of a path names a unit of the level."""


class Rooms:
    """The set of domains by the nodes that they can give."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        self.buckets: list[int] = [0]
        """buckets[r]: the set of domains with room r."""

    def add(self, d: int, room: int) -> None:
        while len(self.buckets) <= room:
            self.buckets.append(0)
        self.buckets[room] |= 1 << d


class Group:
    """Domains of one system in one cluster: what a gang may spread over, since clusters share no fabric."""

    __slots__ = (
        "cluster",
        "domains",
        "fabric",
        "gpus_per_node",
        "largest",
        "leaves",
        "members",
        "number",
        "price",
        "system",
    )

    def __init__(self, spec: DomainSpec, number: int = 0) -> None:
        self.number = number
        self.cluster, self.system = spec.cluster, spec.system
        self.gpus_per_node = spec.gpus_per_node
        self.price = inf if spec.usd_per_gpu_hour is None else spec.usd_per_gpu_hour
        """US dollars per GPU-hour; infinite where unknown."""
        self.domains = 0
        """Set of domain indices, as an integer."""
        self.members = 0
        self.largest = 0
        """Nodes that an empty domain gives to normal placement (its spares stay free)."""
        self.leaves: set[Path] = set()
        """Leaf switches that its domains hang on; one where nothing is known about the fabric."""
        self.fabric: dict[Level, Units] = {}
        """Its units by level, made when they are asked for."""

    def add(self, d: int, spec: DomainSpec, path: Path) -> None:
        self.domains |= 1 << d
        self.members += 1
        self.largest = max(self.largest, spec.nodes - spec.spares)
        self.leaves.add(path)
        self.fabric.clear()


class Topology:
    """Domains in fabric order, with their groups and the units of every fabric level.

    A unit is known by its cluster and the labels from the region down to it. A label that is not known counts as one
    label of its own: without labels the whole cluster is one leaf.
    """

    __slots__ = (
        "_floors",
        "_groups",
        "_laid",
        "_matches",
        "_paths",
        "_units",
        "domains",
        "empty",
        "group_of",
        "index",
        "whole",
    )

    def __init__(self) -> None:
        self.domains: list[DomainSpec] = []
        self.index: dict[str, int] = {}
        self.empty = Rooms()
        """What domains give to normal placement when they are healthy and empty."""
        self.whole = Rooms()
        """The same, spares included."""
        self.group_of: list[Group] = []
        """By domain."""
        self._groups: dict[tuple[str, str], Group] = {}
        self._matches: dict[tuple[str | None, str | None], tuple[Group, ...]] = {}
        self._floors: dict[tuple[Shape, str | None, str | None], tuple[int, int]] = {}
        self._paths: list[Path] = []
        self._units: dict[Path, int] = {}
        self._laid = 0
        """Domains that `_units` knows of already."""

    def add(self, spec: DomainSpec) -> int:
        """Append a domain; returns its index. A name that is known already is an invariant broken."""
        assert spec.name not in self.index, f"domain {spec.name} delivered twice"
        d = len(self.domains)
        self.domains.append(spec)
        self.index[spec.name] = d
        path = (spec.cluster, spec.region, spec.building, spec.spine, spec.leaf)
        self._paths.append(path)
        self.whole.add(d, spec.nodes)
        self.empty.add(d, max(0, spec.nodes - spec.spares))
        group = self._group(spec)
        group.add(d, spec, path)
        self.group_of.append(group)
        self._floors.clear()
        return d

    def _group(self, spec: DomainSpec) -> Group:
        key = (spec.cluster, spec.system)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(spec, len(self._groups))
            self._matches.clear()
        return group

    def floor(self, shape: Shape, system: str | None, cluster: str | None) -> tuple[int, int]:
        """GPUs and millionths of a domain that the shape costs a queue at least; 0 if it fits nowhere."""
        key = (shape, system, cluster)
        found = self._floors.get(key)
        if found is None:
            found = self._floors[key] = self._floor(shape, system, cluster)
        return found

    def _floor(self, shape: Shape, system: str | None, cluster: str | None) -> tuple[int, int]:
        held = shape.nodes_held_per_segment
        groups = [group for group in self.groups(system, cluster) if group.largest >= held]
        if not groups:
            return 0, 0
        gpus = min(group.gpus_per_node for group in groups)
        domains = min(segment_charge(held, group.largest) for group in groups)
        return shape.nodes_held * gpus, shape.segments * domains

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

    def fabric(self, level: Level, group: Group) -> Units:
        """The units of a level above the domain, among the group's domains."""
        units = group.fabric.get(level)
        if units is None:
            self._lay()
            own = (
                mask & group.domains
                for path, mask in self._units.items()
                if len(path) == DEPTH[level] and path[0] == group.cluster
            )
            units = group.fabric[level] = Units(mask for mask in own if mask)
        return units

    def _lay(self) -> None:
        """Sort the domains that came lately into units, a run of neighbours at a time."""
        for depth in DEPTH.values():
            d = self._laid
            for path, run in groupby(self._paths[d:], key=itemgetter(slice(depth))):
                length = sum(1 for _ in run)
                self._units[path] = self._units.get(path, 0) | ((1 << length) - 1) << d
                d += length
        self._laid = len(self._paths)

    def units(self, level: Level, group: Group) -> tuple[int, ...]:
        """Sets of the group's domains, one per unit of the level, in order of delivery."""
        if level == "domain":
            return tuple(1 << d for d in members(group.domains))
        return self.fabric(level, group).masks

    def unit(self, level: Level, d: int) -> int:
        """The set of domains in the same unit as domain d, of every system of its cluster."""
        if level == "domain":
            return 1 << d
        if self._laid < len(self._paths):
            self._lay()
        return self._units[self._paths[d][: DEPTH[level]]]

    def reach(self, domains: Iterable[int]) -> int:
        """How far apart domains lie: the place in `LEVELS` of the smallest unit around them; len(LEVELS): none is."""
        different = set(domains)
        if len(different) <= 1:
            return 0
        paths = [self._paths[d] for d in different]
        for at, level in enumerate(LEVELS[1:], 1):
            depth = DEPTH[level]
            if all(path[:depth] == paths[0][:depth] for path in paths):
                return at
        return len(LEVELS)
