"""How much a gang asks for, in which shapes, and how it lies on the fabric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log2
from typing import Annotated, Protocol

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from rackscale.spec.fields import Count, Fault, Name, Strict, System, Text, exclude, within
from rackscale.workload import LEVELS, Job, Level, Nearness, Offer, Shape

JOB = Job(name="default", kind="batch", shape=Shape())
MOST_SHAPES = 64
"""Shapes of one job: each is tried when room is sought."""
SPEED_UP_KEPT = 0.93
"""Per doubling. Assumed, from Llama 3's 430 and 400 TFLOPS per GPU on 8,192 and 16,384 GPUs."""

Spares = Annotated[int, Field(ge=0, le=1000)]

_SIZE = ("nodes", "segments", "nodes_per_segment")


class _Sized(Protocol):
    nodes: int
    segments: int
    nodes_per_segment: int
    may_share_domain: bool

    @property
    def model_fields_set(self) -> set[str]: ...


def size_conflicts(data: Mapping[str, object]) -> Iterator[Fault]:
    """What is wrong about the fields that say a shape."""
    yield from exclude(data, "nodes", ("segments", "nodes_per_segment", "may_share_domain"))
    if "segments" in data and not data.keys() & {"nodes", "nodes_per_segment"}:
        yield Fault(("nodes_per_segment",), "is required beside segments")


def shape_of(fields: _Sized, spares: int = 0) -> Shape:
    """The shape that the fields say."""
    if "nodes_per_segment" not in fields.model_fields_set:
        return Shape(nodes_per_segment=fields.nodes, spares_per_segment=spares)
    return Shape(
        segments=fields.segments,
        nodes_per_segment=fields.nodes_per_segment,
        may_share_domain=fields.may_share_domain,
        spares_per_segment=spares,
    )


class Near(Strict):
    """How a gang lies on the fabric, beyond segments inside NVLink domains."""

    within: Level | None = Field(
        default=None, description="All segments in one unit of this level, or the gang waits."
    )
    prefer: Level | None = Field(
        default=None, description="All segments in one unit of this level if that is possible at the time."
    )
    spread: Level | None = Field(
        default=None, description="Each segment in another unit of this level, or the gang waits."
    )
    apart: Level | None = Field(
        default=None,
        description="Replicas of a service in different units of this level, as far as possible.",
    )
    apart_required: bool = Field(
        default=False, description="Whether a replica that can't be apart from the others waits."
    )

    def faults(self) -> Iterator[Fault]:
        if self.within is not None:
            widest = LEVELS.index(self.within)
            if self.prefer is not None and LEVELS.index(self.prefer) >= widest:
                yield Fault(("prefer",), f"must be closer than within, which is {self.within}")
            if self.spread is not None and LEVELS.index(self.spread) >= widest:
                yield Fault(("spread",), f"must be closer than within, which is {self.within}")
        if self.apart_required and self.apart is None:
            yield Fault(("apart_required",), "is of no use without apart")

    def shape_faults(self, shape: Shape) -> Iterator[Fault]:
        """What can't be true of a gang of this shape."""
        if self.within == "domain" and shape.segments > 1 and not shape.may_share_domain:
            fix = "write may_share_domain: true, or one segment of nodes"
            yield Fault(("within",), "each segment lies in an NVLink domain of its own", fix)

    def value(self) -> Nearness:
        return Nearness(
            within=self.within,
            prefer=self.prefer,
            spread=self.spread,
            apart=self.apart,
            apart_required=self.apart_required,
        )


class Asking(Strict):
    """What jobs and bookings have in common: a name, a place in the order, and a shape."""

    name: Name
    queue: Name = Field(default=JOB.queue, description="Where it waits, and whose quota it counts against.")
    priority: Name = Field(default=JOB.priority, description="A priority class of the policy.")
    system: System | None = Field(default=None, description="Only this system will do. Left out: any.")
    cluster: Text | None = Field(default=None, description="Only this cluster will do. Left out: any.")
    nodes: Count = Field(default=1, description="Nodes of the gang, in one NVLink domain.")
    segments: Count = Field(default=1, description="Segments of the gang, instead of `nodes`.")
    nodes_per_segment: Count = Field(
        default=1, description="Nodes of each segment; a segment lies inside one NVLink domain."
    )
    may_share_domain: bool = Field(
        default=False, description="Whether several segments may lie in the same NVLink domain."
    )
    near: Near = Field(default=Near(), description="How it lies on the fabric.")

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from size_conflicts(data)

    def faults(self) -> Iterator[Fault]:
        yield from within("near", self.near.faults())
        yield from within("near", self.near.shape_faults(self.shape()))

    def shape(self) -> Shape:
        return shape_of(self)


class ShapeSection(Strict):
    """Another shape that would do, and what the job gets done in it."""

    nodes: Count = Field(default=1, description="Nodes of the gang, in one NVLink domain.")
    segments: Count = Field(default=1, description="Segments of the gang, instead of `nodes`.")
    nodes_per_segment: Count = Field(
        default=1, description="Nodes of each segment; a segment lies inside one NVLink domain."
    )
    may_share_domain: bool = Field(
        default=False, description="Whether several segments may lie in the same NVLink domain."
    )
    system: System | None = Field(default=None, description="Only on this system. Left out: on any.")
    throughput: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="Work per second, where the job's own shape does 1."
    )
    spares: Spares = Field(
        default=0, description="Nodes beside each segment that the gang holds idle, to replace its own."
    )

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from size_conflicts(data)
        if not data.keys() & set(_SIZE):
            yield Fault((), "needs nodes, or segments and nodes_per_segment")

    def value(self) -> Offer:
        return Offer(shape=shape_of(self, self.spares), system=self.system, throughput=self.throughput)


class ElasticSection(Strict):
    """Between how many segments a gang may shrink and grow at its checkpoints. `true`: between its `shapes`."""

    min_segments: Count | None = Field(default=None, description="The fewest that are of use.")
    max_segments: Count | None = Field(default=None, description="The most that are of use.")
    step: Count = Field(default=1, description="Segments by which it shrinks and grows.")
    efficiency: Annotated[float, Field(gt=0.5, le=1)] = Field(
        default=SPEED_UP_KEPT,
        description="Share of a linear speed-up that each doubling keeps. Assumed: as Llama 3 kept from 8,192 to "
        "16,384 GPUs.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_true(cls, value: object) -> object:
        if value is True:
            return {}
        if isinstance(value, dict | ElasticSection):
            return value
        raise PydanticCustomError("choice", "must be true, or a mapping with min_segments and max_segments")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "boolean"}, handler(schema)]}

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        for name in ("min_segments", "max_segments"):
            if name not in data:
                yield Fault((name,), "is required")

    def ranged_faults(self, shape: Shape) -> Iterator[Fault]:
        """What is wrong about the range for a job whose own shape is this."""
        low, high = self.min_segments, self.max_segments
        if low is None or high is None:
            return
        if low > high:
            yield Fault(("max_segments",), "must not be less than min_segments")
        elif not low <= shape.segments <= high:
            yield Fault(
                (), f"the job's own {shape.segments} segments must lie between min_segments and max_segments"
            )
        elif (high - low) // self.step >= MOST_SHAPES:
            fix = f"give a step of at least {-(-(high - low + 1) // MOST_SHAPES)}"
            yield Fault(("step",), f"more than {MOST_SHAPES} shapes", fix)

    def offers(self, shape: Shape, system: str | None) -> tuple[Offer, ...]:
        """The shapes of the range beside the job's own, each with its throughput."""
        if self.min_segments is None or self.max_segments is None:
            return ()
        counts = {*range(self.min_segments, self.max_segments + 1, self.step), self.max_segments}
        return tuple(
            Offer(shape=_resized(shape, n), system=system, throughput=self._speed_up(n / shape.segments))
            for n in sorted(counts - {shape.segments})
        )

    def _speed_up(self, times: float) -> float:
        return round(times * float(self.efficiency ** log2(times)), 6)


def _resized(shape: Shape, segments: int) -> Shape:
    return Shape(
        segments=segments,
        nodes_per_segment=shape.nodes_per_segment,
        may_share_domain=shape.may_share_domain,
        spares_per_segment=shape.spares_per_segment,
    )


class Worth(Strict):
    """What the job's work is worth to its owner, so that a larger or dearer shape is chosen where it pays."""

    usd_per_hour: Annotated[float, Field(gt=0, le=1e9)] = Field(
        description="US dollars for an hour of work in the job's own shape."
    )
