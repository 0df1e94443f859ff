"""`why` says what decided: the constraint is true, and the way out is what the scheduler then does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.events import (
    Action,
    Announced,
    Booked,
    Claim,
    DomainSpec,
    Drained,
    GangEnded,
    Move,
    Planned,
    Preempt,
    Reserve,
    Start,
    Submitted,
)
from rackscale.fleet.state import FleetState
from rackscale.report import because
from rackscale.scheduler import decide
from rackscale.scheduler.answers import Unblock, Why
from rackscale.scheduler.explain import why
from rackscale.workload import Booking, Job, Maintenance, Nearness, Offer, Policy, Queue, Shape
from tests.scheduler.asking import NEVER_MOVE, SMALL, asked, lasting
from tests.scheduler.world import World, domain, job

# -- one per constraint ------------------------------------------------------------------------------------------------


def test_topology_is_named_when_gpus_are_free_but_no_domain_is() -> None:
    world = World(domain(0), domain(1), policy=NEVER_MOVE)
    world.submit(job("a", 9), job("b", 9))
    world.submit(job("wide", 16))
    answer = asked(world, "wide")
    assert answer.constraint == "topology"
    assert answer.domains[0].lacks == 8
    assert "64 GPUs are free" in because.sentence(answer)


def test_capacity() -> None:
    world = World(*SMALL, policy=NEVER_MOVE)
    world.submit(job("a", 4), job("b", 3), job("wide", 2))
    answer = asked(world, "wide")
    assert (answer.constraint, answer.obstacle and answer.obstacle.free_gpus) == ("capacity", 4)
    assert [h.gang for h in answer.domains[0].held_by] == ["b"]


def test_what_fits_starts_with_the_next_decision() -> None:
    world = World(*SMALL)
    world.state.fold(Submitted(at_s=0.0, job=job("new", 2)))
    assert asked(world, "new").constraint == "next-cycle"
    assert [a.gang for a in world.cycle() if isinstance(a, Start)] == ["new"]


def test_claimed_says_who_leaves_and_when() -> None:
    world = World(*SMALL, policy=Policy(min_runtime_s=0.0))
    world.submit(*(job(f"low-{i}", 4, priority="low", restart_s=0.0) for i in range(2)))
    world.submit(job("prod", 4, priority="production"), at_s=100.0)
    answer = asked(world, "prod")
    assert (answer.constraint, answer.obstacle and answer.obstacle.at_s) == ("claimed", 130.0)
    assert not answer.unblocks


def test_backfill_that_would_delay_somebody() -> None:
    world = World(domain(0, nodes=4, spares=0), policy=NEVER_MOVE)
    world.submit(lasting("runs", 3, s=1000.0))
    world.submit(lasting("whole", 4, s=1000.0, priority="high"))
    world.submit(lasting("long", 1, s=2000.0))
    answer = asked(world, "long")
    assert answer.obstacle is not None
    assert (answer.constraint, answer.obstacle.subject, answer.obstacle.at_s) == ("reserved", "whole", 1000.0)
    assert answer.line is not None
    assert (answer.line.ahead, answer.line.next_ahead) == (1, "whole")
    whole = asked(world, "whole").reservation
    assert whole is not None
    assert whole.promised
    assert [(s.kind, s.subject, s.at_s) for s in whole.steps] == [("ends", "runs", 1000.0)]


def hung(i: int, leaf: str) -> DomainSpec:
    return replace(domain(i, nodes=4, spares=0), leaf=leaf)


def test_fabric_when_the_free_domains_hang_on_different_leaves() -> None:
    world = World(*(hung(i, leaf) for i, leaf in enumerate("aabb")), policy=NEVER_MOVE)
    world.submit(job("all", 4, 4))
    world.submit(*(job(f"one-{i}", 4) for i in range(4)))
    world.end("all")
    for name in ("one-0", "one-2"):
        world.end(name)
    assert {world.where(name)[0] for name in ("one-1", "one-3")} == {"c/us-001", "c/us-003"}
    world.submit(replace(job("near", 4, 2), nearness=Nearness(within="leaf")))
    answer = asked(world, "near")
    assert answer.obstacle is not None
    assert (answer.constraint, answer.obstacle.subject) == ("fabric", "within leaf")
    world.submit(replace(job("far", 2, 2), nearness=Nearness(spread="leaf")))
    assert asked(world, "far").status == "running"


def test_fabric_when_segments_must_lie_on_different_leaves() -> None:
    world = World(*(hung(i, leaf) for i, leaf in enumerate("aab")), policy=NEVER_MOVE)
    world.submit(job("all", 4, 3))
    world.submit(*(job(f"one-{i}", 4) for i in range(3)))
    world.end("all")
    for name in ("one-0", "one-1"):
        world.end(name)
    assert world.where("one-2") == ["c/us-002"]
    world.submit(replace(job("far", 4, 2), nearness=Nearness(spread="leaf")))
    answer = asked(world, "far")
    assert answer.obstacle is not None
    assert (answer.constraint, answer.obstacle.subject) == ("fabric", "spread leaf")


def test_fabric_when_a_replica_must_be_apart() -> None:
    world = World(hung(0, "a"), hung(1, "a"), policy=NEVER_MOVE)
    near = Nearness(apart="leaf", apart_required=True)
    world.submit(replace(job("web", 2, kind="service", replicas=2), nearness=near))
    first, second = why(world.state, "web")
    assert (first.status, second.constraint) == ("running", "fabric")
    assert second.obstacle is not None
    assert second.obstacle.subject == "apart leaf"


def test_replicas_are_judged_together_and_each_has_its_place() -> None:
    world = World(*SMALL, policy=NEVER_MOVE)
    world.submit(job("a", 3), job("b", 3))
    world.submit(job("web", 1, kind="service", replicas=5))
    answers = why(world.state, "web")
    assert [a.constraint for a in answers] == ["fits"] * 2 + ["capacity"] * 3
    assert [a.line.ahead for a in answers if a.line] == [0, 1, 2]
    world = World(domain(0, nodes=2, spares=0))
    world.state.fold(Submitted(at_s=0.0, job=job("new", 1, kind="service", replicas=3)))
    answers = why(world.state, "new")
    assert [a.constraint for a in answers] == ["next-cycle", "next-cycle", "capacity"]
    assert [a.gang for a in world.cycle() if isinstance(a, Start)] == ["new/0", "new/1"]


def test_queue_limits_in_their_own_unit() -> None:
    queues = (
        Queue(name="org", quota_gpus=16, borrow_gpus=8),
        Queue(name="team", parent="org"),
        Queue(name="few", max_gangs=1),
        Queue(name="user", max_gpus_per_user=8),
        Queue(name="racks", quota_domains=1.0, borrow_domains=0.5),
    )
    world = World(*(domain(i, nodes=4, spares=0) for i in range(8)), policy=NEVER_MOVE, queues=queues)
    for queue in ("team", "few", "user", "racks"):
        world.submit(job(f"{queue}-a", 2 if queue == "user" else 4, queue=queue))
        world.submit(job(f"{queue}-b", 4, queue=queue))
    found = {
        queue: (o.code, o.subject, o.unit, o.used, o.asks, o.limit)
        for queue in ("team", "few", "user", "racks")
        if (o := asked(world, f"{queue}-b").obstacle)
    }
    assert found == {
        "team": ("queue-limit", "org", "gpus", 16.0, 16.0, 24.0),
        "few": ("queue-gangs", "few", "gangs", 1.0, 1.0, 1.0),
        "user": ("user-limit", "", "gpus", 8.0, 16.0, 8.0),
        "racks": ("queue-limit", "racks", "domains", 1.0, 1.0, 1.5),
    }
    raised = asked(world, "team-b").unblock
    assert raised == Unblock(
        kind="raise-limit", allowed=False, cheapest=True, subject="org", unit="gpus", limit=32
    )


def test_a_gang_that_cannot_be_preempted_cannot_borrow() -> None:
    world = World(*SMALL, queues=(Queue(name="team", quota_gpus=8),))
    world.submit(job("fixed", 4, queue="team", preemptible=False))
    answer = asked(world, "fixed")
    assert answer.obstacle is not None
    assert (answer.constraint, answer.obstacle.used, answer.obstacle.asks, answer.obstacle.limit) == (
        "borrows",
        0,
        16,
        8,
    )


def test_bookings_not_begun_too_short_and_full() -> None:
    world = World(*SMALL)
    shape = Shape(nodes_per_segment=4)
    world.cycle(Booked(at_s=0.0, booking=Booking(name="demo", shape=shape, start_s=100.0, end_s=1000.0)))
    world.submit(replace(lasting("early", 2, s=50.0), booking="demo"))
    answer = asked(world, "early").obstacle
    assert answer is not None
    assert (answer.code, answer.detail, answer.at_s) == ("booking", "not-begun", 100.0)
    world.submit(replace(lasting("never", 2, s=901.0), booking="demo"))
    assert because.sentence(asked(world, "never")) == (
        "it can never start in booking demo, which ends in 17 min:"
        " it takes 15 min, and 15 min of the booking are to come"
    )
    world.run(world.tick(100.0))
    world.submit(
        replace(lasting("slow", 2, s=5000.0), booking="demo"),
        replace(lasting("wide", 4, s=50.0), booking="demo"),
    )
    details = [o.detail for name in ("slow", "wide") if (o := asked(world, name).obstacle)]
    assert details == ["outlives", "full"]


def test_maintenance_and_expiry_that_it_would_outlive() -> None:
    window = Maintenance(name="firmware", domain="c/us-000", start_s=500.0, end_s=900.0)
    world = World(domain(0, nodes=4, spares=0))
    world.cycle(Planned(at_s=0.0, maintenance=window))
    world.submit(lasting("long", 2, s=600.0))
    answer = asked(world, "long")
    assert answer.obstacle is not None
    assert (answer.constraint, answer.obstacle.subject, answer.obstacle.at_s) == (
        "maintenance",
        "firmware",
        500.0,
    )
    assert answer.unblock is not None
    assert answer.unblock.kind == "call-off"
    world = World(replace(domain(0, nodes=4, spares=0), expires_s=500.0))
    world.submit(lasting("long", 2, s=600.0))
    assert asked(world, "long").constraint == "expiry"


def test_announced_capacity_says_when() -> None:
    world = World(domain(0, nodes=4, spares=0), policy=NEVER_MOVE)
    world.cycle(Announced(at_s=0.0, ready_s=700.0, domains=(domain(1, nodes=4, spares=0),)))
    world.submit(job("wide", 4, 2))
    answer = asked(world, "wide")
    assert answer.obstacle is not None
    assert (answer.constraint, answer.obstacle.at_s, answer.obstacle.domains) == (
        "announced",
        700.0,
        ("c/us-001",),
    )


def test_spares_that_are_kept_free() -> None:
    world = World(domain(0, nodes=4, spares=1), policy=NEVER_MOVE)
    world.submit(job("a", 2))
    world.submit(job("b", 2))
    assert asked(world, "b").constraint == "spares"


def test_what_never_fits_is_refused_with_what_would_fit() -> None:
    world = World(domain(0, nodes=4, spares=1), domain(1, nodes=4, spares=1))
    submitted = Submitted(at_s=0.0, job=job("huge", 9))
    world.state.fold(submitted)
    assert asked(world, "huge").constraint == "never-fits"
    world.cycle()
    answer = asked(world, "huge", (submitted,))
    assert (answer.outcome, answer.constraint) == ("refused", "never-fits")
    assert [(fits.nodes_per_segment, fits.domains) for fits in answer.largest] == [(3, 2)]


def test_nobody_overtakes_where_backfill_is_off() -> None:
    world = World(*SMALL, policy=Policy(preemption=False, backfill=False))
    world.submit(job("a", 3), job("b", 3))
    world.submit(job("first", 4, priority="high"))
    world.submit(job("tiny", 1))
    answer = asked(world, "tiny").obstacle
    assert answer is not None
    assert (answer.code, answer.subject) == ("policy", "first")


def test_nodes_that_are_out_of_use_and_their_repair() -> None:
    world = World(domain(0, nodes=4, spares=0))
    world.fail("c/us-000", 0)
    world.submit(job("whole", 4))
    answer = asked(world, "whole")
    assert answer.constraint == "health"
    assert [(u.kind, u.at_s) for u in answer.unblocks] == [("wait", 7200.0), ("repair", 7200.0)]
    assert answer.reservation is not None
    assert [s.kind for s in answer.reservation.steps] == ["repair"]
    world = World(domain(0, nodes=4, spares=0))
    world.cycle(Drained(at_s=0.0, domain="c/us-000", nodes=(0,)))
    world.submit(job("whole", 4))
    assert [u.kind for u in asked(world, "whole").unblocks] == ["undrain"]


def test_the_shapes_of_a_job_are_judged_each() -> None:
    offers = (
        Offer(shape=Shape(nodes_per_segment=4), throughput=4.0),
        Offer(shape=Shape(nodes_per_segment=9)),
    )
    world = World(*SMALL, policy=NEVER_MOVE)
    world.submit(job("a", 4), job("b", 3))
    world.submit(replace(job("flex", 2), offers=offers))
    answer = asked(world, "flex")
    codes = {c.choice: c.obstacle.code for c in answer.choices}
    assert codes == {1: "capacity", 0: "capacity", 2: "never-fits"}
    assert answer.choices[0].choice == 1
    assert all(because.choice(c, answer) for c in answer.choices)


# -- ways out ----------------------------------------------------------------------------------------------------------


def test_the_cheapest_unblock_is_what_the_scheduler_then_does() -> None:
    world = World(domain(0), domain(1), policy=Policy(min_runtime_s=500.0))
    world.submit(job("a", 9), job("b", 16))
    world.submit(job("prod", 16, priority="production"), at_s=400.0)
    answer = asked(world, "prod")
    assert not any(u.allowed for u in answer.unblocks)
    assert answer.guards == {"minimum-run-time": 2}
    world.state.now_s = 600.0
    unblock = asked(world, "prod").unblock
    assert unblock is not None
    assert (unblock.allowed, unblock.kind) == (True, "preempt")
    actions = world.tick(600.0)
    assert tuple(a.gang for a in actions if isinstance(a, Preempt)) == unblock.gangs
    claim = next(a for a in actions if isinstance(a, Claim))
    assert tuple(s.domain for s in claim.binding) == unblock.domains


def test_whom_it_may_not_preempt_and_at_what_price() -> None:
    world = World(*SMALL)
    world.submit(job("a", 4), job("b", 4, penalty_gpu_h=9.0))
    world.submit(job("peer", 4), at_s=1000.0)
    (unblock,) = asked(world, "peer").unblocks
    assert (unblock.kind, unblock.allowed, unblock.gangs) == ("preempt", False, ("a",))
    assert unblock.forbidden_by == {"priority": 1}
    assert unblock.cost_gpu_h == pytest.approx(16 * 1060 / 3600)


@pytest.mark.parametrize("defragment", ["advise", "on"])
def test_moves_are_advice_or_what_comes_next(defragment: str) -> None:
    policy = Policy(preemption=False, defragment=defragment, min_runtime_s=0.0)  # type: ignore[arg-type]
    world = World(*SMALL, policy=policy)
    world.submit(job("a", 3))
    world.submit(job("x", 1, restart_s=1.0))
    world.submit(job("y", 2))
    world.end("a")
    assert (world.where("x"), world.where("y")) == (["c/us-000"], ["c/us-001"])
    world.state.fold(Submitted(at_s=100.0, job=job("wide", 4)))
    (move,) = (u for u in asked(world, "wide").unblocks if u.kind != "preempt")
    assert (move.kind, move.gangs, move.domains) == ("defragment", ("x",), ("c/us-000",))
    assert (move.allowed, move.cheapest) == (defragment == "on", True)
    assert move.saves_gpu_h == 4 * 16
    assert move.forbidden_by == ({"policy": 0} if defragment == "advise" else {})
    moved = tuple(a.gang for a in world.cycle() if isinstance(a, Move))
    assert moved == (move.gangs if defragment == "on" else ())


# -- the law -----------------------------------------------------------------------------------------------------------

NODES = 4
SEGMENTS = st.tuples(st.integers(1, NODES), st.integers(1, 2))
GANGS = st.tuples(
    SEGMENTS, st.sampled_from(("low", "normal", "production")), st.sampled_from((50.0, 2000.0, None))
)


def _busy(gangs: list[tuple[tuple[int, int], str, float | None]], spares: int) -> World:
    policy = Policy(min_runtime_s=50.0, defragment="on")
    world = World(*(domain(i, nodes=NODES, spares=spares) for i in range(3)), policy=policy)
    for n, ((nodes, segments), priority, lasts_s) in enumerate(gangs):
        wanted = replace(job(f"g{n}", nodes, segments, priority=priority, restart_s=0.0), duration_s=lasts_s)
        world.submit(wanted, at_s=40.0 * n)
    return world


def _true(state: FleetState, answer: Why, wanted: Job) -> bool:
    """Looked at node by node: whether the constraint that was named holds."""
    shape = wanted.shape
    rooms = [
        max(0, free.bit_count() - spec.spares)
        for free, spec in zip(state.occupancy.free, state.domains, strict=True)
    ]
    roomy = sum(room >= shape.nodes_per_segment for room in rooms)
    enough = sum(rooms) >= shape.nodes_held
    match answer.constraint:
        case "next-cycle" | "reserved":
            return roomy >= shape.segments
        case "topology":
            return enough and roomy < shape.segments
        case "capacity":
            return not enough
        case "spares":
            with_spares = sum(free.bit_count() >= shape.nodes_per_segment for free in state.occupancy.free)
            return roomy < shape.segments <= with_spares
    return answer.constraint == "claimed" and bool(state.gangs[answer.gang].claim)


def _for(actions: tuple[Action, ...], name: str) -> tuple[str, ...]:
    return tuple(a.gang for a in actions if isinstance(a, Preempt | Move) and a.reason.for_gang == name)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(GANGS, min_size=3, max_size=9),
    st.integers(0, 1),
    st.sampled_from((0.0, 60.0, 400.0)),
    st.booleans(),
)
def test_constraints_are_true_and_what_is_allowed_comes_next(
    gangs: list[tuple[tuple[int, int], str, float | None]], spares: int, later_s: float, frees: bool
) -> None:
    world = _busy(gangs, spares)
    state = world.state
    running = [g for g in state.gangs.values() if g.status == "running"]
    if frees and running:
        gone = running[0]
        state.fold(GangEnded(at_s=state.now_s, gang=gone.name, attempt=gone.attempt, outcome="finished"))
    at_s = max(state.now_s + later_s, state.retry_at_s or 0.0)
    waits = [g.name for g in state.gangs.values() if g.status == "waiting"]
    answers = {name: why(state, name, now_s=at_s)[0] for name in waits}
    jobs = {name: state.jobs[name] for name in waits}
    if state.wake_at_s is None or state.wake_at_s > at_s:
        state.dirty = True
    plan = decide(state, at_s)
    claims = {a.gang: tuple(s.domain for s in a.binding) for a in plan.actions if isinstance(a, Claim)}
    starts = {a.gang for a in plan.actions if isinstance(a, Start)}
    reserved = {a.gang: a.start_s for a in plan.actions if isinstance(a, Reserve)}
    moved = bool(claims or starts)
    for name, answer in answers.items():
        assert moved or _true(state, answer, jobs[name]), answer
        assert (answer.constraint == "next-cycle") == (name in starts)
        comes = [u for u in answer.unblocks if u.allowed and u.kind != "wait"]
        assert [(u.gangs, u.domains) for u in comes] == (
            [(_for(plan.actions, name), claims[name])] if name in claims else []
        )
        if name in reserved:
            assert answer.reservation is not None
            assert answer.reservation.start_s == reserved[name]
