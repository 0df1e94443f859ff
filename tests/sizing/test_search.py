"""The search against pricing each layout by itself, and what it proposes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rackscale import models
from rackscale.sizing.constants import fitted
from rackscale.sizing.layout import FULL, Layouts
from rackscale.sizing.memory import CLOSE, FITS, OUT, host_room
from rackscale.sizing.recipe import NEWEST, Recipe
from rackscale.sizing.search import Limits, candidates, divisions, layout_of, price, savings, search
from rackscale.sizing.size import size
from rackscale.sizing.space import NEAR_HOSTS, SHARES, saved
from rackscale.sizing.step import Step
from rackscale.workload import Shape

CASES = [("llama3.1-8b", 16, "dgx-h100", "bf16", 128), ("qwen3-30b-a3b", 32, "gb300-nvl72", "mxfp8", 256)]


@pytest.mark.parametrize(("name", "gpus", "system", "precision", "batch"), CASES)
def test_pricing_many_at_once_is_pricing_each(
    name: str, gpus: int, system: str, precision: str, batch: int
) -> None:
    model, recipe = models.model(name), Recipe(system=system, precision=precision)  # type: ignore[arg-type]
    domain = min(gpus, 8 if system == "dgx-h100" else 64)
    at = candidates(model, gpus=gpus, global_batch=batch, tokens=4096, domain=domain)
    many = price(model, at, recipe)
    for place in range(0, len(at), max(len(at) // 40, 1)):
        alone = Layouts.of([layout_of(at, place)], global_batch=batch, tokens=4096, domain=domain)
        one = price(model, alone, recipe)
        for f in fields(Step):
            assert getattr(one.step, f.name)[0] == pytest.approx(
                getattr(many.step, f.name)[place], rel=1e-9, abs=1e-12
            )
        assert one.memory.total[0] == pytest.approx(many.memory.total[place], rel=1e-9)


@pytest.mark.parametrize(("name", "gpus", "system", "precision", "batch"), CASES)
def test_the_first_is_the_fastest_that_fits(
    name: str, gpus: int, system: str, precision: str, batch: int
) -> None:
    model, recipe = models.model(name), Recipe(system=system, precision=precision)  # type: ignore[arg-type]
    at = candidates(model, gpus=gpus, global_batch=batch, tokens=4096, domain=8)
    found = price(model, at, recipe)
    fitting = found.step.seconds[found.fits.astype(bool)]
    assert found.step.seconds[found.order[0]] == fitting.min()


SPACES = [
    # roomy; short of memory; experts with a near host; experts short of it; few wide experts; nothing fits
    ("llama3.1-8b", 16, "dgx-h100", "bf16", 128, 4096),
    ("llama3.1-70b", 64, "dgx-h100", "bf16", 64, 8192),
    ("qwen3-30b-a3b", 16, "gb300-nvl72", "mxfp8", 64, 4096),
    ("deepseek-v3-671b", 128, "gb200-nvl72", "fp8", 128, 4096),
    ("mixtral-8x22b", 64, "dgx-h100", "bf16", 128, 4096),
    ("llama3.1-405b", 16, "dgx-h100", "bf16", 16, 8192),
    # the host binds
    ("llama3.1-405b", 192, "u-p6e-gb300x72", "fp8", 384, 8192),
]


@pytest.mark.parametrize(("name", "gpus", "system", "precision", "batch", "tokens"), SPACES)
def test_the_search_finds_what_pricing_everything_finds(  # noqa: PLR0917
    name: str, gpus: int, system: str, precision: str, batch: int, tokens: int
) -> None:
    model, recipe = models.model(name), Recipe(system=system, precision=precision)  # type: ignore[arg-type]
    near = min(recipe.hardware.gpus, 64)
    family = "megatron" if gpus > 16 else "torch"
    at = divisions(model, gpus=gpus, global_batch=batch, tokens=tokens, domain=near, family=family)
    space = candidates(
        model, gpus=gpus, global_batch=batch, tokens=tokens, domain=near, chip=recipe.chip, family=family
    )
    every = price(model, space, recipe)
    found = search(model, at, savings(model, chip=recipe.chip, family=family), recipe)
    assert found.considered == len(every.layouts)
    assert not found.fitting or found.priced < found.considered
    assert bool(found.fitting) == bool((every.verdict == FITS).any())
    for verdict in (FITS, CLOSE):
        of_all, of_found = every.verdict == verdict, found.best.verdict == verdict
        best = every.step.seconds[every.order[of_all[every.order]]][:1]
        ours = found.best.step.seconds[found.best.order[of_found[found.best.order]]][:1]
        assert list(ours) == pytest.approx(list(best))
    if every.verdict[every.order[0]] == OUT:
        assert found.best.memory.total[found.best.order[0]] == every.memory.total[every.order[0]]


ANY_RECIPE = st.builds(
    Recipe,
    system=st.sampled_from(["dgx-h100", "gb300-nvl72", "gb200-nvl72"]),
    precision=st.sampled_from(["bf16", "fp8"]),
    family=st.sampled_from(["megatron", "torch"]),
    task=st.sampled_from(["pretrain", "lora"]),
    year=st.sampled_from([2024.5, NEWEST]),
    graphs=st.sampled_from(["none", "step"]),
    dispatcher=st.sampled_from(["alltoall", "once"]),
    imbalance=st.sampled_from([1.0, 1.5]),
    overlaps_ep=st.booleans(),
    overlaps_tp=st.booleans(),
)
ANY_LIMITS = st.builds(
    Limits,
    tp=st.sampled_from([None, 1, 4]),
    cp=st.sampled_from([1, 2]),
    micro_batch=st.sampled_from([1, 2, 4]),
    sharding=st.sampled_from([None, "zero1", "zero2", "fsdp"]),
    recompute=st.sampled_from([None, frozenset(), frozenset({"norm", "activation"}), FULL]),
    offload=st.sampled_from([None, 0.0, 0.25, 0.9]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["llama3.1-8b", "qwen3-30b-a3b", "llama3.1-70b"]),
    gpus=st.sampled_from([8, 16, 32]),
    tokens=st.sampled_from([4096, 16_384]),
    recipe=ANY_RECIPE,
    limits=ANY_LIMITS,
)
def test_whatever_is_asked_the_search_finds_what_pricing_everything_finds(
    name: str, gpus: int, tokens: int, recipe: Recipe, limits: Limits
) -> None:
    model, job = models.model(name), {"gpus": gpus, "global_batch": 2 * gpus, "tokens": tokens, "domain": 8}
    at = divisions(model, **job, family=recipe.family, limits=limits)
    assume(len(at))
    ways = savings(model, chip=recipe.chip, family=recipe.family, limits=limits)
    every = price(model, saved(at, ways), recipe)
    found = search(model, at, ways, recipe)
    first, ours = every.order[0], found.best.order[0]
    verdict = every.verdict[first]
    assert found.best.verdict[ours] == verdict
    if verdict == OUT:
        assert found.best.memory.total[ours] == pytest.approx(every.memory.total[first])
    else:
        assert found.best.step.seconds[ours] == pytest.approx(every.step.seconds[first])
    best = every.verdict.reshape(len(at), -1).min(axis=1)
    assert (found.fitting, found.tight) == ((best == FITS).sum(), (best == CLOSE).sum())
    close = every.step.seconds[every.verdict == CLOSE]
    if verdict == FITS and len(close) and close.min() < every.step.seconds[first]:
        tight = found.best.verdict == CLOSE
        assert found.best.step.seconds[tight].min() == pytest.approx(close.min())


def test_where_some_is_offloaded_computing_more_again_may_be_faster() -> None:
    """It leaves less to send over a slow link."""
    model, recipe = models.model("llama3.1-8b"), Recipe(system="p5", precision="fp8", dispatcher="alltoall")
    asked = Limits(sharding="zero2", offload=0.9)
    more = replace(asked, recompute=frozenset({"activation", "norm", "attention", "mlp"}))
    all_of, some = (
        size(model, recipe, gpus=8, global_batch=16, tokens=4096, limits=limits).candidates[0]
        for limits in (asked, more)
    )
    nothing = replace(asked, recompute=frozenset())
    least = size(model, recipe, gpus=8, global_batch=16, tokens=4096, limits=nothing).candidates[0]
    assert all_of.step_s <= some.step_s < least.step_s


def test_the_space_holds_each_layout_once_with_every_way_to_save_memory() -> None:
    model = models.model("deepseek-v3-671b")
    few = Limits(cp=1, micro_batch=1, virtual=1)
    at = candidates(model, gpus=64, global_batch=64, tokens=4096, domain=32, chip="GB200", limits=few)
    told = [str(layout_of(at, place)) for place in range(len(at))]
    assert len(set(told)) == len(told)
    for part in (
        "zero2",
        "ETP4",
        "hsdp",
        "fsdp",
        "recompute latent",
        "recompute layer of 50%",
        "recompute activation+norm",
        "offload 75%",
    ):
        assert any(part in one for one in told), part
    assert any("PP4" in one and "fsdp" in one for one in told)


def test_gradients_and_parameters_are_divided_in_pipelines_only_where_a_framework_does_or_when_asked() -> (
    None
):
    model = models.model("llama3.1-70b")

    def ways(family: str, limits: Limits | None = None) -> set[str]:
        at = candidates(model, gpus=64, global_batch=64, tokens=8192, domain=8, family=family, limits=limits)
        return {layout_of(at, int(place)).sharding for place in np.flatnonzero(at.pp > 1)}

    assert ways("megatron") == {"zero1"}
    assert ways("torch") == {"zero1", "zero2", "fsdp"}
    assert ways("megatron", Limits(sharding="zero2", pp=4)) == {"zero2"}
    assert ways("megatron", Limits(sharding="fsdp", pp=4)) == {"fsdp"}
    assert ways("megatron", Limits(sharding="zero2")) == set()


def test_a_dense_model_has_no_modules_of_experts_to_compute_again_and_a_far_host_no_offload() -> None:
    ways = savings(models.model("llama3.1-70b"), chip="H100")
    again = set().union(*(way.recompute for way in ways))
    assert not again & {"experts", "latent"}
    assert not any(way.offload for way in ways)
    asked = savings(models.model("llama3.1-70b"), chip="H100", limits=Limits(offload=0.5))
    assert {way.offload for way in asked} == {0.5}


def test_no_more_is_offloaded_than_a_host_holds() -> None:
    model, recipe = models.model("llama3.1-405b"), Recipe(system="u-p6e-gb300x72", precision="fp8")
    job: dict[str, Any] = {"gpus": 576, "global_batch": 1152, "tokens": 8192}
    for share in (0.25, 0.5, 0.75):
        for one in size(model, recipe, **job, top=50, limits=Limits(offload=share)).candidates:
            assert 0.0 < one.host_bytes <= host_room(recipe)
    everything = price(model, candidates(model, **job, domain=64, chip="GB300"), recipe)
    assert (everything.verdict[everything.host > host_room(recipe)] == OUT).all()
    assert (everything.host > host_room(recipe)).any()


@pytest.mark.parametrize("system", ["gb200-nvl72", "dgx-h100"])
def test_offload_is_tried_unasked_only_near_a_host_and_where_nothing_fits_without(system: str) -> None:
    model, recipe = models.model("llama3.1-70b"), Recipe(system=system)
    usual = size(model, recipe, gpus=64, global_batch=64, tokens=8192)
    assert not any(one.layout.offload for one in usual.candidates)
    near = recipe.chip in NEAR_HOSTS
    assert [line.startswith("not tried: activations in host memory") for line in usual.advice] == [
        True
    ] * near
    given = size(model, recipe, gpus=64, global_batch=64, tokens=8192, limits=Limits(offload=0.0))
    assert given.advice == ()
    assert given.candidates == usual.candidates
    long: dict[str, Any] = {"gpus": 8, "global_batch": 8, "tokens": 131_072}
    short = size(model, recipe, **long)
    assert bool(short.fitting) == any(one.layout.offload for one in short.candidates) == near
    assert not size(model, recipe, **long, limits=Limits(offload=0.0)).fitting
    if near:
        assert short.advice[0].startswith("nothing is sure to fit without activations in host memory")


def test_a_run_is_told_only_of_a_layout_that_fits() -> None:
    """Tight ones are not sure to, and no text tells of their run."""
    model, recipe = models.model("llama3.1-405b"), Recipe(system="u-p6e-gb300x72")
    told = {}
    for gpus in (8, 24, 2304):
        found = size(
            model, recipe, gpus=gpus, global_batch=gpus, tokens=8192, run_tokens=1e12, usd_per_gpu_hour=3.0
        )
        told[found.candidates[0].verdict] = (found.run_tokens, found.run_s is None, found.run_usd is None)
    assert told == {
        "out of memory": (1e12, True, True),
        "tight": (1e12, True, True),
        "fits": (1e12, False, False),
    }


def test_full_recompute_is_of_all_layers_where_it_is_asked_for() -> None:
    model = models.model("llama3.1-70b")
    assert {way.recomputed for way in savings(model, chip="H100", limits=Limits(recompute=FULL))} == {1.0}
    free = savings(model, chip="H100")
    assert {way.recomputed for way in free if way.recompute == FULL} == set(SHARES)


def test_a_tight_layout_comes_after_those_that_fit() -> None:
    found = size(
        models.model("llama3.1-70b"),
        Recipe(system="dgx-h100"),
        gpus=64,
        global_batch=64,
        tokens=8192,
        top=400,
    )
    told = [one.verdict for one in found.candidates]
    assert told == sorted(told, key=("fits", "tight", "out of memory").index)
    assert found.faster is not None
    assert found.faster.verdict == "tight"
    assert found.faster.step_s < found.candidates[0].step_s
    assert found.hbm_bytes is not None
    assert all(one.total_bytes * 1.1 <= found.hbm_bytes for one in found.candidates if one.fits)


@pytest.mark.parametrize(("name", "gpus", "system", "precision", "batch"), CASES)
def test_layouts_divide_evenly(name: str, gpus: int, system: str, precision: str, batch: int) -> None:
    model = models.model(name)
    at = candidates(model, gpus=gpus, global_batch=batch, tokens=4096, domain=8)
    for place in range(0, len(at), 7):
        layout = layout_of(at, place)
        assert layout.tp * layout.pp * layout.cp * layout.dp == gpus
        assert batch % (layout.dp * layout.micro_batch) == 0
        assert (layout.tp * layout.cp * layout.dp) % (layout.ep * layout.etp) == 0
        assert layout.tp <= 8


def test_limits_are_kept() -> None:
    model = models.model("llama3.1-70b")
    limits = Limits(tp=4, pp=4, virtual=5, micro_batch=1, recompute=frozenset(), sharding="zero2")
    at = candidates(model, gpus=64, global_batch=128, tokens=8192, domain=8, limits=limits)
    assert len(at)
    assert set(at.tp) == {4.0}
    assert set(at.pp) == {4.0}
    assert set(at.virtual) == {5.0}
    assert not at.full.any()
    assert {layout_of(at, place).sharding for place in range(len(at))} == {"zero2"}


def test_a_job_of_many_racks_takes_equal_segments_and_leaves_spares() -> None:
    found = size(
        models.model("llama3.1-405b"),
        Recipe(system="u-p6e-gb300x72", precision="fp8"),
        gpus=2304,
        global_batch=2304,
        tokens=8192,
        run_tokens=15e12,
    )
    assert found.domain_gpus == 64
    best = found.candidates[0]
    assert best.offer.shape == Shape(segments=36, nodes_per_segment=16)
    assert best.fits
    assert best.low_s < best.step_s < best.high_s
    assert [c.step_s for c in found.candidates] == sorted(c.step_s for c in found.candidates)
    assert sum(best.seconds.values()) == pytest.approx(best.step_s)
    assert sum(best.bytes.values()) == pytest.approx(best.total_bytes)
    assert found.run_s is not None
    assert found.run_s > 15e12 / (best.tokens_per_s_per_gpu * 2304)


def test_what_does_not_fit_says_what_to_change() -> None:
    found = size(
        models.model("llama3.1-405b"), Recipe(system="dgx-h100"), gpus=8, global_batch=8, tokens=8192
    )
    assert not found.candidates[0].fits
    assert found.fitting == 0
    assert "too much" in found.advice[0]
    assert any("parameters" in line or "optimizer" in line for line in found.advice[1:])


def test_nothing_divides() -> None:
    with pytest.raises(ValueError, match="evenly"):
        size(models.model("llama3.1-8b"), Recipe(system="dgx-h100"), gpus=7, global_batch=3, tokens=8192)


def test_every_input_has_a_source() -> None:
    found = size(models.model("llama3.1-8b"), Recipe(system="dgx-h100"), gpus=8, global_batch=64, tokens=8192)
    assert all(one.source and one.provenance in {"measured", "vendor", "assumed"} for one in found.inputs)
    assert np.isfinite(found.peak_flop_per_s)
    names = [one.name for one in found.inputs]
    assert len(set(names)) == len(names)
    for name in (
        "collectives in a domain",
        "collectives between domains",
        "kernel curves of attention",
        "kernel curves of memory",
        "band",
        "p99 step",
        "memory beside the allocator",
        "fragments",
        "tight within",
        "optimizer states",
        "gradients",
        "checkpoint stall",
        "storage_bytes_per_s",
        "restart",
    ):
        assert name in names
    experts = size(
        models.model("qwen3-30b-a3b"), Recipe(system="gb300-nvl72", precision="mxfp8"), gpus=8, global_batch=64,
        tokens=4096,
    )  # fmt: skip
    assert "kernel curves of experts" in [one.name for one in experts.inputs]


def test_zero_bubble_only_makes_the_bubble_less() -> None:
    model, recipe = models.model("llama3.1-70b"), Recipe(system="gb300-nvl72", precision="fp8")
    plain = Limits(tp=2, pp=8, cp=1, virtual=1, micro_batch=1, recompute=frozenset(), sharding="zero1")
    one, two = (
        price(
            model, candidates(model, gpus=64, global_batch=128, tokens=8192, domain=64, limits=limits), recipe
        )
        for limits in (plain, replace(plain, zero_bubble=True))
    )
    assert two.step.bubble[0] < one.step.bubble[0]
    assert two.step.bubble[0] > one.step.bubble[0] / 3.5
    assert two.step.products[0] == one.step.products[0]
    assert "zero-bubble" in str(layout_of(two.layouts, 0))


def test_all_to_all_context_parallelism_needs_heads_and_exchanges_less_than_a_long_ring() -> None:
    model, recipe = models.model("llama3.1-8b"), Recipe(system="gb300-nvl72")
    ring, swapped = (
        candidates(model, gpus=32, global_batch=32, tokens=131_072, domain=32, limits=limits)
        for limits in (one_way(ulysses=False), one_way(ulysses=True))
    )
    assert (
        price(model, swapped, recipe).step.context[0] < price(model, ring, recipe).step.context[0] / by_ring()
    )
    too_many = Limits(tp=4, pp=1, cp=16, ulysses=True)  # 32 heads are not enough for 64 ranks
    assert not len(candidates(model, gpus=64, global_batch=64, tokens=131_072, domain=64, limits=too_many))


def one_way(*, ulysses: bool) -> Limits:
    return Limits(tp=1, pp=1, cp=16, micro_batch=1, ulysses=ulysses)


def by_ring() -> float:
    """The calibrated share of a ring's messages that attention does not hide."""
    return fitted()["ring"]


def test_steps_vary_more_on_more_gpus() -> None:
    model, recipe = models.model("llama3.1-8b"), Recipe(system="gb200-nvl72")
    spread = []
    for gpus in (8, 64, 4096):
        best = size(model, recipe, gpus=gpus, global_batch=4096, tokens=8192).candidates[0]
        spread.append(best.p99_s / best.step_s)
    assert spread[0] == 1.0
    assert spread == sorted(spread)
    assert spread[-1] == pytest.approx(1.067, abs=0.003)  # 5,120 GB200: facts of the training reports
