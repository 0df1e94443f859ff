"""All documents of a site together: what they mean, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from msgspec import Struct
from msgspec.structs import replace

from rackscale.errors import DocumentError
from rackscale.events import Announced, Booked, Configured, Delivered, DomainSpec, Planned
from rackscale.spec.cross import Surroundings, cross_check, warnings
from rackscale.spec.jobs import JobDocument
from rackscale.spec.overrides import override
from rackscale.spec.policy import PolicyDocument
from rackscale.spec.problems import Path, Problem, dotted, printable, shown
from rackscale.spec.queues import QueueDocument
from rackscale.spec.reader import read
from rackscale.spec.rehearsal import Failures, Work
from rackscale.spec.site import FleetDocument
from rackscale.spec.times import Basis, When
from rackscale.spec.validate import KINDS, Document, validate
from rackscale.spec.windows import BookingDocument, MaintenanceDocument
from rackscale.workload import Booking, Job, Maintenance, Policy, Queue

Opening = Configured | Delivered | Announced | Planned | Booked


class Window(Struct, frozen=True, kw_only=True):
    """A booking or a maintenance, with its times as they are stated."""

    value: Booking | Maintenance
    start: When
    end: When

    def at(self, now_s: float) -> Booking | Maintenance:
        """What it is if it takes effect at `now_s`, seconds."""
        return replace(self.value, start_s=self.start.at_s(now_s), end_s=self.end.at_s(now_s))


class Stated(Struct, frozen=True, kw_only=True):
    """A time as a document states it."""

    place: str
    """`file:line:column: document field`."""
    text: str
    basis: Basis
    kind: str
    """Of the document."""


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
    later: tuple[tuple[When, tuple[DomainSpec, ...]], ...] = ()
    """Domains of `fleet` that are delivered later, by when."""
    windows: tuple[Window, ...] = ()
    """Bookings and maintenance in the order of the documents."""
    times: tuple[Stated, ...] = ()
    """Every time that the documents state, for what they may be used as."""

    @property
    def delivered(self) -> tuple[DomainSpec, ...]:
        """The domains that are there from the start."""
        later = {spec.name for _, specs in self.later for spec in specs}
        return tuple(spec for spec in self.fleet if spec.name not in later) if later else self.fleet

    def bookings(self, now_s: float = 0.0) -> tuple[Booking, ...]:
        """The bookings if they take effect at `now_s`."""
        return tuple(w.at(now_s) for w in self.windows if isinstance(w.value, Booking))  # type: ignore[misc]

    def maintenance(self, now_s: float = 0.0) -> tuple[Maintenance, ...]:
        """The maintenance if it takes effect at `now_s`."""
        return tuple(w.at(now_s) for w in self.windows if isinstance(w.value, Maintenance))  # type: ignore[misc]

    @property
    def dated(self) -> bool:
        """Whether any time is a date, so that these are the documents of a live site."""
        return any(time.basis == "date" for time in self.times)

    def for_rehearsal(self) -> None:
        """Raises DocumentError for every time that is a date, since a rehearsal has none."""
        self._refuse("date", KINDS, "a rehearsal knows no dates", "write 02:00 or 1d9h, since its start")

    def for_site(self, kinds: Collection[str] = tuple(KINDS)) -> None:
        """Raises DocumentError for every time, in documents of these kinds, that only a rehearsal understands."""
        fix = "write a date with its zone, or for a booking or maintenance `in 2h`"
        self._refuse("rehearsal", kinds, "a live site does not know since when this counts", fix)

    def _refuse(self, basis: Basis, kinds: Collection[str], message: str, fix: str) -> None:
        problems = [
            f"{time.place}: {message} ({time.text}); {fix}"
            for time in self.times
            if time.basis == basis and time.kind in kinds
        ]
        if problems:
            raise DocumentError(problems)

    def opening(self) -> tuple[Opening, ...]:
        """What a rehearsal of the documents begins with, in time order: all that is configured, delivered, expected,
        planned and booked at 0, and later deliveries. Raises DocumentError for dates.
        """
        self.for_rehearsal()
        later = sorted(self.later, key=lambda item: item[0].s)
        return (
            Configured(at_s=0.0, policy=self.policy or Policy(), queues=self.queues),
            Delivered(at_s=0.0, domains=self.delivered),
            *(Announced(at_s=0.0, ready_s=ready.s, domains=specs) for ready, specs in later),
            *(Planned(at_s=0.0, maintenance=maintenance) for maintenance in self.maintenance()),
            *(Booked(at_s=0.0, booking=booking) for booking in self.bookings()),
            *(Delivered(at_s=ready.s, domains=specs) for ready, specs in later),
        )

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
    warnings: tuple[str, ...]
    """What is no mistake, and hardly meant; likewise."""
    documents: Documents | None = field(repr=False)
    """None where there are problems."""


def load(
    paths: Iterable[FilePath | str], *, around: Documents | None = None, settings: Iterable[str] = ()
) -> Documents:
    """The documents in files and folders. Raises DocumentError with every problem of all of them.

    `around`: the fleet, queues and policy that a live site has already; jobs are checked against them where the
    documents bring none of their own. `settings`: fields of the Policy that replace what the documents say, such as
    `policy.spares=adaptive`.
    """
    report = check(paths, around=around, settings=settings)
    if report.documents is None:
        raise DocumentError(report.problems)
    return report.documents


def check(
    paths: Iterable[FilePath | str], *, around: Documents | None = None, settings: Iterable[str] = ()
) -> Report:
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
    documents, unset = override(documents, settings)
    problems += unset
    known = around or Documents()
    surroundings = Surroundings.of(
        documents, known.fleet, known.queues, known.policy, [b.name for b in known.bookings()]
    )
    problems += cross_check(documents, surroundings)
    lines = _lines(problems, [raw.file for raw in raws])
    counts = Counter(document.kind for document in documents)
    return Report(
        counts={kind: counts[kind] for kind in KINDS if kind in counts},
        problems=lines,
        warnings=() if lines else _lines(warnings(documents, surroundings), [raw.file for raw in raws]),
        documents=None if lines else _values(documents, known.fleet),
    )


def _lines(problems: Iterable[Problem], files: Iterable[str]) -> tuple[str, ...]:
    order = {file: i for i, file in reversed(list(enumerate(files)))}
    ordered = sorted(problems, key=lambda p: (order.get(p.file, -1), p.file, p.line, p.column, p.field))
    return tuple(dict.fromkeys(map(str, ordered)))  # an alias repeats what is wrong with its anchor


def _values(documents: Sequence[Document], fleet_known: Sequence[DomainSpec]) -> Documents:
    name, failures = "", Failures()
    fleet: tuple[DomainSpec, ...] = ()
    later: list[tuple[When, tuple[DomainSpec, ...]]] = []
    policy: Policy | None = None
    queues, work = [], []
    for document in documents:
        match document.model:
            case FleetDocument() as model:
                name, fleet, failures = model.name, model.specs(), model.failures.value()
                later = [(c.ready, tuple(c.specs())) for c in model.clusters if c.ready is not None]
            case QueueDocument() as model:
                queues.append(model.value())
            case PolicyDocument() as model:
                policy = model.value()
            case JobDocument() as model:
                work.append(model.work(document.raw.folder, document.source))
    return Documents(
        name=name,
        fleet=fleet,
        failures=failures,
        queues=tuple(queues),
        policy=policy,
        work=tuple(work),
        later=tuple(later),
        windows=tuple(_windows(documents, fleet or fleet_known)),
        times=tuple(time for document in documents for time in _times(document)),
    )


def _windows(documents: Iterable[Document], fleet: Sequence[DomainSpec]) -> Iterator[Window]:
    for document in documents:
        match document.model:
            case BookingDocument() as model:
                yield Window(value=model.value(), start=model.start, end=model.until)
            case MaintenanceDocument() as model:
                whole = [
                    s.name for s in fleet if s.name == model.domain or s.name.endswith(f"/{model.domain}")
                ]
                value = model.value()
                if len(whole) == 1:
                    value = replace(value, domain=whole[0])
                yield Window(value=value, start=model.start, end=model.until)


def _times(document: Document) -> Iterator[Stated]:
    model = document.model
    found: list[tuple[Path, When | None]] = []
    if isinstance(model, BookingDocument | MaintenanceDocument):
        found = [(("from",), model.start), (("until",), model.until)]
    elif isinstance(model, FleetDocument):
        for i, cluster in enumerate(model.clusters):
            found += [
                (("clusters", i, "ready"), cluster.ready),
                (("clusters", i, "expires"), cluster.expires),
            ]
    for path, time in found:
        if time is not None:
            (line, column), _ = document.raw.place(path)
            place = f"{printable(document.raw.file)}:{line}:{column}: {document.title} {dotted(path)}"
            yield Stated(
                place=place, text=shown(document.value_at(path)), basis=time.basis, kind=document.kind
            )
