"""What domains have and what holds them: for `why` about gangs, and about domains themselves."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from math import inf

from msgspec.structs import replace

from rackscale.errors import UnknownNameError
from rackscale.fleet.health import EXPIRED
from rackscale.fleet.occupancy import members
from rackscale.fleet.state import FleetState
from rackscale.scheduler.answers import Coming, DomainRoom, Holder, NodeOut, WhyDomain

SHOWN = 5
HOLDERS_SHOWN = 8


def room_of(state: FleetState, d: int, needed: int) -> DomainRoom:
    """What domain d has of a segment of `needed` nodes, and who is in the way."""
    occupancy, name = state.occupancy, state.domains[d].name
    windows = state.machines.calendar.on.get(d, ())
    window = min(windows, key=lambda w: w.start_s, default=None)
    room = occupancy.room[d]
    return DomainRoom(
        domain=name, room=room, lacks=max(0, needed - room), spares=occupancy.spares[d],
        out=(occupancy.full[d] & ~occupancy.up[d]).bit_count(), held_by=_holders(state, d),
        kept_for=tuple(_kept(state, d)),
        promised_to=tuple(who for who, promise in state.reserved.items() if name in promise.domains),
        window=None if window is None else window.name, window_start_s=None if window is None else window.start_s,
    )  # fmt: skip


def _room_on(state: FleetState, d: int, mask: int) -> DomainRoom:
    """The same of these nodes of domain d alone. Spares are a number of the domain, and promises are of its nodes."""
    occupancy, whole = state.occupancy, room_of(state, d, 0)
    return replace(
        whole, room=(occupancy.free[d] & mask).bit_count(), spares=0, held_by=_holders(state, d, mask),
        out=(mask & ~occupancy.up[d]).bit_count(), kept_for=tuple(_kept(state, d, mask)),
    )  # fmt: skip


def _holders(state: FleetState, d: int, within: int = -1) -> tuple[Holder, ...]:
    found = [
        (-(mask & within).bit_count(), name) for name, mask in state.tenants.on[d].items() if mask & within
    ]
    return tuple(
        Holder(gang=name, nodes=-nodes, expected_end_s=None if (end_s := _end_s(state, name)) == inf else end_s)
        for nodes, name in sorted(found)[:HOLDERS_SHOWN]
    )  # fmt: skip


def _end_s(state: FleetState, name: str) -> float:
    return state.machines.expected_end_s(state.gangs[name], state.machines.now_s)


def _kept(state: FleetState, d: int, within: int = -1) -> Iterator[str]:
    if not state.occupancy.claimed[d]:
        return
    for name, masks in state.claimants.items():
        if any(e == d and mask & within for e, mask in masks):
            yield name
    for name, binding in state.machines.calendar.holding.items():
        if any(e == d and mask & within for e, mask in state.machines.masks(binding)):
            yield f"@{name}"


def best_rooms(state: FleetState, within: int, needed: int) -> tuple[DomainRoom, ...]:
    """The domains that are closest to holding a segment: those with the most room, then those that have it soonest."""
    found: list[int] = []
    for bits in reversed(state.occupancy.buckets[1:]):
        for d in members(bits & within):
            found.append(d)
            if len(found) == SHOWN:
                return tuple(room_of(state, d, needed) for d in found)
    horizon, groups = state.machines.horizon, state.topology.groups(None, None)
    for _, d in merge(*(horizon.soonest(needed, state.machines.now_s, group.number) for group in groups)):
        if len(found) == SHOWN:
            break
        if within >> d & 1 and d not in found:
            found.append(d)
    for d in members(state.occupancy.buckets[0] & within):  # nobody knows when they have room
        if len(found) == SHOWN:
            break
        if d not in found:
            found.append(d)
    return tuple(room_of(state, d, needed) for d in found)


def why_domain(
    state: FleetState, domain: str, nodes: tuple[int, ...] | None = None, *, now_s: float | None = None
) -> WhyDomain:
    """What holds a domain (or one node of it), why it is out of use, and what is to come. Raises UnknownNameError."""
    d = state.index.get(domain)
    if d is None:
        raise UnknownNameError("NVLink domain", domain, state.index)
    mask = state.machines.mask(d, nodes)
    now_s = state.now_s if now_s is None else max(now_s, state.now_s)
    windows = sorted(state.machines.calendar.on.get(d, ()))
    return WhyDomain(
        domain=domain, node=nodes[0] if nodes else None, now_s=now_s,
        room=room_of(state, d, 0) if nodes is None else _room_on(state, d, mask),
        status=_status(state, d, mask), out=tuple(_outs(state, d, mask)),
        windows=tuple(
            Coming(
                name=w.name, nodes=tuple(members(w.mask & mask)), start_s=w.start_s,
                end_s=None if w.end_s == inf else w.end_s,
            )
            for w in windows
            if w.mask & mask
        ),
    )  # fmt: skip


def _status(state: FleetState, d: int, mask: int) -> str:
    occupancy = state.occupancy
    held, kept = occupancy.held[d] & mask, occupancy.claimed[d] & mask
    if held & state.drained[d]:
        return "draining"
    if held:
        return "held" if held == mask else "partly-held"
    if kept:
        return "kept"
    return "out" if not occupancy.up[d] & mask else "free"


def _outs(state: FleetState, d: int, mask: int) -> Iterator[NodeOut]:
    """Groups of nodes that are out, by cause."""
    health, calendar = state.machines.health, state.machines.calendar
    failed: dict[float | None, int] = {}
    for node in members(health.failed[d] & mask):
        back_s = health.back_s.get((d, node))
        failed[back_s] = failed.get(back_s, 0) | 1 << node
    for back_s, nodes in failed.items():
        yield NodeOut(
            nodes=tuple(members(nodes)), why="failed", back_s=back_s, failures=_failures(state, d, nodes)
        )
    for by_s, nodes in health.drains(d).items():
        if nodes & mask:
            yield NodeOut(nodes=tuple(members(nodes & mask)), why="drained", leave_by_s=by_s)
    if health.absent[d] & mask:
        yield NodeOut(
            nodes=tuple(members(health.absent[d] & mask)), why="announced", back_s=health.ready_s.get(d)
        )
    for (other, why), closed in health.closures.items():
        if other == d and closed & mask:
            window = calendar.open.get((why, d))
            back_s = window.end_s if window is not None and why != EXPIRED else None
            failures = _failures(state, d, closed & mask)
            yield NodeOut(nodes=tuple(members(closed & mask)), why=why, back_s=back_s, failures=failures)


def _failures(state: FleetState, d: int, mask: int) -> int:
    history = state.machines.health.history
    return max((len(history.get((d, node), ())) for node in members(mask)), default=0)
