"""Nodes that are kept, or out of use, from one time to another: bookings and maintenance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil
from typing import TypeVar

from msgspec.structs import replace

from rackscale.commands.jobs import unknown_names
from rackscale.commands.nodes import called, resolve
from rackscale.commands.vocabulary import Answer, count, done, joined, refused, unchanged
from rackscale.errors import UnknownNameError
from rackscale.events import Booked, Planned, Unbooked, Unplanned
from rackscale.fleet.state import FleetState
from rackscale.scheduler.bookable import Vacancy, crowded_out, vacancy
from rackscale.scheduler.fit import ever_fits
from rackscale.spec.times import dated, span
from rackscale.spec.windows import RESERVED
from rackscale.workload import NAME_RULE, Booking, Job, Maintenance

SAME_S = 1.0
"""Times of day that were typed differ by less than this if they are the same."""


def book(state: FleetState, booking: Booking, now_s: float, *, from_now: bool = False) -> Answer:
    """Keep nodes for somebody's jobs."""
    live = state.machines.calendar.bookings.get(booking.name)
    if live is not None and _is(live, booking, from_now=from_now):
        return unchanged(f"{booking.name} is booked already{_begins(live, now_s)}")
    problems = list(_untimely(booking, now_s))
    if live is not None:
        problems.append(_other(live, now_s, "unbook"))
    named = list(unknown_names(state, booking))
    if not named and not ever_fits(state, _as_job(booking)):
        shape = booking.shape
        named.append(f"no cluster could ever hold {shape.segments} x {shape.nodes_per_segment} nodes")
    if problems or named:
        return refused([f"{booking.name}: {problem}" for problem in (*problems, *named)])
    found = vacancy(state, booking, now_s)
    if not found.in_time(now_s):
        return refused([f"{booking.name}: {_crowded(found)}"], _instead(found, now_s))
    return done((Booked(at_s=now_s, booking=booking),), f"booked {booking.name}{_begins(booking, now_s)}")


def _crowded(found: Vacancy) -> str:
    """What is short, and why, in numbers."""
    shape = found.booking.shape
    nodes, roomy = shape.nodes_held_per_segment, found.roomy_domains
    has = {0: "no domain has", 1: "only 1 domain has"}.get(roomy, f"only {roomy} domains have")
    beside = f" beside {joined(found.beside)}" if found.beside else ""
    wanted = f"{shape.segments} x {nodes} nodes"
    return (
        f"there is no room for {wanted} at that time{beside}: {has} {count(nodes, 'node')} free for all of it"
    )


def _instead(found: Vacancy, now_s: float) -> str:
    """The next time that would do."""
    if found.start_s is None:
        return "no later time is known either: ask for fewer nodes, or call something off"
    lasts_s = found.booking.end_s - found.booking.start_s
    start_s = ceil(found.start_s)
    return (
        f"the next time that fits begins in {span(start_s - now_s)}:"
        f" --from {dated(start_s)} --until {dated(start_s + lasts_s)}"
    )


def _as_job(booking: Booking) -> Job:
    """What it asks for, as a job would."""
    return Job(
        name=booking.name,
        kind="batch",
        shape=booking.shape,
        system=booking.system,
        cluster=booking.cluster,
        nearness=booking.nearness,
    )


def unbook(state: FleetState, name: str, now_s: float) -> Answer:
    """Call a booking off, or end it."""
    bookings = state.machines.calendar.bookings
    if name not in bookings:
        raise UnknownNameError("booking", name, bookings)
    gangs = [g for g in state.gangs.values() if g.binding and state.jobs[g.job].booking == name]
    leaves = f"; {count(len(gangs), 'gang')} must leave" if gangs else ""
    return done((Unbooked(at_s=now_s, booking=name),), f"called off {name}{leaves}")


def maintain(state: FleetState, maintenance: Maintenance, now_s: float, *, from_now: bool = False) -> Answer:
    """Take nodes out of use for a time."""
    domain, nodes = resolve(state, maintenance.domain)
    if nodes is not None:
        maintenance = replace(maintenance, nodes=nodes)
    maintenance = replace(maintenance, domain=domain)
    live = state.machines.calendar.maintenance.get(maintenance.name)
    if live is not None and _is(live, maintenance, from_now=from_now):
        return unchanged(f"{maintenance.name} is planned already{_begins(live, now_s)}")
    problems = list(_untimely(maintenance, now_s))
    if live is not None:
        problems.append(_other(live, now_s, "unmaintain"))
    if maintenance.name in RESERVED:
        problems.append("the scheduler calls other closures so; choose another name")
    there = state.domains[state.index[domain]].nodes
    if any(node >= there for node in maintenance.nodes or ()):
        problems.append(f"{domain} has nodes 0 to {there - 1}")
    if problems:
        return refused([f"{maintenance.name}: {problem}" for problem in problems])
    event = Planned(at_s=now_s, maintenance=maintenance)
    message = (
        f"planned {maintenance.name} on {called(domain, maintenance.nodes)}{_begins(maintenance, now_s)}"
    )
    if state.machines.calendar.bookings:
        for late in crowded_out(state, maintenance, now_s):
            message += f"; booking {late.booking.name} no longer fits: {_crowded(late)}"
    return done((event,), message)


def unmaintain(state: FleetState, name: str, now_s: float) -> Answer:
    """Call a maintenance off, or end it."""
    if name not in state.machines.calendar.maintenance:
        raise UnknownNameError("maintenance", name, state.machines.calendar.maintenance)
    return done((Unplanned(at_s=now_s, maintenance=name),), f"called off {name}")


W = TypeVar("W", Booking, Maintenance)


def _is(live: W, asked: W, *, from_now: bool) -> bool:
    """Whether what is asked for is there already; `from_now`: also if it was asked for a little earlier."""
    if live == asked or not from_now:
        return live == asked
    pairs = (
        (live.start_s, asked.start_s),
        (live.end_s, asked.end_s),
        (live.end_s - live.start_s, asked.end_s - asked.start_s),
    )
    alike = replace(live, start_s=asked.start_s, end_s=asked.end_s) == asked
    return alike and any(abs(was_s - is_s) < SAME_S for was_s, is_s in pairs)


def _other(live: Booking | Maintenance, now_s: float, verb: str) -> str:
    kind = "booking" if isinstance(live, Booking) else "maintenance"
    return (
        f"a different {kind} of this name exists{_begins(live, now_s)};"
        f" call it off first: rackscale {verb} {live.name}"
    )


def _untimely(window: Booking | Maintenance, now_s: float) -> Iterator[str]:
    """What is wrong about its name and times."""
    if not re.fullmatch(NAME_RULE, window.name):
        yield "a name is letters, digits, '.', '_' or '-', and begins and ends with a letter or digit"
    if window.end_s <= window.start_s:
        yield "it must end after it begins"
    elif window.end_s <= now_s:
        yield "it is over already"


def _begins(window: Booking | Maintenance, now_s: float) -> str:
    lasts = span(window.end_s - max(window.start_s, now_s))
    begins = "at once" if window.start_s <= now_s else f"in {span(window.start_s - now_s)}"
    return f", which begins {begins} and lasts {lasts}"
