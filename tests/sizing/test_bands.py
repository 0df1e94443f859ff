"""Bands of predictions: they hold the prediction, and widen where measurements end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rackscale import models
from rackscale.sizing.bands import UNKNOWN, band, explained, mixers
from rackscale.sizing.experts import experts_of
from rackscale.sizing.recipe import Precision, Recipe
from rackscale.sizing.size import size

SYSTEMS = ("dgx-a100", "dgx-h100", "dgx-b200", "u-p6e-gb300x72")
names = st.sampled_from(["llama3.1-8b", "deepseek-v3-671b", "nemotron-h-56b", "qwen3-next-80b-a3b"])
precisions: st.SearchStrategy[Precision] = st.sampled_from(["bf16", "fp8", "fp8-block", "mxfp8"])


@given(
    system=st.sampled_from(SYSTEMS),
    precision=precisions,
    name=names,
    gpus=st.integers(1, 300_000),
    times=st.integers(1, 64),
)
def test_a_band_holds_the_prediction_and_never_narrows_with_scale(
    system: str, precision: Precision, name: str, gpus: int, times: int
) -> None:
    model, recipe = models.model(name), Recipe(system=system, precision=precision)
    has = experts_of(model) is not None
    low, high = band(recipe, experts=has, gpus=gpus, model=model)
    assert 0.0 < low <= 1.0 <= high
    wider = band(recipe, experts=has, gpus=gpus * times, model=model)
    assert wider[0] <= low
    assert wider[1] >= high


def test_a_band_widens_by_doublings_beyond_what_was_measured() -> None:
    model, recipe = models.model("llama3.1-405b"), Recipe(system="u-p6e-gb300x72", precision="fp8")
    spans = [
        (high / low)
        for low, high in (
            band(recipe, experts=False, gpus=n, model=model) for n in (8, 512, 1024, 2048, 131_072)
        )
    ]
    assert spans[0] == spans[1]
    assert spans[1] < spans[2] < spans[3] < spans[4]
    assert (
        spans[3] / spans[2] == (spans[2] / spans[1]) or abs(spans[3] / spans[2] - spans[2] / spans[1]) < 1e-9
    )


def test_a_band_widens_for_a_precision_and_a_mixer_that_were_not_measured_and_says_so() -> None:
    plain, new = models.model("qwen3-30b-a3b"), models.model("qwen3-next-80b-a3b")
    assert "LinearAttention" in mixers(new)
    recipe = Recipe(system="dgx-h100", precision="fp8")
    known = band(recipe, experts=True, gpus=64, model=plain)
    assert band(recipe, experts=True, gpus=64, model=new)[1] > known[1]
    block = Recipe(system="dgx-h100", precision="fp8-block")
    assert band(block, experts=True, gpus=64, model=plain)[0] < known[0]
    *_, origin = explained(block, experts=True, gpus=64, model=new)
    assert "fp8-block" in origin.note
    assert "LinearAttention" in origin.note


def test_where_nothing_alike_was_measured_the_band_is_wide_and_assumed() -> None:
    model, recipe = models.model("qwen3-30b-a3b"), Recipe(system="dgx-a100")
    low, high, origin = explained(recipe, experts=True, gpus=64, model=model)
    assert (low, high) == UNKNOWN
    assert origin.provenance == "assumed"


def test_an_answer_carries_its_band() -> None:
    model, recipe = models.model("llama3.1-8b"), Recipe(system="dgx-h100")
    small, large = (
        size(model, recipe, gpus=n, global_batch=4096, tokens=8192).candidates[0] for n in (64, 4096)
    )
    assert large.high_s / large.step_s > small.high_s / small.step_s
