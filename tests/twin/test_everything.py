"""A day in the twin with every feature on: each plan is judged by the laws."""

from __future__ import annotations

import random

from msgspec.structs import replace

from rackscale.control import Controller
from rackscale.events import (
    Announced,
    Booked,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    Drained,
    Event,
    Extended,
    Input,
    Planned,
    Undrained,
)
from rackscale.fleet.state import FleetState
from rackscale.spec import Duration, Failures, Submission
from rackscale.twin import TwinExecutor
from rackscale.workload import (
    Booking,
    Durability,
    Job,
    JobKind,
    Maintenance,
    Nearness,
    Offer,
    Policy,
    Queue,
    Shape,
)
from tests.laws.facts import Facts
from tests.laws.judge import Judge

DAY_S = 86_400.0
QUEUES = (
    Queue(name="org", quota_gpus=400),
    Queue(name="a", parent="org", quota_gpus=200, weight=2.0, borrow_gpus=200),
    Queue(name="b", parent="org", quota_domains=2.0, max_gangs_per_user=6),
    Queue(name="c", max_evictions_per_day=20),
)
POLICY = Policy(
    defragment="on", spares="adaptive", failures_per_gpu_hour=2e-3, min_runtime_s=120.0, lemon_failures=2,
    node_repair_s=1800.0, fair_share_half_life_s=7200.0, preemption_retry_s=900.0,
)  # fmt: skip


def spec(i: int) -> DomainSpec:
    return DomainSpec(
        name=f"c/us-{i:03}", system="s", nodes=9, gpus_per_node=4, cluster="c", region="r", building="b",
        spine=f"s{i // 4}", leaf=f"l{i // 2}", spares=1, expires_s=0.8 * DAY_S if i == 3 else None,
    )  # fmt: skip


def jobs(seed: int, count: int) -> tuple[Submission, ...]:
    rng = random.Random(seed)
    found = []
    at_s = 0.0
    for n in range(count):
        at_s += rng.expovariate(count / (0.8 * DAY_S))
        nodes, segments = rng.choice(((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (4, 3)))
        kind: JobKind = rng.choice(("training", "training", "training", "batch", "service"))
        lasts_s = rng.choice((600.0, 3000.0, 12_000.0))
        job = Job(
            name=f"j{n:03}", kind=kind, shape=Shape(segments=segments, nodes_per_segment=nodes),
            replicas=2 if kind == "service" else 1, queue=rng.choice("aabbc"), user=rng.choice(("ann", "bob")),
            priority=rng.choice(("low", "normal", "normal", "high", "production")),
            preemptible=rng.random() < 0.9, duration_s=None if kind == "service" else lasts_s,
            nearness=rng.choice((
                Nearness(), Nearness(), Nearness(within="spine"), Nearness(spread="leaf"), Nearness(prefer="leaf"),
                Nearness(apart="leaf", apart_required=True),
            )),
            cpu_only=rng.random() < 0.1, booking="trip" if rng.random() < 0.05 else None,
            durability=Durability(
                checkpoint_interval_s=900.0, checkpoint_s=rng.choice((0.0, 20.0)), grace_s=60.0, restart_s=30.0
            ),
        )  # fmt: skip
        if rng.random() < 0.3 and segments == 1 and not job.cpu_only and kind == "training":
            larger = Offer(shape=replace(job.shape, nodes_per_segment=min(8, nodes * 2)), throughput=1.8)
            job = replace(job, elastic=True, offers=(larger,))
        if rng.random() < 0.2 and not job.offers and nodes < 8:
            job = replace(job, shape=replace(job.shape, spares_per_segment=1))
        true_s = None if job.duration_s is None else job.duration_s * rng.uniform(0.3, 1.2)
        if kind == "service":
            true_s = DAY_S
        found.append(Submission(at_s=at_s, job=job, duration_s=true_s))
    return tuple(found)


def inputs() -> tuple[Input, ...]:
    late = tuple(spec(i) for i in (8, 9))
    booking = Booking(
        name="trip",
        shape=Shape(segments=2, nodes_per_segment=8),
        start_s=30_000.0,
        end_s=40_000.0,
        priority="high",
    )
    whole = Maintenance(name="tray", domain="c/us-001", start_s=20_000.0, end_s=26_000.0)
    some = Maintenance(name="nodes", domain="c/us-005", nodes=(0, 1, 2), start_s=22_000.0, end_s=50_000.0)
    return (
        Configured(at_s=0.0, policy=POLICY, queues=QUEUES),
        Delivered(at_s=0.0, domains=tuple(spec(i) for i in range(8))),
        Announced(at_s=0.0, ready_s=35_000.0, domains=late),
        Booked(at_s=10.0, booking=booking),
        Planned(at_s=20.0, maintenance=whole),
        Planned(at_s=20.0, maintenance=some),
        Drained(at_s=15_000.0, domain="c/us-006", deadline_s=18_000.0),
        Undrained(at_s=24_000.0, domain="c/us-006"),
        Announced(at_s=34_000.0, ready_s=45_000.0, domains=late),
        Delivered(at_s=46_000.0, domains=late),
        Extended(at_s=60_000.0, domains=("c/us-002",), expires_s=75_000.0),
    )


def day(seed: int, count: int = 45, until_s: float = DAY_S) -> tuple[list[Event], FleetState]:
    failures = Failures(
        per_gpu_hour=2e-3, domain_share=0.1, node_repair=Duration(median_s=1200.0, p90_s=3000.0),
        domain_repair=Duration(median_s=2400.0, p90_s=6000.0),
    )  # fmt: skip
    twin = TwinExecutor(seed=seed, submissions=jobs(seed, count), inputs=inputs(), failures=failures)
    facts, events = Facts(), list[Event]()

    def hear(event: Event) -> None:
        if isinstance(event, Decided):
            Judge(facts, event.plan).judge()
        facts.fold(event)
        events.append(event)

    controller = Controller(FleetState(), twin, listeners=(hear,))
    while twin.now_s < until_s and not twin.done:
        controller.step(until_s)
    return events, controller.state


def test_every_plan_of_a_day_with_everything_on_is_lawful() -> None:
    events, state = day(1)
    codes = {a.reason.code for e in events if isinstance(e, Decided) for a in e.plan.actions}
    expected = {"fits", "preempted-for", "reserved", "cleared-domain", "claim-complete", "drain"}
    expected |= {"maintenance", "booked", "booking-over", "expired"}
    assert expected <= codes, expected - codes
    assert FleetState.restore(state.snapshot()).snapshot() == state.snapshot()


def test_a_crowded_half_day_is_lawful_too() -> None:
    """Three times the jobs: queues are given nodes and lose others in one plan, and gangs meet the ends of windows."""
    events, _ = day(4, count=150, until_s=45_000.0)
    assert sum(isinstance(event, Decided) for event in events) > 200
