"""Moving gangs so that a whole domain opens for one that waits, where the waiting saved is worth the work lost."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from rackscale.events import Binding, Reason, Reserve, Segment
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import mask_of, members
from rackscale.scheduler.choices import ranked
from rackscale.scheduler.cycle import Blocked, Cycle
from rackscale.scheduler.fit import Placement, bind, place_one
from rackscale.scheduler.place import in_use, refused, siblings, stays_until
from rackscale.scheduler.price import cost
from rackscale.workload import Shape

CANDIDATES = 16
"""Domains that are tried for being opened, those with the fewest nodes to move first."""
GANGS = 8
"""Gangs that a domain is sought for in one decision, the first in line."""
MOST_SAVED_S = 4 * 3600.0
"""A gang that nobody knows the start of is taken to wait so much longer (assumed)."""


class Moved(NamedTuple):
    gang: str
    binding: Binding


class Opening(NamedTuple):
    """A domain that could be opened, by whose moves, at what price and gain (GPU-seconds)."""

    segment: Segment
    moves: tuple[Moved, ...]
    price_gpu_s: float
    gain_gpu_s: float


def defragment(cycle: Cycle) -> None:
    """Open one domain for the first gang in line that waits for a single segment, when it is due."""
    state = cycle.state
    if state.policy.defragment != "on" or not cycle.due:
        return
    left = GANGS
    for blocked in cycle.blocked:
        gang = state.gangs[blocked.cls.entries[blocked.at][2]]
        if gang.name in cycle.claimed or not _could_open(blocked):
            continue
        if not left:
            return
        left -= 1
        found = opening(cycle, blocked, gang)
        if found is not None:
            _open(cycle, gang, found)
            return


def _could_open(blocked: Blocked) -> bool:
    """Whether some shape of the class is one segment on GPUs, outside bookings."""
    job = blocked.cls.job
    return not job.cpu_only and job.booking is None and any(o.shape.segments == 1 for o in job.choices)


def opening(cycle: Cycle, blocked: Blocked, gang: Gang) -> Opening | None:
    """The cheapest domain to open for the gang's most valuable shape, if that is worth it; the state is not changed."""
    state = cycle.state
    job = state.jobs[gang.job]
    offer = job.choices[ranked(state.topology, state.policy, job)[0]]
    if offer.shape.segments != 1 or job.cpu_only or job.booking is not None:
        return None
    nodes, occupancy = offer.shape.nodes_held_per_segment, state.occupancy
    now = (a for a in cycle.actions if isinstance(a, Reserve) and a.gang == gang.name)
    reserve = next(now, state.reserved.get(gang.name))
    saved_s = MOST_SAVED_S if reserve is None else min(MOST_SAVED_S, max(0.0, reserve.start_s - cycle.now_s))
    best: Opening | None = None
    for group in state.topology.groups(offer.system or job.system, job.cluster):
        gain = saved_s * nodes * group.gpus_per_node
        until_s, assumed_s = stays_until(cycle, blocked.cls, job, offer)
        closed = cycle.promises.closed(blocked.key, inf, 1 << 30)
        closed |= state.machines.calendar.shut(*in_use(cycle, job, until_s, assumed_s), 1 << 30, occupancy)
        if job.nearness.apart is not None and job.nearness.apart_required and job.kind == "service":
            closed |= siblings(cycle, job)
        within = group.domains & ~closed
        tried = 0
        for room in range(min(nodes - 1, len(occupancy.buckets) - 1), -1, -1):
            for d in members(occupancy.buckets[room] & within):
                tried += 1
                mark = occupancy.mark()
                found = _opened(cycle, d, offer.shape, within, gang)
                occupancy.rollback(mark)
                if found is not None and (best is None or found.price_gpu_s < best.price_gpu_s):
                    best = found._replace(gain_gpu_s=gain)
                if tried >= CANDIDATES:
                    break
            if tried >= CANDIDATES:
                break
    if best is not None and refused(cycle, gang, job, state.machines.charge((best.segment,))) is not None:
        return None
    if best is None or best.gain_gpu_s < state.policy.defragment_gain * best.price_gpu_s:
        return None
    return best


def _opened(cycle: Cycle, d: int, shape: Shape, within: int, for_gang: Gang) -> Opening | None:
    """Move the cheapest gangs of domain d into gaps of other domains until there is room; in the what-if."""
    state, occupancy = cycle.state, cycle.state.occupancy
    usable, nodes = occupancy.up[d] & ~occupancy.claimed[d], shape.nodes_held_per_segment
    short = nodes - occupancy.room[d]
    guests = [
        (cost(state, state.gangs[name], cycle.now_s).total / (mask & usable).bit_count(), name, mask & usable)
        for name, mask in state.tenants.on[d].items()
        if mask & usable and _movable(cycle, state.gangs[name], for_gang)
    ]
    moves: list[Moved] = []
    price, freed = 0.0, 0
    for _, name, mask in sorted(guests):
        if short <= 0:
            break
        binding = _rebind(cycle, state.gangs[name], d, within & ~(1 << d))
        if binding is None:
            continue
        moves.append(Moved(name, binding))
        price += cost(state, state.gangs[name], cycle.now_s).total
        freed |= mask
        short -= mask.bit_count()
    if short > 0:
        return None
    free = [*members(occupancy.free[d]), *members(freed)][:nodes]
    chosen = tuple(sorted(free))
    segment = Segment(
        domain=state.domains[d].name,
        nodes=chosen[: shape.nodes_per_segment],
        spares=chosen[shape.nodes_per_segment :],
    )
    return Opening(segment, tuple(moves), price, 0.0)


def _movable(cycle: Cycle, gang: Gang, for_gang: Gang) -> bool:
    """Whether the gang may be asked to move: it runs, may be interrupted, and does not go before the one that waits."""
    state = cycle.state
    job, policy = state.jobs[gang.job], state.policy
    if (
        gang.status is not Status.RUNNING
        or not job.preemptible
        or gang.name in cycle.leaving
        or gang.cancelled
    ):
        return False
    if gang.priority > for_gang.priority or job.booking is not None or gang.name in state.evacuating:
        return False
    assert gang.started_s is not None
    ran_s = cycle.now_s - gang.started_s
    if ran_s < max(policy.min_runtime_s, job.durability.restart_s):
        return False
    return gang.evicted_today(cycle.now_s) < policy.max_evictions_per_day


def _rebind(cycle: Cycle, gang: Gang, d: int, within: int) -> Binding | None:
    """The gang's binding with its segments in domain d moved to gaps elsewhere, which are held in the what-if."""
    state, occupancy = cycle.state, cycle.state.occupancy
    segments = list(gang.binding)
    job = state.jobs[gang.job]
    level = job.nearness.within
    if job.nearness.spread not in (None, "domain") or job.nearness.apart_required:
        return None  # what keeps its segments or replicas apart stays where it is
    for other in segments:
        within &= ~(1 << state.index[other.domain])
    if state.machines.calendar.coming:
        assumed_s = min(gang.end_s, cycle.now_s + state.policy.assumed_duration_s)
        within &= ~state.machines.calendar.shut(gang.end_s, assumed_s, 1 << 30, occupancy)
    for at, segment in enumerate(segments):
        if state.index[segment.domain] != d:
            continue
        home = state.domains[d]
        (group,) = state.topology.groups(home.system, home.cluster)
        area = within & group.domains
        if level is not None:
            area &= state.topology.unit(level, d)
        found = place_one(occupancy, area, len(segment.held))
        if found is None:
            return None
        shape = Shape(nodes_per_segment=len(segment.nodes), spares_per_segment=len(segment.spares))
        (moved,) = bind(state, Placement(found.domains, found.free_nodes_left), shape)
        occupancy.claim(found.domains[0], mask_of(moved.held))
        within &= ~(1 << found.domains[0])
        segments[at] = moved
    return tuple(segments)


def _open(cycle: Cycle, gang: Gang, found: Opening) -> None:
    state = cycle.state
    job = state.jobs[gang.job]
    choice = ranked(state.topology, state.policy, job)[0]
    cycle.actions = [a for a in cycle.actions if not (isinstance(a, Reserve) and a.gang == gang.name)]
    cycle.give(gang, state.machines.charge((found.segment,)))
    cycle.claim(gang, (found.segment,), Reason(code="cleared-domain", domain=found.segment.domain), choice)
    for moved in found.moves:
        mover = state.gangs[moved.gang]
        share = found.gain_gpu_s / len(found.moves)
        reason = Reason(code="moved-for", for_gang=gang.name, gain_gpu_s=share)
        cycle.move(mover, moved.binding, reason, mover.choice)
