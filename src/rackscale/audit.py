"""`audit`: what a plan promised beside what then happened, from the journal alone.

A forecast here is one run of the twin, without a band; what is scored is its error.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from msgspec import Struct

from rackscale.events import Decided, Event, Forecast, GangEnded, GangRunning, Preempt, Start, Submitted
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
    submitted_s: float
    forecast: Forecast | None = None
    actual: Times
    outcome: str = "open"
    victims: dict[str, float]
    """Gang -> GPU-seconds at risk when it was told to leave."""


def audit(events: Iterable[Event]) -> tuple[Audit, ...]:
    """Every job with a forecast, in order of submission."""
    state = FleetState()
    records: dict[str, _Record] = {}
    for event in events:
        match event:
            case Submitted() if event.job.name not in state.jobs:
                records[event.job.name] = _Record(submitted_s=event.at_s, actual=Times(), victims={})
            case Forecast() if event.job in records:
                records[event.job].forecast = event
            case Decided():
                _decided(state, records, event)
            case GangRunning() if (gang := state.gangs.get(event.gang)) and (record := records.get(gang.job)):
                if record.actual.running_s is None:
                    record.actual.running_s = event.at_s - record.submitted_s
            case GangEnded() if event.checkpointed:
                for record in records.values():
                    if event.gang in record.victims:
                        record.victims[event.gang] = 0.0
        state.fold(event)
        if isinstance(event, GangEnded | Decided):
            _close(state, records)
    return tuple(_row(name, record) for name, record in records.items() if record.forecast is not None)


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


def _decided(state: FleetState, records: dict[str, _Record], event: Decided) -> None:
    for action in event.plan.actions:
        if isinstance(action, Start) and (record := records.get(state.gangs[action.gang].job)):
            if record.actual.start_s is None:
                record.actual.start_s = event.at_s - record.submitted_s
        elif isinstance(action, Preempt) and action.reason.for_gang is not None:
            winner = state.gangs.get(action.reason.for_gang)
            if winner is not None and winner.job in records:
                records[winner.job].victims[action.gang] = action.reason.lost_gpu_s


def _close(state: FleetState, records: dict[str, _Record]) -> None:
    for name, record in records.items():
        if record.outcome == "open" and name not in state.jobs:
            endings = [ended for ended in state.ended.values() if ended.job == name]
            if endings:
                last = max(endings, key=lambda e: e.at_s)
                record.outcome = last.outcome
                record.actual.end_s = last.at_s - record.submitted_s


def _row(name: str, record: _Record) -> Audit:
    forecast = record.forecast
    assert forecast is not None
    promised = Times(
        start_s=_after(record.submitted_s, forecast.start_s),
        running_s=_after(record.submitted_s, forecast.running_s),
        end_s=_after(record.submitted_s, forecast.end_s),
    )
    return Audit(
        job=name, outcome=record.outcome, forecast=promised, actual=record.actual,
        victims_forecast=forecast.victims, victims=tuple(record.victims),
        lost_gpu_h_forecast=forecast.lost_gpu_s / 3600, lost_gpu_h=sum(record.victims.values()) / 3600,
    )  # fmt: skip


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _after(submitted_s: float, at_s: float | None) -> float | None:
    """Seconds after the submission; a plan is made a moment before it, and its "now" is no earlier."""
    return None if at_s is None else max(0.0, at_s - submitted_s)
