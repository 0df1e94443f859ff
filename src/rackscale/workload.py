"""What users ask for: jobs made of gangs, their shapes, their queues, and the policy that ranks them.

Everything here is an immutable value. Documents (`rackscale.spec`) become these types; the scheduler, the twin and
the executors read nothing else about a job.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

NAME_RULE = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$"
"""What jobs that really run may be called: names become folders."""
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]

JobKind = Literal["training", "batch", "service"]

Level = Literal["domain", "leaf", "spine", "building", "region"]
"""How close two NVLink domains are: in one domain, under one leaf switch, one spine, in one building, one region."""
LEVELS: tuple[Level, ...] = ("domain", "leaf", "spine", "building", "region")
"""From the closest to the widest."""


class Shape(Struct, frozen=True, kw_only=True, cache_hash=True):
    """A gang's shape: `segments` x `nodes_per_segment`; each segment lies inside one NVLink domain."""

    segments: Count = 1
    nodes_per_segment: Count = 1
    may_share_domain: bool = False
    """Whether several segments of this gang may lie in the same NVLink domain."""
    spares_per_segment: Annotated[int, Meta(ge=0)] = 0
    """Nodes beside each segment that the gang holds idle, to replace its own dead nodes."""

    @property
    def nodes(self) -> int:
        """Nodes that work."""
        return self.segments * self.nodes_per_segment

    @property
    def nodes_held_per_segment(self) -> int:
        return self.nodes_per_segment + self.spares_per_segment

    @property
    def nodes_held(self) -> int:
        return self.segments * self.nodes_held_per_segment


class Offer(Struct, frozen=True, kw_only=True, cache_hash=True):
    """A shape that a job may run in, on one system, and what it gets done there."""

    shape: Shape
    system: str | None = None
    """Only on this system (a catalog name); None: any."""
    throughput: Annotated[float, Meta(gt=0)] = 1.0
    """Work per second, relative to the job's `duration_s`: at 2.0 the job takes half as long."""


class Nearness(Struct, frozen=True, kw_only=True, cache_hash=True):
    """How a gang lies on the fabric. The default asks for nothing beyond segments inside NVLink domains."""

    within: Level | None = None
    """All segments in one unit of this level, or the gang waits."""
    prefer: Level | None = None
    """All segments in one unit of this level if that is possible now."""
    spread: Level | None = None
    """Each segment in another unit of this level, or the gang waits."""
    apart: Level | None = None
    """Replicas of a service in different units of this level, as far as that is possible (anti-affinity)."""
    apart_required: bool = False
    """A replica that can't be apart from the others waits."""


class Program(Struct, frozen=True, kw_only=True):
    """What every rank of a gang runs. `setup` and `run` are the user's own shell scripts."""

    run: str
    setup: str = ""
    """Runs once per node before the ranks start."""
    envs: dict[str, str] = {}
    workdir: str | None = None
    ranks_per_node: Count | None = None
    """None: one rank per GPU of the node."""


LONGEST_RETRY_S = 300.0
"""No pause between a program's failure and its next start is longer, seconds. Assumed: as Kubernetes caps its own."""


class Durability(Struct, frozen=True, kw_only=True):
    """What a job loses when it is stopped, as its owner states it."""

    checkpoint_interval_s: float | None = None
    """Seconds between checkpoints; None: the job never checkpoints and restarts from the beginning."""
    checkpoint_s: Seconds = 0.0
    """Seconds that a checkpoint on request takes."""
    grace_s: Seconds = 30.0
    """Seconds between the request to checkpoint and leave, and the kill."""
    restart_s: Seconds = 60.0
    """Seconds from start to productive work."""
    max_restarts: Annotated[int, Meta(ge=0)] = 3
    """Failures of the program itself (not of nodes) that are retried."""
    retry_delay_s: Seconds = 10.0
    """Seconds between the first such failure and the next start; twice as long after each further one, and at most
    `LONGEST_RETRY_S`. Assumed: what Kubernetes does with containers that crash."""

    def pause_s(self, failures: int) -> float:
        """Seconds before the next start after so many failures of the program."""
        return min(LONGEST_RETRY_S, self.retry_delay_s * 2.0 ** min(failures - 1, 64))


class Job(Struct, frozen=True, kw_only=True):
    """One piece of work. Training and batch jobs are one gang; a service is `replicas` gangs of the same shape."""

    name: str
    kind: JobKind
    shape: Shape
    replicas: Count = 1
    queue: str = "default"
    priority: str = "normal"
    preemptible: bool = True
    user: str = ""
    """Who submitted it; limits per user count by it."""
    system: str | None = None
    """Only this system will do (a catalog name); None: any."""
    cluster: str | None = None
    """Only this cluster will do; None: any."""
    offers: tuple[Offer, ...] = ()
    """Other shapes that would do, each with its throughput. `shape` on `system` has throughput 1."""
    elastic: bool = False
    """Whether a running gang may change between its shapes at a checkpoint."""
    usd_per_hour: float | None = None
    """What an hour of work at throughput 1 is worth to its owner, US dollars; None: judged by cost alone."""
    nearness: Nearness = Nearness()
    cpu_only: bool = False
    """It needs no GPUs: it runs on nodes beside gangs that do, one such gang per node."""
    booking: str | None = None
    """It runs on the nodes of this booking only, while the booking lasts."""
    duration_s: float | None = None
    """Expected productive seconds at throughput 1, when its owner or a trace knows it."""
    eviction_penalty_gpu_h: float = 0.0
    """What an eviction costs beyond lost work (a service's objective), in GPU-hours."""
    durability: Durability = Durability()
    program: Program | None = None
    """None where only the twin runs the job (a trace)."""

    @property
    def choices(self) -> tuple[Offer, ...]:
        """All that it may run in: its own shape first."""
        return (Offer(shape=self.shape, system=self.system), *self.offers)

    def gangs(self) -> tuple[str, ...]:
        """Names of the job's gangs: the job's own name, or `name/0`, `name/1` ... for a service."""
        if self.kind != "service":
            return (self.name,)
        return tuple(f"{self.name}/{i}" for i in range(self.replicas))


class Queue(Struct, frozen=True, kw_only=True):
    """Where jobs wait, and what the people behind it are owed. Queues form a tree; jobs wait in any of them.

    Quotas and limits count what gangs hold, the queue's own and those of the queues below it. A segment that leaves
    no room for another of its size counts as a whole domain, a smaller one as its share of the domain's nodes.
    """

    name: str
    parent: str | None = None
    rank: int = 0
    """Within a priority class, queues with a lower rank go first; before fair share."""
    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Share among its siblings in the decayed use of GPUs."""
    quota_gpus: Annotated[int, Meta(ge=0)] | None = None
    """GPUs that it is guaranteed; None: none, unless `quota_domains` says so."""
    quota_domains: Annotated[float, Meta(ge=0)] | None = None
    """The same, in whole NVLink domains."""
    borrow_gpus: Annotated[int, Meta(ge=0)] | None = None
    """GPUs that it may hold beyond its quota while nobody else wants them; None: no limit."""
    borrow_domains: Annotated[float, Meta(ge=0)] | None = None
    max_gangs: Annotated[int, Meta(ge=0)] | None = None
    """Gangs that may hold nodes at a time."""
    max_gangs_per_user: Annotated[int, Meta(ge=0)] | None = None
    max_gpus_per_user: Annotated[int, Meta(ge=0)] | None = None
    max_evictions_per_day: int | None = None
    """Gangs of this queue that may be preempted in one day (86,400 s); None: no limit."""

    @property
    def guaranteed(self) -> bool:
        """Whether it states a quota at all."""
        return self.quota_gpus is not None or self.quota_domains is not None


SparePolicy = Literal["none", "fixed", "adaptive"]
Defragment = Literal["off", "advise", "on"]


class Policy(Struct, frozen=True, kw_only=True):
    """How the scheduler weighs one job against another. Defaults are assumed, not measured, unless they say so."""

    priorities: dict[str, int] = field(
        default_factory=lambda: {"production": 300, "high": 200, "normal": 100, "low": 0}
    )
    decision_interval_s: float = 0.0
    """Seconds between decisions, at least; what happens meanwhile is decided about together."""
    fair_share_half_life_s: float | None = 7 * 86_400.0
    """Past use of GPUs counts half after so long; None: past use does not count. Slurm's default."""
    backfill: bool = True
    """Whether gangs may start before gangs that were ahead of them and don't fit yet."""
    reservations: Annotated[int, Meta(ge=0)] = 8
    """Waiting gangs, the first in order, that get a reservation which nobody behind them may delay."""
    preemption: bool = True
    reclaim: bool = True
    """Whether a queue gets its quota back from queues that borrow it, whatever the priority of what runs there."""
    min_runtime_s: float = 300.0
    """A gang is not preempted before it has run this long."""
    max_evictions_per_day: int = 4
    """Preemptions that one gang may suffer in 86,400 s."""
    preemption_retry_s: float = 60.0
    """Seconds between attempts to clear room for gangs that still wait, and to reserve for them."""
    candidate_domains: int = 32
    """Domains examined for victims, those with the fewest nodes to clear first."""
    defragment: Defragment = "advise"
    """Whether gangs are moved so that a whole domain opens for one that waits; advise: only `why` says so."""
    defragment_gain: float = 2.0
    """GPU-hours of waiting that a move must save per GPU-hour that it costs."""
    growth: bool = True
    """Whether elastic gangs grow into room that nobody waits for."""
    marginal_throughput: float = 0.5
    """A larger shape is worth taking if its extra GPUs bring at least this share of the best shape's work per GPU
    (per US dollar, where prices are known). For jobs that don't say what their work is worth."""
    spares: SparePolicy = "fixed"
    """none: no node is kept free; fixed: as many per domain as the fleet says; adaptive: those, but only in domains
    under gangs so large that waiting for a repair would cost more than the spare does."""
    failures_per_gpu_hour: float = 2e-5
    """What adaptive spares reckon with. Llama 3: 1.97e-5; no field data for NVL72 racks was found."""
    node_repair_s: float = 2 * 3600.0
    """Until when a failed node is expected back, where nobody says so."""
    domain_repair_s: float = 4 * 3600.0
    """The same for a fault of a whole domain."""
    lemon_failures: int | None = 3
    """A node that failed so often within `lemon_window_s` is taken out of use; None: never."""
    lemon_window_s: float = 7 * 86_400.0
    assumed_duration_s: float = 86_400.0
    """How long a job of unknown duration is taken to run when maintenance is planned for its domain."""


class Booking(Struct, frozen=True, kw_only=True):
    """An advance reservation: nodes that are kept for somebody's jobs from one time to another."""

    name: str
    shape: Shape
    start_s: float
    end_s: float
    queue: str = "default"
    priority: str = "normal"
    """What may be cleared for it at its start, if the nodes are not free by then."""
    system: str | None = None
    cluster: str | None = None
    nearness: Nearness = Nearness()


class Maintenance(Struct, frozen=True, kw_only=True):
    """Nodes that are out of use from one time to another. What would still run by then is not started there."""

    name: str
    domain: str
    nodes: tuple[int, ...] | None = None
    """None: the whole domain."""
    start_s: float
    end_s: float
