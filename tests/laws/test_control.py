"""The control loop under anything that people, hardware and programs may do, in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rackscale.commands import (
    Cancel,
    Command,
    Configure,
    Deliver,
    Drain,
    Repair,
    Reply,
    Request,
    Submit,
    Undrain,
    answer,
    concerning,
    preview,
)
from rackscale.control import Controller, replay, same
from rackscale.events import (
    Cancelled,
    Checkpointed,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    Drained,
    Event,
    GangEnded,
    GangRunning,
    Input,
    NodeFailed,
    NodeRepaired,
    Outcome,
    Plan,
    Preempt,
    Progressed,
    Requeue,
    Restart,
    Start,
    Stop,
    Submitted,
    Ticked,
    Undrained,
    decode,
    encode,
)
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.state import FleetState
from rackscale.workload import Durability, Job, JobKind, Policy, Queue, Shape
from tests.laws.lawbook import Lawyer, check_state

PRIORITIES = {"production": 300, "high": 200, "normal": 100, "low": 0}
QUEUES = ("default", "research", "batch")
T0_S = 1_000_000.0

small = st.integers(0, 1000)
"""Chooses one of whatever there is."""
times = st.sampled_from([0.0, 1.0, 59.0, 61.0, 400.0, 400.0, 4000.0, 90_000.0])
mostly = st.sampled_from([True, True, True, False])
rarely = st.sampled_from([False, False, False, True])


@st.composite
def fleets(draw: st.DrawFn) -> tuple[DomainSpec, ...]:
    found = []
    for c in range(draw(st.integers(1, 2))):
        nodes, spares = draw(st.integers(3, 6)), draw(st.integers(0, 1))
        found += [
            DomainSpec(
                name=f"c{c}/us-{i:03}", system=f"s{c}", nodes=nodes, gpus_per_node=4, cluster=f"c{c}", spares=spares
            )
            for i in range(draw(st.integers(1, 3)))
        ]  # fmt: skip
    return tuple(found)


policies = st.builds(
    Policy,
    priorities=st.just(PRIORITIES),
    preemption=mostly,
    min_runtime_s=st.sampled_from([0.0, 60.0, 300.0]),
    max_evictions_per_day=st.sampled_from([4, 2, 1, 0]),
    preemption_retry_s=st.sampled_from([10.0, 60.0]),
)
queues = st.tuples(
    *(
        st.builds(
            Queue,
            name=st.just(name),
            rank=st.integers(0, 2),
            max_evictions_per_day=st.sampled_from([None, None, None, 2, 1, 0]),
        )
        for name in QUEUES
    )
)
shapes = st.builds(
    Shape,
    segments=st.sampled_from([1, 1, 1, 2, 3]),
    nodes_per_segment=st.sampled_from([1, 2, 3, 4]),
    may_share_domain=rarely,
)


@st.composite
def jobs(draw: st.DrawFn, name: str) -> Job:
    kind: JobKind = draw(st.sampled_from(["training", "training", "batch", "service"]))
    return Job(
        name=name,
        kind=kind,
        shape=draw(shapes),
        replicas=draw(st.integers(1, 3)) if kind == "service" else 1,
        queue=draw(st.sampled_from(QUEUES)),
        priority=draw(st.sampled_from(list(PRIORITIES))),
        preemptible=draw(mostly),
        cluster=draw(st.sampled_from([None, None, None, "c0", "c1"])),
        eviction_penalty_gpu_h=draw(st.sampled_from([0.0, 0.0, 1.0])),
        durability=Durability(
            restart_s=draw(st.sampled_from([0.0, 60.0, 100.0])),
            max_restarts=draw(st.integers(0, 2)),
            retry_delay_s=draw(st.sampled_from([0.0, 50.0])),
        ),
    )


class Memory:
    """An executor that only remembers. Attempts end when the test says so."""

    def __init__(self) -> None:
        self.alive: dict[str, int] = {}
        self.started: set[tuple[str, int]] = set()

    def recover(self, _state: FleetState) -> None:
        raise AssertionError("never asked here")

    def apply(self, plan: Plan) -> None:
        for action in plan.actions:
            match action:
                case Start() | Restart():
                    assert (action.gang, action.attempt) not in self.started, "started twice"
                    assert isinstance(action, Restart) == (action.gang in self.alive), "two attempts at once"
                    self.started.add((action.gang, action.attempt))
                    self.alive[action.gang] = action.attempt
                case Preempt() | Stop() | Requeue():
                    assert self.alive.get(action.gang) == action.attempt, "told an attempt that is not there"
                case _:
                    pass

    def poll(self, _deadline_s: float | None, _quiet_until_s: float | None = None) -> Sequence[Input]:
        raise AssertionError("the test brings the events")

    def close(self) -> None:
        pass


class Desk:
    """One command at a time: an inbox and a log in memory."""

    def __init__(self) -> None:
        self.command: Request | None = None
        self.reply: Reply | None = None

    def requests(self) -> list[Request]:
        return [self.command] if self.command else []

    def append(self, _events: Sequence[Event], replies: Mapping[int, Reply]) -> None:
        if replies:
            self.command, self.reply = None, replies[1]


class Fleet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.executor = Memory()
        self.lawyer = Lawyer()
        self.events: list[Event] = []
        self.names = 0
        self.now_s = T0_S
        self.batch: list[Event] = []
        self.whole = True
        """Whether the last cycle came to its end: if a law broke in it, there is nothing to replay."""
        self.desk = Desk()
        self.controller = Controller(
            FleetState(), self.executor, log=self.desk, listeners=(self.hear,), inbox=self.desk
        )

    @property
    def state(self) -> FleetState:
        return self.controller.state

    def hear(self, event: Event) -> None:
        self.events.append(event)
        self.lawyer.hear(self.state, event)

    def happen(self, *events: Event, together: bool = False) -> None:
        """`together`: with what happens next, in one cycle."""
        self.batch += events
        if together:
            return
        batch, self.batch = self.batch, []
        for event in batch:
            if isinstance(event, GangEnded) and self.executor.alive.get(event.gang) == event.attempt:
                del self.executor.alive[event.gang]
        self.whole = False
        self.controller.cycle(batch)
        self.whole = True

    def pick(self, number: int, wanted: Callable[[Gang], bool]) -> Gang | None:
        told = {e.gang for e in self.batch if isinstance(e, GangEnded)}
        found = [gang for gang in self.state.gangs.values() if wanted(gang) and gang.name not in told]
        return found[number % len(found)] if found else None

    # -- people ------------------------------------------------------------------------------------------------------

    @initialize(specs=fleets(), policy=policies, some=queues)
    def begin(self, specs: tuple[DomainSpec, ...], policy: Policy, some: tuple[Queue, ...]) -> None:
        self.happen(
            Configured(at_s=self.now_s, policy=policy, queues=some), Delivered(at_s=self.now_s, domains=specs)
        )

    def new_jobs(self, data: st.DataObject) -> list[Submitted]:
        names = [f"j{self.names + i}" for i in range(data.draw(st.integers(1, 4)))]
        self.names += len(names)
        return [Submitted(at_s=self.now_s, job=data.draw(jobs(name))) for name in names]

    @rule(data=st.data(), together=rarely)
    def submit(self, data: st.DataObject, together: bool) -> None:
        self.happen(*self.new_jobs(data), together=together)

    @rule(data=st.data(), seconds=times)
    def submit_and_run(self, data: st.DataObject, seconds: float) -> None:
        self.happen(*self.new_jobs(data))
        self.all_run(seconds)

    @rule(data=st.data(), number=small)
    def submit_again(self, data: st.DataObject, number: int) -> None:
        """A live name, which folds to nothing, or one that has ended."""
        if self.names:
            self.happen(Submitted(at_s=self.now_s, job=data.draw(jobs(f"j{number % self.names}"))))

    @rule(data=st.data())
    def what_was_previewed_is_decided(self, data: st.DataObject) -> None:
        self.happen()  # what waits to happen would come in between
        while self.state.wake_at_s is not None and self.state.wake_at_s <= self.now_s:
            self.happen()  # and so would a decision that is due by now, such as a broken claim made again
        new = tuple(event.job for event in self.new_jobs(data))
        events, would = answer(self.state, Submit(jobs=new), self.now_s)
        expected = preview(self.state, events)
        reply = self.ask(Submit(jobs=new, expected=expected))
        assert reply == would
        if reply.outcome == "done":
            decided = self.events[-1]
            assert isinstance(decided, Decided)
            assert concerning(decided.plan.actions, new) == concerning(expected, new)

    @rule(
        data=st.data(),
        number=small,
        what=st.sampled_from([Cancel, Drain, Undrain, Repair, Configure, Deliver]),
    )
    def command(self, data: st.DataObject, number: int, what: type[Command]) -> None:
        """Whatever is answered with `done` folds, whatever is not leaves no trace."""
        spec = self.state.domains[number % len(self.state.domains)]
        if what is Cancel:
            reply = self.ask(Cancel(job=f"j{number % (self.names + 1)}"))
        elif what is Configure:
            reply = self.ask(Configure(policy=data.draw(policies), queues=data.draw(queues)))
        elif what is Deliver:
            new = msgspec.structs.replace(spec, name=f"{spec.cluster}/us-{900 + number % 4}")
            reply = self.ask(Deliver(domains=(spec, new)))
        else:
            target = data.draw(
                st.sampled_from([spec.name, f"{spec.name}/n{number % 7:02}", "us-000/n01", "us-777"])
            )
            reply = self.ask(what(target=target))  # type: ignore[call-arg]
        assert reply.outcome in ("done", "unchanged", "refused")

    def ask(self, command: Command) -> Reply:
        """Through the controller's inbox, in a cycle of its own."""
        self.happen()
        before = len(self.events)
        self.desk.command = Request(id=1, at_s=self.now_s, command=command)
        self.happen()
        reply = self.desk.reply
        assert reply is not None
        people = Submitted | Cancelled | Drained | Undrained | NodeRepaired | Configured | Delivered
        told = [event for event in self.events[before:] if isinstance(event, people)]
        assert bool(told) == (reply.outcome == "done")
        return reply

    # -- the world ---------------------------------------------------------------------------------------------------

    @rule(seconds=times)
    def all_run(self, seconds: float) -> None:
        """Everything that was started does productive work, and time passes."""
        starting = [gang for gang in self.state.gangs.values() if gang.status is Status.STARTING]
        self.happen(
            *(GangRunning(at_s=self.now_s, gang=g.name, attempt=g.attempt, step=g.step) for g in starting)
        )
        self.now_s += seconds
        self.happen(Ticked(at_s=self.now_s))

    @rule(number=small, together=rarely)
    def checkpoint(self, number: int, together: bool) -> None:
        gang = self.pick(number, lambda g: bool(g.binding))
        if gang is not None:
            at = {"at_s": self.now_s, "gang": gang.name, "attempt": gang.attempt}
            self.happen(Progressed(step=7, **at), Checkpointed(step=7, **at), together=together)  # type: ignore[arg-type]

    @rule(number=small, finished=st.booleans(), together=rarely)
    def end(self, number: int, finished: bool, together: bool) -> None:
        gang = self.pick(number, lambda g: g.status in (Status.STARTING, Status.RUNNING))
        if gang is not None:
            self.happen(self.ended(gang, "finished" if finished else "failed"), together=together)

    @rule(number=small, finished=rarely, together=rarely, all_of_them=st.booleans())
    def leave(self, number: int, finished: bool, together: bool, all_of_them: bool) -> None:
        outcome: Outcome = "finished" if finished else "left"
        while (gang := self.pick(number, lambda g: g.status is Status.LEAVING)) is not None:
            self.happen(self.ended(gang, outcome), together=together)
            if not all_of_them:
                return

    def ended(self, gang: Gang, outcome: Outcome) -> GangEnded:
        return GangEnded(at_s=self.now_s, gang=gang.name, attempt=gang.attempt, outcome=outcome)

    @rule(
        event=st.sampled_from([NodeFailed, NodeFailed, NodeRepaired, NodeRepaired, Drained, Undrained]),
        number=small, whole=rarely, together=rarely,
    )  # fmt: skip
    def nodes(
        self,
        event: type[NodeFailed | NodeRepaired | Drained | Undrained],
        number: int,
        whole: bool,
        together: bool,
    ) -> None:
        spec = self.state.domains[number % len(self.state.domains)]
        some = None if whole else (number // 7 % spec.nodes,)
        self.happen(event(at_s=self.now_s, domain=spec.name, nodes=some), together=together)

    @rule(number=small)
    def news_of_an_attempt_that_is_over(self, number: int) -> None:
        gang = self.pick(number, lambda g: g.attempt > 1)
        if gang is None:
            return
        state, before = self.state.fork(), self.state.snapshot()
        at = {"at_s": state.now_s, "gang": gang.name, "attempt": gang.attempt - 1}
        state.fold(GangRunning(**at))  # type: ignore[arg-type]
        state.fold(Checkpointed(**at))  # type: ignore[arg-type]
        state.fold(GangEnded(outcome="failed", **at))  # type: ignore[arg-type]
        assert state.snapshot() == before

    # -- the controller ----------------------------------------------------------------------------------------------

    @rule()
    def restart_from_a_snapshot(self) -> None:
        self.controller.state = FleetState.restore(self.state.snapshot())

    @invariant()
    def the_laws_hold(self) -> None:
        check_state(self.state, self.lawyer)

    def teardown(self) -> None:
        """The same events, through bytes, give the same decisions and the same state."""
        if not self.whole:
            return
        state = FleetState()
        for recorded, plan, _ in replay((decode(encode(e)) for e in self.events), state=state):
            assert same(recorded, plan)
        assert state.snapshot() == self.state.snapshot()


Fleet.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestFleet = Fleet.TestCase
