"""A rehearsal: the control loop over a stretch of simulated time, and what happened in it."""

from __future__ import annotations

import gc
import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal

from msgspec import Struct

from rackscale.capacity.ledger import STATES, US_PER_H, Ledger, Row
from rackscale.capacity.quality import Meter, Quality
from rackscale.control import Controller, Decide, Log
from rackscale.events import Event, Input
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide as schedule
from rackscale.spec import Documents, Submission, submissions
from rackscale.twin.executor import TwinExecutor
from rackscale.twin.tally import COUNTED, Tally, Wait

SAMPLES = 120
"""Points of the occupancy curve."""
REPORT_EVERY_S = 0.2
"""Wall-clock seconds between calls of `progress`."""
THRESHOLDS = (100_000, 50, 100)
"""Of the collector of cyclic garbage while a rehearsal runs."""


class Progress(Struct, frozen=True, kw_only=True):
    """Where a rehearsal is."""

    at_s: float
    until_s: float
    events: int
    gangs: int
    waiting: int


class Total(Struct, frozen=True, kw_only=True):
    """GPU-time in one state over the whole rehearsal."""

    state: str
    gpu_h: float
    share: float
    """Of all delivered GPU-time."""
    usd: Decimal | None
    """None where nothing in it has a price."""


class Rehearsal(Struct, frozen=True, kw_only=True):
    """What happened. Equal inputs and seeds give equal rehearsals, but for `wall_s` and `events_per_s`."""

    seed: int
    start_s: float
    until_s: float
    gpus: int
    """Delivered by the end."""
    jobs: dict[str, int]
    """submitted, started, finished, cancelled and refused meanwhile; waiting and held (gangs) at the end."""
    waits: tuple[Wait, ...]
    departures: dict[str, int]
    """Gangs told to leave, by reason: preempted-for, drain."""
    preemption_gpu_h: dict[str, float]
    """What preemption cost: GPU-hours by state (lost, checkpointing, leaving, starting again)."""
    failures: dict[str, int]
    """Failures of hardware by cause; with what they cost in `failure_gpu_h`."""
    failure_gpu_h: dict[str, float]
    repairs: int
    restarts: dict[str, int]
    """Answers to failures under gangs: spare, moved-segment, requeued."""
    occupancy: tuple[float, ...]
    """Share of the delivered GPUs that gangs held, at equal distances from the start."""
    totals: tuple[Total, ...]
    quality: Quality
    ledger: tuple[Row, ...]
    events: dict[str, int]
    """Events by type."""
    wall_s: float
    events_per_s: float


def rehearse(
    documents: Documents,
    *,
    until_s: float,
    seed: int = 0,
    jobs: Iterable[Submission] = (),
    inputs: Iterable[Input] = (),
    failures: bool = True,
    by_job: bool = False,
    log: Log | None = None,
    listeners: Iterable[Callable[[Event], None]] = (),
    progress: Callable[[Progress], None] | None = None,
    decide: Decide = schedule,
) -> Rehearsal:
    """Run the documents' fleet and work, and `jobs` beside it, from an empty fleet at time 0 until `until_s`.

    What the documents announce, plan and book happens too. `jobs` and `inputs` (drains, cancellations, scripted
    failures) must be in time order.
    """
    work = submissions(documents.work, seed=seed, end_s=until_s)
    twin = TwinExecutor(
        seed=seed,
        submissions=heapq.merge(work, jobs, key=lambda submission: submission.at_s),
        inputs=heapq.merge(documents.opening(), inputs, key=lambda event: event.at_s),
        failures=documents.failures if failures else None,
    )
    return play(
        FleetState(), twin, until_s=until_s, seed=seed, by_job=by_job, log=log, listeners=listeners, progress=progress,
        decide=decide,
    )  # fmt: skip


def play(
    state: FleetState,
    twin: TwinExecutor,
    *,
    until_s: float,
    seed: int = 0,
    by_job: bool = False,
    log: Log | None = None,
    listeners: Iterable[Callable[[Event], None]] = (),
    progress: Callable[[Progress], None] | None = None,
    decide: Decide = schedule,
) -> Rehearsal:
    """Drive a twin from a state, which is changed: pass `state.fork()` of a live one, and a twin that recovered it."""
    started_s, reported_s = time.perf_counter(), time.perf_counter()
    start_s = twin.now_s
    ledger = Ledger(by_job=by_job)
    ledger.adopt(state, start_s)
    meter = Meter(ledger, start_s=start_s)
    tally = Tally(meter, start_s=start_s, until_s=until_s, samples=SAMPLES)
    controller = Controller(state, twin, log=log, listeners=(tally, *listeners), decide=decide)
    with _few_collections():
        while twin.now_s < until_s and not twin.done:
            controller.step(until_s)
            if progress is not None and time.perf_counter() - reported_s > REPORT_EVERY_S:
                reported_s = time.perf_counter()
                progress(_progress(state, twin, tally, until_s))
    tally.sample(until_s)
    if progress is not None:
        progress(_progress(state, twin, tally, until_s))
    wall_s = time.perf_counter() - started_s
    return _rehearsal(state, ledger, tally, meter, seed=seed, start_s=start_s, until_s=until_s, wall_s=wall_s)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Look for cyclic garbage seldom: the loop makes next to none, and each look goes over all that is alive."""
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _progress(state: FleetState, twin: TwinExecutor, tally: Tally, until_s: float) -> Progress:
    waiting = state.waiting.size + len(state.claimants)
    return Progress(
        at_s=twin.now_s, until_s=until_s, events=sum(tally.counts.values()), gangs=len(state.gangs), waiting=waiting
    )  # fmt: skip


def _rehearsal(
    state: FleetState, ledger: Ledger, tally: Tally, meter: Meter, *, seed: int, start_s: float, until_s: float,
    wall_s: float,
) -> Rehearsal:  # fmt: skip
    rows = ledger.rows(until_s)
    waiting = sum(gang.status is Status.WAITING for gang in state.gangs.values())
    events = {kind.__name__: count for kind, count in sorted(tally.counts.items(), key=lambda item: -item[1])}
    return Rehearsal(
        seed=seed,
        start_s=start_s,
        until_s=until_s,
        gpus=ledger.delivered_gpus(),
        jobs={
            **{what: tally.jobs[what] for what in COUNTED},
            "waiting": waiting,
            "held": len(state.gangs) - waiting,
        },
        waits=tally.waits(until_s),
        departures=dict(tally.departures),
        preemption_gpu_h=_charged(rows, "preempted", "reclaimed", "shrunk", "moved", "grown"),
        failures=dict(tally.failures),
        failure_gpu_h=_charged(rows, "node-failure"),
        repairs=tally.repairs,
        restarts=dict(tally.restarts),
        occupancy=tuple(tally.occupancy),
        totals=_totals(rows, ledger.delivered_gpu_us()),
        quality=meter.answer(until_s),
        ledger=rows,
        events=events,
        wall_s=wall_s,
        events_per_s=sum(events.values()) / wall_s,
    )


def _charged(rows: Iterable[Row], *causes: str) -> dict[str, float]:
    """GPU-hours by state that are charged to these causes."""
    found: dict[str, float] = {}
    for row in rows:
        if row.cause in causes:
            found[row.state] = found.get(row.state, 0.0) + row.gpu_h
    return found


def _totals(rows: Iterable[Row], delivered_gpu_us: int) -> tuple[Total, ...]:
    gpu_us, usd = dict.fromkeys(STATES, 0), dict[str, Decimal]()
    for row in rows:
        gpu_us[row.state] += row.gpu_us
        if row.usd is not None:
            usd[row.state] = usd.get(row.state, Decimal(0)) + row.usd
    return tuple(
        Total(state=state, gpu_h=us / US_PER_H, share=us / max(1, delivered_gpu_us), usd=usd.get(state))
        for state, us in gpu_us.items()
    )
