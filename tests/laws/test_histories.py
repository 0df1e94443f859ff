"""Random histories of a fleet: whatever people, hardware and programs do, every plan is lawful."""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rackscale import events as ev
from rackscale.capacity.ledger import Ledger
from rackscale.control import replay, same
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.workload import Policy, Queue
from tests.laws import histories as some
from tests.laws.facts import Facts, Life
from tests.laws.histories import mostly, rarely, small, times
from tests.laws.judge import Judge

AT_ONCE = 40
"""Decisions at one instant after which the scheduler is taken to run in circles."""
ROUNDS = 60
"""Rounds in which everything that waits must get its turn once nothing is in its way."""
HARD = int(os.environ.get("LAWS_EXAMPLES", "0"))


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.facts = Facts(now_s=some.T0_S)
        self.state = FleetState()
        self.ledger = Ledger()
        self.events: list[ev.Event] = []
        self.names = 0
        self.now_s = some.T0_S
        self.batch: list[ev.Input] = []
        self.whole = True
        """Whether the last cycle came to its end: if a law broke in it, there is nothing to replay."""

    # -- the loop ----------------------------------------------------------------------------------------------------

    def happen(self, *events: ev.Input, together: bool = False) -> None:
        """`together`: with what happens next, in one cycle."""
        self.batch += events
        if together:
            return
        batch, self.batch = self.batch, []
        self.whole = False
        for event in batch or [ev.Ticked(at_s=self.now_s)]:
            self.take(event)
        self.decide()
        self.whole = True

    def take(self, event: ev.Event) -> None:
        self.events.append(event)
        self.ledger(event)
        self.state.fold(event)
        self.facts.fold(event)

    def decide(self) -> None:
        for _ in range(AT_ONCE):
            due_s = self.due_s()
            if due_s is None or due_s > self.state.now_s:
                return
            plan = decide(self.state, self.state.now_s)
            assert plan.at_s == self.facts.now_s
            decided = ev.Decided(at_s=plan.at_s, plan=plan)
            Judge(self.facts, plan).judge()
            self.take(decided)
        raise AssertionError("the scheduler decides again and again at one instant")

    def due_s(self) -> float | None:
        if hasattr(self.state, "due_s"):
            found: float | None = self.state.due_s()
            return found
        return self.state.now_s if self.state.dirty else self.state.wake_at_s

    def pick(self, number: int, wanted: Callable[[Life], bool]) -> Life | None:
        told = {e.gang for e in self.batch if isinstance(e, ev.GangEnded)}
        found = [life for life in self.facts.lives.values() if wanted(life) and life.name not in told]
        return found[number % len(found)] if found else None

    def spec(self, number: int) -> ev.DomainSpec:
        specs = list(self.facts.specs.values())
        return specs[number % len(specs)]

    # -- people ------------------------------------------------------------------------------------------------------

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        policy, queues = data.draw(self.policies()), data.draw(some.queues())
        self.happen(
            ev.Configured(at_s=self.now_s, policy=policy, queues=queues),
            ev.Delivered(at_s=self.now_s, domains=data.draw(some.fleets())),
        )

    def policies(self) -> st.SearchStrategy[Policy]:
        return some.policies

    def submissions(self, data: st.DataObject) -> list[ev.Submitted]:
        found = []
        for _ in range(data.draw(st.integers(1, 4))):
            booked = [None, None, None, *sorted(self.facts.bookings)]
            booking: str | None = data.draw(st.sampled_from(booked))
            found.append(
                ev.Submitted(at_s=self.now_s, job=data.draw(some.jobs(f"j{self.names}", booking=booking)))
            )
            self.names += 1
        return found

    @rule(data=st.data(), together=rarely)
    def submit(self, data: st.DataObject, together: bool) -> None:
        self.happen(*self.submissions(data), together=together)

    @rule(data=st.data(), seconds=times)
    def submit_and_run(self, data: st.DataObject, seconds: float) -> None:
        self.happen(*self.submissions(data))
        self.all_run(seconds, None)

    @rule(number=small, together=rarely)
    def cancel(self, number: int, together: bool) -> None:
        self.happen(ev.Cancelled(at_s=self.now_s, job=f"j{number % (self.names + 1)}"), together=together)

    @rule(data=st.data(), together=rarely)
    def configure(self, data: st.DataObject, together: bool) -> None:
        queues: tuple[Queue, ...] = data.draw(some.queues())
        policy = data.draw(self.policies())
        self.happen(ev.Configured(at_s=self.now_s, policy=policy, queues=queues), together=together)

    # -- the world ---------------------------------------------------------------------------------------------------

    @rule(seconds=times, saves_every_s=st.sampled_from([None, None, 100.0]))
    def all_run(self, seconds: float, saves_every_s: float | None) -> None:
        """Everything that was started does productive work, and time passes."""
        every_s = saves_every_s
        self.happen(
            *(
                ev.GangRunning(at_s=self.now_s, gang=life.name, attempt=life.attempt, saves_every_s=every_s)
                for life in self.facts.lives.values()
                if life.status == "starting"
            )
        )
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        """In steps, so that the scheduler is woken when it asked to be; those whose time has come end."""
        until_s = self.now_s + seconds
        for _ in range(12):
            due_s = self.due_s()
            soon = [] if due_s is None else [max(due_s, self.now_s)]
            self.now_s = min([until_s, *soon])
            self.happen()
            if self.now_s >= until_s:
                return
        self.now_s = until_s
        self.happen()

    @rule(number=small, together=rarely)
    def checkpoint(self, number: int, together: bool) -> None:
        life = self.pick(number, lambda life: bool(life.binding))
        if life is not None:
            event = ev.Checkpointed(at_s=self.now_s, gang=life.name, attempt=life.attempt, step=7)
            self.happen(event, together=together)

    @rule(number=small, finished=mostly, together=rarely)
    def end(self, number: int, finished: bool, together: bool) -> None:
        life = self.pick(number, lambda life: life.status in ("starting", "running"))
        if life is not None:
            self.happen(self.ended(life, "finished" if finished else "failed"), together=together)

    @rule(finished=rarely)
    def who_should_have_ended_does(self, finished: bool) -> None:
        over = [e for e in self.facts.lives.values() if e.status == "running" and e.end_s <= self.now_s]
        self.happen(*(self.ended(life, "finished" if not finished else "failed") for life in over))

    @rule(number=small, finished=rarely, saved=st.booleans(), together=rarely, all_of_them=st.booleans())
    def leave(self, number: int, finished: bool, saved: bool, together: bool, all_of_them: bool) -> None:
        while (life := self.pick(number, lambda life: life.status == "leaving")) is not None:
            self.happen(self.ended(life, "finished" if finished else "left", saved=saved), together=together)
            if not all_of_them:
                return

    def ended(self, life: Life, outcome: ev.Outcome, *, saved: bool = False) -> ev.GangEnded:
        return ev.GangEnded(
            at_s=self.now_s, gang=life.name, attempt=life.attempt, outcome=outcome, checkpointed=saved
        )

    @rule(
        event=st.sampled_from(
            [ev.NodeFailed, ev.NodeFailed, ev.NodeRepaired, ev.NodeRepaired, ev.Drained, ev.Undrained]
        ),
        number=small, whole=rarely, together=rarely,
    )  # fmt: skip
    def nodes(self, event: type[ev.NodeFailed], number: int, whole: bool, together: bool) -> None:
        spec = self.spec(number)
        nodes = None if whole else (number // 7 % spec.nodes,)
        self.happen(event(at_s=self.now_s, domain=spec.name, nodes=nodes), together=together)

    @rule(number=small)
    def news_of_an_attempt_that_is_over(self, number: int) -> None:
        life = self.pick(number, lambda life: life.attempt > 1)
        if life is None:
            return
        state, before = self.state.fork(), self.state.snapshot()
        at = {"at_s": state.now_s, "gang": life.name, "attempt": life.attempt - 1}
        state.fold(ev.GangRunning(**at))  # type: ignore[arg-type]
        state.fold(ev.Checkpointed(**at))  # type: ignore[arg-type]
        state.fold(ev.GangEnded(outcome="failed", **at))  # type: ignore[arg-type]
        assert state.snapshot() == before

    # -- what is planned ---------------------------------------------------------------------------------------------

    @rule(number=small, in_s=st.sampled_from([10.0, 500.0, 50_000.0]), whole=mostly)
    def drain_by(self, number: int, in_s: float, whole: bool) -> None:
        spec = self.spec(number)
        nodes = None if whole else (number // 7 % spec.nodes,)
        self.happen(ev.Drained(at_s=self.now_s, domain=spec.name, nodes=nodes, deadline_s=self.now_s + in_s))

    @rule(number=small, data=st.data())
    def plan_maintenance(self, number: int, data: st.DataObject) -> None:
        self.names += 1
        made = data.draw(some.maintenances(f"m{self.names}", self.spec(number), self.now_s))
        self.happen(ev.Planned(at_s=self.now_s, maintenance=made))

    @rule(number=small)
    def unplan(self, number: int) -> None:
        names = sorted(self.facts.maintenance)
        if names:
            self.happen(ev.Unplanned(at_s=self.now_s, maintenance=names[number % len(names)]))

    @rule(data=st.data())
    def book(self, data: st.DataObject) -> None:
        self.names += 1
        made = data.draw(some.bookings(f"b{self.names}", self.now_s))
        self.happen(ev.Booked(at_s=self.now_s, booking=made))

    @rule(number=small)
    def unbook(self, number: int) -> None:
        names = sorted(self.facts.bookings)
        if names:
            self.happen(ev.Unbooked(at_s=self.now_s, booking=names[number % len(names)]))

    @rule(in_s=st.sampled_from([-100.0, 100.0, 5000.0]), data=st.data())
    def announce(self, in_s: float, data: st.DataObject) -> None:
        """New domains, or those announced before: they are late, or early."""
        specs = data.draw(some.fleets(first=900))
        new = tuple(s for s in specs if s.name not in self.facts.specs or s.name in self.facts.absent)
        known = tuple(self.facts.specs.get(s.name, s) for s in new)
        if new:
            self.happen(ev.Announced(at_s=self.now_s, ready_s=self.now_s + in_s, domains=known))

    @rule()
    def deliver(self) -> None:
        domains = tuple(self.facts.specs[name] for name in self.facts.absent)
        if domains:
            self.happen(ev.Delivered(at_s=self.now_s, domains=domains))

    @rule(number=small, in_s=st.sampled_from([None, 20.0, 700.0, 30_000.0]))
    def extend(self, number: int, in_s: float | None) -> None:
        expires_s = None if in_s is None else self.now_s + in_s
        self.happen(ev.Extended(at_s=self.now_s, domains=(self.spec(number).name,), expires_s=expires_s))

    # -- the controller ----------------------------------------------------------------------------------------------

    @rule()
    def restart_from_a_snapshot(self) -> None:
        data = self.state.snapshot()
        self.state = FleetState.restore(data)
        assert self.state.snapshot() == data

    @invariant()
    def the_books_say_what_events_say(self) -> None:
        if self.batch or not self.facts.specs:
            return
        holders, claims = self.facts.holders(), {**self.facts.claims(), **self.facts.booked()}
        self.facts.holders(cpu=True)
        for d, spec in enumerate(self.state.domains):
            for books, taken in (
                (self.state.occupancy.held, holders),
                (self.state.occupancy.claimed, claims),
            ):
                assert books[d] == sum(1 << n for n in range(spec.nodes) if (spec.name, n) in taken)
        for gang in self.state.gangs.values():
            life = self.facts.lives[gang.name]
            assert (gang.status.value, gang.attempt) == (life.status, life.attempt)
            assert (gang.binding, gang.claim) == (life.binding, life.claim)
        assert self.state.gangs.keys() == self.facts.lives.keys()

    def teardown(self) -> None:
        if not self.whole:
            return
        if self.facts.specs:
            self.everything_gets_its_turn()
        self.ledger_is_whole()
        self.the_same_again()

    def everything_gets_its_turn(self) -> None:
        """All hardware is well, nothing is planned, nobody is limited: what could ever run runs and ends."""
        now_s, every = self.now_s, list(self.facts.specs)
        self.batch += [ev.Configured(at_s=now_s, policy=Policy(priorities=some.PRIORITIES, spares="none"))]
        self.batch += [ev.Unplanned(at_s=now_s, maintenance=name) for name in self.facts.maintenance]
        self.batch += [ev.Unbooked(at_s=now_s, booking=name) for name in self.facts.bookings]
        absent = tuple(map(self.facts.specs.__getitem__, self.facts.absent))
        self.batch += [ev.Delivered(at_s=now_s, domains=absent)]
        self.batch += [ev.Extended(at_s=now_s, domains=tuple(every), expires_s=None)]
        for name in every:
            self.batch += [ev.NodeRepaired(at_s=now_s, domain=name), ev.Undrained(at_s=now_s, domain=name)]
        self.happen()
        for _ in range(ROUNDS):
            going = [life for life in self.facts.lives.values() if life.binding]
            pausing = [life for life in self.facts.lives.values() if life.not_before_s > self.now_s]
            if not going and not pausing and not any(life.claim for life in self.facts.lives.values()):
                break
            self.happen(
                *(self.ended(life, "left" if life.status == "leaving" else "finished") for life in going)
            )
            self.now_s += 1000.0
            self.happen()
        else:
            raise AssertionError(f"still going after {ROUNDS} rounds: {going}")
        self.nobody_is_left()

    def nobody_is_left(self) -> None:
        for life in self.facts.lives.values():
            near = life.job.nearness != type(life.job.nearness)()
            assert near or life.job.booking or life.job.kind == "service" or life.cancelled, (
                f"{life.name} waits on an empty fleet"
            )

    def ledger_is_whole(self) -> None:
        """Every delivered GPU was in one state at every instant."""
        self.now_s = max(self.now_s, self.facts.now_s)
        assert sum(row.gpu_us for row in self.ledger.rows(self.now_s)) == self.ledger.delivered_gpu_us(
            self.now_s
        )

    def the_same_again(self) -> None:
        """The same events, through bytes, give the same decisions and the same state."""
        state = FleetState()
        for recorded, plan, _ in replay((ev.decode(ev.encode(e)) for e in self.events), state=state):
            assert same(recorded, plan)
        assert state.snapshot() == self.state.snapshot()


Histories.TestCase.settings = settings(max_examples=HARD or 100, stateful_step_count=50 if HARD else 40)
TestHistories = Histories.TestCase
