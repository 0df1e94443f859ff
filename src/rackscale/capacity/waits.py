"""How long gangs waited for their first start, and how long they took to work again: distributions."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from msgspec import Struct

from rackscale.workload import Job

SIZES = (1, 4, 16, 64, 256)
"""Upper ends of the size classes but the last, nodes of a gang."""
SIZE_CLASSES = ("1 node", "2-4 nodes", "5-16 nodes", "17-64 nodes", "65-256 nodes", "over 256 nodes")
NO_GPUS = len(SIZE_CLASSES)
"""The class of gangs that need no GPUs, of whatever size."""


class Spread(Struct, frozen=True, kw_only=True):
    """A distribution of times, seconds. Quantiles are by nearest rank.

    What is still open at the end (censored) counts with the time that has passed. A quantile is exact where it is
    shorter than every open one, and a lower bound elsewhere.
    """

    done: int
    open: int
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    max_s: float
    shortest_open_s: float | None
    longest_open_s: float | None


class Wait(Struct, frozen=True, kw_only=True):
    """How long gangs of one priority and size waited from submission to their first start."""

    priority: str
    size: str
    waits: Spread


class Arrival(NamedTuple):
    """A gang that has not started yet."""

    at_s: float
    priority: str
    size: int
    """Index of its size class, or `NO_GPUS`."""


def spread(done: Iterable[float], still: list[float]) -> Spread:
    """The distribution of times that are over and of those that are not."""
    times = sorted(done)
    over = len(times)
    if still:
        times = sorted([*times, *still])
    p50_s, p90_s, p95_s, p99_s, max_s = (
        quantile(times, share) or 0.0 for share in (0.5, 0.9, 0.95, 0.99, 1.0)
    )
    return Spread(
        done=over, open=len(still), p50_s=p50_s, p90_s=p90_s, p95_s=p95_s, p99_s=p99_s, max_s=max_s,
        shortest_open_s=min(still, default=None), longest_open_s=max(still, default=None),
    )  # fmt: skip


def quantile(ordered: list[float], share: float) -> float | None:
    """The value at or below which this share of the ordered values lies (nearest rank), or None."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


class Queue:
    """Gangs between submission and first start."""

    def __init__(self) -> None:
        self._arrivals: dict[str, Arrival] = {}
        self._services: dict[str, tuple[str, ...]] = {}
        """Service -> its gangs."""
        self._done: dict[tuple[str, int], array[float]] = {}

    def submitted(self, job: Job, now_s: float) -> None:
        gangs = job.gangs()
        if job.kind == "service":
            self._services[job.name] = gangs
        arrival = Arrival(now_s, job.priority, NO_GPUS if job.cpu_only else size_class(job.shape.nodes))
        for gang in gangs:
            self._arrivals.setdefault(gang, arrival)

    def started(self, gang: str, now_s: float) -> None:
        arrival = self._arrivals.pop(gang, None)
        if arrival is None:
            return
        key = (arrival.priority, arrival.size)
        done = self._done.get(key)
        if done is None:
            done = self._done[key] = array("d")
        done.append(now_s - arrival.at_s)

    def left(self, job: str) -> None:
        """It was cancelled or refused: who has not started never will."""
        for gang in self._services.pop(job, (job,)):
            self._arrivals.pop(gang, None)

    def begin(self) -> None:
        """Only starts from now on count; who waits has waited since its submission."""
        self._done.clear()

    def waits(self, now_s: float) -> tuple[Wait, ...]:
        """By priority and size class; empty classes are left out."""
        still: dict[tuple[str, int], list[float]] = {}
        for arrival in self._arrivals.values():
            still.setdefault((arrival.priority, arrival.size), []).append(now_s - arrival.at_s)
        return tuple(
            Wait(
                priority=key[0],
                size=(*SIZE_CLASSES, "no GPUs")[key[1]],
                waits=spread(self._done.get(key, ()), still.get(key, [])),
            )
            for key in sorted(self._done.keys() | still.keys())
        )


def size_class(nodes: int) -> int:
    """Index into `SIZE_CLASSES`."""
    return bisect_left(SIZES, nodes)
