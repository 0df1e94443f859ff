"""The document Policy: how one job is weighed against another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from rackscale.spec.fields import Count, Few, Interval, Name, PositiveSeconds, Rank, Seconds, Strict
from rackscale.workload import Defragment, Policy, SparePolicy

_POLICY = Policy()


def _unless_never(value: object) -> object:
    return None if value == "never" else value


class Lemon(Strict):
    """When a node is taken out of use for good, until somebody undrains it; `never`: it is not."""

    failures: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=_POLICY.lemon_failures or 3, description="Failures within the window."
    )
    window: PositiveSeconds = Field(default=_POLICY.lemon_window_s, description="How far back they count.")

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, value: object) -> object:
        if isinstance(value, dict | Lemon):
            return value
        raise PydanticCustomError("amount", "must be never, or a mapping such as {failures: 3, window: 7d}")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"const": "never"}, handler(schema)]}


class PolicyDocument(Strict):
    """How one job is weighed against another. The defaults are assumed."""

    kind: Literal["Policy"]
    name: Name = "policy"
    priorities: Annotated[dict[Name, Rank], Field(min_length=1, max_length=1000)] = Field(
        default=_POLICY.priorities,
        description="Priority classes, higher first. Replaces the classes production, high, normal and low.",
    )
    decision_interval: Seconds = Field(
        default=_POLICY.decision_interval_s,
        description="Time between decisions, at least; what happens meanwhile is decided about together.",
    )
    fair_share_half_life: Interval = Field(
        default=_POLICY.fair_share_half_life_s,
        description="Past use of GPUs counts half after so long; never: past use does not count. Slurm's default.",
    )
    backfill: bool = Field(
        default=_POLICY.backfill,
        description="Whether gangs may start before gangs that were ahead of them and don't fit yet.",
    )
    reservations: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=_POLICY.reservations,
        description="Waiting gangs, the first in order, whose start nobody behind them may delay.",
    )
    preemption: bool = Field(default=_POLICY.preemption, description="Whether gangs may be preempted at all.")
    reclaim: bool = Field(
        default=_POLICY.reclaim,
        description="Whether a queue gets its quota back from queues that borrow it, whatever the priority.",
    )
    min_runtime: Seconds = Field(
        default=_POLICY.min_runtime_s, description="A gang is not preempted before it has run this long."
    )
    max_evictions_per_day: Few = Field(
        default=_POLICY.max_evictions_per_day, description="Preemptions that one gang may suffer in one day."
    )
    preemption_retry: PositiveSeconds = Field(
        default=_POLICY.preemption_retry_s,
        description="Time between attempts to clear room for gangs that still wait, and to reserve for them.",
    )
    candidate_domains: Count = Field(
        default=_POLICY.candidate_domains,
        description="Domains examined for victims, those with the fewest nodes to clear first.",
    )
    defragment: Defragment = Field(
        default=_POLICY.defragment,
        description="Whether gangs are moved so that a whole domain opens; advise: only `why` says so.",
    )
    defragment_gain: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=_POLICY.defragment_gain,
        description="GPU-hours of waiting that a move must save per GPU-hour that it costs.",
    )
    growth: bool = Field(
        default=_POLICY.growth, description="Whether elastic gangs grow into room that nobody waits for."
    )
    marginal_throughput: Annotated[float, Field(ge=0, le=1)] = Field(
        default=_POLICY.marginal_throughput,
        description="A larger shape is taken if its extra GPUs bring at least this share of the best shape's work "
        "per GPU; for jobs that don't say what their work is worth.",
    )
    spares: SparePolicy = Field(
        default=_POLICY.spares,
        description="none: no node is kept free; fixed: as many per domain as the Fleet says; adaptive: those, "
        "under gangs so large that waiting for a repair would cost more.",
    )
    failures_per_gpu_hour: Annotated[float, Field(ge=0, le=1)] = Field(
        default=_POLICY.failures_per_gpu_hour,
        description="What adaptive spares reckon with. Llama 3: 1.97e-5; no field data for NVL72 racks was found.",
    )
    node_repair: PositiveSeconds = Field(
        default=_POLICY.node_repair_s,
        description="How long a node's repair is expected to take, where nobody says so.",
    )
    domain_repair: PositiveSeconds = Field(
        default=_POLICY.domain_repair_s, description="The same for a fault of a whole NVLink domain."
    )
    lemon: Annotated[Lemon | None, BeforeValidator(_unless_never)] = Field(
        default=Lemon(), description="When a node is taken out of use, since it fails too often."
    )
    assumed_duration: PositiveSeconds = Field(
        default=_POLICY.assumed_duration_s,
        description="How long a job of unknown duration is taken to run when maintenance is planned.",
    )

    def value(self) -> Policy:
        lemon = self.lemon
        return Policy(
            priorities=dict(self.priorities),
            decision_interval_s=self.decision_interval,
            fair_share_half_life_s=self.fair_share_half_life,
            backfill=self.backfill,
            reservations=self.reservations,
            preemption=self.preemption,
            reclaim=self.reclaim,
            min_runtime_s=self.min_runtime,
            max_evictions_per_day=self.max_evictions_per_day,
            preemption_retry_s=self.preemption_retry,
            candidate_domains=self.candidate_domains,
            defragment=self.defragment,
            defragment_gain=self.defragment_gain,
            growth=self.growth,
            marginal_throughput=self.marginal_throughput,
            spares=self.spares,
            failures_per_gpu_hour=self.failures_per_gpu_hour,
            node_repair_s=self.node_repair,
            domain_repair_s=self.domain_repair,
            lemon_failures=None if lemon is None else lemon.failures,
            lemon_window_s=_POLICY.lemon_window_s if lemon is None else lemon.window,
            assumed_duration_s=self.assumed_duration,
        )
