"""Elastic gangs: growing into room that nobody wants, shrinking rather than leaving."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.events import (
    Action,
    Checkpointed,
    Claim,
    GangRunning,
    Move,
    Preempt,
    Restart,
    Start,
    Submitted,
)
from rackscale.workload import Durability, Job, Nearness, Offer, Policy, Queue, Shape
from tests.scheduler.world import World, domain, job

A, B = "c/us-000", "c/us-001"
QUICK = Policy(min_runtime_s=10.0)
SAVES = Durability(checkpoint_interval_s=1000.0, checkpoint_s=5.0, grace_s=30.0, restart_s=10.0)


def elastic(name: str, *sizes: int, segments: int = 1, **more: object) -> Job:
    """Work in proportion to nodes; the smallest size is the job's own."""
    first, *rest = sorted(sizes)
    offers = tuple(
        Offer(shape=Shape(segments=segments, nodes_per_segment=n), throughput=n / first) for n in rest
    )
    more.setdefault("durability", SAVES)
    return replace(job(name, first, segments), offers=offers, elastic=True, duration_s=100_000.0, **more)


def moves(actions: tuple[Action, ...]) -> dict[str, tuple[str, int]]:
    """Gang -> (why, nodes afterwards)."""
    return {
        a.gang: (a.reason.code, sum(len(s.nodes) for s in a.binding)) for a in actions if isinstance(a, Move)
    }


def small(policy: Policy = QUICK, **more: object) -> World:
    """An elastic gang that had to start with 4 nodes, and a domain that is empty again."""
    world = World(domain(0), policy=policy)
    world.submit(job("fills", 13))
    world.submit(elastic("e", 4, 8, 16, **more))  # type: ignore[arg-type]
    assert len(world.gang("e").binding[0].nodes) == 4
    world.end("fills")
    return world


# -- growing -----------------------------------------------------------------------------------------------------------


def test_a_gang_grows_into_room_that_nobody_wants_when_it_has_run_long_enough() -> None:
    world = small()
    assert world.state.wake_at_s == 10.0
    assert moves(world.tick(10.0)) == {"e": ("grown", 16)}
    starts = [a for a in world.end("e", "left") if isinstance(a, Start)]
    assert [len(s.nodes) for a in starts for s in a.binding] == [16]
    assert world.gang("e").throughput == 4.0
    assert world.gang("e").evictions == 0, "growing is no eviction"


def test_a_gang_grows_over_more_domains() -> None:
    world = World(domain(0), domain(1), policy=QUICK)
    world.submit(job("fills", 16))
    wide = Offer(shape=Shape(segments=2, nodes_per_segment=16), throughput=2.0)
    world.submit(replace(elastic("e", 16), offers=(wide,)))
    world.end("fills")
    (move,) = [a for a in world.tick(100.0) if isinstance(a, Move)]
    assert sorted(s.domain for s in move.binding) == [A, B]


def test_nobody_grows_while_somebody_waits() -> None:
    world = small()
    world.submit(job("wide", 15))
    assert world.gang("wide").status == "waiting"
    assert not moves(world.tick(10.0))


def test_nobody_grows_where_the_policy_forbids_it() -> None:
    assert not moves(small(replace(QUICK, growth=False)).tick(10.0))


def test_a_program_that_does_not_save_on_request_grows_at_its_checkpoint() -> None:
    silent = Durability(checkpoint_interval_s=1000.0, restart_s=10.0)
    world = small(durability=silent)
    assert not moves(world.tick(500.0))
    grown = world.cycle(Checkpointed(at_s=600.0, gang="e", attempt=1))
    assert moves(grown) == {"e": ("grown", 16)}


def test_a_gang_that_is_nearly_done_does_not_grow() -> None:
    world = World(domain(0), policy=QUICK)
    world.submit(job("fills", 13))
    world.submit(replace(elastic("e", 4, 16), duration_s=16.0))
    world.end("fills")
    assert not moves(world.tick(20.0))


def test_growing_keeps_to_the_limits_of_the_queue_also_of_several_gangs_together() -> None:
    queue = Queue(name="default", quota_gpus=0, borrow_gpus=4 * 14)
    world = World(domain(0), domain(1), policy=QUICK, queues=(queue, Queue(name="other")))
    world.submit(job("f0", 13, queue="other"), job("f1", 13, queue="other"))
    world.submit(elastic("e0", 4, 8), elastic("e1", 4, 8))
    world.end("f0")
    world.end("f1")
    world.tick(100.0)
    world.tick(101.0)
    for name in ("e0", "e1"):
        if world.gang(name).claim:
            world.end(name, "left")
    assert world.state.tree.node("default").gpus <= 4 * 14
    assert world.state.tree.node("default").gpus == 4 * 12


def test_nobody_else_takes_what_a_growing_gang_was_given_under_the_limit() -> None:
    queue = Queue(name="default", quota_gpus=0, borrow_gpus=4 * 10)
    world = World(domain(0), policy=QUICK, queues=(queue, Queue(name="other")))
    world.submit(job("fills", 13, queue="other"))
    world.submit(elastic("e", 4, 8))
    world.end("fills")
    assert moves(world.tick(100.0)) == {"e": ("grown", 8)}
    world.submit(job("late", 4), at_s=101.0)
    assert world.gang("late").status == "waiting"


def test_a_gang_that_asks_to_be_spread_grows_onto_another_leaf() -> None:
    specs = (replace(domain(i, nodes=4, spares=0), leaf="l0" if i < 2 else "l1") for i in range(3))
    world = World(*specs, policy=QUICK)
    two = (Offer(shape=Shape(segments=2, nodes_per_segment=4), throughput=2.0),)
    wants = replace(elastic("e", 4), offers=two, nearness=Nearness(spread="leaf"))
    world.submit(job("fills", 4, cluster="c"), job("fills-too", 4))
    world.submit(wants)
    assert world.where("e") == ["c/us-002"]
    world.end("fills")
    assert moves(world.tick(20.0)) == {"e": ("grown", 8)}
    near = World(*(replace(domain(i, nodes=4, spares=0), leaf="l0") for i in range(2)), policy=QUICK)
    near.submit(job("fills", 4))
    near.submit(wants)
    near.end("fills")
    assert not moves(near.tick(20.0))


def test_a_gang_that_saves_by_itself_grows_at_its_next_checkpoint() -> None:
    unasked = Durability(grace_s=30.0, restart_s=10.0)
    world = World(domain(0), policy=QUICK)
    world.submit(job("fills", 13))
    world.cycle(Submitted(at_s=0.0, job=elastic("e", 4, 8, durability=unasked)))
    world.state.fold(GangRunning(at_s=0.0, gang="e", attempt=1, saves_every_s=100.0))
    world.state.now_s = 50.0
    assert not moves(world.end("fills"))
    woken_s = world.state.wake_at_s
    assert woken_s is not None
    assert 100.0 < woken_s < 102.0
    assert moves(world.tick(woken_s)) == {"e": ("grown", 8)}


# -- shrinking ---------------------------------------------------------------------------------------------------------


def full(*, policy: Policy = QUICK, **more: object) -> World:
    world = World(domain(0), policy=policy)
    world.submit(elastic("e", 4, 8, 16, **more))  # type: ignore[arg-type]
    assert len(world.gang("e").binding[0].nodes) == 16
    return world


@pytest.mark.parametrize(("wanted", "left"), [(4, 8), (9, 8), (10, 4), (13, 4)])
def test_a_gang_shrinks_by_no_more_than_is_needed_rather_than_leave(wanted: int, left: int) -> None:
    world = full()
    actions = world.submit(job("vip", wanted, priority="high"), at_s=100.0)
    assert moves(actions) == {"e": ("shrunk-for", left)}
    world.end("e", "left")
    assert len(world.gang("e").binding[0].nodes) == left
    assert len(world.gang("vip").binding[0].nodes) == wanted
    assert world.gang("e").evictions == 1, "shrinking counts against the budget"


def test_a_gang_that_can_t_shrink_far_enough_leaves() -> None:
    world = full()
    actions = world.submit(job("vip", 16, priority="high"), at_s=100.0)
    assert [a.gang for a in actions if isinstance(a, Preempt)] == ["e"]
    assert not moves(actions)


def test_a_dearer_elastic_gang_shrinks_before_a_cheap_one_is_evicted() -> None:
    world = World(domain(0), policy=QUICK)
    world.submit(elastic("e", 4, 12, eviction_penalty_gpu_h=100.0), job("rigid", 4, restart_s=0.0))
    actions = world.submit(job("vip", 4, priority="high"), at_s=100.0)
    assert (set(moves(actions)), [a.gang for a in actions if isinstance(a, Preempt)]) == ({"e"}, [])


@pytest.mark.parametrize(("wanted", "left"), [(1, 3), (2, 2), (3, 1)])
def test_a_gang_that_is_in_the_way_in_several_domains_shrinks_rather_than_leave(
    wanted: int, left: int
) -> None:
    world = wide((1, 2, 3, 4), domains=4)
    assert len(world.where("e")) == 4
    actions = world.submit(job("p", 18, wanted, priority="production"), at_s=50.0)
    assert not [a for a in actions if isinstance(a, Preempt)]
    assert moves(actions) == {"e": ("shrunk-for", 18 * left)}
    world.run(world.end("e", "left"))
    assert (len(world.where("e")), len(world.where("p"))) == (left, wanted)


def test_of_two_gangs_in_the_way_one_leaves_and_the_other_only_shrinks() -> None:
    world = World(*(domain(i, spares=0) for i in range(4)), policy=QUICK)
    two = (Offer(shape=Shape(segments=2, nodes_per_segment=18), throughput=2.0),)
    world.submit(*(replace(elastic(name, 18), offers=two) for name in ("e", "f")))
    assert [len(world.where(name)) for name in ("e", "f")] == [2, 2]
    actions = world.submit(job("p", 18, 3, priority="production"), at_s=50.0)
    (gone,) = [a.gang for a in actions if isinstance(a, Preempt)]
    assert moves(actions) == {({"e", "f"} - {gone}).pop(): ("shrunk-for", 18)}


def test_guards_protect_elastic_gangs_too() -> None:
    world = full(policy=Policy(min_runtime_s=500.0))
    assert not moves(world.submit(job("vip", 4, priority="high"), at_s=100.0))
    never = full(policy=replace(QUICK, max_evictions_per_day=0))
    assert not moves(never.submit(job("vip", 4, priority="high"), at_s=100.0))


def test_what_is_shrunk_grows_again_when_nobody_waits_any_more() -> None:
    world = full()
    world.submit(job("vip", 8, priority="high"), at_s=100.0)
    world.end("e", "left")
    world.state.now_s = 200.0
    assert moves(world.end("vip")) == {"e": ("grown", 16)}


# -- failures ----------------------------------------------------------------------------------------------------------


def wide(sizes: tuple[int, ...], domains: int) -> World:
    world = World(*(domain(i, spares=0) for i in range(domains)), policy=QUICK)
    first, *rest = sorted(sizes)
    offers = tuple(Offer(shape=Shape(segments=n, nodes_per_segment=18), throughput=n / first) for n in rest)
    world.submit(replace(job("e", 18, first), offers=offers, elastic=True, duration_s=1e6, durability=SAVES))
    return world


def test_a_gang_goes_on_without_the_segment_that_can_t_be_replaced() -> None:
    world = wide((1, 2, 3), 3)
    assert len(world.gang("e").binding) == 3
    (restart,) = world.fail(B, 4)
    assert isinstance(restart, Restart)
    assert (restart.reason.code, [s.domain for s in restart.binding]) == ("shrunk", [A, "c/us-002"])
    assert world.gang("e").throughput == 2.0


def test_a_gang_does_not_shrink_where_a_segment_can_move() -> None:
    world = wide((1, 2), 3)
    spare = next(iter({A, B, "c/us-002"} - set(world.where("e"))))
    (restart,) = world.fail(world.where("e")[0], 4)
    assert isinstance(restart, Restart)
    assert restart.reason.code == "moved-segment"
    assert spare in [s.domain for s in restart.binding]


def test_a_gang_that_is_too_small_afterwards_waits_again() -> None:
    world = wide((2, 3), 3)
    actions = world.cycle()
    actions = world.fail(A, 0) + world.fail(B, 0)
    assert not [a for a in actions if isinstance(a, Claim)]
    assert world.gang("e").status == "leaving"


def test_gangs_without_gpus_never_touch_gpu_nodes_when_they_could_grow() -> None:
    world = World(domain(0), policy=QUICK)
    world.submit(replace(elastic("e", 2, 4), cpu_only=True))
    world.tick(100.0)
    assert world.state.occupancy.claimed == [0]
