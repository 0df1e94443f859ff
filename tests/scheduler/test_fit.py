"""Where gangs are put when nobody has to move."""

from __future__ import annotations

from msgspec.structs import replace

from rackscale.events import DomainSpec, Refuse, Start
from rackscale.fleet.occupancy import Occupancy
from rackscale.scheduler.fit import bind, place
from rackscale.workload import Level, Nearness, Offer, Shape
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


# -- on a fabric -------------------------------------------------------------------------------------------------------


def racks(count: int, *, leaf: int = 4, spine: int = 2) -> list[DomainSpec]:
    """Domains in fabric order: `leaf` domains per leaf switch, `spine` leaf switches per spine."""
    return [
        replace(domain(i), spine=f"s{i // (leaf * spine)}", leaf=f"l{i // leaf}", building="b", region="r")
        for i in range(count)
    ]


def near(
    segments: int,
    *,
    nodes: int = 16,
    share: bool = False,
    within: Level | None = None,
    prefer: Level | None = None,
    spread: Level | None = None,
) -> dict[str, object]:
    return {
        "shape": Shape(segments=segments, nodes_per_segment=nodes, may_share_domain=share),
        "nearness": Nearness(within=within, prefer=prefer, spread=spread),
    }


def found(world: World, wanted: dict[str, object], *, avoid: int = 0, shun: int = 0) -> list[int] | None:
    gang = replace(job("asks"), **wanted)
    placement = place(world.state, gang.choices[0], gang, avoid=avoid, shun=shun)
    return placement and placement.domains


def fill(world: World, *domains: int, nodes: int = 18) -> None:
    for d in domains:
        world.state.occupancy.hold(d, (1 << nodes) - 1)


def test_a_gang_lies_under_one_leaf_switch_where_that_costs_nothing() -> None:
    world = World(*racks(12))
    fill(world, 1, 2, 5)
    assert found(world, near(4)) == [8, 9, 10, 11]
    assert found(world, near(3)) == [4, 6, 7]


def test_a_leaf_switch_that_just_fits_is_taken_before_one_with_more_to_give() -> None:
    world = World(*racks(12))
    fill(world, 4, 5)
    assert found(world, near(2)) == [6, 7]
    assert found(world, near(2, prefer="leaf")) == [6, 7]


def test_the_preferred_level_comes_before_best_fit_and_the_rest_of_the_fleet_after_it() -> None:
    world = World(*racks(8))
    for d in (0, 4):
        fill(world, d, nodes=1)  # 16 nodes of room: the best fit for a segment of 16
    assert found(world, near(2)) == [0, 4]
    assert found(world, near(2, prefer="leaf")) == [0, 1]
    fill(world, 1, 2, 3, 5, 6, 7, nodes=2)
    assert found(world, near(2, prefer="leaf")) == [0, 4]


def test_a_required_level_is_waited_for() -> None:
    world = World(*racks(8))
    fill(world, 1, 5, nodes=9)
    assert found(world, near(4, within="leaf")) is None
    assert found(world, near(4, within="spine")) == [0, 2, 3, 4]
    assert found(world, near(5, within="leaf")) is None


def test_spread_puts_each_segment_under_another_leaf_switch() -> None:
    world = World(*racks(16))
    assert found(world, near(3, spread="leaf")) == [0, 4, 8]
    assert found(world, near(2, spread="leaf", within="spine")) == [0, 4]
    assert found(world, near(3, spread="leaf", within="spine")) is None
    assert found(world, near(2, share=True, nodes=2, spread="domain")) == [0, 1]


def test_segments_that_share_domains_stay_under_one_leaf_switch_if_they_must() -> None:
    world = World(*racks(8))
    fill(world, 0, 1, 2, nodes=9)  # 8 nodes of room each
    fill(world, 3, 5, 6, 7)
    assert found(world, near(3, nodes=8, share=True)) == [2, 4, 4]
    assert found(world, near(3, nodes=8, share=True, within="leaf")) == [0, 1, 2]
    assert found(world, near(2, nodes=8, share=True, within="domain")) == [4, 4]
    assert found(world, near(3, nodes=8, share=True, within="domain")) is None


def test_shunned_domains_are_used_only_in_need_and_avoided_ones_never() -> None:
    world = World(*racks(4))
    assert found(world, near(2), shun=0b0011) == [2, 3]
    assert found(world, near(2, prefer="leaf"), shun=0b0111) == [0, 1]
    assert found(world, near(3), shun=0b0011, avoid=0b1000) == [0, 1, 2]
    assert found(world, near(4), avoid=0b1000) is None


def test_closeness_comes_before_the_price() -> None:
    cheap = [replace(d, cluster="x", name=f"x{i}", usd_per_gpu_hour=1.0) for i, d in enumerate(racks(5)[3:])]
    dear = [replace(d, usd_per_gpu_hour=2.0) for d in racks(2)]
    world = World(*cheap, *dear)
    assert found(world, near(2)) == [2, 3]
    assert found(world, near(1)) == [0]


def test_a_required_level_that_no_unit_could_ever_give_is_refused() -> None:
    world = World(*racks(8))
    gang = replace(job("wide"), **near(5, within="leaf"))
    assert [type(action) for action in world.submit(gang)] == [Refuse]
    assert [type(a) for a in world.submit(replace(gang, offers=(Offer(shape=Shape()),)))] == [Start]


def test_a_gang_gets_spares_of_its_own_beside_each_segment() -> None:
    world = World(domain(0))
    shape = Shape(segments=2, nodes_per_segment=7, spares_per_segment=1, may_share_domain=True)
    gang = replace(job("spared"), shape=shape)
    placement = place(world.state, Offer(shape=shape), gang)
    assert placement is not None
    assert placement.free_nodes_left == 1
    first, second = bind(world.state, placement, shape, forbidden={0: 0b1})
    assert (first.nodes, first.spares) == ((1, 2, 3, 4, 5, 6, 7), (8,))
    assert (second.nodes, second.spares) == ((9, 10, 11, 12, 13, 14, 15), (16,))
    assert place(world.state, Offer(shape=replace(shape, nodes_per_segment=8)), gang) is None


def test_gangs_without_gpus_are_placed_in_books_of_their_own() -> None:
    world = World(domain(0))
    fill(world, 0)
    books = Occupancy()
    books.add(18, 0)
    gang = replace(job("beside", 18), cpu_only=True)
    assert place(world.state, gang.choices[0], gang) is None
    placement = place(world.state, gang.choices[0], gang, books=books)
    assert placement is not None
    assert bind(world.state, placement, gang.shape, books=books)[0].nodes == tuple(range(18))
