"""What must hold of any layout of any model: sums, monotony, and nothing gained by being further apart."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from rackscale import models
from rackscale.kernels import Kernels, kernels, times
from rackscale.models.description import Model
from rackscale.sizing.experts import experts_of
from rackscale.sizing.layout import FULL, SHARDINGS, Layout, Layouts
from rackscale.sizing.memory import CLOSE, FITS, Memory, memory
from rackscale.sizing.parts import parts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import Limits, candidates, factors, price
from rackscale.sizing.space import RECOMPUTE
from rackscale.sizing.step import Step, step

MODELS = (
    "llama3.1-8b",
    "llama3.1-405b",
    "deepseek-v3-671b",
    "gpt-oss-120b",
    "nemotron-h-56b",
    "qwen3-next-80b-a3b",
)
SYSTEMS = ("dgx-h100", "gb200-nvl72", "u-p6e-gb300x72")
powers = st.sampled_from([1, 2, 4, 8])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any, also with experts divided and over several domains, FSDP in a pipeline, and all that can be saved."""
    tp, replicas = draw(powers), draw(powers)
    pp, cp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4, 8, 16]))
    ranks = tp * cp * replicas
    etp = draw(st.sampled_from(sorted({1, tp})))
    again = draw(st.sampled_from(RECOMPUTE))
    return Layout(
        gpus=tp * pp * cp * replicas,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=draw(st.sampled_from([n for n in (1, 2, 4, 8, 16, 32, 64) if ranks % (n * etp) == 0])),
        etp=etp,
        virtual=draw(st.sampled_from([1, 2])) if pp > 1 else 1,
        micro_batch=draw(st.sampled_from([1, 2])),
        sharding=draw(st.sampled_from(SHARDINGS)),
        recompute=again,
        recomputed=draw(st.sampled_from([0.5, 1.0])) if again == FULL else 1.0,
        offload=draw(st.sampled_from([0.0, 0.5])),
    )


models_ = st.sampled_from(MODELS).map(models.model)
systems = st.sampled_from(SYSTEMS)
precisions = st.sampled_from(["bf16", "fp8"])


def arrays(layout: Layout, *, batches: int = 8, domain: int | None = None) -> Layouts:
    return Layouts.of(
        [layout],
        global_batch=layout.dp * layout.micro_batch * batches,
        tokens=4096,
        domain=layout.gpus if domain is None else domain,
    )


def priced(model: Model, at: Layouts, recipe: Recipe) -> Step:
    by = factors(recipe, experts=experts_of(model))
    return step(parts(model, at, recipe), at, by, years=0.0, dense=experts_of(model) is None)


def seconds(model: Model, at: Layouts, recipe: Recipe) -> float:
    return float(priced(model, at, recipe).seconds[0])


@given(model=models_, layout=layouts(), system=systems, precision=precisions)
def test_parts_sum_to_the_step_and_none_is_negative(
    model: Model, layout: Layout, system: str, precision: str
) -> None:
    found = priced(model, arrays(layout), Recipe(system=system, precision=precision))  # type: ignore[arg-type]
    each = [float(getattr(found, f.name)[0]) for f in fields(Step)]
    assert min(each) >= 0.0
    assert sum(each) == pytest.approx(float(found.seconds[0]))
    assert np.isfinite(found.seconds).all()


@given(model=models_, layout=layouts(), system=systems, precision=precisions)
def test_memory_parts_sum_and_none_is_negative(
    model: Model, layout: Layout, system: str, precision: str
) -> None:
    found = memory(model, arrays(layout), Recipe(system=system, precision=precision))  # type: ignore[arg-type]
    each = [float(getattr(found, f.name)[0]) for f in fields(Memory)]
    assert min(each) >= 0.0
    assert sum(each) == pytest.approx(float(found.total[0]))


@given(model=models_, layout=layouts(), system=systems, share=st.sampled_from([2, 4, 8]))
def test_crossing_a_domain_never_speeds_up(model: Model, layout: Layout, system: str, share: int) -> None:
    assume(layout.gpus % share == 0)
    recipe = Recipe(system=system)
    together = seconds(model, arrays(layout), recipe)
    apart = seconds(model, arrays(layout, domain=layout.gpus // share), recipe)
    assert apart >= together * (1 - 1e-9)


@given(model=models_, layout=layouts(), system=systems, more=st.floats(1.01, 8.0))
def test_a_faster_fabric_never_slows(model: Model, layout: Layout, system: str, more: float) -> None:
    at = arrays(layout, domain=max(layout.gpus // 2, 1))
    slow = Recipe(system=system, nic_bits_per_s=100e9)
    fast = Recipe(system=system, nic_bits_per_s=100e9 * more)
    assert seconds(model, at, fast) <= seconds(model, at, slow) * (1 + 1e-9)


@given(
    model=models_,
    layout=layouts(),
    system=systems,
    more=st.floats(1.01, 4.0),
    share=st.sampled_from([1, 2, 4, 8]),
)
def test_a_faster_nvlink_never_slows(
    model: Model, layout: Layout, system: str, more: float, share: int
) -> None:
    assume(layout.gpus % share == 0)
    slow, fast = Recipe(system=system), Recipe(system=system)
    up = slow.network.up
    # facts come from the catalog: another network is put where the recipe keeps the one that it looked up
    vars(fast)["network"] = changed(slow.network, up=changed(up, bytes_per_s=up.bytes_per_s * more))
    at = arrays(layout, domain=layout.gpus // share)
    assert seconds(model, at, fast) <= seconds(model, at, slow) * (1 + 1e-9)


@given(
    model=models_,
    layout=layouts(),
    system=systems,
    more=st.floats(1.01, 4.0),
    rate=st.sampled_from(["flop_per_s", "hbm_bytes_per_s"]),
)
def test_a_faster_chip_never_slows(model: Model, layout: Layout, system: str, more: float, rate: str) -> None:
    recipe = Recipe(system=system)
    at = arrays(layout, domain=min(layout.gpus, 8))
    slow = seconds(model, at, recipe)
    # parts reads the measured curves: faster ones are put in their place
    with patch.object(times, "measured", return_value=faster(recipe.chip, rate, more)):
        assert seconds(model, at, recipe) <= slow * (1 + 1e-9)


def faster(chip: str, rate: str, more: float) -> Kernels:
    """The curves with one rate of an accelerator raised."""
    found = kernels().chip(chip)

    def raised(curve: Any) -> Any:
        return changed(curve, **{rate: getattr(curve, rate) * more}) if hasattr(curve, rate) else curve

    curves = {
        kind: {precision: raised(curve) for precision, curve in getattr(found, kind).items()}
        for kind in ("gemm", "grouped")
    }
    better = changed(found, **curves, attention=raised(found.attention), memory=raised(found.memory))
    return changed(kernels(), chips=kernels().chips | {chip: better})


@given(model=models_, layout=layouts(), system=systems)
def test_offload_never_needs_more_memory_nor_less_time(model: Model, layout: Layout, system: str) -> None:
    recipe, at = Recipe(system=system), arrays(layout)
    needs, took = [], []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        some = replace(at, offload=np.full(1, share))
        needs.append(float(memory(model, some, recipe).total[0]))
        took.append(seconds(model, some, recipe))
    assert needs == sorted(needs, reverse=True)
    assert all(later >= sooner * (1 - 1e-9) for sooner, later in pairwise(took))


@given(layout=layouts(), system=systems, ways=st.sampled_from([2, 4, 8]))
def test_dividing_experts_divides_what_they_keep(layout: Layout, system: str, ways: int) -> None:
    """Experts over tensor-parallel ranks: the same parameters as over as many more expert-parallel ranks."""
    model, recipe = models.model("deepseek-v3-671b"), Recipe(system=system)
    # in a pipeline the fullest stage may be another one where experts keep less
    layout = changed(layout, gpus=layout.gpus // layout.pp, pp=1, virtual=1)
    ranks = layout.tp * layout.cp * layout.dp
    assume(ranks % (layout.ep * ways) == 0 and layout.ep * ways <= 256)
    whole, divided, apart = (
        memory(model, arrays(changed(layout, sharding="zero1", ep=ep, etp=etp)), recipe)
        for ep, etp in ((layout.ep, 1), (layout.ep, ways), (layout.ep * ways, 1))
    )
    assert divided.parameters[0] == pytest.approx(apart.parameters[0])
    assert divided.optimizer[0] == pytest.approx(apart.optimizer[0])
    assert divided.parameters[0] < whole.parameters[0]


@given(model=models_, system=systems, more=st.floats(1.01, 4.0))
def test_more_memory_never_makes_the_best_slower(model: Model, system: str, more: float) -> None:
    at = candidates(
        model,
        gpus=64,
        global_batch=128,
        tokens=4096,
        domain=min(64, Recipe(system=system).hardware.gpus),
        limits=Limits(recompute=FULL),
    )
    small, large = Recipe(system=system), Recipe(system=system)
    chip = small.hardware.accelerator
    assert chip.hbm_bytes is not None
    bigger = changed(chip, hbm_bytes=int(chip.hbm_bytes * more))
    vars(large)["hardware"] = changed(small.hardware, accelerator=bigger)
    one, two = price(model, at, small), price(model, at, large)
    assert (two.fits >= one.fits).all()
    assert (two.verdict <= one.verdict).all()
    for verdict in (FITS, CLOSE):
        some, more_ = one.verdict <= verdict, two.verdict <= verdict
        if some.any():
            assert two.step.seconds[more_].min() <= one.step.seconds[some].min()


@given(model=models_, layout=layouts(), system=systems)
def test_strong_scaling_never_gains_tokens_per_gpu(model: Model, layout: Layout, system: str) -> None:
    """Twice the replicas on one global batch: each has half the micro-batches, and messages go further."""
    recipe = Recipe(system=system)
    wider = replace_gpus(layout, 2)
    batch = wider.dp * layout.micro_batch * 8
    one, two = (
        Layouts.of([some], global_batch=batch, tokens=4096, domain=some.gpus) for some in (layout, wider)
    )
    per_gpu = 1.0 / seconds(model, one, recipe) / layout.gpus
    assert 1.0 / seconds(model, two, recipe) / wider.gpus <= per_gpu * (1 + 1e-9)


def replace_gpus(layout: Layout, times: int) -> Layout:
    # ranks that divide experts and states stay what they were: only the number of replicas grows
    return changed(
        layout, gpus=layout.gpus * times, shard=layout.dp * layout.cp if layout.sharding != "none" else 0
    )


@given(model=models_, layout=layouts(), system=systems)
def test_recompute_saves_memory_and_costs_time(model: Model, layout: Layout, system: str) -> None:
    recipe, at = Recipe(system=system), arrays(changed(layout, offload=0.0))
    nothing = tuple(np.zeros(1) for _ in at.again)
    kept, again = replace(at, again=nothing, full=np.zeros(1)), replace(at, again=nothing, full=np.ones(1))
    for less in (at, again):
        assert memory(model, less, recipe).total[0] <= memory(model, kept, recipe).total[0] * (1 + 1e-9)
        assert seconds(model, less, recipe) >= seconds(model, kept, recipe) * (1 - 1e-9)


@given(model=models_, layout=layouts(), system=systems)
def test_sharding_more_never_needs_more_memory(model: Model, layout: Layout, system: str) -> None:
    recipe, at = Recipe(system=system), arrays(layout)
    totals = [
        float(memory(model, replace(at, sharding=np.full(1, float(i))), recipe).total[0]) for i in range(3)
    ]
    assert totals == sorted(totals, reverse=True)


def test_a_bigger_batch_takes_longer_and_is_more_efficient() -> None:
    model, recipe = models.model("llama3.1-70b"), Recipe(system="gb300-nvl72", precision="fp8")
    layout = Layout(gpus=64, tp=2, pp=4, virtual=5)
    took = [seconds(model, arrays(layout, batches=n), recipe) for n in (4, 8, 16, 32)]
    assert took == sorted(took)
    per_batch = [t / n for t, n in zip(took, (4, 8, 16, 32), strict=True)]
    assert per_batch == sorted(per_batch, reverse=True)


@given(model=models_, layout=layouts(), system=systems)
def test_zero2_scatters_every_micro_batch(model: Model, layout: Layout, system: str) -> None:
    """Gradients divided cost messages per micro-batch; with a single one they are ZeRO-1's."""
    recipe = Recipe(system=system)
    for batches in (1, 8):
        one, two = (arrays(changed(layout, sharding=way), batches=batches) for way in ("zero1", "zero2"))
        first, second = seconds(model, one, recipe), seconds(model, two, recipe)
        assert second >= first * (1 - 1e-9)
        if batches == 1:
            assert second == pytest.approx(first)
        assert memory(model, two, recipe).total[0] <= memory(model, one, recipe).total[0] * (1 + 1e-9)


@given(
    model=st.sampled_from(["deepseek-v3-671b", "gpt-oss-120b"]).map(models.model),
    layout=layouts(),
    system=systems,
)
def test_what_recipes_choose_moves_the_step_as_it_must(model: Model, layout: Layout, system: str) -> None:
    """Uneven experts and a copy for each expert never speed up; graphs, overlap and dropped tokens never slow."""
    at = arrays(layout, domain=max(layout.gpus // 2, 1))
    usual = Recipe(system=system, precision="fp8")
    base = seconds(model, at, usual)
    for slower in (
        replace(usual, imbalance=1.5),
        replace(usual, dispatcher="alltoall"),
        replace(usual, graphs="none"),
    ):
        assert seconds(model, at, slower) >= base * (1 - 1e-9)
    for faster in (
        replace(usual, overlaps_ep=True),
        replace(usual, graphs="step"),
        replace(usual, drops=True),
    ):
        assert seconds(model, at, faster) <= base * (1 + 1e-9)
