"""The catalog of models answers by name, alias or path, and every model in it has a source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rackscale.errors import UnknownNameError
from rackscale.models import Attention, LatentAttention, Model, aliases, model, models

MEASURED = """
deepseek-v3-671b gpt-1.7b gpt-16b gpt-177b gpt-32b gpt-7.1b gpt-70b gpt-oss-120b gpt-oss-20b gpt3-175b
gpt3-20b  gpt3-5b grok1-314b llama2-13b llama2-34b llama2-70b llama2-70b-lora llama2-7b llama3-70b
llama3-70b-2-node  llama3-8b llama3.1-405b llama3.1-70b llama3.1-8b llama4-maverick-400b megatron-1t
megatron-22b mpt-125m mpt-13b  mpt-1b mpt-30b mpt-350m mpt-3b mpt-70b mpt-760m mpt-7b nemotron-22b
nemotron-3-nano-30b-a3b nemotron-3-super  nemotron-3.5-lightning nemotron-340b nemotron-8b nemotron-h-56b
nemotron-v3-nano-30b-(26.02)  nemotron-v3-super-120b-(26.02) nemotron4-15b nemotron4-340b qwen2.5-32b
qwen2.5-32b-2-node qwen2.5-7b  qwen3-30b-a3b qwen3-moe-30b turing-530b
"""
"""What published measurements of training call their models."""


@pytest.mark.parametrize("name", MEASURED.split())
def test_every_measured_model_is_known(name: str) -> None:
    assert model(name).depth > 0


@pytest.mark.parametrize("found", models(), ids=lambda m: m.name)
def test_every_model_is_whole(found: Model) -> None:
    assert found.source
    assert found.family
    assert found.name == found.name.lower()
    for entry in found.layers:
        assert entry.count > 0
        assert entry.mixer is not None or entry.feed is not None
        if isinstance(entry.mixer, Attention):
            assert entry.mixer.heads % entry.mixer.kv_heads == 0


def test_aliases_are_other_names_of_known_models() -> None:
    known = {m.name for m in models()}
    assert set(aliases().values()) <= known
    assert not known & set(aliases())
    assert all(alias == alias.lower() for alias in aliases())


def test_names_are_found_in_any_case_and_by_repository() -> None:
    assert model("Llama3.1-8B") is model("llama3.1-8b") is model("meta-llama/Llama-3.1-8B")
    assert model("qwen3-moe-30b").name == "qwen3-30b-a3b"
    assert model("nemotron-v3-super-120b-(26.02)").name == "nemotron-3-super-120b-a12b"


def test_an_unknown_name_proposes_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"there is no model 'llama3\.1-80b'") as caught:
        model("llama3.1-80b")
    assert caught.value.hint == "did you mean 'llama3.1-8b'?"


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/llama", ""])
def test_what_is_no_path_is_an_unknown_name(name: str) -> None:
    with pytest.raises(UnknownNameError):
        model(name)


def test_a_path_is_read(tmp_path: Path) -> None:
    fields = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields), "utf-8")
    assert model(tmp_path) == model(str(tmp_path / "config.json"))
    assert model(tmp_path).name == tmp_path.name


def test_sizes_that_papers_state() -> None:
    deepseek = model("deepseek-v3")
    assert (deepseek.depth, deepseek.mtp_layers) == (61, 1)
    assert all(isinstance(entry.mixer, LatentAttention) for entry in deepseek.layers)
    assert model("nemotron-h-56b").depth == 118
    assert model("llama3.1-405b").depth == 126
    assert model("qwen3-next-80b-a3b").depth == 48
