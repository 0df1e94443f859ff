"""A program that fails is started again after a pause that doubles."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.control import Controller
from rackscale.events import (
    Cancelled,
    Delivered,
    Event,
    GangEnded,
    Input,
    NodeFailed,
    Start,
    Submitted,
    Ticked,
)
from rackscale.fleet.state import FleetState
from rackscale.report import because
from rackscale.scheduler.explain import why
from rackscale.twin import TwinExecutor
from rackscale.workload import Durability, Job
from tests.scheduler.world import World, domain, job

A = "c/us-000"


def flaky(name: str, nodes: int = 1, *, max_restarts: int = 3, delay_s: float = 10.0) -> Job:
    durability = Durability(restart_s=0.0, max_restarts=max_restarts, retry_delay_s=delay_s)
    return replace(job(name, nodes), durability=durability)


def fail(world: World, name: str, at_s: float) -> None:
    event = GangEnded(at_s=at_s, gang=name, attempt=world.gang(name).attempt, outcome="failed")
    world.run(world.cycle(event))


def test_the_pause_doubles_with_each_failure_and_has_a_cap() -> None:
    durability = Durability(retry_delay_s=10.0)
    assert [durability.pause_s(n) for n in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300]
    assert durability.pause_s(10_000) == 300.0
    assert Durability(retry_delay_s=0.0).pause_s(5) == 0.0


def test_it_starts_when_its_pause_is_over_and_not_before() -> None:
    world = World(domain(0))
    world.submit(flaky("a"))
    at_s = 100.0
    for pause_s in (10.0, 20.0, 40.0):
        fail(world, "a", at_s)
        assert world.gang("a").status == "waiting"
        assert world.state.due_s() == at_s + pause_s
        assert world.tick(at_s + pause_s - 0.1) == ()
        actions = world.tick(at_s + pause_s)
        assert [type(a) for a in actions] == [Start]
        world.run(actions)
        at_s += 100.0
    fail(world, "a", at_s)
    assert world.state.ended["a"].outcome == "failed"
    assert world.state.due_s() is None


def test_others_may_have_its_nodes_while_it_pauses() -> None:
    world = World(domain(0, nodes=4, spares=0))
    world.submit(flaky("a", 4), job("b", 4))
    fail(world, "a", 100.0)
    assert world.where("b") == [A]
    world.tick(110.0)
    assert why(world.state, "a")[0].constraint == "capacity"


def test_why_says_how_long_it_pauses() -> None:
    world = World(domain(0))
    world.submit(flaky("a", delay_s=60.0))
    fail(world, "a", 100.0)
    (answer,) = why(world.state, "a", now_s=140.0)
    assert (answer.constraint, answer.status) == ("paused", "waiting")
    assert because.sentence(answer) == (
        "its program failed for the first time of 3 that are retried; it joins the line again in 20 s"
        " (it ran before: program failed)"
    )


def test_a_pause_is_part_of_the_state() -> None:
    world = World(domain(0))
    world.submit(flaky("a"), flaky("b"))
    fail(world, "a", 100.0)
    fail(world, "b", 103.0)
    copy = FleetState.restore(world.state.snapshot())
    assert copy.snapshot() == world.state.snapshot()
    assert (copy.resume_s, sorted(copy.paused)) == (110.0, ["a", "b"])
    world.cycle(Cancelled(at_s=104.0, job="a"))
    assert world.state.ended["a"].outcome == "cancelled"
    assert world.state.due_s() == 113.0
    copy.fold(Ticked(at_s=112.0))
    assert (sorted(copy.waiting), copy.resume_s) == (["a"], 113.0)


def test_a_lost_node_is_no_failure_of_the_program() -> None:
    world = World(domain(0))
    world.submit(flaky("a"))
    assert [a.gang for a in world.cycle(NodeFailed(at_s=50.0, domain=A, nodes=(0,)))] == ["a"]  # type: ignore[union-attr]
    assert world.gang("a").attempt == 2


@pytest.mark.parametrize("behind_s", [0.0, 500.0])
def test_the_control_loop_wakes_for_it(behind_s: float) -> None:
    """Also where the clock has run on since the last event that the state knows, as in a forecast."""
    seen: list[Event] = []
    inputs: list[Input] = [
        Delivered(at_s=0.0, domains=(domain(0),)),
        Submitted(at_s=0.0, job=replace(flaky("a"), duration_s=1000.0)),
        GangEnded(at_s=50.0, gang="a", attempt=1, outcome="failed"),
    ]
    state = FleetState()
    controller = Controller(state, TwinExecutor(inputs=inputs), listeners=[seen.append])
    while not state.paused:
        controller.step()
    state.now_s += behind_s
    twin = TwinExecutor(start_s=state.now_s)
    twin.recover(state)
    controller = Controller(state, twin)
    while not twin.done and state.gangs and state.gangs["a"].attempt < 2:
        controller.step()
    assert state.gangs["a"].started_s == max(60.0, 50.0 + behind_s)
