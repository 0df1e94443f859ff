"""What will happen: the twin, run from a live state, with the same scheduler.

One run without new failures and without arrivals nobody knows of. It is a forecast without a band; `audit` shows how
far off such forecasts were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rackscale.control import Controller
from rackscale.events import Decided, Event, Forecast, GangRunning, Input, Preempt, Restart, Start, Submitted
from rackscale.fleet.state import FleetState
from rackscale.twin.executor import TwinExecutor
from rackscale.workload import Job

HORIZON_S = 7 * 86_400.0
EVENTS = 200_000
"""Events after which a forecast ends early; it then leaves later starts and ends open."""


def forecast(
    state: FleetState,
    inputs: Sequence[Event],
    *,
    names: Iterable[str],
    moved: Iterable[str] = (),
    now_s: float | None = None,
    horizon_s: float = HORIZON_S,
) -> tuple[Forecast, ...]:
    """When the jobs `names` start, work and end if `inputs` happen to `state` now. The state is not touched.

    `moved`: live gangs that have to leave; theirs is when they start and work again, or `end_s` alone where they end
    before they have to. A service starts when its last replica does. `now_s`: the present, where it is later than the
    last event that the state knows.

    Times are on the state's clock, seconds; None: not within the horizon, or nobody knows how long the job takes.
    """
    fork = state.fork()
    fork.now_s = max(fork.now_s, now_s or fork.now_s)  # what ran all the while has come further since
    watch = _Watch(fork, names, moved)
    if not watch.open:
        return ()
    # What is typed `Event` by commands is an input as far as the twin is concerned: notes decide nothing.
    twin = TwinExecutor(start_s=fork.now_s, inputs=[e for e in inputs if isinstance(e, Input)])
    twin.recover(fork)
    controller = Controller(fork, twin, listeners=(watch.see,))
    end_s = fork.now_s + horizon_s
    while watch.open and not twin.done and watch.events < EVENTS and twin.now_s < end_s:
        controller.step(end_s)
    return watch.forecasts()


class _Watch:
    """Notes when the gangs of some jobs start, work and end."""

    def __init__(self, state: FleetState, names: Iterable[str], moved: Iterable[str]) -> None:
        self.state, self.at_s = state, state.now_s
        self.events = 0
        self._moved = dict.fromkeys(moved)
        self._names = tuple(dict.fromkeys((*names, *self._moved)))
        self.open = dict.fromkeys(self._names)
        self._gangs: dict[str, tuple[str, ...]] = {}
        """Job -> its gangs, from when it is submitted; a gang that moves -> itself."""
        self._jobs: dict[str, str] = {}
        """Gang -> its job. The state can't say: a gang may have ended in the cycle in which it began to work."""
        self._start: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._end: dict[str, float] = {}
        self._victims: dict[str, dict[str, float]] = {name: {} for name in self._names}
        for name in self._names:
            if name in self._moved:
                self._gangs[name], self._jobs[name] = (name,), name
            elif name in state.jobs:
                self._know(state.jobs[name])
        for gang in state.gangs.values():
            if gang.job in self._gangs and gang.job not in self._moved:
                if gang.first_started_s is not None:
                    self._start[gang.name] = gang.first_started_s
                if gang.running_s is not None:
                    self._running[gang.name] = gang.running_s

    def _know(self, job: Job) -> None:
        self._gangs[job.name] = job.gangs()
        self._jobs |= dict.fromkeys(job.gangs(), job.name)

    def see(self, event: Event) -> None:
        self.events += 1
        if isinstance(event, Submitted) and event.job.name in self.open:
            self._know(event.job)
        elif isinstance(event, GangRunning) and event.gang in self._start:
            self._running.setdefault(event.gang, event.at_s)
        elif isinstance(event, Decided):
            self._decided(event)
        for name in [n for n in self.open if n in self._gangs]:
            moves = name in self._moved
            job = self.state.jobs.get(name)
            if name not in self.state.gangs if moves else job is None:
                self._end[name] = self.state.now_s
                del self.open[name]
            elif (moves or (job is not None and job.kind == "service")) and self._all(
                name, self._running
            ) is not None:
                del self.open[name]

    def _decided(self, event: Decided) -> None:
        for action in event.plan.actions:
            if isinstance(action, Start | Restart) and action.gang in self._jobs:
                self._start.setdefault(action.gang, event.at_s)
            elif isinstance(action, Preempt) and action.reason.for_gang in self._jobs:
                victims = self._victims[self._jobs[action.reason.for_gang]]
                victims[action.gang] = action.reason.lost_gpu_s

    def _all(self, name: str, times_s: Mapping[str, float]) -> float | None:
        """When the last gang of the job did; None until all have."""
        found = [times_s.get(gang) for gang in self._gangs.get(name, ())]
        done = [at_s for at_s in found if at_s is not None]
        return max(done) if done and len(done) == len(found) else None

    def forecasts(self) -> tuple[Forecast, ...]:
        return tuple(
            Forecast(
                at_s=self.at_s,
                job=name,
                start_s=self._all(name, self._start),
                running_s=self._all(name, self._running),
                end_s=self._end.get(name),
                victims=tuple(self._victims[name]),
                lost_gpu_s=sum(self._victims[name].values()),
            )
            for name in self._names
        )
