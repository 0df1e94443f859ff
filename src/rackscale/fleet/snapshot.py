"""The state as a value: everything that its fold has come to, and nothing that follows from the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from rackscale.events import Binding, DomainSpec, Reserve
from rackscale.fleet.calendar import Window
from rackscale.fleet.gangs import Ended, Gang, Status
from rackscale.fleet.health import EXPIRED
from rackscale.fleet.occupancy import mask_of, members
from rackscale.fleet.queues import Used
from rackscale.workload import Booking, Job, Maintenance, Policy, Queue

if TYPE_CHECKING:
    from rackscale.fleet.state import FleetState


class QueueUse(Struct, frozen=True, kw_only=True):
    """Decayed use of a queue's subtree, and of its users."""

    name: str
    used: Used
    users: dict[str, Used]


class Snapshot(Struct, frozen=True, kw_only=True):
    """The whole state as a value; masks are per domain."""

    now_s: float
    wake_at_s: float | None
    retry_at_s: float | None
    decided_s: float | None
    dirty: bool
    fresh: list[str]
    eased: list[str]
    grown: list[int]
    grown_cpu: list[int]
    next_seq: int
    domains: list[DomainSpec]
    failed: list[int]
    drained: list[int]
    ready_s: list[tuple[int, float]]
    closures: list[tuple[int, str, int]]
    back_s: list[tuple[int, int, float]]
    deadline_s: list[tuple[int, int, float]]
    history: list[tuple[int, int, tuple[float, ...]]]
    suspects: list[tuple[int, int]]
    windows: list[Window]
    begun: list[Window]
    maintenance: list[Maintenance]
    bookings: list[Booking]
    holding: dict[str, Binding]
    reserved: dict[str, Reserve]
    policy: Policy
    queues: list[Queue]
    uses: list[QueueUse]
    queue_evictions: dict[str, tuple[int, int]]
    evacuating: dict[str, tuple[float | None, str]]
    jobs: list[Job]
    gangs: list[Gang]
    ended: dict[str, Ended]


def write(state: FleetState) -> bytes:
    machines = state.machines
    health, calendar = machines.health, machines.calendar
    finite = state.decided_s > float("-inf")
    value = Snapshot(
        now_s=state.now_s, wake_at_s=state.wake_at_s, retry_at_s=state.retry_at_s,
        decided_s=state.decided_s if finite else None, dirty=state.dirty,
        fresh=sorted(state.fresh), eased=sorted(state.eased),
        grown=list(members(machines.gpu.occupancy.grown)), grown_cpu=list(members(machines.cpu.occupancy.grown)),
        next_seq=state.next_seq, domains=state.domains, failed=health.failed, drained=health.drained,
        ready_s=sorted(health.ready_s.items()),
        closures=sorted((d, why, mask) for (d, why), mask in health.closures.items()),
        back_s=sorted((d, node, at_s) for (d, node), at_s in health.back_s.items()),
        deadline_s=sorted((d, node, at_s) for (d, node), at_s in health.deadline_s.items()),
        history=sorted((d, node, times) for (d, node), times in health.history.items()),
        suspects=list(health.suspects),
        windows=[window for window in calendar.coming if window.name != EXPIRED],
        begun=sorted(calendar.open.values()),
        maintenance=list(calendar.maintenance.values()), bookings=list(calendar.bookings.values()),
        holding=calendar.holding, reserved=state.reserved, policy=state.policy, queues=list(state.queues.values()),
        uses=[
            QueueUse(name=n, used=node.used, users=node.users)
            for n, node in sorted(state.tree.nodes.items())
            if node.users or node.used != Used()  # asking about a queue that nobody configured leaves no trace
        ],
        queue_evictions=state.queue_evictions,
        evacuating={
            name: (None if at_s == float("-inf") else at_s, why)
            for name, (at_s, why) in sorted(state.evacuating.items())
        },
        jobs=list(state.jobs.values()), gangs=list(state.gangs.values()), ended=state.ended,
    )  # fmt: skip
    return msgspec.json.encode(value)


def read(state: FleetState, data: bytes) -> FleetState:
    """Fill an empty state. Raises msgspec.ValidationError."""
    value = msgspec.json.decode(data, type=Snapshot)
    state.policy = value.policy
    state.queues = {queue.name: queue for queue in value.queues}
    state.queue_evictions, state.ended = value.queue_evictions, value.ended
    state.now_s = state.machines.now_s = value.now_s
    state.jobs.update((job.name, job) for job in value.jobs)
    _machines(state, value)
    for gang in value.gangs:
        _reinstate(state, gang)
    state.regroup()
    for use in value.uses:
        node = state.tree.node(use.name)
        node.used, node.users = use.used, use.users
    state.evacuating = {
        name: (float("-inf") if at_s is None else at_s, why) for name, (at_s, why) in value.evacuating.items()
    }
    state.reserved = value.reserved
    state.wake_at_s, state.retry_at_s, state.dirty = value.wake_at_s, value.retry_at_s, value.dirty
    state.decided_s = float("-inf") if value.decided_s is None else value.decided_s
    state.fresh, state.eased, state.next_seq = set(value.fresh), set(value.eased), value.next_seq
    state.machines.gpu.occupancy.grown = mask_of(tuple(value.grown))
    state.machines.cpu.occupancy.grown = mask_of(tuple(value.grown_cpu))
    return state


def _machines(state: FleetState, value: Snapshot) -> None:
    machines = state.machines
    health, calendar = machines.health, machines.calendar
    machines.policy = value.policy
    ready_s = dict(value.ready_s)
    for d, spec in enumerate(value.domains):
        machines.add(spec, ready_s=ready_s.get(d))
    health.failed[:], health.drained[:] = value.failed, value.drained
    for d, why, mask in value.closures:
        health.close(d, mask, why)
        if why == EXPIRED:
            calendar.begin(why, d)
    health.back_s = {(d, node): at_s for d, node, at_s in value.back_s}
    health.deadline_s = {(d, node): at_s for d, node, at_s in value.deadline_s}
    health.history = {(d, node): times for d, node, times in value.history}
    health.suspects = dict.fromkeys(value.suspects)
    for d in range(len(value.domains)):
        machines.refresh(d)
    for window in value.windows:
        calendar.add(window)
    calendar.open = {(window.name, window.d): window for window in value.begun}
    calendar.maintenance = {maintenance.name: maintenance for maintenance in value.maintenance}
    calendar.bookings = {booking.name: booking for booking in value.bookings}
    calendar.holding = value.holding
    for binding in value.holding.values():
        for d, mask in machines.masks(binding):
            machines.gpu.occupancy.claim(d, mask)


def _reinstate(state: FleetState, gang: Gang) -> None:
    """Put a gang record back, with every index that follows from it; lines and quotas are worked out later."""
    state.gangs[gang.name] = gang
    job = state.jobs[gang.job]
    if gang.binding:
        state.machines.hold(gang, job, state.level(gang))
        if job.elastic and job.offers:
            state.elastic[gang.name] = None
    if gang.claim:
        masks = state.claimants[gang.name] = state.machines.masks(gang.claim)
        for d, mask in masks:
            state.occupancy.claim(d, mask)
    if gang.status is Status.BROKEN:
        state.broken[gang.name] = None
    elif gang.status is Status.LEAVING:
        state.leaving[gang.name] = None
    if gang.paused_until_s is not None:
        state.pause(gang)
    if gang.cancelled and gang.status not in (Status.WAITING, Status.LEAVING):
        state.stopping[gang.name] = None
