"""Advance reservations that people make: nodes for a window, and the jobs that run inside."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.events import (
    Booked,
    Free,
    Hold,
    NodeFailed,
    NodeRepaired,
    Preempt,
    Restart,
    Start,
    Submitted,
    Unbooked,
)
from rackscale.workload import Booking, Durability, Job, Nearness, Policy, Queue, Shape
from tests.scheduler.test_windows import plays, told
from tests.scheduler.world import World, domain, job

A, B = "c/us-000", "c/us-001"
CALM = Policy(preemption=False)


def timed(name: str, nodes: int, lasts_s: float | None = 500.0, **more: object) -> Job:
    durability = Durability(restart_s=0.0, grace_s=30.0, retry_delay_s=0.0)
    return replace(job(name, nodes), duration_s=lasts_s, durability=durability, **more)


def booked(
    start_s: float = 1000.0, end_s: float = 2000.0, nodes: int = 16, segments: int = 1, **more: object
) -> Booked:
    shape = Shape(segments=segments, nodes_per_segment=nodes)
    return Booked(
        at_s=0.0,
        booking=Booking(name="trip", shape=shape, start_s=start_s, end_s=end_s, **more),  # type: ignore[arg-type]
    )


def world(*, domains: int = 1, policy: Policy = CALM) -> World:
    return World(*(domain(i) for i in range(domains)), policy=policy)


def test_nodes_are_kept_free_for_a_booking_before_it_begins() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("long", 16, 5000.0), timed("unknown", 16, None))
    found.submit(timed("short", 16, 700.0))
    assert found.where("short") == [A]
    assert found.gang("long").status == found.gang("unknown").status == "waiting"


def test_what_fits_beside_a_booking_is_not_kept_out() -> None:
    found = world()
    found.cycle(booked(nodes=10))
    found.submit(timed("beside", 7, None))
    assert found.where("beside") == [A]
    found.submit(timed("more", 1, None))
    assert found.gang("more").status == "waiting"


def test_a_booking_holds_its_nodes_from_its_start_to_its_end() -> None:
    found = world()
    found.cycle(booked())
    assert found.state.wake_at_s == 1000.0
    (hold,) = [a for a in plays(found, 1000.0) if isinstance(a, Hold)]
    assert (hold.booking, hold.binding[0].domain) == ("trip", A)
    assert found.state.occupancy.room[0] == 1
    found.submit(timed("other", 2, 10.0))
    assert found.gang("other").status == "waiting"
    assert found.state.wake_at_s == 2000.0
    assert [a.booking for a in plays(found, 2000.0) if isinstance(a, Free)] == ["trip"]
    assert found.where("other") == [A]
    assert not found.state.machines.calendar.bookings


def test_only_the_booking_s_own_jobs_run_on_its_nodes() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("inside", 16, 500.0, booking="trip"))
    assert found.gang("inside").status == "waiting", "its window has not come"
    actions = plays(found, 1000.0)
    assert [a.gang for a in actions if isinstance(a, Start)] == ["inside"]
    assert set(found.gang("inside").binding[0].nodes) == set(range(16))


def test_a_second_job_starts_when_the_first_has_ended() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("one", 16, 100.0, booking="trip"), timed("two", 16, 100.0, booking="trip"))
    plays(found, 1000.0)
    assert [name for name in ("one", "two") if found.gang(name).binding] == ["one"]
    found.end("one")
    assert found.where("two") == [A]


def test_jobs_that_would_outlive_the_booking_don_t_start_in_it() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("long", 4, 1001.0, booking="trip"), timed("short", 4, 1000.0, booking="trip"))
    plays(found, 1000.0)
    assert found.where("short") == [A]
    assert found.gang("long").status == "waiting"


def test_what_a_checkpoint_keeps_need_not_fit_into_the_booking_again() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("most", 4, 900.0, booking="trip"))
    plays(found, 1000.0)
    found.state.now_s = 1800.0
    gang = found.gang("most")
    gang.kept_s = 800.0
    found.end("most", "failed")
    assert found.where("most") == [A]


def test_a_job_of_unknown_length_runs_until_its_grace_before_the_end() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("unknown", 4, None, booking="trip"))
    plays(found, 1000.0)
    assert told(found.tick(1969.0)) == []
    assert told(found.tick(1970.0)) == [("unknown", "booking-over")]


def test_who_had_to_leave_a_booking_does_not_start_in_it_again() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("unknown", 4, None, booking="trip"))
    plays(found, 1000.0)
    assert told(found.tick(1970.0)) == [("unknown", "booking-over")]
    assert found.end("unknown", "left") == ()
    assert found.gang("unknown").status == "waiting"


def test_inside_a_booking_jobs_lie_as_near_and_as_far_as_they_ask() -> None:
    def leaves(*numbers: int) -> World:
        specs = (
            replace(domain(i, nodes=4, spares=0), spine="s", leaf=f"l{n}") for i, n in enumerate(numbers)
        )
        found = World(*specs, policy=CALM)
        found.cycle(booked(start_s=0.0, nodes=4, segments=len(numbers)))
        return found

    def wide(**nearness: object) -> Job:
        shape = Shape(segments=2, nodes_per_segment=2)
        near = Nearness(**nearness)  # type: ignore[arg-type]
        return replace(timed("wide", 2, 500.0, booking="trip"), shape=shape, nearness=near)

    found = leaves(0, 1, 1)
    found.submit(wide(within="leaf"))
    assert found.where("wide") == [B, "c/us-002"]
    found = leaves(0, 0, 1)
    found.submit(wide(spread="leaf"))
    assert found.where("wide") == [A, "c/us-002"]
    found = leaves(0, 0)
    found.submit(wide(spread="leaf"))
    assert found.gang("wide").status == "waiting"
    apart = Nearness(apart="leaf", apart_required=True)
    service = replace(timed("s", 1, None, booking="trip"), kind="service", replicas=2, nearness=apart)
    found.submit(service)
    assert sum(bool(gang.binding) for gang in found.state.gangs.values()) == 1


def test_jobs_of_others_that_run_too_long_are_cleared_by_the_booking_s_priority() -> None:
    policy = Policy(min_runtime_s=0.0)
    for priority, leaves in (("high", True), ("normal", False)):
        found = world(policy=policy)
        found.submit(timed("there", 16, None))
        found.cycle(booked(priority=priority))
        actions = plays(found, 1000.0)
        assert any(isinstance(a, Preempt) for a in actions) is leaves
        assert any(isinstance(a, Hold) for a in actions) is leaves


def test_a_booking_that_could_not_begin_in_time_tries_again_by_itself() -> None:
    found = world(policy=Policy(min_runtime_s=2000.0, preemption_retry_s=60.0))
    found.submit(timed("there", 16, None, priority="low"))
    found.cycle(booked(end_s=9000.0))
    plays(found, 1000.0)
    assert not found.state.machines.calendar.holding
    at_s = 1000.0
    while not found.state.machines.calendar.holding and at_s < 3000.0:
        assert found.state.wake_at_s is not None
        assert at_s < found.state.wake_at_s <= at_s + 60.0
        at_s = found.state.wake_at_s
        plays(found, at_s)
    assert 2000.0 <= at_s <= 2060.0


def test_a_booking_begins_in_time_whenever_room_was_last_looked_for() -> None:
    found = world(policy=Policy(min_runtime_s=0.0))
    found.submit(timed("there", 16, None))
    found.cycle(booked(priority="high"))
    found.submit(timed("waits", 16, None), at_s=990.0)
    assert found.state.retry_at_s is not None
    assert found.state.retry_at_s > 1000.0
    assert any(isinstance(a, Hold) for a in plays(found, 1000.0))


def test_victims_leave_before_the_booking_s_jobs_start() -> None:
    found = world(policy=Policy(min_runtime_s=0.0))
    found.submit(timed("there", 16, None, priority="low"))
    found.cycle(booked())
    found.submit(timed("inside", 16, 100.0, booking="trip"))
    plays(found, 1000.0)
    assert found.gang("inside").status == "waiting"
    found.end("there", "left")
    assert found.where("inside") == [A]
    assert found.gang("there").status == "waiting"


@pytest.mark.parametrize("begun", [False, True])
def test_a_booking_that_is_called_off_frees_its_nodes(begun: bool) -> None:
    found = world()
    found.cycle(booked())
    if begun:
        plays(found, 1000.0)
    found.submit(timed("waits", 16, 5000.0))
    assert found.gang("waits").status == "waiting"
    found.run(found.cycle(Unbooked(at_s=1001.0, booking="trip")))
    assert found.where("waits") == [A]


def test_what_runs_inside_leaves_when_the_booking_is_called_off() -> None:
    found = world()
    found.cycle(booked())
    found.submit(timed("inside", 4, 500.0, booking="trip"))
    plays(found, 1000.0)
    assert told(found.cycle(Unbooked(at_s=1100.0, booking="trip"))) == [("inside", "booking-over")]


def test_a_booking_prefers_domains_that_are_free_in_time() -> None:
    found = world(domains=2)
    found.submit(timed("a", 16, 500.0), timed("b", 16, 50_000.0))
    found.cycle(booked())
    promise = found.state.reserved["@trip"]
    assert (promise.start_s, list(promise.domains)) == (1000.0, found.where("a"))


def test_jobs_inside_count_towards_their_queue_s_limits() -> None:
    found = World(domain(0), policy=CALM, queues=(Queue(name="default", max_gangs=1),))
    found.cycle(booked())
    inside = (timed("one", 4, 100.0, booking="trip"), timed("two", 4, 100.0, booking="trip"))
    found.submit(*inside)
    plays(found, 1000.0)
    assert [name for name in ("one", "two") if found.gang(name).binding] == ["one"]


def test_a_job_inside_runs_only_where_it_may() -> None:
    found = World(domain(0, cluster="a"), domain(0, cluster="b"), policy=CALM)
    found.cycle(booked(start_s=0.0, cluster="a"))
    plays(found, 0.0)
    found.cycle(Submitted(at_s=1.0, job=timed("elsewhere", 4, 100.0, booking="trip", cluster="b")))
    assert found.gang("elsewhere").status == "waiting"
    found.cycle(Submitted(at_s=1.0, job=timed("here", 4, 100.0, booking="trip", cluster="a")))
    assert found.where("here") == ["a/us-000"]


def test_a_failed_node_is_replaced_by_a_free_node_of_the_booking() -> None:
    found = World(domain(0, nodes=8, spares=0), policy=CALM)
    found.cycle(booked(start_s=0.0, nodes=8))
    plays(found, 0.0)
    found.submit(timed("inside", 4, 100.0, booking="trip"))
    found.cycle(NodeFailed(at_s=1.0, domain=A, nodes=(0,)))
    (segment,) = found.gang("inside").binding
    assert 0 not in segment.nodes
    assert found.gang("inside").attempt == 2


# -- nodes that fail while a booking holds them ------------------------------------------------------------------------


def held(found: World) -> dict[str, set[int]]:
    return {s.domain: set(s.nodes) for s in found.state.machines.calendar.holding["trip"]}


def test_a_booking_s_dead_node_is_replaced_by_a_spare_of_its_domain() -> None:
    found = world(domains=2)
    found.cycle(booked(start_s=0.0, nodes=17))
    assert held(found) == {A: set(range(17))}
    found.fail(A, 3)
    assert held(found) == {A: set(range(18)) - {3}}
    found.submit(timed("inside", 17, 500.0, booking="trip"))
    assert found.where("inside") == [A]


def test_where_its_domain_has_no_node_left_the_booking_moves_and_its_gang_with_it() -> None:
    found = world(domains=2)
    found.cycle(booked(start_s=0.0, nodes=16))
    found.submit(timed("inside", 16, 500.0, booking="trip"))
    actions = found.fail(A, 0, 1, 2)
    assert held(found) == {B: set(range(16))}
    (restart,) = [a for a in actions if isinstance(a, Restart)]
    assert (restart.reason.code, found.where("inside")) == ("moved-segment", [B])
    assert found.state.occupancy.claimed[0] == 0


def test_gangs_that_are_well_keep_a_booking_where_it_is() -> None:
    found = world(domains=2)
    found.cycle(booked(start_s=0.0, nodes=17))
    found.submit(timed("well", 4, 500.0, booking="trip"), timed("lost", 4, 500.0, booking="trip"))
    first = found.gang("lost").binding[0].nodes[0]
    found.fail(A, first, 16, 17)
    assert held(found) == {A: set(range(17))}
    assert found.gang("well").status == "running"
    assert found.where("lost") == [A], "on other nodes of the booking"
    assert first not in found.gang("lost").binding[0].nodes


def test_nodes_of_others_do_not_replace_what_a_gang_lost_inside_its_booking() -> None:
    found = world(domains=1)
    found.cycle(booked(start_s=0.0, nodes=4))
    found.submit(timed("inside", 4, 500.0, booking="trip"), timed("beside", 14, None))
    assert found.where("beside") == []
    found.fail(A, *found.gang("inside").binding[0].nodes)
    assert held(found)[A] <= set(range(4, 18))
    assert set(found.gang("inside").binding[0].nodes) == held(found)[A]


def test_what_can_t_be_replaced_at_once_is_replaced_later() -> None:
    found = world(domains=1)
    found.cycle(booked(start_s=0.0, nodes=16))
    found.fail(A, 0, 1, 2)
    assert held(found) == {A: {2, *range(3, 18)}}
    found.cycle(NodeRepaired(at_s=1.0, domain=A, nodes=(0,)))
    assert held(found) == {A: {0, *range(3, 18)}}
