"""The documents that describe work: Training, Batch, Service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec.structs import replace
from pydantic import BeforeValidator, Field

from rackscale.spec.fields import (
    ArrivalsSection,
    Fault,
    Interval,
    Name,
    Seconds,
    Span,
    Strict,
    Text,
    Variables,
    exclude,
    mappings,
    within,
)
from rackscale.spec.programs import JOB_PREFIX, Engine, TrainedModel, beside, serve_command
from rackscale.spec.rehearsal import Duration, Work
from rackscale.spec.shapes import (
    JOB,
    MOST_SHAPES,
    Asking,
    ElasticSection,
    ShapeSection,
    Spares,
    Worth,
    shape_of,
)
from rackscale.workload import Durability, Job, JobKind, Offer, Program, Shape

_DURABILITY = Durability()


class Checkpoint(Strict):
    """How the program saves its work. What is declared here prices preemption until real checkpoints are seen."""

    interval: Interval = Field(
        default=1800.0,
        description="Time between checkpoints; never: each start is from the beginning. Assumed.",
    )
    time: Seconds = Field(
        default=30.0, description="What a checkpoint on request takes; must fit into `grace`. Assumed."
    )


class JobDocument(Asking):
    """What all jobs have in common."""

    job_kind: ClassVar[JobKind]

    user: Text | None = Field(default=None, description="Whose it is; limits per user count by it.")
    spares: Spares = Field(
        default=0, description="Nodes beside each segment that it holds idle, to replace its own dead ones."
    )
    shapes: Annotated[list[ShapeSection], Field(min_length=1, max_length=MOST_SHAPES)] | None = Field(
        default=None, description="Other shapes that would do, each with its throughput."
    )
    worth: Worth | None = Field(
        default=None, description="What its work is worth. Left out: shapes are judged by cost alone."
    )
    cpu_only: bool = Field(
        default=JOB.cpu_only,
        description="Whether it needs no GPUs: it runs on nodes beside gangs that do, one such gang per node.",
    )
    booking: Name | None = Field(
        default=None, description="It runs on the nodes of this booking only, while the booking lasts."
    )
    preemptible: bool = Field(
        default=True, description="Whether it may be asked to leave for a higher priority."
    )
    eviction_penalty_gpu_h: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=0.0, description="What an eviction costs beyond lost work, GPU-hours."
    )
    duration: Span | None = Field(
        default=None,
        description="Productive time. Left out: unknown; a rehearsal needs it, but for services.",
    )
    grace: Seconds = Field(
        default=_DURABILITY.grace_s,
        description="Time between the request to leave and the kill; 0: no checkpoint on request.",
    )
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=_DURABILITY.max_restarts,
        description="Failures of the program (not of nodes) that are retried.",
    )
    retry_delay: Seconds = Field(
        default=_DURABILITY.retry_delay_s,
        description="Pause before a program that failed is started again; twice as long after each further failure, at "
        "most 5m. Assumed: as Kubernetes does with containers that crash.",
    )
    setup: Text | None = Field(
        default=None, description="Shell script, once per node before the ranks start."
    )
    run: Text | None = Field(
        default=None, description="Shell script that every rank runs, with torchrun's environment."
    )
    envs: Variables = Field(default={}, description="Environment variables of `setup` and `run`.")
    workdir: Text | None = Field(default=None, description="Where they run; relative to this document.")
    ranks_per_node: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Processes per node. Left out: one per GPU; 1 for a Service with `model`."
    )
    arrivals: ArrivalsSection | None = Field(
        default=None, description="When a rehearsal submits it. Left out: at the start."
    )

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from super().conflicts(data)
        for i, shape in enumerate(mappings(data.get("shapes"))):
            yield from within("shapes", within(i, ShapeSection.conflicts(shape)))
        if not data.keys() & {"run", "model"}:
            for name in ("setup", "workdir", "envs", "ranks_per_node"):
                if name in data:
                    yield Fault(
                        (name,),
                        "is of no use without run" + (" or model" if "model" in cls.model_fields else ""),
                    )
        arrivals = data.get("arrivals")
        if isinstance(arrivals, dict):
            yield from within("arrivals", ArrivalsSection.conflicts(arrivals))

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        yield from self._shape_faults()
        if self.duration is not None:
            yield from within("duration", self.duration.faults())
        if self.arrivals is not None:
            yield from within("arrivals", self.arrivals.faults())

    def makes_many(self) -> bool:
        """Whether it makes jobs called `name-0`, `name-1` ..."""
        return getattr(self, "count", None) is not None or not (
            self.arrivals is None or self.arrivals.value().single
        )

    def _shape_faults(self) -> Iterator[Fault]:
        seen = {Offer(shape=self.shape(), system=self.system): "the job's own shape"}
        for i, section in enumerate(self.shapes or ()):
            offer = section.value()
            yield from within("near", self.near.shape_faults(offer.shape))
            place = seen.setdefault(replace(offer, throughput=1.0), f"shapes[{i}]")
            if place != f"shapes[{i}]":
                yield Fault(("shapes", i), f"is the same as {place}")
        if self.cpu_only and self.spares:
            yield Fault(("spares",), "a job without GPUs holds no spares", "remove it")
        if self.job_kind != "service" and self.near.apart is not None:
            yield Fault(
                ("near", "apart"), "only the replicas of a Service can be apart", "did you mean spread?"
            )

    def shape(self) -> Shape:
        return shape_of(self, self.spares)

    def offers(self) -> tuple[Offer, ...]:
        """Other shapes that would do."""
        return tuple(section.value() for section in self.shapes or ())

    @property
    def is_elastic(self) -> bool:
        """Whether it may change between its shapes while it runs."""
        return False

    def command(self, _folder: Path) -> str | None:
        """The script of every rank; None where only a rehearsal runs the job."""
        return self.run

    def program(self, folder: Path) -> Program | None:
        run = self.command(folder)
        if run is None:
            return None
        return Program(
            run=run,
            setup=self.setup or "",
            envs=dict(self.envs),
            workdir=None if self.workdir is None else beside(folder, self.workdir),
            ranks_per_node=self.ranks_per_node,
        )

    def durability(self) -> Durability:
        raise NotImplementedError

    def expected(self) -> Duration | None:
        """Productive time, as far as it is known."""
        return self.duration.value() if self.duration else None

    def work(self, folder: Path, source: str) -> Work:
        """The document as a value; `folder` is the document's own, `source` its `file:line`."""
        expected = self.expected()
        job = Job(
            name=self.name,
            kind=self.job_kind,
            shape=self.shape(),
            replicas=getattr(self, "replicas", 1),
            queue=self.queue,
            priority=self.priority,
            preemptible=self.preemptible,
            user=self.user or "",
            system=self.system,
            cluster=self.cluster,
            offers=self.offers(),
            elastic=self.is_elastic,
            usd_per_hour=self.worth.usd_per_hour if self.worth else None,
            nearness=self.near.value(),
            cpu_only=self.cpu_only,
            booking=self.booking,
            duration_s=expected.mean_s if expected else None,
            eviction_penalty_gpu_h=self.eviction_penalty_gpu_h,
            durability=self.durability(),
            program=self.program(folder),
        )
        return Work(
            job=job,
            count=getattr(self, "count", None),
            arrivals=self.arrivals.value() if self.arrivals else None,
            duration=expected,
            source=source,
        )


def _unless_false(value: object) -> object:
    return None if value is False else value


class _Saving(JobDocument):
    """What Training and Batch have in common."""

    count: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="So many equal jobs, named `name-0`, `name-1` ..."
    )
    elastic: Annotated[ElasticSection | None, BeforeValidator(_unless_false)] = Field(
        default=None,
        description="Whether a running gang may shrink and grow between its shapes at checkpoints.",
    )
    checkpoint: Checkpoint
    restart_time: Seconds

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from super().conflicts(data)
        elastic = data.get("elastic")
        if elastic is True and "shapes" not in data:
            fix = "give shapes, or elastic: {min_segments: 1, max_segments: 2}"
            yield Fault(("elastic",), "there is no other shape to change to", fix)
        if isinstance(elastic, dict):
            yield from within("elastic", ElasticSection.conflicts(elastic))
            yield from exclude(data, "shapes", ("elastic",))

    def offers(self) -> tuple[Offer, ...]:
        ranged = self.elastic.offers(self.shape(), self.system) if self.elastic else ()
        return ranged or super().offers()

    @property
    def is_elastic(self) -> bool:
        return self.elastic is not None

    def interval_s(self) -> float | None:
        """Time between checkpoints; None: never."""
        return self.checkpoint.interval

    def durability(self) -> Durability:
        interval_s = self.interval_s()
        return Durability(
            checkpoint_interval_s=interval_s,
            checkpoint_s=0.0 if interval_s is None else self.checkpoint.time,
            grace_s=self.grace,
            restart_s=self.restart_time,
            max_restarts=self.max_restarts,
            retry_delay_s=self.retry_delay,
        )

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        if self.elastic is not None:
            yield from within("elastic", self.elastic.ranged_faults(self.shape()))
            if self.interval_s() is None:
                message = "a gang changes its shape at a checkpoint, and this one never writes any"
                yield Fault(("elastic",), message, "give checkpoint: {interval: ...}")
        if self.interval_s() is not None and 0 < self.grace < self.checkpoint.time:
            yield Fault(
                ("grace",) if "grace" in self.model_fields_set else ("checkpoint", "time"),
                f"a checkpoint takes {self.checkpoint.time:g} s, but the kill comes after {self.grace:g} s",
                "give more grace, or 0 for no checkpoint on request",
            )


class TrainingDocument(_Saving):
    """A training run: one gang that checkpoints, leaves on request and resumes elsewhere."""

    job_kind = "training"

    kind: Literal["Training"]
    model: TrainedModel | None = Field(default=None, description="The built-in trainer, instead of `run`.")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="How the program saves its work.")
    restart_time: Seconds = Field(default=300.0, description="Time from start to productive work. Assumed.")

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from super().conflicts(data)
        yield from exclude(data, "run", ("model",))
        if not data.keys() & {"run", "model", "duration"}:
            yield Fault((), "needs run or model to be run, or duration to be rehearsed")

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        if self.model is not None:
            yield from within("model", self.model.faults())

    def command(self, folder: Path) -> str | None:
        return self.model.command(folder) if self.model else self.run

    def interval_s(self) -> float | None:
        declared = "interval" in self.checkpoint.model_fields_set
        if declared or self.model is None or self.model.step_time is None:
            return super().interval_s()
        return self.model.checkpoint_every * self.model.step_time

    def expected(self) -> Duration | None:
        if self.duration is None and self.model is not None and self.model.step_time is not None:
            seconds = self.model.steps * self.model.step_time
            return Duration(median_s=seconds, p90_s=seconds)
        return super().expected()


class BatchDocument(_Saving):
    """A batch job: one gang that runs to its end. Without `checkpoint` it starts from the beginning each time."""

    job_kind = "batch"

    kind: Literal["Batch"]
    checkpoint: Checkpoint = Field(
        default=Checkpoint.model_validate({"interval": "never"}),
        description="How the program saves its work. Left out: it doesn't.",
    )
    restart_time: Seconds = Field(
        default=_DURABILITY.restart_s, description="Time from start to productive work. Assumed."
    )

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from super().conflicts(data)
        if not data.keys() & {"run", "duration"}:
            yield Fault((), "needs run to be run, or duration to be rehearsed")


class ServiceDocument(JobDocument):
    """A service: `replicas` gangs of the same shape that answer until they are cancelled."""

    job_kind = "service"

    kind: Literal["Service"]
    replicas: Annotated[int, Field(ge=1, le=100_000)] = Field(default=1, description="Gangs of this shape.")
    model: Text | None = Field(
        default=None,
        description="What to serve, instead of `run`: a Hugging Face folder or a GGUF file, relative to this "
        f"document, or `{JOB_PREFIX}NAME` for what the training NAME exported.",
        examples=["job:tiny-llama", "models/smollm2"],
    )
    engine: Engine = Field(
        default="auto", description="What serves `model`; auto: the best that is installed for its format."
    )
    engine_args: Annotated[list[Text], Field(max_length=100)] = Field(
        default=[],
        description="Arguments of the engine's own, beyond rackscale's.",
        examples=[["--tensor-parallel-size", "4"]],
    )
    restart_time: Seconds = Field(default=120.0, description="Time from start to the first answer. Assumed.")

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from super().conflicts(data)
        yield from exclude(data, "run", ("model",))
        for name in ("engine", "engine_args"):
            if name in data and "model" not in data:
                yield Fault((name,), "is of no use without model")

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        if self.model == JOB_PREFIX:
            yield Fault(("model",), "the job's name is missing", f"{JOB_PREFIX}NAME")

    def command(self, folder: Path) -> str | None:
        return serve_command(self.model, self.engine, self.engine_args, folder) if self.model else self.run

    def program(self, folder: Path) -> Program | None:
        program = super().program(folder)
        if program is None or self.model is None or self.ranks_per_node is not None:
            return program
        return Program(
            run=program.run, setup=program.setup, envs=program.envs, workdir=program.workdir, ranks_per_node=1
        )

    def durability(self) -> Durability:
        return Durability(
            grace_s=self.grace,
            restart_s=self.restart_time,
            max_restarts=self.max_restarts,
            retry_delay_s=self.retry_delay,
        )
