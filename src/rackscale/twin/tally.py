"""What happened in a rehearsal, counted as its events pass."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import Struct

from rackscale import events as ev
from rackscale.capacity.quality import Meter
from rackscale.capacity.waits import SIZE_CLASSES, quantile, size_class

COUNTED = ("submitted", "started", "finished", "cancelled", "refused")
"""What is counted of jobs."""


class Wait(Struct, frozen=True, kw_only=True):
    """How long gangs of one priority and size waited for their first start, seconds."""

    priority: str
    size: str
    started: int
    p50_s: float | None
    p95_s: float | None
    max_s: float | None
    waiting: int
    """Gangs that have not started by the end; they are in none of the quantiles."""
    longest_waiting_s: float | None
    """How long the oldest of those has waited."""


class Arrival(NamedTuple):
    """A gang that has not started yet."""

    at_s: float
    job: str
    priority: str
    size: int
    """Index of its size class."""


class Tally:
    """A listener that counts. The meter, and with it the ledger, hears every event after the tally."""

    def __init__(self, meter: Meter, *, start_s: float, until_s: float, samples: int) -> None:
        self.jobs: Counter[str] = Counter()
        """By `COUNTED`."""
        self.failures: Counter[str] = Counter()
        """NodeFailed by cause."""
        self.restarts: Counter[str] = Counter()
        """Answers to failures under gangs: spare, moved-segment, requeued."""
        self.departures: Counter[str] = Counter()
        """Gangs told to leave, by reason."""
        self.repairs = 0
        self.occupancy: list[float] = []
        """Share of the delivered GPUs that gangs hold, every `sample_every_s`."""
        self.sample_every_s = (until_s - start_s) / samples
        self.counts: dict[type, int] = {}
        """Events by type."""
        self._meter = meter
        self._next_s = start_s + self.sample_every_s
        self._arrivals: dict[str, Arrival] = {}
        self._services: set[str] = set()
        """Services of which no gang has started."""
        self._waits: dict[tuple[str, int], array[float]] = {}
        self._look: dict[type, Callable[[Any], None]] = {
            ev.Submitted: self._submitted, ev.Cancelled: self._cancelled, ev.NodeFailed: self._node_failed,
            ev.NodeRepaired: self._node_repaired, ev.GangEnded: self._gang_ended, ev.Decided: self._decided,
        }  # fmt: skip

    def __call__(self, event: ev.Event) -> None:
        if event.at_s >= self._next_s:
            self.sample(event.at_s)
        kind = type(event)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        look = self._look.get(kind)
        if look is not None:
            look(event)
        self._meter(event)

    def sample(self, now_s: float) -> None:
        """Record the occupancy up to now."""
        ledger = self._meter.ledger
        gpus = ledger.delivered_gpus()
        share = ledger.held_gpus() / gpus if gpus else 0.0
        while self._next_s <= now_s:
            self.occupancy.append(share)
            self._next_s += self.sample_every_s

    def waits(self, now_s: float) -> tuple[Wait, ...]:
        """By priority and size class; empty classes are left out."""
        open_: dict[tuple[str, int], list[float]] = {}
        for arrival in self._arrivals.values():
            open_.setdefault((arrival.priority, arrival.size), []).append(now_s - arrival.at_s)
        answers = []
        for key in sorted(self._waits.keys() | open_.keys()):
            done, still = sorted(self._waits.get(key, ())), open_.get(key, [])
            answers.append(
                Wait(
                    priority=key[0], size=SIZE_CLASSES[key[1]], started=len(done), p50_s=quantile(done, 0.5),
                    p95_s=quantile(done, 0.95), max_s=quantile(done, 1.0), waiting=len(still),
                    longest_waiting_s=max(still, default=None),
                )
            )  # fmt: skip
        return tuple(answers)

    def _submitted(self, event: ev.Submitted) -> None:
        job = event.job
        self.jobs["submitted"] += 1
        arrival = Arrival(event.at_s, job.name, job.priority, size_class(job.shape.nodes))
        if job.kind == "service":
            self._services.add(job.name)
        for gang in job.gangs():
            self._arrivals[gang] = arrival

    def _cancelled(self, event: ev.Cancelled) -> None:
        self.jobs["cancelled"] += 1
        self._forget(event.job)

    def _forget(self, job: str) -> None:
        self._services.discard(job)
        for gang in [gang for gang, arrival in self._arrivals.items() if arrival.job == job]:
            del self._arrivals[gang]

    def _node_failed(self, event: ev.NodeFailed) -> None:
        self.failures[event.cause] += 1

    def _node_repaired(self, event: ev.NodeRepaired) -> None:  # noqa: ARG002 - one is like the other
        self.repairs += 1

    def _gang_ended(self, event: ev.GangEnded) -> None:
        if event.outcome == "finished":
            self.jobs["finished"] += 1

    def _decided(self, event: ev.Decided) -> None:
        for action in event.plan.actions:
            match action:
                case ev.Start():
                    self._started(action.gang, event.at_s)
                case ev.Restart():
                    self.restarts[action.reason.code] += 1
                case ev.Requeue():
                    self.restarts["requeued"] += 1
                case ev.Preempt() | ev.Move():
                    self.departures[action.reason.code] += 1
                case ev.Refuse():
                    self.jobs["refused"] += 1
                    self._forget(action.job)

    def _started(self, gang: str, now_s: float) -> None:
        arrival = self._arrivals.pop(gang, None)
        if arrival is None:
            return
        if arrival.job == gang or arrival.job in self._services:
            self._services.discard(arrival.job)
            self.jobs["started"] += 1
        key = (arrival.priority, arrival.size)
        waits = self._waits.get(key)
        if waits is None:
            waits = self._waits[key] = array("d")
        waits.append(now_s - arrival.at_s)
