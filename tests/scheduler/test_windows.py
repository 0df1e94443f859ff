"""Time on nodes: maintenance, drains with a deadline, capacity that goes back and that is still to come."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.events import (
    Action,
    Announced,
    Claim,
    Close,
    Delivered,
    Drained,
    Extended,
    GangRunning,
    NodeFailed,
    Open,
    Planned,
    Preempt,
    Restart,
    Start,
    Submitted,
    Unclaim,
    Undrained,
    Unplanned,
)
from rackscale.workload import Durability, Job, Maintenance, Policy, Shape
from tests.scheduler.world import World, domain, job

A, B, C = "c/us-000", "c/us-001", "c/us-002"
CALM = Policy(preemption=False)


def timed(name: str, nodes: int, lasts_s: float | None = 500.0, **more: object) -> Job:
    """Starts in no time, so that it lasts exactly so long."""
    durability = Durability(restart_s=0.0, grace_s=30.0, retry_delay_s=0.0)
    return replace(job(name, nodes), duration_s=lasts_s, durability=durability, **more)


def maintenance(
    start_s: float, end_s: float, *, where: str = A, nodes: tuple[int, ...] | None = None, name: str = "m"
) -> Planned:
    plan = Maintenance(name=name, domain=where, nodes=nodes, start_s=start_s, end_s=end_s)
    return Planned(at_s=0.0, maintenance=plan)


def two(*, policy: Policy = CALM) -> World:
    return World(domain(0), domain(1), policy=policy)


def told(actions: tuple[Action, ...]) -> list[tuple[str, str]]:
    return [(a.gang, a.reason.code) for a in actions if isinstance(a, Preempt)]


def plays(world: World, at_s: float) -> tuple[Action, ...]:
    """All that is decided at one time: as often as the plan itself asks for."""
    found = world.tick(at_s)
    for _ in range(5):
        if world.state.wake_at_s is None or world.state.wake_at_s > at_s:
            break
        found += world.tick(at_s)
    world.run(found)
    return found


# -- maintenance -------------------------------------------------------------------------------------------------------


def test_what_would_outlive_the_start_of_maintenance_is_not_started_there() -> None:
    world = two()
    world.cycle(maintenance(1000.0, 2000.0))
    world.submit(timed("short", 16, 750.0))
    world.submit(timed("long", 16, 1100.0))
    assert (world.where("short"), world.where("long")) == ([A], [B])
    world.submit(timed("late", 16, 1100.0))
    assert world.gang("late").status == "waiting"


def test_nothing_starts_where_it_would_be_told_to_leave_before_it_works() -> None:
    """`brief` could end before the maintenance, but its grace period of 30 s has begun."""
    world = World(domain(0), policy=CALM)
    world.cycle(maintenance(1000.0, 2000.0))
    world.submit(timed("brief", 16, 20.0), at_s=969.0)
    assert world.where("brief") == [A]
    world.end("brief")
    world.submit(timed("late", 16, 20.0), at_s=970.0)
    assert world.gang("late").status == "waiting"


def test_a_gang_of_unknown_length_is_assumed_to_run_a_day() -> None:
    day = two(policy=Policy(assumed_duration_s=86_400.0))
    day.cycle(maintenance(80_000.0, 90_000.0))
    day.submit(timed("long", 16, None))
    assert day.where("long") == [B]
    week = two(policy=Policy(assumed_duration_s=86_400.0))
    week.cycle(maintenance(90_000.0, 99_000.0))
    week.submit(timed("long", 16, None))
    assert week.where("long") == [A]


@pytest.mark.parametrize("within_s", [-30.0, 0.0, 30.0, 90.0])
def test_one_time_is_assumed_for_gangs_of_unknown_length(within_s: float) -> None:
    """Where to look and which nodes to take are judged by the same time: the day includes the start, or it doesn't."""
    world = World(domain(0), policy=CALM)
    world.cycle(maintenance(86_400.0 + within_s, 90_000.0 + within_s))
    service = job("chat", 16, kind="service", restart_s=60.0)
    actions = world.cycle(Submitted(at_s=0.0, job=service))
    assert [type(a) for a in actions] == ([] if within_s < 0.0 else [Start])


def test_a_gang_beside_nodes_in_maintenance_takes_the_others() -> None:
    world = World(domain(0), policy=CALM)
    world.cycle(maintenance(1000.0, 2000.0, nodes=(0, 1)))
    world.submit(timed("short", 3, 750.0), timed("long", 3, 5000.0))
    assert set(world.gang("short").binding[0].nodes) == {0, 1, 2}
    assert not {0, 1} & set(world.gang("long").binding[0].nodes)


def test_cpu_only_gangs_heed_maintenance_too() -> None:
    world = two()
    world.cycle(maintenance(1000.0, 2000.0, nodes=(0,)), maintenance(1000.0, 2000.0, where=B, name="n"))
    world.submit(timed("beside", 2, 5000.0, cpu_only=True))
    (segment,) = world.gang("beside").binding
    assert segment.domain == A
    assert 0 not in segment.nodes


def test_gangs_are_told_to_leave_their_grace_before_maintenance() -> None:
    world = two()
    world.submit(timed("there", 16, None), timed("aside", 16, None))
    world.cycle(maintenance(1000.0, 2000.0))
    assert world.state.wake_at_s == 970.0
    assert told(world.tick(969.0)) == []
    assert told(world.tick(970.0)) == [("there", "maintenance")]
    (preempt,) = [a for a in world.plan.actions if isinstance(a, Preempt)]
    assert preempt.grace_s == 30.0


def test_nodes_close_when_maintenance_begins_and_open_when_it_ends() -> None:
    world = two()
    world.cycle(maintenance(1000.0, 2000.0), maintenance(1000.0, 1500.0, where=B, nodes=(3,), name="n"))
    assert world.state.wake_at_s == 1000.0
    closed = [(a.domain, a.nodes) for a in plays(world, 1000.0) if isinstance(a, Close)]
    assert sorted(closed, key=str) == [(A, None), (B, (3,))]
    assert world.state.occupancy.room == [0, 16]
    assert world.state.wake_at_s == 1500.0
    assert [(a.domain, a.nodes) for a in plays(world, 1500.0) if isinstance(a, Open)] == [(B, (3,))]
    assert [(a.domain, a.nodes) for a in plays(world, 2000.0) if isinstance(a, Open)] == [(A, None)]
    assert world.state.occupancy.room == [17, 17]
    assert not world.state.machines.calendar.maintenance


def test_a_waiting_gang_starts_when_maintenance_is_over() -> None:
    world = World(domain(0), policy=CALM)
    world.cycle(maintenance(100.0, 200.0))
    world.submit(timed("long", 16))
    assert world.gang("long").status == "waiting"
    plays(world, 100.0)
    plays(world, 200.0)
    assert world.where("long") == [A]


@pytest.mark.parametrize("begun", [False, True])
def test_maintenance_that_is_called_off_is_in_nobody_s_way(begun: bool) -> None:
    world = World(domain(0), policy=CALM)
    world.cycle(maintenance(100.0, 900.0))
    world.submit(timed("long", 16))
    if begun:
        plays(world, 100.0)
    world.run(world.cycle(Unplanned(at_s=101.0 if begun else 70.0, maintenance="m")))
    assert world.where("long") == [A]


def test_a_gang_that_was_to_leave_stays_if_maintenance_is_called_off() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("there", 16, None))
    world.cycle(maintenance(1000.0, 2000.0))
    world.cycle(Unplanned(at_s=500.0, maintenance="m"))
    assert told(world.tick(970.0)) == []
    assert told(world.tick(1000.0)) == []


def test_of_two_windows_the_earlier_one_sends_gangs_away() -> None:
    world = two()
    world.submit(timed("there", 16, None))
    world.cycle(maintenance(1000.0, 1100.0), maintenance(500.0, 600.0, name="first"))
    world.cycle(Unplanned(at_s=1.0, maintenance="none"))
    assert told(world.tick(470.0)) == [("there", "maintenance")]


def test_a_segment_does_not_move_where_maintenance_comes() -> None:
    world = World(domain(0), domain(1), domain(2), policy=CALM)
    world.submit(timed("runs", 17, 5000.0))
    assert world.where("runs") == [A]
    world.cycle(maintenance(1000.0, 2000.0, where=B))
    world.fail(A, 0, 1)
    assert world.where("runs") == [C]


def test_a_segment_that_has_to_begin_again_does_not_move_where_there_is_no_time_for_it() -> None:
    """It would have ended at 500; nothing was saved, so it ends at 900, and maintenance comes at 700."""
    for start_s, moves in ((700.0, False), (950.0, True)):
        world = World(domain(0, nodes=16, spares=0), domain(1, nodes=16, spares=0), policy=CALM)
        world.submit(timed("a", 16, 500.0))
        world.cycle(maintenance(start_s, 2000.0, where=B))
        world.tick(400.0)
        actions = world.fail(A, 0)
        assert [a.reason.code for a in actions if isinstance(a, Restart)] == ["moved-segment"] * moves


def test_a_replacement_node_is_not_one_that_goes_into_maintenance() -> None:
    world = World(domain(0, spares=2), policy=CALM)
    world.submit(timed("runs", 16, 5000.0))
    world.cycle(maintenance(1000.0, 2000.0, nodes=(16,)))
    (restart,) = world.fail(A, 3)
    assert isinstance(restart, Restart)
    assert set(restart.binding[0].nodes) == {*range(16), 17} - {3}


def test_no_domain_is_cleared_where_maintenance_comes() -> None:
    world = two(policy=Policy(min_runtime_s=0.0))
    cheap, dear = timed("cheap", 16, None, priority="low"), timed("dear", 16, None)
    world.submit(cheap, replace(dear, eviction_penalty_gpu_h=50.0))
    world.cycle(maintenance(1000.0, 2000.0, where=world.where("cheap")[0]))
    actions = world.submit(timed("vip", 16, 5000.0, priority="production"), at_s=100.0)
    (claim,) = [a for a in actions if isinstance(a, Claim)]
    assert claim.binding[0].domain == world.where("dear")[0]


def test_a_domain_is_cleared_for_what_ends_before_some_of_its_nodes_go_into_maintenance() -> None:
    world = World(domain(0), policy=Policy(min_runtime_s=0.0))
    world.submit(timed("cheap", 16, None, priority="low"))
    world.cycle(maintenance(10_000.0, 20_000.0, nodes=(17,)))
    actions = world.submit(timed("vip", 14, 500.0, priority="production"), at_s=100.0)
    assert told(actions) == [("cheap", "preempted-for")]


# -- drains ------------------------------------------------------------------------------------------------------------


def test_a_drain_sends_gangs_away_at_once() -> None:
    world = two()
    world.submit(timed("there", 4, None))
    assert told(world.cycle(Drained(at_s=5.0, domain=A, nodes=(3,)))) == [("there", "drain")]
    world.submit(timed("new", 16))
    assert world.where("new") == [B]


def test_a_drain_with_a_deadline_lets_gangs_go_on_until_their_grace_before_it() -> None:
    world = two()
    world.submit(timed("there", 4, None))
    assert told(world.cycle(Drained(at_s=5.0, domain=A, deadline_s=1000.0))) == []
    world.submit(timed("new", 4, 10.0))
    assert world.where("new") == [B], "nothing new starts on nodes that are drained"
    assert world.state.wake_at_s == 970.0
    assert told(world.tick(970.0)) == [("there", "drain")]


def test_a_second_drain_without_a_deadline_is_obeyed_at_once() -> None:
    world = two()
    world.submit(timed("there", 4, None))
    world.cycle(Drained(at_s=5.0, domain=A, deadline_s=1000.0))
    assert told(world.cycle(Drained(at_s=6.0, domain=A))) == [("there", "drain")]


def test_undraining_lets_gangs_stay_and_opens_the_nodes() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("there", 4, None))
    world.cycle(Drained(at_s=5.0, domain=A, deadline_s=1000.0))
    world.submit(timed("new", 4, 10.0))
    assert world.gang("new").status == "waiting"
    world.cycle(Undrained(at_s=6.0, domain=A))
    assert world.where("new") == [A]
    assert told(world.tick(2000.0)) == []


@pytest.mark.parametrize(
    "other",
    [
        Undrained(at_s=6.0, domain=A, nodes=(9,)),
        Unplanned(at_s=6.0, maintenance="m"),
        Extended(at_s=6.0, domains=(A,), expires_s=None),
        Extended(at_s=6.0, domains=(A,), expires_s=9000.0),
    ],
)
def test_the_deadline_of_a_drain_outlasts_other_news_about_the_domain(other: Undrained) -> None:
    world = two()
    world.submit(timed("there", 4, None))
    world.cycle(Drained(at_s=5.0, domain=A, nodes=(3, 9), deadline_s=1000.0), maintenance(5000.0, 6000.0))
    assert told(world.cycle(other)) == []
    assert told(world.tick(970.0)) == [("there", "drain")]


# -- capacity that goes back -------------------------------------------------------------------------------------------


def expiring(expires_s: float = 1000.0) -> World:
    return World(replace(domain(0), expires_s=expires_s), policy=CALM)


def test_nothing_is_started_that_would_outlive_the_capacity() -> None:
    world = expiring()
    world.submit(timed("short", 4, 800.0), timed("long", 4, 1001.0), timed("unknown", 4, None))
    assert world.where("short") == [A]
    assert world.gang("long").status == world.gang("unknown").status == "waiting"


def test_capacity_that_goes_back_is_closed_for_good() -> None:
    world = expiring()
    closed = [a for a in plays(world, 1000.0) if isinstance(a, Close)]
    assert [(a.domain, a.reason.code) for a in closed] == [(A, "expired")]
    world.submit(timed("short", 4, 1.0), at_s=5000.0)
    assert world.gang("short").status == "waiting"


def test_gangs_that_run_longer_than_expected_leave_before_the_capacity_does() -> None:
    world = expiring()
    world.submit(timed("short", 4, 750.0))
    assert told(world.tick(969.0)) == []
    assert told(world.tick(970.0)) == [("short", "expired")]


def test_an_extension_lets_gangs_stay_and_others_start() -> None:
    world = expiring()
    world.submit(timed("there", 4, 750.0), timed("long", 4, 5000.0))
    world.cycle(Extended(at_s=70.0, domains=(A,), expires_s=None))
    assert world.where("long") == [A]
    assert told(world.tick(970.0)) == []
    assert not any(isinstance(a, Close) for a in plays(world, 1000.0))


def test_capacity_may_come_back_after_it_went() -> None:
    world = expiring()
    plays(world, 1000.0)
    world.submit(timed("long", 4, 5000.0))
    world.cycle(Extended(at_s=1100.0, domains=(A,), expires_s=9000.0))
    assert world.where("long") == [A]


def test_gangs_leave_capacity_that_turns_out_to_go_back() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("there", 4, None))
    world.cycle(Extended(at_s=5.0, domains=(A,), expires_s=1000.0))
    assert told(world.tick(970.0)) == [("there", "expired")]


# -- capacity that comes -----------------------------------------------------------------------------------------------


def test_announced_domains_are_waited_for_and_used_when_they_are_there() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("fills", 16, None))
    world.cycle(Announced(at_s=0.0, ready_s=500.0, domains=(domain(1),)))
    world.submit(timed("waits", 16))
    assert world.state.reserved["waits"].start_s == 500.0
    assert world.state.reserved["waits"].domains == (B,)
    plays(world, 500.0)
    assert world.gang("waits").status == "waiting", "it is not there before somebody says so"
    world.cycle(Delivered(at_s=600.0, domains=(domain(1),)))
    assert world.where("waits") == [B]


def test_a_gang_that_only_announced_capacity_could_hold_is_not_refused() -> None:
    world = World(domain(0, nodes=4), policy=CALM)
    world.cycle(Announced(at_s=0.0, ready_s=500.0, domains=(domain(1),)))
    world.submit(timed("large", 16))
    assert world.gang("large").status == "waiting"


def test_domains_that_are_late_are_promised_for_later() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("fills", 16, None))
    world.cycle(Announced(at_s=0.0, ready_s=500.0, domains=(domain(1),)))
    world.submit(timed("waits", 16))
    world.cycle(Announced(at_s=70.0, ready_s=900.0, domains=(domain(1),)))
    assert world.state.reserved["waits"].start_s == 900.0


def test_what_is_known_on_delivery_counts() -> None:
    world = World(domain(0, nodes=4), policy=CALM)
    world.cycle(Announced(at_s=0.0, ready_s=500.0, domains=(domain(1),)))
    world.cycle(Delivered(at_s=600.0, domains=(replace(domain(1), expires_s=1000.0),)))
    world.submit(timed("long", 16, 500.0))
    assert world.gang("long").status == "waiting"


def test_a_gang_that_broke_on_nodes_about_to_go_is_still_told() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("there", 4, None))
    world.cycle(maintenance(1000.0, 2000.0))
    (restart,) = world.fail(A, 0)
    assert isinstance(restart, Restart)
    world.state.fold(GangRunning(at_s=1.0, gang="there", attempt=2))
    assert told(world.tick(970.0)) == [("there", "maintenance")]


def test_own_shape_is_asked_for_when_segments_share_a_domain_with_maintenance() -> None:
    world = World(domain(0, nodes=5, spares=0), policy=CALM)
    world.cycle(maintenance(20_000.0, 30_000.0, nodes=(0, 4)))
    shape = Shape(segments=2, nodes_per_segment=2, may_share_domain=True)
    (action,) = world.cycle(Submitted(at_s=0.0, job=timed("fits", 1, 100.0, shape=shape)))
    assert isinstance(action, Start)
    assert world.cycle(Submitted(at_s=0.0, job=timed("long", 1, 50_000.0, shape=shape))) == ()
    world.end("fits")
    for kind in (False, True):
        wide = timed(f"cpu-{kind}", 1, 50_000.0, shape=shape, cpu_only=kind)
        assert world.cycle(Submitted(at_s=0.0, job=wide)) == ()


def test_a_failure_of_a_domain_is_not_an_end_of_its_maintenance() -> None:
    world = World(domain(0), policy=CALM)
    world.cycle(maintenance(100.0, 500.0))
    plays(world, 100.0)
    world.cycle(NodeFailed(at_s=200.0, domain=A, repair_s=1000.0))
    plays(world, 500.0)
    assert world.state.occupancy.room == [0]


def test_a_gang_with_little_left_to_do_starts_beside_nodes_that_go() -> None:
    """What counts is what remains, not the whole duration: the same for where it fits and for which nodes it gets."""
    world = World(domain(0, nodes=4, spares=0), policy=CALM)
    world.submit(timed("most", 4, 5000.0))
    world.state.gangs["most"].kept_s = 4900.0
    world.cycle(maintenance(1000.0, 2000.0, nodes=(0, 1)))
    world.end("most", "failed")
    assert world.where("most") == [A]


@pytest.mark.parametrize("expires", [False, True])
def test_a_claim_is_given_up_when_its_nodes_go_out_of_use_before_the_gang_would_be_done(
    expires: bool,
) -> None:
    """What is planned after the claim counts as what was planned before it."""
    world = two(policy=Policy(min_runtime_s=0.0))
    world.submit(*(timed(f"low{i}", 17, priority="low") for i in range(2)))
    world.submit(timed("vip", 17, 5000.0, priority="high"), at_s=100.0)
    (first,) = {segment.domain for segment in world.gang("vip").claim}
    other = B if first == A else A
    late = (
        Extended(at_s=101.0, domains=(first,), expires_s=500.0)
        if expires
        else maintenance(500.0, 9000.0, where=first)
    )
    (gone,) = (a for a in world.cycle(late) if isinstance(a, Unclaim))
    assert (gone.gang, gone.reason.code) == ("vip", "claim-broken")
    world.tick(world.state.now_s)
    assert {segment.domain for segment in world.gang("vip").claim} == {other}


def test_a_claim_stays_where_the_gang_is_done_before_maintenance() -> None:
    world = two(policy=Policy(min_runtime_s=0.0))
    world.submit(*(timed(f"low{i}", 17, priority="low") for i in range(2)))
    world.submit(timed("vip", 17, 300.0, priority="high"), at_s=100.0)
    (first,) = {segment.domain for segment in world.gang("vip").claim}
    assert not [a for a in world.cycle(maintenance(500.0, 9000.0, where=first)) if isinstance(a, Unclaim)]
    assert world.gang("vip").claim
