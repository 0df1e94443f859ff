"""The document Queue: where jobs wait, and what the people behind it are owed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from rackscale.spec.fields import Fault, Few, Name, Rank, Strict, within
from rackscale.spec.tree import UNITS, WORDS
from rackscale.workload import Queue

_QUEUE = Queue(name="default")

Domains = Annotated[float, Field(ge=0, le=1_000_000)]


class Quota(Strict):
    """What a queue is guaranteed: GPUs, or whole NVLink domains, or both."""

    gpus: Few | None = Field(default=None, description="GPUs.")
    domains: Domains | None = Field(
        default=None,
        description="NVLink domains. A segment that leaves no room for another of its size counts as one.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, value: object) -> object:
        if isinstance(value, dict | Quota):
            return value
        raise PydanticCustomError("amount", "must be a mapping such as {gpus: 64} or {domains: 4}")

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        if not data:
            yield Fault((), "needs gpus or domains")


class Borrow(Strict):
    """What a queue may hold beyond its quota while nobody else wants it, in the quota's unit; `none`: nothing."""

    gpus: Few | None = Field(default=None, description="GPUs.")
    domains: Domains | None = Field(default=None, description="NVLink domains.")

    @model_validator(mode="before")
    @classmethod
    def _from_none(cls, value: object) -> object:
        if value == "none":
            return {"gpus": 0, "domains": 0.0}
        if isinstance(value, dict | Borrow):
            return value
        raise PydanticCustomError("amount", "must be none, or a mapping such as {gpus: 32} or {domains: 2}")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"const": "none"}, handler(schema)]}


class PerUser(Strict):
    """Limits of each user in this very queue."""

    max_gangs: Few | None = Field(default=None, description="Gangs that may hold nodes at a time.")
    max_gpus: Few | None = Field(default=None, description="GPUs that they may hold together.")


class QueueDocument(Strict):
    """Where jobs wait. Queues form a tree; jobs wait in any of them. The queue `default` always exists."""

    kind: Literal["Queue"]
    name: Name
    parent: Name | None = Field(default=None, description="The queue above it. Left out: none.")
    rank: Rank = Field(
        default=_QUEUE.rank, description="Within a priority class, queues of lower rank go first."
    )
    weight: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=_QUEUE.weight, description="Its share among its siblings in the decayed use of GPUs."
    )
    quota: Quota | None = Field(default=None, description="What it is guaranteed. Left out: nothing.")
    borrow: Borrow | None = Field(
        default=None, description="What it may hold beyond its quota. Left out: no limit."
    )
    max_gangs: Few | None = Field(
        default=None, description="Gangs that may hold nodes at a time. Left out: no limit."
    )
    per_user: PerUser = Field(default=PerUser(), description="Limits of each of its users.")
    max_evictions_per_day: Few | None = Field(
        default=None, description="Gangs of this queue that may be preempted in one day. Left out: no limit."
    )

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        quota, borrow = data.get("quota"), data.get("borrow")
        if isinstance(quota, dict):
            yield from within("quota", Quota.conflicts(quota))
        if "borrow" in data and "quota" not in data:
            yield Fault(("borrow",), "there is no quota to go beyond", "give a quota, which may be {gpus: 0}")
        elif isinstance(borrow, dict) and isinstance(quota, dict):
            if not borrow:
                yield Fault(("borrow",), "needs gpus or domains", "write none where nothing may be borrowed")
            for unit in UNITS:
                if unit in borrow and unit not in quota:
                    yield Fault(
                        ("borrow", unit), f"the quota is not counted in {WORDS[unit]}", "use the quota's unit"
                    )

    def faults(self) -> Iterator[Fault]:
        if self.parent == self.name:
            yield Fault(("parent",), "a queue can't be above itself")

    def value(self) -> Queue:
        quota, borrow = self.quota or Quota(gpus=None), self.borrow or Borrow(gpus=None)
        return Queue(
            name=self.name,
            parent=self.parent,
            rank=self.rank,
            weight=self.weight,
            quota_gpus=quota.gpus,
            quota_domains=quota.domains,
            borrow_gpus=None if quota.gpus is None else borrow.gpus,
            borrow_domains=None if quota.domains is None else borrow.domains,
            max_gangs=self.max_gangs,
            max_gangs_per_user=self.per_user.max_gangs,
            max_gpus_per_user=self.per_user.max_gpus,
            max_evictions_per_day=self.max_evictions_per_day,
        )
