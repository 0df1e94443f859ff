"""why: what the scheduler knows of a job, a place or a plan for one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group as Stack
from rich.text import Text

from rackscale.cli.output import JsonOption, SiteOption, show
from rackscale.cli.site import Site
from rackscale.commands import resolve
from rackscale.errors import UnknownNameError
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal
from rackscale.report import because, tables, words
from rackscale.scheduler.answers import Why, WhyBooking, WhyDomain, WhyMaintenance
from rackscale.scheduler.explain import why as explain
from rackscale.scheduler.planned import BOOKING, planned, why_planned
from rackscale.scheduler.rooms import why_domain

RECENT = 20_000
"""Events of the journal that past departures are told from, the last ones."""
UNBLOCKS_SHOWN = 6


def why(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A job, one gang of a service (`chat/0`), a domain (`us-007`), a node (`us-007/n03`), a booking"
            " (`review`, or `@review` where a job is called so too) or a maintenance. Left out: all bookings and"
            " maintenance.",
            show_default=False,
        ),
    ] = None,
    site: SiteOption = Path(),
    json: JsonOption = False,
) -> None:
    """Say why a job waits, runs where it does, was told to leave, or ended; and the cheapest way to unblock it.

    Of a domain or a node: what holds it, why it is out of use, and what is to come. Of a booking or a maintenance:
    when, where, who runs in it, and who leaves for it.

    Examples: `rackscale why exp-812`, `rackscale why us-007`, `rackscale why review`, `rackscale why`
    """
    with Site(site).journal() as journal:
        state = journal.load()
        now_s = max(time.time(), state.now_s)
        if name is None:
            plans = planned(state, now_s=now_s)
            show(plans, tables.planned(plans), json=json)
            return
        found = _about(journal, state, name, now_s)
    if isinstance(found, tuple):
        show(found, Stack(*_all_explained(found)), json=json)
    elif isinstance(found, WhyDomain):
        show(found, _domain_explained(found), json=json)
    else:
        show(found, _plan_explained(found), json=json)


def _about(
    journal: Journal, state: FleetState, name: str, now_s: float
) -> tuple[Why, ...] | WhyDomain | WhyBooking | WhyMaintenance:
    """What the name means: a job before a place, and that before a plan. Raises UnknownNameError, with all of them."""
    try:
        recent = journal.events(max(0, journal.seq - RECENT))
        return explain(state, name, recent, now_s=now_s)
    except UnknownNameError:
        pass
    try:
        return why_domain(state, *resolve(state, name), now_s=now_s)
    except UnknownNameError:
        pass
    try:
        return why_planned(state, name, now_s=now_s)
    except UnknownNameError:
        calendar = state.machines.calendar
        known = [
            *state.jobs,
            *state.gangs,
            *state.ended,
            *state.index,
            *calendar.bookings,
            *calendar.maintenance,
        ]
        what = "job, NVLink domain, node, booking or maintenance"
        raise UnknownNameError(what, name, known) from None


def _plan_explained(answer: WhyBooking | WhyMaintenance) -> Stack:
    name = f"{BOOKING}{answer.name}" if isinstance(answer, WhyBooking) else answer.name
    head = Text.assemble((name, "bold"), "  ", (answer.status.upper(), "cyan"))
    return Stack(head, *(Text(f"  {text}") for text in because.planned(answer)))


def _all_explained(answers: tuple[Why, ...]) -> list[Stack | Text]:
    """The first gang of each kind of answer in full, the others by name."""
    alike: dict[tuple[str, str], list[Why]] = {}
    for each in answers:
        alike.setdefault((each.status, each.constraint), []).append(each)
    parts: list[Stack | Text] = []
    for first, *others in alike.values():
        parts.append(_explained(first))
        if others:
            parts.append(Text(f"  the same holds for {because.listed([other.gang for other in others])}"))
    return parts


def _domain_explained(answer: WhyDomain) -> Stack:
    name = answer.domain if answer.node is None else f"{answer.domain}/n{answer.node:02d}"
    head = Text.assemble((name, "bold"), "  ", (answer.status.upper(), "cyan"))
    return Stack(head, *(Text(f"  {text}") for text in because.domain(answer)))


def _explained(answer: Why) -> Stack:
    lasts = f" for {words.duration(answer.now_s - answer.since_s)}" if answer.since_s is not None else ""
    if answer.status == "ended":
        lasts = f"{lasts.replace(' for', '')} ago"
    status = (answer.status.upper() + lasts, "cyan")
    parts: list[object] = [Text.assemble((answer.gang, "bold"), "  ", status, "  ", because.sentence(answer))]
    parts += [Text(f"  {because.choice(c, answer)}") for c in answer.choices]
    if answer.placed is not None:
        parts += [Text(f"  {text}") for text in because.placed(answer)]
    parts += [Text(f"  {text}") for text in (because.line(answer),) if text]
    if answer.reservation is not None:
        parts.append(Text(f"  {because.reservation(answer.reservation, answer.now_s)}"))
    if answer.status == "waiting" and answer.domains and answer.constraint != "next-cycle":
        parts.append(tables.rooms(answer.domains, answer.now_s))
    for unblock in answer.unblocks[:UNBLOCKS_SHOWN]:
        mark = "cheapest unblock" if unblock.cheapest else "unblock"
        parts.append(Text(f"  {mark}: {because.unblock(unblock, answer.now_s)}"))
    parts += [
        Text(f"  {t}", style="dim") for t in (because.guards(answer), because.interruptions(answer)) if t
    ]
    if answer.status == "ended" and answer.largest:
        parts.append(Text(f"  {because.largest(answer.largest)}"))
    return Stack(*parts)  # type: ignore[arg-type]
