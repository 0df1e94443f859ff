"""Nodes and domains by the names that people type; draining, undraining and repairing them."""

from __future__ import annotations

import re
from math import inf

from rackscale.commands.vocabulary import Answer, Drain, Repair, Undrain, count, done, refused, unchanged
from rackscale.errors import RackscaleError, UnknownNameError
from rackscale.events import Drained, Event, NodeRepaired, Undrained
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.health import LEMON
from rackscale.fleet.state import FleetState
from rackscale.spec.times import dated, span


def change_nodes(state: FleetState, command: Drain | Undrain | Repair, now_s: float) -> Answer:
    """Drain, undrain or repair a domain or a node."""
    domain, nodes = resolve(state, command.target)
    d = state.index[domain]
    mask = state.machines.mask(d, nodes)
    health = state.machines.health
    match command:
        case Drain():
            return _drain(state, command, domain, nodes, now_s)
        case Undrain():
            event: Event = Undrained(at_s=now_s, domain=domain, nodes=nodes)
            before = not (health.drained[d] | health.closures.get((d, LEMON), 0)) & mask
            so, what = "not drained", "no longer drained"
        case Repair():
            event = NodeRepaired(at_s=now_s, domain=domain, nodes=nodes)
            before, so, what = not health.failed[d] & mask, "not failed", "usable again"
    if before:
        return unchanged(f"{command.target} is {so} already")
    return done((event,), f"{command.target} is {what}")


def _drain(
    state: FleetState, command: Drain, domain: str, nodes: tuple[int, ...] | None, now_s: float
) -> Answer:
    deadline_s = command.deadline_s
    if deadline_s is not None and deadline_s <= now_s:
        return refused(
            ["the time by which gangs must have left has passed"], "leave it out: they leave at once"
        )
    d = state.index[domain]
    mask = state.machines.mask(d, nodes)
    gangs = _on(state, d, mask)
    by_s = -inf if deadline_s is None else deadline_s
    if state.drained[d] & mask == mask and not any(_leaves_sooner(state, gang, by_s) for gang in gangs):
        return unchanged(f"{command.target} is drained already")
    event = Drained(at_s=now_s, domain=domain, nodes=nodes, deadline_s=deadline_s)
    when = "" if deadline_s is None else f" within {span(deadline_s - now_s)}, by {dated(deadline_s)}"
    leave = f"{count(len(gangs), 'gang')} must leave{when}" if gangs else "no gang is there"
    return done((event,), f"{command.target} is drained; {leave}")


def gangs_on(state: FleetState, target: str) -> list[Gang]:
    """The gangs on a domain or a node. Raises UnknownNameError."""
    domain, nodes = resolve(state, target)
    d = state.index[domain]
    return _on(state, d, state.machines.mask(d, nodes))


def _on(state: FleetState, d: int, mask: int) -> list[Gang]:
    """The gangs on these nodes, with GPUs or without."""
    return [
        state.gangs[name]
        for books in (state.machines.gpu, state.machines.cpu)
        for name, held in books.tenants.on[d].items()
        if held & mask
    ]


def _leaves_sooner(state: FleetState, gang: Gang, by_s: float) -> bool:
    """Whether having to leave by then is news to the gang."""
    if gang.status not in (Status.STARTING, Status.RUNNING):
        return False
    tell_s = by_s - state.jobs[gang.job].durability.grace_s
    return tell_s < state.evacuating.get(gang.name, (inf, ""))[0]


def resolve(state: FleetState, name: str) -> tuple[str, tuple[int, ...] | None]:
    """A domain's name and its nodes (None: all of it) from what people type. Raises UnknownNameError."""
    domains = _domains(state, name)
    node = None
    if not domains and (parts := re.fullmatch(r"(.+)/n([0-9]+)", name)):
        node = int(parts[2])
        domains = [d for d in _domains(state, parts[1]) if node < state.domains[state.index[d]].nodes]
    if not domains:
        raise UnknownNameError("NVLink domain or node", name, state.index)
    if len(domains) > 1:
        raise RackscaleError(f"{name!r} is in several clusters", hint=f"say {' or '.join(domains)}")
    return domains[0], None if node is None else (node,)


def called(domain: str, nodes: tuple[int, ...] | None) -> str:
    """What `resolve` takes: the domain, or nodes of it as `us-007/n03+n04`."""
    return domain if nodes is None else f"{domain}/{'+'.join(f'n{node:02d}' for node in nodes)}"


def _domains(state: FleetState, name: str) -> list[str]:
    if name in state.index:
        return [name]
    return [domain for domain in state.index if domain.endswith(f"/{name}")]
