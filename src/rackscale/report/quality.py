"""Quality metrics for people."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rackscale.capacity.quality import Quality, Share
from rackscale.capacity.waits import Spread
from rackscale.report.tables import plain
from rackscale.report.words import duration, percent

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 72


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """Shares (0 to 1) as a row of blocks, averaged down to `width`; a dot where there is none."""
    columns = min(width, len(values))
    line = []
    for i in range(columns):
        first, last = i * len(values) // columns, (i + 1) * len(values) // columns
        known = [value for value in values[first : max(last, first + 1)] if value is not None]
        line.append(BLOCKS[min(8, max(0, round(sum(known) / len(known) * 8)))] if known else "·")
    return "".join(line)


def quality(found: Quality) -> Stack:
    """All of it, for `rackscale quality`."""
    span = duration(found.until_s - found.since_s)
    head = f"{found.gpus:,} GPUs for {span}: {found.delivered_gpu_h:,.1f} GPU-h delivered"
    if found.undelivered_gpu_h:
        head += f", {found.undelivered_gpu_h:,.1f} GPU-h promised and not there"
    parts: list[RenderableType] = [Text(head, style="bold"), Text(), *_shares(found), Text()]
    for table in (_waits(found), _placements(found), _badput(found), _recoveries(found)):
        if table.row_count:
            parts += [table, Text()]
    return Stack(*parts, _departures(found))


def block(found: Quality) -> Stack:
    """The short of it, below a rehearsal."""
    return Stack(*_shares(found))


def _shares(found: Quality) -> list[Text]:
    return [
        _curve("GAR", "GPUs held, of those in service", found.gar, "green"),
        _curve("GFR", "domains broken open, of all", found.gfr, "yellow"),
        Text(
            f"SOR  {percent(found.sor)} of delivered GPU-time held; goodput {percent(found.goodput)} of that,"
            f" {percent(found.goodput_of_capacity)} of capacity; lost work"
            f" {percent(found.lost_of_capacity, 3)} of capacity; stranded {percent(found.stranded_of_free)} of what was"
            " free"
        ),
    ]


def _curve(name: str, meaning: str, share: Share, colour: str) -> Text:
    return Text.assemble(
        f"{name}  ", (sparkline(share.curve), colour), f"  mean {percent(share.mean)}  ", (meaning, "dim")
    )


def _waits(found: Quality) -> Table:
    table = plain("priority", "gang size", *_SPREAD, title="JWTD: waits for the first start")
    for wait in found.waits:
        table.add_row(wait.priority, wait.size, *_spread(wait.waits))
    return table


_SPREAD = ("done", "p50", "p90", "p95", "p99", "max", "still open")


def _spread(times: Spread) -> tuple[str, ...]:
    """Cells for `_SPREAD`. A quantile that is no shorter than a time still open is a lower bound."""
    exact_s = inf if times.shortest_open_s is None else times.shortest_open_s
    still = f"{times.open:,} (longest {duration(times.longest_open_s)})" if times.open else "-"
    quantiles = (times.p50_s, times.p90_s, times.p95_s, times.p99_s, times.max_s)
    return (f"{times.done:,}", *("≥ " * (value >= exact_s) + duration(value) for value in quantiles), still)


def _placements(found: Quality) -> Table:
    table = plain(
        "level", "gang size", "starts", "at the least", "mean", "p95", "max",
        title="JTTED: units spanned, as a multiple of the least (gangs of several segments)",
    )  # fmt: skip
    for span in found.placements:
        table.add_row(
            span.level, span.size, f"{span.starts:,}", percent(span.at_least), f"{span.mean:.2f}", f"{span.p95:.2f}",
            f"{span.max:.2f}",
        )  # fmt: skip
    return table


def _badput(found: Quality) -> Table:
    table = plain(
        "badput", "state", "cause", "GPU-h", "of held", "of capacity", title="badput: held, and no progress"
    )
    for part in found.badput:
        table.add_row(
            part.name, part.state, part.cause or "-", f"{part.gpu_h:,.1f}", percent(part.of_held, 2),
            percent(part.of_capacity, 3),
        )  # fmt: skip
    return table


def _recoveries(found: Quality) -> Table:
    table = plain("interrupted by", *_SPREAD, title="time to recover: until the gang worked again")
    for recovery in found.recoveries:
        table.add_row(recovery.cause, *_spread(recovery.times))
    return table


def _departures(found: Quality) -> Text:
    parts = [
        f"{verb}: " + ", ".join(f"{count:,} {cause}" for cause, count in causes.items())
        for verb, causes in found.departures.items()
    ]
    return Text("; ".join(parts) or "nobody had to leave")
