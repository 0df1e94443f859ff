"""Lost nodes: spare in the same domain, another domain for the segment, or the queue."""

from __future__ import annotations

from rackscale.events import (
    Cancelled,
    Drained,
    GangEnded,
    NodeRepaired,
    Preempt,
    Refuse,
    Requeue,
    Restart,
    Start,
    Stop,
)
from tests.scheduler.world import World, domain, job


def test_a_spare_of_the_same_domain_takes_the_dead_nodes_rank() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("g", 16))
    before = world.gang("g").binding[0].nodes
    (action,) = world.fail("c/us-000", 3)
    assert isinstance(action, Restart)
    assert action.reason.code == "spare"
    assert action.attempt == 2
    after = action.binding[0].nodes
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [before.index(3)]


def test_the_reserved_spare_is_used_although_nothing_else_is_free() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("g", 17), job("h", 17))
    (action,) = world.fail("c/us-000", 0)
    assert isinstance(action, Restart)
    assert action.binding[0].nodes[0] == 17


def test_without_a_spare_only_the_segment_moves() -> None:
    world = World(domain(0, spares=0), domain(1, spares=0), domain(2, spares=0))
    world.submit(job("g", 18, 2))
    (action,) = world.fail("c/us-000", 0)
    assert isinstance(action, Restart)
    assert action.reason.code == "moved-segment"
    assert [s.domain for s in action.binding] == ["c/us-002", "c/us-001"]


def test_without_any_room_the_gang_waits_again_and_restarts_after_the_repair() -> None:
    world = World(domain(0, spares=0))
    world.submit(job("g", 18))
    (action,) = world.fail("c/us-000", 0)
    assert isinstance(action, Requeue)
    assert world.end("g", "left") == ()
    (start,) = world.cycle(NodeRepaired(at_s=50.0, domain="c/us-000", nodes=(0,)))
    assert isinstance(start, Start)
    assert start.attempt == 2


def test_a_domain_fault_takes_every_gang_in_it() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("a", 8), job("b", 8))
    world.submit(job("c", 1))
    actions = world.fail("c/us-000")
    assert [type(a) for a in actions] == [Restart, Restart, Restart]
    assert all(world.where(name) == ["c/us-001"] for name in "abc")


def test_losing_more_nodes_than_there_are_spares_moves_the_segment() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("g", 16))
    (action,) = world.fail("c/us-000", 0, 1, 2)
    assert isinstance(action, Restart)
    assert action.reason.code == "moved-segment"


def test_events_of_an_older_attempt_change_nothing() -> None:
    world = World(domain(0))
    world.submit(job("g", 4))
    old = world.gang("g").attempt
    world.fail("c/us-000", 0)
    before = world.state.snapshot()
    world.state.fold(GangEnded(at_s=world.state.now_s, gang="g", attempt=old, outcome="failed"))
    assert world.state.snapshot() == before


def test_a_drain_sends_gangs_away_and_lets_nothing_new_in() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("g", 10))
    (action,) = world.cycle(Drained(at_s=10.0, domain="c/us-000"))
    assert isinstance(action, Preempt)
    assert action.reason.code == "drain"
    world.end("g", "left")
    assert world.where("g") == ["c/us-001"]


def test_a_failed_program_is_retried_then_given_up() -> None:
    world = World(domain(0))
    world.submit(job("g", 1, max_restarts=1))
    world.end("g", "failed")
    assert world.gang("g").attempt == 2
    world.end("g", "failed")
    assert world.state.ended["g"].outcome == "failed"


def test_a_cancelled_gang_stops_and_does_not_come_back() -> None:
    world = World(domain(0))
    world.submit(job("g", 1))
    (action,) = world.cycle(Cancelled(at_s=1.0, job="g"))
    assert isinstance(action, Stop)
    world.end("g", "left")
    assert world.state.ended["g"].outcome == "cancelled"
    assert "g" not in world.state.jobs


def test_a_service_is_replaced_replica_by_replica() -> None:
    world = World(domain(0), domain(1))
    actions = world.submit(job("chat", 2, kind="service", replicas=3))
    assert [a.gang for a in actions if isinstance(a, Start)] == ["chat/0", "chat/1", "chat/2"]
    world.end("chat/1", "failed")
    assert world.gang("chat/1").attempt == 2
    assert world.gang("chat/0").attempt == 1


def test_a_job_that_can_never_fit_is_refused_at_once() -> None:
    world = World(domain(0))
    (action,) = world.submit(job("huge", 19))
    assert isinstance(action, Refuse)
    assert world.state.ended["huge"].outcome == "refused"
