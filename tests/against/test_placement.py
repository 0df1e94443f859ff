"""Placement on a fabric against trying everything, on fleets small enough for that."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rackscale.events import Configured, Delivered, DomainSpec
from rackscale.fleet.occupancy import Occupancy, members
from rackscale.fleet.state import FleetState
from rackscale.scheduler.fit import beside, bind, ever_fits, place
from rackscale.workload import LEVELS, Job, Level, Nearness, Offer, Policy, Shape

Way = tuple[int, ...]
"""Domains of a gang's segments, ascending."""


@st.composite
def fleets(draw: st.DrawFn) -> tuple[DomainSpec, ...]:
    """Up to seven domains of one or two clusters, of one or two systems, labelled in any order or not at all."""
    labels = draw(st.sampled_from([("",), ("x", "y"), ("", "x", "y", "z")]))
    label = st.sampled_from(labels)
    wide = st.sampled_from(labels[:2])
    return tuple(
        DomainSpec(
            name=f"d{d}", cluster=draw(st.sampled_from("aaaab")), system=draw(st.sampled_from("sssst")),
            nodes=draw(st.integers(1, 5)), spares=draw(st.integers(0, 1)), gpus_per_node=4,
            region=draw(wide), building=draw(wide), spine=draw(label), leaf=draw(label),
        )
        for d in range(draw(st.integers(1, 7)))
    )  # fmt: skip


levels = st.one_of(st.none(), st.sampled_from(LEVELS))
nearnesses = st.builds(Nearness, within=levels, prefer=levels, spread=levels)
shapes = st.builds(
    Shape, segments=st.integers(1, 3), nodes_per_segment=st.integers(1, 3), may_share_domain=st.booleans(),
    spares_per_segment=st.sampled_from([0, 0, 0, 1]),
)  # fmt: skip


systems = st.sampled_from([None, "s", "t"])


def delivered(fleet: tuple[DomainSpec, ...], policy: Policy | None = None) -> FleetState:
    state = FleetState()
    state.fold(Configured(at_s=0.0, policy=policy or Policy()))
    state.fold(Delivered(at_s=0.0, domains=fleet))
    return state


def together(specs: list[DomainSpec], level: Level) -> bool:
    """Whether all domains are in one unit of the level, by their labels."""
    if level == "domain":
        return len({spec.name for spec in specs}) == 1
    names: dict[Level, str] = {"region": "region", "building": "building", "spine": "spine", "leaf": "leaf"}
    wider = [names[wide] for wide in LEVELS[LEVELS.index(level) :]]
    return len({tuple(getattr(spec, name) for name in wider) for spec in specs}) == 1


def reach(specs: list[DomainSpec]) -> int:
    return next((at for at, level in enumerate(LEVELS) if together(specs, level)), len(LEVELS))


def ways(fleet: tuple[DomainSpec, ...], room: list[int], shape: Shape, nearness: Nearness) -> list[Way]:
    """Every way to give the gang's segments to domains with so much room."""
    found = []
    for way in itertools.combinations_with_replacement(range(len(fleet)), shape.segments):
        specs = [fleet[d] for d in way]
        pairs = list(itertools.combinations(specs, 2))
        spread: Level | None = nearness.spread or (None if shape.may_share_domain else "domain")
        if (
            len({(spec.cluster, spec.system) for spec in specs}) == 1
            and all(way.count(d) * shape.nodes_held_per_segment <= room[d] for d in way)
            and (nearness.within is None or together(specs, nearness.within))
            and not (spread and any(together([a, b], spread) for a, b in pairs))
        ):
            found.append(way)
    return found


def occupied(fleet: tuple[DomainSpec, ...], data: st.DataObject) -> tuple[FleetState, list[int]]:
    """A fleet that is partly held, and the room of each domain."""
    state = delivered(fleet)
    for d, spec in enumerate(fleet):
        state.occupancy.hold(d, data.draw(st.integers(0, (1 << spec.nodes) - 1)))
    free = [mask.bit_count() for mask in state.occupancy.free]
    return state, [max(0, n - spec.spares) for n, spec in zip(free, fleet, strict=True)]


@given(fleet=fleets(), shape=shapes, nearness=nearnesses, data=st.data())
def test_placement_on_a_fabric_against_every_allotment(
    fleet: tuple[DomainSpec, ...], shape: Shape, nearness: Nearness, data: st.DataObject
) -> None:
    state, room = occupied(fleet, data)
    lawful = ways(fleet, room, shape, nearness)
    job = Job(name="j", kind="batch", shape=shape, nearness=nearness)
    found = place(state, job.choices[0], job)
    assert (found is None) == (not lawful)
    if found is None:
        return
    assert tuple(found.domains) in lawful

    def rank(way: Way) -> tuple[bool, int, int]:
        specs = [fleet[d] for d in way]
        preferred = nearness.prefer is None or together(specs, nearness.prefer)
        return not preferred, sum(room[d] for d in set(way)) - shape.nodes_held, reach(specs)

    chosen = rank(tuple(found.domains))
    assert found.free_nodes_left == chosen[1]
    best = min(map(rank, lawful))
    assert chosen[0] == best[0]
    if not shape.may_share_domain or nearness.spread is not None:
        assert chosen == best
    elif len({(spec.cluster, spec.system) for spec in fleet}) == 1:
        # Segments that may share a domain break open as few of them as possible.
        rest = [way for way in lawful if rank(way)[0] == best[0]]
        assert len(set(found.domains)) == min(len(set(way)) for way in rest)


@given(fleet=fleets(), shape=shapes, nearness=nearnesses, data=st.data())
def test_avoided_domains_are_never_used_and_shunned_ones_only_in_need(
    fleet: tuple[DomainSpec, ...], shape: Shape, nearness: Nearness, data: st.DataObject
) -> None:
    state, room = occupied(fleet, data)
    every = (1 << len(fleet)) - 1
    avoid, shun = data.draw(st.integers(0, every)), data.draw(st.integers(0, every))
    job = Job(name="j", kind="batch", shape=shape, nearness=nearness)
    found = place(state, job.choices[0], job, avoid=avoid, shun=shun)
    lawful = [way for way in ways(fleet, room, shape, nearness) if not any(avoid >> d & 1 for d in way)]
    assert (found is None) == (not lawful)
    if found is not None:
        assert tuple(found.domains) in lawful
        without = [way for way in lawful if not any(shun >> d & 1 for d in way)]
        assert not without or tuple(found.domains) in without


@given(
    fleet=fleets(), nearness=nearnesses, offers=st.lists(st.tuples(shapes, systems), min_size=1, max_size=3),
    cluster=st.sampled_from([None, "a", "b"]), policy=st.sampled_from(["fixed", "none"]),
)  # fmt: skip
def test_what_ever_fits_against_every_allotment_of_the_empty_fleet(
    fleet: tuple[DomainSpec, ...],
    nearness: Nearness,
    offers: list[tuple[Shape, str | None]],
    cluster: str | None,
    policy: str,
) -> None:
    """Also while every node is down."""
    state = delivered(fleet, Policy(spares="fixed" if policy == "fixed" else "none"))
    for d in range(len(fleet)):
        state.occupancy.set_up(d, 0)
    (shape, system), *others = offers
    job = Job(
        name="j", kind="batch", shape=shape, system=system, cluster=cluster, nearness=nearness,
        offers=tuple(Offer(shape=other, system=where) for other, where in others),
    )  # fmt: skip
    possible = any(
        all(system is None or fleet[d].system == system for d in way)
        and all(cluster is None or fleet[d].cluster == cluster for d in way)
        for offer in job.choices
        for system in [offer.system or job.system]
        for way in ways(fleet, [s.nodes - (s.spares if policy == "fixed" else 0) for s in fleet], offer.shape, nearness)
    )  # fmt: skip
    assert ever_fits(state, job) == possible


@given(fleet=fleets(), shape=shapes, nearness=nearnesses)
def test_segments_put_down_one_by_one_against_every_allotment(
    fleet: tuple[DomainSpec, ...], shape: Shape, nearness: Nearness
) -> None:
    topology = delivered(fleet).topology
    job = Job(name="j", kind="batch", shape=shape, nearness=nearness)
    plenty = [shape.nodes_held] * len(fleet)
    lawful = set(ways(fleet, plenty, shape, nearness))
    for way in itertools.combinations_with_replacement(range(len(fleet)), shape.segments):
        if len({(fleet[d].cluster, fleet[d].system) for d in way}) == 1:
            one_by_one = all(beside(topology, job, shape, way[:at]) >> d & 1 for at, d in enumerate(way))
            assert one_by_one == (way in lawful)


@given(fleet=fleets(), shape=shapes, data=st.data())
def test_nodes_are_the_lowest_that_are_free_and_allowed(
    fleet: tuple[DomainSpec, ...], shape: Shape, data: st.DataObject
) -> None:
    """In books of one's own as well as in the state's."""
    state = delivered(fleet)
    books = Occupancy()
    for spec in fleet:
        books.add(spec.nodes, 0)
    forbidden = {}
    for d, spec in enumerate(fleet):
        books.hold(d, data.draw(st.integers(0, (1 << spec.nodes) - 1)))
        forbidden[d] = data.draw(st.integers(0, (1 << spec.nodes) - 1))
    job = Job(name="j", kind="batch", shape=shape, cpu_only=True)
    found = place(state, job.choices[0], job, books=books)
    if found is None:
        return
    free = {d: list(members(books.free[d] & ~forbidden[d])) for d in found.domains}
    if any(len(free[d]) < found.domains.count(d) * shape.nodes_held_per_segment for d in free):
        return
    binding = bind(state, found, shape, books=books, forbidden=forbidden)
    assert [segment.domain for segment in binding] == [fleet[d].name for d in found.domains]
    for segment, d in zip(binding, found.domains, strict=True):
        assert len(segment.nodes) == shape.nodes_per_segment
        expected = tuple(free[d].pop(0) for _ in range(shape.nodes_held_per_segment))
        assert segment.held == expected
