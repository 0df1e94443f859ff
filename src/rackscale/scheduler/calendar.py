"""What the calendar says is due: maintenance, capacity that goes back, lemons, bookings."""

from __future__ import annotations

from math import inf

from rackscale.events import Action, Binding, Close, Free, Hold, Open, Reason, Segment
from rackscale.fleet.gangs import Status
from rackscale.fleet.health import EXPIRED, LEMON
from rackscale.fleet.occupancy import lowest_nodes, mask_of, members
from rackscale.fleet.queues import Charge
from rackscale.fleet.state import FleetState
from rackscale.scheduler.clear import affordable, evict
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.fit import beside, bind, place, place_one
from rackscale.scheduler.preempt import Clearer
from rackscale.scheduler.price import Taker
from rackscale.scheduler.victims import Ask
from rackscale.workload import Booking, Job, Offer, Shape


def overdue(state: FleetState, now_s: float) -> list[Action]:
    """Nodes that go out of use or come back now, and bookings that are over. Nothing else is decided beside them."""
    calendar, health = state.machines.calendar, state.machines.health
    found: list[Action] = []
    for d, node in health.suspects:
        reason = Reason(code=LEMON, domain=state.domains[d].name, node=node)
        found.append(Close(domain=state.domains[d].name, nodes=(node,), reason=reason))
    for window in calendar.coming:
        if window.start_s > now_s:
            break
        nodes = None if window.mask == health.full[window.d] else tuple(members(window.mask))
        code = window.code
        reason = Reason(code=code, window=None if code == EXPIRED else window.name)
        found.append(Close(domain=state.domains[window.d].name, nodes=nodes, reason=reason))
    for window in sorted(calendar.open.values()):
        if window.end_s <= now_s:
            name, d = window.name, window.d
            nodes = None if window.mask == health.full[d] else tuple(members(window.mask))
            found.append(
                Open(
                    domain=state.domains[d].name, nodes=nodes, reason=Reason(code="maintenance", window=name)
                )
            )
    found += [
        Free(booking=name, reason=Reason(code="booking-over", window=name))
        for name, booking in calendar.bookings.items()
        if booking.end_s <= now_s
    ]
    return found


def mend_bookings(cycle: Cycle) -> None:
    """Replace nodes of bookings that went out of use: in their domain, else by a segment in another one."""
    state, calendar = cycle.state, cycle.state.machines.calendar
    for name, binding in calendar.holding.items():
        booking = calendar.bookings[name]
        for at, segment in enumerate(binding):
            d = state.index[segment.domain]
            dead = mask_of(segment.nodes) & ~state.occupancy.up[d] & ~_at_work(state, d)
            by = _replaced(cycle, booking, cycle.booked.get(name, binding), at, dead) if dead else None
            if by is None:
                continue
            now = cycle.booked.get(name, binding)
            cycle.booked[name] = (*now[:at], by, *now[at + 1 :])
            reason = Reason(
                code="booking-mended", window=name, domain=segment.domain, node=next(iter(members(dead)))
            )
            cycle.actions = [a for a in cycle.actions if not (isinstance(a, Hold) and a.booking == name)]
            cycle.actions.append(Hold(booking=name, binding=cycle.booked[name], reason=reason))
            cycle.retry = True  # its jobs may start there


def _at_work(state: FleetState, d: int) -> int:
    """Nodes of domain d that gangs go on with, drained or not."""
    found = 0
    for books in (state.machines.gpu, state.machines.cpu):
        for name, mask in books.tenants.on[d].items():
            if state.gangs[name].status in (Status.STARTING, Status.RUNNING):
                found |= mask
    return found


def _replaced(cycle: Cycle, booking: Booking, binding: Binding, at: int, dead: int) -> Segment | None:
    """The segment with other nodes for those that are dead, claimed in the what-if; None if there are none at all."""
    state, segment = cycle.state, binding[at]
    occupancy, calendar, d = state.occupancy, state.machines.calendar, state.index[segment.domain]
    free = occupancy.free[d] & ~calendar.busy(d, booking.end_s)
    count = min(free.bit_count(), dead.bit_count())
    found = None
    if count < dead.bit_count() and not mask_of(segment.nodes) & _at_work(state, d):
        found = _elsewhere(cycle, booking, binding, at)
    if found is None:
        if not count:
            return None
        new = dict(zip(members(dead), lowest_nodes(free, count), strict=False))
        found = Segment(domain=segment.domain, nodes=tuple(new.get(node, node) for node in segment.nodes))
    to = state.index[found.domain]
    before, after = mask_of(segment.nodes), mask_of(found.nodes)
    occupancy.unclaim(d, before if to != d else before & ~after)
    cycle.changed(d)
    more = after if to != d else after & ~before
    occupancy.claim(to, more)
    cycle.gave(to, more, booking.end_s)
    return found


def _elsewhere(cycle: Cycle, booking: Booking, binding: Binding, at: int) -> Segment | None:
    """The segment in another domain of its cluster and system."""
    state, segment = cycle.state, binding[at]
    home = state.domains[state.index[segment.domain]]
    (group,) = state.topology.groups(home.system, home.cluster)
    others = [state.index[other.domain] for other in binding if other is not segment]
    within = group.domains & beside(state.topology, _wants(booking), booking.shape, others)
    within &= ~(1 << state.index[home.name])
    within &= ~state.machines.calendar.shut(booking.end_s, booking.end_s, 1 << 30, state.occupancy)
    placement = place_one(state.occupancy, within, len(segment.nodes))
    if placement is None:
        return None
    (found,) = bind(state, placement, Shape(nodes_per_segment=len(segment.nodes)))
    return found


def _wants(booking: Booking) -> Job:
    """The booking as a job of its shape."""
    return Job(
        name=booking.name, kind="batch", shape=booking.shape, system=booking.system, cluster=booking.cluster,
        nearness=booking.nearness,
    )  # fmt: skip


def begin_bookings(cycle: Cycle) -> None:
    """Hold nodes for bookings whose time has come, clearing them where need be."""
    state = cycle.state
    calendar = state.machines.calendar
    for booking in calendar.bookings.values():
        if booking.start_s > cycle.now_s or booking.name in calendar.holding:
            continue
        offer = Offer(shape=booking.shape, system=booking.system)
        wants = _wants(booking)
        avoid = calendar.shut(
            booking.end_s, booking.end_s, booking.shape.nodes_held_per_segment, state.occupancy
        )
        reason = Reason(code="booked", window=booking.name)
        found = place(state, offer, wants, avoid=avoid)
        if found is not None:
            busy = {d: calendar.busy(d, booking.end_s) for d in found.domains}
            binding = bind(state, found, booking.shape, forbidden=busy)
            cycle.promises.keep(f"@{booking.name}")
            cycle.keep(binding, booking.end_s)
            cycle.actions.append(Hold(booking=booking.name, binding=binding, reason=reason))
            cycle.retry = True  # its jobs start there
        elif not _tries(cycle, booking) or not _clear(cycle, booking, wants, offer, reason):
            cycle.wakes.append(cycle.now_s + state.policy.preemption_retry_s)


def _tries(cycle: Cycle, booking: Booking) -> bool:
    """Whether room is to be cleared for the booking now: at its start, and when it is due."""
    return cycle.state.policy.preemption and (cycle.due or booking.start_s > cycle.state.decided_s)


def _clear(cycle: Cycle, booking: Booking, wants: Job, offer: Offer, reason: Reason) -> bool:
    state = cycle.state
    priority = state.policy.priorities.get(booking.priority, 0)
    clearer = Clearer(state, cycle.now_s, cycle.leaving, cycle.evicted)
    closed = state.machines.calendar.shut(booking.end_s, booking.end_s, 1 << 30, state.occupancy)
    charge = Charge(*state.topology.floor(booking.shape, booking.system, booking.cluster))
    clearing = affordable(clearer, Ask(wants, offer, Taker(priority, booking.queue, charge), closed))
    if clearing is None:
        return False
    cycle.promises.keep(f"@{booking.name}")
    cycle.keep(clearing.binding, booking.end_s)
    cycle.actions.append(Hold(booking=booking.name, binding=clearing.binding, reason=reason))
    evict(cycle, clearing, f"@{booking.name}", priority)
    cycle.retry = True
    return True


def next_s(state: FleetState, now_s: float) -> float:
    """When the calendar asks for a decision next; infinite: never."""
    calendar = state.machines.calendar
    times = [tell_s for tell_s, _ in state.evacuating.values()]
    if calendar.coming:
        times.append(calendar.coming[0].start_s)
    times += [window.end_s for window in calendar.open.values()]
    for booking in calendar.bookings.values():
        times.append(booking.end_s if booking.name in calendar.holding else booking.start_s)
        times.append(booking.end_s)
    return min((at_s for at_s in times if at_s > now_s), default=inf)
