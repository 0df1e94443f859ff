"""Placement and choice of victims against an exact solver, on fleets small enough for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ortools", reason="OR-Tools is not installed (there is none for Python 3.13 yet)")

from tests.against import gap
from tests.against.instances import WEIGHTS, Seeded, busy, wanted

seeds = st.integers(0, 2**32)


@settings(max_examples=250)
@given(seed=seeds)
def test_a_gang_is_placed_exactly_where_the_oracle_finds_a_fit(seed: int) -> None:
    pick = Seeded(seed)
    instance = busy(pick, guarded=False)
    job = wanted(pick, priority="low", preemptible=False)
    found = gap.of_placement(instance, job)
    assert (found.ours is None) == (found.best is None)
    assert found.ours is None or found.excess >= 0


@settings(max_examples=250)
@given(seed=seeds)
def test_room_is_cleared_wherever_the_oracle_finds_victims(seed: int) -> None:
    pick = Seeded(seed)
    instance = busy(pick)
    found = gap.of_victims(instance, wanted(pick, priority="high", queue="c"))
    assert (found.ours is None) == (found.best is None)
    assert found.ours is None or found.excess >= 0


@settings(max_examples=250)
@given(seed=seeds)
def test_elastic_victims_shrink(seed: int) -> None:
    pick = Seeded(seed)
    instance = busy(pick, elastic=True)
    found = gap.of_victims(instance, wanted(pick, priority="high", queue="c"))
    assert (found.ours is None) == (found.best is None)
    assert found.ours is None or found.excess >= 0


@settings(max_examples=60)
@given(seed=seeds)
def test_a_batch_never_starts_more_than_the_optimum(seed: int) -> None:
    pick = Seeded(seed)
    instance = busy(pick, most_gangs=4, guarded=False)
    jobs = tuple(
        wanted(pick, f"w{i}", priority=pick(tuple(WEIGHTS)), preemptible=False)
        for i in range(pick((2, 4, 6)))
    )
    found = gap.of_batch(instance, jobs)
    assert found.ours is not None
    assert found.excess <= 0
