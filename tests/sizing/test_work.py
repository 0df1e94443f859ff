"""Counts of work against parameters and FLOPs known from elsewhere."""

from __future__ import annotations

import pytest

from rackscale import models
from rackscale.sizing.flops import flops_per_token
from rackscale.sizing.layout import Layout, Layouts
from rackscale.sizing.memory import memory
from rackscale.sizing.recipe import Recipe


@pytest.mark.parametrize(
    "name",
    [
        "llama3.1-8b",
        "llama3.1-405b",
        "gpt3-175b",
        "mpt-7b",
        "qwen3-30b-a3b",
        "deepseek-v3-671b",
        "nemotron-h-56b",
        "grok1-314b",
    ],
)
def test_weights_on_one_gpu_are_the_models_parameters(name: str) -> None:
    model = models.model(name)
    at = Layouts.of([Layout(gpus=1, sharding="none")], global_batch=1, tokens=4096, domain=1)
    found = float(memory(model, at, Recipe(system="gb300-nvl72")).parameters[0]) / 2.0
    assert found == pytest.approx(models.parameters(model, mtp=True), rel=0.005)


@pytest.mark.parametrize("name", ["llama3.1-8b", "deepseek-v3-671b"])
def test_dividing_weights_divides_them(name: str) -> None:
    model, recipe = models.model(name), Recipe(system="gb300-nvl72")
    whole, parted = (
        float(
            memory(model, Layouts.of([layout], global_batch=8, tokens=4096, domain=8), recipe).parameters[0]
        )
        for layout in (Layout(gpus=8, sharding="none", ep=8), Layout(gpus=8, tp=8, ep=8, sharding="none"))
    )
    assert parted < whole
    if name == "llama3.1-8b":
        assert parted == pytest.approx(whole / 8, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tokens", "published", "source"),
    [
        # TFLOPs per token: NVIDIA's tables state TFLOP/s per GPU and tokens/s per GPU of one run
        ("llama3.1-405b", 8192, 2646 / 1048 * 1e12, "Megatron Bridge 26.06, r0032"),
        ("llama3-70b", 8192, 2348 / 5248 * 1e12, "Megatron Bridge 26.04.01, r0073"),
        ("qwen3-30b-a3b", 4096, 1029 / 44544 * 1e12, "Megatron Bridge 26.08, r0006"),
        ("deepseek-v3-671b", 4096, 1298 / 4992 * 1e12, "Megatron Bridge 26.04.01, r0087"),
        ("nemotron-3-nano-30b-a3b", 8192, 905 / 40960 * 1e12, "Megatron Bridge 26.06.01, r0026"),
    ],
)
def test_flops_per_token_against_nvidias_tables(
    name: str, tokens: int, published: float, source: str
) -> None:
    """Vendors' formulas differ by a few per cent (whole or half of causal attention, what Mamba counts)."""
    assert flops_per_token(models.model(name), tokens) == pytest.approx(published, rel=0.08), source
