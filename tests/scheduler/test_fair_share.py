"""Who used less goes first: decayed use in a tree of queues with weights, and of users inside a queue."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.events import Start, Submitted
from rackscale.workload import Job, Policy, Queue
from tests.scheduler.world import World, domain, job

DAY_S = 86_400.0
A, B = Queue(name="a"), Queue(name="b")


def world(*queues: Queue, nodes: int = 4, domains: int = 1, half_life_s: float | None = 7 * DAY_S) -> World:
    policy = Policy(preemption=False, fair_share_half_life_s=half_life_s)
    return World(
        *(domain(i, nodes=nodes, spares=0) for i in range(domains)), policy=policy, queues=queues or (A, B)
    )


def of(queue: str, name: str, *, nodes: int = 4, user: str = "", priority: str = "normal") -> Job:
    return replace(job(name, nodes, queue=queue, priority=priority), user=user)


def used(
    found: World, queue: str, lasts_s: float, *, user: str = "", nodes: int = 4, ago_s: float = 0.0
) -> None:
    """The queue holds `nodes` for a while; then `ago_s` pass."""
    found.submit(of(queue, f"past-{queue}-{user}-{found.state.now_s}", user=user, nodes=nodes))
    (name,) = [g.name for g in found.state.gangs.values() if g.binding]
    found.tick(found.state.now_s + lasts_s)
    found.end(name)
    found.tick(found.state.now_s + ago_s)


def race(found: World, *jobs: Job) -> list[str]:
    """The order in which jobs start that come while the fleet is full."""
    found.submit(of("blocker", "blocker"))
    found.cycle(*(Submitted(at_s=found.state.now_s, job=one) for one in jobs))
    order = []
    while any(g.binding for g in found.state.gangs.values()):
        (running,) = [g.name for g in found.state.gangs.values() if g.binding]
        order.append(running)
        found.end(running)
    return order[1:]


def test_the_queue_that_used_less_goes_first_although_it_came_later() -> None:
    found = world()
    used(found, "a", 1000.0)
    assert race(found, of("a", "a1"), of("b", "b1")) == ["b1", "a1"]


def test_without_past_use_whoever_came_first_goes_first() -> None:
    assert race(world(), of("a", "a1"), of("b", "b1")) == ["a1", "b1"]


def test_past_use_does_not_count_where_the_policy_says_so() -> None:
    found = world(half_life_s=None)
    used(found, "a", 1000.0)
    assert race(found, of("a", "a1"), of("b", "b1")) == ["a1", "b1"]


def test_past_use_is_divided_by_weight() -> None:
    found = world(replace(A, weight=3.0), B)
    used(found, "a", 2000.0)
    used(found, "b", 1000.0)
    assert race(found, of("b", "b1"), of("a", "a1")) == ["a1", "b1"]


def test_past_use_fades_by_half_in_each_half_life() -> None:
    old, recent = world(half_life_s=DAY_S), world(half_life_s=DAY_S)
    for found, ago_s in ((old, 2 * DAY_S), (recent, 0.5 * DAY_S)):
        used(found, "a", 3000.0, ago_s=ago_s)  # counts a quarter: 750; or 71 %: 2,121
        used(found, "b", 1000.0)
    assert race(old, of("b", "b1"), of("a", "a1")) == ["a1", "b1"]
    assert race(recent, of("b", "b1"), of("a", "a1")) == ["b1", "a1"]


def test_the_tree_is_compared_from_its_root() -> None:
    queues = (
        Queue(name="left"), Queue(name="right"),
        Queue(name="l1", parent="left"), Queue(name="l2", parent="left"), Queue(name="r1", parent="right"),
    )  # fmt: skip
    found = world(*queues)
    used(found, "l1", 3000.0)
    used(found, "r1", 1000.0)
    # l2 used nothing itself, but the left side used more than the right one.
    assert race(found, of("l1", "l1-1"), of("l2", "l2-1"), of("r1", "r1-1")) == ["r1-1", "l2-1", "l1-1"]


def test_users_take_turns_inside_a_queue() -> None:
    found = world()
    used(found, "a", 1000.0, user="ann")
    found_order = race(
        found, of("a", "ann-1", user="ann"), of("a", "bob-1", user="bob"), of("b", "b-1", user="ann")
    )
    assert found_order == ["b-1", "bob-1", "ann-1"]


def test_fair_share_never_overrules_priority_or_rank_or_a_gang_that_ran_before() -> None:
    found = world(A, B, Queue(name="first", rank=-1))
    used(found, "a", 9000.0)
    used(found, "first", 9000.0)
    jobs = (of("b", "b"), of("a", "urgent", priority="high"), of("first", "ranked"))
    assert race(found, *jobs) == ["urgent", "ranked", "b"]
    found.submit(of("a", "ran"))
    found.submit(of("b", "new"))
    found.end("ran", "failed")
    assert found.gang("ran").binding


def test_nodes_are_shared_out_within_one_decision() -> None:
    found = world(domains=8)
    jobs = [of("a", f"a{i}") for i in range(8)] + [of("b", f"b{i}") for i in range(8)]
    starts = [a.gang for a in found.submit(*jobs) if isinstance(a, Start)]
    assert Counter(name[0] for name in starts) == {"a": 4, "b": 4}
    assert starts == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


def test_nodes_are_shared_out_by_size_and_weight() -> None:
    found = world(replace(A, weight=2.0), B, domains=9)
    jobs = [of("a", f"a{i}") for i in range(9)] + [of("b", f"b{i}") for i in range(9)]
    assert Counter(a.gang[0] for a in found.submit(*jobs) if isinstance(a, Start)) == {"a": 6, "b": 3}
    mixed = world(domains=8)
    small = [of("a", f"a{i}", nodes=1) for i in range(32)]
    large = [of("b", f"b{i}") for i in range(8)]
    mixed.submit(*small, *large)
    held = Counter[str]()
    for gang in mixed.state.gangs.values():
        held[gang.queue] += gang.gpus
    assert held == {"a": 64, "b": 64}


def test_users_share_out_within_one_decision() -> None:
    found = world(domains=4)
    jobs = [of("a", f"{user}{i}", user=user) for user in ("ann", "bob") for i in range(4)]
    starts = [a.gang for a in found.submit(*jobs) if isinstance(a, Start)]
    assert Counter(name[:3] for name in starts) == {"ann": 2, "bob": 2}


@pytest.mark.parametrize("limited", [False, True])
def test_what_was_used_in_the_past_and_what_is_given_now_have_the_same_unit(limited: bool) -> None:
    """A queue that has held 16 GPUs for ever gets nodes again when the other one got 16 GPUs too, not 16 nodes."""
    queues = (Queue(name="a", max_gangs=100) if limited else A, B, Queue(name="other"))
    found = world(*queues, nodes=8, domains=8)
    found.submit(of("a", "always", nodes=4))
    found.tick(1000 * DAY_S)
    found.submit(*(of("other", f"fill{i}", nodes=8) for i in range(6)))
    found.submit(of("other", "rest", nodes=4))
    for i in range(2):
        found.submit(of("b", f"pre{i}", nodes=4))
    found.submit(*(of(q, f"{q}{i}", nodes=1) for q in ("a", "b") for i in range(12)))
    found.end("pre0")
    got = Counter(
        g.queue for g in found.state.gangs.values() if g.binding and g.name[-1].isdigit() and len(g.name) < 4
    )
    # Both hold 16 GPUs when the four nodes come free; b used next to nothing before, so it is ahead by 16 GPUs of use.
    assert got["b"] >= 4


amounts = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(0, 20)), min_size=1, max_size=6
)


@given(amounts)
def test_the_order_is_that_of_use_summed_by_hand(history: list[tuple[str, int, int]]) -> None:
    half_life_s = 1000.0
    found = world(*(Queue(name=q) for q in "abc"), half_life_s=half_life_s)
    spans = []
    for queue, tens_s, ago in history:
        from_s = found.state.now_s
        used(found, queue, 10.0 * tens_s, ago_s=10.0 * ago)
        spans.append((queue, from_s, from_s + 10.0 * tens_s))
    now_s = found.state.now_s
    use = {
        q: sum(
            2.0 ** ((to_s - now_s) / half_life_s) - 2.0 ** ((from_s - now_s) / half_life_s)
            for queue, from_s, to_s in spans
            if queue == q
        )
        for q in "abc"
    }
    order = race(found, *(of(q, q) for q in "abc"))
    for first, second in itertools.pairwise(order):
        assert use[first] <= use[second] + 1e-9
