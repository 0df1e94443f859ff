"""Sizes, scores and calibrations for people."""

from __future__ import annotations

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rackscale.report.tables import plain
from rackscale.report.words import duration
from rackscale.sizing.calibration import Errors
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.scoring import Calibrated, Score
from rackscale.sizing.size import Candidate, Sizing

BAR = 60
PARTS = {
    "products": ("█", "green"),
    "attention": ("▓", "cyan"),
    "memory": ("▒", "blue"),
    "recompute": ("▚", "magenta"),
    "host": ("h", "yellow"),
    "tensor": ("t", "red"),
    "context": ("c", "red"),
    "expert": ("e", "red"),
    "pipeline": ("p", "red"),
    "data": ("d", "red"),
    "bubble": ("░", "yellow"),
    "optimizer": ("o", "white"),
    "other": ("·", "white"),
}
"""How each part of a step is drawn."""
EXPOSED = ("tensor", "context", "expert", "pipeline", "data")
ROWS_SHOWN = 40


def percent(share: float, digits: int = 1) -> str:
    """0.123 as 12.3 %."""
    return f"{share * 100:.{digits}f} %"


def sizing(found: Sizing, recipe: Recipe, *, explain: bool) -> Stack:
    """The answer of `rackscale size`."""
    segments = max(found.gpus // found.domain_gpus, 1)
    head = (
        f"{found.model} on {found.gpus:,} x {recipe.chip} ({found.system}): {segments} NVLink domain"
        f"{'s' if segments > 1 else ''} x {found.domain_gpus} GPUs, {recipe.precision}, {recipe.task}"
    )
    parts: list[RenderableType] = [
        Text(head, style="bold"),
        Text(
            f"global batch {found.global_batch:,} x {found.tokens:,} tokens = {found.global_batch * found.tokens / 1e6:,.1f} M"
            f" tokens a step; {found.considered:,} layouts considered, {found.fitting:,} fit in memory"
        ),
        Text(),
    ]
    if not found.fitting:
        parts += [
            Text("out of memory", style="bold red"),
            *(Text("  " + line) for line in found.advice),
            Text(),
        ]
    parts += [_layouts(found), Text()]
    best = found.candidates[0]
    parts += [Text(line) for line in _best(found, best)]
    if explain:
        parts += [Text(), *_where_time_goes(found), Text(), _memory(found), Text(), _inputs(found)]
    else:
        sources = {
            name: [i.name for i in found.inputs if i.provenance == name]
            for name in ("measured", "vendor", "assumed")
        }
        parts.append(
            Text("inputs: " + "; ".join(f"{k}: {', '.join(v)}" for k, v in sources.items() if v), style="dim")
        )
        parts.append(
            Text(
                "--explain shows where the time and the memory go, and the source of every input", style="dim"
            )
        )
    return Stack(*parts)


def _layouts(found: Sizing) -> Table:
    table = plain(
        "", "layout", "step", "8 in 10 within", "tokens/s/GPU", "MFU", "memory", "exposed", "$/M tokens"
    )
    for rank, one in enumerate(found.candidates, 1):
        memory = f"{one.total_bytes / 1e9:,.0f} GB"
        if found.hbm_bytes:
            memory += f" of {found.hbm_bytes / 1e9:,.0f}"
        exposed = ", ".join(
            f"{name} {percent(one.seconds[name] / one.step_s)}"
            for name in EXPOSED
            if one.seconds[name] > 0.002 * one.step_s
        )
        table.add_row(
            str(rank),
            str(one.layout),
            f"{one.step_s:,.3f} s",
            f"{one.low_s:,.2f}-{one.high_s:,.2f} s",
            f"{one.tokens_per_s_per_gpu:,.0f}",
            percent(one.mfu),
            Text(memory, style="" if one.fits else "red"),
            exposed or "-",
            "-" if one.usd_per_million_tokens is None else f"{one.usd_per_million_tokens:,.3f}",
        )
    return table


def _best(found: Sizing, best: Candidate) -> list[str]:
    shape = best.offer.shape
    good = found.goodput
    lines = [
        f"for the scheduler: segments {shape.segments} x nodes {shape.nodes_per_segment} on {best.offer.system}",
        f"goodput {percent(good.share)}: a failure every {duration(good.mean_between_failures_s)} on average,"
        f" checkpoints every {duration(good.interval_s)}",
    ]
    if found.run_tokens is not None and found.run_s is not None:
        days = found.run_s / 86400.0
        money = "" if found.run_usd is None else f", ${found.run_usd / 1e6:,.2f} M"
        low, high = days * best.low_s / best.step_s, days * best.high_s / best.step_s
        lines.append(
            f"{found.run_tokens / 1e12:g} T tokens: {days:,.1f} days ({low:,.1f} to {high:,.1f}) with failures and"
            f" checkpoints{money}"
        )
    return lines


def _where_time_goes(found: Sizing) -> list[RenderableType]:
    """A bar per layout, all to the scale of the slowest one shown."""
    longest = max(one.step_s for one in found.candidates)
    lines: list[RenderableType] = [Text("where the time goes", style="bold")]
    for rank, one in enumerate(found.candidates, 1):
        bar, drawn, so_far = Text(f"{rank} "), 0, 0.0
        for name, (symbol, style) in PARTS.items():
            so_far += one.seconds[name]
            cells = round(so_far / longest * BAR) - drawn
            bar.append(symbol * cells, style)
            drawn += cells
        bar.append(f" {one.step_s:,.3f} s")
        lines.append(bar)
    table = plain("", "part", *(str(rank) for rank in range(1, len(found.candidates) + 1)))
    for name, (symbol, style) in PARTS.items():
        if any(one.seconds[name] > 0.0005 * one.step_s for one in found.candidates):
            cells = (
                f"{one.seconds[name]:,.3f} s {percent(one.seconds[name] / one.step_s)}"
                for one in found.candidates
            )
            table.add_row(Text(symbol, style), name, *cells)
    return [*lines, table]


def _memory(found: Sizing) -> Table:
    table = plain("memory", *(str(rank) for rank in range(1, len(found.candidates) + 1)))
    for name in found.candidates[0].bytes:
        table.add_row(name, *(f"{one.bytes[name] / 1e9:,.1f} GB" for one in found.candidates))
    table.add_row("total", *(f"{one.total_bytes / 1e9:,.1f} GB" for one in found.candidates))
    return table


def _inputs(found: Sizing) -> Table:
    table = plain("input", "value", "unit", "provenance", "source")
    for one in found.inputs:
        value = f"{one.value:.4g}" if isinstance(one.value, float) else str(one.value)
        table.add_row(one.name, value, one.unit, one.provenance, one.source)
    return table


def score(found: Score) -> Stack:
    """The answer of `rackscale score`."""
    parts: list[RenderableType] = []
    if found.rows:
        rows = plain(
            "row",
            "system",
            "model",
            "precision",
            "GPUs",
            "layout",
            "measured",
            "predicted",
            "8 in 10 within",
            "error",
            "assumed",
        )
        for one in found.rows:
            rows.add_row(
                one.row,
                one.system,
                one.model,
                one.precision,
                str(one.gpus),
                one.layout,
                f"{one.measured_s:,.3f} s",
                f"{one.predicted_s:,.3f} s",
                f"{one.low_s:,.2f}-{one.high_s:,.2f} s",
                Text(f"{one.error:+.1%}", style="red" if abs(one.error) > 0.2 else ""),
                ", ".join(one.assumed),
            )
        parts += [rows, Text()]
    if found.total is not None:
        table = _errors_table()
        _errors(table, "all", found.total)
        if found.complete is not None:
            _errors(table, "complete rows", found.complete)
        for kind, groups in found.by.items():
            for name, each in groups.items():
                _errors(table, f"{kind} {name}", each)
        parts += [
            table,
            Text(f"{percent(found.inside or 0.0, 0)} of rows lie in their band (8 in 10 should)"),
            Text(),
        ]
    if found.unread:
        parts.append(Text(f"{len(found.unread)} rows can't be read", style="bold yellow"))
        parts += [Text(f"  {found.file}:{bad.line}: {bad.row}: {bad.reason}") for bad in found.unread]
    return Stack(*parts)


def _errors_table() -> Table:
    return plain("", "rows", "median error", "90th percentile", "worst", "bias")


def _errors(table: Table, name: str, e: Errors) -> None:
    table.add_row(name, str(e.rows), percent(e.median), percent(e.p90), percent(e.worst), f"{e.bias:+.1%}")


def calibration(found: Calibrated) -> Stack:
    """The answer of `rackscale calibrate`."""
    table = _errors_table()
    _errors(table, "before, on rows held back", found.before)
    _errors(table, "after, on rows held back", found.after)
    moved = plain("constant", "new over published")
    for name, ratio in sorted(found.moved.items(), key=lambda item: -abs(item[1] - 1.0)):
        moved.add_row(name, f"{ratio:.2f}")
    parts: list[RenderableType] = [
        Text(f"{found.rows} rows, {found.held_back} of them held back", style="bold"), table, Text(), moved,
    ]  # fmt: skip
    if found.unread:
        parts.append(
            Text(f"{len(found.unread)} rows can't be read: {', '.join(bad.row for bad in found.unread)}")
        )
    return Stack(*parts)
