"""How far gangs are spread over NVLink domains and fabric units, beside the least that their shape allows."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from itertools import accumulate

from msgspec import Struct

from rackscale.capacity.estate import Estate
from rackscale.capacity.waits import SIZE_CLASSES, quantile, size_class
from rackscale.events import Binding, DomainSpec
from rackscale.workload import Job

LEVELS: dict[str, Callable[[DomainSpec], tuple[str, ...]]] = {
    "leaf": lambda spec: (spec.region, spec.building, spec.spine, spec.leaf),
    "spine": lambda spec: (spec.region, spec.building, spec.spine),
    "building": lambda spec: (spec.region, spec.building),
}
"""Fabric level -> the unit that a domain lies in."""


class Span(Struct, frozen=True, kw_only=True):
    """Starts of gangs of one size, with the units of one level that they spanned, as a multiple of the least."""

    level: str
    size: str
    starts: int
    at_least: float
    """Share of starts that spanned no more than the least."""
    mean: float
    p95: float
    max: float


class Group:
    """Domains of one cluster and system."""

    def __init__(self) -> None:
        self.room = 0
        """Nodes that the largest empty domain gives."""
        self.units: dict[str, Counter[tuple[str, ...]]] = {level: Counter() for level in LEVELS}
        self.reach: dict[str, list[int]] = {}
        """Level -> domains in the largest unit, in the two largest, ..."""

    def add(self, spec: DomainSpec) -> None:
        self.room = max(self.room, spec.nodes - spec.spares)
        for level, unit in LEVELS.items():
            self.units[level][unit(spec)] += 1

    def close(self) -> None:
        self.reach = {
            level: list(accumulate(sorted(units.values(), reverse=True)))
            for level, units in self.units.items()
        }


class Placements:
    """Counts what gangs span as they start. Gangs that ask to be spread are left out: distance is what they want."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate
        self._known = 0
        self._groups: dict[tuple[str, str], Group] = {}
        self._sharing: dict[str, bool] = {}
        """Gang of several segments -> whether they may share a domain."""
        self._spans: Counter[tuple[str, int, float]] = Counter()
        """(level, size class, multiple of the least)."""

    def submitted(self, job: Job) -> None:
        if (job.shape.segments > 1 or job.offers) and not job.nearness.spread and not job.cpu_only:
            for gang in job.gangs():
                self._sharing[gang] = any(offer.shape.may_share_domain for offer in job.choices)

    def forget(self, gang: str) -> None:
        self._sharing.pop(gang, None)

    def begin(self) -> None:
        self._spans.clear()

    def placed(self, gang: str, binding: Binding) -> None:
        """The gang starts there."""
        if len(binding) < 2 or gang not in self._sharing:
            return
        domains = {self._estate.index[segment.domain] for segment in binding}
        specs = [self._estate.domains[d].spec for d in sorted(domains)]
        group = self._group(specs[0])
        held = max(len(segment.held) for segment in binding)
        fit = max(1, group.room // held) if self._sharing[gang] else 1
        least = -(-len(binding) // fit)
        size = size_class(sum(len(segment.nodes) for segment in binding))
        self._spans["domain", size, len(domains) / least] += 1
        for level, unit in LEVELS.items():
            reach = group.reach[level]
            if len(reach) > 1:
                units = len({unit(spec) for spec in specs})
                self._spans[level, size, units / (bisect_left(reach, least) + 1)] += 1

    def _group(self, spec: DomainSpec) -> Group:
        domains = self._estate.domains
        if self._known != len(domains):
            self._groups.clear()
            for domain in domains:
                self._groups.setdefault((domain.spec.cluster, domain.spec.system), Group()).add(domain.spec)
            for group in self._groups.values():
                group.close()
            self._known = len(domains)
        return self._groups[spec.cluster, spec.system]

    def spans(self) -> tuple[Span, ...]:
        """From the closest level to the widest, by size. Levels of which no cluster has two units are left out."""
        found: dict[tuple[str, int], Counter[float]] = {}
        for (level, size, multiple), count in self._spans.items():
            found.setdefault((level, size), Counter())[multiple] += count
        levels = ("domain", *LEVELS)
        return tuple(
            _span(*key, found[key]) for key in sorted(found, key=lambda key: (levels.index(key[0]), key[1]))
        )


def _span(level: str, size: int, multiples: Counter[float]) -> Span:
    ordered = sorted(multiples.elements())
    return Span(
        level=level, size=SIZE_CLASSES[size], starts=len(ordered), mean=sum(ordered) / len(ordered),
        at_least=bisect_left(ordered, 1.0 + 1e-9) / len(ordered), p95=quantile(ordered, 0.95) or 1.0, max=ordered[-1],
    )  # fmt: skip
