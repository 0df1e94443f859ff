"""Every metric agrees with looking at each node every half second, whatever happens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale.capacity.curve import POINTS, Curve
from rackscale.capacity.ledger import Ledger
from rackscale.capacity.quality import Quality, measure
from rackscale.capacity.waits import quantile, spread
from rackscale.events import (
    Cancelled,
    Decided,
    Delivered,
    DomainSpec,
    Event,
    GangEnded,
    GangRunning,
    Move,
    Plan,
    Preempt,
    Reason,
    Segment,
    Start,
    Submitted,
)
from rackscale.workload import Durability, Job, Nearness, Shape
from tests.capacity.clerk import Clerk
from tests.capacity.histories import histories

AFTER_S = 5.0
FITS = Reason(code="fits")


@given(history=histories())
def test_the_ledger_agrees_with_looking_at_every_node(history: list[Event]) -> None:
    ledger, clerk = Ledger(), Clerk()
    for event in history:
        ledger(event)
        clerk(event)
        assert sum(row.gpu_us for row in ledger.rows()) == ledger.delivered_gpu_us()
    until_s = history[-1].at_s + AFTER_S
    found: Counter[tuple[str, str]] = Counter()
    for row in ledger.rows(until_s):
        found[row.state, row.cause] += row.gpu_us
    assert dict(found) == clerk.account(until_s)
    assert ledger.delivered_gpu_us() == clerk.delivered * 500_000
    assert sum(row.gpu_us for row in ledger.undelivered()) == clerk.missing * 500_000


@given(history=histories(), share=st.sampled_from((0.0, 0.0, 0.3, 0.8, 1.0)))
def test_quality_agrees_with_looking_at_every_node(history: list[Event], share: float) -> None:
    """Of the whole history, and of its later part."""
    end_s = history[-1].at_s
    since_s, until_s = float(round(end_s * share)), end_s + AFTER_S
    clerk, begun = Clerk(), not share
    for event in history:
        if not begun and event.at_s >= since_s:
            clerk.begin(since_s)
            begun = True
        clerk(event)
    if not begun:
        clerk.begin(since_s)
    found = measure(history, since_s=since_s if share else None, until_s=until_s)
    assert_seen(found, clerk, clerk.account(until_s))


def assert_seen(found: Quality, clerk: Clerk, cells: dict[tuple[str, str], int]) -> None:
    assert found.gar.mean == mean(clerk.gar)
    assert found.gfr.mean == mean(clerk.gfr)
    waited: dict[tuple[str, str], list[float]] = {}
    for priority, size, wait_s in clerk.waits:
        waited.setdefault((priority, size), []).append(wait_s)
    for wait in found.waits:
        times = sorted(waited.pop((wait.priority, wait.size), ()))
        assert wait.waits.done == len(times)
        if not wait.waits.open:
            assert (wait.waits.p50_s, wait.waits.max_s) == (quantile(times, 0.5), times[-1])
    assert not waited
    assert sum(wait.waits.open for wait in found.waits) == len(clerk.submitted)
    recovered: dict[str, list[float]] = {}
    for cause, took_s in clerk.recoveries:
        recovered.setdefault(cause, []).append(took_s)
    for recovery in found.recoveries:
        times = sorted(recovered.pop(recovery.cause, ()))
        assert recovery.times.done == len(times)
        if not recovery.times.open:
            assert (recovery.times.p50_s, recovery.times.max_s) == (quantile(times, 0.5), times[-1])
    assert not recovered
    delivered = clerk.delivered * 500_000
    lost = sum(us for (state, _), us in cells.items() if state == "lost")
    productive = cells.get(("productive", ""), 0)
    assert found.lost_of_capacity == (lost / delivered if delivered else None)
    assert found.goodput_of_capacity == (productive / delivered if delivered else None)
    for part in found.badput:
        if part.state != "spare":
            assert part.gpu_h * 3.6e9 == pytest.approx(cells[part.state, part.cause])


def mean(values: list[float]) -> Any:
    return pytest.approx(sum(values) / len(values)) if values else None


@given(
    start_s=st.sampled_from((0.0, 1.7e9)),
    steps=st.lists(
        st.tuples(st.none() | st.floats(0, 1), st.integers(0, 40_000).map(lambda n: n / 8)), max_size=60
    ),
)
def test_a_curve_keeps_its_mean_in_bounded_memory(
    start_s: float, steps: list[tuple[float | None, float]]
) -> None:
    curve, now_s = Curve(start_s), start_s
    weighted = span_s = 0.0
    for value, lasts_s in steps:
        curve.step(value, now_s)
        now_s += lasts_s
        if value is not None:
            weighted, span_s = weighted + value * lasts_s, span_s + lasts_s
    curve.until(now_s)
    assert curve.mean() == (pytest.approx(weighted / span_s, abs=1e-9) if span_s else None)
    points = curve.points()
    assert len(points) <= POINTS
    assert len(points) * curve.width_s <= max(1.0, now_s - start_s) + curve.width_s
    assert all(value is None or -1e-9 <= value <= 1 + 1e-9 for value in points)


times = st.lists(st.integers(0, 50).map(float), max_size=20)


@given(done=times, still=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_quantiles_with_open_waits_are_bounds_and_say_where_they_are_exact(
    done: list[float], still: list[tuple[int, int]]
) -> None:
    found = spread(done, [float(so_far) for so_far, _ in still])
    truth = sorted([*done, *(float(so_far + more) for so_far, more in still)])
    for share, value in [(0.5, found.p50_s), (0.9, found.p90_s), (0.99, found.p99_s), (1.0, found.max_s)]:
        expected = quantile(truth, share) or 0.0
        assert value <= expected
        if found.shortest_open_s is None or value < found.shortest_open_s:
            assert value == expected


# -- by hand ---------------------------------------------------------------------------------------------------------


def decided(at_s: float, *actions: Any) -> Decided:
    return Decided(at_s=at_s, plan=Plan(at_s=at_s, actions=actions))


def fleet(leaves: str) -> tuple[DomainSpec, ...]:
    """A domain of 4 nodes (1 of them spare) per letter, which names its leaf."""
    return tuple(
        DomainSpec(name=f"d{i}", system="s", nodes=4, gpus_per_node=1, cluster="c", spares=1, leaf=leaf)
        for i, leaf in enumerate(leaves)
    )


def gang(name: str, *domains: int, share: bool = False, nearness: Nearness | None = None) -> list[Event]:
    """Submitted and started at 0 with one node per segment; the n-th segment of a domain takes its n-th node."""
    shape = Shape(segments=len(domains), may_share_domain=share)
    job = Job(name=name, kind="batch", shape=shape, nearness=nearness or Nearness())
    binding = tuple(Segment(domain=f"d{d}", nodes=(domains[:i].count(d),)) for i, d in enumerate(domains))
    return [
        Submitted(at_s=0.0, job=job),
        decided(0.0, Start(gang=name, attempt=1, binding=binding, reason=FITS)),
    ]


def multiples(leaves: str, *events: Event) -> dict[str, float]:
    """Level -> mean multiple of the least."""
    found = measure([Delivered(at_s=0.0, domains=fleet(leaves)), *events], until_s=1.0)
    return {span.level: span.mean for span in found.placements}


def test_what_a_gang_spans_is_compared_with_the_least_possible() -> None:
    assert multiples("xxyyz", *gang("j", 0, 1)) == {"domain": 1.0, "leaf": 1.0}
    assert multiples("xxyyz", *gang("j", 1, 2)) == {"domain": 1.0, "leaf": 2.0}
    # Three domains fit in no leaf, so that two leaves are the least and three are 1.5 times that.
    assert multiples("xxyyz", *gang("j", 0, 2, 4)) == {"domain": 1.0, "leaf": 1.5}
    # Three segments share one domain, which gives three nodes and keeps a spare; a fourth needs another.
    assert multiples("xx", *gang("j", 0, 1, 1, share=True)) == {"domain": 2.0}
    assert multiples("xx", *gang("j", 0, 0, 0, 1, share=True)) == {"domain": 1.0}


def test_gangs_of_one_segment_and_gangs_that_ask_for_distance_are_no_measure_of_placement() -> None:
    assert multiples("xy", *gang("j", 0)) == {}
    assert multiples("xy", *gang("j", 0, 1, nearness=Nearness(spread="leaf"))) == {}


def test_fragmentation_counts_domains_in_use_with_idle_nodes_beyond_spares() -> None:
    start = [Delivered(at_s=0.0, domains=fleet("xxxx"))]
    assert measure(start, until_s=10.0).gfr.mean == 0.0
    one = measure([*start, *gang("j", 0)], until_s=10.0)
    assert (one.gfr.mean, one.gar.mean, one.sor) == (0.25, 1 / 16, 1 / 16)
    assert one.stranded_of_free == 2 / (2 + 3 * 3)
    full = measure([*start, *gang("j", 0, 0, 0, share=True)], until_s=10.0)
    assert (full.gfr.mean, full.stranded_of_free) == (0.0, 0.0)


def story() -> list[Event]:
    """Two gangs: one is preempted and works again 30 s later, one is moved and has not come back at 100 s."""
    binding, other = (Segment(domain="d0", nodes=(0,)),), (Segment(domain="d1", nodes=(0,)),)
    told, back = Reason(code="preempted-for"), Reason(code="fits")
    return [
        Delivered(at_s=0.0, domains=fleet("xx")), *gang("a", 0), *gang("b", 1),
        GangRunning(at_s=10.0, gang="a", attempt=1), GangRunning(at_s=10.0, gang="b", attempt=1, saves_every_s=8.0),
        decided(40.0, Preempt(gang="a", attempt=1, grace_s=9.0, reason=told)),
        GangEnded(at_s=50.0, gang="a", attempt=1, outcome="left", checkpointed=True),
        decided(60.0, Start(gang="a", attempt=2, binding=binding, reason=back)),
        GangRunning(at_s=70.0, gang="a", attempt=2),
        decided(80.0, Move(gang="b", attempt=1, grace_s=9.0, binding=other, reason=Reason(code="grown"))),
        GangEnded(at_s=90.0, gang="b", attempt=1, outcome="left"),
    ]  # fmt: skip


def test_departures_recoveries_and_badput_have_causes() -> None:
    found = measure(story(), until_s=100.0)
    assert found.departures == {"preempted": {"preempted": 1}, "moved": {"grown": 1}}
    times = {recovery.cause: recovery.times for recovery in found.recoveries}
    assert (times["preempted"].done, times["preempted"].max_s, times["preempted"].open) == (1, 30.0, 0)
    assert (times["grown"].done, times["grown"].open, times["grown"].longest_open_s) == (0, 1, 20.0)
    badput = {(part.state, part.cause): round(part.gpu_h * 3600) for part in found.badput}
    assert badput == {
        ("starting", "first-start"): 20, ("starting", "preempted"): 10, ("checkpointing", "preempted"): 10,
        ("leaving", "grown"): 10, ("lost", "grown"): 70 % 8,
    }  # fmt: skip
    assert found.goodput == (30 + 30 + 64) / (30 + 30 + 70 + 50)


def test_what_ran_before_the_window_counts_from_its_beginning() -> None:
    found = measure(story(), since_s=45.0, until_s=100.0)
    badput = {(part.state, part.cause): round(part.gpu_h * 3600) for part in found.badput}
    assert badput == {
        ("checkpointing", "preempted"): 5, ("starting", "preempted"): 10, ("leaving", "grown"): 10,
        ("lost", "grown"): 6,
    }  # fmt: skip
    assert found.delivered_gpu_h * 3600 == 55 * 8
    assert found.departures == {"moved": {"grown": 1}}
    assert found.waits == ()


def test_who_waits_at_the_end_and_who_was_cancelled_are_told_apart() -> None:
    submitted = [Submitted(at_s=5.0, job=Job(name=n, kind="batch", shape=Shape())) for n in ("w", "c")]
    found = measure(
        [Delivered(at_s=0.0, domains=fleet("x")), *submitted, Cancelled(at_s=8.0, job="c")], until_s=25.0
    )
    (wait,) = found.waits
    assert (wait.waits.done, wait.waits.open, wait.waits.max_s, wait.waits.longest_open_s) == (
        0,
        1,
        20.0,
        20.0,
    )


def test_a_job_that_failed_for_good_is_not_waited_for() -> None:
    """Once it is retried, and then given up: what it is submitted again for is another story."""
    job = Job(name="a", kind="batch", shape=Shape(), durability=Durability(max_restarts=1))
    binding = (Segment(domain="d0", nodes=(0,)),)

    def starts(at_s: float, attempt: int) -> Decided:
        return decided(at_s, Start(gang="a", attempt=attempt, binding=binding, reason=FITS))

    story: list[Event] = [
        Delivered(at_s=0.0, domains=fleet("xx")), Submitted(at_s=0.0, job=job), starts(0.0, 1)
    ]  # fmt: skip
    for attempt, at_s in ((1, 10.0), (2, 30.0)):
        story += [
            GangRunning(at_s=at_s, gang="a", attempt=attempt),
            GangEnded(at_s=at_s + 10.0, gang="a", attempt=attempt, outcome="failed"),
        ]
        if attempt == 1:
            (waits,) = measure(story, until_s=25.0).recoveries
            assert (waits.cause, waits.times.done, waits.times.open) == ("program-failed", 0, 1)
            story.append(starts(30.0, 2))
    (found,) = measure(story, until_s=500.0).recoveries
    assert (found.cause, found.times.done, found.times.open, found.times.max_s) == (
        "program-failed",
        1,
        0,
        10.0,
    )
    story += [
        Submitted(at_s=600.0, job=job),
        starts(600.0, 3),
        GangRunning(at_s=610.0, gang="a", attempt=3),
    ]
    assert measure(story, until_s=700.0).recoveries == (found,)
