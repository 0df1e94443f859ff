"""What is wrong with a tree of queues, and what can never run in one of its queues.

Asked about documents and by the controller's gate alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Literal, NamedTuple

from rackscale.events import DomainSpec
from rackscale.spec.problems import Path, nearest
from rackscale.workload import Job, Offer, Queue

Unit = Literal["gpus", "domains"]
UNITS: tuple[Unit, Unit] = ("gpus", "domains")
WORDS = {"gpus": "GPUs", "domains": "NVLink domains"}


class Cost(NamedTuple):
    """What a gang costs its queue at least."""

    gpus: float
    domains: float

    @classmethod
    def of(cls, job: Job, offer: Offer, *, gpus_per_node: int, usable: int) -> Cost:
        """In domains of so many usable nodes. A segment that leaves no room for another costs a whole domain."""
        if job.cpu_only:
            return cls(0.0, 0.0)
        shape = offer.shape
        nodes = shape.nodes_held_per_segment
        share = 1.0 if 2 * nodes > usable else nodes / usable
        return cls(shape.nodes_held * gpus_per_node, shape.segments * share)


class TreeFault(NamedTuple):
    """What is wrong with one queue of a tree."""

    queue: str
    path: Path
    message: str
    fix: str | None = None


def tree_faults(queues: Mapping[str, Queue], fleet: Sequence[DomainSpec]) -> Iterator[TreeFault]:
    """Parents that don't exist, queues above themselves, and more guaranteed than there is.

    An empty `fleet` is not known, so that nothing is too much for it.
    """
    for queue in queues.values():
        if queue.parent is not None and queue.parent not in queues:
            yield TreeFault(queue.name, ("parent",), "unknown queue", nearest(queue.parent, queues))
    cycles = list(_cycles(queues))
    for cycle in cycles:
        message = f"queues above each other in a circle: {' > '.join((*cycle, cycle[0]))}"
        yield TreeFault(cycle[0], ("parent",), message, "leave out one parent")
    if not cycles:
        for unit in UNITS:
            yield from _overcommitted(queues, fleet, unit)


def _cycles(queues: Mapping[str, Queue]) -> Iterator[tuple[str, ...]]:
    """Each circle once, from parent to child; a queue that is its own parent is reported by itself."""
    done: set[str] = set()
    for start in queues:
        way: list[str] = []
        name: str | None = start
        while name is not None and name in queues and name not in done and name not in way:
            way.append(name)
            name = queues[name].parent
        if name in way:
            yield tuple(reversed(way[way.index(name) :]))
        done.update(way)


def tree_warnings(
    queues: Mapping[str, Queue], fleet: Sequence[DomainSpec], *, keep_spares: bool
) -> Iterator[TreeFault]:
    """More guaranteed than is left beside the spares, where `keep_spares`: not everybody can hold what he is owed."""
    spares = sum(spec.spares * spec.gpus_per_node for spec in fleet) if keep_spares else 0
    owed = _Owed(queues, "gpus")
    there = _capacity(fleet, "gpus")
    if spares and there - spares < owed.total <= there:
        message = f"{owed.names} are guaranteed {_amount(owed.total, 'gpus')}, and {spares} of the fleet's {there:g}"
        message += f" are spares: {_amount(there - spares, 'gpus')} are left"
        yield TreeFault(
            owed.last, ("quota", "gpus"), message, f"lower quotas by {owed.total - there + spares:g}"
        )


class _Owed:
    """What queues are guaranteed in one unit."""

    def __init__(self, queues: Mapping[str, Queue], unit: Unit) -> None:
        self._unit = unit
        self.below: dict[str | None, list[Queue]] = {}
        for queue in queues.values():
            self.below.setdefault(queue.parent if queue.parent in queues else None, []).append(queue)
        roots = self.below.get(None, [])
        named = [queue.name for queue in roots if self(queue)]
        self.total = sum(map(self, roots))
        self.names, self.last = _joined(named) if named else "", named[-1] if named else ""

    def __call__(self, queue: Queue) -> float:
        """What the queue is guaranteed, or the queues below it where it states nothing."""
        quota = quota_of(queue, self._unit)
        return quota if quota is not None else sum(map(self, self.below.get(queue.name, ())))


def _overcommitted(
    queues: Mapping[str, Queue], fleet: Sequence[DomainSpec], unit: Unit
) -> Iterator[TreeFault]:
    owed = _Owed(queues, unit)
    for queue in queues.values():
        quota, children = quota_of(queue, unit), owed.below.get(queue.name, [])
        total = sum(map(owed, children))
        if quota is not None and total > quota:
            names = _joined(child.name for child in children if owed(child))
            message = f"less than the {_amount(total, unit)} that {names} below it have"
            yield TreeFault(queue.name, ("quota", unit), message, "raise it, or lower theirs")
    there = _capacity(fleet, unit)
    if owed.total > there:
        message = f"{owed.names} would be guaranteed {_amount(owed.total, unit)}"
        fix = f"the fleet has {_amount(there, unit)}"
        yield TreeFault(owed.last, ("quota", unit), message, fix)


def _capacity(fleet: Sequence[DomainSpec], unit: Unit) -> float:
    if not fleet:
        return inf
    if unit == "domains":
        return len(fleet)
    return sum(spec.nodes * spec.gpus_per_node for spec in fleet)


def quota_of(queue: Queue, unit: Unit) -> float | None:
    return queue.quota_gpus if unit == "gpus" else queue.quota_domains


def _most(queue: Queue, unit: Unit, *, may_borrow: bool) -> float:
    """The most that the queue may hold."""
    quota, borrow = quota_of(queue, unit), getattr(queue, f"borrow_{unit}")
    if not may_borrow:
        return inf if quota is None else quota
    return inf if borrow is None else (quota or 0.0) + borrow


def never_runs(job: Job, queues: Mapping[str, Queue], costs: Iterable[Cost]) -> str | None:
    """Why limits of the job's queue, or of one above it, keep the job waiting for ever; None: they don't.

    `costs`: what a gang costs at least, one per shape and place; none where that is not known.
    """
    path = _path(job.queue, queues)
    own = path[0]
    if not (job.preemptible or job.cpu_only or own.guaranteed) and any(q.guaranteed for q in queues.values()):
        return (
            f"it is not preemptible and the queue {own.name!r} has no quota: it would have to borrow, "
            "which only preemptible jobs may"
        )
    for queue in path:
        if queue.max_gangs == 0:
            return f"the queue {queue.name!r} may hold no gang at all"
    if own.max_gangs_per_user == 0:
        return f"the queue {own.name!r} lets no user hold a gang"
    faults = [_exceeded(job, path, cost) for cost in costs]
    return faults[0] if faults and all(faults) else None


def _path(name: str, queues: Mapping[str, Queue]) -> list[Queue]:
    """The queue and those above it."""
    path = [queues.get(name, Queue(name=name))]
    while (parent := path[-1].parent) in queues and parent not in {q.name for q in path}:
        assert parent is not None
        path.append(queues[parent])
    return path


def _exceeded(job: Job, path: Sequence[Queue], cost: Cost) -> str | None:
    """The limit that a gang of this cost exceeds all by itself."""
    own = path[0]
    per_user = own.max_gpus_per_user
    if per_user is not None and cost.gpus > per_user:
        return f"its gang holds {_amount(cost.gpus, 'gpus')}, a user of the queue {own.name!r} at most {per_user}"
    for queue in path:
        for unit in UNITS:
            held = getattr(cost, unit)
            may_borrow = job.preemptible or job.cpu_only or queue is not own
            most = _most(queue, unit, may_borrow=may_borrow)
            if held > most:
                how = "" if may_borrow else " without borrowing, which only preemptible jobs may"
                return f"its gang holds {_amount(held, unit)}, the queue {queue.name!r} at most {most:g}{how}"
    return None


def _amount(number: float, unit: Unit) -> str:
    return f"{number:g} {WORDS[unit] if number != 1 else WORDS[unit][:-1]}"


def _joined(names: Iterable[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} and {last}" if others else last
