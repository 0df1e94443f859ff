"""The mutable record of one gang, and the order in which gangs wait."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from enum import StrEnum

from msgspec import Struct

from rackscale.events import Binding, Segment
from rackscale.workload import Job

DAY_S = 86_400.0


class Status(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    BROKEN = "broken"
    """A node under it failed; the next decision replaces the node or requeues the gang."""
    LEAVING = "leaving"
    """Told to stop; its nodes are held until it has ended."""


class Gang(Struct, kw_only=True):
    """One gang, from submission until it has ended. Mutable: only `FleetState.fold` writes it."""

    name: str
    job: str
    seq: int
    """Order of submission."""
    priority: int
    rank: int
    """Rank of its queue."""
    submitted_s: float
    since_s: float
    """When its status last changed."""
    status: Status = Status.WAITING
    front: bool = False
    """Goes before others of its priority, since it has run before."""
    attempt: int = 0
    binding: Binding = ()
    choice: int = 0
    """Which of the job's `choices` it runs in."""
    gpus: int = 0
    """GPUs of the binding."""
    claim: Binding = ()
    cause: str = ""
    """Why it leaves or waits again: a code of `events.REASONS` or an outcome."""
    cancelled: bool = False
    started_s: float | None = None
    """Start of the present attempt."""
    running_s: float | None = None
    """Since when the present attempt does productive work."""
    first_started_s: float | None = None
    checkpoint_s: float | None = None
    """Last whole checkpoint of any attempt."""
    kept_s: float = 0.0
    """Productive seconds that checkpoints keep, over all attempts."""
    saves_every_s: float | None = None
    """So often the present attempt writes a checkpoint that no event reports."""
    step: int | None = None
    url: str | None = None
    restarts: int = 0
    """Failures of the program itself."""
    evictions: int = 0
    evictions_today: int = 0
    evictions_day: int = -1

    def at_risk_s(self, now_s: float) -> float:
        """Seconds of productive work since the last checkpoint of this attempt."""
        if self.running_s is None:
            return 0.0
        if self.status is not Status.RUNNING:
            return max(0.0, self.since_s - self.kept_until_s)
        worked_s = max(0.0, now_s - self.kept_until_s)
        if self.saves_every_s is None:
            return worked_s
        return worked_s - worked_s // self.saves_every_s * self.saves_every_s

    @property
    def kept_until_s(self) -> float:
        """Since when the present attempt does work that `kept_s` does not count."""
        assert self.running_s is not None
        return self.running_s if self.checkpoint_s is None else max(self.running_s, self.checkpoint_s)

    def settle(self, now_s: float) -> None:
        """Count what the checkpoints kept that no event reported: the gang works no longer, or not as before."""
        if self.status is Status.RUNNING and self.saves_every_s is not None and self.running_s is not None:
            kept_s = max(0.0, now_s - self.kept_until_s) - self.at_risk_s(now_s)
            self.kept_s += kept_s
            self.checkpoint_s = self.kept_until_s + kept_s

    def evicted_today(self, now_s: float) -> int:
        return self.evictions_today if self.evictions_day == int(now_s // DAY_S) else 0

    def order(self) -> tuple[int, bool, int, int]:
        """Sort key among waiting gangs: priority, those that ran before, queue rank, submission."""
        return (-self.priority, not self.front, self.rank, self.seq)


class Ended(Struct, frozen=True, kw_only=True):
    """How a gang ended: finished, failed, cancelled or refused."""

    job: str
    outcome: str
    at_s: float
    submitted_s: float
    attempts: int
    detail: str = ""


WaitKey = tuple[int, int, int, int, bool, str | None, str | None]


def wait_key(gang: Gang, job: Job) -> WaitKey:
    """Gangs with equal keys are interchangeable to the scheduler: where one does not fit, none does."""
    shape = job.shape
    return (
        -gang.priority, gang.rank, shape.segments, shape.nodes_per_segment,
        shape.may_share_domain, job.system, job.cluster,
    )  # fmt: skip


class Waiting:
    """Waiting gangs by interchangeable class, each class in order, so that a cycle tries only heads."""

    __slots__ = ("classes", "size")

    def __init__(self) -> None:
        self.classes: dict[WaitKey, list[tuple[tuple[int, bool, int, int], str]]] = {}
        self.size = 0

    def add(self, gang: Gang, job: Job) -> None:
        bisect.insort(self.classes.setdefault(wait_key(gang, job), []), (gang.order(), gang.name))
        self.size += 1

    def remove(self, gang: Gang, job: Job) -> None:
        key = wait_key(gang, job)
        entries = self.classes[key]
        at = bisect.bisect_left(entries, (gang.order(), gang.name))
        assert entries[at][1] == gang.name
        del entries[at]
        self.size -= 1
        if not entries:
            del self.classes[key]

    def __iter__(self) -> Iterator[str]:
        """All names in scheduling order."""
        return iter(
            name for _, name in sorted(entry for entries in self.classes.values() for entry in entries)
        )


def shift(binding: Binding, old: tuple[str, int], new: int) -> Binding:
    """The binding with node `old` replaced, in its rank, by node `new` of the same domain."""
    domain, node = old
    return tuple(
        Segment(domain=s.domain, nodes=tuple(new if n == node else n for n in s.nodes))
        if s.domain == domain
        else s
        for s in binding
    )
