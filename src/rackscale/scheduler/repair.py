"""What has to be done before anybody new is looked at: claims, failures, cancellations, departures."""

from __future__ import annotations

from math import inf

from rackscale.events import Binding, Reason, Requeue, Restart, Segment, Stop, Unclaim
from rackscale.fleet.gangs import Gang, Status, shift
from rackscale.fleet.health import EXPIRED
from rackscale.fleet.occupancy import lowest_nodes, mask_of
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.elastic import smaller
from rackscale.scheduler.fit import Placement, beside, bind, place_one
from rackscale.scheduler.place import in_use, siblings
from rackscale.scheduler.price import cost
from rackscale.workload import Job, Offer, Shape


def settle(cycle: Cycle) -> None:
    """Claims whose nodes are free become starts; broken claims are given up."""
    state, occupancy = cycle.state, cycle.state.occupancy
    for gang in cycle.by_order(state.claimants):
        masks = state.claimants[gang.name]
        if any(mask & ~occupancy.up[d] for d, mask in masks) or _outlives(cycle, gang, masks):
            cycle.actions.append(Unclaim(gang=gang.name, reason=Reason(code="claim-broken")))
            for d, mask in masks:
                occupancy.unclaim(d, mask)
                cycle.changed(d)
            if not gang.binding:
                cycle.take(gang)
            cycle.retry = True
        elif gang.status is Status.WAITING and not any(mask & occupancy.held[d] for d, mask in masks):
            for d, mask in masks:
                occupancy.unclaim(d, mask)
            cycle.start(gang, gang.claim, Reason(code="claim-complete"), gang.claim_choice)


def _outlives(cycle: Cycle, gang: Gang, masks: tuple[tuple[int, int], ...]) -> bool:
    """Whether claimed nodes go out of use before the gang would be done: that was planned after they were claimed."""
    on, job = cycle.state.machines.calendar.on, cycle.state.jobs[gang.job]
    if not on:
        return False
    until_s = cycle.ends_s(gang, gang.claim_choice)
    assumed_s = until_s if until_s < inf else cycle.now_s + cycle.state.policy.assumed_duration_s
    until_s, assumed_s = in_use(cycle, job, until_s, assumed_s)
    return any(
        window.mask & mask and window.start_s < (until_s if window.name == EXPIRED else assumed_s)
        for d, mask in masks
        for window in on.get(d, ())
    )


def repair(cycle: Cycle) -> None:
    """Gangs that lost a node get a spare, move a segment, go on smaller, or wait again."""
    state = cycle.state
    for gang in cycle.by_order(state.broken):
        if gang.name in state.stopping:
            continue
        lost = cost(state, gang, cycle.now_s)
        binding, code, where, choice = _mend(cycle, gang)
        reason = Reason(
            code=code, domain=where[0], node=where[1], restart_gpu_s=lost.restart_gpu_s,
            lost_gpu_s=gang.at_risk_s(cycle.now_s) * state.gpus(gang),
        )  # fmt: skip
        if binding is None:
            cycle.actions.append(Requeue(gang=gang.name, attempt=gang.attempt, reason=reason))
            cycle.leaving.add(gang.name)
            cycle.depart(gang, ())
        else:
            cycle.retry |= code in ("moved-segment", "shrunk")
            if code == "shrunk":
                cycle.depart(gang, binding)
            cycle.actions.append(
                Restart(
                    gang=gang.name, attempt=gang.attempt + 1, binding=binding, reason=reason, choice=choice
                )
            )


Mended = tuple[Binding | None, str, tuple[str, int], int]
"""Binding (None: there is no replacement), reason, (domain, node) of the first dead node, choice."""


def _mend(cycle: Cycle, gang: Gang) -> Mended:
    """The gang's binding with every failed node replaced, holding the new nodes; (None, ...) if there is none."""
    state = cycle.state
    job = state.jobs[gang.job]
    occupancy = state.machines.books(job).occupancy
    binding, code, where = gang.binding, "own-spare", ("", 0)
    mark, gave = occupancy.mark(), list[tuple[int, int]]()
    for at, segment in enumerate(gang.binding):
        d = state.index[segment.domain]
        dead = [node for node in segment.nodes if not occupancy.up[d] >> node & 1]
        if not dead:
            continue
        where = where if where[0] else (segment.domain, dead[0])
        own = [node for node in segment.spares if occupancy.up[d] >> node & 1][: len(dead)]
        for node, spare in zip(dead, own, strict=False):
            binding = _replace(binding, at, node, spare)
        left = dead[len(own) :]
        if not left:
            continue
        free = occupancy.free[d] if job.booking is None else _booked(cycle, gang, d)
        if free.bit_count() >= len(left):
            code = "spare" if code == "own-spare" else code
            spares = _staying(cycle, d, free, len(left), cycle.ends_s(gang, gang.choice))
            occupancy.hold(d, mask_of(spares))
            gave.append((d, mask_of(spares)))
            for node, spare in zip(left, spares, strict=True):
                binding = _replace(binding, at, node, spare)
            continue
        moved = _move(cycle, gang, segment, binding)
        if moved is None:
            occupancy.rollback(mark)
            return _shrink(cycle, gang, where)
        gave.append((state.index[moved.domain], mask_of(moved.held)))
        binding, code = (*binding[:at], moved, *binding[at + 1 :]), "moved-segment"
    for d, mask in gave:
        cycle.gave(d, mask, gang.end_s)
    return binding, code, where, gang.choice


def _booked(cycle: Cycle, gang: Gang, d: int) -> int:
    """Nodes of domain d that the gang's booking keeps, and nobody uses."""
    state = cycle.state
    job = state.jobs[gang.job]
    occupancy = state.machines.books(job).occupancy
    kept = 0
    for at, mask in state.machines.masks(_booking(cycle, job)):
        kept |= mask if at == d else 0
    return kept & occupancy.up[d] & ~occupancy.held[d]


def _booking(cycle: Cycle, job: Job) -> Binding:
    """What the job's booking holds; nothing where it has none, or it is over."""
    name = job.booking or ""
    return cycle.booked.get(name) or cycle.state.machines.calendar.holding.get(name, ())


def _staying(cycle: Cycle, d: int, free: int, count: int, until_s: float) -> tuple[int, ...]:
    """The lowest free nodes, those last that go out of use before the gang is expected to end."""
    busy = cycle.state.machines.calendar.busy(d, until_s)
    first = lowest_nodes(free & ~busy, min(count, (free & ~busy).bit_count()))
    return first + lowest_nodes(free & busy, count - len(first))


def _replace(binding: Binding, at: int, dead: int, by: int) -> Binding:
    segment = binding[at]
    (mended,) = shift((segment,), (segment.domain, dead), by)
    return (*binding[:at], mended, *binding[at + 1 :])


def _move(cycle: Cycle, gang: Gang, segment: Segment, binding: Binding) -> Segment | None:
    """Another domain of the same cluster and system for one segment, held. `binding`: what is mended of it already."""
    state = cycle.state
    job, home = state.jobs[gang.job], state.domains[state.index[segment.domain]]
    occupancy = state.machines.books(job).occupancy
    ends_s = max(gang.end_s, cycle.ends_s(gang, gang.choice))  # it restarts, and does again what it lost
    avoid = 0
    for other in (*gang.binding, *binding):
        avoid |= 1 << state.index[other.domain]
    if state.reserved:
        avoid |= cycle.promises.closed(cycle.order.of(gang), ends_s, len(segment.held))
    (group,) = state.topology.groups(home.system, home.cluster)
    within = group.domains & ~avoid
    others = [state.index[other.domain] for other in binding if other is not segment]
    within &= beside(state.topology, job, job.choices[gang.choice].shape, others)
    if job.nearness.within is not None:
        within &= state.topology.unit(job.nearness.within, state.index[segment.domain])
    if job.nearness.apart is not None and job.nearness.apart_required and job.kind == "service":
        within &= ~siblings(cycle, job, but=gang.name)
    if job.booking is not None:
        return _move_inside(cycle, gang, segment, within)
    calendar = state.machines.calendar
    assumed_s = min(ends_s, cycle.now_s + state.policy.assumed_duration_s)
    shut = calendar.shut(ends_s, assumed_s, 1 << 30, occupancy)
    found = place_one(occupancy, within & ~shut, len(segment.held))
    if found is None:
        return None
    shape = Shape(nodes_per_segment=len(segment.nodes), spares_per_segment=len(segment.spares))
    (moved,) = bind(state, Placement(found.domains, found.free_nodes_left), shape, books=occupancy)
    occupancy.hold(found.domains[0], mask_of(moved.held))
    return moved


def _move_inside(cycle: Cycle, gang: Gang, segment: Segment, within: int) -> Segment | None:
    """The segment on other nodes of the gang's booking, held."""
    state = cycle.state
    job, held = state.jobs[gang.job], len(segment.held)
    for d in sorted({state.index[other.domain] for other in _booking(cycle, job)}):
        free = _booked(cycle, gang, d)
        if within >> d & 1 and free.bit_count() >= held:
            nodes, work = lowest_nodes(free, held), len(segment.nodes)
            state.machines.books(job).occupancy.hold(d, mask_of(nodes))
            return Segment(domain=state.domains[d].name, nodes=nodes[:work], spares=nodes[work:])
    return None


def _shrink(cycle: Cycle, gang: Gang, where: tuple[str, int]) -> Mended:
    """Go on without the segments that lost nodes, where the gang is elastic."""
    state = cycle.state
    whole = [
        segment
        for segment in gang.binding
        if not mask_of(segment.nodes) & ~state.occupancy.up[state.index[segment.domain]]
    ]
    for choice in smaller(state, gang):
        offer: Offer = state.jobs[gang.job].choices[choice]
        same = offer.shape.nodes_per_segment == len(gang.binding[0].nodes)
        if same and offer.shape.segments <= len(whole):
            return tuple(whole[: offer.shape.segments]), "shrunk", where, choice
    return None, "no-replacement", where, gang.choice


def withdraw(cycle: Cycle) -> None:
    """Cancelled gangs stop; gangs leave nodes that are drained or go out of use, when it is time."""
    state = cycle.state
    for gang in cycle.by_order(state.stopping):
        grace_s = state.jobs[gang.job].durability.grace_s
        reason = Reason(code="cancelled")
        cycle.actions.append(Stop(gang=gang.name, attempt=gang.attempt, grace_s=grace_s, reason=reason))
        cycle.leaving.add(gang.name)
        cycle.depart(gang, ())
    due = [name for name, (tell_s, _) in state.evacuating.items() if tell_s <= cycle.now_s]
    for gang in cycle.by_order(due):
        if gang.name not in cycle.leaving:
            cycle.send_away(gang, state.evacuating[gang.name][1])
            cycle.depart(gang, ())
