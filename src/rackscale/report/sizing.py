"""The answer of `rackscale size` for people."""

from __future__ import annotations

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rackscale.report.tables import plain
from rackscale.report.words import duration, percent
from rackscale.sizing.memory import TIGHT
from rackscale.sizing.provenance import Input
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.size import Candidate, Sizing

BAR = 60
PARTS = {
    "products": ("█", "green", "matrix products"),
    "attention": ("▓", "cyan", "attention, state spaces"),
    "memory": ("▒", "blue", "norms, activations, quantisation, routing"),
    "recompute": ("▚", "magenta", "computed again"),
    "host": ("h", "yellow", "waits for the host"),
    "tensor": ("t", "red", "exposed messages, tensor parallel"),
    "context": ("c", "red", "exposed messages, context parallel"),
    "expert": ("e", "red", "exposed messages, expert parallel"),
    "pipeline": ("p", "red", "exposed messages, pipeline"),
    "data": ("d", "red", "exposed messages, data parallel"),
    "offload": ("m", "red", "waits for activations in host memory"),
    "bubble": ("░", "yellow", "the pipeline fills and drains"),
    "optimizer": ("o", "white", "optimizer"),
    "other": ("·", "white", "stragglers and the rest"),
}
"""How each part of a step is drawn, and what it is."""
EXPOSED = {"tensor": "TP", "context": "CP", "expert": "EP", "pipeline": "PP", "data": "DP"}
HOPELESS = 0.01
"""Below this goodput no end is told."""
SMALL = 0.0005
"""Shares of a step below this are not worth a line."""


def sizing(found: Sizing, recipe: Recipe, *, explain: bool) -> Stack:
    """Ranked layouts, then the best one's memory, time and money, then what all of it rests on."""
    parts: list[RenderableType] = [*_head(found, recipe), Text()]
    if not found.fitting:
        parts += [
            Text("nothing fits in memory", style="bold red"),
            *(Text(f"  {line}") for line in found.advice),
        ]
        parts += [Text(), Text("nearest to fitting:"), _layouts(found)]
    else:
        parts += [_layouts(found), Text(), *map(Text, _best(found, recipe))]
    if explain:
        parts += [Text(), *_where_time_goes(found), Text(), _groups(found), Text(), _memory(found)]
        parts += [Text(), _inputs(found)]
    else:
        parts += [Text(), *(Text(line, style="dim") for line in _inputs_in_short(found.inputs))]
    return Stack(*parts)


def _head(found: Sizing, recipe: Recipe) -> list[Text]:
    domains = max(found.gpus // found.domain_gpus, 1)
    near = min(found.domain_gpus, found.gpus)
    where = (
        f"{near} GPU{'s' if near > 1 else ''} in each of {domains} NVLink domains"
        if domains > 1
        else "one NVLink domain"
    )
    if recipe.leaf_gpus is not None and recipe.leaf_gpus < found.gpus:
        tight = recipe.network.oversubscription
        where += f", {recipe.leaf_gpus:,} under each leaf, " + (
            f"{tight:g}:1 above" if tight > 1.0 else "non-blocking above"
        )
    step = found.global_batch * found.sequence_tokens / 1e6
    return [
        Text(f"{found.model} on {found.gpus:,} x {recipe.chip} ({found.system}: {where})", style="bold"),
        Text(
            f"{recipe.task} in {recipe.precision}, {recipe.optimizer}, {recipe.family} of {recipe.year:.1f}"
        ),
        Text(
            f"global batch {found.global_batch:,} x {found.sequence_tokens:,} tokens = {step:,.1f} M tokens a step"
        ),
        Text(
            f"{found.considered:,} layouts considered; {found.fitting:,} of {found.divisions:,} divisions of the"
            " GPUs fit in memory" + (f", {found.tight:,} are tight" if found.tight else "")
        ),
    ]


def _layouts(found: Sizing) -> Table:
    names = ("layout", "step", "8 in 10 within", "tok/s/GPU", "MFU", "GB", "exposed %", "$/M tok")
    table = plain("", *names)
    for rank, one in enumerate(found.candidates, 1):
        shares = {short: one.seconds[name] / one.step_s for name, short in EXPOSED.items()}
        exposed = " ".join(f"{short} {100 * s:.1f}" for short, s in shares.items() if s >= 0.002)
        table.add_row(
            str(rank),
            str(one.layout),
            f"{one.step_s:,.3f} s",
            f"{one.low_s:,.2f}-{one.high_s:,.2f} s",
            f"{one.tokens_per_s_per_gpu:,.0f}",
            percent(one.mfu),
            Text(f"{one.total_bytes / 1e9:,.0f}", style="" if one.fits else "red"),
            exposed or "-",
            "-" if one.usd_per_million_tokens is None else f"{one.usd_per_million_tokens:,.3f}",
        )
    return table


def _best(found: Sizing, recipe: Recipe) -> list[str]:
    best = found.candidates[0]
    shape = best.offer.shape
    peak = f"MFU: of {found.peak_flop_per_s / 1e15:,.2f} PFLOP/s a GPU, the dense peak in {recipe.precision}"
    if recipe.is_low:
        peak += f"; of BF16's {percent(best.mfu * found.peak_flop_per_s / recipe.peak_bf16)}"
    gang = f"segments {shape.segments}, nodes_per_segment {shape.nodes_per_segment} on {best.offer.system}"
    return [
        f"memory of 1: {_memory_in_words(best, found.hbm_bytes)}",
        peak,
        f"one step in a hundred takes longer than {best.p99_s:,.3f} s ({best.p99_s / best.step_s - 1.0:+.1%})",
        _goodput(found),
        *_run(found, best),
        f"for the scheduler: {gang}",
        *_whole_domains(found, recipe),
    ]


def _whole_domains(found: Sizing, recipe: Recipe) -> list[str]:
    """Where the same GPUs would fill fewer domains without leaving spares."""
    whole = recipe.hardware.gpus
    if found.domain_gpus == whole or found.gpus <= whole or found.gpus % whole:
        return []
    used = found.gpus // found.domain_gpus
    spare = f"{used:,} domains keep {whole - found.domain_gpus} GPUs each free as spares"
    return [f"{spare}; --segment {whole} fills {found.gpus // whole:,} domains"]


def _memory_in_words(one: Candidate, room: float | None) -> str:
    parts = sorted(one.bytes.items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in parts if size >= 5e7)
    of = "" if room is None else f" of {room / 1e9:,.0f}"
    close = (
        ""
        if room is None or one.total_bytes * (1.0 + TIGHT) <= room
        else "; nearer to full than the estimate is sure"
    )
    return f"{one.total_bytes / 1e9:,.0f}{of} GB: {told}{close}"


def _goodput(found: Sizing) -> str:
    good = found.goodput
    if good.mean_between_failures_s == float("inf"):
        return f"goodput {percent(good.share)}: nothing fails"
    return (
        f"goodput {percent(good.share)}: a failure every {duration(good.mean_between_failures_s)} on average,"
        f" a checkpoint every {duration(good.interval_s)}"
    )


def _run(found: Sizing, best: Candidate) -> list[str]:
    if found.run_tokens is None or found.run_s is None:
        return []
    if found.goodput.share < HOPELESS:
        return ["the tokens are never reached: failures come faster than work is saved"]
    low, high = found.run_s * best.low_s / best.step_s, found.run_s * best.high_s / best.step_s
    unit, name = (86_400.0, "days") if low >= 2 * 86_400 else (3600.0, "hours")
    span = f"{found.run_s / unit:,.1f} {name} ({low / unit:,.1f} to {high / unit:,.1f})"
    scale, letter = next((s for s in ((1e12, " T"), (1e9, " G")) if found.run_tokens >= s[0]), (1.0, ""))
    tokens = f"{found.run_tokens / scale:g}{letter}"
    if found.run_usd is None:
        money = f"; nobody publishes a price of {found.system}: --price adds the money"
    else:
        money = f", {_dollars(found.run_usd)} ({_dollars(found.run_usd * low / found.run_s)} to"
        money += f" {_dollars(found.run_usd * high / found.run_s)})"
    return [f"{tokens} tokens: {span} with failures and checkpoints{money}"]


def _dollars(usd: float) -> str:
    return f"${usd / 1e6:,.2f} M" if usd >= 1e6 else f"${usd:,.0f}"


def _where_time_goes(found: Sizing) -> list[RenderableType]:
    """A bar per layout, all to the scale of the slowest one shown; the table is their legend."""
    longest = max(one.step_s for one in found.candidates)
    lines: list[RenderableType] = [Text("where the time goes", style="bold")]
    for rank, one in enumerate(found.candidates, 1):
        bar, drawn, so_far = Text(f"{rank} "), 0, 0.0
        for name, (symbol, style, _) in PARTS.items():
            so_far += one.seconds[name]
            cells = round(so_far / longest * BAR) - drawn
            bar.append(symbol * cells, style)
            drawn += cells
        bar.append(f" {one.step_s:,.3f} s")
        lines.append(bar)
    table = plain("", "part of the step", *(str(rank) for rank in range(1, len(found.candidates) + 1)))
    for name, (symbol, style, meaning) in PARTS.items():
        shares = [one.seconds[name] / one.step_s for one in found.candidates]
        if max(shares) > SMALL:
            table.add_row(Text(symbol, style), meaning, *map(percent, shares))
    return [*lines, Text(), table]


def _groups(found: Sizing) -> Table:
    """Of the first layout."""
    table = plain("groups of 1", "ranks", "lie")
    for group in found.candidates[0].groups:
        table.add_row(group.name, f"{group.ranks:,}", group.lies)
    return table


def _memory(found: Sizing) -> Table:
    table = plain("memory, GB", *(str(rank) for rank in range(1, len(found.candidates) + 1)))
    for name in found.candidates[0].bytes:
        table.add_row(name, *(f"{one.bytes[name] / 1e9:,.1f}" for one in found.candidates))
    table.add_row("total", *(f"{one.total_bytes / 1e9:,.1f}" for one in found.candidates))
    return table


def _inputs_in_short(inputs: tuple[Input, ...]) -> list[str]:
    """By what they rest on, and what was chosen with its value."""
    by: dict[str, list[str]] = {}
    for one in inputs:
        is_choice = one.provenance in {"given", "assumed"}
        by.setdefault(one.provenance, []).append(f"{one.name} {_value(one)}" if is_choice else one.name)
    order = ("given", "assumed", "measured", "vendor")
    lines = [f"{basis}: {', '.join(by[basis])}" for basis in order if basis in by]
    return [*lines, "--explain shows where time and memory go, and the source of every input"]


def _value(one: Input) -> str:
    value = f"{one.value:.5g}" if isinstance(one.value, float) else str(one.value)
    return f"{value} {one.unit}".strip()


def _inputs(found: Sizing) -> Table:
    table = plain("input", "value", "rests on", "source")
    for one in found.inputs:
        table.add_row(one.name, _value(one), one.provenance, one.source)
    return table
