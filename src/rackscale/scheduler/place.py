"""Start waiting gangs, in order, where they fit without moving anybody."""

from __future__ import annotations

import heapq
from math import inf, nextafter
from typing import NamedTuple

from rackscale.events import Reason, Refuse, Segment
from rackscale.fleet.gangs import Gang, WaitClass, remaining_s
from rackscale.fleet.machines import Books
from rackscale.fleet.occupancy import lowest_nodes, mask_of
from rackscale.fleet.queues import Charge
from rackscale.scheduler.choices import ranked
from rackscale.scheduler.cycle import Blocked, Cycle
from rackscale.scheduler.fit import Placement, bind, ever_fits, place
from rackscale.scheduler.order import Key
from rackscale.workload import Job, Offer, Shape

LIMITED = "limited"


def place_waiting(cycle: Cycle) -> None:
    """Try the head of every class of interchangeable gangs, best first, until each class is blocked or empty.

    A class that waited already is passed over unless some domain that gained room could take one of its segments, or
    one of its queues holds less than before: nothing else could help it without moving anybody.
    """
    order = cycle.order
    heads = [(order.of_entry(cls, 0), n, cls, 0, 0) for n, cls in enumerate(_hopeful(cycle))]
    heapq.heapify(heads)
    unfit: set[tuple[object, ...]] = set()
    while heads:
        key, n, cls, at, version = heapq.heappop(heads)
        if version != order.version:
            now = order.of_entry(cls, at)
            if now > key:  # its queue was given nodes meanwhile
                heapq.heappush(heads, (now, n, cls, at, order.version))
                continue
        verdict = _try(cycle, key, cls, at, unfit)
        if verdict is None:
            if at + 1 < len(cls.entries):
                heapq.heappush(heads, (order.of_entry(cls, at + 1), n, cls, at + 1, order.version))
        elif verdict != LIMITED:
            cycle.blocked.append(Blocked(key, cls, at))
            if not cycle.state.policy.backfill:
                break


def _hopeful(cycle: Cycle) -> list[WaitClass]:
    """Classes that could start now, or for which room could be cleared, in a fixed order."""
    state = cycle.state
    waiting = state.waiting
    if cycle.due or not state.policy.backfill:
        return list(waiting.classes.values())
    gained = max(_gained(state.machines.gpu), _gained(state.machines.cpu))
    found: dict[int, WaitClass] = {}
    for need, classes in waiting.by_need.items():
        if need <= gained:
            found.update((id(cls), cls) for cls in classes.values())
    for name in sorted(state.fresh):
        cls = waiting.of(name)
        if cls is not None:
            found[id(cls)] = cls
    if state.eased or state.machines.calendar.holding:
        for cls in waiting.classes.values():
            path = state.tree.node(cls.queue).path
            if cls.job.booking is not None or any(node.spec.name in state.eased for node in path):
                found[id(cls)] = cls
    return list(found.values())


def _gained(books: Books) -> int:
    """The most room in a domain whose room grew since the last decision, nodes."""
    occupancy = books.occupancy
    if not occupancy.grown:
        return 0
    rooms = range(len(occupancy.buckets) - 1, 0, -1)
    return next((room for room in rooms if occupancy.buckets[room] & occupancy.grown), 0)


def _try(cycle: Cycle, key: Key, cls: WaitClass, at: int, unfit: set[tuple[object, ...]]) -> str | None:
    """Start or refuse the gang: None. Or why it waits: `LIMITED` by its queue or user, else there is no room."""
    state = cycle.state
    gang = state.gangs[cls.entries[at][2]]
    job = state.jobs[gang.job]
    if job.booking is not None:
        return _inside_booking(cycle, gang, job)
    promised = bool(state.reserved)
    known = cls.fit if not promised else None
    if known is not None and known in unfit:
        return "no-room" if admitted(cycle, gang, job, 0) is None else LIMITED
    limits = 0
    choices = ranked(state.topology, state.policy, job)
    for choice in choices:
        if admitted(cycle, gang, job, choice) is not None:
            limits += 1
            continue
        offer = job.choices[choice] if job.offers else Offer(shape=job.shape, system=job.system)
        found = find(cycle, key, cls, job, offer)
        if found is None:
            continue
        if _start(cycle, gang, choice, found):
            return None
        limits += 1
    if limits == len(choices):
        return LIMITED
    if gang.name in state.fresh and not _was_started(cycle, job) and not ever_fits(state, job):
        # A service's gangs are alike: the first refuses for all of them.
        if job.gangs()[0] == gang.name:
            cycle.actions.append(Refuse(job=job.name, reason=Reason(code="never-fits")))
        return None
    if known is not None:
        unfit.add(known)
    return "no-room"


def _was_started(cycle: Cycle, job: Job) -> bool:
    """Whether a gang of the job ran before, or holds nodes now: then it waits for the fleet that it once fitted."""
    gangs = (cycle.state.gangs.get(name) for name in job.gangs())
    return any(gang is not None and (gang.front or gang.binding or gang.claim) for gang in gangs)


def admitted(cycle: Cycle, gang: Gang, job: Job, choice: int) -> str | None:
    """Which limit of its queue or user keeps the gang from this choice, before it is known where it would go."""
    tree = cycle.state.tree
    if not (tree.limited or tree.guaranteed):
        return None
    return refused(cycle, gang, job, least_charge(cycle, job, choice))


def least_charge(cycle: Cycle, job: Job, choice: int) -> Charge:
    """What the choice would cost the queue at least."""
    if job.cpu_only:
        return Charge()
    shape, system = job.shape, job.system
    if choice:
        offer = job.offers[choice - 1]
        shape, system = offer.shape, offer.system or system
    return Charge(*cycle.state.topology.floor(shape, system, job.cluster))


def refused(cycle: Cycle, gang: Gang, job: Job, charge: Charge) -> str | None:
    tree = cycle.state.tree
    found = tree.refuses(gang.queue, job.user, charge)
    if found is None and not job.preemptible and not job.cpu_only and tree.borrows(gang.queue, charge):
        return "borrows"
    return found


class Closed(NamedTuple):
    """Sets of domains that a gang may not use, whatever room they have."""

    shut: int = 0
    """They go out of use before it is expected to end."""
    promised: int = 0
    """Others ahead of it were promised them."""
    siblings: int = 0
    """Other replicas of its service are near."""


def closed(cycle: Cycle, key: Key, cls: WaitClass, job: Job, offer: Offer) -> Closed:
    """Where the gang may not go in this shape."""
    state, shape = cycle.state, offer.shape
    machines = state.machines
    if job.cpu_only:
        return Closed(_cpu_avoid(cycle, cls, job, offer), siblings=_near(cycle, job))
    shut = promised = 0
    if state.reserved or machines.calendar.coming:
        nodes = shape.nodes_held_per_segment * (shape.segments if shape.may_share_domain else 1)
        until_s, assumed_s = stays_until(cycle, cls, job, offer)
        shut = machines.calendar.shut(*in_use(cycle, job, until_s, assumed_s), nodes, machines.gpu.occupancy)
        promised = cycle.promises.closed(key, until_s, nodes)
    return Closed(shut, promised, _near(cycle, job))


def _near(cycle: Cycle, job: Job) -> int:
    """Domains near other replicas of the service, where it wants to be apart from them."""
    return 0 if job.nearness.apart is None or job.kind != "service" else siblings(cycle, job)


def find(cycle: Cycle, key: Key, cls: WaitClass, job: Job, offer: Offer) -> Placement | None:
    """Where the gang fits now, promises to others and what is planned for the domains respected."""
    shut, promised, others = closed(cycle, key, cls, job, offer)
    books = cycle.state.machines.books(job).occupancy
    avoid = shut | promised
    if job.nearness.apart_required:
        avoid, others = avoid | others, 0
    for kept in () if job.cpu_only else cycle.promises.kind(key, stays_until(cycle, cls, job, offer)[0]):
        found = place(cycle.state, offer, job, books=books, avoid=avoid | kept, shun=others)
        if found is not None:
            return found
    return place(cycle.state, offer, job, books=books, avoid=avoid, shun=others)


def stays_until(cycle: Cycle, cls: WaitClass, job: Job, offer: Offer) -> tuple[float, float]:
    """Until when a gang of the class would stay, and until when that is assumed where nobody knows."""
    stays_s = job.durability.restart_s + cls.lasts_s / offer.throughput
    assumed_s = stays_s if stays_s < inf else cycle.state.policy.assumed_duration_s
    return cycle.now_s + stays_s, cycle.now_s + assumed_s


def in_use(cycle: Cycle, job: Job, until_s: float, assumed_s: float) -> tuple[float, float]:
    """`stays_until`, but long enough for the gang to work before it is told to leave nodes that go out of use."""
    durability = job.durability
    least_s = nextafter(cycle.now_s + durability.restart_s + durability.grace_s, inf)
    return max(until_s, least_s), max(assumed_s, least_s)


def _cpu_avoid(cycle: Cycle, cls: WaitClass, job: Job, offer: Offer) -> int:
    calendar, occupancy = cycle.state.machines.calendar, cycle.state.machines.cpu.occupancy
    shape, last_s = offer.shape, in_use(cycle, job, *stays_until(cycle, cls, job, offer))[1]
    nodes = shape.nodes_held_per_segment * (shape.segments if shape.may_share_domain else 1)
    return calendar.shut(last_s, last_s, nodes, occupancy)


def siblings(cycle: Cycle, job: Job, but: str = "") -> int:
    """Domains in the same unit as another replica of the service; `but`: whose own don't count."""
    state = cycle.state
    assert job.nearness.apart is not None
    names = {name for name in job.gangs() if name != but}
    gangs = [gang for name in names if (gang := state.gangs.get(name)) is not None]
    bindings = [binding for gang in gangs for binding in (gang.binding, gang.claim)]
    bindings += [
        a.binding for a in cycle.actions if getattr(a, "gang", None) in names and hasattr(a, "binding")
    ]
    found = 0
    for binding in bindings:
        for segment in binding:
            found |= state.topology.unit(job.nearness.apart, state.index[segment.domain])
    return found


def _start(cycle: Cycle, gang: Gang, choice: int, found: Placement) -> bool:
    """Start the gang there; False if that would cost its queue more than it may have."""
    state = cycle.state
    job = state.jobs[gang.job]
    offer = job.choices[choice]
    if job.cpu_only:
        forbidden = _forbidden(cycle, gang, job, offer, found)
        binding = bind(state, found, offer.shape, books=state.machines.cpu.occupancy, forbidden=forbidden)
        cycle.give(gang, Charge())
    else:
        binding = bind(state, found, offer.shape, forbidden=_forbidden(cycle, gang, job, offer, found))
        if state.tree.limited or state.tree.guaranteed:
            charge = state.machines.charge(binding)
            if refused(cycle, gang, job, charge) is not None:
                return False
            cycle.give(gang, charge)
        elif state.tree.half_life_s is not None:
            cycle.give(gang, state.machines.charge(binding))
    reason = Reason(code="fits", free_nodes_left=found.free_nodes_left)
    cycle.start(gang, binding, reason, choice)
    return True


def _forbidden(cycle: Cycle, gang: Gang, job: Job, offer: Offer, found: Placement) -> dict[int, int]:
    """Nodes that go out of use before the gang is expected to end; `closed` left enough others."""
    calendar = cycle.state.machines.calendar
    if not calendar.on:
        return {}
    cls = cycle.state.waiting.of(gang.name)
    assert cls is not None
    until_s = in_use(cycle, job, *stays_until(cycle, cls, job, offer))[1]
    return {d: calendar.busy(d, until_s) for d in found.domains}


def _inside_booking(cycle: Cycle, gang: Gang, job: Job) -> str | None:
    """Start the gang on nodes of its booking."""
    state = cycle.state
    calendar = state.machines.calendar
    binding = calendar.holding.get(job.booking or "")
    if binding is None:
        return LIMITED
    left_s = remaining_s(gang, job)
    time_s = calendar.bookings[job.booking or ""].end_s - cycle.now_s - job.durability.restart_s
    if time_s <= job.durability.grace_s:  # it would be told to leave before it works
        return LIMITED
    free: dict[int, int] = {}
    books = state.machines.books(job).occupancy
    for d, mask in state.machines.masks(binding):
        free[d] = free.get(d, 0) | (mask & books.up[d] & ~books.held[d])
    for choice in ranked(state.topology, state.policy, job):
        offer = job.choices[choice]
        stays_s = time_s if left_s == inf else left_s / offer.throughput
        if stays_s > time_s:
            continue
        until_s = cycle.now_s + job.durability.restart_s + stays_s
        usable = {d: mask & ~calendar.busy(d, until_s) for d, mask in free.items()} if calendar.on else free
        found = _segments_in(cycle, job, usable, offer)
        charge = Charge() if found is None or job.cpu_only else state.machines.charge(found)
        if found is not None and refused(cycle, gang, job, charge) is None:
            cycle.give(gang, charge)
            cycle.start(gang, found, Reason(code="fits", window=job.booking), choice)
            return None
    return LIMITED


def _segments_in(cycle: Cycle, job: Job, free: dict[int, int], offer: Offer) -> tuple[Segment, ...] | None:
    """Segments on these free nodes, as near and as far as the job asks; None where they don't fit."""
    domains, topology, near = cycle.state.domains, cycle.state.topology, job.nearness
    apart = siblings(cycle, job) if near.apart_required and near.apart and job.kind == "service" else 0
    system = offer.system or job.system
    usable = {
        d: mask
        for d, mask in free.items()
        if system in (None, domains[d].system)
        and job.cluster in (None, domains[d].cluster)
        and not apart >> d & 1
    }
    if near.within is None:
        return _pack(cycle, job, usable, offer.shape)
    for area in sorted({topology.unit(near.within, d) for d in usable}):
        found = _pack(cycle, job, {d: mask for d, mask in usable.items() if area >> d & 1}, offer.shape)
        if found is not None:
            return found
    return None


def _pack(cycle: Cycle, job: Job, free: dict[int, int], shape: Shape) -> tuple[Segment, ...] | None:
    """Segments on these free nodes, the fullest domains first; None where they don't fit."""
    held, segments, near = shape.nodes_held_per_segment, list[Segment](), job.nearness
    used = 0
    for d, mask in sorted(free.items(), key=lambda item: (item[1].bit_count(), item[0])):
        left = mask
        while left.bit_count() >= held and len(segments) < shape.segments and not used >> d & 1:
            nodes = lowest_nodes(left, held)
            left &= ~mask_of(nodes)
            segments.append(
                Segment(
                    domain=cycle.state.domains[d].name,
                    nodes=nodes[: shape.nodes_per_segment],
                    spares=nodes[shape.nodes_per_segment :],
                )
            )
            if near.spread is not None:
                used |= cycle.state.topology.unit(near.spread, d)
            elif not shape.may_share_domain:
                used |= 1 << d
    return tuple(segments) if len(segments) == shape.segments else None
