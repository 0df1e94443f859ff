"""Moving gangs so that a whole domain opens, where that is worth the work lost."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.events import Action, Claim, Drained, Move, Start
from rackscale.workload import Durability, Job, Nearness, Policy, Queue, Shape
from tests.scheduler.world import World, domain, job

A, B, C = "c/us-000", "c/us-001", "c/us-002"
ON = Policy(preemption=False, defragment="on", min_runtime_s=10.0)
SAVES = Durability(checkpoint_interval_s=600.0, checkpoint_s=5.0, grace_s=30.0, restart_s=10.0)


def movable(name: str, nodes: int, **more: object) -> Job:
    more.setdefault("durability", SAVES)
    return replace(job(name, nodes), **more)


def split(policy: Policy = ON, *, queues: tuple[Queue, ...] = (), **more: object) -> World:
    """Two domains of 8 nodes: one gang of 3 nodes in each, so that a gang of 8 finds 5 + 5 free."""
    world = World(*(domain(i, nodes=8, spares=0) for i in range(2)), policy=policy, queues=queues)
    world.submit(movable("a", 3, **more), job("f0", 5), movable("b", 3, **more), job("f1", 5))
    world.end("f0")
    world.end("f1")
    assert sorted(world.state.occupancy.room) == [5, 5]
    return world


def moves(actions: tuple[Action, ...]) -> list[tuple[str, str]]:
    return [(a.gang, a.binding[0].domain) for a in actions if isinstance(a, Move)]


def test_one_gang_moves_into_a_gap_and_the_domain_is_kept_for_the_one_that_waits() -> None:
    world = split()
    actions = world.submit(job("wide", 8), at_s=100.0)
    ((mover, target),) = moves(actions)
    (claim,) = [a for a in actions if isinstance(a, Claim)]
    opened = claim.binding[0].domain
    assert (mover in ("a", "b"), {target, opened}) == (True, {A, B})
    starts = [a.gang for a in world.end(mover, "left") if isinstance(a, Start)]
    assert sorted(starts) == sorted([mover, "wide"])
    assert world.where("wide") == [opened]
    assert world.where(mover) == [target]
    assert world.gang(mover).evictions == 1, "a move counts against what a gang may suffer in a day"


@pytest.mark.parametrize("mode", ["off", "advise"])
def test_nobody_moves_unless_the_policy_says_on(mode: str) -> None:
    world = split(replace(ON, defragment=mode))
    assert world.submit(job("wide", 8), at_s=100.0) == ()


def test_work_that_would_be_lost_is_weighed_against_waiting_saved() -> None:
    """8 nodes x 4 GPUs x 4 h of waiting at most = 128 GPU-hours; 3 nodes x 4 GPUs lose as many hours as they ran."""
    silent = Durability(restart_s=10.0)
    early, late = split(durability=silent), split(durability=silent)
    assert moves(early.submit(job("wide", 8), at_s=5.0 * 3600))  # 60 GPU-hours, twice that is less than 128
    assert not moves(late.submit(job("wide", 8), at_s=5.5 * 3600))  # 66


def test_a_gang_that_soon_starts_anyway_is_not_moved_for() -> None:
    silent = Durability(restart_s=10.0)
    world = split(durability=silent, duration_s=2.0 * 3600 + 60.0)
    assert not moves(world.submit(job("wide", 8), at_s=2.0 * 3600))
    unknown = split(durability=silent)
    assert moves(unknown.submit(job("wide", 8), at_s=2.0 * 3600))


def test_a_larger_gain_may_be_asked_for() -> None:
    silent = Durability(restart_s=10.0)
    world = split(replace(ON, defragment_gain=10.0), durability=silent)
    assert not moves(world.submit(job("wide", 8), at_s=5.0 * 3600))


@pytest.mark.parametrize(
    "more",
    [{"preemptible": False}, {"durability": replace(SAVES, restart_s=500.0)}],
)
def test_gangs_that_may_not_be_interrupted_stay(more: dict[str, object]) -> None:
    assert not moves(split(**more).submit(job("wide", 8), at_s=100.0))  # type: ignore[arg-type]


def test_gangs_of_higher_priority_than_the_one_that_waits_stay() -> None:
    world = split()
    assert not moves(world.submit(job("wide", 8, priority="low"), at_s=100.0))
    assert moves(world.submit(job("wider", 8), at_s=200.0))


def test_gangs_are_not_moved_twice_within_the_minimum_run_time() -> None:
    assert not moves(split(replace(ON, min_runtime_s=500.0)).submit(job("wide", 8), at_s=100.0))


def test_nobody_moves_for_a_gang_that_its_queue_keeps_waiting() -> None:
    queues = (Queue(name="default"), Queue(name="tight", quota_gpus=0, borrow_gpus=16))
    world = split(queues=queues)
    actions = world.submit(job("wide", 8, queue="tight"), at_s=100.0)
    assert actions == ()
    assert not world.state.reserved
    assert moves(world.submit(job("free", 8), at_s=200.0))


def test_nobody_moves_where_a_gang_could_start_anyway() -> None:
    world = split()
    actions = world.submit(job("small", 5), at_s=100.0)
    assert not moves(actions)
    assert world.gang("small").binding


def test_a_gang_moves_only_where_it_may_lie() -> None:
    specs = [replace(domain(i, nodes=8, spares=0), leaf=f"l{i // 2}") for i in range(4)]
    world = World(*specs, policy=ON)
    world.submit(*(job(f"f{i}", 8) for i in range(4)))
    world.end("f0")
    world.end("f2")
    pair = Shape(segments=2, nodes_per_segment=3)
    world.submit(replace(movable("pair", 3), shape=pair, nearness=Nearness(spread="leaf")))
    assert world.where("pair") == [A, C]
    world.end("f3")
    world.submit(job("g", 5), job("wide", 8, queue="x"), at_s=100.0)
    found = moves(world.tick(200.0))
    for _, target in found:
        assert target != A


def test_a_gang_does_not_move_onto_nodes_that_are_drained() -> None:
    world = split()
    world.cycle(Drained(at_s=50.0, domain=B, nodes=(7, 6, 5, 4, 3)))
    assert not moves(world.submit(job("wide", 8), at_s=100.0))


def test_no_domain_is_opened_near_another_replica_that_has_to_be_apart() -> None:
    """Two domains of one leaf with 5 + 5 free nodes, and one of the same leaf where the first replica is."""
    for apart, opens in ((Nearness(), True), (Nearness(apart="leaf", apart_required=True), False)):
        specs = (replace(domain(i, nodes=8, spares=0), leaf="l") for i in range(3))
        world = World(*specs, policy=ON)
        world.submit(movable("a", 3), job("f0", 5), movable("b", 3), job("f1", 5))
        world.end("f0")
        world.end("f1")
        service = replace(job("s", 8, kind="service", replicas=2), nearness=apart)
        actions = world.submit(service, at_s=100.0)
        assert world.where("s/0") == [C]
        assert bool(moves(actions)) is opens
