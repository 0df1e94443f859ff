"""Where a gang fits without moving anybody: best fit by NVLink domain, from the bucket index.

Preference: fewest free nodes left over in the domains used, then the cheapest system, then the cluster delivered
first; inside a cluster, domains that lie close together in fabric order.
"""

from __future__ import annotations

from typing import NamedTuple

from rackscale.events import Binding, Segment
from rackscale.fleet.occupancy import Occupancy, lowest_nodes, members
from rackscale.fleet.state import FleetState
from rackscale.fleet.topology import Group
from rackscale.workload import Job, Shape

WINDOW = 64
"""Equally good domains among which the closest are sought; more would cost time and change little."""


class Placement(NamedTuple):
    """Domain indices in rank order of the segments (a domain may repeat if the shape allows it)."""

    domains: list[int]
    free_nodes_left: int
    """Room that remains in the domains used."""


def place(state: FleetState, job: Job, *, avoid: int = 0, shape: Shape | None = None) -> Placement | None:
    """The best placement of one gang now, or None. `avoid` is a set of domains not to use."""
    best: Placement | None = None
    shape = shape or job.shape
    for group in state.topology.groups(job.system, job.cluster):  # the cheapest first
        found = place_in(state.occupancy, group, shape, avoid)
        if found is not None and (best is None or found.free_nodes_left < best.free_nodes_left):
            best = found
            if best.free_nodes_left == 0:
                break
    return best


def place_in(occupancy: Occupancy, group: Group, shape: Shape, avoid: int = 0) -> Placement | None:
    """The best placement inside one group of domains, or None."""
    within = group.domains & ~avoid
    if shape.segments == 1:
        return place_one(occupancy, within, shape.nodes_per_segment)
    if shape.may_share_domain:
        return _share(occupancy, within, shape)
    return _spread(occupancy, within, shape)


def place_one(occupancy: Occupancy, within: int, nodes: int) -> Placement | None:
    """Best fit of one segment inside a set of domains."""
    buckets = occupancy.buckets
    for room in range(nodes, len(buckets)):
        candidates = buckets[room] & within
        if candidates:
            return Placement([(candidates & -candidates).bit_length() - 1], room - nodes)
    return None


def _spread(occupancy: Occupancy, within: int, shape: Shape) -> Placement | None:
    """One domain per segment, those with the least room first."""
    needed, nodes = shape.segments, shape.nodes_per_segment
    chosen: list[int] = []
    left = 0
    for room in range(nodes, len(occupancy.buckets)):
        candidates = occupancy.buckets[room] & within
        if not candidates:
            continue
        count = candidates.bit_count()
        take = min(count, needed - len(chosen))
        chosen += closest(candidates, take, chosen) if take < count else members(candidates)
        left += take * (room - nodes)
        if len(chosen) == needed:
            return Placement(sorted(chosen), left)
    return None


def _share(occupancy: Occupancy, within: int, shape: Shape) -> Placement | None:
    """Several segments per domain: the fewest domains, the last of them by best fit."""
    needed, nodes = shape.segments, shape.nodes_per_segment
    chosen: list[int] = []
    left = 0
    while needed:
        whole = needed * nodes
        rooms = [
            *range(whole, len(occupancy.buckets)),
            *range(min(whole, len(occupancy.buckets)) - 1, nodes - 1, -1),
        ]
        for room in rooms:
            candidates = occupancy.buckets[room] & within
            if candidates:
                break
        else:
            return None
        (d,) = closest(candidates, 1, chosen)
        within &= ~(1 << d)
        take = min(needed, room // nodes)
        chosen += [d] * take
        needed -= take
        left += room - take * nodes
    return Placement(sorted(chosen), left)


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


def bind(state: FleetState, placement: Placement, shape: Shape) -> Binding:
    """The nodes of a placement: the lowest free ones of each domain, in rank order."""
    taken: dict[int, int] = {}
    segments = []
    for d in placement.domains:
        nodes = lowest_nodes(state.occupancy.free[d] & ~taken.get(d, 0), shape.nodes_per_segment)
        taken[d] = taken.get(d, 0) | sum(1 << n for n in nodes)
        segments.append(Segment(domain=state.domains[d].name, nodes=nodes))
    return tuple(segments)


def ever_fits(state: FleetState, job: Job) -> bool:
    """Whether the gang would fit somewhere if the whole fleet were healthy and empty."""
    shape = job.shape
    for group in state.topology.groups(job.system, job.cluster):
        per_domain = group.largest // shape.nodes_per_segment
        if not shape.may_share_domain:
            per_domain = min(per_domain, 1)
        if per_domain * group.members >= shape.segments:
            return True
    return False
