"""What the fullest stage holds, part by part, against counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as changed

from rackscale import models
from rackscale.models.description import Model
from rackscale.sizing.layout import FULL, MODULES, Layout, Layouts
from rackscale.sizing.memory import judged, memory
from rackscale.sizing.parts import parts
from rackscale.sizing.recipe import Precision, Recipe

BF16 = Recipe(system="gb300-nvl72")
GB = 1e9


def arrays(*layouts: Layout, batches: int = 64, tokens: int = 4096) -> Layouts:
    return Layouts.of(
        layouts,
        global_batch=[one.dp * one.micro_batch * batches for one in layouts],
        tokens=tokens,
        domain=[one.gpus for one in layouts],
    )


def parameters(model: Model, layout: Layout, recipe: Recipe = BF16) -> float:
    return float(memory(model, arrays(layout), recipe).parameters[0])


def layer_of(model: Model) -> float:
    """Parameters of a layer of a dense model."""
    vocabulary = (2.0 - model.tied_embeddings) * model.vocab * model.hidden
    return (models.parameters(model) - vocabulary) / model.depth


@pytest.mark.parametrize("full", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("recompute", [0.0, 1.0])
def test_offloads_time_is_of_the_bytes_that_the_host_holds(full: float, recompute: float) -> None:
    model = models.model("llama3.1-70b")
    at = arrays(Layout(gpus=8, tp=8, offload=0.5))
    at = replace(at, full=np.full(1, full), again=tuple(np.full(1, recompute) for _ in at.again))
    held = float(judged(model, at, BF16)[1][0])
    assert float(parts(model, at, BF16).offload[0]) * BF16.host_bytes_per_s == pytest.approx(held)


def test_a_layer_computed_again_sends_only_what_it_began_with() -> None:
    model = models.model("llama3.1-70b")
    at = arrays(Layout(gpus=8, tp=8, offload=0.5, recompute=FULL))
    entry = 4096 / 8 * model.hidden * 2.0
    sent = float(parts(model, at, BF16).offload[0]) * BF16.host_bytes_per_s
    assert sent == pytest.approx(model.depth / 2 * entry)


@pytest.mark.parametrize(("stages", "layers"), [(8, 10), (32, 3), (64, 2)])
def test_the_fullest_stage_has_whole_layers_and_one_end_of_the_vocabulary(stages: int, layers: int) -> None:
    model = models.model("llama3.1-70b")
    expected = 2.0 * (layers * layer_of(model) + model.vocab * model.hidden)
    assert parameters(model, Layout(gpus=stages, pp=stages)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("stages", [4, 8, 16])
def test_no_stage_but_the_first_has_the_dense_layers_in_front(stages: int) -> None:
    """DeepSeek-V3: 58 of 61 layers have experts, and a later stage has no others."""
    model = changed(models.model("deepseek-v3-671b"), mtp_layers=0)
    one = changed(model, layers=(changed(model.layers[1], count=1),), parameters=None)
    layers = -(-61 // stages)
    experts = 2.0 * (models.parameters(one) - 2.0 * model.vocab * model.hidden)
    # little in flight, so that experts' parameters tell
    found = memory(model, arrays(Layout(gpus=stages, pp=stages), batches=1, tokens=128), BF16)
    assert found.parameters[0] >= layers * experts * (1 - 1e-6)
    assert found.parameters[0] <= (layers * experts + 2.0 * model.vocab * model.hidden) * (1 + 1e-6)


def test_kinds_that_alternate_share_a_stage() -> None:
    """Llama 4 Maverick has experts in every second layer: two layers in a row have one of each."""
    model = models.model("llama4-maverick-400b")
    found = parameters(model, Layout(gpus=24 * 8, pp=24, ep=8))
    experts = 3.0 * 128 / 8 * 8192 * model.hidden * 2.0
    assert experts < found < 2.0 * experts


def test_one_stage_has_the_whole_model() -> None:
    for name in ("nemotron-h-56b", "llama4-maverick-400b", "deepseek-v3-671b", "gpt-oss-120b"):
        model = models.model(name)
        assert parameters(model, Layout(gpus=1)) == pytest.approx(
            2.0 * models.parameters(model, mtp=True), rel=0.005
        )


@pytest.mark.parametrize(
    ("name", "widest_gb", "next_gb"),
    [("llama4-maverick-400b", 4.41, 0.63), ("nemotron-3-super-120b-a12b", 0.89, 0.22)],
)
def test_fsdp_gathers_the_widest_layer_and_its_neighbour(name: str, widest_gb: float, next_gb: float) -> None:
    """Where kinds alternate, the layer after the widest one is another."""
    model, ranks = models.model(name), 64
    layout = Layout(gpus=ranks, ep=8, sharding="fsdp")
    shared, alone = (
        float(memory(changed(model, mtp_layers=0), arrays(one), BF16).buffers[0])
        for one in (layout, changed(layout, sharding="zero2"))
    )
    ends = 2.0 * (2.0 - model.tied_embeddings) * model.vocab * model.hidden / GB
    assert (shared - alone) / GB - ends == pytest.approx(widest_gb + next_gb, abs=0.35)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("name", ["llama3.1-8b", "deepseek-v3-671b", "nemotron-h-56b"])
def test_modules_computed_again_leave_the_residual_stream(name: str, precision: Precision) -> None:
    """Each norm's input stays: at least what full recompute keeps of each layer."""
    model, recipe = models.model(name), replace(BF16, precision=precision)
    modules, full = (
        float(memory(model, arrays(Layout(gpus=1, recompute=again)), recipe).activations[0])
        for again in (frozenset(MODULES), FULL)
    )
    parts_of = sum(kind.count * (kind.mixer is not None) * (kind.feed is not None) for kind in model.layers)
    assert modules - full >= parts_of * 4096 * model.hidden * 2.0


def test_a_norm_computed_again_saves_its_output_in_the_products_precision() -> None:
    model = models.model("llama3.1-8b")
    for recipe, nbytes in ((BF16, 2.0), (replace(BF16, precision="fp8"), 1.0)):
        kept, again = (
            float(memory(model, arrays(Layout(gpus=1, recompute=some)), recipe).activations[0])
            for some in (frozenset[str](), frozenset({"norm"}))
        )
        assert kept - again == pytest.approx(2 * model.depth * 4096 * model.hidden * nbytes)


def test_the_busiest_experts_keep_and_get_more_tokens() -> None:
    model = models.model("qwen3-30b-a3b")
    at = arrays(Layout(gpus=8, ep=8))
    even, uneven, copied = (
        memory(model, at, replace(BF16, **some))
        for some in ({}, {"imbalance": 2.0}, {"dispatcher": "alltoall"})
    )
    feed = model.layers[0].feed
    assert isinstance(feed, models.Experts)
    rows = 4096 * feed.active * (model.hidden + 3 * feed.width) * 2.0
    # of all layers, and once more of the one that is worked on
    more = float((uneven.activations - even.activations)[0])
    assert more == pytest.approx((model.depth + 1) * rows)
    assert uneven.buffers[0] > even.buffers[0]
    copies = 2.0 * 4096 * model.hidden * 2.0 * feed.active * 7 / 8
    ranks = 2.0 * 4096 * model.hidden * 2.0 * 7 * (1 - (7 / 8) ** feed.active)
    assert float((copied.buffers - even.buffers)[0]) == pytest.approx(copies - ranks)


def test_one_byte_weights_are_only_those_of_quantised_products() -> None:
    """Llama 3.1 8B on Blackwell in FP8: embedding, head and norms stay in BF16."""
    model, fp8 = models.model("llama3.1-8b"), replace(BF16, precision="fp8")
    every = models.parameters(model)
    high = 2 * model.vocab * model.hidden + (2 * model.depth + 1) * model.hidden
    assert parameters(model, Layout(gpus=1), fp8) == pytest.approx(every + high, rel=1e-4)
    eighth = parameters(model, Layout(gpus=1), replace(fp8, bf16_layers=0.125))
    assert eighth == pytest.approx(every + high + 0.125 * (every - high), rel=1e-4)


def test_weights_kept_in_bf16_are_gathered_in_bf16() -> None:
    model, fp8 = models.model("llama3.1-8b"), replace(BF16, precision="fp8")
    at = arrays(Layout(gpus=8, sharding="fsdp"))
    some, none, every = (
        float(parts(model, at, one).gather[0])
        for one in (replace(fp8, bf16_layers=0.5), fp8, replace(fp8, bf16_layers=1.0))
    )
    assert none < some < every
    assert every == pytest.approx(float(parts(model, at, BF16).gather[0]))


def test_fsdp2_holds_16_bytes_a_parameter() -> None:
    """FP32 parameters, gradients and two moments; Megatron-FSDP has BF16 weights beside an FP32 master."""
    model, at = models.model("llama3.1-8b"), arrays(Layout(gpus=8, sharding="fsdp"))
    for family, nbytes in (("torch", 16.0), ("megatron", 18.0)):
        need = memory(model, at, replace(BF16, family=family, gradient_bytes=4.0))  # type: ignore[arg-type]
        states = float((need.parameters + need.gradients + need.optimizer)[0])
        assert states == pytest.approx(nbytes * models.parameters(model) / 8, rel=1e-3)
