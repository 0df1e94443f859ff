"""The executor in simulated time: it answers `poll` from an agenda of future happenings, and jumps to the next.

It decides nothing. What it has instead of machines is a model of the world: how long work really takes (which the
scheduler never sees), when hardware fails, what starts, checkpoints and departures take. Equal seeds and equal inputs
give the same events, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop
from math import inf
from typing import Any, Generic, TypeVar

from rackscale.events import (
    Announced,
    Cancelled,
    Checkpointed,
    Delivered,
    Extended,
    GangEnded,
    GangRunning,
    Input,
    Move,
    NodeFailed,
    NodeRepaired,
    Plan,
    Preempt,
    Refuse,
    Requeue,
    Restart,
    Start,
    Stop,
    Submitted,
    Ticked,
)
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.spec import Failures, Submission
from rackscale.twin.agenda import Agenda
from rackscale.twin.hardware import Hardware
from rackscale.twin.runs import Run
from rackscale.workload import Job

QUIET = frozenset({Checkpointed, GangRunning})
"""Events after which no decision is due: any number of them may share a cycle with the next that asks for one."""
BATCH = 1024
"""Events handed over at once, but for those of the same time as the last of them."""


class TwinExecutor:
    """Gangs, hardware and people in simulated time.

    `submissions` and `inputs` (deliveries, drains, cancellations, scripted failures) arrive when they say; both must
    be in time order and are read as time passes, so they may be endless. Without `failures` nothing fails by itself.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        submissions: Iterable[Submission] = (),
        inputs: Iterable[Input] = (),
        failures: Failures | None = None,
        start_s: float = 0.0,
        batch: int = BATCH,
    ) -> None:
        self.now_s = start_s
        """Simulated time: of the last events handed over, or the deadline that passed without any."""
        self.done = False
        """Whether nothing can happen any more."""
        self._batch = batch
        self._agenda = Agenda()
        self._hardware = Hardware(self._agenda, failures, seed)
        self._runs: dict[str, Run] = {}
        """Gang -> its run; gangs that have ended for good are gone."""
        self._on: dict[str, dict[str, None]] = {}
        """Domain -> gangs that hold nodes of it."""
        self._react: dict[type, Callable[[Any], object]] = {
            GangEnded: self._ended, Submitted: self._submitted, NodeFailed: self._node_failed,
            Announced: self._hardware.announced,
            Cancelled: self._cancelled, NodeRepaired: self._hardware.repaired,
            Delivered: self._hardware.delivered, Extended: self._hardware.extended,
        }  # fmt: skip
        """What events do to the world before anything is decided about them."""
        _Arrivals(self._agenda, inputs, lambda event: event, rank=2)
        _Arrivals(self._agenda, submissions, self._submit, rank=1)

    # -- the seam ----------------------------------------------------------------------------------------------------

    def recover(self, state: FleetState) -> None:
        """Take over a live fleet: what runs goes on, with what is known or estimated of the work that remains.

        Bookings, maintenance and reservations are the scheduler's, and live in the state. What is announced arrives
        when it is expected.
        """
        self.now_s = max(self.now_s, state.now_s)
        ready_s = state.machines.health.ready_s
        there = [(d, spec) for d, spec in enumerate(state.domains) if d not in ready_s]
        self._hardware.deliver(self.now_s, [spec for _, spec in there])
        for d, at_s in ready_s.items():
            self._hardware.expect(max(self.now_s, at_s), (state.domains[d],))
        for d, spec in there:
            down = tuple(node for node in range(spec.nodes) if state.failed[d] >> node & 1)
            if down:
                self._hardware.found_down(self.now_s, spec, down)
        for job in state.jobs.values():
            self._admit(job, job.duration_s)
        for gang in state.gangs.values():
            run = self._runs[gang.name]
            run.resume(gang, self.now_s)
            self._place(run)

    def poll(self, deadline_s: float | None, quiet_until_s: float | None = None) -> Sequence[Input]:
        """The next event that asks for a decision, all that happen at its time, and those before it.

        Events before `quiet_until_s` don't end the wait: what they ask for is decided then.
        """
        heap, react = self._agenda.heap, self._react
        last_s = inf if deadline_s is None else deadline_s
        quiet_s = -inf if quiet_until_s is None else quiet_until_s
        events: list[Input] = []
        full = False
        # What happens at one time is never torn apart.
        while heap and heap[0][0] <= last_s:
            at_s, ticket, happening = heappop(heap)
            event = happening.happen(at_s, ticket)
            if event is None:
                continue
            events.append(event)
            kind = type(event)
            if kind not in QUIET:
                if at_s >= quiet_s:
                    last_s = at_s
                elif quiet_s < last_s:
                    last_s = quiet_s
                if kind in react:
                    react[kind](event)
            if len(events) >= self._batch and not full:
                last_s, full = at_s, True
        if last_s < inf and not full and not (events and events[-1].at_s == last_s):
            events.append(Ticked(at_s=last_s))
        if events:
            self.now_s = max(self.now_s, events[-1].at_s)
        self.done = not events
        return events

    def apply(self, plan: Plan) -> None:
        at_s = plan.at_s
        for action in plan.actions:
            match action:
                case Start() | Restart():
                    run = self._runs[action.gang]
                    if action.attempt > run.attempt:
                        self._leave_nodes(run)
                        run.start(at_s, action.attempt, action.binding, action.choice)
                        self._place(run)
                case Preempt() | Move() | Stop():
                    run = self._runs[action.gang]
                    if run.status is not Status.LEAVING and run.attempt == action.attempt:
                        run.leave(at_s, action.grace_s)
                case Requeue():
                    run = self._runs[action.gang]
                    if run.status is Status.BROKEN and run.attempt == action.attempt:
                        run.kill(at_s)
                case Refuse():
                    self._drop(action.job)

    def close(self) -> None:
        """Nothing to let go of."""

    # -- the world ---------------------------------------------------------------------------------------------------

    def _submit(self, submission: Submission) -> Submitted:
        """A job arrives; how long it takes is known here and nowhere else."""
        self._admit(submission.job, submission.duration_s)
        return Submitted(at_s=submission.at_s, job=submission.job)

    def _submitted(self, event: Submitted) -> None:
        """A job that the twin does not know takes as long as its owner expects."""
        if event.job.name not in self._runs:
            self._admit(event.job, event.job.duration_s)

    def _ended(self, event: GangEnded) -> None:
        run = self._runs[event.gang]
        self._leave_nodes(run)
        if run.cancelled or event.outcome == "finished":
            del self._runs[run.gang]

    def _node_failed(self, event: NodeFailed) -> None:
        """Gangs that work on the nodes break; what lies there as a gang's own spare does not matter to it."""
        nodes = None if event.nodes is None else set(event.nodes)
        for gang in tuple(self._on.get(event.domain, ())):
            run = self._runs[gang]
            if nodes is None or any(
                segment.domain == event.domain and not nodes.isdisjoint(segment.nodes)
                for segment in run.binding
            ):
                run.lose_node(event.at_s)

    def _cancelled(self, event: Cancelled) -> None:
        self._drop(event.job)
        for run in self._runs.values():
            run.cancelled |= run.job.name == event.job

    def _admit(self, job: Job, true_s: float | None) -> None:
        for gang in job.gangs():
            if gang not in self._runs:
                self._runs[gang] = Run(self._agenda, gang=gang, job=job, true_s=true_s)

    def _drop(self, job: str) -> None:
        """Forget the gangs of a job that wait: they will not start again."""
        waiting = [n for n, run in self._runs.items() if run.job.name == job and run.status is Status.WAITING]
        for name in waiting:
            del self._runs[name]

    def _place(self, run: Run) -> None:
        for segment in run.binding:
            on = self._on.get(segment.domain)
            if on is None:
                on = self._on[segment.domain] = {}
            on[run.gang] = None

    def _leave_nodes(self, run: Run) -> None:
        for segment in run.binding:
            self._on[segment.domain].pop(run.gang, None)
        run.binding = ()


T = TypeVar("T", bound=Input | Submission)


class _Arrivals(Generic[T]):
    """What people do, one thing at a time: the next one is read when the one before has happened."""

    __slots__ = ("_agenda", "_as_input", "_items", "_next", "_rank")

    def __init__(
        self, agenda: Agenda, items: Iterable[T], as_input: Callable[[T], Input], *, rank: int
    ) -> None:
        self._agenda, self._items, self._as_input, self._rank = agenda, iter(items), as_input, rank
        self._next: T | None = None
        self._read()

    def _read(self) -> None:
        self._next = next(self._items, None)
        if self._next is not None:
            self._agenda.put_before(self._next.at_s, self, rank=self._rank)

    def happen(self, at_s: float, ticket: int) -> Input | None:  # noqa: ARG002 - arrivals are never taken back
        assert self._next is not None
        event = self._as_input(self._next)
        self._read()
        return event
