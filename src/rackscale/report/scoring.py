"""Scores and calibrations for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rackscale.report.tables import plain
from rackscale.report.words import percent
from rackscale.sizing.calibration import Errors
from rackscale.sizing.measurements import Unread
from rackscale.sizing.scoring import Calibrated, Score

FAR = 0.2
"""An error above this is shown in red."""


def score(found: Score) -> Stack:
    """The answer of `rackscale score`."""
    parts: list[RenderableType] = []
    if found.rows:
        parts += [_rows(found), Text()]
    if found.total is not None:
        table = _errors_table()
        _errors(table, "all", found.total)
        if found.complete is not None:
            _errors(table, "rows that leave nothing open", found.complete)
        for kind, groups in found.by.items():
            for name, each in groups.items():
                _errors(table, f"{kind} {name}", each)
        inside = percent(found.inside or 0.0, 0)
        parts += [table, Text(f"{inside} of rows lie in their band (8 in 10 should)")]
    return Stack(*parts, *_unread(found.file, found.unread))


def _rows(found: Score) -> Table:
    table = plain("row", "model, precision, system", "layout")
    for name in ("measured", "predicted", "8 in 10 within", "error"):
        table.add_column(name, no_wrap=True)
    table.add_column("left open")
    for one in found.rows:
        table.add_row(
            one.row,
            f"{one.model} {one.precision} on {one.gpus} x {one.system}",
            one.layout,
            f"{one.measured_s:,.3f} s",
            f"{one.predicted_s:,.3f} s",
            f"{one.low_s:,.2f}-{one.high_s:,.2f} s",
            Text(f"{one.error:+.1%}", style="red" if abs(one.error) > FAR else ""),
            ", ".join(one.assumed),
        )
    return table


def _unread(file: str, unread: Iterable[Unread]) -> list[Text]:
    lines = [Text(f"  {file}:{bad.line}: {bad.row}: {bad.reason}") for bad in unread]
    if not lines:
        return []
    count = f"{len(lines)} row" + ("s" if len(lines) > 1 else "")
    return [Text(), Text(f"{count} can't be read", style="bold yellow"), *lines]


def _errors_table() -> Table:
    return plain("step time", "rows", "median error", "90th percentile", "worst", "bias")


def _errors(table: Table, name: str, e: Errors) -> None:
    table.add_row(name, str(e.rows), percent(e.median), percent(e.p90), percent(e.worst), f"{e.bias:+.1%}")


def calibration(found: Calibrated, file: Path) -> Stack:
    """The answer of `rackscale calibrate`."""
    table = _errors_table()
    _errors(table, "before, on rows held back", found.before)
    _errors(table, "after, on rows held back", found.after)
    moved = plain("constant", "new over published")
    for name, ratio in sorted(found.moved.items(), key=lambda item: -abs(item[1] - 1.0)):
        moved.add_row(name, f"{ratio:.2f}")
    parts: list[RenderableType] = [
        Text(f"{found.rows} rows, {found.held_back} of them held back", style="bold"), table,
    ]  # fmt: skip
    if found.after.median > found.before.median:
        parts.append(
            Text("the fit did not gain on rows held back: keep the published constants", style="yellow")
        )
    parts += [Text(), moved if found.moved else Text("no constant moved by more than 1 %")]
    return Stack(*parts, *_unread(str(file), found.unread))
