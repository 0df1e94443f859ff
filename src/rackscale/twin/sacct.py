"""What `sacct -P` (or -p) prints, with a header, in any order of columns.

Needed: JobID or JobIDRaw; Submit; Elapsed, ElapsedRaw, or Start and End; and the GPUs in AllocTRES or ReqTRES.
Partition becomes the queue. Times are taken as they stand, without time zone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rackscale.errors import DocumentError
from rackscale.twin.records import Problem, Record, Skipped

NEEDED = (
    (("jobid", "jobidraw"), "JobID"),
    (("submit",), "Submit"),
    (("elapsed", "elapsedraw", "end"), "Elapsed"),
    (("alloctres", "reqtres"), "AllocTRES"),
)
"""(any of these columns, the one to ask for)."""
ELAPSED = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
"""[days-][hours:]minutes:seconds"""
TRES = re.compile(r"gres/gpu(?::([^=,]+))?=(\d+)")
UNKNOWN = ("", "unknown", "none", "n/a")


def records(path: Path, lines: Iterable[str]) -> Iterator[Record | Problem | Skipped]:
    """One answer per line. Raises DocumentError where a column is missing."""
    rows = enumerate(lines, start=1)
    _, header = next(rows)
    names = [name.strip().lower() for name in header.rstrip("\r\n").split("|")]
    missing = [asked for any_of, asked in NEEDED if not set(any_of) & set(names)]
    if missing:
        raise DocumentError(f"{path}:1: sacct must be asked for {name}" for name in missing)
    seen: Counter[str] = Counter()
    for line, text in rows:
        if text.strip():
            yield _row(line, names, text.rstrip("\r\n").split("|"), seen)


def _row(
    line: int, names: Sequence[str], values: Sequence[str], seen: Counter[str]
) -> Record | Problem | Skipped:
    if len(values) != len(names):
        return Problem(line, f"{len(values)} columns, but the header has {len(names)}")
    row = dict(zip(names, (value.strip() for value in values), strict=True))
    job_id = row.get("jobid") or row.get("jobidraw") or ""
    if not job_id:
        return Problem(line, "JobID is missing")
    if "." in job_id:
        return Skipped("job steps")
    state = row.get("state", "").upper()
    if row.get("start", "-").lower() in UNKNOWN or state == "PENDING":
        return Skipped("never started")
    if state in ("RUNNING", "SUSPENDED"):
        return Skipped("still running")
    try:
        submit_s, duration_s, gpus = _time(row["submit"]), _duration(row), _gpus(row)
    except ValueError as error:
        return Problem(line, str(error))
    if state.startswith("CANCELLED") and duration_s == 0.0:
        return Skipped("never started")
    seen[job_id] += 1
    # A requeued job has one line per run (sacct --duplicates), each a piece of work of its own.
    name = job_id if seen[job_id] == 1 else f"{job_id}-run{seen[job_id]}"
    return Record(
        line=line, job_id=name, submit_s=submit_s, duration_s=duration_s, gpus=gpus,
        queue=row.get("partition") or None, priority=None,
    )  # fmt: skip


def _time(value: str) -> float:
    """Seconds since the epoch of `2026-01-31T12:00:00`, or of a plain number (SLURM_TIME_FORMAT=%s)."""
    try:
        return float(value)
    except ValueError:
        try:
            return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise ValueError(f"not a time: {value!r}") from None


def _duration(row: Mapping[str, str]) -> float:
    raw, elapsed = row.get("elapsedraw", ""), row.get("elapsed", "")
    if raw.isdigit():
        return float(raw)
    if not elapsed and "end" in row and "start" in row:
        duration_s = _time(row["end"]) - _time(row["start"])
        if duration_s < 0:
            raise ValueError(f"End {row['end']!r} is before Start {row['start']!r}")
        return duration_s
    found = ELAPSED.fullmatch(elapsed)
    if found is None:
        raise ValueError(f"Elapsed is not [days-][hours:]minutes:seconds: {elapsed!r}")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _gpus(row: Mapping[str, str]) -> int:
    """What was allocated, else what was asked for. Types of GPU are summed where there is no total."""
    for column in ("alloctres", "reqtres"):
        found = TRES.findall(row.get(column, ""))
        if found:
            totals = [int(count) for kind, count in found if not kind]
            return totals[0] if totals else sum(int(count) for _, count in found)
    return 0
