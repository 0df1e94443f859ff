"""What a plan promised, beside what happened."""

from __future__ import annotations

from rackscale.audit import audit, score
from rackscale.events import (
    Cancelled,
    Decided,
    Delivered,
    Event,
    Forecast,
    GangEnded,
    GangRunning,
    Input,
    Submitted,
)
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.workload import Job
from tests.scheduler.world import domain, job


class Recorder:
    """Cycles by hand; keeps the stream that a journal would."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state = FleetState()
        self(Delivered(at_s=0.0, domains=(domain(0),)))

    def __call__(self, *inputs: Input | Forecast) -> None:
        for event in inputs:
            self.state.fold(event)
        decided = Decided(at_s=self.state.now_s, plan=decide(self.state, self.state.now_s))
        self.state.fold(decided)
        self.events += [*inputs, decided]

    def submit(self, it: Job, at_s: float, **promised: float) -> None:
        forecast = Forecast(
            at_s=at_s,
            job=it.name,
            start_s=promised.get("start_s"),
            running_s=None,
            end_s=promised.get("end_s"),
        )
        self(Submitted(at_s=at_s, job=it), forecast)


def test_times_count_from_the_submission() -> None:
    run = Recorder()
    run.submit(job("a", 2), 10.0, start_s=10.0, end_s=50.0)
    run(GangRunning(at_s=15.0, gang="a", attempt=1))
    run(GangEnded(at_s=70.0, gang="a", attempt=1, outcome="finished"))
    (row,) = audit(run.events)
    assert (row.forecast.start_s, row.actual.start_s) == (0.0, 0.0)
    assert row.actual.running_s == 5.0
    assert row.end_error_s == 20.0
    assert score([row]).median_abs_end_error_s == 20.0


def test_a_name_submitted_again_is_a_new_row() -> None:
    run = Recorder()
    run.submit(job("a", 2), 10.0, start_s=10.0)
    run(Cancelled(at_s=20.0, job="a"))
    run(GangEnded(at_s=21.0, gang="a", attempt=1, outcome="left"))
    run.submit(job("a", 2), 30.0, start_s=30.0)
    run(GangEnded(at_s=60.0, gang="a", attempt=2, outcome="finished"))
    first, second = audit(run.events)
    assert (first.outcome, second.outcome) == ("cancelled", "finished")
    assert second.actual.end_s == 30.0


def test_only_the_checkpoint_of_the_evicted_attempt_saves_its_work() -> None:
    run = Recorder()
    run(Submitted(at_s=0.0, job=job("victim", 16)))
    run(GangRunning(at_s=0.0, gang="victim", attempt=1))
    run.submit(job("prod", 16, priority="production"), 400.0, start_s=401.0)
    run(GangEnded(at_s=430.0, gang="victim", attempt=1, outcome="left"))  # killed at the end of its grace
    run(GangEnded(at_s=500.0, gang="prod", attempt=1, outcome="finished"))
    run(GangRunning(at_s=501.0, gang="victim", attempt=2))
    run(Cancelled(at_s=510.0, job="victim"))
    run(GangEnded(at_s=511.0, gang="victim", attempt=2, outcome="left", checkpointed=True))
    (row,) = audit(run.events)
    assert row.victims == ("victim",)
    assert row.lost_gpu_h == 400.0 * 64 / 3600
