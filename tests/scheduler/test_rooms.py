"""What `why` says of domains and of single nodes."""

from __future__ import annotations

from rackscale.events import Booked, Drained
from rackscale.report import because
from rackscale.scheduler.rooms import why_domain
from rackscale.workload import Booking, Shape
from tests.scheduler.world import World, domain, job

A = "c/us-000"


def lines(world: World, node: int | None = None, *, at_s: float = 0.0) -> list[str]:
    nodes = None if node is None else (node,)
    return list(because.domain(why_domain(world.state, A, nodes, now_s=at_s)))


def test_a_node_tells_its_own_numbers_not_its_domain_s() -> None:
    world = World(domain(0, nodes=6, spares=1))
    world.submit(job("a", 2), job("b", 1))
    world.cycle(
        Booked(at_s=0.0, booking=Booking(name="k", shape=Shape(nodes_per_segment=1), start_s=0.0, end_s=50.0))
    )
    world.fail(A, 5)
    kept = world.state.machines.calendar.holding["k"][0].nodes
    assert (world.gang("a").binding[0].nodes, world.gang("b").binding[0].nodes, kept) == ((0, 1), (2,), (3,))
    assert lines(world)[0] == "0 nodes free to gangs beside 1 spares; 1 out of use"
    assert lines(world, 1) == ["a holds it, expected to end at a time that nobody knows"]
    assert lines(world, 2) == ["b holds it, expected to end at a time that nobody knows"]
    assert lines(world, 3) == ["it is kept for @k"]
    assert lines(world, 4) == ["it is free"]
    assert lines(world, 5) == ["n05 failed, expected back in 2 h 00"]
    answers = [why_domain(world.state, A, (node,)) for node in range(6)]
    assert [answer.status for answer in answers] == ["held", "held", "held", "kept", "free", "out"]
    assert [answer.room.room for answer in answers] == [0, 0, 0, 0, 1, 0]


def test_a_drain_tells_by_when_gangs_must_have_left() -> None:
    world = World(domain(0, nodes=4, spares=0))
    world.submit(job("a", 2))
    world.cycle(Drained(at_s=0.0, domain=A, deadline_s=7200.0), Drained(at_s=0.0, domain=A, nodes=(3,)))
    drained = [(out.nodes, out.leave_by_s) for out in why_domain(world.state, A).out]
    assert drained == [((0, 1, 2), 7200.0), ((3,), None)]
    assert lines(world)[-2:] == [
        "n00-n02 drained by people: nothing new starts, and gangs must have left in 2 h 00",
        "n03 drained by people",
    ]
    assert lines(world, 1)[-1].endswith("gangs must have left in 2 h 00")
    assert lines(world, at_s=8000.0)[-2] == "n00-n02 drained by people"
    assert [why_domain(world.state, A, n).status for n in (None, (1,), (2,))] == [
        "draining",
        "draining",
        "out",
    ]
