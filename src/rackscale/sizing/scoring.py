"""Scores a table of measured steps against their predictions, and calibrates on it."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from msgspec import Struct

from rackscale.errors import DocumentError, did_you_mean
from rackscale.sizing import bands, calibration
from rackscale.sizing.calibration import Errors
from rackscale.sizing.constants import constants, fitted
from rackscale.sizing.layout import Array
from rackscale.sizing.measurements import Measurement, Unread, read

HELD_BACK = 5
"""One row in so many is held back when a user calibrates."""
FEW = 25
"""Below so many rows each fifth is held back in its turn: errors of one fifth alone would be luck."""
FEWEST = 5
LEAST_GAIN = 0.001
"""Of the median error; less is rounding."""
SENSELESS = 0.5
"""A median error of rows held back that no fleet explains: the table's units or layouts are wrong (assumed)."""
SUMMARIES: dict[str, Callable[[Measurement], str]] = {
    "system": lambda row: row.recipe.system,
    "model": lambda row: row.model.name,
    "precision": lambda row: row.recipe.precision,
}


class Scored(Struct, frozen=True, kw_only=True):
    """One row, predicted."""

    row: str
    """`row_id`, or the line of the file."""
    source: str
    """`source_id` or `source` of the table."""
    system: str
    """Its name in the catalog."""
    model: str
    """As the table names it."""
    precision: str
    gpus: int
    layout: str
    """In short: `rackscale size` says what its letters mean."""
    measured_s: float
    """Of a step."""
    predicted_s: float
    low_s: float
    """Eight measurements in ten should lie between this and `high_s`."""
    high_s: float
    error: float
    """Predicted / measured - 1."""
    assumed: tuple[str, ...]
    """Columns that the table leaves open."""


class Score(Struct, frozen=True, kw_only=True):
    """A whole table."""

    file: str
    constants: str | None
    """The file that they come from; None: the published ones."""
    rows: tuple[Scored, ...]
    unread: tuple[Unread, ...]
    """Rows that can't be used, with the reason."""
    total: Errors | None
    """Of all rows; None: none could be read."""
    complete: Errors | None
    """Of rows that leave nothing open."""
    inside: float | None
    """Share of rows whose measurement lies in the band: 0.8 where bands are right."""
    by: dict[str, dict[str, Errors]]
    """Errors by system, model and precision."""


def score(path: Path, *, constants_file: Path | None = None) -> Score:
    """Predicts every row, by the published constants or those of a file that `as_toml` wrote.

    Raises DocumentError where a file is unusable.
    """
    values = fitted() if constants_file is None else from_toml(constants_file)[0]
    source = None if constants_file is None else str(constants_file)
    rows, unread = read(path)
    if not rows:
        return Score(
            file=str(path), constants=source, rows=(), unread=tuple(unread), total=None, complete=None,
            inside=None, by={},
        )  # fmt: skip
    problem = calibration.problem(rows)
    predicted = problem.predict(calibration.logs_of(values)).seconds
    ratio = predicted / problem.seconds
    scored = tuple(_scored(row, float(seconds)) for row, seconds in zip(rows, predicted, strict=True))
    full = np.array([row.complete for row in rows])
    return Score(
        file=str(path),
        constants=source,
        rows=scored,
        unread=tuple(unread),
        total=calibration.errors(ratio),
        complete=calibration.errors(ratio[full]) if full.any() else None,
        inside=float(np.mean([one.low_s <= one.measured_s <= one.high_s for one in scored])),
        by={name: dict(calibration.table(rows, ratio, key)) for name, key in SUMMARIES.items()},
    )


def unread_lines(file: str | Path, unread: Iterable[Unread]) -> list[str]:
    """Each with its place: the line, and the row's own name if it has one."""
    return [
        f"{file}:{bad.line}: " + ("" if bad.row == f"line {bad.line}" else f"{bad.row}: ") + bad.reason
        for bad in unread
    ]


def _scored(row: Measurement, seconds: float) -> Scored:
    experts = calibration.has_experts(row)
    low, high = bands.band(row.recipe, experts=experts, gpus=row.layout.gpus, model=row.model)
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
    """That the constants are fitted to."""
    from_flops: int
    """Rows left out of the fit: their seconds rest on our own count of model FLOPs."""
    held_back: int
    """Rows that the errors are of: each predicted by constants that have not seen it."""
    unread: tuple[Unread, ...]
    """Rows that can't be used, with the reason."""
    before: Errors
    """By the published constants, on rows held back."""
    after: Errors
    """By those fitted, on the same rows."""
    gains: bool
    """Whether the median error became less on rows that the constants had not seen. If not: keep the published ones."""
    constants: dict[str, float]
    """All of them, fitted to all rows."""
    moved: dict[str, float]
    """Constants that changed by more than 1 %, new over old."""


def calibrate(path: Path) -> Calibrated:
    """Fits to all rows but one in five, measures on those, then fits to all; of few rows each fifth in its turn.

    The published constants are where it starts and what it stays near, by their spreads (constants.toml). Raises
    DocumentError for a file with too few rows, ExecutorError without SciPy.
    """
    readable, unread = read(path)
    rows = [row for row in readable if not row.from_flops]
    if len(rows) < FEWEST:
        raise DocumentError([_too_few(path, len(rows), len(readable)), *unread_lines(path, unread)])
    problem = calibration.problem(rows)
    published = dict(fitted())
    turns = range(HELD_BACK) if len(rows) < FEW else (HELD_BACK - 1,)
    before, after = [], []
    for turn in turns:
        held = np.arange(len(rows)) % HELD_BACK == turn
        seen = calibration.fit(problem.take(~held), start=published, reruns=False)
        before.append(_ratio(problem, published)[held])
        after.append(_ratio(problem, seen)[held])
    values = calibration.fit(problem, start=published, reruns=False)
    old, new = calibration.errors(np.concatenate(before)), calibration.errors(np.concatenate(after))

    return Calibrated(
        rows=len(rows),
        from_flops=len(readable) - len(rows),
        held_back=new.rows,
        unread=tuple(unread),
        before=old,
        after=new,
        gains=new.median < min(old.median - LEAST_GAIN, SENSELESS),
        constants=values,
        moved={
            name: v / published[name] for name, v in values.items() if abs(v / published[name] - 1) > 0.01
        },
    )


def _too_few(path: Path, timed: int, readable: int) -> str:
    few = f"{path}: {readable} row{'' if readable == 1 else 's'} can be read"
    if timed < readable:
        few += f", {timed} of them with a time (model_tflops_per_gpu is none: it rests on a count of FLOPs)"
    return f"{few}; calibration needs {FEWEST}"


def _ratio(problem: calibration.Problem, constants: Mapping[str, float]) -> Array:
    return np.asarray(problem.predict(calibration.logs_of(constants)).seconds / problem.seconds)


def as_toml(found: Calibrated, path: Path) -> str:
    """A file for `--constants`."""
    lines: Iterable[str] = (
        "# Written by `rackscale calibrate`; `rackscale size` and `score` take it as --constants.",
        "",
        "[provenance]",
        f"file = {json.dumps(path.name)}",
        f"rows = {found.rows}",
        f'date = "{datetime.now(UTC):%Y-%m-%d}"',
        f"rows_held_back = {found.held_back}",
        f"median_error_before = {found.before.median:.4f}",
        f"median_error_after = {found.after.median:.4f}",
        "",
        "[constants]",
        *(f'"{name}" = {value:.6g}' for name, value in found.constants.items()),
    )
    return "\n".join(lines) + "\n"


def from_toml(path: Path) -> tuple[dict[str, float], str]:
    """The constants of a file that `as_toml` wrote, and where they come from.

    Constants that it lacks are the published ones. Raises DocumentError with all that is wrong with it.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise DocumentError([f"{path}: {words}; `rackscale calibrate --out` writes such a file"]) from error
    except UnicodeDecodeError as error:
        raise DocumentError([f"{path}: this is no text in UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        raise DocumentError([f"{path}: this is no TOML: {error}"]) from error
    given, known = table.get("constants"), constants()
    if not isinstance(given, dict) or not given:
        raise DocumentError(
            [f"{path}: there is no table [constants]; `rackscale calibrate --out` writes one"]
        )
    problems = []
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, known)
            problems.append(f"{path}: there is no constant {name!r}" + (f" ({hint})" if hint else ""))
        elif type(value) not in {int, float} or not 0 < value < math.inf:
            problems.append(f"{path}: {name}: {value!r} is not a number above 0")
    if problems:
        raise DocumentError(problems)
    told = table.get("provenance", {})
    source = f"{path}: fitted to {told.get('rows')} rows of {told.get('file')}, {told.get('date')}"
    return {**fitted(), **given}, source if told else str(path)
