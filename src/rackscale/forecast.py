"""What will happen: the twin, run from a live state, with the same scheduler.

One run without new failures and without arrivals nobody knows of. It is a forecast without a band; `audit` shows how
far off such forecasts were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rackscale.control import Controller
from rackscale.events import Decided, Event, Forecast, GangRunning, Input, Preempt, Start, Submitted
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
        gangs = [gang for gang in state.gangs.values() if gang.job in self.open]
        self._jobs = {gang.name: gang.job for gang in gangs}
        """Gang -> its job. The state can't say: a gang may have ended in the cycle in which it began to work."""
        self._seen = set(self._jobs.values())
        self._start: dict[str, float] = {}
        self._running: dict[str, float] = {}
        for gang in gangs:
            if gang.first_started_s is not None:
                self._start.setdefault(gang.job, gang.first_started_s)
            if gang.running_s is not None:
                self._running.setdefault(gang.job, gang.running_s)
        self._end: dict[str, float] = {}
        self._victims: dict[str, dict[str, float]] = {name: {} for name in self.open}

    def see(self, event: Event) -> None:
        self.events += 1
        if isinstance(event, Submitted) and event.job.name in self.open:
            self._jobs |= dict.fromkeys(event.job.gangs(), event.job.name)
        elif isinstance(event, GangRunning) and event.gang in self._jobs:
            self._running.setdefault(self._jobs[event.gang], event.at_s)
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
            if isinstance(action, Start) and action.gang in self._jobs:
                self._start.setdefault(self._jobs[action.gang], event.at_s)
            elif isinstance(action, Preempt) and action.reason.for_gang in self._jobs:
                victims = self._victims[self._jobs[action.reason.for_gang]]
                victims[action.gang] = action.reason.lost_gpu_s

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
