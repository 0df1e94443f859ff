"""What is wrong between documents: names used twice, names of nothing, shapes that no domain can ever hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rackscale import catalog
from rackscale.events import DomainSpec
from rackscale.spec.jobs import JobDocument, ServiceDocument, TrainingDocument
from rackscale.spec.policy import PolicyDocument
from rackscale.spec.problems import Problem, nearest
from rackscale.spec.programs import JOB_PREFIX
from rackscale.spec.site import FleetDocument
from rackscale.spec.validate import JOB_KINDS, Document
from rackscale.workload import Job, Policy, Queue, Shape

_JOB = Job(name="default", kind="batch", shape=Shape())


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What jobs may refer to. None: not known, so that nothing can be said against a job."""

    groups: tuple[Group, ...] | None
    queues: frozenset[str] | None
    priorities: frozenset[str] | None

    @classmethod
    def of(
        cls,
        documents: Sequence[Document],
        fleet: Sequence[DomainSpec],
        queues: Sequence[Queue],
        policy: Policy | None,
    ) -> Surroundings:
        """The documents' own fleet, queues and policy, or else those given. What is faulty itself is not known."""
        fleets = [d for d in documents if d.kind == "Fleet"]
        policies = [d for d in documents if d.kind == "Policy"]
        names = {d.name for d in documents if d.kind == "Queue" and d.name} | {q.name for q in queues}
        is_site = bool(fleets or policies or names or fleet)
        groups: tuple[Group, ...] | None = tuple(_groups(fleet)) or None
        if fleets:
            groups = None if any(d.model is None for d in fleets) else tuple(_groups(_specs(fleets)))
        priorities = frozenset((policy or Policy()).priorities) if is_site else None
        if policies:
            valid = [d.model.priorities for d in policies if isinstance(d.model, PolicyDocument)]
            priorities = frozenset(valid[0]) if len(valid) == len(policies) else None
        return cls(
            groups=groups, queues=frozenset(names | {"default"}) if is_site else None, priorities=priorities
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal domains of one cluster, none of them busy: what a gang may spread over."""

    cluster: str
    system: str
    domains: int
    nodes: int
    spares: int

    @property
    def usable(self) -> int:
        """Nodes of an empty domain that normal placement may use."""
        return self.nodes - self.spares


def cross_check(documents: Sequence[Document], around: Surroundings) -> Iterator[Problem]:
    """Every problem between documents."""
    yield from _duplicates(documents)
    jobs = [d for d in documents if d.kind in JOB_KINDS]
    is_site = any(d.kind == "Fleet" for d in documents)
    for job in jobs:
        yield from _unknown(job, "queue", "unknown queue", _JOB.queue, around.queues)
        yield from _unknown(job, "priority", "unknown priority class", _JOB.priority, around.priorities)
        yield from _unservable(job, jobs, is_site=is_site)
        if around.groups is not None:
            yield from _misplaced(job, around.groups)


def _specs(fleets: Iterable[Document]) -> Iterator[DomainSpec]:
    for document in fleets:
        assert isinstance(document.model, FleetDocument)
        yield from document.model.specs()


def _groups(fleet: Iterable[DomainSpec]) -> Iterator[Group]:
    counts: dict[tuple[str, str, int, int], int] = {}
    for spec in fleet:
        key = (spec.cluster, spec.system, spec.nodes, spec.spares)
        counts[key] = counts.get(key, 0) + 1
    for (cluster, system, nodes, spares), domains in counts.items():
        yield Group(cluster=cluster, system=system, domains=domains, nodes=nodes, spares=spares)


def _duplicates(documents: Sequence[Document]) -> Iterator[Problem]:
    seen: dict[tuple[str, str], Document] = {}
    for document in documents:
        if document.kind in ("Fleet", "Policy"):
            first = seen.setdefault((document.kind, ""), document)
            if first is not document:
                yield document.problem(
                    ("kind",), f"there is a {document.kind} already", fix=f"see {first.source}"
                )
        elif document.name:
            group = "Queue" if document.kind == "Queue" else "job"
            first = seen.setdefault((group, document.name), document)
            if first is not document:
                yield document.problem(("name",), f"the name is already used in {first.source}")
    yield from _numbered_twice([d for (group, _), d in seen.items() if group == "job"])


def _numbered_twice(jobs: Sequence[Document]) -> Iterator[Problem]:
    """A job called `sweep-3` beside one whose `count` or `arrivals` make `sweep-0`, `sweep-1` ..."""
    many = {d.name: d for d in jobs if isinstance(d.model, JobDocument) and d.model.makes_many()}
    for document in jobs:
        parts = re.fullmatch(r"(.+)-[0-9]+", document.name or "")
        first = many.get(parts[1]) if parts else None
        if first is not None:
            yield document.problem(("name",), f"{first.name!r} in {first.source} makes jobs of such names")


def _unknown(
    job: Document, field: str, message: str, default: str, known: frozenset[str] | None
) -> Iterator[Problem]:
    """A name of nothing; said also of jobs that are not valid otherwise."""
    name = job.fields.get(field, default)
    if known is not None and isinstance(name, str) and name not in known:
        if field not in job.fields:
            message += f" {name!r}, which holds where none is given"
        yield job.problem((field,), message, fix=nearest(name, known))


def _unservable(document: Document, jobs: Sequence[Document], *, is_site: bool) -> Iterator[Problem]:
    model = document.model
    if not isinstance(model, ServiceDocument) or not (model.model or "").startswith(JOB_PREFIX):
        return
    assert model.model is not None
    name = model.model.removeprefix(JOB_PREFIX)
    trainings = {d.name: d for d in jobs if d.kind == "Training" and d.name}
    source = trainings.get(name)
    if source is None:
        if is_site:
            yield document.problem(
                ("model",), "there is no such training", fix=nearest(name, map(str, trainings))
            )
    elif isinstance(source.model, TrainingDocument) and source.model.model and not source.model.model.export:
        fix = f"write export: true in {source.source}"
        yield document.problem(("model",), f"{name!r} does not export its model", fix=fix)


def _misplaced(job: Document, groups: Sequence[Group]) -> Iterator[Problem]:
    system, cluster = _text(job, "system"), _text(job, "cluster")
    systems, clusters = {g.system for g in groups}, {g.cluster for g in groups}
    if cluster is not None and cluster not in clusters:
        yield job.problem(("cluster",), "unknown cluster", fix=nearest(cluster, clusters))
        cluster = None
    if system is not None and system not in systems:
        if system in {s.name for s in catalog.systems()}:
            yield job.problem(("system",), "the fleet has none of this system", fix=nearest(system, systems))
        system = None
    allowed = [g for g in groups if system in (None, g.system) and cluster in (None, g.cluster)]
    if not allowed:
        there = ", ".join(sorted({g.system for g in groups if g.cluster == cluster}))
        yield job.problem(
            ("system",), f"the cluster {cluster!r} has none of this system", fix=f"it has {there}"
        )
    elif isinstance(job.model, JobDocument):
        yield from _too_large(job, job.model, allowed)


def _text(job: Document, field: str) -> str | None:
    value = job.fields.get(field)
    return value if isinstance(value, str) else None


def _too_large(document: Document, model: JobDocument, allowed: Sequence[Group]) -> Iterator[Problem]:
    shape = model.shape()
    largest = max(allowed, key=lambda g: g.usable)
    where = f"a domain of {largest.cluster} has {_nodes(largest.nodes)}"
    where += f", {largest.spares} of them spare" if largest.spares else ""
    if shape.nodes_per_segment > largest.usable:
        field = "nodes_per_segment" if "nodes_per_segment" in model.model_fields_set else "nodes"
        fix = f"at most {largest.usable} ({where})"
        if field == "nodes":
            fix += ", or segments x nodes_per_segment over several domains"
        yield document.problem((field,), "too large for every NVLink domain", fix=fix)
        return
    most: Counter[str] = Counter()
    for group in allowed:
        per_domain = group.usable // shape.nodes_per_segment
        most[f"{group.cluster}, {group.system}"] += group.domains * (
            per_domain if shape.may_share_domain else min(per_domain, 1)
        )
    [(best, segments)] = most.most_common(1)
    if shape.segments > segments:
        message = f"more segments of {_nodes(shape.nodes_per_segment)} than any cluster can hold"
        yield document.problem(("segments",), message, fix=f"at most {segments} ({best})")


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
