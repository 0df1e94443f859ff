"""The mutable record of one gang, and the order in which gangs wait."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from math import ceil, floor, inf, log

from msgspec import Struct

from rackscale.events import Binding, Segment
from rackscale.fleet.queues import NOTHING, Charge
from rackscale.workload import Job, Nearness, Offer, Shape

DAY_S = 86_400.0
COARSE = 1.25
"""Gangs whose expected times differ by less than this factor are alike to the scheduler; the longer time counts."""


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
    queue: str = "default"
    submitted_s: float
    since_s: float
    """When its status last changed."""
    status: Status = Status.WAITING
    front: bool = False
    """Goes before others of its priority, since it has run before."""
    attempt: int = 0
    binding: Binding = ()
    choice: int = 0
    """Which of its job's choices it runs in, or claims nodes for."""
    gpus: int = 0
    """GPUs of the binding."""
    charge: Charge = NOTHING
    """What the binding costs its queue, or the claim where there is no binding."""
    charged: bool = False
    claim: Binding = ()
    claim_choice: int = 0
    cause: str = ""
    """Why it leaves or waits again: a code of `events.REASONS` or an outcome."""
    cancelled: bool = False
    started_s: float | None = None
    """Start of the present attempt."""
    running_s: float | None = None
    """Since when the present attempt does productive work."""
    expected_end_s: float | None = None
    """When the present attempt is expected to end; None: nobody knows."""
    first_started_s: float | None = None
    checkpoint_s: float | None = None
    """Last whole checkpoint of any attempt that was reported."""
    saves_every_s: float | None = None
    """The present attempt writes a whole checkpoint so often, without a report."""
    throughput: float = 1.0
    """Work per second of the present attempt."""
    kept_s: float = 0.0
    """Seconds of work (at throughput 1) that checkpoints keep, over all attempts."""
    step: int | None = None
    url: str | None = None
    restarts: int = 0
    """Failures of the program itself."""
    paused_until_s: float | None = None
    """When it joins the line again after such a failure; None: it is not pausing."""
    evictions: int = 0
    evictions_today: int = 0
    evictions_day: int = -1

    @property
    def end_s(self) -> float:
        """`expected_end_s`, infinite where nobody knows."""
        return inf if self.expected_end_s is None else self.expected_end_s

    def saved_s(self, now_s: float) -> float:
        """When the work began that no checkpoint keeps. It must have worked in this attempt."""
        running_s = self.running_s
        assert running_s is not None
        since_s = running_s if self.checkpoint_s is None else max(running_s, self.checkpoint_s)
        if self.saves_every_s is None:
            return since_s
        until_s = now_s if self.status is Status.RUNNING else min(now_s, self.since_s)
        every_s = self.saves_every_s
        return max(since_s, running_s + floor(max(0.0, until_s - running_s) / every_s) * every_s)

    def at_risk_s(self, now_s: float) -> float:
        """Seconds of productive work since the last checkpoint of this attempt."""
        if self.running_s is None:
            return 0.0
        until_s = now_s if self.status is Status.RUNNING else self.since_s
        return max(0.0, until_s - self.saved_s(now_s))

    def keep(self, now_s: float, *, everything: bool) -> None:
        """The attempt is over, or a checkpoint is whole: count the work that is kept."""
        if self.running_s is None:
            return
        reported_s = self.running_s if self.checkpoint_s is None else max(self.running_s, self.checkpoint_s)
        until_s = now_s if self.status is Status.RUNNING else self.since_s
        upto_s = until_s if everything else self.saved_s(now_s)
        self.kept_s += max(0.0, upto_s - reported_s) * self.throughput

    def kept_now_s(self, now_s: float) -> float:
        """`kept_s` with the checkpoints that nobody reported."""
        if self.running_s is None or self.saves_every_s is None:
            return self.kept_s
        reported_s = self.running_s if self.checkpoint_s is None else max(self.running_s, self.checkpoint_s)
        return self.kept_s + max(0.0, self.saved_s(now_s) - reported_s) * self.throughput

    def evicted_today(self, now_s: float) -> int:
        return self.evictions_today if self.evictions_day == int(now_s // DAY_S) else 0

    def order(self) -> tuple[int, bool, int, int]:
        """Sort key among waiting gangs, fair share aside: priority, those that ran before, queue rank, submission."""
        return (-self.priority, not self.front, self.rank, self.seq)


class Ended(Struct, frozen=True, kw_only=True):
    """How a gang ended: finished, failed, cancelled or refused."""

    job: str
    outcome: str
    at_s: float
    submitted_s: float
    attempts: int
    detail: str = ""


def remaining_s(gang: Gang, job: Job) -> float:
    """Expected seconds of work that no checkpoint keeps, at throughput 1; infinite where nobody knows."""
    return inf if job.duration_s is None else max(0.0, job.duration_s - gang.kept_s)


@lru_cache
def coarse(seconds: float) -> float:
    """The next power of `COARSE` that is not less; infinite stays infinite."""
    if seconds == inf or seconds <= 0.0:
        return seconds
    return float(COARSE ** ceil(log(seconds) / log(COARSE) - 1e-9))


ClassKey = tuple[
    int, int, str, str,
    Shape, str | None, tuple[Offer, ...], str | None, Nearness, bool, str | None, str, float, float,
    bool,
]  # fmt: skip


class WaitClass:
    """Gangs that are interchangeable to the scheduler: where one does not fit, none does."""

    __slots__ = (
        "about",
        "entries",
        "fit",
        "gang",
        "job",
        "key",
        "lasts_s",
        "need",
        "priority",
        "queue",
        "rank",
        "user",
    )

    def __init__(self, key: ClassKey, gang: Gang, job: Job) -> None:
        self.key, self.job = key, job
        self.entries: list[tuple[bool, int, str]] = []
        """(not front, submission, name), in order."""
        self.priority, self.rank, self.queue, self.user = gang.priority, gang.rank, gang.queue, job.user
        self.fit = key[4:14]
        """All that decides where it fits, whoever asks."""
        self.about = (key[4:12], gang.priority, gang.queue)
        """What victims are sought for: where none are found for one gang, none are for another with the same."""
        self.lasts_s = key[12]
        """Expected seconds of work at throughput 1, rounded up."""
        self.need = min(offer.shape.nodes_held_per_segment for offer in job.choices)
        """The least that a domain must have free to be of any use, nodes."""


def class_key(gang: Gang, job: Job) -> ClassKey:
    apart = job.name if job.nearness.apart is not None else ""
    left_s = remaining_s(gang, job)
    lasts_s = coarse(left_s) if job.booking is None else left_s  # a booking ends to the second
    return (
        -gang.priority, gang.rank, gang.queue, job.user, job.shape, job.system, job.offers, job.cluster, job.nearness,
        job.cpu_only, job.booking, apart, lasts_s, job.durability.restart_s, job.preemptible,
    )  # fmt: skip


class Waiting:
    """Waiting gangs by class, each class in order, so that a cycle tries only heads."""

    __slots__ = ("_of", "about", "by_need", "classes", "size")

    def __init__(self) -> None:
        self.classes: dict[ClassKey, WaitClass] = {}
        self.by_need: dict[int, dict[ClassKey, WaitClass]] = {}
        self.about: dict[tuple[object, ...], int] = {}
        """Gangs in line, by what victims are sought for."""
        self.size = 0
        self._of: dict[str, WaitClass] = {}

    def add(self, gang: Gang, job: Job) -> None:
        key = class_key(gang, job)
        found = self.classes.get(key)
        if found is None:
            found = self.classes[key] = WaitClass(key, gang, job)
            self.by_need.setdefault(found.need, {})[key] = found
        bisect.insort(found.entries, (not gang.front, gang.seq, gang.name))
        self._of[gang.name] = found
        self.about[found.about] = self.about.get(found.about, 0) + 1
        self.size += 1

    def remove(self, gang: Gang) -> None:
        found = self._of.pop(gang.name)
        entries = found.entries
        at = bisect.bisect_left(entries, (not gang.front, gang.seq, gang.name))
        assert entries[at][2] == gang.name
        del entries[at]
        self.size -= 1
        self.about[found.about] -= 1
        if not self.about[found.about]:
            del self.about[found.about]
        if not entries:
            del self.classes[found.key]
            del self.by_need[found.need][found.key]

    def of(self, name: str) -> WaitClass | None:
        """The class of a waiting gang; None: it does not wait in line."""
        return self._of.get(name)

    def __iter__(self) -> Iterator[str]:
        """All names, by priority, those that ran before, queue rank and submission; fair share aside."""
        return iter(
            name
            for _, name in sorted(
                ((-c.priority, late, c.rank, seq), name)
                for c in self.classes.values()
                for late, seq, name in c.entries
            )
        )


def shift(binding: Binding, old: tuple[str, int], new: int) -> Binding:
    """The binding with node `old` replaced, in its rank, by node `new` of the same domain.

    Where the new node is one of the segment's own spares, it is a spare no more.
    """
    domain, node = old
    return tuple(
        Segment(
            domain=s.domain,
            nodes=tuple(new if n == node else n for n in s.nodes),
            spares=tuple(n for n in s.spares if n != new),
        )
        if s.domain == domain and node in s.nodes
        else s
        for s in binding
    )
