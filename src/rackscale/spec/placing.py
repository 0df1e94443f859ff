"""What asks for a system, a cluster or a size that the fleet can never give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rackscale import catalog
from rackscale.events import DomainSpec
from rackscale.spec.jobs import JobDocument
from rackscale.spec.problems import Problem, nearest
from rackscale.spec.shapes import Asking
from rackscale.spec.validate import Document
from rackscale.workload import Level, Offer, Shape

_LABELS: tuple[Level, ...] = ("region", "building", "spine", "leaf")
"""From the widest to the closest."""
_UNITS: dict[Level, str] = {"leaf": "leaves", "spine": "spines", "building": "buildings", "region": "regions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal domains of one cluster, none of them busy: what a gang may spread over."""

    cluster: str
    system: str
    domains: int
    nodes: int
    spares: int
    """Kept free of this gang."""

    @property
    def usable(self) -> int:
        """Nodes of an empty domain that the gang may use."""
        return self.nodes - self.spares

    @property
    def title(self) -> str:
        return f"{self.cluster}, {self.system}"

    def segments(self, shape: Shape) -> int:
        """How many segments of the shape all domains together could hold."""
        each = self.usable // shape.nodes_held_per_segment
        return self.domains * (each if shape.may_share_domain else min(each, 1))


def misplaced(asker: Document, fleet: Sequence[DomainSpec], *, keep_spares: bool) -> Iterator[Problem]:
    """What a job or booking asks for in vain, also where it is not valid otherwise."""
    system, cluster = asker.text("system"), asker.text("cluster")
    systems, clusters = {s.system for s in fleet}, {s.cluster for s in fleet}
    if cluster is not None and cluster not in clusters:
        yield asker.problem(("cluster",), "unknown cluster", fix=nearest(cluster, clusters))
        cluster = None
    if system is not None and system not in systems:
        if system in {s.name for s in catalog.systems()}:
            yield asker.problem(
                ("system",), "the fleet has none of this system", fix=nearest(system, systems)
            )
        system = None
    allowed = [s for s in fleet if system in (None, s.system) and cluster in (None, s.cluster)]
    if not allowed:
        there = ", ".join(sorted({s.system for s in fleet if s.cluster == cluster}))
        yield asker.problem(
            ("system",), f"the cluster {cluster!r} has none of this system", fix=f"it has {there}"
        )
    elif isinstance(asker.sound, Asking):
        anywhere = [s for s in fleet if cluster in (None, s.cluster)]
        keep_spares = keep_spares and not getattr(asker.sound, "cpu_only", False)
        if not _another_fits(asker.sound, list(_groups(anywhere, keep_spares=keep_spares))):
            yield from _too_large(asker, asker.sound, list(_groups(allowed, keep_spares=keep_spares)))
        yield from _too_far_spread(asker, asker.sound, allowed)


def _groups(fleet: Iterable[DomainSpec], *, keep_spares: bool) -> Iterator[Group]:
    counts: Counter[tuple[str, str, int, int]] = Counter()
    for spec in fleet:
        counts[spec.cluster, spec.system, spec.nodes, spec.spares if keep_spares else 0] += 1
    for (cluster, system, nodes, spares), domains in counts.items():
        yield Group(cluster=cluster, system=system, domains=domains, nodes=nodes, spares=spares)


def _another_fits(model: Asking, groups: Sequence[Group]) -> bool:
    """Whether one of the job's other shapes fits somewhere, so that its own need not."""
    offers = model.offers() if isinstance(model, JobDocument) else ()
    return any(_fits(offer, model.system, groups) for offer in offers)


def _fits(offer: Offer, system: str | None, groups: Sequence[Group]) -> bool:
    allowed = (g for g in groups if (offer.system or system) in (None, g.system))
    return _most(offer.shape, allowed)[1] >= offer.shape.segments


def _most(shape: Shape, groups: Iterable[Group]) -> tuple[str, int]:
    """The cluster and system that holds the most segments of the shape, and how many."""
    most: Counter[str] = Counter()
    for group in groups:
        most[group.title] += group.segments(shape)
    return most.most_common(1)[0] if most else ("", 0)


def _too_large(document: Document, model: Asking, allowed: Sequence[Group]) -> Iterator[Problem]:
    shape = model.shape()
    largest = max(allowed, key=lambda g: g.usable)
    if shape.nodes_held_per_segment > largest.usable:
        field = "nodes_per_segment" if "nodes_per_segment" in model.model_fields_set else "nodes"
        where = f"a domain of {largest.cluster} has {_nodes(largest.nodes)}"
        where += f", {largest.spares} of them spare" if largest.spares else ""
        own = shape.spares_per_segment
        fix = (
            f"at most {max(0, largest.usable - own)} ({where}{f', and the gang wants {own}' if own else ''})"
        )
        if field == "nodes":
            fix += ", or segments x nodes_per_segment over several domains"
        yield document.problem((field,), "too large for every NVLink domain", fix=fix)
        return
    best, segments = _most(shape, allowed)
    if shape.segments > segments:
        message = f"more segments of {_nodes(shape.nodes_held_per_segment)} than any cluster can hold"
        yield document.problem(("segments",), message, fix=f"at most {segments} ({best})")


def _too_far_spread(document: Document, model: Asking, allowed: Sequence[DomainSpec]) -> Iterator[Problem]:
    """Segments that must lie in different units, of which no cluster has so many."""
    level, wanted = model.near.spread, model.shape().segments
    if level is None or level == "domain" or (isinstance(model, JobDocument) and model.offers()):
        return
    labels = _LABELS[: _LABELS.index(level) + 1]
    units: dict[str, set[tuple[str, ...]]] = {}
    for spec in allowed:
        units.setdefault(spec.cluster, set()).add(tuple(getattr(spec, label) for label in labels))
    most = max(units, key=lambda cluster: len(units[cluster]))
    if wanted > len(units[most]):
        fix = f"at most {len(units[most])} ({most})"
        if "segments" not in model.model_fields_set:
            return
        yield document.problem(("segments",), f"more segments than any cluster has {_UNITS[level]}", fix=fix)


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
