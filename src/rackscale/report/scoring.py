"""Scores and calibrations for people."""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from pathlib import Path

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rackscale.report.columns import Column, Fitting
from rackscale.report.quantities import seconds, span
from rackscale.report.tables import plain
from rackscale.report.words import percent
from rackscale.sizing.calibration import Errors
from rackscale.sizing.constants import constants
from rackscale.sizing.measurements import Unread
from rackscale.sizing.scoring import SENSELESS, Calibrated, Score, unread_lines

FAR = 0.2
"""An error above this is shown in red."""


def score(found: Score) -> Stack:
    """The answer of `rackscale score`."""
    parts: list[RenderableType] = []
    if found.constants is not None:
        parts += [Text(f"constants of {found.constants}"), Text()]
    if found.rows:
        parts += [*_rows(found), Text()]
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


def _rows(found: Score) -> list[RenderableType]:
    """Wide: what was trained, how and what is left open beside each other. Narrow: below each other."""
    rows = found.rows
    what = [f"{one.model} {one.precision} on {one.gpus} x {one.system}" for one in rows]
    layouts = [one.layout for one in rows]
    left = [", ".join(one.assumed) for one in rows]
    all_in_one = [
        f"{model}: {layout}" + (f" ({names} left open)" if names else "")
        for model, layout, names in zip(what, layouts, left, strict=True)
    ]
    name = Column("row", [one.row for one in rows])
    numbers = [
        Column("measured", [seconds(one.measured_s) for one in rows]),
        Column("predicted", [seconds(one.predicted_s) for one in rows]),
        Column("8 in 10\nwithin", [span(one.low_s, one.high_s) for one in rows]),
        Column(
            "error",
            [Text(f"{one.error:+.1%}", style="red" if abs(one.error) > FAR else "") for one in rows],
        ),
    ]
    wide = [Column("model, precision, system", what, 22), Column("layout", layouts, 18)]
    open_ = [Column("left open", left, 12)] if any(left) else []
    table = Fitting(
        (name, *wide, *numbers, *open_),
        (name, Column("what was measured", all_in_one, 20), *numbers),
        (Column("row", name.cells, 8), *numbers),
    )
    told = (
        "error: predicted / measured - 1; left open: columns that matter and are empty, so that something was"
    )
    return [table, Text(), Text(told + " assumed for them", style="dim")]


def _unread(file: str, unread: Iterable[Unread]) -> list[Text]:
    lines = [Text(f"  {one}") for one in unread_lines(file, unread)]
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
    moved = plain("constant", "new over published", "what it is")
    known = constants()
    for name, ratio in sorted(found.moved.items(), key=lambda item: -abs(log(item[1]))):
        moved.add_row(name, f"{ratio:.2f}", known[name].meaning)
    parts: list[RenderableType] = [
        Text(f"{found.rows} rows, {found.held_back} of them held back", style="bold"), table,
    ]  # fmt: skip
    if found.from_flops:
        left_out = (
            f"{found.from_flops} more state model FLOPs and no time: nothing is fitted to a count of FLOPs"
        )
        parts.append(Text(left_out))
    if not found.gains:
        why = "the fit did not gain on rows held back"
        if found.after.median >= SENSELESS:
            why = f"rows held back are still off by {found.after.median:.0%}: check units, layouts and models"
        parts.append(Text(f"{why}: keep the published constants", style="yellow"))
    parts += [Text(), moved if found.moved else Text("no constant moved by more than 1 %")]
    return Stack(*parts, *_unread(str(file), found.unread))
