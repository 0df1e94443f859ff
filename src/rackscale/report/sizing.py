"""The answer of `rackscale size` for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rackscale.report.columns import Bars, Blocks, Column, Either, Fitting, stacked
from rackscale.report.layouts import legend
from rackscale.report.quantities import scaled, seconds, span
from rackscale.report.tables import plain
from rackscale.report.words import duration, percent
from rackscale.sizing.memory import TIGHT
from rackscale.sizing.provenance import Input
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.size import Candidate, Sizing

BAR = 60
PARTS = {
    "products": ("█#", "green", "matrix products"),
    "attention": ("▓=", "cyan", "attention, state spaces"),
    "memory": ("▒-", "blue", "norms, activations, quantisation, routing"),
    "recompute": ("▚r", "magenta", "computed again"),
    "host": ("hh", "yellow", "waits for the host"),
    "tensor": ("tt", "red", "exposed messages, tensor parallel"),
    "context": ("cc", "red", "exposed messages, context parallel"),
    "expert": ("ee", "red", "exposed messages, expert parallel"),
    "pipeline": ("pp", "red", "exposed messages, pipeline"),
    "data": ("dd", "red", "exposed messages, data parallel"),
    "offload": ("mm", "red", "waits for activations in host memory"),
    "bubble": ("░~", "yellow", "the pipeline fills and drains"),
    "optimizer": ("oo", "white", "optimizer"),
    "other": ("·.", "white", "stragglers and the rest"),
}
"""How each part of a step is drawn, where there is more than ASCII and where there is not, and what it is."""
EXPOSED = {"tensor": "TP", "context": "CP", "expert": "EP", "pipeline": "PP", "data": "DP"}
HOPELESS = 0.01
"""Below this goodput no end is told."""
CHOSEN = "default: "
"""How the source of an input begins that was chosen where nothing was said."""
SMALL = 0.0005
"""Shares of a step below this are not worth a line."""
TOLD = 0.002
"""Kinds of messages below this share are not worth a place in the table."""
VERDICTS = {"out of memory": "short"}
"""Shorter words for the table."""
SCALED = {"FLOP/s": "FLOP/s", "bytes": "B", "bytes/s": "B/s", "bit/s": "bit/s"}
"""Units that take a prefix."""


def sizing(found: Sizing, recipe: Recipe, *, explain: bool, warnings: Sequence[str] = ()) -> Stack:
    """Ranked layouts, then the best one's memory, time and money, then what all of it rests on."""
    told = [Text(f"warning: {line}", style="yellow") for line in warnings]
    parts: list[RenderableType] = [*_head(found, recipe), *told, Text()]
    if not found.fitting:
        parts += [
            Text(
                "nothing is sure to fit in memory" if found.tight else "nothing fits in memory",
                style="bold red",
            ),
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
        f"{near} GPU{'s' if near > 1 else ''} in each of {domains:,} NVLink domains"
        if domains > 1
        else "one NVLink domain"
    )
    if recipe.leaf_gpus is not None and recipe.leaf_gpus < found.gpus:
        tight = recipe.network.oversubscription
        where += f", {recipe.leaf_gpus:,} under each leaf, " + (
            f"{tight:g}:1 above" if tight > 1.0 else "non-blocking above"
        )
    step = found.global_batch * found.sequence_tokens / 1e6
    has = f"{found.parameters / 1e9:,.1f} B parameters"
    if found.active_parameters < found.parameters:
        has += f", {found.active_parameters / 1e9:,.1f} B of them active"
    return [
        Text(f"{found.model} on {found.gpus:,} x {recipe.chip} ({found.system}: {where})", style="bold"),
        Text(
            f"{has}; {recipe.task} in {recipe.precision}, {recipe.optimizer}, {recipe.family} of {recipe.year:.1f}"
        ),
        Text(
            f"global batch {found.global_batch:,} x {found.sequence_tokens:,} tokens = {step:,.1f} M tokens a step"
        ),
        Text(
            f"{found.considered:,} layouts considered; {found.fitting:,} of {found.divisions:,} divisions of the"
            " GPUs fit in memory" + (f", {found.tight:,} are tight" if found.tight else "")
        ),
    ]


def _layouts(found: Sizing) -> Stack:
    """Wide: messages by kind. Narrower: in total, and then without what is told elsewhere too."""
    some = found.candidates
    kinds = [_exposed(one) for one in some]
    totals = [percent(one.exposed_s / one.step_s) for one in some]
    layout = [str(one.layout) for one in some]
    numbers = _numbers(found)
    money = [Column("$/M tok", [f"{one.usd_per_million_tokens or 0.0:,.3f}" for one in some])]
    if some[0].usd_per_million_tokens is None:
        money = []
    rank = Column("", [str(place) for place in range(1, len(some) + 1)])
    table = Fitting(
        *(
            (
                rank,
                Column("layout", layout, least),
                *numbers,
                Column("exposed %", [stacked(each, per_line) or "-" for each in kinds]),
                *money,
            )
            for least, per_line in ((28, 5), (22, 2))
        ),
        (rank, Column("layout", layout, 16), *numbers, Column("exposed", totals), *money),
        (rank, Column("layout", layout, 14), *numbers, Column("exposed", totals)),
        (rank, Column("layout", layout, 8), *numbers[:3]),
    )
    shown = any(kinds)
    told = ["exposed: messages that nothing hides, of the step's time"] if shown else []
    if any(one.verdict == "tight" for one in some):
        told.append("tight: nearer to full, or over it, than the estimate is sure")
    return Stack(table, Text(), legend((one.layout for one in some), *told))


def _exposed(one: Candidate) -> list[str]:
    shares = {short: one.seconds[name] / one.step_s for name, short in EXPOSED.items()}
    return [f"{short} {100 * share:.1f}" for short, share in shares.items() if share >= TOLD]


def _numbers(found: Sizing) -> list[Column]:
    some = found.candidates
    return [
        Column("step", [seconds(one.step_s) for one in some]),
        Column("8 in 10\nwithin", [span(one.low_s, one.high_s) for one in some]),
        Column("tok/s\nper GPU", [f"{one.tokens_per_s_per_gpu:,.0f}" for one in some]),
        Column("MFU", [percent(one.mfu) for one in some]),
        *_verdicts(some),
        Column(
            "GB",
            [Text(f"{one.total_bytes / 1e9:,.0f}", style="" if one.fits else "red") for one in some],
        ),
    ]


def _verdicts(some: Sequence[Candidate]) -> list[Column]:
    """Told only where not all fit."""
    if all(one.fits for one in some):
        return []
    return [Column("memory", [VERDICTS.get(one.verdict, one.verdict) for one in some])]


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
        *_faster(found),
        *found.advice,
        *_slowest(best),
        _goodput(found),
        *_run(found, best),
        f"for the scheduler: {gang}",
        *_whole_domains(found, recipe),
    ]


def _faster(found: Sizing) -> list[str]:
    one = found.faster
    if one is None or not found.fitting:
        return []
    need = f"needs {one.total_bytes / 1e9:,.0f} GB, which is tight"
    return [f"{one.layout} takes {seconds(one.step_s)}, but {need}: try it before you rely on it"]


def _slowest(best: Candidate) -> list[str]:
    over = best.p99_s / best.step_s - 1.0
    if over < SMALL:
        return []
    return [f"one step in a hundred takes longer than {seconds(best.p99_s)} ({over:+.1%})"]


def _whole_domains(found: Sizing, recipe: Recipe) -> list[str]:
    """Where the same GPUs would fill fewer domains without leaving spares, or hardly fill those that they take."""
    whole = recipe.hardware.gpus
    if found.gpus > whole and 2 * found.domain_gpus < whole:
        used, least = found.gpus // found.domain_gpus, -(-found.gpus // whole)
        near = [n for n in (found.gpus // whole * whole, least * whole) if n]
        told = " or ".join(f"{n:,}" for n in near)
        return [
            f"{used:,} domains are taken for what fits in {least:,}: segments are equal; {told} GPUs fill theirs"
        ]
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
    picture, in_ascii = (Stack(*_bars(found, drawn)) for drawn in (0, 1))
    return [Text("where the time goes", style="bold"), Either(picture, in_ascii)]


def _bars(found: Sizing, drawn: int) -> list[RenderableType]:
    """A bar per layout, all to the scale of the slowest one shown; the table is their legend."""
    some = found.candidates
    bars = Bars(
        [
            (
                str(rank),
                [(one.seconds[name], symbols[drawn], style) for name, (symbols, style, _) in PARTS.items()],
                seconds(one.step_s),
            )
            for rank, one in enumerate(some, 1)
        ],
        widest=BAR,
    )
    told = [name for name in PARTS if max(one.seconds[name] / one.step_s for one in some) > SMALL]
    table = Blocks(
        (
            Column("", [Text(PARTS[name][0][drawn], PARTS[name][1]) for name in told]),
            Column("part of the step", [PARTS[name][2] for name in told], 24),
        ),
        [
            Column(str(rank), [percent(one.seconds[name] / one.step_s) for name in told])
            for rank, one in enumerate(some, 1)
        ],
    )
    return [bars, Text(), table]


def _groups(found: Sizing) -> Table:
    """Of the first layout."""
    table = plain("groups of 1", "ranks", "lie")
    for group in found.candidates[0].groups:
        table.add_row(group.name, f"{group.ranks:,}", group.lies)
    return table


def _memory(found: Sizing) -> Blocks:
    names = list(found.candidates[0].bytes)
    return Blocks(
        (Column("memory, GB", [*names, "total"]),),
        [
            Column(str(rank), [f"{size / 1e9:,.1f}" for size in (*one.bytes.values(), one.total_bytes)])
            for rank, one in enumerate(found.candidates, 1)
        ],
    )


def _inputs_in_short(inputs: tuple[Input, ...]) -> list[str]:
    """What was given and what was chosen, with values; of the rest, how many rest on what."""
    given = [f"{one.name} {_value(one)}" for one in inputs if one.provenance == "given"]
    chosen = [f"{one.name} {_value(one)}" for one in inputs if one.source.startswith(CHOSEN)]
    others = [
        one.provenance for one in inputs if one.provenance != "given" and not one.source.startswith(CHOSEN)
    ]
    counts = [
        f"{others.count(basis)} {basis}" for basis in ("measured", "vendor", "assumed") if basis in others
    ]
    lines = [f"{title}: {'; '.join(told)}" for title, told in (("given", given), ("chosen", chosen)) if told]
    return [
        *lines,
        f"and {', '.join(counts)} inputs: --explain shows each with its source, and where time and memory go",
    ]


def _value(one: Input) -> str:
    if one.value is None or isinstance(one.value, str):
        return str(one.value)
    if one.unit in SCALED:
        return scaled(one.value, SCALED[one.unit])
    number = f"{one.value:,}" if type(one.value) is int else f"{one.value:.5g}"
    return f"{number} {one.unit}".strip()


def _inputs(found: Sizing) -> Fitting:
    name = Column("input", [one.name for one in found.inputs])
    basis = Column("rests on", [one.provenance for one in found.inputs])
    values, sources = [_value(one) for one in found.inputs], [one.source for one in found.inputs]
    return Fitting(
        (name, Column("value", values, 18), basis, Column("source", sources, 20)),
        (name, Column("value", values, 12), basis, Column("source", sources, 12)),
        (name, Column("value", values, 8), Column("source", sources, 8)),
    )
