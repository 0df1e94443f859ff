"""What gangs do in the shapes that the scheduler chooses: offers, moves, spares of their own; to the second."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rackscale.events import (
    Binding,
    Delivered,
    GangEnded,
    GangRunning,
    Input,
    Move,
    NodeFailed,
    Plan,
    Preempt,
    Reason,
    Segment,
    Start,
    Submitted,
)
from rackscale.twin import TwinExecutor
from rackscale.workload import Durability, Job, Offer, Shape
from tests.twin.test_executor import RACK

WHY = Reason(code="fits")
JOB = Job(
    name="a", kind="training", shape=Shape(nodes_per_segment=2), duration_s=1000.0, elastic=True,
    offers=(
        Offer(shape=Shape(nodes_per_segment=1), throughput=0.5),
        Offer(shape=Shape(nodes_per_segment=3), throughput=2.0),
    ),
    durability=Durability(checkpoint_interval_s=300.0, checkpoint_s=20.0, grace_s=60.0, restart_s=50.0),
)  # fmt: skip


def on(*nodes: int, spares: tuple[int, ...] = ()) -> Binding:
    return (Segment(domain=RACK.name, nodes=nodes, spares=spares),)


class World:
    """A twin with one job, told what to do by hand."""

    def __init__(self, job: Job = JOB, *failures: NodeFailed) -> None:
        start = (Delivered(at_s=0.0, domains=(RACK,)), Submitted(at_s=0.0, job=job))
        self.twin = TwinExecutor(inputs=(*start, *failures))
        self.twin.poll(0.0)

    def start(self, at_s: float, attempt: int, binding: Binding, choice: int = 0) -> None:
        start = Start(gang="a", attempt=attempt, binding=binding, reason=WHY, choice=choice)
        self.twin.apply(Plan(at_s=at_s, actions=(start,)))

    def leave(self, at_s: float, action: type[Preempt | Move], attempt: int = 1) -> None:
        told: Preempt | Move
        if action is Move:
            told = Move(gang="a", attempt=attempt, grace_s=60.0, binding=on(0, 1, 2), reason=WHY, choice=2)
        else:
            told = Preempt(gang="a", attempt=attempt, grace_s=60.0, reason=WHY)
        self.twin.apply(Plan(at_s=at_s, actions=(told,)))

    def hear(self, until_s: float = 1e6) -> list[Input]:
        heard: list[Input] = []
        while (found := self.twin.poll(until_s)) and self.twin.now_s < until_s:
            heard += found
        return heard


def times(heard: Sequence[Input]) -> list[tuple[str, float]]:
    return [
        (type(event).__name__, event.at_s) for event in heard if isinstance(event, GangRunning | GangEnded)
    ]


@pytest.mark.parametrize(("choice", "nodes", "takes_s"), [(0, 2, 1000.0), (1, 1, 2000.0), (2, 3, 500.0)])
def test_work_takes_as_long_as_the_shape_needs(choice: int, nodes: int, takes_s: float) -> None:
    world = World()
    world.start(0.0, 1, on(*range(nodes)), choice)
    assert times(world.hear()) == [("GangRunning", 50.0), ("GangEnded", 50.0 + takes_s)]


@pytest.mark.parametrize("how", [Preempt, Move])
def test_what_was_done_in_one_shape_is_not_redone_in_the_next(how: type[Preempt | Move]) -> None:
    world = World()
    world.start(0.0, 1, on(0, 1))
    world.hear(450.0)
    world.leave(450.0, how)
    (ended,) = world.hear(1000.0)
    assert isinstance(ended, GangEnded)
    assert (ended.at_s, ended.outcome, ended.checkpointed) == (470.0, "left", True)
    world.start(1000.0, 2, on(0, 1, 2), 2)
    # 400 s of work are kept; 600 s at throughput 2 take 300 s.
    assert times(world.hear()) == [("GangRunning", 1050.0), ("GangEnded", 1350.0)]


def test_a_failure_costs_the_work_since_the_last_checkpoint_of_the_shape_that_ran() -> None:
    world = World(JOB, NodeFailed(at_s=750.0, domain=RACK.name, nodes=(0,)))
    world.start(0.0, 1, on(0), 1)
    world.hear(760.0)
    # In 700 s it wrote two checkpoints: 600 s at throughput 0.5 are 300 s of work. 700 s are left at throughput 2.
    world.start(760.0, 2, on(1, 2, 3), 2)
    assert times(world.hear()) == [("GangRunning", 810.0), ("GangEnded", 810.0 + 350.0)]


@pytest.mark.parametrize(("at_s", "kept_s"), [(349.0, 0.0), (350.0, 300.0), (649.0, 300.0), (650.0, 600.0)])
def test_a_checkpoint_is_whole_at_every_interval_from_when_the_gang_works(at_s: float, kept_s: float) -> None:
    world = World(JOB, NodeFailed(at_s=at_s, domain=RACK.name, nodes=(0,)))
    world.start(0.0, 1, on(0, 1))
    world.hear(660.0)
    world.start(660.0, 2, on(2, 3))
    assert times(world.hear())[-1] == ("GangEnded", 660.0 + 50.0 + 1000.0 - kept_s)


def test_a_spare_of_its_own_that_fails_does_not_stop_a_gang() -> None:
    world = World(JOB, NodeFailed(at_s=100.0, domain=RACK.name, nodes=(2,)))
    world.start(0.0, 1, on(0, 1, spares=(2,)))
    assert times(world.hear()) == [("GangRunning", 50.0), ("GangEnded", 1050.0)]


def test_a_fault_of_the_domain_stops_a_gang_with_spares_of_its_own() -> None:
    world = World(JOB, NodeFailed(at_s=100.0, domain=RACK.name))
    world.start(0.0, 1, on(0, 1, spares=(2,)))
    assert times(world.hear()) == [("GangRunning", 50.0)]
