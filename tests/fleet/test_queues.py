"""What queues hold, may hold, are owed, and used lately."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale.events import DomainSpec, Segment
from rackscale.fleet.queues import LN2, MICRO, Charge, QueueTree, Used, micro
from rackscale.fleet.state import FleetState
from rackscale.workload import Queue

WEEK_S = 7 * 86_400.0
TREE = (
    Queue(name="org", quota_gpus=100),
    Queue(name="a", parent="org", quota_gpus=40, borrow_gpus=20),
    Queue(name="b", parent="org", quota_gpus=40),
    Queue(name="other", quota_gpus=50),
)


def tree(*queues: Queue, half_life_s: float | None = WEEK_S) -> QueueTree:
    return QueueTree(queues or TREE, half_life_s)


def gpus(count: int) -> Charge:
    return Charge(count, count * MICRO // 64)


def books(found: QueueTree) -> dict[str, tuple[object, ...]]:
    return {
        name: (node.gpus, node.micro_domains, node.used.gangs + node.trial_gangs, dict(node.trial_users))
        for name, node in found.nodes.items()
    }


# -- what gangs cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "domains"), [(8, 0.5), (9, 1.0), (16, 1.0), (4, 0.25), (1, 1 / 16)])
def test_a_segment_that_leaves_no_room_for_another_counts_as_a_whole_domain(
    nodes: int, domains: float
) -> None:
    state = FleetState()
    spec = DomainSpec(name="d", system="s", nodes=18, gpus_per_node=4, cluster="c", spares=2)
    state.machines.add(spec)
    charge = state.machines.charge((Segment(domain="d", nodes=tuple(range(nodes))),))
    assert charge == Charge(4 * nodes, micro(domains))


def test_own_spares_are_charged_like_nodes_that_work() -> None:
    state = FleetState()
    state.machines.add(DomainSpec(name="d", system="s", nodes=18, gpus_per_node=4, cluster="c", spares=2))
    charge = state.machines.charge((Segment(domain="d", nodes=(0, 1, 2), spares=(3,)),))
    assert charge == Charge(16, micro(0.25))


def test_what_a_queue_holds_counts_in_every_queue_above_it() -> None:
    found = tree()
    found.change("a", "ann", gpus(8), 1, 0.0)
    found.change("b", "bob", gpus(16), 1, 0.0)
    found.change("a", "ann", gpus(8), -1, 0.0)
    assert [found.node(name).gpus for name in ("a", "b", "org", "other")] == [0, 16, 16, 0]
    assert found.node("org").micro_domains == MICRO // 4


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_queue_may_hold_its_quota_and_what_it_may_borrow() -> None:
    found = tree()
    found.change("a", "ann", gpus(52), 1, 0.0)
    assert found.refuses("a", "ann", gpus(8)) is None
    assert found.refuses("a", "ann", gpus(9)) == "queue-limit"
    assert found.refuses("b", "ann", gpus(900)) is None


def test_a_limit_above_binds_the_queues_below() -> None:
    found = tree(Queue(name="org", quota_gpus=10, borrow_gpus=0), Queue(name="a", parent="org"))
    found.change("a", "", gpus(8), 1, 0.0)
    assert found.refuses("a", "", gpus(2)) is None
    assert found.refuses("a", "", gpus(3)) == "queue-limit"


def test_limits_may_be_in_whole_domains() -> None:
    found = tree(Queue(name="a", quota_domains=1.0, borrow_domains=0.5))
    found.change("a", "", Charge(64, MICRO), 1, 0.0)
    assert found.refuses("a", "", Charge(1000, MICRO // 2)) is None
    assert found.refuses("a", "", Charge(1, MICRO // 2 + 1)) == "queue-limit"


def test_a_queue_without_quota_may_hold_what_it_may_borrow() -> None:
    found = tree(Queue(name="a", borrow_gpus=8))
    assert found.refuses("a", "", gpus(8)) is None
    assert found.refuses("a", "", gpus(9)) == "queue-limit"


def test_gangs_of_a_subtree_and_of_each_user_are_counted() -> None:
    found = tree(
        Queue(name="org", max_gangs=3),
        Queue(name="a", parent="org", max_gangs_per_user=1, max_gpus_per_user=16),
        Queue(name="b", parent="org"),
    )
    assert found.refuses("a", "ann", gpus(17)) == "user-limit"
    found.change("a", "ann", gpus(4), 1, 0.0)
    assert found.refuses("a", "ann", gpus(4)) == "user-limit"
    assert found.refuses("a", "bob", gpus(4)) is None
    assert found.refuses("b", "ann", gpus(400)) is None
    found.change("b", "bob", gpus(4), 1, 0.0)
    found.change("b", "bob", gpus(4), 1, 0.0)
    assert found.refuses("a", "bob", gpus(4)) == "queue-gangs"
    found.change("b", "bob", gpus(4), -1, 0.0)
    assert found.refuses("a", "bob", gpus(4)) is None


def test_what_is_tried_counts_towards_limits_and_is_taken_back() -> None:
    found = tree(Queue(name="a", max_gangs=2, max_gpus_per_user=10, borrow_gpus=20))
    found.trial("a", "ann", gpus(8), 1)
    assert found.refuses("a", "ann", gpus(3)) == "user-limit"
    assert found.refuses("a", "bob", gpus(13)) == "queue-limit"
    found.trial("a", "bob", gpus(1), 1)
    assert found.refuses("a", "bob", gpus(1)) == "queue-gangs"
    found.end_trial()
    assert found.refuses("a", "ann", gpus(10)) is None


# -- what is owed ------------------------------------------------------------------------------------------------------


def test_only_what_stays_within_its_own_quota_may_be_reclaimed() -> None:
    found = tree()
    found.change("b", "", gpus(90), 1, 0.0)
    assert found.owed("b", "a", gpus(40))
    assert not found.owed("b", "a", gpus(41))
    assert not found.owed("b", "b", gpus(1)), "nobody reclaims from his own queue"
    assert not found.owed("b", "nobody", gpus(1)), "a queue without a quota is owed nothing"


def test_quotas_are_compared_just_below_the_queue_that_both_are_under() -> None:
    found = tree(
        Queue(name="left", quota_gpus=50), Queue(name="l1", parent="left", quota_gpus=10),
        Queue(name="right", quota_gpus=50), Queue(name="r1", parent="right", quota_gpus=20),
    )  # fmt: skip
    found.change("r1", "", gpus(60), 1, 0.0)
    assert found.owed("r1", "l1", gpus(50)), "the whole left side is within its quota"
    assert not found.owed("r1", "l1", gpus(51))
    assert found.can_lose("r1", "l1", gpus(10), straddle=False)
    assert not found.can_lose("r1", "l1", gpus(11), straddle=False), "the right side would fall below its 50"


def test_a_gang_across_the_quota_can_be_lost_only_if_straddling_is_allowed() -> None:
    found = tree()
    found.change("b", "", gpus(48), 1, 0.0)
    assert found.can_lose("b", "a", gpus(8), straddle=False)
    assert not found.can_lose("b", "a", gpus(16), straddle=False)
    assert found.can_lose("b", "a", gpus(16), straddle=True)
    found.change("b", "", gpus(8), -1, 0.0)
    assert not found.can_lose("b", "a", gpus(16), straddle=True), "it holds no more than its quota"


def test_a_quota_in_domains_protects_domains() -> None:
    found = tree(Queue(name="a", quota_domains=2.0), Queue(name="b", quota_domains=1.0))
    found.change("a", "", Charge(0, 3 * MICRO), 1, 0.0)
    assert found.can_lose("a", "b", Charge(64, MICRO), straddle=False)
    assert not found.can_lose("a", "b", Charge(64, MICRO + 1), straddle=False)
    assert found.owed("a", "b", Charge(4, MICRO))
    assert not found.owed("a", "b", Charge(4, MICRO + 1))


def test_a_queue_borrows_where_quotas_are_in_force_and_it_goes_beyond_its_own() -> None:
    found = tree()
    assert not found.borrows("a", gpus(40))
    assert found.borrows("a", gpus(41))
    assert found.borrows("nobody", gpus(1)), "what has no quota borrows all of it"
    assert not tree(Queue(name="a")).borrows("a", gpus(1)), "no quota is in force"


# -- past use ----------------------------------------------------------------------------------------------------------

changes = st.lists(
    st.tuples(st.floats(0.0, 2 * WEEK_S), st.integers(0, 500)), min_size=1, max_size=6
)  # fmt: skip


@given(changes, st.floats(0.1, 3.0))
def test_decayed_use_is_the_integral_of_what_was_held_fading(
    steps: list[tuple[float, int]], half_lives: float
) -> None:
    """Oracle: the sum over small steps of what was held, each halved once per half-life since."""
    half_life_s = half_lives * 86_400.0
    used, at_s = Used(), 0.0
    history: list[tuple[float, float, int]] = []
    for lasts_s, held in steps:
        used.change(held - used.gpus, 0, at_s, half_life_s)
        history.append((at_s, at_s + lasts_s, held))
        at_s += lasts_s
    summed = 0.0
    parts = 2000
    for from_s, to_s, held in history:
        step_s = (to_s - from_s) / parts
        middles = (from_s + (n + 0.5) * step_s for n in range(parts))
        summed += held * step_s * sum(0.5 ** ((at_s - t) / half_life_s) for t in middles)
    assert used.now(at_s, half_life_s) == pytest.approx(summed, rel=1e-3, abs=1e-6)


def test_use_of_one_half_life_ago_counts_half() -> None:
    used = Used()
    used.change(64, 1, 0.0, WEEK_S)
    used.change(-64, -1, 3600.0, WEEK_S)
    just_after = used.now(3600.0, WEEK_S)
    assert used.now(3600.0 + WEEK_S, WEEK_S) == pytest.approx(just_after / 2)


def test_a_queue_that_always_held_so_many_shows_as_that_many() -> None:
    found = tree(Queue(name="a", weight=2.0))
    found.change("a", "ann", gpus(10), 1, 0.0)
    queue, user = found.share("a", "ann", 100 * WEEK_S, {})
    assert queue == pytest.approx(5.0)
    assert user == pytest.approx(10.0)


def test_shares_go_from_the_root_to_the_user_and_count_what_is_tried() -> None:
    found = tree(Queue(name="org"), Queue(name="a", parent="org", weight=4.0))
    assert found.share("a", "ann", 0.0, {}) == (0.0, 0.0, 0.0)
    found.trial("a", "ann", gpus(8), 1)
    assert found.share("a", "ann", 0.0, {}) == (8.0, 2.0, 8.0)
    assert found.share("a", "bob", 0.0, {}) == (8.0, 2.0, 0.0)
    assert tree(half_life_s=None).share("a", "ann", 0.0, {}) == ()


def test_past_use_does_not_matter_without_a_half_life() -> None:
    used = Used()
    used.change(64, 1, 5.0, None)
    assert (used.gpu_s, used.at_s, used.gpus) == (0.0, 0.0, 64)


def test_a_configured_anew_queue_keeps_its_past_use_and_nothing_that_is_held() -> None:
    found, after = tree(), tree()
    found.change("a", "ann", gpus(8), 1, 0.0)
    found.change("a", "ann", gpus(8), -1, 1000.0)
    after.node("a").adopt(found.node("a"))
    assert after.share("a", "ann", 2000.0, {})[1:] == found.share("a", "ann", 2000.0, {})[1:]
    assert after.node("a").gpus == 0


names = st.sampled_from(["org", "a", "b", "other", "unheard-of"])
tries = st.lists(
    st.tuples(names, st.sampled_from(["ann", "bob"]), st.integers(0, 64), st.sampled_from([1, -1]))
)


@given(tries, tries)
def test_what_was_tried_is_taken_back_exactly(
    held: list[tuple[str, str, int, int]], tried: list[tuple[str, str, int, int]]
) -> None:
    found = tree()
    for name, user, count, gangs in held:
        found.change(name, user, gpus(count), gangs, 1.0)
    for name, *_ in tried:
        found.node(name)
    before = books(found)
    shares = {name: found.share(name, "ann", 9.0, {}) for name in before}
    for name, user, count, gangs in tried:
        found.trial(name, user, gpus(count), gangs)
    found.end_trial()
    assert books(found) == before
    assert {name: found.share(name, "ann", 9.0, {}) for name in before} == shares


def test_a_cycle_of_parents_does_not_hang() -> None:
    found = tree(Queue(name="a", parent="b"), Queue(name="b", parent="a"), Queue(name="c", parent="gone"))
    assert [node.spec.name for node in found.node("a").path] == ["a", "b"]
    assert [node.spec.name for node in found.node("c").path] == ["c"]
    found.change("a", "", gpus(4), 1, 0.0)
    assert (found.node("a").gpus, found.node("b").gpus) == (4, 4)


def test_half_life_and_rate_agree() -> None:
    found = tree(Queue(name="a"))
    found.change("a", "ann", gpus(1), 1, 0.0)
    assert found.share("a", "ann", WEEK_S, {})[0] == pytest.approx(0.5)
    assert pytest.approx(0.693147, rel=1e-5) == LN2
