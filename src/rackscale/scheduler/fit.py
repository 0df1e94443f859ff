"""Where a gang fits without moving anybody: best fit by NVLink domain, from the bucket index.

Preference: what keeps away from shunned domains, then what lies inside one unit of the preferred fabric level; then
fewest free nodes left over in the domains used, then the smallest fabric unit around them, then the cheapest system,
then the cluster delivered first; inside a unit, domains that lie close together in fabric order. Spares are never
used up by a placement, so none is broken into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from rackscale.events import Binding, Segment
from rackscale.fleet.fabric import Stage, Units
from rackscale.fleet.occupancy import Occupancy, lowest_nodes, mask_of, members
from rackscale.fleet.state import FleetState
from rackscale.fleet.topology import Group, Topology
from rackscale.workload import LEVELS, Job, Level, Nearness, Offer, Shape

WINDOW = 64
"""Equally good domains among which the closest are sought; more would cost time and change little."""
ANYWHERE = -1
"""The set of all domains."""


class Books(Protocol):
    """Where room is looked for: buckets[r] is the set of domains with room r."""

    buckets: list[int]


class Placement(NamedTuple):
    """Domain indices in rank order of the segments (a domain may repeat if the shape allows it)."""

    domains: list[int]
    free_nodes_left: int
    """Room that remains in the domains used."""


class Wish(NamedTuple):
    """What a placement has to look like, beyond the shape."""

    within: Level | None = None
    """All segments in one unit of this level."""
    spread: Level | None = None
    """Each segment in another unit of this level; domain: the same as a shape that may not share domains."""


NO_WISHES = (Wish(),)


class Search(NamedTuple):
    """What is looked for, and where."""

    topology: Topology
    books: Books
    shape: Shape
    wish: Wish = NO_WISHES[0]


def place(
    state: FleetState,
    offer: Offer,
    job: Job,
    *,
    books: Occupancy | None = None,
    avoid: int = 0,
    shun: int = 0,
) -> Placement | None:
    """The best placement of one gang of the job in this shape now, or None.

    `books`: where to look for room (default: the state's). `avoid`: domains not to use. `shun`: domains to use only if
    there is no placement without them.
    """
    books = state.occupancy if books is None else books
    groups = state.topology.groups(offer.system or job.system, job.cluster)  # the cheapest first
    for hidden in (avoid | shun, avoid) if shun else (avoid,):
        if offer.shape.segments == 1:
            alone = _best_one(books, groups, offer.shape.nodes_held_per_segment, hidden)
            if alone is not None:
                return alone
            continue
        for wish in wishes(job.nearness, offer.shape):
            found = _best(Search(state.topology, books, offer.shape, wish), groups, hidden)
            if found is not None:
                return found
    return None


def wishes(nearness: Nearness, shape: Shape) -> tuple[Wish, ...]:
    """What to try in turn: what is preferred, then what is required. One segment is near to itself wherever it is."""
    if shape.segments == 1:
        return NO_WISHES
    within, prefer, spread = nearness.within, nearness.prefer, nearness.spread
    required = Wish(within, spread)
    if prefer is None or (within is not None and LEVELS.index(prefer) >= LEVELS.index(within)):
        return (required,)
    return Wish(prefer, spread), required


def _best_one(books: Books, groups: Iterable[Group], nodes: int, avoid: int) -> Placement | None:
    """The best placement of one segment over the groups."""
    buckets = books.buckets
    for room in range(nodes, len(buckets)):
        bucket = buckets[room] & ~avoid if avoid else buckets[room]
        if not bucket:
            continue
        for group in groups:
            candidates = bucket & group.domains
            if candidates:
                return Placement([(candidates & -candidates).bit_length() - 1], room - nodes)
    return None


def _best(search: Search, groups: Iterable[Group], avoid: int) -> Placement | None:
    """The best placement over the groups."""
    best: Placement | None = None
    reach = 0
    for group in groups:
        found = place_in(search, group, avoid)
        if found is None or (best is not None and found.free_nodes_left > best.free_nodes_left):
            continue
        far = search.topology.reach(found.domains)
        if best is None or (found.free_nodes_left, far) < (best.free_nodes_left, reach):
            best, reach = found, far
            if best.free_nodes_left == 0 and reach <= 1:
                break
    return best


def place_in(search: Search, group: Group, avoid: int = 0) -> Placement | None:
    """The best placement inside one group of domains, or None."""
    shape, domains = search.shape, group.domains & ~avoid
    if shape.segments == 1:
        return place_one(search.books, domains, shape.nodes_held_per_segment)
    if shape.may_share_domain and search.wish.spread is None:
        return _share(search, group, domains)
    return _apart(search, group, domains)


def place_one(books: Books, within: int, nodes: int) -> Placement | None:
    """Best fit of one segment inside a set of domains."""
    buckets = books.buckets
    for room in range(nodes, len(buckets)):
        candidates = buckets[room] & within
        if candidates:
            return Placement([(candidates & -candidates).bit_length() - 1], room - nodes)
    return None


# -- one domain per segment --------------------------------------------------------------------------------------------


def _apart(search: Search, group: Group, domains: int) -> Placement | None:
    """One domain per segment, or one unit of the wished level per segment: those with the least room first."""
    topology, books, shape, wish = search
    units = None if wish.spread in (None, "domain") else topology.fabric(wish.spread, group)
    if len(group.leaves) > 1 or wish.within == "domain":
        region = _region(search, group, domains, units)
        if region is None:
            return None
        domains &= region
    buckets, needed, nodes = books.buckets, shape.segments, shape.nodes_held_per_segment
    chosen: list[int] = []
    left = 0
    for room in range(nodes, len(buckets)):
        candidates = buckets[room] & domains
        if not candidates:
            continue
        if units is not None:
            candidates = units.first(candidates)
        count = candidates.bit_count()
        take = min(count, needed - len(chosen))
        taken = closest(candidates, take, chosen) if take < count else list(members(candidates))
        chosen += taken
        left += take * (room - nodes)
        if len(chosen) == needed:
            return Placement(sorted(chosen), left)
        if wish.spread is not None and units is not None:
            for d in taken:
                domains &= ~topology.unit(wish.spread, d)
    return None


def _region(search: Search, group: Group, domains: int, units: Units | None) -> int | None:
    """The unit to place the gang in: of those that leave the fewest free nodes, one of the lowest level. None: none."""
    topology, books, shape, wish = search
    buckets = books.buckets
    needed = shape.segments
    stages = _stages(buckets, domains, shape.nodes_held_per_segment, units)
    if not stages or stages[-1][0].bit_count() < needed:
        return None
    least = sum(step * max(0, needed - usable.bit_count()) for usable, step in stages)
    lowest = 1 if wish.spread is None else LEVELS.index(wish.spread) + 1
    if wish.within is None:
        return _tightest(topology, group, stages, needed, LEVELS[lowest:])
    best: tuple[int, int] | None = None
    for level in LEVELS[lowest : LEVELS.index(wish.within) + 1]:
        found = topology.fabric(level, group).best(stages, needed)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
            if best[0] == least:
                break
    return best[1] if best else None


def _stages(buckets: list[int], domains: int, nodes: int, units: Units | None) -> list[Stage]:
    """Domains with more and more room, from `nodes` on. Units that segments must not share count once, by head."""
    stages: list[Stage] = []
    so_far = 0
    for room in range(nodes, len(buckets)):
        here = buckets[room] & domains
        if here:
            so_far |= here
            stages.append((so_far if units is None else units.occupied(so_far), 1))
        elif stages:
            stages[-1] = stages[-1][0], stages[-1][1] + 1
    return stages


def _tightest(
    topology: Topology, group: Group, stages: list[Stage], needed: int, levels: Iterable[Level]
) -> int:
    """The smallest unit in which the gang leaves as few free nodes as it does anywhere in the group."""
    base = usable = 0
    for usable, _ in stages:
        if usable.bit_count() >= needed:
            break
        base = usable  # all of these are used by every best placement
    candidates, take = usable & ~base, needed - base.bit_count()
    for level in levels:
        if base:
            unit = topology.unit(level, base.bit_length() - 1)
            if not base & ~unit and (candidates & unit).bit_count() >= take:
                return unit
            continue
        units = topology.fabric(level, group)
        heads = units.holding(candidates, take)
        if heads:
            return units.scarcest(heads, stages[-1][0])
    return ANYWHERE


# -- several segments per domain ---------------------------------------------------------------------------------------


def _share(search: Search, group: Group, domains: int) -> Placement | None:
    """Several segments per domain, anywhere in the group or inside one unit of the wished level."""
    topology, books, shape, (within, _) = search
    if within == "domain":
        found = place_one(books, domains, shape.nodes_held)
        return found and Placement(found.domains * shape.segments, found.free_nodes_left)
    buckets = books.buckets
    bound = _fill(topology, buckets, domains, shape)
    if bound is None or within is None or topology.reach(bound.domains) <= LEVELS.index(within):
        return bound
    units = topology.fabric(within, group)
    enough = _multiples(buckets, domains, shape)
    best: Placement | None = None
    tried = 0
    for head in members(units.holding(enough[0], -(-shape.segments // len(enough)))):
        unit = units.mask(head)
        if sum((usable & unit).bit_count() for usable in enough) < shape.segments:
            continue
        found = _fill(topology, buckets, enough[0] & unit, shape)
        tried += 1
        if found is not None and (best is None or _opened(found) < _opened(best)):
            best = found
        if best is not None and (tried == WINDOW or _opened(best) <= _opened(bound)):
            break
    return best


def _multiples(buckets: list[int], domains: int, shape: Shape) -> list[int]:
    """The domains with room for at least one segment, for at least two, and so on, while there are any."""
    nodes = shape.nodes_held_per_segment
    enough = [0] * (len(buckets) // nodes)
    so_far = 0
    for room in range(len(buckets) - 1, nodes - 1, -1):
        so_far |= buckets[room] & domains
        enough[room // nodes - 1] = so_far
    return [usable for usable in enough if usable]


def _opened(placement: Placement) -> tuple[int, int]:
    return len(set(placement.domains)), placement.free_nodes_left


def _fill(topology: Topology, buckets: list[int], within: int, shape: Shape) -> Placement | None:
    """Several segments per domain: the fewest domains, the last of them by best fit."""
    needed, nodes = shape.segments, shape.nodes_held_per_segment
    chosen: list[int] = []
    left = 0
    while needed:
        whole = needed * nodes
        rooms = [*range(whole, len(buckets)), *range(min(whole, len(buckets)) - 1, nodes - 1, -1)]
        for room in rooms:
            candidates = buckets[room] & within
            if candidates:
                break
        else:
            return None
        d = _neighbour(topology, candidates, chosen)
        within &= ~(1 << d)
        take = min(needed, room // nodes)
        chosen += [d] * take
        needed -= take
        left += room - take * nodes
    return Placement(sorted(chosen), left)


def _neighbour(topology: Topology, candidates: int, chosen: list[int]) -> int:
    """The candidate in the smallest unit with the first domain chosen; of those, the closest in fabric order."""
    for level in LEVELS[1:] if chosen else ():
        near = candidates & topology.unit(level, chosen[0])
        if near:
            candidates = near
            break
    return closest(candidates, 1, chosen)[0]


def closest(candidates: int, count: int, anchor: list[int]) -> list[int]:
    """`count` of the candidate domains that lie close to `anchor`, or to each other, in fabric order."""
    if count == 1 and not anchor:
        return [(candidates & -candidates).bit_length() - 1]
    if anchor:
        at = anchor[0]
        below, above = candidates & ((1 << at) - 1), candidates >> at << at
        return sorted(_nearest(below, above, at, count))
    window: list[int] = []
    for d in members(candidates):
        window.append(d)
        if len(window) >= count and d - window[-count] == count - 1:  # neighbours: none can be closer
            return window[-count:]
        if len(window) == max(WINDOW, count):
            break
    starts = range(len(window) - count + 1)
    first = min(starts, key=lambda i: (window[i + count - 1] - window[i], i))
    return window[first : first + count]


def _nearest(below: int, above: int, at: int, count: int) -> list[int]:
    near: list[int] = []
    while len(near) < count:
        low = below.bit_length() - 1
        high = (above & -above).bit_length() - 1
        if high < 0 or (low >= 0 and at - low <= high - at):
            near.append(low)
            below ^= 1 << low
        else:
            near.append(high)
            above &= above - 1
    return near


def beside(topology: Topology, job: Job, shape: Shape, domains: Iterable[int]) -> int:
    """The set of domains where one more segment of a gang may lie, when others of its segments lie in `domains`.

    For whoever puts segments down one by one: to move one, or to clear room. It may hold domains of other systems.
    """
    allowed = ANYWHERE
    within, spread = job.nearness.within, job.nearness.spread
    if spread is None and not shape.may_share_domain:
        spread = "domain"
    for d in domains:
        if within is not None:
            allowed &= topology.unit(within, d)
        if spread is not None:
            allowed &= ~topology.unit(spread, d)
    return allowed


# -- nodes -------------------------------------------------------------------------------------------------------------


def bind(
    state: FleetState,
    placement: Placement,
    shape: Shape,
    *,
    books: Occupancy | None = None,
    forbidden: Mapping[int, int] = {},
) -> Binding:
    """The nodes of a placement: the lowest free ones of each domain, in rank order; the gang's own spares after them.

    `forbidden[d]` is a mask of nodes of domain d not to take; that enough others are free is the caller's to know.
    """
    occupancy = state.occupancy if books is None else books
    taken = dict(forbidden)
    segments = []
    for d in placement.domains:
        nodes = lowest_nodes(occupancy.free[d] & ~taken.get(d, 0), shape.nodes_held_per_segment)
        taken[d] = taken.get(d, 0) | mask_of(nodes)
        work = shape.nodes_per_segment
        segments.append(Segment(domain=state.domains[d].name, nodes=nodes[:work], spares=nodes[work:]))
    return tuple(segments)


def ever_fits(state: FleetState, job: Job) -> bool:
    """Whether the gang would fit somewhere, in some shape, if the whole fleet were there, healthy and empty."""
    topology = state.topology
    kept = state.policy.spares == "fixed" and not job.cpu_only
    books = topology.empty if kept else topology.whole
    return any(
        place_in(Search(topology, books, offer.shape, wish), group) is not None
        for offer in job.choices
        for wish in wishes(job.nearness, offer.shape)[-1:]
        for group in topology.groups(offer.system or job.system, job.cluster)
    )
