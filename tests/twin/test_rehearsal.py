"""What a rehearsal reports, on days small enough to count by hand."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from rackscale.events import Cancelled, Drained, Event, GangEnded, Input, NodeFailed, NodeRepaired
from rackscale.spec import Arrivals, Documents, Failures, Submission, Work
from rackscale.spec.documents import Window
from rackscale.spec.times import When
from rackscale.twin import Progress, Rehearsal, rehearse
from rackscale.workload import Job, Maintenance, Policy, Shape
from tests.twin.test_determinism import day
from tests.twin.test_executor import RACK, job


def small(*inputs: Input, by_job: bool = False) -> Rehearsal:
    """A rack of 4 x 4 GPUs with one spare: training on 3 nodes, preempted at 500 s for 100 s of high priority."""
    rack = msgspec.structs.replace(RACK, usd_per_gpu_hour=10.0)
    vip = job("vip", priority="high", duration_s=100.0)
    documents = Documents(
        fleet=(rack,),
        failures=Failures(per_gpu_hour=0.0),
        policy=Policy(min_runtime_s=0.0),
        work=(Work(job=job("a")), Work(job=vip, arrivals=Arrivals(at_s=(500.0,)))),
    )
    return rehearse(documents, until_s=3600.0, inputs=inputs, by_job=by_job)


def gpu_s(found: Rehearsal, state: str) -> float:
    return next(total for total in found.totals if total.state == state).gpu_h * 3600.0


def test_what_happened_is_counted() -> None:
    found = small()
    assert found.jobs == {
        "submitted": 2, "started": 2, "finished": 2, "cancelled": 0, "refused": 0, "waiting": 0, "held": 0
    }  # fmt: skip
    assert found.departures == {"preempted-for": 1}
    assert (found.failures, found.repairs, found.restarts) == ({}, 0, {})
    assert found.gpus == 16
    assert found.events["GangEnded"] == 3
    assert found.events_per_s > 0


def test_gpu_time_adds_up_and_has_its_price() -> None:
    found = small()
    assert gpu_s(found, "productive") == pytest.approx(12 * 1100)
    assert gpu_s(found, "starting") == pytest.approx(12 * 150)
    assert gpu_s(found, "checkpointing") == pytest.approx(12 * 20)
    assert gpu_s(found, "spare") == pytest.approx(4 * 3600)
    assert sum(total.share for total in found.totals) == pytest.approx(1.0)
    assert sum(total.usd or 0 for total in found.totals) == Decimal(160)
    assert found.preemption_gpu_h == pytest.approx(
        {"starting": 12 * 50 / 3600, "checkpointing": 12 * 20 / 3600}
    )


def test_waits_are_by_priority_and_size() -> None:
    high, normal = small().waits
    assert (high.priority, high.size, high.started, high.waiting) == ("high", "2-4 nodes", 1, 0)
    assert high.p50_s == high.p95_s == high.max_s == 20.0
    assert (normal.priority, normal.p50_s) == ("normal", 0.0)


def test_gangs_that_still_wait_are_told_apart_from_those_that_started() -> None:
    found = small(Drained(at_s=510.0, domain=RACK.name))
    assert (found.jobs["started"], found.jobs["waiting"], found.jobs["held"]) == (1, 2, 0)
    high, _ = found.waits
    assert (high.started, high.p50_s, high.waiting, high.longest_waiting_s) == (0, None, 1, 3100.0)


def test_failures_and_what_they_cost() -> None:
    fail = NodeFailed(at_s=450.0, domain=RACK.name, nodes=(0,), cause="node")
    found = small(fail, NodeRepaired(at_s=480.0, domain=RACK.name, nodes=(0,)))
    assert (found.failures, found.repairs, found.restarts) == ({"node": 1}, 1, {"spare": 1})
    assert found.failure_gpu_h == pytest.approx({"lost": 12 * 100 / 3600, "starting": 12 * 50 / 3600})


def test_jobs_that_leave_without_an_end_are_counted() -> None:
    found = small(Cancelled(at_s=100.0, job="a"))
    assert found.jobs["cancelled"] == 1
    never = Job(name="never", kind="batch", shape=Shape(nodes_per_segment=40), duration_s=1.0)
    refused = rehearse(Documents(fleet=(RACK,), work=(Work(job=never),)), until_s=10.0)
    assert refused.jobs["refused"] == 1
    assert not refused.waits


def test_recorded_jobs_run_beside_the_documents() -> None:
    extra = Submission(at_s=1500.0, job=job("extra", duration_s=10.0), duration_s=10.0)
    documents = Documents(fleet=(RACK,), work=(Work(job=job("a")),))
    found = rehearse(documents, until_s=3600.0, jobs=[extra])
    assert found.jobs["finished"] == 2


def test_the_curve_of_occupancy_follows_what_gangs_hold() -> None:
    curve = small().occupancy
    assert len(curve) == 120
    assert (curve[0], curve[-1]) == (0.75, 0.0)


def test_failures_can_be_left_out() -> None:
    assert rehearse(day(), until_s=86_400.0).failures
    assert not rehearse(day(), until_s=86_400.0, failures=False).failures


def test_it_says_where_it_is() -> None:
    seen: list[Progress] = []
    found = rehearse(day(), until_s=86_400.0, progress=seen.append)
    assert seen[-1].at_s == seen[-1].until_s == 86_400.0
    assert seen[-1].events == sum(found.events.values())


def test_a_rehearsal_is_json() -> None:
    found = small(by_job=True)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Rehearsal) == found
    assert {row.job for row in found.ledger} == {"", "a", "vip"}


def test_the_log_sees_what_listeners_see() -> None:
    written: list[Event] = []
    heard: list[Event] = []

    class Log:
        def append(self, events: list[Event], _replies: object) -> None:
            written.extend(events)

    rehearse(day(), until_s=36_000.0, log=Log(), listeners=(heard.append,))  # type: ignore[arg-type]
    assert written == heard
    assert len(written) > 100


def test_what_documents_announce_plan_and_book_happens() -> None:
    second = msgspec.structs.replace(RACK, name="c/us-001")
    later = When(600.0, "rehearsal")
    pause = Maintenance(name="m", domain=RACK.name, start_s=0.0, end_s=0.0)
    documents = Documents(
        fleet=(RACK, second),
        failures=Failures(per_gpu_hour=0.0),
        later=((later, (second,)),),
        windows=(Window(value=pause, start=When(300.0, "rehearsal"), end=When(9000.0, "rehearsal")),),
        work=(Work(job=job("a")), Work(job=job("short", duration_s=100.0))),
    )
    heard: list[Event] = []
    rehearse(documents, until_s=3600.0, listeners=(heard.append,))
    ended = {event.gang: event.at_s for event in heard if isinstance(event, GangEnded)}
    # `short` is over before the maintenance of the only rack begins; `a` would not be, and waits for the second.
    assert ended == {"short": 150.0, "a": 600.0 + 50.0 + 1000.0}
