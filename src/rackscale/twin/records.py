"""What the readers of job traces hand over, row by row."""

from __future__ import annotations

from typing import NamedTuple


class Record(NamedTuple):
    """One job as it was recorded elsewhere."""

    line: int
    job_id: str
    submit_s: float
    duration_s: float
    gpus: int
    queue: str | None
    priority: str | None


class Problem(NamedTuple):
    """A row that can't be used, and why."""

    line: int
    reason: str


class Skipped(NamedTuple):
    """A row that is in order but is no work for a rehearsal, and why."""

    reason: str
