"""Tables that suit the width they are printed in: words wrap, numbers never do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from rackscale.report.tables import plain

GAP = 2
"""Blanks between columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, which may have several lines, and a cell for each row."""

    heading: str
    cells: Sequence[str | Text]
    least: int | None = None
    """Characters that it may be wrapped to; None: it is never broken."""

    @property
    def width(self) -> int:
        """Characters that it needs."""
        longest = max((_wide(text) for text in (self.heading, *map(str, self.cells))), default=0)
        return longest if self.least is None else min(longest, self.least)


def _wide(text: str) -> int:
    return max(map(len, text.split("\n")))


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _table(columns: Sequence[Column]) -> Table:
    table = plain()
    for column in columns:
        table.add_column(
            column.heading, overflow="fold", no_wrap=column.least is None, min_width=column.width
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


class Fitting:
    """The first of several ways to show the same that is not too wide; the last one if all are."""

    def __init__(self, *ways: Sequence[Column]) -> None:
        self.ways = ways

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _table(next((way for way in self.ways if _needed(way) <= options.max_width), self.ways[-1]))


class Blocks:
    """Columns that mean the same, each of another thing: as many beside each other as there is room for."""

    def __init__(self, labels: Sequence[Column], each: Sequence[Column]) -> None:
        self.labels, self.each = labels, each

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = max(column.width for column in self.each) + GAP
        room = max((options.max_width - _needed(self.labels)) // wide, 1)
        for first in range(0, len(self.each), room):
            if first:
                yield Text()
            yield _table([*self.labels, *self.each[first : first + room]])


def stacked(parts: Sequence[str], per_line: int) -> str:
    """`parts` with so many on a line."""
    lines = (parts[at : at + per_line] for at in range(0, len(parts), per_line))
    return "\n".join(" ".join(line) for line in lines)


class Either:
    """One picture where letters beyond ASCII can be written, another where they can't."""

    def __init__(self, picture: RenderableType, in_ascii: RenderableType) -> None:
        self.picture, self.in_ascii = picture, in_ascii

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.in_ascii if options.ascii_only else self.picture


class Bars:
    """Stacked bars, one a row, all to one scale, as wide as there is room for but at most `widest`."""

    def __init__(
        self, rows: Sequence[tuple[str, Sequence[tuple[float, str, str]], str]], *, widest: int
    ) -> None:
        """Of each row: its label, its parts (size, symbol, style), and what stands behind it."""
        self.rows, self.widest = rows, widest

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        label = max(len(name) for name, _, _ in self.rows)
        behind = max(len(text) for _, _, text in self.rows)
        room = max(min(self.widest, options.max_width - label - behind - 2), 1)
        longest = max(sum(size for size, _, _ in parts) for _, parts, _ in self.rows)
        for name, parts, text in self.rows:
            yield _bar(name.ljust(label), parts, text, cells_per_size=room / longest)


def _bar(
    name: str, parts: Sequence[tuple[float, str, str]], text: str, *, cells_per_size: float
) -> RenderableType:
    bar, drawn, so_far = Text(f"{name} ", no_wrap=True), 0, 0.0
    for size, symbol, style in parts:
        so_far += size
        cells = round(so_far * cells_per_size) - drawn
        bar.append(symbol * cells, style)
        drawn += cells
    return bar.append(f" {text}")
