"""Recorded jobs as work for a rehearsal: CSV, Parquet, or what `sacct -P` printed.

CSV and Parquet need the columns job_id, submit_s, duration_s and gpus; queue and priority are used where they exist,
others are ignored. A record says how many GPUs a job had on other machines; here it gets whole nodes, and a gang that
no domain can hold becomes equal segments. What that adds is reported, and nothing is dropped without being counted.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from msgspec import Struct

from rackscale.errors import DocumentError, RackscaleError, did_you_mean
from rackscale.events import DomainSpec
from rackscale.spec import Submission
from rackscale.twin import sacct
from rackscale.twin.records import Problem, Record, Skipped
from rackscale.workload import Durability, Job, Shape

COLUMNS = ("job_id", "submit_s", "duration_s", "gpus")
OPTIONAL = ("queue", "priority")
SHOWN = 20
"""Problems that are listed; more are counted."""
DURABILITY = Durability(checkpoint_interval_s=3600.0, checkpoint_s=60.0, grace_s=120.0, restart_s=60.0)
"""What recorded jobs are taken to do; no trace says it (assumed)."""


class Sizing(Struct, frozen=True, kw_only=True):
    """How GPUs become nodes and segments on a fleet: those of the system with the most GPUs."""

    gpus_per_node: int
    domain_nodes: int
    """Nodes that a domain gives to one segment (its spares stay free)."""
    system: str | None
    """Set where other systems of the fleet have other nodes, so that jobs stay on the one they were sized for."""

    @classmethod
    def of(cls, fleet: Sequence[DomainSpec]) -> Sizing:
        """Raises RackscaleError for an empty fleet."""
        gpus: Counter[str] = Counter()
        for spec in fleet:
            gpus[spec.system] += spec.nodes * spec.gpus_per_node
        if not gpus:
            raise RackscaleError("there is no fleet to size recorded jobs for")
        system = max(gpus, key=lambda name: gpus[name])
        domains = [spec for spec in fleet if spec.system == system]
        mixed = any(spec.gpus_per_node != domains[0].gpus_per_node for spec in fleet)
        return cls(
            gpus_per_node=domains[0].gpus_per_node, domain_nodes=max(spec.nodes - spec.spares for spec in domains),
            system=system if mixed else None,
        )  # fmt: skip

    def shape(self, gpus: int) -> Shape:
        """Whole nodes in one domain; beyond that equal segments that waste the fewest nodes, the largest of those."""
        nodes = math.ceil(gpus / self.gpus_per_node)
        if nodes <= self.domain_nodes:
            return Shape(nodes_per_segment=nodes)
        sizes = range(max(1, self.domain_nodes // 2), self.domain_nodes + 1)
        best = min(sizes, key=lambda size: (math.ceil(nodes / size) * size, -size))
        return Shape(segments=math.ceil(nodes / best), nodes_per_segment=best)


class Trace(Struct, frozen=True, kw_only=True):
    """Recorded jobs, ready to be submitted; the first at time 0."""

    submissions: tuple[Submission, ...]
    skipped: dict[str, int]
    """Records that are no work for GPUs, by reason."""
    asked_gpu_h: float
    """Recorded GPUs x recorded duration."""
    held_gpu_h: float
    """The same with whole nodes and equal segments."""
    rounded: int
    """Jobs that hold more GPUs than they had."""
    segmented: int
    """Jobs that no domain can hold, made of several segments."""


def read_jobs(
    path: Path | str, fleet: Sequence[DomainSpec], *, priorities: Iterable[str] = ("normal",)
) -> Trace:
    """Read a job trace and size it for a fleet. A row without a priority gets `normal`.

    Raises DocumentError with every bad row (file:line and reason; a count beyond the first 20), RackscaleError where
    the file can't be read or Parquet support is not installed.
    """
    path, known = Path(path), set(priorities)
    records: list[Record] = []
    problems: list[Problem] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    for found in _records(path):
        match found:
            case Problem():
                problems.append(found)
            case Skipped():
                skipped[found.reason] += 1
            case Record(priority=priority) if priority is not None and priority not in known:
                hint = did_you_mean(priority, known)
                problems.append(
                    Problem(found.line, f"priority {priority!r} is not in the policy" + _also(hint))
                )
            case Record(job_id=job_id) if job_id in seen:
                problems.append(Problem(found.line, f"job_id {job_id!r} occurs twice"))
            case Record(gpus=0):
                skipped["no GPUs"] += 1
            case _:
                seen.add(found.job_id)
                records.append(found)
    if problems:
        raise DocumentError(_lines(path, problems))
    return _trace(records, Sizing.of(fleet), dict(skipped))


def _also(hint: str | None) -> str:
    return f"; {hint}" if hint else ""


def _lines(path: Path, problems: Sequence[Problem]) -> Iterator[str]:
    for problem in problems[:SHOWN]:
        yield f"{path}:{problem.line}: {problem.reason}"
    if len(problems) > SHOWN:
        yield f"{path}: and {len(problems) - SHOWN:,} more such rows"


def _trace(records: Sequence[Record], sizing: Sizing, skipped: dict[str, int]) -> Trace:
    start_s = min((record.submit_s for record in records), default=0.0)
    submissions = []
    asked = held = 0.0
    rounded = segmented = 0
    for record in sorted(records, key=lambda r: r.submit_s):
        shape = sizing.shape(record.gpus)
        gpus = shape.nodes * sizing.gpus_per_node
        asked += record.gpus * record.duration_s / 3600.0
        held += gpus * record.duration_s / 3600.0
        rounded += gpus > record.gpus
        segmented += shape.segments > 1
        job = Job(
            # No document can name a job so: the two never meet.
            name=f"trace/{record.job_id}", kind="batch", shape=shape, queue=record.queue or "default",
            priority=record.priority or "normal", system=sizing.system, duration_s=record.duration_s,
            durability=DURABILITY,
        )  # fmt: skip
        submissions.append(Submission(at_s=record.submit_s - start_s, job=job, duration_s=record.duration_s))
    return Trace(
        submissions=tuple(submissions), skipped=skipped, asked_gpu_h=asked, held_gpu_h=held, rounded=rounded,
        segmented=segmented,
    )  # fmt: skip


# -- formats -----------------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[Record | Problem | Skipped]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = file.readline()
            lines = chain([header], file)
            yield from sacct.records(path, lines) if "|" in header else _csv(path, lines)
    except (OSError, UnicodeDecodeError) as error:
        raise RackscaleError(f"{path} can't be read: {error}") from error


def _csv(path: Path, lines: Iterable[str]) -> Iterator[Record | Problem | Skipped]:
    reader = csv.DictReader(lines)
    _require(path, reader.fieldnames or ())
    for row in reader:
        yield _record(reader.line_num, row)


def _parquet(path: Path) -> Iterator[Record | Problem | Skipped]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = "pip install 'rackscale[parquet]'"
        raise RackscaleError(f"{path} needs the extra 'parquet'", hint=hint) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names: list[str] = file.schema_arrow.names
        _require(path, names)
        table = file.read(columns=[name for name in (*COLUMNS, *OPTIONAL) if name in names])
    except (OSError, pyarrow.ArrowException) as error:
        raise RackscaleError(f"{path} can't be read: {error}") from error
    columns = table.to_pydict()
    for at, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield _record(at, dict(zip(columns, values, strict=True)))


def _require(path: Path, names: Iterable[str]) -> None:
    names = tuple(names)
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        hints = (did_you_mean(name, names) for name in missing)
        raise DocumentError(
            f"{path}:1: there is no column {name!r}" + _also(hint)
            for name, hint in zip(missing, hints, strict=True)
        )


def _record(line: int, row: Mapping[str, object]) -> Record | Problem:
    try:
        job_id = "" if row["job_id"] is None else str(row["job_id"])
        if not job_id:
            raise ValueError("job_id is missing")
        return Record(
            line=line, job_id=job_id, submit_s=_number(row, "submit_s", least=-math.inf),
            duration_s=_number(row, "duration_s"), gpus=_whole(row, "gpus"), queue=_text(row, "queue"),
            priority=_text(row, "priority"),
        )  # fmt: skip
    except ValueError as bad:
        return Problem(line, str(bad))


def _number(row: Mapping[str, object], name: str, *, least: float = 0.0) -> float:
    value = row[name]
    if value is None or value == "":
        raise ValueError(f"{name} is missing")
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError(f"{name} is no number: {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is not finite: {value!r}")
    if number < least:
        raise ValueError(f"{name} is negative: {value!r}")
    return number


def _whole(row: Mapping[str, object], name: str) -> int:
    number = _number(row, name)
    if number != int(number):
        raise ValueError(f"{name} is no whole number: {row[name]!r}")
    return int(number)


def _text(row: Mapping[str, object], name: str) -> str | None:
    value = row.get(name)
    return None if value is None or value == "" else str(value)
