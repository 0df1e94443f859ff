"""Nodes that fail too often are taken out of use, until people want them back."""

from __future__ import annotations

from rackscale.events import Action, Close, NodeFailed, NodeRepaired, Restart, Undrained
from rackscale.workload import Policy
from tests.scheduler.test_windows import plays
from tests.scheduler.world import World, domain, job

A = "c/us-000"
DAY_S = 86_400.0


def world(**policy: object) -> World:
    return World(domain(0), policy=Policy(preemption=False, **policy))  # type: ignore[arg-type]


def fails(found: World, at_s: float, node: int = 0) -> tuple[Action, ...]:
    actions = found.cycle(NodeFailed(at_s=at_s, domain=A, nodes=(node,)))
    actions += plays(found, at_s)
    found.run(actions)
    found.cycle(NodeRepaired(at_s=at_s + 60.0, domain=A, nodes=(node,)))
    return actions


def closed(actions: tuple[Action, ...]) -> list[tuple[int, ...] | None]:
    return [a.nodes for a in actions if isinstance(a, Close) and a.reason.code == "lemon"]


def test_the_third_failure_within_the_window_closes_the_node_for_good() -> None:
    found = world()
    assert closed(fails(found, 0.0)) == []
    assert closed(fails(found, DAY_S)) == []
    assert closed(fails(found, 2 * DAY_S)) == [(0,)]
    assert found.state.occupancy.up == [(1 << 18) - 2]
    found.submit(job("x", 16), at_s=3 * DAY_S)
    assert 0 not in found.gang("x").binding[0].nodes


def test_the_gang_on_a_lemon_is_mended_in_the_same_breath() -> None:
    found = world(lemon_failures=1)
    found.submit(job("x", 16))
    actions = fails(found, 100.0)
    assert closed(actions) == [(0,)]
    assert [a.gang for a in actions if isinstance(a, Restart)] == ["x"]
    assert 0 not in found.gang("x").binding[0].nodes


def test_failures_far_apart_or_of_different_nodes_close_nothing() -> None:
    found = world()
    for n in range(6):
        assert closed(fails(found, n * 5 * DAY_S)) == []
    for n in range(2):
        assert closed(fails(found, 40 * DAY_S + n, node=3 + n)) == []


def test_a_closed_lemon_that_fails_again_is_not_closed_twice() -> None:
    found = world(lemon_failures=1)
    assert closed(fails(found, 0.0)) == [(0,)]
    assert closed(fails(found, 200.0)) == []


def test_people_may_put_a_lemon_back_into_use() -> None:
    found = world()
    for n in range(3):
        fails(found, n * 100.0)
    found.cycle(Undrained(at_s=1000.0, domain=A, nodes=(0,)))
    assert found.state.occupancy.up == [(1 << 18) - 1]
    assert closed(fails(found, 1100.0)) == [], "its history is forgotten"


def test_nothing_is_closed_where_the_policy_says_so() -> None:
    found = world(lemon_failures=None)
    for n in range(9):
        assert closed(fails(found, n * 100.0)) == []
