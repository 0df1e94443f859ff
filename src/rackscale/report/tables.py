"""Terminal tables. They take plain values and give `rich` renderables, so that a pipe gets plain text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rackscale.audit import Audit, Score
from rackscale.events import Action, Forecast, Reserve
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import members
from rackscale.fleet.state import FleetState
from rackscale.report import because, words
from rackscale.scheduler.answers import DomainRoom, WhyBooking, WhyMaintenance
from rackscale.scheduler.planned import planned as all_planned

COLOURS = {
    Status.WAITING: "yellow", Status.STARTING: "cyan", Status.RUNNING: "green", Status.BROKEN: "red",
    Status.LEAVING: "magenta",
}  # fmt: skip
VERBS = {
    "START": "green", "RESTART": "cyan", "LEAVE": "magenta", "STOP": "magenta", "REQUEUE": "red", "CLEAR": "yellow",
    "UNCLAIM": "yellow", "REFUSE": "red", "MOVE": "magenta", "RESERVE": "blue", "UNRESERVE": "blue",
    "HOLD": "yellow", "FREE": "green", "CLOSE": "red", "OPEN": "green",
}  # fmt: skip
DOMAINS_SHOWN = 40
GANGS_SHOWN = 60


def plain(*columns: str, title: str | None = None) -> Table:
    """The house style of a table: no boxes, headings in bold."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def actions(items: tuple[Action, ...], *, verbose: bool = False) -> Table:
    """What a plan would do, one line per action; promises, which move nobody, in one line unless `verbose`."""
    table = plain("action", "gang", "what and why")
    promises = [] if verbose else [item for item in items if isinstance(item, Reserve)]
    folded = len(promises) > 1
    for item in items:
        if folded and isinstance(item, Reserve):
            continue
        verb, subject, sentence = words.action(item)
        table.add_row(Text(verb, style=VERBS[verb]), subject, Text(sentence))
    if folded:
        names = because.listed([promise.gang for promise in promises])
        sentence = f"nobody behind them may delay their start: {names} (--verbose says where)"
        table.add_row(Text("RESERVE", style=VERBS["RESERVE"]), f"{len(promises)} of them", Text(sentence))
    return table


def status(state: FleetState, now_s: float) -> Stack:
    """The fleet and its gangs, for `rackscale status`."""
    plans = all_planned(state, now_s=now_s)
    parts: list[RenderableType] = [
        _headline(state),
        Text(),
        _domains(state, now_s),
        Text(),
        _gangs(state, now_s),
    ]
    return Stack(*parts, *([Text(), planned(plans)] if plans else []))


def planned(plans: Sequence[WhyBooking | WhyMaintenance]) -> RenderableType:
    """Bookings and maintenance, one line each, by when they begin."""
    if not plans:
        return Text("no booking and no maintenance")
    table = plain("planned", "what", "status", "when", "where", "whom it concerns")
    for plan in plans:
        if isinstance(plan, WhyBooking):
            what, where = (
                f"booking, {plan.segments} x {plan.nodes_per_segment} nodes",
                because.listed(plan.domains),
            )
            whom = because.listed((*plan.jobs, *plan.waiting)) or f"queue {plan.queue}"
        else:
            what, where = "maintenance", because.place_of(plan)
            whom = because.listed([holder.gang for holder in plan.must_leave])
        table.add_row(plan.name, what, plan.status, because.times(plan), where or "-", whom or "-")
    return table


def _headline(state: FleetState) -> Text:
    occupancy = state.occupancy
    gpus = held = going = free = kept = 0
    for d, spec in enumerate(state.domains):
        up, on = occupancy.up[d], occupancy.held[d]
        gpus += spec.nodes * spec.gpus_per_node
        held += on.bit_count() * spec.gpus_per_node
        going += (on & ~up).bit_count() * spec.gpus_per_node
        free += occupancy.free[d].bit_count() * spec.gpus_per_node
        kept += (occupancy.claimed[d] & up & ~on).bit_count() * spec.gpus_per_node
    shares = [f"{held} held" + (f" ({held / gpus:.0%})" if gpus else "")]
    if going:
        shares[0] += f", {going} of them on nodes that are out of use"
    shares += [f"{free} free", *([f"{kept} kept"] if kept else [])]
    shares.append(f"{gpus - held - free - kept} out of use")
    waiting = sum(gang.status is Status.WAITING for gang in state.gangs.values())
    return Text(
        f"{len(state.domains)} NVLink domains, {gpus} GPUs: {', '.join(shares)};"
        f" {len(state.gangs)} gangs, {waiting} waiting"
    )


def _domains(state: FleetState, now_s: float) -> Table:
    table = plain("domain", "nodes", "gangs", "note")
    shown = range(min(len(state.domains), DOMAINS_SHOWN))
    for d in shown:
        tenants = ", ".join(sorted(state.tenants.on[d]))
        table.add_row(state.domains[d].name, node_map(state, d), tenants, _drains(state, d, now_s))
    if len(state.domains) > DOMAINS_SHOWN:
        table.add_row("...", f"{len(state.domains) - DOMAINS_SHOWN} more domains", "--json shows all")
    return table


def _drains(state: FleetState, d: int, now_s: float) -> str:
    """What is drained, and by when gangs must have left it."""
    notes = []
    for by_s, mask in state.machines.health.drains(d).items():
        nodes = "" if mask == state.occupancy.full[d] else f"{words.named(tuple(members(mask)))} "
        ends = (
            f", gangs leave within {words.duration(by_s - now_s)}"
            if by_s is not None and by_s > now_s
            else ""
        )
        notes.append(f"{nodes}drained{ends}")
    return "; ".join(notes)


def node_map(state: FleetState, d: int) -> Text:
    """One character per node: # held, . free, ! failed, - drained, ~ claimed."""
    occupancy = state.occupancy
    text = Text()
    for node in range(state.domains[d].nodes):
        bit = 1 << node
        if state.failed[d] & bit:
            text.append("!", "red")
        elif state.drained[d] & bit:
            text.append("-", "magenta")
        elif occupancy.held[d] & bit:
            text.append("#", "green")
        elif occupancy.claimed[d] & bit:
            text.append("~", "yellow")
        else:
            text.append(".", "dim")
    return text


def _gangs(state: FleetState, now_s: float) -> Table:
    table = plain("gang", "kind", "priority", "status", "for", "attempt", "where", "last checkpoint", "note")
    ordered = sorted(state.gangs.values(), key=lambda g: (g.status is Status.WAITING, g.order()))
    for gang in ordered[:GANGS_SHOWN]:
        job = state.jobs[gang.job]
        saved = "-" if gang.checkpoint_s is None else f"{words.duration(now_s - gang.checkpoint_s)} ago"
        if gang.step is not None:
            saved += f" (step {gang.step})"
        table.add_row(
            gang.name, job.kind, job.priority, Text(gang.status, style=COLOURS[gang.status]),
            words.duration(max(0.0, now_s - gang.since_s)), str(gang.attempt or "-"),
            words.place(gang.binding or gang.claim) if gang.binding or gang.claim else "-", saved,
            _note(state, gang, now_s),
        )  # fmt: skip
    for name, ended in list(state.ended.items())[-10:]:
        ago = f"{words.duration(max(0.0, now_s - ended.at_s))} ago"
        table.add_row(name, "", "", Text(ended.outcome, style="dim"), ago, str(ended.attempts), "-", "-", "")
    if len(ordered) > GANGS_SHOWN:
        table.add_row("...", *[""] * 7, f"{len(ordered) - GANGS_SHOWN} more gangs; --json shows all")
    return table


def _note(state: FleetState, gang: Gang, now_s: float) -> str:
    """Where it answers, or why it is where it is; and when it will be told to leave."""
    leaves = state.evacuating.get(gang.name)
    if gang.paused_until_s is not None:
        return f"{gang.cause}, pauses for {words.duration(max(0.0, gang.paused_until_s - now_s))}"
    if leaves is None:
        return gang.url or gang.cause
    told = f"told to leave in {words.duration(max(0.0, leaves[0] - now_s))} ({leaves[1]})"
    return f"{gang.url}, {told}" if gang.url else told


def rooms(items: tuple[DomainRoom, ...], now_s: float) -> Table:
    """The best domains for a gang that waits, and what each lacks."""
    table = plain("  domain", "free nodes", "lacks", "held by", "kept or promised", "out", "next maintenance")
    for item in items:
        held = [
            f"{h.gang} {h.nodes} ({'?' if h.expected_end_s is None else words.duration(h.expected_end_s - now_s)})"
            for h in item.held_by
        ]
        window = (
            ""
            if item.window_start_s is None
            else f"{item.window} in {words.duration(item.window_start_s - now_s)}"
        )
        kept = ", ".join(dict.fromkeys((*item.kept_for, *item.promised_to)))
        table.add_row(
            f"  {item.domain}", f"{item.room} + {item.spares} spare", str(item.lacks), ", ".join(held[:3]), kept,
            str(item.out or ""), window,
        )  # fmt: skip
    return table


def forecasts(items: tuple[Forecast, ...], now_s: float) -> Table:
    """When jobs would start and end, counted from now."""
    table = plain(
        "job", "starts in", "works from", "ends in", "makes leave", title="forecast: one run of the twin"
    )
    for item in items:
        starts, runs, ends = (
            "not within the horizon" if at_s is None else words.duration(max(0.0, at_s - now_s))
            for at_s in (item.start_s, item.running_s, item.end_s)
        )
        table.add_row(item.job, starts, runs, ends, ", ".join(item.victims) or "-")
    return table


def moved(items: tuple[Forecast, ...], now_s: float) -> Table:
    """When those that have to leave start and work again, counted from now; who ends before that is not touched."""
    table = plain("moves", "starts again in", "works again in")
    for item in items:
        if item.start_s is None and item.end_s is not None:
            ends = f"ends before, in {words.duration(max(0.0, item.end_s - now_s))}"
            table.add_row(item.job, ends, "-")
            continue
        again = (
            "not within the horizon" if at_s is None else words.duration(max(0.0, at_s - now_s))
            for at_s in (item.start_s, item.running_s)
        )
        table.add_row(item.job, *again)
    return table


def audit(rows: tuple[Audit, ...], score: Score) -> Stack:
    """Forecast beside outcome, one line per job."""
    table = plain("job", "outcome", "start", "end", "moved", "lost GPU-h", title="plan -> outcome")
    for row in rows:
        table.add_row(
            row.job, row.outcome,
            _arrow(words.duration(row.forecast.start_s), words.duration(row.actual.start_s)),
            _arrow(words.duration(row.forecast.end_s), words.duration(row.actual.end_s)),
            _arrow(", ".join(row.victims_forecast) or "-", ", ".join(row.victims) or "-"),
            _arrow(f"{row.lost_gpu_h_forecast:.2g}", f"{row.lost_gpu_h:.2g}"),
        )  # fmt: skip
    if not rows:
        return Stack(Text("no job was applied with a plan yet"))
    start, end = (
        "-" if error is None else words.duration(error)
        for error in (score.median_abs_start_error_s, score.median_abs_end_error_s)
    )
    summary = f"{score.jobs} finished: median error of the start {start}, of the end {end};"
    return Stack(table, Text(f"{summary} victims as planned in {score.victims_right} of {score.jobs}"))


def _arrow(planned: str, was: str) -> str:
    return planned if planned == was else f"{planned} -> {was}"


def hours(by_state: dict[str, float]) -> Table:
    """Where the GPU-hours went, largest first, with a bar."""
    total = sum(by_state.values())
    table = plain("state", "GPU-h", "share", "", title="where the GPU-hours went")
    for state, value in sorted(by_state.items(), key=lambda item: -item[1]):
        share = value / total if total else 0.0
        table.add_row(state, f"{value:.4g}", f"{share:.1%}", Text("█" * round(40 * share), "green"))
    table.add_row("all", f"{total:.4g}", "", "")
    return table
