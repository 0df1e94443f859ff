"""A fleet in memory for scheduler tests: fold, decide, fold the decision."""

from __future__ import annotations

from rackscale.events import (
    Action,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    GangEnded,
    GangRunning,
    Input,
    NodeFailed,
    Plan,
    Reserve,
    Start,
    Submitted,
    Ticked,
    Unreserve,
)
from rackscale.fleet.gangs import Gang
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.workload import Durability, Job, JobKind, Policy, Queue, Shape


def domain(
    i: int, *, cluster: str = "c", nodes: int = 18, spares: int = 1, usd: float | None = None
) -> DomainSpec:
    return DomainSpec(
        name=f"{cluster}/us-{i:03}", system="s", nodes=nodes, gpus_per_node=4, cluster=cluster, spares=spares,
        usd_per_gpu_hour=usd,
    )  # fmt: skip


def job(
    name: str, nodes: int = 1, segments: int = 1, *, priority: str = "normal", kind: JobKind = "training",
    share: bool = False, queue: str = "default", preemptible: bool = True, replicas: int = 1, restart_s: float = 60.0,
    penalty_gpu_h: float = 0.0, cluster: str | None = None, max_restarts: int = 3,
) -> Job:  # fmt: skip
    shape = Shape(segments=segments, nodes_per_segment=nodes, may_share_domain=share)
    return Job(
        name=name, kind=kind, shape=shape, priority=priority, queue=queue, preemptible=preemptible, replicas=replicas,
        durability=Durability(restart_s=restart_s, max_restarts=max_restarts, retry_delay_s=0.0), cluster=cluster,
        eviction_penalty_gpu_h=penalty_gpu_h,
    )  # fmt: skip


class World:
    """Drives `decide` by hand. Started gangs run at once unless told otherwise.

    `cycle` and what is made of it answer the actions but for reservations, which are in `state.reserved`.
    """

    def __init__(
        self, *domains: DomainSpec, policy: Policy | None = None, queues: tuple[Queue, ...] = ()
    ) -> None:
        self.state = FleetState()
        self.plan = Plan(at_s=0.0)
        """The last one, whole."""
        self.state.fold(Configured(at_s=0.0, policy=policy or Policy(), queues=queues))
        self.state.fold(Delivered(at_s=0.0, domains=domains))

    def cycle(self, *events: Input) -> tuple[Action, ...]:
        for event in events:
            self.state.fold(event)
        plan = decide(self.state, self.state.now_s)
        self.state.fold(Decided(at_s=self.state.now_s, plan=plan))
        self.plan = plan
        return tuple(a for a in plan.actions if not isinstance(a, Reserve | Unreserve))

    def submit(self, *jobs: Job, at_s: float | None = None) -> tuple[Action, ...]:
        at = self.state.now_s if at_s is None else at_s
        actions = self.cycle(*(Submitted(at_s=at, job=j) for j in jobs))
        self.run(actions)
        return actions

    def run(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            if isinstance(action, Start):
                at_s = self.state.now_s
                self.state.fold(GangRunning(at_s=at_s, gang=action.gang, attempt=action.attempt))

    def tick(self, at_s: float) -> tuple[Action, ...]:
        return self.cycle(Ticked(at_s=at_s))

    def end(self, name: str, outcome: str = "finished") -> tuple[Action, ...]:
        attempt = self.gang(name).attempt
        assert outcome in ("finished", "left", "failed")
        actions = self.cycle(GangEnded(at_s=self.state.now_s, gang=name, attempt=attempt, outcome=outcome))  # type: ignore[arg-type]
        self.run(actions)
        return actions

    def fail(self, domain_name: str, *nodes: int) -> tuple[Action, ...]:
        return self.cycle(NodeFailed(at_s=self.state.now_s, domain=domain_name, nodes=nodes or None))

    def gang(self, name: str) -> Gang:
        return self.state.gangs[name]

    def where(self, name: str) -> list[str]:
        return [segment.domain for segment in self.gang(name).binding]
