"""All documents of a site together: what they mean, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from rackscale.errors import DocumentError
from rackscale.events import DomainSpec
from rackscale.spec.cross import Surroundings, cross_check
from rackscale.spec.jobs import JobDocument
from rackscale.spec.policy import PolicyDocument
from rackscale.spec.problems import Problem
from rackscale.spec.queues import QueueDocument
from rackscale.spec.reader import read
from rackscale.spec.rehearsal import Failures, Work
from rackscale.spec.site import FleetDocument
from rackscale.spec.validate import KINDS, Document, validate
from rackscale.workload import Job, Policy, Queue


class Documents(Struct, frozen=True, kw_only=True):
    """What the documents say, as values. Empty where no document of that kind was given."""

    name: str = ""
    """The fleet's name."""
    fleet: tuple[DomainSpec, ...] = ()
    """In fabric order: clusters as listed, domains by number."""
    failures: Failures = Failures()
    queues: tuple[Queue, ...] = ()
    policy: Policy | None = None
    """None: no Policy document; the default policy, or the one in force, holds."""
    work: tuple[Work, ...] = ()
    """Jobs in the order of the documents, with source and arrivals."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What applying the documents submits, `count` expanded."""
        return tuple(job for work in self.work for job in work.jobs())

    def source(self, job: str) -> str:
        """`file:line` of the document that `job` came from; empty where it is not from these documents."""
        return next((work.source for work in self.work if any(j.name == job for j in work.jobs())), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a look at documents found."""

    counts: dict[str, int]
    """Documents by kind, in the order of `KINDS`; kinds that do not occur are left out."""
    problems: tuple[str, ...]
    """One printable line each, by file and place; empty: all is well."""
    documents: Documents | None = field(repr=False)
    """None where there are problems."""


def load(paths: Iterable[Path | str], *, around: Documents | None = None) -> Documents:
    """The documents in files and folders. Raises DocumentError with every problem of all of them.

    `around`: the fleet, queues and policy that a live site has already; jobs are checked against them where the
    documents bring none of their own.
    """
    report = check(paths, around=around)
    if report.documents is None:
        raise DocumentError(report.problems)
    return report.documents


def check(paths: Iterable[Path | str], *, around: Documents | None = None) -> Report:
    """Like `load`, but answers instead of raising, and counts."""
    paths = tuple(paths)
    raws, problems = read(paths)
    if not raws and not problems:
        problems = [Problem(file=" ".join(map(str, paths)), message="there is no document here")]
    documents = []
    for raw in raws:
        document, found = validate(raw)
        problems += found
        if document is not None:
            documents.append(document)
    known = around or Documents()
    surroundings = Surroundings.of(documents, known.fleet, known.queues, known.policy)
    problems += cross_check(documents, surroundings)
    lines = _lines(problems, [raw.file for raw in raws])
    counts = Counter(document.kind for document in documents)
    return Report(
        counts={kind: counts[kind] for kind in KINDS if kind in counts},
        problems=lines,
        documents=None if lines else _values(documents),
    )


def _lines(problems: Iterable[Problem], files: Iterable[str]) -> tuple[str, ...]:
    order = {file: i for i, file in reversed(list(enumerate(files)))}
    ordered = sorted(problems, key=lambda p: (order.get(p.file, -1), p.file, p.line, p.column, p.field))
    return tuple(dict.fromkeys(map(str, ordered)))  # an alias repeats what is wrong with its anchor


def _values(documents: Iterable[Document]) -> Documents:
    name, failures = "", Failures()
    fleet: tuple[DomainSpec, ...] = ()
    policy: Policy | None = None
    queues, work = [], []
    for document in documents:
        match document.model:
            case FleetDocument() as model:
                name, fleet, failures = model.name, model.specs(), model.failures.value()
            case QueueDocument() as model:
                queues.append(model.value())
            case PolicyDocument() as model:
                policy = model.value()
            case JobDocument() as model:
                work.append(model.work(document.raw.folder, document.source))
    return Documents(
        name=name, fleet=fleet, failures=failures, queues=tuple(queues), policy=policy, work=tuple(work)
    )
