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


class Shape(Struct, frozen=True, kw_only=True):
    """A gang's shape: `segments` x `nodes_per_segment`; each segment lies inside one NVLink domain."""

    segments: Count = 1
    nodes_per_segment: Count = 1
    may_share_domain: bool = False
    """Whether several segments of this gang may lie in the same NVLink domain."""

    @property
    def nodes(self) -> int:
        return self.segments * self.nodes_per_segment


class Program(Struct, frozen=True, kw_only=True):
    """What every rank of a gang runs. `setup` and `run` are the user's own shell scripts."""

    run: str
    setup: str = ""
    """Runs once per node before the ranks start."""
    envs: dict[str, str] = {}
    workdir: str | None = None
    ranks_per_node: Count | None = None
    """None: one rank per GPU of the node."""


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


class Job(Struct, frozen=True, kw_only=True):
    """One piece of work. Training and batch jobs are one gang; a service is `replicas` gangs of the same shape."""

    name: str
    kind: JobKind
    shape: Shape
    replicas: Count = 1
    queue: str = "default"
    priority: str = "normal"
    preemptible: bool = True
    system: str | None = None
    """Only this system will do (a catalog name); None: any."""
    cluster: str | None = None
    """Only this cluster will do; None: any."""
    duration_s: float | None = None
    """Expected productive seconds, when its owner or a trace knows it."""
    eviction_penalty_gpu_h: float = 0.0
    """What an eviction costs beyond lost work (a service's objective), in GPU-hours."""
    durability: Durability = Durability()
    program: Program | None = None
    """None where only the twin runs the job (a trace)."""

    def gangs(self) -> tuple[str, ...]:
        """Names of the job's gangs: the job's own name, or `name/0`, `name/1` ... for a service."""
        if self.kind != "service":
            return (self.name,)
        return tuple(f"{self.name}/{i}" for i in range(self.replicas))


class Queue(Struct, frozen=True, kw_only=True):
    """Where jobs wait. Within a priority class, queues with a lower `rank` go first."""

    name: str
    rank: int = 0
    max_evictions_per_day: int | None = None
    """Gangs of this queue that may be preempted in one day (86,400 s); None: no limit."""


class Policy(Struct, frozen=True, kw_only=True):
    """How the scheduler weighs one job against another. Defaults are assumed, not measured."""

    priorities: dict[str, int] = field(
        default_factory=lambda: {"production": 300, "high": 200, "normal": 100, "low": 0}
    )
    preemption: bool = True
    min_runtime_s: float = 300.0
    """A gang is not preempted before it has run this long."""
    max_evictions_per_day: int = 4
    """Preemptions that one gang may suffer in 86,400 s."""
    preemption_retry_s: float = 60.0
    """Seconds between attempts to clear room for gangs that still wait."""
    candidate_domains: int = 32
    """Domains examined for victims, those with the fewest nodes to clear first."""
