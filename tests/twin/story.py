"""Random fleets with everything that can happen to them, for properties that must always hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from rackscale.control import Controller
from rackscale.events import (
    Cancelled,
    Configured,
    Delivered,
    DomainSpec,
    Drained,
    Event,
    Input,
    NodeFailed,
    NodeRepaired,
    Undrained,
)
from rackscale.fleet.state import FleetState
from rackscale.spec import Duration, Failures, Submission
from rackscale.twin import TwinExecutor
from rackscale.workload import Durability, Job, Policy, Queue, Shape

END_S = 5000.0
PRIORITIES = ("production", "high", "normal", "low")
QUEUES = (Queue(name="default"), Queue(name="side", rank=1, max_evictions_per_day=2))


@dataclass(frozen=True, kw_only=True)
class Story:
    """What is known beforehand; the seed draws the rest."""

    fleet: tuple[DomainSpec, ...]
    policy: Policy = field(default_factory=Policy)
    submissions: tuple[Submission, ...] = ()
    inputs: tuple[Input, ...] = ()
    failures: Failures | None = None
    seed: int = 0

    def begin(self) -> tuple[Input, ...]:
        return (
            Configured(at_s=0.0, policy=self.policy, queues=QUEUES),
            Delivered(at_s=0.0, domains=self.fleet),
        )

    def twin(self, *, batch: int = 1024) -> TwinExecutor:
        return TwinExecutor(
            seed=self.seed, submissions=self.submissions, inputs=(*self.begin(), *self.inputs),
            failures=self.failures, batch=batch,
        )  # fmt: skip


@dataclass
class Run:
    """A story played: its journal and the controller at the end."""

    story: Story
    batch: int = 1024
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.twin = self.story.twin(batch=self.batch)
        self.controller = Controller(FleetState(), self.twin, listeners=(self.events.append,))

    @property
    def state(self) -> FleetState:
        return self.controller.state

    def play(self, until_s: float = END_S) -> Run:
        while self.twin.now_s < until_s and not self.twin.done:
            self.controller.step(until_s)
        return self


times = st.integers(0, int(END_S * 8)).map(lambda eighths: eighths / 8)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[DomainSpec, ...]:
    specs = []
    for c in range(draw(st.integers(1, 3))):
        nodes, gpus = draw(st.integers(2, 6)), draw(st.integers(1, 4))
        spares, price = draw(st.integers(0, 1)), draw(st.sampled_from((None, 1.25, 10.582)))
        specs += [
            DomainSpec(
                name=f"c{c}/us-{d:03}", system="s", nodes=nodes, gpus_per_node=gpus, cluster=f"c{c}", spares=spares,
                usd_per_gpu_hour=price,
            )
            for d in range(draw(st.integers(1, 4)))
        ]  # fmt: skip
    return tuple(specs)


@st.composite
def jobs(draw: st.DrawFn, name: str) -> Job:
    service = draw(st.integers(0, 5)) == 0
    return Job(
        name=name,
        kind="service" if service else draw(st.sampled_from(("training", "batch"))),
        shape=Shape(
            segments=draw(st.integers(1, 3)), nodes_per_segment=draw(st.integers(1, 4)),
            may_share_domain=draw(st.booleans()),
        ),
        replicas=draw(st.integers(1, 3)) if service else 1,
        queue=draw(st.sampled_from(("default", "side"))),
        priority=draw(st.sampled_from(PRIORITIES)),
        preemptible=draw(st.integers(0, 4)) > 0,
        duration_s=None if service else draw(st.integers(0, 2000)) / 2,
        durability=Durability(
            checkpoint_interval_s=draw(st.sampled_from((None, 7.5, 100.0, 1000.0))),
            checkpoint_s=draw(st.sampled_from((0.0, 4.0, 40.0))),
            grace_s=draw(st.sampled_from((0.0, 10.0, 60.0))),
            restart_s=draw(st.sampled_from((0.0, 5.0, 90.0))),
        ),
    )  # fmt: skip


@st.composite
def inputs(draw: st.DrawFn, fleet: tuple[DomainSpec, ...], names: list[str]) -> tuple[Input, ...]:
    events: list[Input] = []
    for at_s in sorted(draw(st.lists(times, max_size=12))):
        spec = draw(st.sampled_from(fleet))
        nodes = draw(
            st.none() | st.sets(st.integers(0, spec.nodes - 1), min_size=1).map(lambda s: tuple(sorted(s)))
        )
        kind = draw(
            st.sampled_from(
                (NodeFailed, NodeFailed, NodeRepaired, NodeRepaired, Drained, Undrained, Cancelled)
            )
        )
        if kind is Cancelled:
            events.append(Cancelled(at_s=at_s, job=draw(st.sampled_from(names))))
        else:
            events.append(kind(at_s=at_s, domain=spec.name, nodes=nodes))
    return tuple(events)


@st.composite
def stories(draw: st.DrawFn, *, trouble: bool = True) -> Story:
    """`trouble`: also failures, drains, cancellations and a late delivery."""
    fleet = draw(fleets())
    arrivals = sorted(draw(st.lists(times, min_size=1, max_size=14)))
    work = [draw(jobs(f"j{i}")) for i in range(len(arrivals))]
    submissions = tuple(
        Submission(at_s=at_s, job=job, duration_s=job.duration_s)
        for at_s, job in zip(arrivals, work, strict=True)
    )
    policy = Policy(
        preemption=draw(st.integers(0, 5)) > 0, min_runtime_s=draw(st.sampled_from((0.0, 20.0, 300.0))),
        preemption_retry_s=draw(st.sampled_from((5.0, 60.0))), max_evictions_per_day=draw(st.sampled_from((1, 4))),
    )  # fmt: skip
    if not trouble:
        return Story(fleet=fleet, policy=policy, submissions=submissions)
    scripted = draw(inputs(fleet, [job.name for job in work]))
    late = tuple(
        DomainSpec(name=f"late/us-{d:03}", system="s", nodes=4, gpus_per_node=2, cluster="late", spares=1)
        for d in range(2)
    )
    delivery = Delivered(at_s=draw(times), domains=late)
    rate = draw(st.sampled_from((0.0, 0.05, 0.5)))
    failures = Failures(
        per_gpu_hour=rate, domain_share=0.2, node_repair=Duration(median_s=300.0, p90_s=900.0),
        domain_repair=Duration(median_s=600.0, p90_s=1200.0),
    )  # fmt: skip
    return Story(
        fleet=fleet, policy=policy, submissions=submissions,
        inputs=tuple(sorted((*scripted, delivery), key=lambda e: e.at_s)), failures=failures,
        seed=draw(st.integers(0, 1000)),
    )  # fmt: skip
