"""What `why` and `status` say of bookings and maintenance."""

from __future__ import annotations

import pytest
from rich.console import Console

from rackscale.errors import UnknownNameError
from rackscale.events import Submitted
from rackscale.report import because, tables
from rackscale.scheduler.answers import WhyBooking, WhyMaintenance
from rackscale.scheduler.explain import why
from rackscale.scheduler.planned import planned, why_planned
from tests.scheduler.test_bookings import CALM, booked, timed
from tests.scheduler.test_windows import maintenance, plays
from tests.scheduler.world import World, domain

A = "c/us-000"


def booking(world: World) -> WhyBooking:
    answer = why_planned(world.state, "trip")
    assert isinstance(answer, WhyBooking)
    assert answer == why_planned(world.state, "@trip")
    return answer


def said(answer: WhyBooking | WhyMaintenance) -> list[str]:
    return list(because.planned(answer))


def test_a_booking_tells_when_where_and_for_whom_before_and_while_it_lasts() -> None:
    world = World(domain(0), policy=CALM)
    world.cycle(booked())
    assert said(booking(world)) == [
        "booking of 1 x 16 nodes, queue default, priority normal: it begins in 17 min for 17 min",
        f"it is expected to have room on {A} in time",
        "no job asks for it (booking: trip)",
    ]
    world.submit(timed("in", 10, booking="trip"), timed("too", 10, booking="trip"))
    assert booking(world).waiting == ("in", "too")
    plays(world, 1000.0)
    answer = booking(world)
    assert (answer.status, answer.domains, answer.jobs, answer.waiting) == ("kept", (A,), ("in",), ("too",))
    assert said(answer)[1:] == [f"its nodes are kept on {A}", "running in it: in", "waiting for it: too"]


def test_a_booking_that_is_late_names_who_is_in_its_way() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("long", 10, 5000.0), timed("short", 4, 500.0))
    world.cycle(booked(start_s=1000.0, end_s=9000.0))
    answer = booking(world)
    assert (answer.status, answer.expected_s, [h.gang for h in answer.in_the_way]) == (
        "to-come",
        5000.0,
        ["long"],
    )
    assert said(answer)[1:3] == [
        f"it is expected to have room too late, in 1 h 23, on {A}",
        "in its way, unless they end or leave: long (10 nodes, ends in 1 h 23)",
    ]
    plays(world, 1000.0)
    assert booking(world).status == "due"


def test_a_maintenance_tells_who_leaves_for_it() -> None:
    world = World(domain(0), policy=CALM)
    world.submit(timed("a", 2, 5000.0), timed("b", 2, 100.0), timed("c", 2, 5000.0))
    world.cycle(maintenance(1000.0, 2000.0, nodes=(1, 2, 3)))
    answer = why_planned(world.state, "m")
    assert isinstance(answer, WhyMaintenance)
    assert (answer.status, answer.nodes, [h.gang for h in answer.must_leave]) == ("to-come", (1, 2, 3), ["a"])
    assert said(answer) == [
        f"maintenance of {A}/n01-n03: it begins in 17 min for 17 min",
        "told to leave in time, if they have not ended: a (1 node, ends in 1 h 23)",
    ]
    world.end("a", "left")
    world.end("b")
    world.run(plays(world, 1000.0))
    answer = why_planned(world.state, "m")
    assert (answer.status, said(answer)) == ("on", [f"maintenance of {A}/n01-n03: it ends in 17 min"])


def test_all_are_listed_by_when_they_begin_also_in_status() -> None:
    world = World(domain(0), policy=CALM)
    world.cycle(
        booked(start_s=500.0), maintenance(100.0, 200.0, name="fans"), Submitted(at_s=0.0, job=timed("x", 1))
    )
    assert [plan.name for plan in planned(world.state)] == ["fans", "trip"]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.status(world.state, 0.0))
    *_, first, second = (" ".join(line.split()) for line in capture.get().splitlines())
    assert first == f"fans maintenance to-come begins in 2 min for 2 min {A} -"
    assert second == f"trip booking, 1 x 16 nodes to-come begins in 8 min for 25 min {A} queue default"


def test_a_misspelt_plan_gets_a_hint() -> None:
    world = World(domain(0))
    world.cycle(booked())
    with pytest.raises(UnknownNameError) as caught:
        why_planned(world.state, "trp")
    assert caught.value.hint == "did you mean 'trip'?"


def test_those_who_wait_for_a_booking_are_ahead_of_nobody_else() -> None:
    world = World(domain(0), policy=CALM)
    world.cycle(booked(start_s=5000.0, end_s=9000.0))
    world.submit(timed("runs", 17, 4000.0))
    world.submit(timed("inside", 4, booking="trip"), timed("first", 17), timed("inside-2", 4, booking="trip"))
    world.submit(timed("second", 17))
    lines = {name: why(world.state, name)[0].line for name in ("first", "second", "inside-2")}
    assert {name: (line.ahead, line.next_ahead) for name, line in lines.items() if line} == {
        "first": (0, None),
        "second": (1, "first"),
        "inside-2": (1, "inside"),
    }
