"""Capacity that is expected, comes, and goes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from rackscale.commands.nodes import resolve
from rackscale.commands.vocabulary import Announce, Answer, Deliver, Extend, count, done, refused, unchanged
from rackscale.errors import RackscaleError
from rackscale.events import Announced, Delivered, DomainSpec, Event, Extended
from rackscale.fleet.health import EXPIRED
from rackscale.fleet.state import FleetState
from rackscale.spec.times import span

_FIXED = "a domain can't change once it is known: restore its document, or give new domains new names"


def deliver(state: FleetState, command: Deliver, now_s: float) -> Answer:
    """Take domains into the fleet. Where one goes back at another time than was said, that is new, too."""
    problems = _wrong(state, command.domains, "delivered")
    if problems:
        return refused(problems, _FIXED)
    absent = state.machines.health.absent
    new = [s for s in command.domains if s.name not in state.index or absent[state.index[s.name]]]
    moved = _moved(state, command.domains, now_s)
    if not new and not moved:
        return unchanged(f"{count(len(command.domains), 'NVLink domain')} already there")
    events: list[Event] = [Delivered(at_s=now_s, domains=tuple(new))] if new else []
    events += [Extended(at_s=now_s, domains=names, expires_s=at_s) for at_s, names in moved.items()]
    said = [f"delivered {count(len(new), 'NVLink domain')}"] if new else []
    if moved:
        total = sum(map(len, moved.values()))
        said.append(f"changed when {count(total, 'NVLink domain')} go{'es' if total == 1 else ''} back")
    return done(tuple(events), ", ".join(said))


def announce(state: FleetState, command: Announce, now_s: float) -> Answer:
    """Expect domains, or expect them at another time."""
    health = state.machines.health
    problems = _wrong(state, command.domains, "announced")
    problems += [
        f"{s.name}: is in the fleet already"
        for s in command.domains
        if s.name in state.index and not health.absent[state.index[s.name]]
    ]
    if problems:
        return refused(problems, _FIXED)
    expected = {s.name: health.ready_s.get(state.index.get(s.name, -1)) for s in command.domains}
    new = tuple(s for s in command.domains if expected[s.name] != command.ready_s)
    if not new:
        return unchanged(f"{count(len(command.domains), 'NVLink domain')} already expected then")
    if command.ready_s <= now_s:
        return refused(["the time of delivery has passed"], "say when they are expected, or deliver them")
    event = Announced(at_s=now_s, ready_s=command.ready_s, domains=new)
    return done((event,), f"expecting {count(len(new), 'NVLink domain')} in {span(command.ready_s - now_s)}")


def _wrong(state: FleetState, domains: Sequence[DomainSpec], what: str) -> list[str]:
    names = Counter(spec.name for spec in domains)
    problems = [f"{name}: {what} {n} times at once" for name, n in names.items() if n > 1]
    for spec in domains:
        d = state.index.get(spec.name)
        if d is not None and replace(state.domains[d], expires_s=spec.expires_s) != spec:
            problems.append(f"{spec.name}: is known already, and different")
        if spec.expires_s is not None and d is None and spec.expires_s <= state.now_s:
            problems.append(f"{spec.name}: its capacity has gone back already")
    return problems


def expires_s(state: FleetState, d: int) -> float | None:
    """When the capacity of domain d goes back, or went back; None: it stays."""
    calendar = state.machines.calendar
    coming = next((w.start_s for w in calendar.on.get(d, ()) if w.name == EXPIRED), None)
    return state.now_s if coming is None and (d, EXPIRED) in state.machines.health.closures else coming


def _moved(
    state: FleetState, domains: Iterable[DomainSpec], now_s: float
) -> dict[float | None, tuple[str, ...]]:
    """New time of going back -> names of known domains that it is new for."""
    found: dict[float | None, tuple[str, ...]] = {}
    for spec in domains:
        d = state.index.get(spec.name)
        if d is None:
            continue
        before, after = expires_s(state, d), spec.expires_s
        gone = before is not None and after is not None and max(before, after) <= now_s
        if before != after and not gone:
            found[after] = (*found.get(after, ()), spec.name)
    return found


def extend(state: FleetState, command: Extend, now_s: float) -> Answer:
    """Say when the capacity of domains goes back."""
    names = []
    for target in command.domains:
        domain, nodes = resolve(state, target)
        if nodes is not None:
            raise RackscaleError(f"{target!r} is a node", hint="capacity goes back by the NVLink domain")
        names.append(domain)
    if command.expires_s is not None and command.expires_s <= now_s:
        return refused(["the time at which the capacity goes back has passed"])
    new = tuple(n for n in names if expires_s(state, state.index[n]) != command.expires_s)
    if not new:
        return unchanged(f"{count(len(names), 'NVLink domain')} go back then already")
    event = Extended(at_s=now_s, domains=new, expires_s=command.expires_s)
    when = "stays" if command.expires_s is None else f"goes back in {span(command.expires_s - now_s)}"
    return done((event,), f"the capacity of {count(len(new), 'NVLink domain')} {when}")
