"""Where gangs are put when nobody has to move."""

from __future__ import annotations

from rackscale.events import Refuse, Start
from tests.scheduler.world import World, domain, job


def test_a_segment_stays_inside_one_domain() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("filler", 9), job("other", 9))
    assert world.submit(job("wide", 12)) == ()
    assert world.gang("wide").status == "waiting"


def test_best_fit_breaks_open_the_fewest_domains() -> None:
    world = World(domain(0), domain(1), domain(2))
    world.submit(job("a", 10))
    world.submit(job("b", 14))
    world.submit(job("small", 3))
    assert world.where("small") == world.where("b")


def test_spares_are_left_free_by_normal_placement() -> None:
    world = World(domain(0, spares=2))
    assert isinstance(world.submit(job("whole", 17))[0], Refuse)
    assert isinstance(world.submit(job("most", 16))[0], Start)


def test_segments_of_a_gang_use_distinct_domains_unless_allowed() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("apart", 4, 2))
    assert len(set(world.where("apart"))) == 2
    world.submit(job("together", 4, 2, share=True))
    assert len(set(world.where("together"))) == 1


def test_sharing_segments_spill_over_when_one_domain_is_too_small() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("many", 5, 5, share=True))
    assert sorted(world.where("many")) == ["c/us-000"] * 3 + ["c/us-001"] * 2


def test_a_gang_never_spans_clusters() -> None:
    world = World(domain(0, cluster="a"), domain(0, cluster="b"))
    actions = world.submit(job("two", 16, 2))
    assert [type(a) for a in actions] == [Refuse]


def test_the_cheaper_cluster_wins_when_the_fit_is_equal() -> None:
    world = World(domain(0, cluster="dear", usd=12.0), domain(0, cluster="cheap", usd=10.0))
    world.submit(job("x", 16))
    assert world.where("x") == ["cheap/us-000"]


def test_equally_good_domains_are_taken_close_together() -> None:
    world = World(*(domain(i) for i in range(8)))
    world.submit(job("gap", 16), at_s=1.0)
    world.submit(*(job(f"fill{i}", 16) for i in range(7)))
    for name in ("gap", "fill1", "fill4", "fill5"):
        world.end(name)
    world.submit(job("pair", 16, 2))
    assert world.where("pair") == ["c/us-005", "c/us-006"]


def test_higher_priority_then_queue_rank_then_submission_go_first() -> None:
    world = World(domain(0))
    world.submit(job("holder", 16))
    world.submit(job("late", 16), at_s=1.0)
    world.submit(job("later", 16), at_s=2.0)
    world.submit(job("urgent", 16, priority="high", preemptible=True), at_s=3.0)
    order = []
    for _ in range(3):
        running = next(g.name for g in world.state.gangs.values() if g.binding)
        world.end(running)
        order.append(next(g.name for g in world.state.gangs.values() if g.binding))
    assert order == ["urgent", "late", "later"]


def test_the_same_events_give_the_same_bytes() -> None:
    def run() -> bytes:
        world = World(*(domain(i) for i in range(6)))
        world.submit(*(job(f"j{i}", 1 + i % 7, 1 + i % 2) for i in range(20)))
        world.fail("c/us-002", 0, 3)
        return world.state.snapshot()

    assert run() == run()
