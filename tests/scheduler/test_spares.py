"""Spares: how many are kept, and how nodes are swapped under running gangs."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.events import Action, NodeFailed, Requeue, Restart
from rackscale.workload import Job, Nearness, Policy, Shape
from tests.scheduler.world import World, domain, job

A, B, C = "c/us-000", "c/us-001", "c/us-002"


def world(count: int = 1, *, spares: int = 2, leaf: int = 9, **policy: object) -> World:
    specs = [replace(domain(i, spares=spares), leaf=f"l{i // leaf}") for i in range(count)]
    return World(*specs, policy=Policy(preemption=False, **policy))  # type: ignore[arg-type]


def restart(actions: tuple[Action, ...]) -> Restart:
    (found,) = [a for a in actions if isinstance(a, Restart)]
    return found


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spares", "room"), [("none", 18), ("fixed", 16), ("adaptive", 18)])
def test_an_empty_domain_gives_what_the_policy_does_not_keep(spares: str, room: int) -> None:
    found = World(domain(0, spares=2), policy=Policy(spares=spares))  # type: ignore[arg-type]
    assert found.state.occupancy.room == [room]


def test_adaptive_spares_are_kept_under_large_gangs_and_given_up_after_them() -> None:
    policy = Policy(spares="adaptive", failures_per_gpu_hour=1e-3, node_repair_s=3600.0)
    found = World(domain(0, spares=2), domain(1, spares=2), policy=policy)
    found.submit(job("large", 16, 2))  # 64 GPUs x 1e-3/h x 1 h x 128 GPUs = 8.2 > 8
    assert found.state.occupancy.spares == [2, 2]
    assert found.state.occupancy.room == [0, 0]
    found.end("large")
    assert found.state.occupancy.room == [18, 18]
    found.submit(job("small", 16))
    assert found.state.occupancy.room == [2, 18]


def test_another_policy_takes_effect_on_what_runs() -> None:
    from rackscale.events import Configured

    found = world()
    found.submit(job("x", 10))
    found.cycle(Configured(at_s=1.0, policy=Policy(spares="none")))
    assert found.state.occupancy.room == [8]
    found.cycle(Configured(at_s=2.0, policy=Policy(spares="fixed")))
    assert found.state.occupancy.room == [6]


# -- hot swap ----------------------------------------------------------------------------------------------------------


def test_one_dead_node_is_replaced_in_its_rank() -> None:
    found = world()
    found.submit(job("x", 16))
    again = restart(found.fail(A, 5))
    assert again.reason.code == "spare"
    assert again.binding[0].nodes == (0, 1, 2, 3, 4, 16, *range(6, 16))


def test_several_dead_nodes_of_several_segments_are_replaced_at_once() -> None:
    found = world(2)
    found.submit(job("x", 16, 2))
    failed = (NodeFailed(at_s=1.0, domain=A, nodes=(1, 3)), NodeFailed(at_s=1.0, domain=B, nodes=(2,)))
    again = restart(found.cycle(*failed))
    assert again.reason.code == "spare"
    assert [s.domain for s in again.binding] == [A, B]
    assert set(again.binding[0].nodes) == {*range(18)} - {1, 3}
    assert 2 not in again.binding[1].nodes


def test_a_segment_moves_when_its_domain_has_too_few_spares_and_the_others_stay() -> None:
    found = world(3)
    found.submit(job("x", 16, 2))
    again = restart(found.fail(A, 0, 1, 2))
    assert again.reason.code == "moved-segment"
    assert [s.domain for s in again.binding] == [C, B]


def test_a_gang_with_nowhere_to_go_waits_again_first_in_line() -> None:
    found = world(1)
    found.submit(job("x", 16))
    found.submit(job("behind", 1, priority="normal"))
    actions = found.fail(A)
    assert [type(a) for a in actions] == [Requeue]
    found.end("x", "left")
    assert next(iter(found.state.waiting)) == "x"


def test_own_spares_are_used_before_those_of_the_domain() -> None:
    found = world()
    one: Job = replace(job("x"), shape=Shape(nodes_per_segment=12, spares_per_segment=2))
    found.submit(one)
    again = restart(found.fail(A, 0))
    (segment,) = again.binding
    assert (again.reason.code, segment.nodes, segment.spares) == ("own-spare", (12, *range(1, 12)), (13,))
    again = restart(found.fail(A, 1, 2))
    assert (again.reason.code, again.binding[0].spares) == ("spare", ())
    assert set(again.binding[0].nodes) == {*range(3, 14), 14}


def test_a_dead_spare_of_its_own_does_not_stop_a_gang() -> None:
    found = world()
    found.submit(replace(job("x"), shape=Shape(nodes_per_segment=12, spares_per_segment=2)))
    assert found.fail(A, 12) == ()
    again = restart(found.fail(A, 0))
    assert 13 in again.binding[0].nodes, "the dead spare replaces nothing"


# -- nearness ----------------------------------------------------------------------------------------------------------


def test_a_segment_moves_only_inside_the_required_unit() -> None:
    found = world(5, leaf=3)
    found.submit(replace(job("x", 16, 2), nearness=Nearness(within="leaf")))
    assert found.where("x") == ["c/us-003", "c/us-004"], "the leaf that just fits"
    assert [type(a) for a in found.fail("c/us-003")] == [Requeue], "there is room under the other leaf only"
    found = world(6, leaf=3)
    found.submit(replace(job("x", 16, 2), nearness=Nearness(within="leaf")))
    assert found.where("x") == [A, B]
    assert [s.domain for s in restart(found.fail(A)).binding] == [C, B]
    alone = world(4, leaf=2)
    alone.submit(replace(job("x", 16, 2), nearness=Nearness(within="leaf")))
    assert [type(a) for a in alone.fail(A)] == [Requeue]


def test_a_segment_moves_to_a_unit_of_its_own_if_segments_are_spread() -> None:
    found = world(6, leaf=2)
    found.submit(replace(job("x", 16, 2), nearness=Nearness(spread="leaf")))
    first, second = found.where("x")
    assert (first, second) == ("c/us-000", "c/us-002")
    found.cycle(*(NodeFailed(at_s=1.0, domain=name) for name in ("c/us-000", "c/us-001")))
    moved, stayed = found.where("x")
    assert stayed == second
    leaves = {found.state.domains[found.state.index[d]].leaf for d in (moved, stayed)}
    assert len(leaves) == 2
    beside = found.state.topology.unit("leaf", found.state.index[second])
    assert not beside >> found.state.index[moved] & 1


def test_a_replica_that_must_be_apart_moves_apart() -> None:
    found = world(3, leaf=1)
    service = replace(
        job("s", 16, kind="service", replicas=2), nearness=Nearness(apart="domain", apart_required=True)
    )
    small = replace(service, shape=Shape(nodes_per_segment=8))
    found.submit(small)
    first, second = found.where("s/0")[0], found.where("s/1")[0]
    assert first != second
    found.fail(first)
    (third,) = found.where("s/0")
    assert third not in (first, second)
