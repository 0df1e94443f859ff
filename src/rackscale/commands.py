"""What people can ask of a controller, what it answers, and what would happen.

`answer` is the gate: what passes it folds without complaint, what does not is refused with the reason and changes
nothing. It is pure, so that a plan asks the very same questions without a controller.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from rackscale.errors import DriftError, RackscaleError, UnknownNameError
from rackscale.events import (
    Action,
    Cancelled,
    Claim,
    Configured,
    Delivered,
    DomainSpec,
    Drained,
    Event,
    Forecast,
    Hold,
    Move,
    NodeRepaired,
    Preempt,
    Refuse,
    Restart,
    Start,
    Submitted,
    Undrained,
    subject,
)
from rackscale.fleet.occupancy import mask_of
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.scheduler.fit import ever_fits
from rackscale.workload import NAME_RULE, Job, Policy, Queue

DEFAULT_QUEUE = "default"
"""Exists without being configured."""


class Submit(Struct, frozen=True, kw_only=True, tag=True):
    """Accept all of these jobs or none. Those that are live with the very same specification stay as they are."""

    jobs: tuple[Job, ...]
    expected: tuple[Action, ...] | None = None
    """What `preview` said when the plan was made: if it says something else now, nothing is submitted."""
    forecasts: tuple[Forecast, ...] = ()
    """What the plan promised, kept for `audit`."""


class Cancel(Struct, frozen=True, kw_only=True, tag=True):
    job: str


class Drain(Struct, frozen=True, kw_only=True, tag=True):
    target: str
    """A domain (`use1-a/us-007`, or `us-007` where only one cluster has it) or a node (`use1-a/us-007/n03`)."""


class Undrain(Struct, frozen=True, kw_only=True, tag=True):
    target: str


class Repair(Struct, frozen=True, kw_only=True, tag=True):
    """Failed nodes are usable again."""

    target: str


class Configure(Struct, frozen=True, kw_only=True, tag=True):
    """The policy and all queues from now on."""

    policy: Policy
    queues: tuple[Queue, ...] = ()


class Deliver(Struct, frozen=True, kw_only=True, tag=True):
    """These domains are part of the fleet; those that are already stay as they are."""

    domains: tuple[DomainSpec, ...]


class Shutdown(Struct, frozen=True, kw_only=True, tag=True):
    """End the controller. Commands that come later wait for the next one."""

    stop_gangs: bool = False
    """Cancel every job first and wait until all gangs have ended; otherwise they go on without a controller."""


Command = Submit | Cancel | Drain | Undrain | Repair | Configure | Deliver | Shutdown


class Reply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one command."""

    outcome: Literal["done", "unchanged", "refused", "drifted"]
    """`unchanged`: what was asked for is so already. `refused` and `drifted`: nothing was done."""
    message: str
    """A sentence for people; one line per problem."""
    hint: str | None = None
    expected: tuple[Action, ...] = ()
    """Where drifted: the actions of the plan, and those that would follow now."""
    actual: tuple[Action, ...] = ()

    def check(self) -> Reply:
        """This reply. Raises DriftError or RackscaleError if nothing was done."""
        if self.outcome == "drifted":
            raise DriftError(self.message, hint=self.hint)
        if self.outcome == "refused":
            raise RackscaleError(self.message, hint=self.hint)
        return self


class Request(Struct, frozen=True, kw_only=True):
    """A command that waits for its answer."""

    id: int
    at_s: float
    """When the controller took it up, seconds since the epoch."""
    command: Command


Answer = tuple[tuple[Event, ...], Reply]
"""The events that a command becomes, and its reply."""


def closes_cycle(command: Command) -> bool:
    """Whether a decision must follow before the next command, so that what was expected is what is decided."""
    return isinstance(command, Submit) and command.expected is not None


def answer(state: FleetState, command: Command, now_s: float) -> Answer:
    """What the command means in this state. Pure: folding the events is up to the caller."""
    try:
        match command:
            case Submit():
                return _submit(state, command, now_s)
            case Cancel():
                return _cancel(state, command.job, now_s)
            case Drain() | Undrain() | Repair():
                return _nodes(state, command, now_s)
            case Configure():
                return _configure(state, command, now_s)
            case Deliver():
                return _deliver(state, command, now_s)
            case Shutdown():
                return _shutdown(state, command, now_s)
    except RackscaleError as error:
        return (), Reply(outcome="refused", message=str(error), hint=error.hint)
    except Exception as error:  # noqa: BLE001 - a command that trips over a mistake of ours must not end the controller
        traceback.print_exc()
        return (), Reply(
            outcome="refused", message=f"an unexpected error: {error!r}", hint="see controller.log"
        )


def preview(state: FleetState, events: Iterable[Event]) -> tuple[Action, ...]:
    """What would be decided next if these events came now. Costs a copy of the state."""
    fork = state.fork()
    for event in events:
        fork.fold(event)
    return decide(fork, fork.now_s).actions


# -- jobs ------------------------------------------------------------------------------------------------------------


def _submit(state: FleetState, command: Submit, now_s: float) -> Answer:
    problems = [problem for job in command.jobs for problem in _problems(state, job)]
    names = Counter(job.name for job in command.jobs)
    problems += [f"{name}: submitted {n} times at once" for name, n in names.items() if n > 1]
    if problems:
        return (), Reply(outcome="refused", message="\n".join(problems))
    new = [job for job in command.jobs if job.name not in state.jobs]
    if not new:
        return (), Reply(outcome="unchanged", message=f"{_count(len(names), 'job')} already submitted")
    jobs = {job.name for job in new}
    events: list[Event] = [Submitted(at_s=now_s, job=job) for job in new]
    # A forecast's own time is another clock's.
    events += [msgspec.structs.replace(f, at_s=now_s) for f in command.forecasts if f.job in jobs]
    if command.expected is not None:
        expected, actual = concerning(command.expected, new), concerning(preview(state, events), new)
        if sorted(map(_essence, expected)) != sorted(map(_essence, actual)):
            message = "the state moved since the plan was made, and other actions would follow now"
            return (), Reply(outcome="drifted", message=message, expected=expected, actual=actual)
    same = f", {len(names) - len(new)} unchanged" if len(new) < len(names) else ""
    return tuple(events), Reply(outcome="done", message=f"submitted {_count(len(new), 'job')}{same}")


def _problems(state: FleetState, job: Job) -> Iterable[str]:
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
    clusters = {spec.cluster for spec in state.domains}
    systems = {spec.system for spec in state.domains}
    unknown = False
    for kind, name, known in (
        ("queue", job.queue, {*state.queues, DEFAULT_QUEUE}),
        ("priority class", job.priority, {*state.policy.priorities}),
        ("cluster", job.cluster, clusters),
        ("system", job.system, systems),
    ):
        if name is not None and name not in known:
            unknown = True
            error = UnknownNameError(kind, name, sorted(known))
            yield f"{job.name}: {error}" + (f"; {error.hint}" if error.hint else "")
    if not unknown and not ever_fits(state, job):
        shape = job.shape
        yield f"{job.name}: no cluster could ever hold {shape.segments} x {shape.nodes_per_segment} nodes"


def concerning(actions: Sequence[Action], jobs: Sequence[Job]) -> tuple[Action, ...]:
    """The actions on these jobs and on their victims."""
    gangs = {gang for job in jobs for gang in job.gangs()}
    names = {job.name for job in jobs}
    return tuple(
        action
        for action in actions
        if subject(action) in (names if isinstance(action, Refuse) else gangs)
        or action.reason.for_gang in gangs
    )


def _essence(action: Action) -> tuple[str, str, tuple[tuple[str, tuple[int, ...]], ...], str]:
    """What must not change between plan and deed: costs and attempts may."""
    where = action.binding if isinstance(action, Start | Restart | Claim | Move | Hold) else ()
    return (
        type(action).__name__,
        subject(action),
        tuple((segment.domain, segment.nodes) for segment in where),
        (action.reason.for_gang or "") if isinstance(action, Preempt | Move) else "",
    )


def _cancel(state: FleetState, name: str, now_s: float) -> Answer:
    job = state.jobs.get(name)
    if job is None:
        ended = [e.outcome for e in state.ended.values() if e.job == name]
        if not ended:
            raise UnknownNameError("job", name, state.jobs)
        return (), Reply(outcome="unchanged", message=f"{name} has ended ({', '.join(sorted(set(ended)))})")
    gangs = [state.gangs[gang] for gang in job.gangs() if gang in state.gangs]
    if all(gang.cancelled for gang in gangs):
        return (), Reply(outcome="unchanged", message=f"{name} is being cancelled")
    running = sum(bool(gang.binding) for gang in gangs)
    stops = f"; {_count(running, 'gang')} told to stop" if running else ""
    return (Cancelled(at_s=now_s, job=name),), Reply(outcome="done", message=f"cancelled {name}{stops}")


# -- nodes -----------------------------------------------------------------------------------------------------------


def _nodes(state: FleetState, command: Drain | Undrain | Repair, now_s: float) -> Answer:
    domain, nodes = resolve(state, command.target)
    d = state.index[domain]
    mask = state.occupancy.full[d] if nodes is None else mask_of(nodes)
    drained, failed = state.drained[d] & mask, state.failed[d] & mask
    match command:
        case Drain():
            gangs = sum(bool(held & mask) for held in state.tenants.on[d].values())
            event: Event = Drained(at_s=now_s, domain=domain, nodes=nodes)
            before, so, done = drained == mask, "drained", f"drained; {_count(gangs, 'gang')} must leave"
        case Undrain():
            event = Undrained(at_s=now_s, domain=domain, nodes=nodes)
            before, so, done = not drained, "not drained", "no longer drained"
        case Repair():
            event = NodeRepaired(at_s=now_s, domain=domain, nodes=nodes)
            before, so, done = not failed, "not failed", "usable again"
    if before:
        return (), Reply(outcome="unchanged", message=f"{command.target} is {so} already")
    return (event,), Reply(outcome="done", message=f"{command.target} is {done}")


def resolve(state: FleetState, name: str) -> tuple[str, tuple[int, ...] | None]:
    """A domain's name and its nodes (None: all of it) from what people type. Raises UnknownNameError."""
    domains = _domains(state, name)
    node = None
    if not domains and (parts := re.fullmatch(r"(.+)/n([0-9]+)", name)):
        node = int(parts[2])
        domains = [d for d in _domains(state, parts[1]) if node < state.domains[state.index[d]].nodes]
    if not domains:
        raise UnknownNameError("NVLink domain or node", name, state.index)
    if len(domains) > 1:
        raise RackscaleError(f"{name!r} is in several clusters", hint=f"say {' or '.join(domains)}")
    return domains[0], None if node is None else (node,)


def _domains(state: FleetState, name: str) -> list[str]:
    if name in state.index:
        return [name]
    return [domain for domain in state.index if domain.endswith(f"/{name}")]


# -- the site --------------------------------------------------------------------------------------------------------


def _configure(state: FleetState, command: Configure, now_s: float) -> Answer:
    queues = {queue.name: queue for queue in command.queues}
    if command.policy == state.policy and queues == state.queues:
        return (), Reply(outcome="unchanged", message="policy and queues are as they were")
    problems = []
    for kind, used, known in (
        ("queue", Counter(job.queue for job in state.jobs.values()), {*queues, DEFAULT_QUEUE}),
        (
            "priority class",
            Counter(job.priority for job in state.jobs.values()),
            {*command.policy.priorities},
        ),
    ):
        problems += [f"{kind} {n!r} still has {_count(used[n], 'live job')}" for n in sorted({*used} - known)]
    if problems:
        return (), Reply(outcome="refused", message="\n".join(problems), hint="keep it until they have ended")
    event = Configured(at_s=now_s, policy=command.policy, queues=command.queues)
    return (event,), Reply(outcome="done", message=f"policy and {_count(len(queues), 'queue')} in force")


def _deliver(state: FleetState, command: Deliver, now_s: float) -> Answer:
    names = Counter(spec.name for spec in command.domains)
    problems = [f"{name}: delivered {n} times at once" for name, n in names.items() if n > 1]
    new = []
    for spec in command.domains:
        d = state.index.get(spec.name)
        if d is None:
            new.append(spec)
        elif state.domains[d] != spec:
            problems.append(f"{spec.name}: is in the fleet already, and different")
    if problems:
        hint = (
            "a domain can't change once it is delivered: restore its document, or give new domains new names"
        )
        return (), Reply(outcome="refused", message="\n".join(problems), hint=hint)
    if not new:
        return (), Reply(outcome="unchanged", message=f"{_count(len(names), 'NVLink domain')} already there")
    event = Delivered(at_s=now_s, domains=tuple(new))
    return (event,), Reply(outcome="done", message=f"delivered {_count(len(new), 'NVLink domain')}")


def _shutdown(state: FleetState, command: Shutdown, now_s: float) -> Answer:
    if not command.stop_gangs:
        running = sum(bool(gang.binding) for gang in state.gangs.values())
        return (), Reply(
            outcome="done", message=f"the controller ends; {_count(running, 'gang')} left running"
        )
    events = tuple(Cancelled(at_s=now_s, job=job) for job in state.jobs)
    message = f"cancelled {_count(len(events), 'job')}; the controller ends when their gangs have"
    return events, Reply(outcome="done", message=message)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
