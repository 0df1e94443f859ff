"""Policy and queues, and the controller's end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rackscale.commands.jobs import DEFAULT_QUEUE
from rackscale.commands.vocabulary import Answer, Configure, Shutdown, count, done, refused, unchanged
from rackscale.events import Cancelled, Configured
from rackscale.fleet.state import FleetState
from rackscale.spec.problems import dotted
from rackscale.spec.tree import tree_faults, tree_warnings
from rackscale.workload import Queue


def configure(state: FleetState, command: Configure, now_s: float) -> Answer:
    """Put policy and queues into force, unless live jobs or bookings need what would be gone."""
    queues = {queue.name: queue for queue in command.queues}
    if command.policy == state.policy and queues == state.queues:
        return unchanged("policy and queues are as they were")
    names = Counter(queue.name for queue in command.queues)
    problems = [f"queue {name!r} is given {n} times" for name, n in names.items() if n > 1]
    tree = {DEFAULT_QUEUE: Queue(name=DEFAULT_QUEUE)} | queues
    for fault in tree_faults(tree, state.domains):
        fix = f"; {fault.fix}" if fault.fix else ""
        problems.append(f"queue {fault.queue!r} {dotted(fault.path)}: {fault.message}{fix}")
    if problems:
        return refused(problems)
    problems = list(_needed(state, {*tree}, {*command.policy.priorities}))
    if problems:
        return refused(problems, "keep it until they have ended")
    event = Configured(at_s=now_s, policy=command.policy, queues=command.queues)
    keeps = command.policy.spares == "fixed"
    but = "".join(f"; but {w.message}" for w in tree_warnings(tree, state.domains, keep_spares=keeps))
    return done((event,), f"policy and {count(len(queues), 'queue')} in force{but}")


def _needed(state: FleetState, queues: set[str], priorities: set[str]) -> Iterator[str]:
    """Queues and priority classes that would be gone, with what still needs them."""
    jobs, bookings = state.jobs.values(), state.machines.calendar.bookings.values()
    for what, asked in (("live job", list(jobs)), ("booking", list(bookings))):
        for kind, used, known in (
            ("queue", Counter(a.queue for a in asked), queues),
            ("priority class", Counter(a.priority for a in asked), priorities),
        ):
            yield from (f"{kind} {n!r} still has {count(used[n], what)}" for n in sorted({*used} - known))


def shutdown(state: FleetState, command: Shutdown, now_s: float) -> Answer:
    """What ends with the controller."""
    if not command.stop_gangs:
        running = sum(bool(gang.binding) for gang in state.gangs.values())
        return done((), f"the controller ends; {count(running, 'gang')} left running")
    events = tuple(Cancelled(at_s=now_s, job=job) for job in state.jobs)
    message = f"cancelled {count(len(events), 'job')}; the controller ends when their gangs have"
    return done(events, message)
