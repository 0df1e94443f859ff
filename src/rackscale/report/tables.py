"""Terminal tables. They take plain values and give `rich` renderables, so that a pipe gets plain text."""

from __future__ import annotations

from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from rackscale.events import Action
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.report import words

COLOURS = {
    Status.WAITING: "yellow", Status.STARTING: "cyan", Status.RUNNING: "green", Status.BROKEN: "red",
    Status.LEAVING: "magenta",
}  # fmt: skip
VERBS = {
    "START": "green", "RESTART": "cyan", "LEAVE": "magenta", "STOP": "magenta", "REQUEUE": "red", "CLEAR": "yellow",
    "UNCLAIM": "yellow", "REFUSE": "red",
}  # fmt: skip
DOMAINS_SHOWN = 40
GANGS_SHOWN = 60


def plain(*columns: str, title: str | None = None) -> Table:
    """The house style of a table: no boxes, headings in bold."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def actions(items: tuple[Action, ...]) -> Table:
    """What a plan would do, one line per action."""
    table = plain("action", "gang", "what and why")
    for item in items:
        verb, subject, sentence = words.action(item)
        table.add_row(Text(verb, style=VERBS[verb]), subject, Text(sentence))
    return table


def status(state: FleetState, now_s: float) -> Stack:
    """The fleet and its gangs, for `rackscale status`."""
    return Stack(_headline(state), Text(), _domains(state), Text(), _gangs(state, now_s))


def _headline(state: FleetState) -> Text:
    occupancy = state.occupancy
    gpus = held = free = down = 0
    for d, spec in enumerate(state.domains):
        gpus += spec.nodes * spec.gpus_per_node
        held += occupancy.held[d].bit_count() * spec.gpus_per_node
        free += occupancy.free[d].bit_count() * spec.gpus_per_node
        down += (occupancy.full[d] & ~occupancy.up[d]).bit_count() * spec.gpus_per_node
    share = f" ({held / gpus:.0%})" if gpus else ""
    return Text(
        f"{len(state.domains)} NVLink domains, {gpus} GPUs: {held} held{share}, {free} free,"
        f" {down} failed or drained; {len(state.gangs)} gangs, {state.waiting.size + len(state.claimants)} waiting"
    )


def _domains(state: FleetState) -> Table:
    table = plain("domain", "nodes", "gangs")
    shown = range(min(len(state.domains), DOMAINS_SHOWN))
    for d in shown:
        tenants = ", ".join(sorted(state.tenants.on[d]))
        table.add_row(state.domains[d].name, node_map(state, d), tenants)
    if len(state.domains) > DOMAINS_SHOWN:
        table.add_row("...", f"{len(state.domains) - DOMAINS_SHOWN} more domains", "--json shows all")
    return table


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
            gang.url or gang.cause,
        )  # fmt: skip
    for name, ended in list(state.ended.items())[-10:]:
        ago = f"{words.duration(max(0.0, now_s - ended.at_s))} ago"
        table.add_row(name, "", "", Text(ended.outcome, style="dim"), ago, str(ended.attempts), "-", "-", "")
    if len(ordered) > GANGS_SHOWN:
        table.add_row("...", *[""] * 7, f"{len(ordered) - GANGS_SHOWN} more gangs; --json shows all")
    return table
