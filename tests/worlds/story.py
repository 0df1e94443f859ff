"""A world: a fleet, and what is done to it when. It is told on a stage, and what was decided comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rackscale.commands import Command, answer
from rackscale.control import Controller
from rackscale.events import (
    Action,
    Binding,
    Claim,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    Event,
    GangEnded,
    Move,
    Reserve,
    Restart,
    Start,
    Unreserve,
    subject,
)
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.workload import Durability, Job, JobKind, Offer, Policy, Program, Shape
from tests.worlds.stages import Stage

WORK = Path(__file__).with_name("work.py")
ENDLESS_S = 3600.0
LOOK_S = 0.1
Condition = Callable[[FleetState, float], bool]
"""Of the state and the present: checkpoints that no event reports come as time passes."""


class Kill(NamedTuple):
    domain: str
    node: int


class Crash(NamedTuple):
    gang: str


class Moment(NamedTuple):
    """When this is true of the state, do that."""

    when: Condition
    do: Command | Kill | Crash


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    name: str
    fleet: tuple[DomainSpec, ...]
    policy: Policy
    moments: tuple[Moment, ...]
    decisions: tuple[str, ...]
    """Every action, in order: the same on all stages."""
    outcomes: dict[str, str]
    """Gang -> how it ended, after how many attempts."""


def fleet(domains: int, nodes: int, *, spares: int = 0) -> tuple[DomainSpec, ...]:
    return tuple(
        DomainSpec(
            name=f"w/us-{i:03}", system="local", nodes=nodes, gpus_per_node=1, cluster="w", spares=spares
        )
        for i in range(domains)
    )


def job(
    name: str, nodes: int = 1, segments: int = 1, *, work_s: float = 1.0, hold: int = 1, leave_s: float = 0.0,
    kind: JobKind = "training", replicas: int = 1, priority: str = "normal", penalty_gpu_h: float = 0.0,
    max_restarts: int = 0, fewer: tuple[int, ...] = (),
) -> Job:  # fmt: skip
    """`work_s` of work in all, kept every 0.2 s; `hold`: a real one does not finish before that attempt.

    `fewer`: numbers of segments that it could go on with too, at as much less throughput.
    """
    serve = " --serve" if kind == "service" else ""
    durability = Durability(
        checkpoint_interval_s=0.2,
        checkpoint_s=leave_s,
        grace_s=20.0,
        restart_s=0.0,
        max_restarts=max_restarts,
        retry_delay_s=0.3,
    )
    return Job(
        name=name, kind=kind, shape=Shape(segments=segments, nodes_per_segment=nodes), replicas=replicas,
        priority=priority, eviction_penalty_gpu_h=penalty_gpu_h, durability=durability,
        duration_s=None if kind == "service" else work_s, elastic=bool(fewer),
        offers=tuple(
            Offer(shape=Shape(segments=count, nodes_per_segment=nodes), throughput=count / segments) for count in fewer
        ),
        program=Program(run=f"exec python {WORK} {work_s} --hold {hold} --leave {leave_s}{serve}"),
    )  # fmt: skip


# -- conditions ------------------------------------------------------------------------------------------------------


def at_once(_: FleetState, _now_s: float) -> bool:
    return True


def runs(*gangs: str, attempt: int = 1) -> Condition:
    def holds(state: FleetState, _now_s: float) -> bool:
        found = [state.gangs.get(name) for name in gangs]
        return all(g is not None and g.status is Status.RUNNING and g.attempt == attempt for g in found)

    return holds


def saved(*gangs: str, attempt: int = 1) -> Condition:
    """They run, and this attempt has checkpointed."""

    def holds(state: FleetState, now_s: float) -> bool:
        found = [state.gangs[name] for name in gangs if name in state.gangs]
        return runs(*gangs, attempt=attempt)(state, now_s) and all(
            now_s - gang.at_risk_s(now_s) > (gang.running_s or 0.0) for gang in found
        )

    return holds


def waits(gang: str) -> Condition:
    return lambda state, _: gang in state.gangs and state.gangs[gang].status is Status.WAITING


def leaves(gang: str) -> Condition:
    return lambda state, _: gang in state.gangs and state.gangs[gang].status is Status.LEAVING


def ended(*gangs: str) -> Condition:
    return lambda state, _: all(name in state.ended for name in gangs)


def both(*conditions: Condition) -> Condition:
    return lambda state, now_s: all(condition(state, now_s) for condition in conditions)


# -- telling ---------------------------------------------------------------------------------------------------------


class Telling:
    """One world on one stage."""

    def __init__(self, world: World, stage: Stage) -> None:
        self.world, self.stage = world, stage
        self.events: list[Event] = []
        self.state = FleetState()
        stage.executor.recover(self.state)
        self.controller = Controller(self.state, stage.executor, listeners=[self.events.append])

    def tell(self) -> None:
        """From an empty fleet until every gang has ended."""
        now_s = self.stage.now_s()
        self.stage.tell(self.controller, Configured(at_s=now_s, policy=self.world.policy))
        self.stage.tell(self.controller, Delivered(at_s=now_s, domains=self.world.fleet))
        for moment in self.world.moments:
            self._until(moment.when, moment)
            self._do(moment.do)
        self._until(lambda state, _: not state.gangs, "the end")

    def _until(self, holds: Condition, what: object) -> None:
        end_s = self.stage.now_s() + self.stage.patience_s
        while not holds(self.state, self.stage.now_s()):
            now_s = self.stage.now_s()
            assert now_s < end_s, f"{what} did not come; so far: {self.decisions}, {self.events[-20:]}"
            self.controller.step(now_s + LOOK_S)
            check_laws(self.state)

    def _do(self, act: Command | Kill | Crash) -> None:
        match act:
            case Kill(domain, node):
                self.stage.kill(self.controller, domain, node)
            case Crash(gang):
                self.stage.crash(self.controller, gang)
            case _:
                events, reply = answer(self.state, act, self.stage.now_s())
                assert reply.check().outcome == "done", reply
                for event in events:
                    self.stage.tell(self.controller, event)  # type: ignore[arg-type]  # people's events are inputs

    @property
    def decisions(self) -> tuple[str, ...]:
        plans = [event.plan for event in self.events if isinstance(event, Decided)]
        actions = (action for plan in plans for action in plan.actions)
        # When what is reserved is expected depends on the clock; who starts where does not.
        return tuple(told(action) for action in actions if not isinstance(action, Reserve | Unreserve))

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: f"{end.outcome} after {end.attempts}" for name, end in self.state.ended.items()}

    def left(self) -> dict[tuple[str, int], GangEnded]:
        """How attempts that were told to leave ended."""
        ends = (event for event in self.events if isinstance(event, GangEnded) and event.outcome == "left")
        return {(end.gang, end.attempt): end for end in ends}


def check_laws(state: FleetState) -> None:
    """A gang is whole, a segment lies inside one domain, and no node is held twice."""
    taken = set[tuple[str, int]]()
    for gang in state.gangs.values():
        choices = state.jobs[gang.job].choices
        for binding, choice in ((gang.binding, gang.choice), (gang.claim, gang.claim_choice)):
            if not binding:
                continue
            shape = choices[choice].shape
            assert [len(set(s.nodes)) for s in binding] == [shape.nodes_per_segment] * shape.segments
            assert len({s.domain for s in binding}) == shape.segments
        for node in ((s.domain, node) for s in gang.binding for node in s.nodes):
            assert node not in taken, f"{node} is held twice"
            taken.add(node)


def told(action: Action) -> str:
    """An action without its numbers."""
    words = [type(action).__name__.lower(), subject(action)]
    if isinstance(action, Start | Restart | Claim | Move):
        words += ["on", _places(action.binding)]
    if action.reason.for_gang is not None:
        words += ["for", action.reason.for_gang]
    return " ".join([*words, f"({action.reason.code})"])


def _places(binding: Binding) -> str:
    return " ".join(f"{s.domain.rsplit('/', 1)[-1]}:{','.join(map(str, s.nodes))}" for s in binding)
