"""The twin against queueing theory: single-node jobs on c nodes are a queue with c servers.

With Poisson arrivals and exponential run times it is M/M/c. Job by job the waits must be those of the
Kiefer-Wolfowitz recursion (each arrival takes the server that is free first); their mean must be Erlang's.

Erlang's formula: with offered load a = arrival rate x mean service time and c servers, an arrival waits with
probability C(c, a), and the mean wait is C(c, a) x mean service time / (c - a).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from math import sqrt
from random import Random
from statistics import fmean, stdev

import pytest

from rackscale.control import Controller
from rackscale.events import Decided, Delivered, DomainSpec, Event, Start, Submitted
from rackscale.fleet.state import FleetState
from rackscale.spec import Submission
from rackscale.twin import TwinExecutor
from rackscale.workload import Durability, Job, Shape

MEAN_S = 100.0
JOBS = 16_000
BATCHES = 20
"""Means of consecutive batches of jobs are nearly independent, so that their spread gives the error of the mean."""


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival has to wait."""
    blocking = 1.0
    for n in range(1, servers + 1):
        blocking = load * blocking / (n + load * blocking)
    return servers * blocking / (servers - load * (1.0 - blocking))


def arrivals(rate_per_s: float, seed: int) -> Iterator[Submission]:
    stream, at_s = Random(f"{seed}/m-m-c"), 0.0
    job = Job(name="", kind="batch", shape=Shape(), durability=Durability(restart_s=0.0))
    for number in itertools.count():
        at_s += stream.expovariate(rate_per_s)
        named = Job(name=f"j{number}", kind=job.kind, shape=job.shape, durability=job.durability)
        yield Submission(at_s=at_s, job=named, duration_s=stream.expovariate(1.0 / MEAN_S))


def waits(servers: tuple[int, ...], rate_per_s: float, seed: int) -> list[float]:
    """Waiting times of `JOBS` jobs, in order of arrival, after a warm-up of a tenth."""
    domains = tuple(
        DomainSpec(name=f"d{i}", system="s", nodes=nodes, gpus_per_node=1, cluster="c")
        for i, nodes in enumerate(servers)
    )
    submitted: dict[str, float] = {}
    waited: dict[str, float] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Submitted):
            submitted[event.job.name] = event.at_s
        elif isinstance(event, Decided):
            for action in event.plan.actions:
                if isinstance(action, Start):
                    waited[action.gang] = event.at_s - submitted[action.gang]

    twin = TwinExecutor(submissions=arrivals(rate_per_s, seed), inputs=[Delivered(at_s=0.0, domains=domains)])
    controller = Controller(FleetState(), twin, listeners=(listen,))
    while len(waited) < JOBS * 1.1:
        controller.step()
    return [waited[name] for name in submitted if name in waited][JOBS // 10 : JOBS + JOBS // 10]


def recursion(servers: int, rate_per_s: float, seed: int) -> list[float]:
    """The same jobs' waits, from when each server is free."""
    free_s, found = [0.0] * servers, []
    for _, job in zip(range(JOBS + JOBS // 10), arrivals(rate_per_s, seed), strict=False):
        assert job.duration_s is not None
        start_s = max(heapq.heappop(free_s), job.at_s)
        found.append(start_s - job.at_s)
        heapq.heappush(free_s, start_s + job.duration_s)
    return found[JOBS // 10 :]


@pytest.mark.parametrize(
    ("servers", "use"), [((1,), 0.6), ((4,), 0.7), ((18,), 0.85), ((6, 6), 0.8)], ids=str
)
def test_waits_against_queueing_theory(servers: tuple[int, ...], use: float) -> None:
    count = sum(servers)
    load = use * count
    found = waits(servers, load / MEAN_S, seed=1)
    assert found == pytest.approx(recursion(count, load / MEAN_S, seed=1))

    size = len(found) // BATCHES
    batches = [fmean(found[i * size : (i + 1) * size]) for i in range(BATCHES)]
    error_s = stdev(batches) / sqrt(BATCHES)
    expected_s = erlang_c(count, load) * MEAN_S / (count - load)
    assert error_s < 0.15 * expected_s
    assert abs(fmean(found) - expected_s) < 3 * error_s
    waiting = sum(wait > 0 for wait in found) / len(found)
    assert waiting == pytest.approx(erlang_c(count, load), abs=0.03)
