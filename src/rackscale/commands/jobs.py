"""Submitting and cancelling jobs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from rackscale.commands.vocabulary import Answer, Reply, Submit, count, done, joined, refused, unchanged
from rackscale.errors import UnknownNameError
from rackscale.events import (
    Action,
    Cancelled,
    Claim,
    Close,
    Event,
    Free,
    Hold,
    Move,
    Open,
    Preempt,
    Refuse,
    Restart,
    Start,
    Submitted,
    subject,
)
from rackscale.fleet.gangs import Ended
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.scheduler.fit import ever_fits
from rackscale.spec.times import span
from rackscale.spec.tree import Cost, never_runs
from rackscale.spec.windows import never_inside
from rackscale.workload import NAME_RULE, Booking, Job

DEFAULT_QUEUE = "default"
"""Exists without being configured."""


def preview(state: FleetState, events: Iterable[Event]) -> tuple[Action, ...]:
    """What would be decided next if these events came now. Costs a copy of the state."""
    fork = state.fork()
    for event in events:
        fork.fold(event)
    return decide(fork, fork.now_s).actions


def submit(state: FleetState, command: Submit, now_s: float) -> Answer:
    """Accept all jobs or none."""
    problems = [problem for job in command.jobs for problem in _problems(state, job, now_s)]
    names = Counter(job.name for job in command.jobs)
    problems += [f"{name}: submitted {n} times at once" for name, n in names.items() if n > 1]
    if problems:
        return refused(problems)
    new = [job for job in command.jobs if job.name not in state.jobs]
    if not new:
        return unchanged(f"{count(len(names), 'job')} already submitted")
    jobs = {job.name for job in new}
    events: list[Event] = [Submitted(at_s=now_s, job=job) for job in new]
    # A forecast's own time is another clock's.
    events += [replace(f, at_s=now_s) for f in command.forecasts if f.job in jobs]
    if command.expected is not None:
        expected, actual = concerning(command.expected, new), concerning(preview(state, events), new)
        if sorted(map(_essence, expected)) != sorted(map(_essence, actual)):
            message = "the state moved since the plan was made, and other actions would follow now"
            return (), Reply(outcome="drifted", message=message, expected=expected, actual=actual)
    same = f", {len(names) - len(new)} unchanged" if len(new) < len(names) else ""
    again = [f"{a.job}, {a.outcome} {span(max(0.0, now_s - a.at_s))} ago" for a in runs_again(state, new)]
    told = f" (again: {joined(again)})" if again else ""
    return done(tuple(events), f"submitted {count(len(new), 'job')}{same}{told}")


class Again(Struct, frozen=True, kw_only=True):
    """A job that has ended, and would run once more."""

    job: str
    outcome: str
    at_s: float
    """When its last gang ended."""


def runs_again(state: FleetState, jobs: Iterable[Job]) -> tuple[Again, ...]:
    """Which of these jobs have run before, as far as the state knows, and are not live."""
    last: dict[str, Ended] = {}
    for ended in state.ended.values():
        if ended.job not in last or ended.at_s >= last[ended.job].at_s:
            last[ended.job] = ended
    return tuple(
        Again(job=job.name, outcome=last[job.name].outcome, at_s=last[job.name].at_s)
        for job in jobs
        if job.name in last and job.name not in state.jobs
    )


def _problems(state: FleetState, job: Job, now_s: float) -> Iterable[str]:
    """Why the job can't be submitted now, one line each."""
    if not re.fullmatch(NAME_RULE, job.name):
        yield f"{job.name!r}: a name is letters, digits, '.', '_' or '-', and begins and ends with a letter or digit"
        return
    live = state.jobs.get(job.name)
    if live is not None:
        if any(gang.cancelled for name in live.gangs() if (gang := state.gangs.get(name))):
            yield f"{job.name}: is being cancelled; submit it again when it has ended"
        elif live != job:
            yield f"{job.name}: a different job of this name is live; cancel it first, or choose another name"
        return
    yield from (f"{job.name}: a gang called {g!r} is live" for g in job.gangs() if g in state.gangs)
    named = list(unknown_names(state, job))
    booking = state.machines.calendar.bookings.get(job.booking or "")
    if job.booking is not None and booking is None:
        error = UnknownNameError("booking", job.booking, state.machines.calendar.bookings)
        named.append(str(error) + (f"; {error.hint}" if error.hint else ""))
    yield from (f"{job.name}: {problem}" for problem in named)
    if not named:
        yield from (f"{job.name}: {problem}" for problem in _impossible(state, job, booking, now_s))


def unknown_names(state: FleetState, asked: Job | Booking) -> Iterator[str]:
    """What it names and nobody knows, one sentence each."""
    for kind, name, known in (
        ("queue", asked.queue, {*state.queues, DEFAULT_QUEUE}),
        ("priority class", asked.priority, {*state.policy.priorities}),
        ("cluster", asked.cluster, {spec.cluster for spec in state.domains}),
        ("system", asked.system, {spec.system for spec in state.domains}),
    ):
        if name is not None and name not in known:
            error = UnknownNameError(kind, name, sorted(known))
            yield str(error) + (f"; {error.hint}" if error.hint else "")


def _impossible(state: FleetState, job: Job, booking: Booking | None, now_s: float) -> Iterator[str]:
    """Why a job whose names are right could never run."""
    shape = job.shape
    if not ever_fits(state, job):
        more = f", nor any of its {count(len(job.offers), 'other shape')}" if job.offers else ""
        yield f"no cluster could ever hold {shape.segments} x {shape.nodes_held_per_segment} nodes{more}"
    elif booking is not None and (reason := never_inside(job, booking, _window_s(booking, now_s))):
        yield reason
    elif state.tree.limited or state.tree.guaranteed:
        reason = never_runs(job, state.queues, _costs(state, job))
        if reason is not None:
            yield f"can never start: {reason}"


def _window_s(booking: Booking, now_s: float) -> float:
    """Seconds of the booking that are still to come."""
    return booking.end_s - max(booking.start_s, now_s)


def _costs(state: FleetState, job: Job) -> list[Cost]:
    return [
        Cost.of(job, offer, gpus_per_node=group.gpus_per_node, usable=group.largest)
        for offer in job.choices
        for group in state.topology.groups(offer.system or job.system, job.cluster)
    ]


def concerning(actions: Sequence[Action], jobs: Sequence[Job]) -> tuple[Action, ...]:
    """The actions on these jobs and on their victims."""
    gangs = {gang for job in jobs for gang in job.gangs()}
    names = {job.name for job in jobs}
    return tuple(
        action
        for action in actions
        if not isinstance(action, Hold | Free | Close | Open)
        and (
            subject(action) in (names if isinstance(action, Refuse) else gangs)
            or action.reason.for_gang in gangs
        )
    )


def _essence(action: Action) -> tuple[str, str, tuple[tuple[str, tuple[int, ...]], ...], str]:
    """What must not change between plan and deed: costs and attempts may."""
    where = action.binding if isinstance(action, Start | Restart | Claim | Move) else ()
    return (
        type(action).__name__,
        subject(action),
        tuple((segment.domain, segment.nodes) for segment in where),
        (action.reason.for_gang or "") if isinstance(action, Preempt | Move) else "",
    )


def cancel(state: FleetState, name: str, now_s: float) -> Answer:
    """Stop a job for good."""
    job = state.jobs.get(name)
    if job is None:
        ended = [e.outcome for e in state.ended.values() if e.job == name]
        if not ended:
            raise UnknownNameError("job", name, state.jobs)
        return unchanged(f"{name} has ended ({', '.join(sorted(set(ended)))})")
    gangs = [state.gangs[gang] for gang in job.gangs() if gang in state.gangs]
    if all(gang.cancelled for gang in gangs):
        return unchanged(f"{name} is being cancelled")
    running = sum(bool(gang.binding) for gang in gangs)
    stops = f"; {count(running, 'gang')} told to stop" if running else ""
    return done((Cancelled(at_s=now_s, job=name),), f"cancelled {name}{stops}")
