"""The document Fleet: what there is to run on, what comes and goes, and what fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from rackscale import catalog
from rackscale.events import DomainSpec
from rackscale.spec.fields import (
    Count,
    Fault,
    Name,
    Span,
    Strict,
    System,
    Text,
    Usd,
    mappings,
    within,
)
from rackscale.spec.rehearsal import Failures
from rackscale.spec.times import Fixed

LOCAL = "local"
"""The one system whose size is the user's to choose: its nodes are processes."""

LARGEST_FLEET = 50_000
"""NVLink domains: 3.6 million GPUs in UltraServers."""

_FAILURES = Failures()

Rate = Annotated[float, Field(ge=0, le=1)]


_TIME = "A time of a rehearsal such as 10d, or a date with its zone on a live site."


class Fabric(Strict):
    """How many units of each level hang under one of the next: leaf switches, spines, buildings."""

    domains_per_leaf: Count = Field(description="NVLink domains under one leaf switch.")
    leaves_per_spine: Count | None = Field(
        default=None, description="Leaf switches under one spine. Left out: all of the cluster."
    )
    spines_per_building: Count | None = Field(
        default=None, description="Spines in one building. Left out: all of the cluster."
    )

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        if "spines_per_building" in data and "leaves_per_spine" not in data:
            yield Fault(("leaves_per_spine",), "is required beside spines_per_building")

    def units(self, index: int) -> dict[str, str]:
        """Where the domain of this number hangs: its leaf, spine and building by name, as far as they are known."""
        found = {}
        for level, size in (
            ("leaf", self.domains_per_leaf),
            ("spine", self.leaves_per_spine),
            ("building", self.spines_per_building),
        ):
            if size is None:
                break
            index //= size
            found[level] = f"{level}-{index:03d}"
        return found


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
    fabric: Fabric | None = Field(
        default=None, description="The levels above the domain. Left out: all domains are equally close."
    )
    ready: Fixed | None = Field(
        default=None,
        description=f"When it is delivered; it is expected until then. Left out: it is there. {_TIME}",
    )
    expires: Fixed | None = Field(
        default=None, description=f"When the capacity goes back. Left out: it stays. {_TIME}"
    )
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
        fabric = data.get("fabric")
        if isinstance(fabric, dict):
            yield from within("fabric", Fabric.conflicts(fabric))

    def faults(self) -> Iterator[Fault]:
        nodes, _ = self._size()
        if self.spares_per_domain >= nodes:
            fix = f"at most {nodes - 1}" if nodes > 1 else "remove it"
            yield Fault(("spares_per_domain",), "must leave a node of each domain to use", fix)
        if self.ready and self.expires:
            if self.ready.basis != self.expires.basis:
                fix = "both as dates, or both as times of a rehearsal"
                yield Fault(("expires",), "must be stated like ready", fix)
            elif self.expires.s <= self.ready.s:
                yield Fault(("expires",), "must be after ready")

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
                **(self.fabric.units(index) if self.fabric else {}),
                spares=self.spares_per_domain,
                usd_per_gpu_hour=self.usd_per_gpu_hour,
                expires_s=self.expires.s if self.expires else None,
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
        clusters = mappings(data.get("clusters"))
        names = [cluster.get("name") for cluster in clusters]
        for i, cluster in enumerate(clusters):
            yield from within("clusters", within(i, Cluster.conflicts(cluster)))
            if isinstance(names[i], str) and names[i] in names[:i]:
                first = names.index(names[i])
                yield Fault(("clusters", i, "name"), f"clusters[{first}] has this name already")

    @classmethod
    def partial_faults(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        for i, cluster in enumerate(mappings(data.get("clusters"))):
            with suppress(ValidationError):
                yield from within("clusters", within(i, Cluster.model_validate(cluster).faults()))

    def faults(self) -> Iterator[Fault]:
        for i, cluster in enumerate(self.clusters):
            yield from within("clusters", within(i, cluster.faults()))
        if sum(c.domains for c in self.clusters) > LARGEST_FLEET:
            yield Fault(("clusters",), f"more than {LARGEST_FLEET:,} NVLink domains together")
        yield from within("failures", self.failures.faults())

    def specs(self) -> tuple[DomainSpec, ...]:
        return tuple(spec for cluster in self.clusters for spec in cluster.specs())
