"""Clearing domains: who leaves, who is protected, and what it costs."""

from __future__ import annotations

from rackscale.events import Checkpointed, Claim, GangEnded, NodeFailed, Preempt, Start, Unclaim
from rackscale.scheduler.price import cost
from rackscale.workload import Policy, Queue
from tests.scheduler.world import World, domain, job

PATIENT = Policy(min_runtime_s=10.0, preemption_retry_s=5.0)


def busy(*, policy: Policy = PATIENT, queues: tuple[Queue, ...] = ()) -> World:
    """Two domains, each held by two normal gangs of 8 nodes; 1 node free beside the spare."""
    world = World(domain(0), domain(1), policy=policy, queues=queues)
    world.submit(*(job(f"n{i}", 8) for i in range(4)))
    return world


def victims(actions: object) -> list[str]:
    assert isinstance(actions, tuple)
    return [a.gang for a in actions if isinstance(a, Preempt)]


def test_a_production_gang_clears_the_domain_that_loses_least() -> None:
    world = busy()
    world.cycle(*(Checkpointed(at_s=90.0, gang=g, attempt=1) for g in ("n2", "n3")))
    actions = world.submit(job("prod", 16, priority="production"), at_s=100.0)
    assert victims(actions) == ["n2", "n3"]
    claim = next(a for a in actions if isinstance(a, Claim))
    assert [s.domain for s in claim.binding] == ["c/us-001"]


def test_the_claim_starts_when_the_last_victim_has_left_and_nobody_slips_in() -> None:
    world = busy()
    first, second = victims(world.submit(job("prod", 16, priority="production"), at_s=100.0))
    assert world.end(first, "left") == ()
    assert world.submit(job("thief", 8)) == ()
    actions = world.end(second, "left")
    assert [a.gang for a in actions if isinstance(a, Start)] == ["prod"]


def test_only_as_many_victims_as_needed() -> None:
    world = busy()
    assert len(victims(world.submit(job("prod", 9, priority="production"), at_s=100.0))) == 1


def test_two_segments_share_what_one_victim_frees() -> None:
    world = World(domain(0), domain(1), policy=PATIENT)
    world.submit(job("broad", 16, 2))
    actions = world.submit(job("prod", 16, 2, priority="production"), at_s=100.0)
    assert victims(actions) == ["broad"]


def test_equal_priority_is_never_evicted() -> None:
    world = busy()
    assert victims(world.submit(job("peer", 16), at_s=100.0)) == []


def test_what_its_owner_protects_is_never_evicted() -> None:
    world = World(domain(0), policy=PATIENT)
    world.submit(job("fixed", 16, preemptible=False))
    assert victims(world.submit(job("prod", 16, priority="production"), at_s=100.0)) == []


def test_minimum_run_time_holds_and_the_timer_tries_again() -> None:
    world = busy()
    assert victims(world.submit(job("prod", 16, priority="production", restart_s=1.0), at_s=5.0)) == []
    assert world.state.wake_at_s == 10.0
    assert victims(world.tick(10.0)) == []
    assert len(victims(world.tick(61.0))) == 2


def test_the_price_is_lost_work_and_restart_and_penalty() -> None:
    world = World(domain(0), policy=PATIENT)
    world.submit(job("v", 2, restart_s=30.0, penalty_gpu_h=1.0))
    world.cycle(Checkpointed(at_s=60.0, gang="v", attempt=1))
    price = cost(world.state, world.gang("v"), 100.0)
    assert price == (40.0 * 8, 30.0 * 8, 3600.0)


def test_an_eviction_budget_per_gang_and_day() -> None:
    policy = Policy(min_runtime_s=1.0, max_evictions_per_day=1)
    world = World(domain(0), policy=policy)
    world.submit(job("v", 16, restart_s=1.0))
    assert victims(world.submit(job("p1", 16, priority="production"), at_s=100.0)) == ["v"]
    world.end("v", "left")
    world.run(world.cycle())
    world.end("p1")
    assert world.gang("v").status == "running"
    assert victims(world.submit(job("p2", 16, priority="production"), at_s=1000.0)) == []
    assert victims(world.tick(86_400.0 + 1000.0)) == ["v"]


def test_an_eviction_budget_per_queue_and_day() -> None:
    world = busy(queues=(Queue(name="default", max_evictions_per_day=1),))
    assert len(victims(world.submit(job("p1", 8, priority="production"), at_s=100.0))) == 1
    assert victims(world.submit(job("p2", 8, priority="production"), at_s=200.0)) == []


def test_a_claim_on_a_failed_node_is_given_up_and_made_again() -> None:
    world = busy()
    first, _ = victims(world.submit(job("prod", 16, priority="production"), at_s=100.0))
    d = world.where(first)[0]
    node = world.gang("prod").claim[0].nodes[0]
    actions = world.cycle(NodeFailed(at_s=101.0, domain=d, nodes=(node,)))
    assert any(isinstance(a, Unclaim) for a in actions)
    again = world.tick(world.state.wake_at_s or 0.0)
    assert any(isinstance(a, Claim) for a in again)
    assert victims(again) == [], "those who leave already are enough"


def test_nodes_of_gangs_that_leave_anyway_are_used_before_new_victims() -> None:
    world = busy()
    victims(world.submit(job("p1", 8, priority="production"), at_s=100.0))
    leaving = next(g for g in world.state.gangs.values() if g.status == "leaving")
    before = set(leaving.binding[0].nodes)
    claimed = set(world.gang("p1").claim[0].nodes)
    assert claimed <= before | {16, 17}


def test_a_preempted_gang_goes_to_the_front_of_its_class() -> None:
    world = World(domain(0), policy=PATIENT)
    world.submit(job("first", 16))
    world.submit(job("queued", 16))
    world.submit(job("prod", 16, priority="production"), at_s=100.0)
    world.run(world.cycle(GangEnded(at_s=101.0, gang="first", attempt=1, outcome="left", checkpointed=True)))
    world.end("prod")
    assert world.gang("first").binding
    assert not world.gang("queued").binding
