"""What is wrong between documents: names used twice, names of nothing, shapes that no domain can ever hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rackscale.events import DomainSpec
from rackscale.spec.jobs import JobDocument, ServiceDocument, TrainingDocument
from rackscale.spec.placing import misplaced
from rackscale.spec.policy import PolicyDocument
from rackscale.spec.problems import Problem, nearest
from rackscale.spec.programs import JOB_PREFIX
from rackscale.spec.queues import QueueDocument
from rackscale.spec.shapes import JOB
from rackscale.spec.site import FleetDocument
from rackscale.spec.tree import Cost, never_runs, tree_faults, tree_warnings
from rackscale.spec.validate import JOB_KINDS, Document
from rackscale.spec.windows import BookingDocument, MaintenanceDocument, never_inside
from rackscale.workload import Job, Policy, Queue

DEFAULT_QUEUE = JOB.queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What documents may refer to. None: not known, so that nothing can be said against them."""

    fleet: tuple[DomainSpec, ...] | None
    queues: Mapping[str, Queue] | None
    sound: bool
    """Whether what `queues` says beyond names can be relied on."""
    priorities: frozenset[str] | None
    bookings: frozenset[str] | None
    keep_spares: bool
    """Whether the fleet's spares are kept free everywhere, as the policy says."""

    @classmethod
    def of(
        cls,
        documents: Sequence[Document],
        fleet: Sequence[DomainSpec],
        queues: Sequence[Queue],
        policy: Policy | None,
        bookings: Iterable[str] = (),
    ) -> Surroundings:
        """The documents' own fleet, queues and policy, or else those given. What is faulty itself is not known."""
        kinds: dict[str, list[Document]] = {}
        for document in documents:
            kinds.setdefault(document.kind, []).append(document)
        fleets, policies = kinds.get("Fleet", []), kinds.get("Policy", [])
        named = {str(d.name): d for d in kinds.get("Queue", []) if d.name}
        is_site = bool(fleets or policies or named or queues or fleet)
        known = tuple(fleet) or None
        if fleets:
            known = None if any(d.model is None for d in fleets) else tuple(_specs(fleets))
        priorities = frozenset((policy or Policy()).priorities) if is_site else None
        valid = [d.model.value() for d in policies if isinstance(d.model, PolicyDocument)]
        if policies:
            priorities = frozenset(valid[0].priorities) if len(valid) == len(policies) else None
        tree = {DEFAULT_QUEUE: Queue(name=DEFAULT_QUEUE)} | {q.name: q for q in queues}
        tree |= {name: d.model.value() if d.model else Queue(name=name) for name, d in named.items()}
        return cls(
            fleet=known,
            queues=tree if is_site else None,
            sound=all(d.model is not None for d in named.values()),
            priorities=priorities,
            bookings=frozenset({*bookings, *(str(d.name) for d in kinds.get("Booking", []))})
            if is_site
            else None,
            keep_spares=(valid[0] if valid else policy or Policy()).spares == "fixed",
        )


def cross_check(documents: Sequence[Document], around: Surroundings) -> Iterator[Problem]:
    """Every problem between documents."""
    yield from _duplicates(documents)
    jobs = [d for d in documents if d.kind in JOB_KINDS]
    is_site = any(d.kind == "Fleet" for d in documents)
    yield from _queues(documents, around)
    for asker in (d for d in documents if d.kind in (*JOB_KINDS, "Booking")):
        yield from _unknown(asker, "queue", "unknown queue", JOB.queue, around.queues)
        yield from _unknown(asker, "priority", "unknown priority class", JOB.priority, around.priorities)
        yield from _unknown(asker, "booking", "unknown booking", None, around.bookings)
        if around.fleet is not None:
            yield from misplaced(asker, around.fleet, keep_spares=around.keep_spares)
    bookings = {d.model.name: d.model for d in documents if isinstance(d.model, BookingDocument)}
    for job in jobs:
        yield from _unservable(job, jobs, is_site=is_site)
        yield from _never_runs(job, around)
        yield from _never_inside(job, bookings)
    if around.fleet is not None:
        for document in documents:
            if document.kind == "Maintenance":
                yield from _unmaintainable(document, around.fleet)


def _queues(documents: Sequence[Document], around: Surroundings) -> Iterator[Problem]:
    """What is wrong with the tree, at the queues' own documents; the gate tells the rest on a live site."""
    written = {d.name: d for d in documents if d.kind == "Queue" and isinstance(d.model, QueueDocument)}
    if not written or around.queues is None:
        return
    fleet = around.fleet if around.sound else None
    for fault in tree_faults(around.queues, fleet or ()):
        document = written.get(fault.queue)
        if document is not None and (around.sound or fault.path == ("parent",)):
            yield document.problem(fault.path, fault.message, fix=fault.fix)


def warnings(documents: Sequence[Document], around: Surroundings) -> Iterator[Problem]:
    """What is no mistake, and hardly meant: at the queues' own documents."""
    written = {d.name: d for d in documents if d.kind == "Queue" and isinstance(d.model, QueueDocument)}
    if around.queues is None or around.fleet is None or not around.sound:
        return
    for fault in tree_warnings(around.queues, around.fleet, keep_spares=around.keep_spares):
        document = written.get(fault.queue)
        if document is not None:
            yield document.problem(fault.path, fault.message, fix=fault.fix)


def _never_runs(document: Document, around: Surroundings) -> Iterator[Problem]:
    """A job that its queue's limits keep waiting for ever."""
    model = document.model
    if not isinstance(model, JobDocument) or around.queues is None or not around.sound:
        return
    if model.queue not in around.queues:
        return
    job = model.work(document.raw.folder, document.source).job
    reason = never_runs(job, around.queues, _costs(job, around.fleet or ()))
    if reason is not None:
        yield document.problem(("queue",), f"can never start: {reason}")


def _never_inside(document: Document, bookings: Mapping[str, BookingDocument]) -> Iterator[Problem]:
    """A job that its booking, from the same documents, has no room or no time for."""
    model = document.model
    booking = bookings.get(model.booking or "") if isinstance(model, JobDocument) else None
    if not isinstance(model, JobDocument) or booking is None or booking.start.basis != booking.until.basis:
        return
    job = model.work(document.raw.folder, document.source).job
    reason = never_inside(job, booking.value(), booking.until.s - booking.start.s)
    if reason is not None:
        yield document.problem(("booking",), reason)


def _costs(job: Job, fleet: Sequence[DomainSpec]) -> list[Cost]:
    kinds = {(s.cluster, s.system, s.nodes, s.gpus_per_node, s.spares): s for s in fleet}
    return [
        Cost.of(job, offer, gpus_per_node=spec.gpus_per_node, usable=spec.nodes - spec.spares)
        for offer in job.choices
        for spec in kinds.values()
        if (offer.system or job.system) in (None, spec.system) and job.cluster in (None, spec.cluster)
    ]


def _unmaintainable(document: Document, fleet: Sequence[DomainSpec]) -> Iterator[Problem]:
    """A maintenance of nodes that don't exist."""
    name = document.text("domain")
    if name is None:
        return
    found = [spec for spec in fleet if name == spec.name or spec.name.endswith(f"/{name}")]
    if not found:
        yield document.problem(
            ("domain",), "unknown NVLink domain", fix=nearest(name, (s.name for s in fleet))
        )
        yield from _no_such_node(document, "no domain", max(s.nodes for s in fleet))
    elif len(found) > 1:
        fix = f"say {' or '.join(spec.name for spec in found)}"
        yield document.problem(("domain",), "several clusters have such a domain", fix=fix)
    else:
        yield from _no_such_node(document, found[0].name, found[0].nodes)


def _no_such_node(document: Document, where: str, there: int) -> Iterator[Problem]:
    model = document.model
    for i, node in enumerate((model.nodes or ()) if isinstance(model, MaintenanceDocument) else ()):
        if node >= there:
            verb = "has" if where == "no domain" else "has no"
            yield document.problem(("nodes", i), f"{where} {verb} such node", fix=f"from 0 to {there - 1}")


def _specs(fleets: Iterable[Document]) -> Iterator[DomainSpec]:
    for document in fleets:
        assert isinstance(document.model, FleetDocument)
        yield from document.model.specs()


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
            group = "job" if document.kind in JOB_KINDS else document.kind
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
    job: Document, field: str, message: str, default: str | None, known: Collection[str] | None
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
