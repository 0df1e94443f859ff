"""What may happen to a fleet, as Hypothesis strategies: small fleets, few queues, short and long jobs."""

from __future__ import annotations

from hypothesis import strategies as st

from rackscale.events import DomainSpec
from rackscale.workload import (
    Booking,
    Durability,
    Job,
    JobKind,
    Level,
    Maintenance,
    Nearness,
    Offer,
    Policy,
    Queue,
    Shape,
)

PRIORITIES = {"production": 300, "high": 200, "normal": 100, "low": 0}
USERS = ("ann", "bob")
T0_S = 1_000_000.0

small = st.integers(0, 1000)
"""Chooses one of whatever there is."""
mostly = st.sampled_from([True, True, True, False])
rarely = st.sampled_from([False, False, False, True])
times = st.sampled_from([0.0, 1.0, 59.0, 61.0, 400.0, 400.0, 4000.0, 90_000.0])
lasting = st.sampled_from([None, 60.0, 500.0, 500.0, 5000.0, 100_000.0])


@st.composite
def fleets(draw: st.DrawFn, first: int = 0) -> tuple[DomainSpec, ...]:
    """One or two clusters of up to four domains on one or two leaves."""
    found = []
    for c in range(draw(st.integers(1, 2))):
        nodes, spares = draw(st.sampled_from([2, 4, 4, 5, 6])), draw(st.sampled_from([0, 0, 1]))
        for i in range(draw(st.integers(1, 4))):
            leaf = i // 2
            found.append(
                DomainSpec(
                    name=f"c{c}/us-{first + i:03}", system=f"s{c}", nodes=nodes, gpus_per_node=4, cluster=f"c{c}",
                    spares=min(spares, nodes - 1), region="r", building="b", spine=f"sp{leaf // 2}", leaf=f"l{leaf}",
                )
            )  # fmt: skip
    return tuple(found)


policies = st.builds(
    Policy,
    priorities=st.just(PRIORITIES),
    decision_interval_s=st.sampled_from([0.0, 0.0, 0.0, 30.0]),
    fair_share_half_life_s=st.sampled_from([None, None, 3600.0, 604_800.0]),
    backfill=mostly,
    reservations=st.sampled_from([0, 1, 2, 8]),
    preemption=mostly,
    reclaim=mostly,
    min_runtime_s=st.sampled_from([0.0, 60.0, 300.0]),
    max_evictions_per_day=st.sampled_from([4, 2, 1, 0]),
    preemption_retry_s=st.sampled_from([10.0, 60.0]),
    defragment=st.sampled_from(["off", "advise", "on", "on"]),
    defragment_gain=st.sampled_from([0.1, 2.0]),
    growth=st.booleans(),
    spares=st.sampled_from(["fixed", "fixed", "none", "adaptive"]),
    lemon_failures=st.sampled_from([None, 2, 3]),
)
limits = st.sampled_from([None, None, None, 0, 1, 2])


@st.composite
def queues(draw: st.DrawFn) -> tuple[Queue, ...]:
    """A tree of four queues; not all are configured."""
    found = []
    for name, parent in (("top", None), ("research", "top"), ("batch", "top"), ("default", None)):
        plain = {
            "name": name, "rank": draw(st.integers(0, 2)),
            "max_evictions_per_day": draw(st.sampled_from([None, None, None, 2, 1, 0])),
        }  # fmt: skip
        full = {
            "parent": parent, "weight": draw(st.sampled_from([1.0, 1.0, 3.0])),
            "quota_gpus": draw(st.sampled_from([None, None, 0, 4, 8, 24])),
            "quota_domains": draw(st.sampled_from([None, None, None, 0.5, 1.0, 2.0])),
            "borrow_gpus": draw(st.sampled_from([None, None, None, 0, 8])),
            "borrow_domains": draw(st.sampled_from([None, None, None, None, 0.0, 1.0])),
            "max_gangs": draw(st.sampled_from([None, None, None, 2, 4])),
            "max_gangs_per_user": draw(limits),
            "max_gpus_per_user": draw(st.sampled_from([None, None, None, 8, 16])),
        }  # fmt: skip
        if draw(mostly):
            found.append(Queue(**plain, **full))  # type: ignore[arg-type]
    return tuple(found)


def shapes(*, own_spares: bool = True) -> st.SearchStrategy[Shape]:
    return st.builds(
        Shape,
        segments=st.sampled_from([1, 1, 1, 2, 3]),
        nodes_per_segment=st.sampled_from([1, 2, 2, 3, 4]),
        may_share_domain=rarely,
        spares_per_segment=st.sampled_from([0, 0, 0, 1] if own_spares else [0]),
    )


@st.composite
def nearnesses(draw: st.DrawFn, *, service: bool) -> Nearness:
    levels: list[Level | None] = [None, None, None, None, "domain", "leaf", "spine"]
    within, prefer = draw(st.sampled_from(levels)), draw(st.sampled_from(levels))
    spread = draw(st.sampled_from(levels)) if within is None else None
    apart = draw(st.sampled_from(levels)) if service else None
    return Nearness(
        within=within, prefer=prefer, spread=spread, apart=apart, apart_required=draw(st.booleans())
    )


@st.composite
def jobs(draw: st.DrawFn, name: str, booking: str | None = None) -> Job:
    kind: JobKind = draw(st.sampled_from(["training", "training", "batch", "service"]))
    shape = draw(shapes())
    cpu_only = booking is None and draw(st.integers(0, 9)) == 0
    offers: tuple[Offer, ...] = ()
    if not cpu_only and draw(rarely):
        thin = st.builds(Offer, shape=shapes(), throughput=st.sampled_from([0.5, 0.8, 2.0]))
        offers = tuple(draw(st.lists(thin, min_size=1, max_size=2)))
    return Job(
        name=name,
        kind=kind,
        shape=Shape(segments=shape.segments, may_share_domain=True) if cpu_only else shape,
        replicas=draw(st.integers(1, 3)) if kind == "service" else 1,
        queue=draw(st.sampled_from(("default", "research", "batch"))),
        priority=draw(st.sampled_from(list(PRIORITIES))),
        preemptible=draw(mostly),
        user=draw(st.sampled_from(USERS)),
        cluster=draw(st.sampled_from([None, None, None, "c0", "c1"])),
        offers=offers,
        elastic=bool(offers) and draw(mostly),
        nearness=draw(nearnesses(service=kind == "service")) if draw(rarely) else Nearness(),
        cpu_only=cpu_only,
        booking=booking,
        duration_s=draw(lasting) if kind != "service" else None,
        eviction_penalty_gpu_h=draw(st.sampled_from([0.0, 0.0, 1.0])),
        durability=Durability(
            restart_s=draw(st.sampled_from([0.0, 60.0, 100.0])),
            max_restarts=draw(st.integers(0, 2)),
            retry_delay_s=draw(st.sampled_from([0.0, 10.0, 200.0])),
            grace_s=draw(st.sampled_from([0.0, 30.0])),
        ),
    )


@st.composite
def bookings(draw: st.DrawFn, name: str, now_s: float) -> Booking:
    start_s = now_s + draw(st.sampled_from([0.0, 30.0, 1000.0, 20_000.0]))
    return Booking(
        name=name, shape=draw(shapes(own_spares=False)), start_s=start_s,
        end_s=start_s + draw(st.sampled_from([100.0, 5000.0])), queue=draw(st.sampled_from(("default", "research"))),
        priority=draw(st.sampled_from(list(PRIORITIES))), cluster=draw(st.sampled_from([None, "c0"])),
    )  # fmt: skip


@st.composite
def maintenances(draw: st.DrawFn, name: str, spec: DomainSpec, now_s: float) -> Maintenance:
    start_s = now_s + draw(st.sampled_from([0.0, 30.0, 1000.0, 20_000.0]))
    nodes = draw(st.sampled_from([None, (0,), (spec.nodes - 1, 0)])) if spec.nodes > 1 else None
    return Maintenance(
        name=name, domain=spec.name, nodes=nodes, start_s=start_s, end_s=start_s + draw(st.sampled_from([60.0, 9000.0]))
    )  # fmt: skip
