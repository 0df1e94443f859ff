"""Elastic gangs: how they can shrink, and when they grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from rackscale.events import Binding, Reason, Segment
from rackscale.fleet.gangs import Gang, Status, remaining_s
from rackscale.fleet.occupancy import lowest_nodes, mask_of
from rackscale.fleet.queues import Charge
from rackscale.fleet.state import FleetState
from rackscale.scheduler.choices import ranked
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.fit import beside, bind, place
from rackscale.scheduler.price import saves_on_request
from rackscale.workload import Offer

JUST_NOW_S = 1.0
"""Work that is no longer than this after a checkpoint is not worth waiting for the next."""


class Shrunk(NamedTuple):
    """How a gang goes on with fewer nodes."""

    choice: int
    binding: Binding
    freed: int
    """Nodes that it frees in the domain asked about."""

    def mask(self, d: int, held: int, index: Mapping[str, int]) -> int:
        """Of the nodes that it held in domain d, those that it gives up."""
        kept = 0
        for segment in self.binding:
            if index[segment.domain] == d:
                kept |= mask_of(segment.held)
        return held & ~kept


def smaller(state: FleetState, gang: Gang, than: int | None = None) -> list[int]:
    """Choices with fewer nodes than the present one, on the same system; those with the most throughput first.

    `than`: a choice that is taken for the present one.
    """
    job = state.jobs[gang.job]
    if not job.elastic or not job.offers or not gang.binding:
        return []
    choices = job.choices
    system = state.domains[state.index[gang.binding[0].domain]].system
    now = choices[gang.choice if than is None else than].shape.nodes_held
    fewer = [
        n
        for n, offer in enumerate(choices)
        if offer.shape.nodes_held < now and (offer.system or job.system) in (None, system)
    ]
    return sorted(fewer, key=lambda n: (-choices[n].throughput, n))


def shrinkings(
    state: FleetState, gang: Gang, d: int, short: int, usable: int, *, already: Shrunk | None = None
) -> Iterator[Shrunk]:
    """The mildest way to shrink that frees `short` nodes of domain d by itself, else the one that frees the most.

    `already`: how it shrinks for another domain; it then shrinks further.
    """
    most: Shrunk | None = None
    now, than = (gang.binding, None) if already is None else (already.binding, already.choice)
    for choice in smaller(state, gang, than):
        offer = state.jobs[gang.job].choices[choice]
        binding = _without(state, now, d, offer)
        if binding is None:
            continue
        held = _mask_in(state, now, d)
        freed = (held & ~_mask_in(state, binding, d) & usable).bit_count()
        found = Shrunk(choice, binding, freed)
        if freed >= short:
            yield found
            return
        if freed and (most is None or freed > most.freed):
            most = found
    if most is not None:
        yield most


def _mask_in(state: FleetState, binding: Binding, d: int) -> int:
    mask = 0
    for segment in binding:
        if state.index[segment.domain] == d:
            mask |= mask_of(segment.held)
    return mask


def _without(state: FleetState, binding: Binding, d: int, offer: Offer) -> Binding | None:
    """The binding cut down to the offer's shape, giving up nodes of domain d first; None if it can't be."""
    shape, segments = offer.shape, list(binding)
    if shape.segments > len(segments) or shape.nodes_per_segment > len(segments[0].nodes):
        return None
    if shape.spares_per_segment > len(segments[0].spares):
        return None
    drop = len(segments) - shape.segments
    here = [s for s in segments if state.index[s.domain] == d]
    there = [s for s in segments if state.index[s.domain] != d]
    kept = [*there, *here][: len(segments) - drop] if drop else segments
    order = {id(s): n for n, s in enumerate(segments)}
    kept.sort(key=lambda s: order[id(s)])
    return tuple(
        Segment(
            domain=s.domain, nodes=s.nodes[: shape.nodes_per_segment], spares=s.spares[: shape.spares_per_segment]
        )
        for s in kept
    )  # fmt: skip


# -- growing -----------------------------------------------------------------------------------------------------------


def grow(cycle: Cycle) -> None:
    """Let elastic gangs grow into room that nobody waits for, where that pays for the restart."""
    if forbidden(cycle) is not None:
        return
    for gang in cycle.by_order(cycle.state.elastic):
        if gang.name in cycle.leaving:
            continue
        found = growth(cycle, gang)
        if not isinstance(found, str):
            choice, binding = found
            cycle.take(gang)
            cycle.give(gang, cycle.state.machines.charge(binding))
            cycle.move(gang, binding, Reason(code="grown"), choice)


def forbidden(cycle: Cycle) -> str | None:
    """Why nobody grows now: `policy`, `others-wait`; `none`: there is nobody who could."""
    state = cycle.state
    if not state.policy.growth:
        return "policy"
    if not state.elastic:
        return "none"
    return "others-wait" if cycle.blocked or state.waiting.size > _started(cycle) else None


def growth(cycle: Cycle, gang: Gang) -> tuple[int, Binding] | str:
    """The choice that the gang grows into and where; or why it doesn't.

    `best-shape`: no larger one is worth more; `not-yet`: it must run longer or checkpoint first; `does-not-pay`: the
    restart costs more time than it saves; `no-room`: or its queue may hold no more.
    """
    better = _better(cycle, gang)
    if not better:
        return "best-shape"
    return _growth(cycle, gang, better) if _may_grow(cycle, gang) else "not-yet"


def _started(cycle: Cycle) -> int:
    """Waiting gangs that this very decision starts or refuses."""
    waiting = cycle.state.waiting
    return sum(waiting.of(getattr(action, "gang", "")) is not None for action in cycle.actions)


def _may_grow(cycle: Cycle, gang: Gang) -> bool:
    policy, job = cycle.state.policy, cycle.state.jobs[gang.job]
    if gang.status is not Status.RUNNING or gang.cancelled or gang.name in cycle.state.evacuating:
        return False
    assert gang.started_s is not None
    from_s = gang.started_s + max(policy.min_runtime_s, job.durability.restart_s)
    if cycle.now_s < from_s:
        cycle.wakes.append(from_s)
        return False
    # At a checkpoint: one that it writes when asked, or one that it has just written.
    at_risk_s = gang.at_risk_s(cycle.now_s)
    if saves_on_request(job.durability) or at_risk_s <= max(job.durability.restart_s, JUST_NOW_S):
        return True
    if gang.saves_every_s is not None:  # nobody reports those: look when the next one is written
        cycle.wakes.append(gang.saved_s(cycle.now_s) + gang.saves_every_s + JUST_NOW_S / 2)
    return False


def _better(cycle: Cycle, gang: Gang) -> list[int]:
    """Larger choices of more value than the present one, the most valuable first."""
    state = cycle.state
    job = state.jobs[gang.job]
    choices, order = job.choices, ranked(state.topology, state.policy, job)
    ahead = order[: order.index(gang.choice)] if gang.choice in order else ()
    return [n for n in ahead if choices[n].shape.nodes_held > choices[gang.choice].shape.nodes_held]


def _growth(cycle: Cycle, gang: Gang, better: list[int]) -> tuple[int, Binding] | str:
    state = cycle.state
    job = state.jobs[gang.job]
    verdict = "does-not-pay"
    for choice in better:
        offer = job.choices[choice]
        if not _pays(cycle, gang, offer):
            continue
        binding = _with(cycle, gang, offer)
        if (
            binding is not None
            and state.tree.refuses(gang.queue, job.user, _more(state, gang, binding)) is None
        ):
            return choice, binding
        verdict = "no-room"
    return verdict


def _more(state: FleetState, gang: Gang, binding: Binding) -> Charge:
    after = state.machines.charge(binding)
    return Charge(after.gpus - gang.charge.gpus, after.domains - gang.charge.domains)


def _pays(cycle: Cycle, gang: Gang, offer: Offer) -> bool:
    """Whether the work that remains is done sooner, restart and lost work included."""
    state = cycle.state
    left_s = remaining_s(gang, state.jobs[gang.job]) - gang.at_risk_s(cycle.now_s) * gang.throughput
    if left_s == inf:
        return offer.throughput > gang.throughput
    durability = state.jobs[gang.job].durability
    pause_s = durability.restart_s + durability.checkpoint_s
    return left_s / offer.throughput + pause_s < left_s / gang.throughput


def _with(cycle: Cycle, gang: Gang, offer: Offer) -> Binding | None:
    """The gang's binding with more nodes, all of them free now; None if there is no room."""
    state, shape = cycle.state, offer.shape
    home = state.domains[state.index[gang.binding[0].domain]]
    if offer.system not in (None, home.system) or shape.segments < len(gang.binding):
        return None
    segments: list[Segment] = []
    closed = cycle.promises.closed(cycle.order.of(gang), inf, shape.nodes_held_per_segment)
    closed |= state.machines.calendar.shut(
        gang.end_s, gang.end_s, shape.nodes_held_per_segment, state.occupancy
    )
    extra: dict[int, int] = {}
    for segment in gang.binding:
        wider = _wider(state, segment, offer, closed, extra)
        if wider is None:
            return None
        segments.append(wider)
    taken = 0
    for segment in segments:
        taken |= 1 << state.index[segment.domain]
    more = shape.segments - len(segments)
    if more:
        found = _elsewhere(cycle, gang, offer, more, taken | closed)
        if found is None:
            return None
        segments += found
    return tuple(segments)


def _wider(
    state: FleetState, segment: Segment, offer: Offer, closed: int, taken: dict[int, int]
) -> Segment | None:
    """The segment with as many nodes as the offer says. `taken`: nodes that other segments took, by domain."""
    shape, d = offer.shape, state.index[segment.domain]
    more = shape.nodes_held_per_segment - len(segment.held)
    gone = taken.get(d, 0)
    if more < 0 or (more and closed >> d & 1) or state.occupancy.room[d] - gone.bit_count() < more:
        return None
    if not more:
        return segment
    extra = lowest_nodes(state.occupancy.free[d] & ~gone, more)
    taken[d] = gone | mask_of(extra)
    held = (*segment.nodes, *segment.spares, *extra)
    return Segment(
        domain=segment.domain, nodes=held[: shape.nodes_per_segment], spares=held[shape.nodes_per_segment :]
    )


def _elsewhere(
    cycle: Cycle, gang: Gang, offer: Offer, segments: int, avoid: int
) -> tuple[Segment, ...] | None:
    """So many more segments in other domains of the gang's cluster."""
    state = cycle.state
    job = state.jobs[gang.job]
    home = state.domains[state.index[gang.binding[0].domain]]
    (group,) = state.topology.groups(home.system, home.cluster)
    inside = group.domains
    if job.kind == "service" and job.nearness.apart_required:
        return None  # where its replicas are is not asked here
    inside &= beside(state.topology, job, offer.shape, [state.index[s.domain] for s in gang.binding])
    part = replace(offer, shape=replace(offer.shape, segments=segments))
    found = place(state, part, job, avoid=avoid | (group.domains & ~inside) | _others(state, group.domains))
    return None if found is None else bind(state, found, part.shape)


def _others(state: FleetState, domains: int) -> int:
    """All domains but these."""
    return ((1 << len(state.domains)) - 1) & ~domains
