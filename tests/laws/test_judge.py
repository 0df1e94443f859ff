"""Every law can be broken: plans made by hand, each against one of them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from rackscale import events as ev
from rackscale.workload import Booking, Durability, Job, Maintenance, Nearness, Offer, Policy, Queue, Shape
from tests.laws.facts import Facts
from tests.laws.judge import Judge

NOW_S = 10_000.0
FITS = ev.Reason(code="fits")
FOR_NEW = ev.Reason(code="preempted-for", for_gang="new")


def job(name: str, nodes: int = 2, segments: int = 1, **more: Any) -> Job:
    more.setdefault("duration_s", 1000.0)
    shape = Shape(segments=segments, nodes_per_segment=nodes)
    return Job(name=name, kind="training", shape=shape, durability=Durability(restart_s=0.0), **more)


def on(*nodes: int, domain: str = "c/0") -> ev.Binding:
    return (ev.Segment(domain=domain, nodes=nodes),)


def start(name: str, *binding: ev.Segment, choice: int = 0, code: str = "fits") -> ev.Start:
    return ev.Start(gang=name, attempt=1, binding=binding, reason=ev.Reason(code=code), choice=choice)


def fleet(*jobs: Job, policy: Policy | None = None, queues: tuple[Queue, ...] = ()) -> Facts:
    """Three domains of four nodes, two of them on one leaf; `new` waits, others that start run since long ago."""
    facts = Facts()
    policy = policy or Policy(min_runtime_s=100.0, fair_share_half_life_s=None)
    facts.fold(ev.Configured(at_s=0.0, policy=policy, queues=queues))
    specs = tuple(
        ev.DomainSpec(name=f"c/{d}", system="s", nodes=4, gpus_per_node=4, cluster="c", leaf=f"l{d // 2}")
        for d in range(3)
    )
    facts.fold(ev.Delivered(at_s=0.0, domains=specs))
    for each in jobs:
        facts.fold(ev.Submitted(at_s=0.0, job=each))
    return facts


def running(facts: Facts, *starts: ev.Start, at_s: float = 0.0) -> Facts:
    decide(facts, at_s, *starts)
    for each in starts:
        facts.fold(ev.GangRunning(at_s=at_s, gang=each.gang, attempt=1))
    return facts


def decide(facts: Facts, at_s: float, *actions: ev.Action) -> None:
    facts.fold(ev.Decided(at_s=at_s, plan=ev.Plan(at_s=at_s, actions=actions)))


def judge(facts: Facts, *actions: ev.Action) -> None:
    facts.fold(ev.Ticked(at_s=NOW_S))
    Judge(facts, ev.Plan(at_s=NOW_S, actions=actions)).judge()


def breaks(law: str, facts: Facts, *actions: ev.Action) -> None:
    with pytest.raises(AssertionError, match=law):
        judge(facts, *actions)


def test_nodes_are_given_once_and_only_if_they_are_up() -> None:
    facts = running(fleet(job("old"), job("new")), start("old", *on(0, 1)))
    judge(facts, start("new", *on(2, 3)))
    breaks("old is on it", facts, start("new", *on(1, 2)))
    facts.fold(ev.NodeFailed(at_s=0.0, domain="c/0", nodes=(2,)))
    breaks("out of use", facts, start("new", *on(2, 3)))


def test_a_gang_is_whole_and_a_segment_in_one_domain() -> None:
    breaks("gang is not whole", fleet(job("new", 1, 2)), start("new", *on(0)))
    breaks("segment is not whole", fleet(job("new", 3)), start("new", *on(0, 1)))
    breaks("segments share", fleet(job("new", 1, 2)), start("new", *on(0), *on(1)))
    breaks("takes a node twice", fleet(job("new", 1, 2)), start("new", *on(0), *on(0)))
    breaks("wrong system", fleet(job("new", system="t")), start("new", *on(0, 1)))
    breaks("wrong cluster", fleet(job("new", cluster="d")), start("new", *on(0, 1)))


def test_nearness() -> None:
    within, spread = Nearness(within="leaf"), Nearness(spread="leaf")
    far, near = (*on(0), *on(0, domain="c/2")), (*on(0), *on(0, domain="c/1"))
    judge(fleet(job("new", 1, 2, nearness=within)), start("new", *near))
    breaks("not within", fleet(job("new", 1, 2, nearness=within)), start("new", *far))
    breaks("not spread", fleet(job("new", 1, 2, nearness=spread)), start("new", *near))
    service = Job(
        name="s",
        kind="service",
        shape=Shape(),
        replicas=2,
        nearness=Nearness(apart="leaf", apart_required=True),
    )
    breaks("not apart", fleet(service), start("s/0", *on(0)), start("s/1", *on(1)))


def test_spares_are_kept() -> None:
    facts = fleet(job("new", 4))
    facts.specs["c/0"] = replace(facts.specs["c/0"], spares=1)
    breaks("without its spares", facts, start("new", *on(0, 1, 2, 3)))


def test_limits_of_queues_and_users() -> None:
    def under(more: Job | None = None, **limits: Any) -> Facts:
        queues = (Queue(name="q", **limits),)
        return running(
            fleet(job("old", queue="q"), more or job("new", queue="q"), queues=queues),
            start("old", *on(0, 1)),
        )

    new = start("new", *on(2, 3))
    judge(under(quota_gpus=8, borrow_gpus=8), new)
    breaks("too many GPUs", under(quota_gpus=8, borrow_gpus=7), new)
    breaks("too many domains", under(quota_domains=0.5, borrow_domains=0.25), new)
    breaks("too many gangs", under(max_gangs=1), new)
    breaks("user's gangs", under(max_gangs_per_user=1), new)
    breaks("user's GPUs", under(max_gpus_per_user=15), new)
    breaks("borrows for good", under(job("new", queue="q", preemptible=False), quota_gpus=8), new)
    below = (Queue(name="top", borrow_gpus=8), Queue(name="q", parent="top"))
    facts = running(
        fleet(job("old", queue="q"), job("new", queue="q"), queues=below), start("old", *on(0, 1))
    )
    breaks("top: borrows", facts, new)


def eviction(reason: ev.Reason = FOR_NEW, on_nodes: ev.Binding = on(0, 1)) -> tuple[ev.Action, ...]:
    claim = ev.Claim(gang="new", binding=on_nodes, reason=ev.Reason(code="cleared-domain"))
    return claim, ev.Preempt(gang="old", attempt=1, grace_s=0.0, reason=reason)


def victim(old: Job | None = None, new: Job | None = None, *, at_s: float = 0.0, **more: Any) -> Facts:
    jobs = (old or job("old", priority="low"), new or job("new", queue="b", priority="high"))
    return running(fleet(*jobs, **more), start("old", *on(0, 1)), at_s=at_s)


def test_victims_are_guarded() -> None:
    judge(victim(), *eviction())
    breaks("minimum run time", victim(at_s=NOW_S - 99.0), *eviction())
    slow = replace(job("old", priority="low"), durability=Durability(restart_s=500.0))
    breaks("restart time", victim(slow, at_s=NOW_S - 400.0), *eviction())
    breaks("no higher priority", victim(job("old", priority="high")), *eviction())
    breaks("own queue", victim(job("old", queue="b", priority="high")), *eviction())
    breaks("not preemptible", victim(job("old", priority="low", preemptible=False)), *eviction())
    breaks("gang's budget", victim(policy=Policy(max_evictions_per_day=0)), *eviction())
    breaks("queue's budget", victim(queues=(Queue(name="default", max_evictions_per_day=0),)), *eviction())
    breaks("preemption is off", victim(policy=Policy(preemption=False)), *eviction())
    breaks("claims nothing", victim(), eviction()[1])
    breaks("for nothing", victim(), *eviction(on_nodes=on(0, 1, domain="c/1")))


def test_no_queue_falls_below_its_quota() -> None:
    breaks("below its quota", victim(queues=(Queue(name="default", quota_gpus=8),)), *eviction())
    judge(victim(queues=(Queue(name="default", quota_gpus=0),)), *eviction())
    parents = (Queue(name="top", quota_gpus=8), Queue(name="default", parent="top"))
    breaks("top is left below", victim(queues=parents), *eviction())


def test_reclaim_is_for_what_a_queue_is_owed() -> None:
    reason = ev.Reason(code="reclaimed-for", for_gang="new")
    old, new = job("old", priority="high"), job("new", queue="b")
    owed = (Queue(name="default", quota_gpus=4), Queue(name="b", quota_gpus=8))
    judge(victim(old, new, queues=owed), *eviction(reason))
    breaks(
        "owed nothing", victim(old, new, queues=(owed[0], Queue(name="b", quota_gpus=4))), *eviction(reason)
    )
    holds_no_more = (Queue(name="default", quota_gpus=8), owed[1])
    breaks("below its quota", victim(old, new, queues=holds_no_more), *eviction(reason))


def test_nothing_is_started_where_it_outlives_what_is_planned() -> None:
    def planned(start_s: float, **more: Any) -> Facts:
        facts = fleet(job("new", **more))
        window = Maintenance(name="m", domain="c/0", nodes=(0,), start_s=start_s, end_s=start_s + 10.0)
        facts.fold(ev.Planned(at_s=0.0, maintenance=window))
        return facts

    new = start("new", *on(0, 1))
    judge(planned(NOW_S + 1000.0), new)
    breaks("outlive maintenance", planned(NOW_S + 999.0), new)
    breaks("outlive maintenance", planned(NOW_S + 86_399.0, duration_s=None), new)
    facts = fleet(job("new", duration_s=None))
    facts.fold(ev.Extended(at_s=0.0, domains=("c/0",), expires_s=1e9))
    breaks("outlive expired", facts, new)


def test_claims_resolve() -> None:
    facts = victim()
    decide(facts, 5000.0, *eviction())
    judge(facts)
    facts.fold(ev.GangEnded(at_s=6000.0, gang="old", attempt=1, outcome="left"))
    judge(facts, ev.Start(gang="new", attempt=1, binding=on(0, 1), reason=ev.Reason(code="claim-complete")))
    breaks("claim stays", facts)


def test_backfill_delays_no_reservation() -> None:
    def promised(duration_s: float, **more: Any) -> Facts:
        old = job("old", 3, duration_s=NOW_S + 500.0)
        facts = fleet(old, job("big", 4), job("new", 1, duration_s=duration_s, **more))
        running(facts, start("old", *on(0, 1, 2)))
        promise = ev.Reserve(
            gang="big", start_s=NOW_S + 500.0, domains=("c/0",), reason=ev.Reason(code="reserved")
        )
        decide(facts, 9000.0, promise)
        return facts

    new = start("new", *on(3))
    judge(promised(500.0), new)
    breaks("is delayed by", promised(501.0), new)
    judge(promised(501.0, priority="high"), new)
    later = ev.Reserve(gang="big", start_s=NOW_S + 501.0, domains=("c/0",), reason=ev.Reason(code="reserved"))
    breaks("is delayed by", promised(501.0), new, later)
    elsewhere = replace(later, start_s=NOW_S + 500.0, domains=("c/1",))
    judge(promised(501.0), new, elsewhere)


def test_bookings_keep_others_out_and_their_own_in() -> None:
    booking = Booking(name="b", shape=Shape(nodes_per_segment=2), start_s=0.0, end_s=1e6)
    facts = fleet(job("new"), job("guest", booking="b"))
    facts.fold(ev.Booked(at_s=0.0, booking=booking))
    decide(facts, 0.0, ev.Hold(booking="b", binding=on(0, 1), reason=ev.Reason(code="booked")))
    judge(facts, start("guest", *on(0, 1)))
    breaks("is booked", facts, start("new", *on(1, 2)))
    breaks("outside its booking", facts, start("guest", *on(1, 2)))
    breaks("before its time", facts, ev.Free(booking="b", reason=ev.Reason(code="booking-over")))


def test_moves_shrink_grow_and_open_domains_lawfully() -> None:
    small = Offer(shape=Shape(), throughput=0.5)
    old = job("old", priority="low", elastic=True, offers=(small,))
    shrunk = ev.Reason(code="shrunk-for", for_gang="new")
    move = ev.Move(gang="old", attempt=1, grace_s=0.0, binding=on(0), reason=shrunk, choice=1)
    claim = ev.Claim(gang="new", binding=on(1, 2), reason=ev.Reason(code="cleared-domain"))
    judge(victim(old), claim, move)
    breaks("not elastic", victim(replace(old, elastic=False)), claim, move)
    away = ev.Reason(code="moved-for", for_gang="new", lost_gpu_s=10.0, gain_gpu_s=15.0)
    moved = replace(move, binding=on(0, 1, domain="c/1"), choice=0, reason=away)
    breaks("defragmentation is off", victim(old), moved)
    on_policy = Policy(defragment="on")
    breaks("not worth it", victim(old, policy=on_policy), moved)
    judge(victim(old, policy=on_policy), replace(moved, reason=replace(away, gain_gpu_s=20.0)))
    breaks("two orders", victim(), *eviction(), eviction()[1])


def test_only_what_could_never_run_is_refused() -> None:
    refuse = ev.Refuse(job="new", reason=ev.Reason(code="never-fits"))
    judge(fleet(job("new", 5)), refuse)
    breaks("could run", fleet(job("new", 4)), refuse)


def test_gangs_without_gpus_take_no_room_from_others() -> None:
    facts = running(fleet(job("old", 4, cpu_only=True), job("new", 4)), start("old", *on(0, 1, 2, 3)))
    judge(facts, start("new", *on(0, 1, 2, 3)))
    more = running(fleet(job("old", cpu_only=True), job("new", cpu_only=True)), start("old", *on(0, 1)))
    breaks("old is on it", more, start("new", *on(1, 2)))
