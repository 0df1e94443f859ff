"""Predicted against measured training steps: writes docs/explanation/scorecard.md, its table of rows and its picture.

    python -m benchmarks.scorecard                     from ../shared/data/training/measured.csv
    python -m benchmarks.scorecard --data FILE.csv     from another table
    python -m benchmarks.scorecard --without model     in a third of the time

Some minutes, since the constants are fitted anew for every model, system and source that is left out; with
OPENBLAS_NUM_THREADS=1 far fewer, since the matrices are small. Needs SciPy (the extra "calibrate").
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor, log10
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from benchmarks.training import DATA, HELD, ROOT
from rackscale.sizing import bands, calibration
from rackscale.sizing.calibration import Errors, Problem
from rackscale.sizing.layout import Array
from rackscale.sizing.measurements import Measurement, Unread, read

COLOURS = {
    "A100": "#8c8c8c", "H100": "#3b6fb6", "H200": "#6fb1d6", "B200": "#d98032", "B300": "#c23b3b", "GB200": "#4d9a5b",
    "GB300": "#7a4fa3",
}  # fmt: skip
"""By accelerator, without its variant."""
SUMMARIES: dict[str, Callable[[Measurement], str]] = {
    "system": lambda row: row.recipe.system,
    "model family": lambda row: row.model.family,
    "precision": lambda row: row.recipe.precision,
}
FARTHEST = 15
WIDTH, MARGIN = 640.0, 56.0


@dataclass(slots=True, kw_only=True)
class Scorecard:
    """Everything that the pages show. Ratios are predicted / measured."""

    file: Path
    rows: Sequence[Measurement]
    unread: Sequence[Unread]
    sources: dict[str, str]
    seen: Array
    held: dict[str, Array]
    """By what was left out: see HELD."""
    full: Array
    """Whether a row leaves nothing open."""

    @property
    def kind(self) -> str:
        """What is left out in the picture and the summaries."""
        return next(iter(self.held))

    @property
    def ratio(self) -> Array:
        """Of predictions without the row's own kind."""
        return self.held[self.kind]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--without", nargs="+", choices=list(HELD), default=list(HELD), help="left out in turn"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder that holds explanation/")
    args = parser.parse_args()
    found = scorecard(args.data, args.without)
    pages = {
        "scorecard.svg": picture,
        "explanation/scorecard.md": page,
        "explanation/scorecard-rows.md": rows_page,
    }
    for name, write in pages.items():
        (args.out / name).parent.mkdir(exist_ok=True)
        (args.out / name).write_text(write(found), "utf-8")
    print(f"{len(found.rows)} rows: {', '.join(pages)}")


def scorecard(file: Path, without: Sequence[str]) -> Scorecard:
    """Prices and fits; progress on standard error."""
    rows, unread = read(file)
    problem = calibration.problem(rows)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        sources = {line.get("source_id") or "": line.get("source") or "" for line in csv.DictReader(stream)}
    return Scorecard(
        file=file,
        rows=rows,
        unread=unread,
        sources=sources,
        seen=np.asarray(problem.predict(calibration.published()).seconds / problem.seconds),
        held={name: _held_out(problem, name, key) for name, key in HELD.items() if name in without},
        full=np.array([row.complete for row in rows]),
    )


def _held_out(problem: Problem, name: str, key: Callable[[Measurement], str]) -> Array:
    def tell(left_out: str) -> None:
        print(f"\r{name}: without {left_out[:40]:40}", end="", file=sys.stderr)

    found = calibration.held_out(problem, key, each=tell)
    print(file=sys.stderr)
    return found


INTRODUCTION = """\
# Scorecard: predicted against measured training steps

Written by `python -m benchmarks.scorecard` on {date}, Python {python}, from {rows} published training steps; {unread}
more rows of the table can't be read, and are named at the end of [the rows](scorecard-rows.md). The measurements are
others', each with its source. The table is not part of this project: `--data FILE.csv` takes one like it.

Errors are of the step time, |predicted / measured - 1|; bias is the median of predicted / measured - 1, so above 0
predicts too slow. *Held out by model* means that each row was predicted by constants fitted without any row of its
model; likewise by system and by source. Those are the figures to expect for what was never measured; *seen* is how well
the constants fit what they were fitted to. Rows whose seconds follow from published model FLOPs alone ({counted}) leave
`step_time_s` open and are never fitted to. Rows are not independent: many are reruns of one recipe. How it works and
what it can't know: [sizing](sizing.md).

![Predicted against measured step time of every row, held out by {kind}](../scorecard.svg)

Both axes are seconds per step. The dashed lines are 10 % off. Each point was predicted without its {kind}.

## All rows
"""
ROWS = """\
# Scorecard: every row

Part of [the scorecard](scorecard.md), written by `python -m benchmarks.scorecard`. *Predicted* is with the published
constants; *held out*, the error without the row's {kind}. *Left open*: columns that matter and are assumed.
"""
ROW = (
    "row", "source", "system", "model", "precision", "GPUs", "layout", "measured, s", "predicted, s", "error",
    "held out", "left open",
)  # fmt: skip


def page(found: Scorecard) -> str:
    """The summary."""
    told = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "python": platform.python_version()}
    lines = [
        INTRODUCTION.format(
            rows=len(found.rows),
            unread=len(found.unread),
            counted=sum(row.from_flops for row in found.rows),
            kind=found.kind,
            **told,
        ),
        *_errors("constants fitted", _overall(found)),
        "",
        f"{_inside(found):.0%} of the rows lie in the band that `rackscale size` shows (a quantile of such errors).",
    ]
    for title, key in SUMMARIES.items():
        lines += ["", f"## By {title}, held out by {found.kind}", ""]
        lines += _errors(title, calibration.table(found.rows, found.ratio, key))
    for kind in found.held:
        lines += ["", f"## Each {kind}, predicted without it", ""]
        lines += _errors(kind, calibration.table(found.rows, found.held[kind], HELD[kind]))
    return "\n".join([*lines, *_farthest(found)]) + "\n"


def _farthest(found: Scorecard) -> list[str]:
    lines = ["", f"## Farthest off, predicted without their {found.kind}", ""]
    lines += [
        "| row | source | system | model | layout | measured, s | predicted, s | error |",
        "| --- " * 8 + "|",
    ]
    for place in np.argsort(-np.abs(found.ratio - 1.0))[:FARTHEST]:
        row, ratio = found.rows[place], found.ratio[place]
        what = f"{row.row} | {row.source} | {row.recipe.system} | {row.label} {row.recipe.precision} | {row.layout}"
        lines.append(f"| {what} | {row.seconds:,.3f} | {row.seconds * ratio:,.3f} | {ratio - 1:+.1%} |")
    return lines


def _overall(found: Scorecard) -> Iterable[tuple[str, Errors]]:
    every = {"on all rows (seen)": found.seen}
    every |= {f"without the row's {name} (held out)": ratio for name, ratio in found.held.items()}
    for name, ratio in every.items():
        yield name, calibration.errors(ratio)
        if found.full.any():
            yield f"{name}, rows that leave nothing open", calibration.errors(ratio[found.full])


def _errors(title: str, table: Iterable[tuple[str, Errors]]) -> list[str]:
    lines = [
        f"| {title} | rows | median | 90th percentile | worst | bias |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {name or '-'} | {e.rows} | {e.median:.1%} | {e.p90:.1%} | {e.worst:.1%} | {e.bias:+.1%} |"
        for name, e in table
    ]


def _inside(found: Scorecard) -> float:
    """Of predictions held out."""
    inside = []
    for row, ratio in zip(found.rows, found.ratio, strict=True):
        low, high = bands.band(row.recipe, experts=calibration.has_experts(row))
        inside.append(low <= 1.0 / ratio <= high)
    return float(np.mean(inside))


def rows_page(found: Scorecard) -> str:
    """Every row, then every source, then what can't be read."""
    lines = [ROWS.format(kind=found.kind), "| " + " | ".join(ROW) + " |", "| --- " * len(ROW) + "|"]
    for row, seen, held in zip(found.rows, found.seen, found.ratio, strict=True):
        cells = (
            row.row, row.source, row.recipe.system, row.label, row.recipe.precision, f"{row.layout.gpus:,}",
            str(row.layout),
            f"{row.seconds:,.3f}", f"{row.seconds * seen:,.3f}", f"{seen - 1:+.1%}", f"{held - 1:+.1%}",
            ", ".join(row.assumed),
        )  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    used = dict.fromkeys(row.source for row in found.rows)
    lines += ["", "## Sources", "", "| source | where |", "| --- | --- |"]
    lines += [f"| {name} | {_where(found.sources.get(name, ''))} |" for name in used]
    lines += ["", "## Rows that can't be read", "", "| row | line | why |", "| --- | --- | --- |"]
    lines += [f"| {bad.row} | {bad.line} | {bad.reason.replace('|', ' ')} |" for bad in found.unread]
    return "\n".join(lines) + "\n"


def _where(source: str) -> str:
    """`github:OWNER/NAME:PATH` and addresses as code: pages must not depend on whether they can still be reached."""
    return "" if not source else f"`{re.sub(r'[`|]', ' ', source)}`"


HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 640" width="640" height="640"
 font-family="ui-sans-serif, Helvetica, Arial, sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fbfbf8"/><text x="320" y="628" text-anchor="middle">measured step</text>
<text transform="translate(14 320) rotate(-90)" text-anchor="middle">predicted without its {kind}</text>"""


def picture(found: Scorecard) -> str:
    """An SVG: log-log, the diagonal, 10 % lines, one point per row."""
    measured = np.array([row.seconds for row in found.rows])
    predicted = measured * found.ratio
    low = floor(log10(min(measured.min(), predicted.min())))
    high = ceil(log10(max(measured.max(), predicted.max())))
    scale = (WIDTH - 2 * MARGIN) / (high - low)

    def x(decade: float) -> float:
        return MARGIN + (decade - low) * scale

    def y(decade: float) -> float:
        return WIDTH - x(decade)

    parts = [HEAD.format(kind=found.kind)]
    for at in range(low, high + 1):
        cross = f"M{x(at):.1f} {y(low):.1f}V{y(high):.1f}M{x(low):.1f} {y(at):.1f}H{x(high):.1f}"
        parts += [
            f'<path d="{cross}" stroke="#ddd"/>',
            f'<text x="{x(at):.1f}" y="{y(low) + 18:.1f}" text-anchor="middle">{10.0**at:g} s</text>',
            f'<text x="{x(low) - 6:.1f}" y="{y(at) + 4:.1f}" text-anchor="end">{10.0**at:g} s</text>',
        ]
    for off in (0.0, log10(1.1), log10(0.9)):
        start, end = low + max(-off, 0.0), high - max(off, 0.0)
        dash = ' stroke-dasharray="4 3"' if off else ""
        line = f"M{x(start):.1f} {y(start + off):.1f}L{x(end):.1f} {y(end + off):.1f}"
        parts.append(f'<path d="{line}" stroke="#555"{dash}/>')
    for row, is_, said in zip(found.rows, measured, predicted, strict=True):
        parts.append(_point(row, x(log10(is_)), y(log10(said)), said))
    return "\n".join([*parts, *_legend(found.rows), "</svg>"]) + "\n"


def _chip(row: Measurement) -> str:
    return row.recipe.chip.split("-")[0]


def _point(row: Measurement, x: float, y: float, predicted: float) -> str:
    title = escape(
        f"{row.row} {row.label} {row.recipe.system}: {row.seconds:.3g} s, predicted {predicted:.3g} s"
    )
    colour = COLOURS.get(_chip(row), "#000000")
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.6">'
    return f"{circle}<title>{title}</title></circle>"


def _legend(rows: Sequence[Measurement]) -> list[str]:
    chips = [chip for chip in COLOURS if any(_chip(row) == chip for row in rows)]
    parts = []
    for place, chip in enumerate(chips):
        y = MARGIN + 16 + 18 * place
        count = sum(_chip(row) == chip for row in rows)
        parts += [
            f'<circle cx="{MARGIN + 14:.0f}" cy="{y:.0f}" r="4" fill="{COLOURS[chip]}"/>',
            f'<text x="{MARGIN + 24:.0f}" y="{y + 4:.0f}">{chip} ({count})</text>',
        ]
    return parts


if __name__ == "__main__":
    main()
