"""What a rehearsal samples: arrivals, durations, and nothing that depends on what else is there."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale import spec
from rackscale.spec import Arrivals, Duration, Work, submissions
from rackscale.workload import Job, Shape

HOUR_S, DAY_S = 3600.0, 86_400.0


def times_s(arrivals: Arrivals, end_s: float = 10 * DAY_S) -> list[float]:
    return list(arrivals.times_s(Random(1), end_s))


def work(
    name: str, arrivals: Arrivals | None = None, count: int | None = None, duration: Duration | None = None
) -> Work:
    return Work(
        job=Job(name=name, kind="batch", shape=Shape()), arrivals=arrivals, count=count, duration=duration
    )


def test_fixed_times() -> None:
    assert times_s(Arrivals(at_s=(5.0, 9.0))) == [5.0, 9.0]
    assert times_s(Arrivals(at_s=(5.0, 9.0)), end_s=9.0) == [5.0]
    assert times_s(Arrivals(at_s=(5.0,), repeat_every_s=DAY_S), end_s=2 * DAY_S) == [5.0, DAY_S + 5.0]


def test_every() -> None:
    hourly = Arrivals(every_s=HOUR_S, from_s=9 * HOUR_S, until_s=12 * HOUR_S)
    assert times_s(hourly) == [9 * HOUR_S, 10 * HOUR_S, 11 * HOUR_S]
    daily = msgspec.structs.replace(hourly, repeat_every_s=DAY_S)
    assert times_s(daily, end_s=2 * DAY_S) == times_s(hourly) + [DAY_S + at_s for at_s in times_s(hourly)]


def test_jitter_delays_and_keeps_order() -> None:
    plain = times_s(Arrivals(every_s=60.0, until_s=DAY_S))
    late = times_s(Arrivals(every_s=60.0, until_s=DAY_S, jitter_s=60.0))
    assert all(0 <= b - a < 60 for a, b in zip(plain, late, strict=False))
    assert late == sorted(late)
    assert len(set(late)) == len(late)


def test_random_arrivals_come_at_their_mean_rate_within_their_hours() -> None:
    found = times_s(
        Arrivals(per_hour=50, from_s=8 * HOUR_S, until_s=18 * HOUR_S, repeat_every_s=DAY_S), end_s=20 * DAY_S
    )
    assert len(found) == pytest.approx(20 * 10 * 50, rel=0.05)  # five standard deviations
    assert all(8 * HOUR_S <= at_s % DAY_S < 18 * HOUR_S for at_s in found)
    gaps_s = [b - a for a, b in pairwise(found) if b - a < HOUR_S]
    assert statistics.fmean(gaps_s) == pytest.approx(HOUR_S / 50, rel=0.05)
    assert statistics.stdev(gaps_s) == pytest.approx(HOUR_S / 50, rel=0.1)


def test_a_duration_has_the_quantiles_that_it_was_given() -> None:
    stream = Random(1)
    duration = Duration(median_s=HOUR_S, p90_s=3 * HOUR_S)
    drawn = sorted(duration.sample_s(stream) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(HOUR_S, rel=0.03)
    assert drawn[18_000] == pytest.approx(3 * HOUR_S, rel=0.05)
    assert statistics.fmean(drawn) == pytest.approx(duration.mean_s, rel=0.03)
    fixed = Duration(median_s=HOUR_S, p90_s=HOUR_S)
    assert {fixed.sample_s(stream) for _ in range(100)} == {HOUR_S} == {fixed.mean_s}


def test_names_of_one_and_of_many() -> None:
    def names(w: Work) -> list[str]:
        return [s.job.name for s in submissions([w], seed=1, end_s=DAY_S)]

    assert names(work("a")) == ["a"]
    assert names(work("a", Arrivals(at_s=(9.0,)))) == ["a"]
    assert names(work("a", Arrivals(at_s=(9.0,)), count=2)) == ["a-0", "a-1"]
    assert names(work("a", Arrivals(at_s=(9.0, 10.0)), count=2)) == ["a-0", "a-1", "a-2", "a-3"]
    assert names(work("a", Arrivals(every_s=DAY_S / 2))) == ["a-0", "a-1"]


@given(st.integers(), st.permutations(["a", "b", "c", "d"]))
def test_a_document_changes_no_other_and_the_seed_decides(seed: int, order: list[str]) -> None:
    random = Arrivals(per_hour=2)
    lasts = Duration(median_s=60.0, p90_s=600.0)
    alone = list(submissions([work("b", random, duration=lasts)], seed=seed, end_s=DAY_S))
    together = list(submissions([work(n, random, duration=lasts) for n in order], seed=seed, end_s=DAY_S))
    assert [s for s in together if s.job.name.startswith("b-")] == alone
    assert [s.at_s for s in together] == sorted(s.at_s for s in together)
    assert len({s.job.name for s in together}) == len(together)
    longer = list(submissions([work("b", random, duration=lasts)], seed=seed, end_s=2 * DAY_S))
    assert longer[: len(alone)] == alone


def test_ties_keep_the_order_of_the_documents() -> None:
    found = submissions([work("b"), work("a"), work("c", Arrivals(at_s=(0.0,)))], seed=1, end_s=1.0)
    assert [s.job.name for s in found] == ["b", "a", "c"]


def test_the_scheduler_sees_the_mean_and_the_rehearsal_a_draw(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "kind: Batch\nname: a\nduration: {median: 1h, p90: 3h}\narrivals: {every: 1h, until: 24:00}\n"
    )
    documents = spec.load([file])
    [job] = documents.jobs
    drawn = list(submissions(documents.work, seed=1, end_s=DAY_S))
    assert (
        {s.job.duration_s for s in drawn}
        == {job.duration_s}
        == {Duration(median_s=3600, p90_s=10_800).mean_s}
    )
    assert len({s.duration_s for s in drawn}) == 24
