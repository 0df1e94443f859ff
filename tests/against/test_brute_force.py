"""Placement and preemption against trying everything, on fleets small enough for that."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from rackscale.events import (
    Action,
    Checkpointed,
    Claim,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    GangRunning,
    NodeFailed,
    Plan,
    Preempt,
    Reason,
    Segment,
    Start,
    Submitted,
    Ticked,
)
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.scheduler.fit import place
from rackscale.workload import Durability, Job, Offer, Policy, Shape

NOW_S = 10_000.0
MIN_RUNTIME_S = 500.0


@st.composite
def fleets(draw: st.DrawFn, clusters: int = 2) -> tuple[DomainSpec, ...]:
    return tuple(
        DomainSpec(
            name=f"c{c}/us-{d:03}", system="s", nodes=draw(st.integers(1, 6)), gpus_per_node=c + 1, cluster=f"c{c}",
            spares=draw(st.integers(0, 1)),
        )
        for c in range(draw(st.integers(1, clusters)))
        for d in range(draw(st.integers(1, 4)))
    )  # fmt: skip


shapes = st.builds(
    Shape, segments=st.integers(1, 3), nodes_per_segment=st.integers(1, 4), may_share_domain=st.booleans()
)


def delivered(fleet: tuple[DomainSpec, ...]) -> FleetState:
    state = FleetState()
    state.fold(Configured(at_s=0.0, policy=Policy(min_runtime_s=MIN_RUNTIME_S)))
    state.fold(Delivered(at_s=0.0, domains=fleet))
    return state


def clusters(state: FleetState) -> list[list[int]]:
    names = sorted({spec.cluster for spec in state.domains})
    return [[d for d, spec in enumerate(state.domains) if spec.cluster == name] for name in names]


def allotments(room: dict[int, int], shape: Shape) -> list[tuple[int, ...]]:
    """Every way to give the gang's segments to domains with so much room, as domains in order."""
    ways = []
    for domains in itertools.combinations_with_replacement(sorted(room), shape.segments):
        counts = {d: domains.count(d) for d in domains}
        if all(
            count * shape.nodes_per_segment <= room[d] and (count == 1 or shape.may_share_domain)
            for d, count in counts.items()
        ):
            ways.append(domains)
    return ways


# -- placement ---------------------------------------------------------------------------------------------------------


@given(fleet=fleets(), shape=shapes, data=st.data())
def test_placement_against_every_allotment(
    fleet: tuple[DomainSpec, ...], shape: Shape, data: st.DataObject
) -> None:
    state = delivered(fleet)
    for d, spec in enumerate(fleet):
        state.occupancy.hold(d, data.draw(st.integers(0, (1 << spec.nodes) - 1)))
    rooms = [
        {d: max(0, state.occupancy.free[d].bit_count() - fleet[d].spares) for d in cluster}
        for cluster in clusters(state)
    ]
    ways = [(room, way) for room in rooms for way in allotments(room, shape)]
    found = place(state, Offer(shape=shape), Job(name="j", kind="batch", shape=shape))
    if not ways:
        assert found is None
        return
    assert found is not None
    assert tuple(found.domains) in [way for _, way in ways]

    def left(room: dict[int, int], way: tuple[int, ...]) -> int:
        return sum(room[d] for d in set(way)) - shape.nodes

    if not shape.may_share_domain:
        assert found.free_nodes_left == min(left(room, way) for room, way in ways)
    elif len(rooms) == 1:
        # Segments that may share a domain break open as few of them as possible.
        assert len(set(found.domains)) == min(len(set(way)) for _, way in ways)


# -- preemption --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tenant:
    """A gang that runs, with what evicting it costs (GPU-seconds; None: it may not be evicted)."""

    name: str
    nodes: dict[int, int]
    """Domain -> number of nodes."""
    cost: float | None


@st.composite
def tenanted(draw: st.DrawFn, *, spread: bool) -> tuple[FleetState, list[Tenant]]:
    """A fleet with running gangs on it; `spread`: some of them over two domains."""
    state = delivered(draw(fleets()))
    free = {d: list(range(spec.nodes)) for d, spec in enumerate(state.domains)}
    tenants = []
    for number in range(draw(st.integers(2, 9))):
        cluster = draw(st.sampled_from(clusters(state)))
        nodes = draw(st.integers(1, 3))
        fitting = [d for d in cluster if len(free[d]) >= nodes]
        segments = min(len(fitting), draw(st.integers(1, 2)) if spread else 1)
        if not segments:
            continue
        on = draw(st.sets(st.sampled_from(fitting), min_size=segments, max_size=segments))
        binding = tuple(
            Segment(domain=state.domains[d].name, nodes=tuple(free[d].pop(0) for _ in range(nodes)))
            for d in sorted(on)
        )
        tenants.append(draw(settled(state, f"t{number}", binding)))
    for d, nodes_free in free.items():
        if draw(st.booleans()) and nodes_free:
            state.fold(NodeFailed(at_s=NOW_S, domain=state.domains[d].name, nodes=(nodes_free.pop(),)))
    state.fold(Ticked(at_s=NOW_S))
    return state, tenants


@st.composite
def settled(draw: st.DrawFn, state: FleetState, name: str, binding: tuple[Segment, ...]) -> Tenant:
    """Let a gang run on the binding, as far as events can say."""
    restart_s, penalty = draw(st.sampled_from((30.0, 900.0))), draw(st.sampled_from((0.0, 0.5)))
    priority, preemptible = draw(st.sampled_from(("low", "normal", "high"))), draw(st.integers(0, 7)) > 0
    started_s = draw(st.sampled_from((0.0, 5000.0, NOW_S - 600.0, NOW_S - 400.0)))
    nodes = len(binding[0].nodes)
    job = Job(
        name=name, kind="training", priority=priority, preemptible=preemptible,
        shape=Shape(segments=len(binding), nodes_per_segment=nodes), eviction_penalty_gpu_h=penalty,
        durability=Durability(restart_s=restart_s),
    )  # fmt: skip
    at_s = max(started_s, state.now_s)
    state.fold(Submitted(at_s=at_s, job=job))
    act(state, at_s, Start(gang=name, attempt=1, binding=binding, reason=Reason(code="fits")))
    running = draw(st.integers(0, 4)) > 0
    saved_s = at_s
    if running:
        state.fold(GangRunning(at_s=at_s, gang=name, attempt=1))
        if draw(st.booleans()):
            saved_s = at_s + draw(st.sampled_from((10.0, 50.0)))
            state.fold(Checkpointed(at_s=saved_s, gang=name, attempt=1))
    gpus = sum(len(s.nodes) * state.domains[state.index[s.domain]].gpus_per_node for s in binding)
    cost = (NOW_S - saved_s + restart_s) * gpus + penalty * 3600.0
    lawful = running and preemptible and priority != "high" and NOW_S - at_s >= max(MIN_RUNTIME_S, restart_s)
    return Tenant(name, {state.index[s.domain]: nodes for s in binding}, cost if lawful else None)


def act(state: FleetState, at_s: float, *actions: Action) -> None:
    state.fold(Decided(at_s=at_s, plan=Plan(at_s=at_s, actions=actions)))


def cheapest(state: FleetState, tenants: list[Tenant], shape: Shape) -> float | None:
    """Least cost over all sets of victims after which the gang fits, spares kept; None: there is no such set."""
    lawful = [tenant for tenant in tenants if tenant.cost is not None]
    best = None
    for count in range(len(lawful) + 1):
        for victims in itertools.combinations(lawful, count):
            cost = sum(tenant.cost or 0.0 for tenant in victims)
            if best is not None and cost >= best:
                continue
            for cluster in clusters(state):
                room = {
                    d: state.occupancy.free[d].bit_count()
                    + sum(tenant.nodes.get(d, 0) for tenant in victims)
                    - state.domains[d].spares
                    for d in cluster
                }
                if allotments(room, shape):
                    best = cost
    return best


def victims_of(state: FleetState, shape: Shape) -> tuple[list[Preempt], bool]:
    """Whom a gang of high priority sends away, and whether it may start or claim."""
    state.fold(Submitted(at_s=NOW_S, job=Job(name="new", kind="training", shape=shape, priority="high")))
    plan = decide(state, NOW_S)
    placed = any(isinstance(action, Start | Claim) and action.gang == "new" for action in plan.actions)
    return [action for action in plan.actions if isinstance(action, Preempt)], placed


def price(preempt: Preempt) -> float:
    reason = preempt.reason
    return reason.lost_gpu_s + reason.restart_gpu_s + reason.penalty_gpu_s


@given(world=tenanted(spread=True), nodes=st.integers(1, 5))
def test_victims_of_one_segment_against_every_set(world: tuple[FleetState, list[Tenant]], nodes: int) -> None:
    """Also where evicting a gang frees nodes elsewhere: no set of victims is cheaper than the chosen one."""
    state, tenants = world
    shape = Shape(nodes_per_segment=nodes)
    best = cheapest(state, tenants, shape)
    victims, placed = victims_of(state, shape)
    assert placed == (best is not None)
    assert sum(map(price, victims)) == (best or 0.0)


@given(
    world=tenanted(spread=False),
    shape=st.builds(Shape, segments=st.integers(1, 3), nodes_per_segment=st.integers(1, 4)),
)
def test_victims_of_several_segments_against_every_set(
    world: tuple[FleetState, list[Tenant]], shape: Shape
) -> None:
    """Where no victim spans domains, the cheapest domains together are the cheapest set."""
    state, tenants = world
    best = cheapest(state, tenants, shape)
    victims, placed = victims_of(state, shape)
    assert placed == (best is not None)
    assert sum(map(price, victims)) == (best or 0.0)


@given(world=tenanted(spread=True), shape=shapes)
def test_room_is_cleared_exactly_where_some_set_of_victims_opens_it(
    world: tuple[FleetState, list[Tenant]], shape: Shape
) -> None:
    """Victims that span domains and segments that share them make the search greedy: lawful, not always cheapest."""
    state, tenants = world
    best = cheapest(state, tenants, shape)
    victims, placed = victims_of(state, shape)
    assert placed == (best is not None)
    assert sum(map(price, victims)) >= (best or 0.0)
