"""A mixed load for a fleet of GB200 UltraServers, scaled to its size. Every number here is assumed.

Shares are of the work that is asked for, which is `load` times what the fleet can give (its spares stay free). At 0.96
somebody nearly always waits for a whole domain and clears one. Large gangs come in segments of 16 of 18 nodes. Each
kind of work comes from several users, and waits in a queue of a tree with quotas, some of which may be exceeded.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from rackscale.events import DomainSpec
from rackscale.spec import Arrivals, Duration, Submission, Work, submissions
from rackscale.workload import Durability, Job, JobKind, Queue, Shape

CLUSTERS = 4
LOAD = 0.96
USERS = 3
"""Per kind of work."""
HOUR_S = 3600.0


class Kind(Struct, frozen=True, kw_only=True):
    """One kind of work: what it is and how much of it is asked for."""

    name: str
    share: float
    shape: Shape
    priority: str
    queue: str
    kind: JobKind = "training"
    median_h: float = 1.0
    p90_h: float = 1.0
    checkpoint_interval_s: float | None = 1800.0
    preemptible: bool = True


KINDS = (
    Kind(name="pretrain-xl", queue="foundation", share=0.15, shape=Shape(segments=64, nodes_per_segment=16),
         priority="production", median_h=120, p90_h=400, checkpoint_interval_s=900.0, preemptible=False),
    Kind(name="pretrain", queue="foundation", share=0.13, shape=Shape(segments=16, nodes_per_segment=16),
         priority="production", median_h=48, p90_h=160, checkpoint_interval_s=900.0, preemptible=False),
    Kind(name="posttrain", queue="posttraining", share=0.12, shape=Shape(segments=4, nodes_per_segment=16),
         priority="high", median_h=12, p90_h=36),
    Kind(name="research", queue="science", share=0.12, shape=Shape(nodes_per_segment=16), priority="normal",
         median_h=6, p90_h=24),
    Kind(name="ablation", queue="science", share=0.11, shape=Shape(nodes_per_segment=8), priority="normal",
         median_h=4, p90_h=12),
    Kind(name="finetune", queue="science", share=0.09, shape=Shape(nodes_per_segment=4), priority="normal",
         median_h=3, p90_h=9),
    Kind(name="chat", queue="serving", share=0.11, shape=Shape(nodes_per_segment=4), priority="production",
         kind="service", checkpoint_interval_s=None, preemptible=False),
    Kind(name="data", queue="platform", share=0.08, shape=Shape(nodes_per_segment=2), priority="low",
         kind="batch", median_h=2, p90_h=8),
    Kind(name="eval", queue="platform", share=0.09, shape=Shape(), priority="low", kind="batch", median_h=1,
         p90_h=4, checkpoint_interval_s=None),
)  # fmt: skip


QUOTAS = (
    ("production", None, 0.50, 0.10),
    ("foundation", "production", 0.36, None),
    ("serving", "production", 0.14, 0.0),
    ("research", None, 0.42, None),
    ("posttraining", "research", 0.12, 0.12),
    ("science", "research", 0.22, None),
    ("platform", "research", 0.08, 0.25),
)
"""(queue, parent, quota, what it may borrow; None: no limit), as shares of the GPUs that the fleet can give.

`foundation` has its quota in whole domains.
"""


def fleet(gpus: int) -> tuple[DomainSpec, ...]:
    """UltraServers with at least this many GPUs in `CLUSTERS` clusters, one spare node each."""
    count = -(-gpus // 72)
    per_cluster = -(-count // CLUSTERS)
    return tuple(
        DomainSpec(
            name=f"c{d // per_cluster}/us-{d % per_cluster:03}", system="u-p6e-gb200x72", nodes=18, gpus_per_node=4,
            cluster=f"c{d // per_cluster}", spares=1, usd_per_gpu_hour=10.582,
        )
        for d in range(count)
    )  # fmt: skip


def queues(domains: int) -> tuple[Queue, ...]:
    """The tree of queues for a fleet of so many domains."""
    return tuple(
        _queue(name, parent, quota, borrow, domains=domains) for name, parent, quota, borrow in QUOTAS
    )


def _queue(name: str, parent: str | None, quota: float, borrow: float | None, *, domains: int) -> Queue:
    if name == "foundation":
        return Queue(name=name, parent=parent, quota_domains=round(quota * domains))
    gpus = domains * 17 * 4
    return Queue(
        name=name, parent=parent, quota_gpus=round(quota * gpus),
        borrow_gpus=None if borrow is None else round(borrow * gpus),
    )  # fmt: skip


def load(domains: int, *, seed: int, end_s: float, share: float = LOAD) -> Iterator[Submission]:
    """What arrives: at the start as much as runs in the steady state, then Poisson arrivals that replace it.

    `share`: of what the fleet can give.
    """
    nodes = share * domains * 17
    return submissions([w for kind in KINDS for w in _work(kind, domains, nodes)], seed=seed, end_s=end_s)


def _work(kind: Kind, domains: int, nodes: float) -> Iterator[Work]:
    shape = kind.shape
    while shape.segments > max(1, domains // (4 * CLUSTERS)):
        shape = Shape(segments=shape.segments // 2, nodes_per_segment=shape.nodes_per_segment)
    running = max(1, round(kind.share * nodes / shape.nodes))
    duration = Duration(median_s=kind.median_h * HOUR_S, p90_s=kind.p90_h * HOUR_S)
    durability = Durability(
        checkpoint_interval_s=kind.checkpoint_interval_s, checkpoint_s=60.0, grace_s=120.0, restart_s=180.0
    )
    per_hour = running / (duration.mean_s / HOUR_S)
    for user in range(USERS):
        share = len(range(user, running, USERS))
        job = Job(
            name=f"{kind.name}-{user}", kind=kind.kind, shape=shape, queue=kind.queue, priority=kind.priority,
            user=f"{kind.name}-{user}", preemptible=kind.preemptible, durability=durability,
            duration_s=duration.mean_s,
        )  # fmt: skip
        if not share:
            continue
        if kind.kind == "service":
            yield Work(job=replace(job, replicas=share, duration_s=None))
            continue
        yield Work(job=replace(job, name=f"{job.name}-old"), count=share, duration=duration)
        yield Work(job=job, arrivals=Arrivals(per_hour=per_hour * share / running), duration=duration)
