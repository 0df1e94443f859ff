"""What happened in a rehearsal, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from rackscale.report import quality
from rackscale.report.quality import sparkline
from rackscale.report.tables import plain
from rackscale.report.words import duration
from rackscale.twin import Rehearsal


def rehearsal(found: Rehearsal) -> Stack:
    """The whole answer: jobs, waits, interruptions, occupancy, where the GPU-hours went."""
    span = found.until_s - found.start_s
    events = sum(found.events.values())
    head = f"{found.gpus:,} GPUs for {duration(span)}, seed {found.seed}: " + ", ".join(
        f"{count:,} {what}" for what, count in found.jobs.items() if count
    )
    speed = f"{events:,} events in {found.wall_s:.1f} s ({found.events_per_s:,.0f} events/s)"
    return Stack(
        Text(head, style="bold"), Text(speed, style="dim"), Text(),
        _occupancy(found.occupancy), quality.block(found.quality), Text(),
        _waits(found), Text(),
        *_interruptions(found), Text(),
        _totals(found),
    )  # fmt: skip


def _occupancy(values: Sequence[float]) -> Text:
    mean = sum(values) / len(values) if values else 0.0
    return Text.assemble("occupancy  ", (sparkline(values), "green"), f"  mean {mean:.1%}")


def _waits(found: Rehearsal) -> Table:
    table = plain(
        "priority",
        "gang size",
        "started",
        "wait p50",
        "p95",
        "max",
        "still waiting",
        title="waits for the first start",
    )
    for wait in found.waits:
        still = f"{wait.waiting:,} (longest {duration(wait.longest_waiting_s)})" if wait.waiting else "-"
        table.add_row(
            wait.priority, wait.size, f"{wait.started:,}", duration(wait.p50_s), duration(wait.p95_s),
            duration(wait.max_s), still,
        )  # fmt: skip
    return table


def _interruptions(found: Rehearsal) -> list[Text]:
    """Failures, restarts and preemptions with what they cost."""
    lines = []
    if found.failures:
        kinds = ", ".join(f"{count:,} {cause}" for cause, count in found.failures.items())
        answers = ", ".join(f"{count:,} {how}" for how, count in found.restarts.items()) or "no gang was hit"
        cost = sum(found.failure_gpu_h.values())
        lines.append(
            Text(f"failures: {kinds}; {found.repairs:,} repairs; answered by {answers}; {cost:,.1f} GPU-h")
        )
    if found.departures:
        kinds = ", ".join(f"{count:,} {why}" for why, count in found.departures.items())
        parts = ", ".join(f"{state} {hours:,.1f}" for state, hours in found.preemption_gpu_h.items())
        lines.append(Text(f"told to leave: {kinds}; cost in GPU-h: {parts or 0}"))
    return lines or [Text("no failures and nobody had to leave")]


def _totals(found: Rehearsal) -> Table:
    table = plain("state", "GPU-h", "share", "USD", "", title="where the GPU-hours went")
    for total in sorted(found.totals, key=lambda t: -t.gpu_h):
        if total.gpu_h:
            usd = "-" if total.usd is None else f"{total.usd:,.0f}"
            bar = Text("█" * round(40 * total.share), "green")
            table.add_row(total.state, f"{total.gpu_h:,.1f}", f"{total.share:.2%}", usd, bar)
    return table
