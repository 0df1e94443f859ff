"""Scores a table of measured steps against their predictions, and calibrates on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from msgspec import Struct

from rackscale.errors import DocumentError
from rackscale.sizing import bands, calibration
from rackscale.sizing.calibration import Errors
from rackscale.sizing.constants import fitted
from rackscale.sizing.layout import Array
from rackscale.sizing.measurements import Measurement, Unread, read

HELD_BACK = 5
"""One row in so many is held back when a user calibrates."""
FEWEST = 5
SUMMARIES: dict[str, Callable[[Measurement], str]] = {
    "system": lambda row: row.recipe.system,
    "model": lambda row: row.model.name,
    "precision": lambda row: row.recipe.precision,
}


class Scored(Struct, frozen=True, kw_only=True):
    """One row, predicted."""

    row: str
    source: str
    system: str
    model: str
    precision: str
    gpus: int
    layout: str
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float
    error: float
    """Predicted / measured - 1."""
    assumed: tuple[str, ...]
    """Columns that the table leaves open."""


class Score(Struct, frozen=True, kw_only=True):
    """A whole table."""

    file: str
    rows: tuple[Scored, ...]
    unread: tuple[Unread, ...]
    total: Errors | None
    complete: Errors | None
    """Of rows that leave nothing open."""
    inside: float | None
    """Share of rows whose measurement lies in the band: 0.8 where bands are right."""
    by: dict[str, dict[str, Errors]]
    """Errors by system, model and precision."""


def score(path: Path, *, values: Mapping[str, float] | None = None) -> Score:
    """Predicts every row. Raises DocumentError where the file is unusable."""
    rows, unread = read(path)
    if not rows:
        return Score(
            file=str(path), rows=(), unread=tuple(unread), total=None, complete=None, inside=None, by={}
        )
    problem = calibration.problem(rows)
    predicted = problem.predict(calibration.logs_of(values or fitted())).seconds
    ratio = predicted / problem.seconds
    scored = tuple(_scored(row, float(seconds)) for row, seconds in zip(rows, predicted, strict=True))
    full = np.array([row.complete for row in rows])
    return Score(
        file=str(path),
        rows=scored,
        unread=tuple(unread),
        total=calibration.errors(ratio),
        complete=calibration.errors(ratio[full]) if full.any() else None,
        inside=float(np.mean([one.low_s <= one.measured_s <= one.high_s for one in scored])),
        by={name: dict(calibration.table(rows, ratio, key)) for name, key in SUMMARIES.items()},
    )


def _scored(row: Measurement, seconds: float) -> Scored:
    low, high = bands.band(row.recipe, experts=calibration.has_experts(row))
    return Scored(
        row=row.row,
        source=row.source,
        system=row.recipe.system,
        model=row.label,
        precision=row.recipe.precision,
        gpus=row.layout.gpus,
        layout=str(row.layout),
        measured_s=row.seconds,
        predicted_s=seconds,
        low_s=seconds * low,
        high_s=seconds * high,
        error=seconds / row.seconds - 1.0,
        assumed=row.assumed,
    )


class Calibrated(Struct, frozen=True, kw_only=True):
    """A fit to a user's own rows, and what it gains on those that it has not seen."""

    rows: int
    held_back: int
    unread: tuple[Unread, ...]
    before: Errors
    after: Errors
    constants: dict[str, float]
    moved: dict[str, float]
    """Constants that changed by more than 1 %, new over old."""


def calibrate(path: Path) -> Calibrated:
    """Fits to all rows but one in five, measures on those, then fits to all.

    The published constants are where it starts and what it stays near, by their spreads (constants.toml). Raises DocumentError for a file with too few rows, ExecutorError without SciPy.
    """
    rows, unread = read(path)
    if len(rows) < FEWEST:
        reasons = [f"{path}: {bad.row}: {bad.reason}" for bad in unread]
        raise DocumentError([f"{path}: {len(rows)} rows can be read; calibration needs {FEWEST}", *reasons])
    problem = calibration.problem(rows)
    held = np.arange(len(rows)) % HELD_BACK == HELD_BACK - 1
    published = dict(fitted())
    seen = calibration.fit(problem.take(~held), start=published, reruns=False)
    values = calibration.fit(problem, start=published, reruns=False)

    def ratio(constants: Mapping[str, float]) -> Array:
        predicted = problem.predict(calibration.logs_of(constants)).seconds
        return np.asarray((predicted / problem.seconds)[held])

    return Calibrated(
        rows=len(rows),
        held_back=int(held.sum()),
        unread=tuple(unread),
        before=calibration.errors(ratio(published)),
        after=calibration.errors(ratio(seen)),
        constants=values,
        moved={
            name: v / published[name] for name, v in values.items() if abs(v / published[name] - 1) > 0.01
        },
    )


def as_toml(found: Calibrated, path: Path) -> str:
    """A file for `--constants`."""
    lines: Iterable[str] = (
        f"# Fitted to {found.rows} rows of {path.name} on {datetime.now(UTC):%Y-%m-%d} by `rackscale calibrate`.",
        f"# On {found.held_back} rows held back: median error {found.before.median:.1%} before, {found.after.median:.1%} after.",
        "",
        "[constants]",
        *(f'"{name}" = {value:.6g}' for name, value in found.constants.items()),
    )
    return "\n".join(lines) + "\n"
