"""The one loop: events in, journal, decide, apply. The twin and every real executor are driven by this code.

It reads no clock: time arrives on events, so that the twin and reality differ only in the `Executor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from rackscale.commands import Reply, Request, answer, closes_cycle
from rackscale.events import Decided, Event, Input, Plan, Ticked, encode
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide

Decide = Callable[[FleetState, float], Plan]
"""What drives a fleet: the scheduler's `decide`, or another function of its signature to compare it with."""


class Executor(Protocol):
    """Runs gangs somewhere. Actions are idempotent by (gang, attempt): asking twice starts nothing twice."""

    def recover(self, state: FleetState) -> None:
        """Make reality match `state` after the controller was restarted.

        Starts what `state` says was started and does not exist, repeats requests to leave, and kills attempts that
        `state` does not know. Called once, before the first `poll`.
        """

    def apply(self, plan: Plan) -> None:
        """Act on a plan that is already in the journal. Must not block for longer than starting processes takes."""

    def poll(self, deadline_s: float | None, quiet_until_s: float | None = None) -> Sequence[Input]:
        """The next events, in time order.

        No decision comes before `quiet_until_s`, so that all events until then may be handed over together: a hint.
        `[Ticked]` when `deadline_s` passes first, or, from a real executor, within a fraction of a second when
        nothing happened. The twin answers with an empty list when nothing can happen any more.
        """

    def close(self) -> None:
        """Let go of resources; running gangs go on."""


class Log(Protocol):
    """Where cycles are written before anything acts."""

    def append(self, events: Sequence[Event], replies: Mapping[int, Reply]) -> None:
        """Make these events and the replies to requests durable, all or none. Returns when they are."""


class Inbox(Protocol):
    """Where people's commands wait."""

    def requests(self) -> Iterable[Request]:
        """Those not replied to yet, oldest first. What a cycle does not take is offered to the next one again."""


class Controller:
    """Drives one executor from one state.

    `listeners` are called with every event in order, after it is in the log and before a plan is acted on.
    """

    def __init__(
        self,
        state: FleetState,
        executor: Executor,
        log: Log | None = None,
        listeners: Iterable[Callable[[Event], None]] = (),
        inbox: Inbox | None = None,
        *,
        decide: Decide = decide,
    ) -> None:
        self.state, self.executor, self.log, self.inbox = state, executor, log, inbox
        self.decide = decide
        self.listeners = tuple(listeners)

    def step(self, deadline_s: float | None = None) -> Plan:
        """Wait for events until `deadline_s` or the state's own timer, whichever is first, and run one cycle."""
        state = self.state
        due_s = state.due_s()
        if due_s is not None and (deadline_s is None or due_s < deadline_s):
            deadline_s = max(due_s, state.now_s)
        quiet_until_s = state.decided_s + state.policy.decision_interval_s
        return self.cycle(self.executor.poll(deadline_s, quiet_until_s))

    def cycle(self, inputs: Sequence[Event]) -> Plan:
        """Fold, answer, decide, write, act. A cycle in which nothing is due leaves no trace of the time that passed."""
        events = self.fold(inputs)
        replies = self._answer(events)
        state = self.state
        due_s = state.due_s()
        if due_s is None or state.now_s < due_s:
            self._write(events, replies)
            return Plan(at_s=state.now_s, wake_at_s=state.wake_at_s)
        plan = self.decide(state, state.now_s)
        decided = Decided(at_s=state.now_s, plan=plan)
        events.append(decided)
        self._write(events, replies)
        state.fold(decided)
        if plan.actions:
            self.executor.apply(plan)
        return plan

    def fold(self, inputs: Sequence[Event]) -> list[Event]:
        """Take the inputs into the state; returns those that count.

        Bare ticks that make no decision due are dropped: they are not written, so that they must not be seen either.
        """
        state = self.state
        events: list[Event] = []
        for event in inputs:
            if type(event) is Ticked:
                due_s = state.due_s()
                if due_s is None or not state.now_s < due_s <= event.at_s:
                    continue
            state.fold(event)
            events.append(event)
        return events

    def _answer(self, events: list[Event]) -> dict[int, Reply]:
        """Take what people ask into the state and into `events`; each command is judged after those before it."""
        replies: dict[int, Reply] = {}
        for request in self.inbox.requests() if self.inbox else ():
            asked, replies[request.id] = answer(self.state, request.command, request.at_s)
            events += self.fold(asked)
            if closes_cycle(request.command):
                break
        return replies

    def _write(self, events: list[Event], replies: dict[int, Reply]) -> None:
        if self.log is not None and (events or replies):
            self.log.append(events, replies)
        for listener in self.listeners:
            for event in events:
                listener(event)


def replay(
    events: Iterable[Event], *, state: FleetState | None = None
) -> Iterable[tuple[Decided, Plan, FleetState]]:
    """Run recorded inputs through the control loop's own decisions.

    Yields (recorded, decided again, state before it is folded) for every recorded decision; the two plans are equal
    byte for byte (`encode`) when nothing in the scheduler changed. The recorded plan is folded, so that one
    difference does not hide the next.
    """
    state = state or FleetState()
    for event in events:
        if isinstance(event, Decided):
            yield event, decide(state, event.at_s), state
        state.fold(event)


def same(recorded: Decided, plan: Plan) -> bool:
    """Whether a decision made again is the recorded one, byte for byte."""
    return encode(Decided(at_s=recorded.at_s, plan=plan)) == encode(recorded)
