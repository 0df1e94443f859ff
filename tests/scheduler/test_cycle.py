"""What one decision owes to the next, and to several gangs at once."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.events import Claim, NodeFailed, Preempt, Restart, Start, Submitted
from rackscale.fleet.state import FleetState
from rackscale.scheduler.cycle import what_if
from rackscale.workload import Policy, Queue
from tests.scheduler.world import World, domain, job


def test_blocked_gangs_may_differ_in_their_constraints() -> None:
    world = World(domain(0, nodes=2, spares=0))
    world.submit(job("runs", 2, priority="low"))
    anywhere, here = job("anywhere", 2), job("here", 2, cluster="c")
    world.submit(anywhere, here)
    assert {world.gang(name).status for name in ("anywhere", "here")} == {"waiting"}


def test_blocked_gangs_are_cleared_for_in_scheduling_order() -> None:
    world = World(domain(0, nodes=4, spares=0), policy=Policy(min_runtime_s=0.0))
    world.submit(job("runs", 4, priority="low", restart_s=0.0))
    actions = world.submit(job("first", 3), job("second", 2), at_s=100.0)
    assert [a.gang for a in actions if isinstance(a, Claim)] == ["first"]


def test_a_queue_s_budget_holds_within_one_decision() -> None:
    queue = Queue(name="default", max_evictions_per_day=1)
    world = World(
        domain(0, nodes=2, spares=0), domain(1, nodes=2, spares=0),
        policy=Policy(min_runtime_s=0.0), queues=(queue,),
    )  # fmt: skip
    world.submit(*(job(f"low-{i}", 1, priority="low", restart_s=0.0) for i in range(4)))
    actions = world.submit(job("pair", 2), job("single", 1), at_s=100.0)
    victims = [a for a in actions if isinstance(a, Preempt)]
    assert [v.reason.for_gang for v in victims] == ["single"]


def test_a_queue_s_budget_holds_over_the_segments_of_one_gang() -> None:
    queue = Queue(name="default", max_evictions_per_day=1)
    world = World(
        domain(0, nodes=2, spares=0), domain(1, nodes=2, spares=0),
        policy=Policy(min_runtime_s=0.0), queues=(queue,),
    )  # fmt: skip
    world.submit(*(job(f"low-{i}", 2, priority="low", restart_s=0.0) for i in range(2)))
    assert not world.submit(job("wide", 2, segments=2), at_s=100.0)


@pytest.mark.parametrize("preemption", [True, False])
def test_nodes_that_a_moved_segment_leaves_are_used_at_once(preemption: bool) -> None:
    policy = Policy(preemption=preemption)
    world = World(domain(0, nodes=2, spares=0), domain(1, nodes=2, spares=0), policy=policy)
    world.submit(job("moves", 2))
    failure = NodeFailed(at_s=0.0, domain="c/us-000", nodes=(0,))
    (restart,) = world.cycle(failure, Submitted(at_s=0.0, job=job("waits", 1)))
    assert isinstance(restart, Restart)
    assert world.where("moves") == ["c/us-001"]
    assert world.state.wake_at_s == 0.0
    (start,) = world.tick(0.0)
    assert isinstance(start, Start)
    assert world.where("waits") == ["c/us-000"]


def test_what_is_tried_at_a_later_time_leaves_no_trace_in_what_is_expected() -> None:
    world = World(domain(0), domain(1))
    world.submit(replace(job("a", 16), duration_s=100.0))
    state = world.state
    with what_if(state, 5000.0, due=True):
        assert state.machines.horizon.when(0, 16, 5000.0) > 5000.0
    assert state.machines.now_s == state.now_s == 0.0
    fresh = FleetState.restore(state.snapshot())
    for d in (0, 1):
        assert state.machines.horizon.profile(d, 0.0) == fresh.machines.horizon.profile(d, 0.0)
