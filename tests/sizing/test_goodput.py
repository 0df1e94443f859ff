"""Goodput: the renewal form against a simulation, published cases, and the best interval against a search."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale.sizing.goodput import best_interval_s, goodput, stretch


@pytest.mark.parametrize(
    ("rate_per_hour", "interval_s", "write_s", "restart_s"),
    [(0.5, 3600.0, 0.0, 300.0), (2.0, 900.0, 60.0, 600.0), (0.05, 7200.0, 300.0, 1200.0)],
)
def test_stretch_against_simulated_failures(
    rate_per_hour: float, interval_s: float, write_s: float, restart_s: float
) -> None:
    stream, rate = random.Random(7), rate_per_hour / 3600.0
    segments, wall = 20_000, 0.0
    for _ in range(segments):
        left = interval_s + write_s
        while True:
            until = stream.expovariate(rate)
            if until >= left:
                wall += left
                break
            wall += until
            while (again := stream.expovariate(rate)) < restart_s:
                wall += again
            wall += restart_s
    exact = stretch(rate_per_s=rate, interval_s=interval_s, write_s=write_s, restart_s=restart_s)
    assert wall / (segments * interval_s) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("gpus", "per_1000_node_days", "interval_min", "restart_min", "write_min", "ettr"),
    [
        # Kokolis et al., HPCA 2025, arXiv:2410.21680: hypothetical whole-cluster job, and its hourly-checkpoint job
        (16_000, 6.5, 60, 5, 0, 0.70),
        (16_000, 6.5, 5, 5, 0, 0.93),
        # Llama 3 (arXiv:2407.21783, section 3.3.4): above 0.90
        (16_384, 3.789, 15, 10, 0, 0.91),
    ],
)
def test_published_goodput(  # noqa: PLR0917
    gpus: int,
    per_1000_node_days: float,
    interval_min: float,
    restart_min: float,
    write_min: float,
    ettr: float,
) -> None:
    found = goodput(
        gpus=gpus,
        failures_per_gpu_hour=per_1000_node_days / 1000 / 24 / 8,
        write_s=write_min * 60,
        restart_s=restart_min * 60,
        interval_s=interval_min * 60,
    )
    assert found.share == pytest.approx(ettr, abs=0.025)


@given(rate_per_hour=st.floats(1e-4, 20.0), write_s=st.floats(0.5, 600.0))
def test_best_interval_is_the_best(rate_per_hour: float, write_s: float) -> None:
    rate = rate_per_hour / 3600.0
    best = best_interval_s(rate_per_s=rate, write_s=write_s)
    least = stretch(rate_per_s=rate, interval_s=best, write_s=write_s, restart_s=100.0)
    for other in (0.8, 0.95, 1.05, 1.25):
        assert least <= stretch(
            rate_per_s=rate, interval_s=best * other, write_s=write_s, restart_s=100.0
        ) * (1 + 1e-9)


def test_without_failures_nothing_is_lost() -> None:
    assert goodput(gpus=64, failures_per_gpu_hour=0.0, write_s=60.0, restart_s=600.0).share == 1.0


@given(gpus=st.integers(8, 100_000), rate=st.floats(1e-6, 1e-4))
def test_more_gpus_are_interrupted_more_often(gpus: int, rate: float) -> None:
    one, two = (
        goodput(gpus=n, failures_per_gpu_hour=rate, write_s=60.0, restart_s=600.0) for n in (gpus, 2 * gpus)
    )
    assert two.share <= one.share
    assert two.mean_between_failures_s == pytest.approx(one.mean_between_failures_s / 2)
