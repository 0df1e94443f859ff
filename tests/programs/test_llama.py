"""The model is Llama: causal, decided by its seed, and equal to transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rackscale.programs.corpus import prepare
from rackscale.programs.export import export
from rackscale.programs.llama import Llama
from rackscale.programs.settings import PRESETS, LlamaShape

SHAPES = {
    "tiny": PRESETS["tiny"],
    "one head of keys, wide rotation": LlamaShape(
        hidden=48, intermediate=80, layers=2, heads=6, kv_heads=1, context=64, rope_theta=500_000.0
    ),
    "no sharing of keys": LlamaShape(
        hidden=64, intermediate=96, layers=1, heads=4, kv_heads=4, context=64, norm_eps=1e-3
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_against_transformers(shape: LlamaShape, tmp_path: Path) -> None:
    vocab = 512
    model = Llama(shape, vocab=vocab, length=64, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)  # far from the drawn weights, norms included
    tokenizer = prepare(None, vocab=vocab, cache=None).tokenizer
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    export(tmp_path / "model", weights=weights, shape=shape, tokenizer=tokenizer)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    theirs, loading = loaded
    assert not any(loading.values()), "no weight is missing, and none is left over"
    tokens = torch.randint(0, vocab, (3, 64))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-3)


def test_what_comes_later_changes_nothing_before() -> None:
    model = Llama(PRESETS["tiny"], vocab=300, length=16, seed=0)
    tokens = torch.randint(0, 300, (1, 16))
    changed = tokens.clone()
    changed[0, 10] = (tokens[0, 10] + 1) % 300
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = Llama(PRESETS["tiny"], vocab=300, length=16, seed=7).state_dict()
    torch.manual_seed(2)
    again = Llama(PRESETS["tiny"], vocab=300, length=16, seed=7).state_dict()
    other = Llama(PRESETS["tiny"], vocab=300, length=16, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built(name: str) -> None:
    """Heads divide the width, and heads of keys divide the heads, or the first forward pass fails."""
    with torch.device("meta"):
        model = Llama(PRESETS[name], vocab=1024, length=8, seed=0)
        assert model(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 1024)


def test_presets_are_plain_data() -> None:
    assert json.dumps({name: shape.head for name, shape in PRESETS.items()})
