"""What queues are guaranteed, what they borrow, and how they get it back."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.events import (
    Action,
    Claim,
    Decided,
    Delivered,
    GangRunning,
    Input,
    NodeFailed,
    Preempt,
    Start,
    Submitted,
)
from rackscale.fleet.queues import Charge
from rackscale.scheduler.cycle import what_if
from rackscale.scheduler.preempt import Clearer
from rackscale.scheduler.price import Taker
from rackscale.scheduler.victims import Ask
from rackscale.workload import Job, Policy, Queue
from tests.laws.facts import Facts
from tests.laws.judge import Judge
from tests.scheduler.world import World, domain, job

EAGER = Policy(min_runtime_s=0.0, preemption_retry_s=10.0)
A, B = Queue(name="a", quota_gpus=32), Queue(name="b", quota_gpus=32)
"""Each is guaranteed half of four domains of 4 nodes."""


def world(*queues: Queue, domains: int = 4, nodes: int = 4, policy: Policy = EAGER) -> World:
    return World(
        *(domain(i, nodes=nodes, spares=0) for i in range(domains)), policy=policy, queues=queues or (A, B)
    )


def of(
    queue: str, name: str, *, nodes: int = 4, segments: int = 1, priority: str = "normal", **more: object
) -> Job:
    return replace(job(name, nodes, segments, queue=queue, priority=priority, restart_s=0.0), **more)


def evicted(actions: tuple[Action, ...]) -> dict[str, str]:
    return {a.gang: a.reason.code for a in actions if isinstance(a, Preempt)}


def held(found: World, queue: str) -> int:
    return sum(g.gpus for g in found.state.gangs.values() if g.queue == queue)


def fill(found: World, queue: str, count: int, **more: object) -> None:
    found.submit(*(of(queue, f"{queue}{i}", **more) for i in range(count)))  # type: ignore[arg-type]


# -- borrowing ---------------------------------------------------------------------------------------------------------


def test_a_queue_borrows_what_nobody_else_wants() -> None:
    found = world()
    fill(found, "a", 4)
    assert held(found, "a") == 64


def test_a_queue_borrows_no_more_than_its_limit_even_if_nodes_are_idle() -> None:
    found = world(replace(A, borrow_gpus=16), B)
    fill(found, "a", 4)
    assert held(found, "a") == 48
    found.end("a0")
    assert held(found, "a") == 48


def test_a_queue_at_its_limit_is_in_nobody_s_way() -> None:
    found = world(replace(A, borrow_gpus=0), B)
    fill(found, "a", 3)
    assert not found.state.reserved
    fill(found, "b", 2)
    assert held(found, "b") == 32


def test_a_limit_in_domains_keeps_nobody_else_from_nodes_of_the_same_shape() -> None:
    found = world(Queue(name="a", quota_domains=1.0, borrow_domains=0.0), Queue(name="b"))
    found.submit(of("a", "a0"), of("a", "a1"), of("b", "b0"))
    assert [found.gang(name).status.value for name in ("a0", "a1", "b0")] == ["running", "waiting", "running"]
    assert not found.state.reserved


def test_limits_of_a_level_above_hold_for_the_queues_below_together() -> None:
    found = world(
        Queue(name="org", quota_gpus=32, borrow_gpus=0),
        Queue(name="a", parent="org"),
        Queue(name="b", parent="org"),
    )
    fill(found, "a", 1)
    fill(found, "b", 3)
    assert held(found, "a") + held(found, "b") == 32


def test_what_is_claimed_counts_towards_limits() -> None:
    found = world(replace(A, borrow_gpus=0), B, Queue(name="c"))
    fill(found, "c", 4, priority="low")
    found.submit(*(of("a", f"a{i}", priority="high") for i in range(3)), at_s=100.0)
    claims = [g.name for g in found.state.gangs.values() if g.claim]
    assert claims == ["a0", "a1"]


def test_a_gang_that_may_not_be_interrupted_does_not_borrow() -> None:
    found = world()
    fill(found, "a", 3, preemptible=False)
    assert held(found, "a") == 32
    found.submit(of("a", "may-leave"))
    assert held(found, "a") == 48
    found.submit(of("nobody", "homeless", preemptible=False))
    assert found.gang("homeless").status == "waiting"


def test_where_no_quota_is_in_force_nothing_is_borrowed() -> None:
    found = world(Queue(name="a"))
    fill(found, "a", 4, preemptible=False)
    assert held(found, "a") == 64


# -- reclaiming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", ["low", "normal", "high", "production"])
def test_a_queue_gets_its_quota_back_whatever_runs_there(priority: str) -> None:
    found = world()
    fill(found, "a", 4, priority=priority)
    actions = found.submit(of("b", "b0", priority="normal"), at_s=100.0)
    (victim,) = evicted(actions)
    expected = "preempted-for" if priority == "low" else "reclaimed-for"
    assert evicted(actions) == {victim: expected}
    found.end(victim, "left")
    assert found.gang("b0").binding


def test_a_queue_reclaims_up_to_its_quota_and_no_more() -> None:
    found = world()
    fill(found, "a", 4)
    found.state.now_s = 100.0
    taken = evicted(found.submit(*(of("b", f"b{i}") for i in range(4)), at_s=100.0))
    assert len(taken) == 2
    for name in taken:
        found.end(name, "left")
    for at_s in (200.0, 300.0, 400.0):
        assert not evicted(found.tick(at_s))
    assert (held(found, "a"), held(found, "b")) == (32, 32)


def test_nothing_is_reclaimed_where_the_policy_does_not_allow_it() -> None:
    found = world(policy=replace(EAGER, reclaim=False))
    fill(found, "a", 4)
    assert not evicted(found.submit(of("b", "b0"), at_s=100.0))
    assert evicted(found.submit(of("b", "b1", priority="high"), at_s=200.0))


def test_a_gang_that_may_not_be_interrupted_is_not_reclaimed() -> None:
    found = world(Queue(name="a", quota_gpus=64), B)
    fill(found, "a", 4, preemptible=False)
    assert not evicted(found.submit(of("b", "b0"), at_s=100.0))


def test_a_queue_keeps_its_guarantee_against_reclaiming() -> None:
    found = world(Queue(name="a", quota_gpus=48), Queue(name="b", quota_gpus=48))
    fill(found, "a", 4)
    taken = evicted(found.submit(*(of("b", f"b{i}") for i in range(3)), at_s=100.0))
    assert len(taken) == 1


def test_a_gang_across_its_queue_s_quota_is_reclaimed_only_if_nothing_else_will_do() -> None:
    """a is guaranteed 24 GPUs and holds two gangs of 16: one lies across the guarantee."""
    found = world(Queue(name="a", quota_gpus=24), Queue(name="b", quota_gpus=32), domains=2)
    fill(found, "a", 2)
    assert len(evicted(found.submit(of("b", "b0"), at_s=100.0))) == 1
    other = world(Queue(name="a", quota_gpus=24), Queue(name="b", quota_gpus=32), domains=3)
    fill(other, "a", 2)
    other.submit(of("c", "c0"))
    assert list(evicted(other.submit(of("b", "b0"), at_s=100.0))) == ["c0"]
    other.end("c0", "left")
    assert len(evicted(other.submit(of("b", "b1"), at_s=200.0))) == 1


def test_priority_does_not_take_a_queue_below_its_quota() -> None:
    found = world()
    fill(found, "a", 2, priority="low")
    fill(found, "b", 2, priority="low")
    assert not evicted(found.submit(of("c", "vip", priority="production"), at_s=100.0))
    found.submit(of("a", "a2"))
    assert not evicted(found.tick(300.0))


def test_priority_takes_gangs_of_its_own_queue_as_it_likes() -> None:
    found = world()
    fill(found, "a", 2, priority="low")
    fill(found, "b", 2)
    assert set(evicted(found.submit(of("a", "vip", priority="high"), at_s=100.0))) <= {"a0", "a1"}


@pytest.mark.parametrize("apart_s", [0.0, 5.0])
def test_gangs_that_leave_already_don_t_count_for_the_guarantee(apart_s: float) -> None:
    """a holds 48 of its 32: only one of its gangs may be taken, also in two decisions while the first victim leaves."""
    found = world(A, Queue(name="b"), domains=3)
    fill(found, "a", 3, priority="low")
    taken = dict(evicted(found.submit(of("b", "v0", priority="high"), at_s=100.0)))
    assert len(taken) == 1
    taken |= evicted(found.submit(of("b", "v1", priority="high"), at_s=100.0 + apart_s))
    assert len(taken) == 1


def test_sub_queues_reclaim_from_each_other_and_their_parent_from_its_sibling() -> None:
    queues = (
        Queue(name="left", quota_gpus=32), Queue(name="l1", parent="left", quota_gpus=16),
        Queue(name="l2", parent="left", quota_gpus=16), Queue(name="right", quota_gpus=32),
        Queue(name="r1", parent="right"),
    )  # fmt: skip
    inner = world(*queues)
    fill(inner, "l1", 2)
    fill(inner, "r1", 2)
    assert list(evicted(inner.submit(of("l2", "l2-0"), at_s=100.0)).values()) == ["reclaimed-for"]
    (victim,) = evicted(inner.plan.actions)
    assert victim.startswith("l1"), "the right side holds its own quota"
    outer = world(*queues)
    fill(outer, "r1", 4)
    taken = evicted(outer.submit(of("l1", "x0"), of("l1", "x1"), of("l1", "x2"), at_s=100.0))
    assert len(taken) == 2, "l1 may use all that the left side is guaranteed"


def test_quotas_in_domains_are_reclaimed_in_domains() -> None:
    queues = (Queue(name="a", quota_domains=2.0), Queue(name="b", quota_domains=2.0))
    found = world(*queues)
    fill(found, "a", 4, nodes=3)  # each leaves no room for another of its size: four whole domains
    assert found.state.tree.node("a").micro_domains == 4_000_000
    taken = evicted(found.submit(*(of("b", f"b{i}", nodes=3) for i in range(3)), at_s=100.0))
    assert len(taken) == 2


def test_budgets_and_minimum_run_time_hold_for_reclaiming_too() -> None:
    found = world(policy=replace(EAGER, min_runtime_s=500.0))
    fill(found, "a", 4)
    assert not evicted(found.submit(of("b", "b0"), at_s=100.0))
    assert evicted(found.tick(600.0))
    strict = world(replace(A, max_evictions_per_day=0), B)
    fill(strict, "a", 4)
    assert not evicted(strict.submit(of("b", "b0"), at_s=100.0))


# -- over time ---------------------------------------------------------------------------------------------------------


def play(seed: int, steps: int = 150) -> tuple[World, Counter[str]]:
    """Two queues want everything, all the time; gangs end now and then, and others come."""
    rng = random.Random(seed)
    found = world(policy=replace(EAGER, max_evictions_per_day=1000))
    counts = Counter[str]()
    names = 0
    for step in range(steps):
        at_s = 20.0 * step
        jobs: list[Job] = []
        while found.state.waiting.size + len(jobs) < 12:
            names += 1
            jobs.append(of(rng.choice("ab"), f"j{names}", nodes=rng.choice((1, 2, 4))))
        actions = found.submit(*jobs, at_s=at_s)
        counts["submitted"] += len(jobs)
        counts["evicted"] += len(evicted(actions))
        for gang in list(found.state.gangs.values()):
            if gang.status == "leaving":
                actions = found.end(gang.name, "left")
                counts["evicted"] += len(evicted(actions))
        running = [g.name for g in found.state.gangs.values() if g.status == "running"]
        if running and step % 5 == 0:
            counts["ended"] += 1
            counts["evicted"] += len(evicted(found.end(rng.choice(running))))
    return found, counts


@pytest.mark.parametrize("seed", range(6))
def test_two_queues_that_want_everything_don_t_evict_each_other_for_ever(seed: int) -> None:
    """Once each has what it is owed, evictions answer ends only: no more of them than a gang that ended left nodes."""
    found, counts = play(seed)
    assert counts["ended"] >= 25
    assert counts["evicted"] <= 2 * counts["ended"] + 8
    assert abs(held(found, "a") - 32) <= 16


shares = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.sampled_from(["low", "normal", "high"])),
    min_size=4, max_size=14,
)  # fmt: skip


class Judged(World):
    """Each plan is judged from the events alone."""

    def __init__(self, queues: tuple[Queue, ...]) -> None:
        super().__init__(*(domain(i, nodes=4, spares=0) for i in range(4)), policy=EAGER, queues=queues)
        self.facts = Facts(policy=EAGER, queues={queue.name: queue for queue in queues})
        self.facts.fold(Delivered(at_s=0.0, domains=tuple(self.state.domains)))

    def cycle(self, *events: Input) -> tuple[Action, ...]:
        for event in events:
            self.facts.fold(event)
        actions = super().cycle(*events)
        Judge(self.facts, self.plan).judge()
        self.facts.fold(Decided(at_s=self.state.now_s, plan=self.plan))
        return actions

    def run(self, actions: tuple[Action, ...]) -> None:
        super().run(actions)
        for action in actions:
            if isinstance(action, Start):
                at_s = self.state.now_s
                self.facts.fold(GangRunning(at_s=at_s, gang=action.gang, attempt=action.attempt))


@settings(max_examples=60, deadline=None)
@given(shares, st.integers(0, 48), st.integers(0, 48))
def test_no_plan_takes_a_queue_below_its_guarantee(
    jobs: list[tuple[str, int, str]], quota_a: int, quota_b: int
) -> None:
    """Strict but for one gang that lies across the quota, and only where its nodes are reclaimed.

    At each step gangs of any queue may clear room, and a queue may be given nodes and lose others in one plan.
    """
    found = Judged(
        (Queue(name="a", quota_gpus=quota_a), Queue(name="b", quota_gpus=quota_b), Queue(name="c"))
    )
    for n, (queue, nodes, priority) in enumerate(jobs):
        found.submit(of(queue, f"j{n}", nodes=nodes, priority=priority), at_s=20.0 * n)
        if n % 3 == 2:
            for gang in list(found.state.gangs.values()):
                if gang.status == "leaving":
                    found.end(gang.name, "left")


def test_a_queue_that_is_given_nodes_may_lose_as_many_in_the_same_plan() -> None:
    """a is guaranteed 16 and holds 16; a gang of 8 of it starts, and 8 of low priority give way to c."""
    found = Judged((Queue(name="a", quota_gpus=16), Queue(name="b"), Queue(name="c")))
    found.submit(of("b", "b0"), of("b", "b1"), of("b", "b2"))
    found.submit(of("a", "a0", nodes=2, priority="low"), of("a", "a1", nodes=2, priority="low"))
    found.state.now_s = 100.0
    found.submit(
        of("a", "a2", nodes=4, priority="production"), of("c", "c0", nodes=2, priority="high"), at_s=100.0
    )
    assert found.state.tree.node("a").gpus >= 16


def test_who_leaves_for_another_reason_in_the_same_plan_does_not_count_for_the_guarantee() -> None:
    """a holds 32 of its 16: a0 lost its node and waits again, so a1 is all that a is guaranteed."""
    found = Judged((Queue(name="a", quota_gpus=16), Queue(name="b")))
    found.submit(of("b", "b0", priority="high"), of("b", "b1", priority="high"))
    found.submit(of("a", "a0", priority="low"), of("a", "a1", priority="low"))
    fell = NodeFailed(at_s=100.0, domain=found.where("a0")[0], nodes=(0,))
    new = Submitted(at_s=100.0, job=of("b", "b2", priority="high"))
    assert not evicted(found.cycle(fell, new))
    assert found.gang("a1").status == "running"


def test_limits_count_a_victim_until_it_has_left() -> None:
    found = world(Queue(name="a", max_gangs=3), domains=2)
    fill(found, "a", 2, priority="low")
    new = [of("a", name, priority="high") for name in ("x", "y")]
    (victim,) = evicted(found.submit(*new, at_s=100.0))
    (other,) = evicted(found.end(victim, "left")) or evicted(found.tick(120.0))
    found.end(other, "left")
    assert found.gang("x").binding
    assert found.gang("y").binding


@pytest.mark.parametrize("elsewhere", [False, True])
def test_who_reclaims_stays_within_its_quota_with_what_it_gets_not_with_the_least_it_could(
    elsewhere: bool,
) -> None:
    """4 nodes cost 8 GPUs in `d` and 16 in `c`; a is owed 8. Those in `c` would be the cheaper victims."""
    queues = Queue(name="a", quota_gpus=8), Queue(name="b")
    dear = replace(domain(1, cluster="d", nodes=4, spares=0), gpus_per_node=2)
    found = World(domain(0, nodes=4, spares=0), dear, policy=EAGER, queues=queues)
    found.submit(
        of("b", "c0", cluster="c"),
        of("b", "d0", cluster="d", preemptible=elsewhere, eviction_penalty_gpu_h=100.0),
    )
    actions = found.submit(of("a", "a0"), at_s=100.0)
    assert evicted(actions) == ({"d0": "reclaimed-for"} if elsewhere else {})


def test_a_claim_s_start_is_not_counted_twice() -> None:
    found = world(replace(A, borrow_gpus=0), B)
    fill(found, "b", 4, priority="low")
    actions = found.submit(of("a", "a0"), at_s=100.0)
    assert any(isinstance(a, Claim) for a in actions)
    (victim,) = evicted(actions)
    starts = [a.gang for a in found.end(victim, "left") if isinstance(a, Start)]
    assert starts == ["a0"]
    assert found.state.tree.node("a").gpus == 16
    found.end("a0")
    assert found.state.tree.node("a").gpus == 0


def test_a_search_for_victims_that_fails_leaves_no_trace_in_what_queues_hold() -> None:
    """The first search picks one victim and finds no second; then every set is tried; then b asks, within its quota."""
    found = world(Queue(name="a", quota_gpus=32), Queue(name="b", quota_gpus=32), domains=2)
    fill(found, "a", 2, priority="low")
    with what_if(found.state, 100.0, due=True) as cycle:
        clearer = Clearer(found.state, 100.0, set(), {})
        wide = of("a", "wide", segments=3, priority="high")
        charge = Charge(48, 3_000_000)
        ask = Ask(wide, wide.choices[0], Taker(200, "a", charge))
        assert clearer.clear(ask) is None
        node = cycle.state.tree.node("a")
        assert (node.trial_gpus, node.trial_domains, node.trial_gangs) == (0, 0, 0)
