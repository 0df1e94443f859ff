"""Parameters by part, against the counts that makers publish."""

from __future__ import annotations

import msgspec
import pytest

from rackscale.models import (
    Dense,
    Experts,
    LatentAttention,
    Layers,
    Model,
    active_parameters,
    model,
    models,
    parameters,
    weights,
)

LEFT_OUT = 1e-4
"""Vectors that cost nothing are not counted: under this share of any model."""

MPT = {
    "mpt-125m": {512: 124_131_840, 1024: 124_525_056, 2048: 125_311_488, 8192: 130_030_080},
    "mpt-350m": {512: 354_412_544, 2048: 355_985_408, 8192: 362_276_864},
    "mpt-760m": {512: 758_111_232, 2048: 760_470_528, 8192: 769_907_712},
    "mpt-1b": {512: 1_312_804_864, 2048: 1_315_950_592, 8192: 1_328_533_504},
    "mpt-3b": {512: 2_647_905_280, 2048: 2_651_837_440, 8192: 2_667_566_080},
    "mpt-7b": {512: 6_652_567_552, 2048: 6_658_859_008, 8192: 6_684_024_832},
    "mpt-13b": {512: 12_846_090_240, 2048: 12_853_954_560, 8192: 12_885_411_840},
    "mpt-30b": {512: 29_964_204_032, 2048: 29_975_214_080, 8192: 30_019_254_272},
    "mpt-70b": {2048: 64_862_437_376},
}
"""llm-foundry's benchmarks count parameters at each length, which learned positions follow."""

NOTHING_LEFT_OUT = """
llama2-7b llama2-13b llama2-34b llama2-70b llama3-8b llama3-70b llama3.1-405b llama3.2-1b llama3.2-3b
deepseek-v2-lite-16b deepseek-v2-236b mistral-7b mistral-large-123b mixtral-8x7b mixtral-8x22b gpt2-124m
gpt2-355m gpt2-774m gpt2-1.6b gpt-neox-20b nemotron-h-8b smollm2-135m smollm2-360m smollm2-1.7b
"""

ACTIVE = {
    "mixtral-8x7b": 12.9e9,
    "mixtral-8x22b": 39e9,
    "deepseek-v2-236b": 21e9,
    "deepseek-v3-671b": 37e9,
    "kimi-k2-1t": 32e9,
    "qwen3-30b-a3b": 3.3e9,
    "qwen3-235b-a22b": 22e9,
    "qwen3-coder-480b-a35b": 35e9,
    "llama4-scout-109b": 17e9,
    "llama4-maverick-400b": 17e9,
    "gpt-oss-120b": 5.7e9,
    "gpt-oss-20b": 4.2e9,
    "nemotron-3-nano-30b-a3b": 3.6e9,
    "nemotron-3-super-120b-a12b": 12.7e9,
    "nemotron-3-ultra-550b-a55b": 55e9,
    "minimax-text-01-456b-a46b": 46e9,
}
"""As their makers round them, embedding and head included or not."""

SIZES_IN_NAMES = {
    "gpt3-5b": 5.0e9,
    "gpt3-20b": 20.3e9,
    "gpt-1.7b": 1.7e9,
    "gpt-7.1b": 7.1e9,
    "gpt-16b": 16e9,
    "gpt-32b": 32e9,
    "gpt-70b": 70e9,
    "nemotron-8b": 8.5e9,
    "nemotron-22b": 22e9,
    "llama4-scout-109b": 109e9,
    "mamba2-1.3b": 1.3e9,
    "nemotron-3.5-lightning-30b-a3b": 31.6e9,
}
"""Where nothing more exact is published."""


def is_exact(count: float) -> bool:
    return count % 1e6 != 0


@pytest.mark.parametrize("found", [m for m in models() if m.parameters], ids=lambda m: m.name)
def test_parameters_are_the_published_ones(found: Model) -> None:
    published = found.parameters
    assert published is not None
    tolerance = LEFT_OUT if is_exact(published) else 0.01
    assert parameters(found) == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("name", NOTHING_LEFT_OUT.split())
def test_parameters_are_exact_where_nothing_is_left_out(name: str) -> None:
    assert parameters(model(name)) == model(name).parameters


@pytest.mark.parametrize("name", MPT)
def test_mpt_is_exact_at_every_length(name: str) -> None:
    for tokens, counted in MPT[name].items():
        assert parameters(msgspec.structs.replace(model(name), positions=tokens)) == counted


@pytest.mark.parametrize("name", SIZES_IN_NAMES)
def test_parameters_are_those_of_the_name(name: str) -> None:
    assert parameters(model(name)) == pytest.approx(SIZES_IN_NAMES[name], rel=0.035)


def test_every_model_is_checked() -> None:
    assert {m.name for m in models() if not m.parameters} <= set(SIZES_IN_NAMES)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_the_published_ones(name: str) -> None:
    assert active_parameters(model(name)) == pytest.approx(ACTIVE[name], rel=0.055)


def test_parts_of_one_model_by_hand() -> None:
    found = weights(model("llama3-8b"))
    (layer,) = found.layers
    assert found.embedding == found.head == 128_256 * 4096
    assert layer.mixer == 2 * 4096 * 4096 + 2 * 4096 * 1024
    assert layer.feed == 3 * 4096 * 14336
    assert (layer.experts, layer.router, layer.norm) == (0, 0, 2 * 4096)
    assert found.norm == 4096


def test_experts_by_hand() -> None:
    (layer,) = weights(model("mixtral-8x7b")).layers
    assert layer.experts == 8 * 3 * 4096 * 14336
    assert layer.active_experts * 4 == layer.experts
    assert layer.router == 8 * 4096
    assert layer.feed == 0


def test_experts_on_a_latent() -> None:
    found = Model(
        name="small",
        hidden=64,
        vocab=10,
        layers=(
            Layers(
                count=1, feed=Experts(count=4, active=2, width=8, gated=False, shared_width=16, latent_dim=32)
            ),
        ),
    )
    (layer,) = weights(found).layers
    assert layer.experts == 4 * 2 * 32 * 8
    assert layer.feed == 2 * 64 * 16 + 2 * 64 * 32
    assert layer.router == 4 * 64


def test_prediction_modules_are_counted_when_asked_for() -> None:
    deepseek = model("deepseek-v3")
    extra = parameters(deepseek, mtp=True) - parameters(deepseek)
    moe = weights(deepseek).layers[1]
    assert extra == moe.total + 2 * 7168**2 + 3 * 7168
    assert weights(model("llama3-8b")).prediction == ()


def test_a_hybrid_s_prediction_module_has_attention_and_experts() -> None:
    found = model("nemotron-3-super")
    (module,) = weights(found).prediction
    assert module.experts == weights(found).layers[-1].experts
    assert module.mixer == weights(found).layers[1].mixer + 2 * found.hidden**2


def test_dense_models_are_active_whole() -> None:
    for found in models():
        if all(entry.feed is None or isinstance(entry.feed, Dense) for entry in found.layers):
            assert active_parameters(found) == parameters(found)
        else:
            assert active_parameters(found) < parameters(found)


def test_queries_without_a_latent() -> None:
    straight = LatentAttention(heads=2, kv_rank=4, nope_dim=8, rope_dim=4, value_dim=8)
    found = Model(name="small", hidden=16, vocab=10, layers=(Layers(count=1, mixer=straight),))
    assert weights(found).layers[0].mixer == 16 * 2 * 12 + 16 * (4 + 4) + 4 + 2 * 4 * 16 + 2 * 8 * 16
