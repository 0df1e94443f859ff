"""Goodput: the renewal form against a simulation, published cases, and the best interval against a search."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale import models
from rackscale.sizing.checkpoint import checkpoint, rates, sized
from rackscale.sizing.goodput import best_interval_s, goodput, stretch
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.size import size


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


def test_an_asynchronous_checkpoint_against_a_simulation_of_failures() -> None:
    """Who fails before the last checkpoint was saved goes back to the one before."""
    rate, interval_s, stall_s, save_s, restart_s = 1.0 / 7200.0, 900.0, 5.0, 300.0, 400.0
    stream, wall, done, saved, since = random.Random(11), 0.0, 0.0, 0.0, 0.0
    for _ in range(40_000):
        left = stream.expovariate(rate)
        wall += left
        # each turn of interval + stall adds one checkpoint, which counts save_s after its stall began
        turns, rest = divmod(since + left, interval_s + stall_s)
        late = turns > 0 and rest + stall_s < save_s
        saved = done + (turns - late) * interval_s
        # work behind a checkpoint that is not saved yet is done again, and with it the turn goes on
        done, since = saved, 0.0
        while (again := stream.expovariate(rate)) < restart_s:
            wall += again
        wall += restart_s
    found = goodput(
        gpus=1,
        failures_per_gpu_hour=rate * 3600.0,
        write_s=stall_s,
        save_s=save_s,
        restart_s=restart_s,
        interval_s=interval_s,
    )
    assert found.share == pytest.approx(done / wall, rel=0.03)


@pytest.mark.parametrize(
    ("parameters", "gpus", "stall_s"),
    [
        # ByteCheckpoint, arXiv:2407.20143, table 8; PyTorch's forum, 2024-10: Llama 3 8B in under half a second
        (405e9, 8960, 0.59),
        (7e9, 1488, 0.34),
        (8e9, 512, 0.4),
    ],
)
def test_published_stalls_of_checkpoints(parameters: float, gpus: int, stall_s: float) -> None:
    found = sized(14.0 * parameters, 14.0 * parameters, gpus=gpus)
    assert found.stall_s == pytest.approx(stall_s, rel=0.05)
    assert found.stall_s < found.synchronous_s


def test_published_saves_are_within_a_factor_of_the_storage() -> None:
    """BLOOM 40 s, ByteCheckpoint 51 s, Orbax 173 s of 405B: sites differ by that much, and one rate stands for all."""
    for parameters, gpus, seconds in ((176e9, 384, 40.0), (405e9, 8960, 51.06), (405e9, 8192, 173.0)):
        found = sized(14.0 * parameters, 14.0 * parameters, gpus=gpus)
        assert 1 / 3 < found.synchronous_s / seconds < 3
    assert 300.0 < sized(5.7e12, 5.7e12, gpus=16_384).restart_s < 1200.0


@given(
    nbytes=st.floats(1e9, 3e13),
    gpus=st.integers(1, 100_000),
    more=st.floats(1.0, 50.0),
    times=st.integers(1, 64),
)
def test_more_bytes_take_longer_and_more_gpus_stall_less(
    nbytes: float, gpus: int, more: float, times: int
) -> None:
    one, larger = (sized(size_, size_, gpus=gpus) for size_ in (nbytes, nbytes * more))
    assert larger.stall_s >= one.stall_s
    assert larger.save_s >= one.save_s
    assert larger.restart_s >= one.restart_s
    wider = sized(nbytes, nbytes, gpus=gpus * times)
    assert wider.stall_s <= one.stall_s
    assert wider.save_s <= one.save_s


def test_a_checkpoint_follows_the_model_and_the_gpus_and_can_be_overridden() -> None:
    recipe = Recipe(system="dgx-h100")
    small, large = (models.model(name) for name in ("llama3.1-8b", "llama3.1-70b"))
    assert checkpoint(large, recipe, gpus=64).stall_s > checkpoint(small, recipe, gpus=64).stall_s
    assert checkpoint(large, recipe, gpus=64).total_bytes == pytest.approx(14.0 * 70.6e9, rel=0.01)
    lora = Recipe(system="dgx-h100", task="lora")
    assert checkpoint(large, lora, gpus=64).stall_s < checkpoint(large, recipe, gpus=64).stall_s
    asked = {"gpus": 64, "global_batch": 256, "tokens": 8192}
    usual = size(large, recipe, **asked)  # type: ignore[arg-type]
    given_ = size(large, recipe, **asked, checkpoint_s=300.0, restart_s=900.0)  # type: ignore[arg-type]
    assert given_.checkpoint.stall_s == given_.checkpoint.save_s == 300.0
    assert given_.checkpoint.restart_s == 900.0
    assert given_.goodput.share < usual.goodput.share


def test_every_rate_has_a_source() -> None:
    found = rates()
    assert all(
        found.origins[name].source for name in found.__struct_fields__ if name not in {"name", "origins"}
    )
