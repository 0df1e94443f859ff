"""The documents that describe a site: Fleet, Queue, Policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from rackscale import catalog
from rackscale.events import DomainSpec
from rackscale.spec.fields import (
    Count,
    Fault,
    Name,
    PositiveSeconds,
    Rank,
    Seconds,
    Span,
    Strict,
    System,
    Text,
    Usd,
    within,
)
from rackscale.spec.rehearsal import Failures
from rackscale.workload import Policy, Queue

LOCAL = "local"
"""The one system whose size is the user's to choose: its nodes are processes."""

LARGEST_FLEET = 50_000
"""NVLink domains: 3.6 million GPUs in UltraServers."""

_FAILURES = Failures()
_POLICY = Policy()
_QUEUE = Queue(name="default")

Rate = Annotated[float, Field(ge=0, le=1)]


class Cluster(Strict):
    """NVLink domains of one system on one fabric. A gang never spans two clusters."""

    name: Name = Field(description="Unique in the fleet.", examples=["use1-a"])
    region: str = Field(default="", description="Where it stands.", examples=["us-east-1"])
    system: System = Field(description="What its domains are: a system of the catalog.")
    domains: Annotated[int, Field(ge=1, le=LARGEST_FLEET)] = Field(
        description="NVLink domains (UltraServers)."
    )
    spares_per_domain: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="Nodes of each domain kept free to replace failed ones under running gangs."
    )
    usd_per_gpu_hour: Usd | None = Field(default=None, description="What a GPU-hour costs, US dollars.")
    nodes: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Nodes per domain; only for the system `local`."
    )
    gpus_per_node: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="GPUs per node (CPU slots); only for the system `local`."
    )

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        for name in ("nodes", "gpus_per_node"):
            if name in data and data.get("system", LOCAL) != LOCAL:
                yield Fault((name,), f"only the system {LOCAL!r} has a size of your choice", "remove it")

    def faults(self) -> Iterator[Fault]:
        nodes, _ = self._size()
        if self.spares_per_domain >= nodes:
            fix = f"at most {nodes - 1}" if nodes > 1 else "remove it"
            yield Fault(("spares_per_domain",), "must leave a node of each domain to use", fix)

    def _size(self) -> tuple[int, int]:
        """Nodes per domain, and GPUs per node."""
        system = catalog.system(self.system)
        return self.nodes or system.nodes, self.gpus_per_node or system.gpus_per_node

    def specs(self) -> Iterator[DomainSpec]:
        nodes, gpus_per_node = self._size()
        for index in range(self.domains):
            yield DomainSpec(
                name=f"{self.name}/us-{index:03d}",
                system=self.system,
                nodes=nodes,
                gpus_per_node=gpus_per_node,
                cluster=self.name,
                region=self.region,
                spares=self.spares_per_domain,
                usd_per_gpu_hour=self.usd_per_gpu_hour,
            )


class FailuresSection(Strict):
    """How often hardware fails in a rehearsal. The defaults are assumed: no field data for NVL72 racks was found."""

    per_gpu_hour: Rate = Field(default=_FAILURES.per_gpu_hour, description="Failures per GPU-hour; 0: none.")
    range: Annotated[list[Rate], Field(min_length=2, max_length=2)] = Field(
        default=list(_FAILURES.range_per_gpu_hour), description="What the rate could as well be: low, high."
    )
    domain_share: Rate = Field(
        default=_FAILURES.domain_share, description="Share of failures that take a whole NVLink domain."
    )
    lemon_share: Rate = Field(
        default=_FAILURES.lemon_share, description="Share of nodes that fail more often than others."
    )
    lemon_factor: Annotated[float, Field(ge=1, le=10_000)] = Field(
        default=_FAILURES.lemon_factor, description="How many times as often those nodes fail."
    )
    node_repair: Span | None = Field(
        default=None, description="Repair of a node. Left out: median 2h, p90 4h."
    )
    domain_repair: Span | None = Field(
        default=None, description="Repair of a domain. Left out: median 4h, p90 8h."
    )
    provenance: catalog.Provenance = Field(default="assumed", description="How these numbers are known.")
    source: Text = Field(default=_FAILURES.source, description="Who says so.")

    def faults(self) -> Iterator[Fault]:
        if self.range[0] > self.range[1]:
            yield Fault(("range",), "must be low, high")
        for name in ("node_repair", "domain_repair"):
            span: Span | None = getattr(self, name)
            if span is not None:
                yield from within(name, span.faults())

    def value(self) -> Failures:
        return Failures(
            per_gpu_hour=self.per_gpu_hour,
            range_per_gpu_hour=(self.range[0], self.range[1]),
            domain_share=self.domain_share,
            lemon_share=self.lemon_share,
            lemon_factor=self.lemon_factor,
            node_repair=self.node_repair.value() if self.node_repair else _FAILURES.node_repair,
            domain_repair=self.domain_repair.value() if self.domain_repair else _FAILURES.domain_repair,
            provenance=self.provenance,
            source=self.source,
        )


class FleetDocument(Strict):
    """What there is to run on: clusters of NVLink domains, listed in fabric order."""

    kind: Literal["Fleet"]
    name: Name
    clusters: Annotated[list[Cluster], Field(min_length=1, max_length=1000)] = Field(
        description="In fabric order."
    )
    failures: FailuresSection = Field(default=FailuresSection(), description="What fails in a rehearsal.")

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        for i, cluster in enumerate(_mappings(data.get("clusters"))):
            yield from within("clusters", within(i, Cluster.conflicts(cluster)))

    def faults(self) -> Iterator[Fault]:
        names = [c.name for c in self.clusters]
        for i, cluster in enumerate(self.clusters):
            yield from within("clusters", within(i, cluster.faults()))
            if cluster.name in names[:i]:
                yield Fault(
                    ("clusters", i, "name"), f"clusters[{names.index(cluster.name)}] has this name already"
                )
        if sum(c.domains for c in self.clusters) > LARGEST_FLEET:
            yield Fault(("clusters",), f"more than {LARGEST_FLEET:,} NVLink domains together")
        yield from within("failures", self.failures.faults())

    def specs(self) -> tuple[DomainSpec, ...]:
        return tuple(spec for cluster in self.clusters for spec in cluster.specs())


class QueueDocument(Strict):
    """Where jobs wait. The queue `default` always exists."""

    kind: Literal["Queue"]
    name: Name
    rank: Rank = Field(
        default=_QUEUE.rank, description="Within a priority class, queues of lower rank go first."
    )
    max_evictions_per_day: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Gangs of this queue that may be preempted in one day. Left out: no limit."
    )

    def value(self) -> Queue:
        return Queue(name=self.name, rank=self.rank, max_evictions_per_day=self.max_evictions_per_day)


class PolicyDocument(Strict):
    """How one job is weighed against another. The defaults are assumed."""

    kind: Literal["Policy"]
    name: Name = "policy"
    priorities: Annotated[dict[Name, Rank], Field(min_length=1, max_length=1000)] = Field(
        default=_POLICY.priorities,
        description="Priority classes, higher first. Replaces the classes production, high, normal and low.",
    )
    preemption: bool = Field(default=_POLICY.preemption, description="Whether gangs may be preempted at all.")
    min_runtime: Seconds = Field(
        default=_POLICY.min_runtime_s, description="A gang is not preempted before it has run this long."
    )
    max_evictions_per_day: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=_POLICY.max_evictions_per_day, description="Preemptions that one gang may suffer in one day."
    )
    preemption_retry: PositiveSeconds = Field(
        default=_POLICY.preemption_retry_s,
        description="Time between attempts to clear room for gangs that still wait.",
    )
    candidate_domains: Count = Field(
        default=_POLICY.candidate_domains,
        description="Domains examined for victims, those with the fewest nodes to clear first.",
    )

    def value(self) -> Policy:
        return Policy(
            priorities=dict(self.priorities),
            preemption=self.preemption,
            min_runtime_s=self.min_runtime,
            max_evictions_per_day=self.max_evictions_per_day,
            preemption_retry_s=self.preemption_retry,
            candidate_domains=self.candidate_domains,
        )


def _mappings(value: object) -> list[dict[str, object]]:
    """The entries of a list; what is no mapping counts as an empty one, since its type is reported elsewhere."""
    items = value if isinstance(value, list) else []
    return [item if isinstance(item, dict) else {} for item in items]
