"""`audit`: what a plan promised beside what then happened, from the journal alone.

A forecast here is one run of the twin, without a band; what is scored is its error.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from msgspec import Struct

from rackscale.events import (
    Cancelled,
    Decided,
    Event,
    Forecast,
    GangEnded,
    GangRunning,
    Preempt,
    Start,
    Submitted,
)
from rackscale.fleet.state import FleetState


class Times(Struct, kw_only=True):
    """When a job first started, first did productive work, and ended, seconds after it was submitted."""

    start_s: float | None = None
    running_s: float | None = None
    end_s: float | None = None


class Audit(Struct, frozen=True, kw_only=True):
    """One job: its forecast and its outcome."""

    job: str
    outcome: str
    """finished, failed, cancelled, refused, or `open` while it has not ended."""
    forecast: Times
    actual: Times
    victims_forecast: tuple[str, ...]
    victims: tuple[str, ...]
    lost_gpu_h_forecast: float
    """What the plan said its victims would lose at most."""
    lost_gpu_h: float
    """What they had at risk when they were told to leave and did not save."""

    @property
    def start_error_s(self) -> float | None:
        return _minus(self.actual.start_s, self.forecast.start_s)

    @property
    def end_error_s(self) -> float | None:
        return _minus(self.actual.end_s, self.forecast.end_s)


class Score(Struct, frozen=True, kw_only=True):
    """How forecasts of one kind fared over the jobs whose outcome is known."""

    jobs: int
    median_abs_start_error_s: float | None
    median_abs_end_error_s: float | None
    victims_right: int
    """Jobs whose victims were exactly the forecast ones."""


class _Record(Struct, kw_only=True):
    """One submission of a job; the same name may be submitted again when it has ended."""

    job: str
    gangs: frozenset[str]
    submitted_s: float
    forecast: Forecast | None = None
    actual: Times
    started: set[str]
    working: set[str]
    outcome: str = "open"
    victims: dict[str, float]
    """Gang -> GPU-seconds that it lost, as far as is known."""


class _Auditor:
    """Follows the state, with one open record per live job."""

    def __init__(self) -> None:
        self.state = FleetState()
        self.records: list[_Record] = []
        self._open: dict[str, _Record] = {}
        self._leaving: dict[tuple[str, int], _Record] = {}
        """Attempts told to leave for somebody -> that somebody's record."""

    def see(self, event: Event) -> None:
        state = self.state
        match event:
            case Submitted() if event.job.name not in state.jobs:
                self._submitted(event)
            case Forecast() if event.job in self._open:
                self._open[event.job].forecast = event
            case Decided():
                self._decided(event)
            case GangRunning() if event.gang in state.gangs:
                record = self._open[state.gangs[event.gang].job]
                record.working.add(event.gang)
                if record.actual.running_s is None and record.working == record.gangs:
                    record.actual.running_s = event.at_s - record.submitted_s
            case GangEnded() if (event.gang, event.attempt) in self._leaving:
                record = self._leaving.pop((event.gang, event.attempt))
                if event.checkpointed:
                    record.victims[event.gang] = 0.0
        state.fold(event)
        if isinstance(event, GangEnded | Decided | Cancelled):
            self._close()

    def _submitted(self, event: Submitted) -> None:
        record = _Record(
            job=event.job.name, gangs=frozenset(event.job.gangs()), submitted_s=event.at_s, actual=Times(),
            started=set(), working=set(), victims={},
        )  # fmt: skip
        self.records.append(record)
        self._open[record.job] = record

    def _decided(self, event: Decided) -> None:
        gangs = self.state.gangs
        for action in event.plan.actions:
            if isinstance(action, Start):
                record = self._open[gangs[action.gang].job]
                record.started.add(action.gang)
                if record.actual.start_s is None and record.started == record.gangs:
                    record.actual.start_s = event.at_s - record.submitted_s
            elif isinstance(action, Preempt) and action.reason.for_gang in gangs:
                record = self._open[gangs[action.reason.for_gang].job]
                record.victims[action.gang] = action.reason.lost_gpu_s
                self._leaving[action.gang, action.attempt] = record

    def _close(self) -> None:
        for name in [name for name in self._open if name not in self.state.jobs]:
            record = self._open.pop(name)
            last = max(
                (self.state.ended[gang] for gang in sorted(record.gangs)), key=lambda ended: ended.at_s
            )
            record.outcome = last.outcome
            record.actual.end_s = last.at_s - record.submitted_s


def audit(events: Iterable[Event]) -> tuple[Audit, ...]:
    """Every submission with a forecast, in order. A service starts when its last replica does."""
    auditor = _Auditor()
    for event in events:
        auditor.see(event)
    return tuple(_row(record, record.forecast) for record in auditor.records if record.forecast is not None)


def score(rows: Iterable[Audit]) -> Score:
    """Summary over the jobs that finished."""
    done = [row for row in rows if row.outcome == "finished"]
    starts = [abs(row.start_error_s) for row in done if row.start_error_s is not None]
    ends = [abs(row.end_error_s) for row in done if row.end_error_s is not None]
    return Score(
        jobs=len(done),
        median_abs_start_error_s=median(starts) if starts else None,
        median_abs_end_error_s=median(ends) if ends else None,
        victims_right=sum(set(row.victims) == set(row.victims_forecast) for row in done),
    )


def _row(record: _Record, forecast: Forecast) -> Audit:
    promised = Times(
        start_s=_after(record.submitted_s, forecast.start_s),
        running_s=_after(record.submitted_s, forecast.running_s),
        end_s=_after(record.submitted_s, forecast.end_s),
    )
    return Audit(
        job=record.job, outcome=record.outcome, forecast=promised, actual=record.actual,
        victims_forecast=forecast.victims, victims=tuple(record.victims),
        lost_gpu_h_forecast=forecast.lost_gpu_s / 3600, lost_gpu_h=sum(record.victims.values()) / 3600,
    )  # fmt: skip


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _after(submitted_s: float, at_s: float | None) -> float | None:
    """Seconds after the submission; a plan is made a moment before it, and its "now" is no earlier."""
    return None if at_s is None else max(0.0, at_s - submitted_s)
