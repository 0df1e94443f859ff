"""What only a rehearsal needs: when work arrives, how long it takes, what fails. Frozen values that sample from seeds.

Times are seconds since the start of the rehearsal, which is midnight of its first day. The scheduler never sees what
is sampled here: it sees `Job.duration_s`, the mean.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from random import Random

import msgspec
from msgspec import Struct

from rackscale.catalog import Provenance
from rackscale.workload import Job

_Z90 = 1.2815515655446004
"""The 90 % quantile of the standard normal distribution."""


class Duration(Struct, frozen=True, kw_only=True):
    """How long something takes: log-normal by two quantiles, or always the same when they are equal."""

    median_s: float
    p90_s: float

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.p90_s / self.median_s) / _Z90 if self.p90_s > self.median_s else 0.0

    @property
    def mean_s(self) -> float:
        return self.median_s * math.exp(self.sigma**2 / 2)

    def sample_s(self, stream: Random) -> float:
        """One duration, seconds. Draws exactly one normal variate, also where nothing varies."""
        return self.median_s * math.exp(self.sigma * stream.gauss())


class Arrivals(Struct, frozen=True, kw_only=True):
    """When a job is submitted: at fixed times, every so often, or at random with a mean rate."""

    at_s: tuple[float, ...] = ()
    """Fixed times, ascending."""
    every_s: float | None = None
    per_hour: float | None = None
    """Mean arrivals per hour of a Poisson process."""
    from_s: float = 0.0
    until_s: float | None = None
    """No arrival at or after this time; None: without end."""
    jitter_s: float = 0.0
    """Each arrival is late by a uniform draw from 0 to this; at most `every_s`, so that order is kept."""
    repeat_every_s: float | None = None
    """The whole pattern again after so long; None: once."""

    @property
    def single(self) -> bool:
        """Whether there is exactly one arrival, ever."""
        return len(self.at_s) == 1 and self.repeat_every_s is None

    def times_s(self, stream: Random, end_s: float) -> Iterator[float]:
        """Arrival times before `end_s`, ascending."""
        for cycle in itertools.count():
            start_s = cycle * (self.repeat_every_s or 0.0)
            if start_s >= end_s or (cycle and self.repeat_every_s is None):
                return
            last_s = end_s if self.until_s is None else min(end_s, start_s + self.until_s)
            for at_s in self._cycle_s(stream, start_s):
                if at_s >= last_s:
                    break
                yield at_s

    def _cycle_s(self, stream: Random, start_s: float) -> Iterator[float]:
        if self.per_hour is not None:
            at_s = start_s + self.from_s
            while True:
                at_s += stream.expovariate(self.per_hour / 3600)
                yield at_s
        elif self.every_s is not None:
            for n in itertools.count():
                yield start_s + self.from_s + n * self.every_s + stream.random() * self.jitter_s
        else:
            yield from sorted(start_s + at_s + stream.random() * self.jitter_s for at_s in self.at_s)


class Failures(Struct, frozen=True, kw_only=True):
    """How often hardware fails and how long repairs take. The defaults are assumed.

    The rate and its range are what operators of H100 and A100 clusters published (Llama 3: 1.97e-5 unexpected
    interruptions per GPU-hour; Meta RSC: 1.2e-5 and 3.4e-5). No field data for NVL72 racks was found.
    """

    per_gpu_hour: float = 2e-5
    range_per_gpu_hour: tuple[float, float] = (1e-5, 4e-5)
    """What the rate could as well be; for bands, not for one run."""
    domain_share: float = 0.02
    """Share of failures that take a whole NVLink domain."""
    lemon_share: float = 0.0
    """Share of nodes that fail `lemon_factor` times as often as the rate says; Meta RSC found 1.2 %."""
    lemon_factor: float = 200.0
    """Derived: without those 1.2 % of nodes, failures of jobs on 512 and more GPUs fell from 14 % to 4 %."""
    node_repair: Duration = Duration(median_s=2 * 3600.0, p90_s=4 * 3600.0)
    domain_repair: Duration = Duration(median_s=4 * 3600.0, p90_s=8 * 3600.0)
    provenance: Provenance = "assumed"
    source: str = "published rates of H100 and A100 clusters; no field data for NVL72 was found"


class Work(Struct, frozen=True, kw_only=True):
    """A job of a document, with what only a rehearsal needs to know about it."""

    job: Job
    """What is submitted; the first of many where `count` or `arrivals` ask for more."""
    count: int | None = None
    """Equal jobs per arrival, named `name-0`, `name-1` ...; None: one, with the job's own name."""
    arrivals: Arrivals | None = None
    """None: at the start of the rehearsal."""
    duration: Duration | None = None
    """None: as long as the horizon (a service), or as `job.duration_s` says."""
    source: str = ""
    """`file:line` of the document."""

    def jobs(self) -> tuple[Job, ...]:
        """What applying the document submits: one arrival's jobs."""
        if self.count is None:
            return (self.job,)
        return tuple(_named(self.job, n) for n in range(self.count))

    @property
    def numbered(self) -> bool:
        """Whether a rehearsal submits `name-0`, `name-1` ... instead of the bare name."""
        return self.count is not None or not (self.arrivals is None or self.arrivals.single)


class Submission(Struct, frozen=True, kw_only=True):
    """One job as it arrives in a rehearsal."""

    at_s: float
    job: Job
    duration_s: float | None
    """How long it will really take, productive seconds; None: until someone stops it."""


def submissions(work: Iterable[Work], *, seed: int, end_s: float) -> Iterator[Submission]:
    """Everything that arrives before `end_s`, in time order; ties keep the order of the documents.

    The stream of one document depends on `seed` and its own name only: adding a document changes no other.
    """
    return heapq.merge(*(_arriving(w, seed, end_s) for w in work), key=lambda s: s.at_s)


def _arriving(work: Work, seed: int, end_s: float) -> Iterator[Submission]:
    stream = Random(f"{seed}/{work.job.name}")
    arrivals = work.arrivals or Arrivals(at_s=(0.0,))
    numbers = itertools.count()
    for at_s in arrivals.times_s(stream, end_s):
        for _ in range(work.count or 1):
            job = _named(work.job, next(numbers)) if work.numbered else work.job
            duration_s = work.duration.sample_s(stream) if work.duration else job.duration_s
            yield Submission(at_s=at_s, job=job, duration_s=duration_s)


def _named(job: Job, number: int) -> Job:
    return msgspec.structs.replace(job, name=f"{job.name}-{number}")
