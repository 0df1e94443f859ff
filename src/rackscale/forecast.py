"""What will happen: the twin, run from a live state, with the same scheduler.

One run without new failures and without arrivals nobody knows of. It is a forecast without a band; `audit` shows how
far off such forecasts were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rackscale.control import Controller
from rackscale.events import Decided, Event, Forecast, GangRunning, Input, Preempt, Start
from rackscale.fleet.gangs import Gang
from rackscale.fleet.state import FleetState
from rackscale.twin.executor import TwinExecutor

HORIZON_S = 7 * 86_400.0
EVENTS = 200_000
"""Events after which a forecast ends early; it then leaves later starts and ends open."""


def forecast(
    state: FleetState,
    inputs: Sequence[Event],
    *,
    names: Iterable[str],
    horizon_s: float = HORIZON_S,
) -> tuple[Forecast, ...]:
    """When the jobs `names` start, work and end if `inputs` happen to `state` now. The state is not touched.

    Times are on the state's clock, seconds; None: not within the horizon, or nobody knows how long the job takes.
    """
    watch = _Watch(state.fork(), names)
    if not watch.open:
        return ()
    # What is typed `Event` by commands is an input as far as the twin is concerned: notes decide nothing.
    twin = TwinExecutor(start_s=watch.state.now_s, inputs=[e for e in inputs if isinstance(e, Input)])
    twin.recover(watch.state)
    controller = Controller(watch.state, twin, listeners=(watch.see,))
    end_s = watch.state.now_s + horizon_s
    while watch.open and not twin.done and watch.events < EVENTS and twin.now_s < end_s:
        controller.step(end_s)
    return watch.forecasts()


class _Watch:
    """Notes the first start, first work and end of some jobs."""

    def __init__(self, state: FleetState, names: Iterable[str]) -> None:
        self.state = state
        self.at_s = state.now_s
        self.events = 0
        self.open = dict.fromkeys(names)
        self._names = tuple(self.open)
        self._seen: set[str] = set()
        self._start: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._end: dict[str, float] = {}
        self._victims: dict[str, dict[str, float]] = {name: {} for name in self.open}

    def _job(self, gang: str) -> str | None:
        record: Gang | None = self.state.gangs.get(gang)
        return record.job if record is not None and record.job in self._names else None

    def see(self, event: Event) -> None:
        self.events += 1
        if isinstance(event, GangRunning):
            job = self._job(event.gang)
            if job is not None:
                self._running.setdefault(job, event.at_s)
        elif isinstance(event, Decided):
            self._decided(event)
        for name in list(self.open):
            if name in self.state.jobs:
                self._seen.add(name)
            elif name in self._seen or name in self._start:
                self._end[name] = self.state.now_s
                del self.open[name]

    def _decided(self, event: Decided) -> None:
        for action in event.plan.actions:
            if isinstance(action, Start):
                job = self._job(action.gang)
                if job is not None:
                    self._start.setdefault(job, event.at_s)
            elif isinstance(action, Preempt) and action.reason.for_gang is not None:
                job = self._job(action.reason.for_gang)
                if job is not None:
                    self._victims[job][action.gang] = action.reason.lost_gpu_s

    def forecasts(self) -> tuple[Forecast, ...]:
        return tuple(
            Forecast(
                at_s=self.at_s,
                job=name,
                start_s=self._start.get(name),
                running_s=self._running.get(name),
                end_s=self._end.get(name),
                victims=tuple(self._victims[name]),
                lost_gpu_s=sum(self._victims[name].values()),
            )
            for name in self._names
        )
