"""The exported folder is what engines expect, and is replaced whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rackscale.programs.corpus import prepare
from rackscale.programs.export import export
from rackscale.programs.grammar import END
from rackscale.programs.llama import Llama
from rackscale.programs.settings import LlamaShape

SHAPE = LlamaShape(hidden=32, intermediate=48, layers=1, heads=2, kv_heads=1, context=64)


def weights(seed: int) -> dict[str, torch.Tensor]:
    model = Llama(SHAPE, vocab=512, length=8, seed=seed)
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return prepare(None, vocab=512, cache=None).tokenizer


@pytest.fixture
def folder(tmp_path: Path, tokenizer: str) -> Path:
    export(tmp_path / "out" / "model", weights=weights(0), shape=SHAPE, tokenizer=tokenizer)
    return tmp_path / "out" / "model"


def test_the_folder_has_what_hugging_face_expects(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_conversation_is_written_the_way_it_was_learned(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a gang?"},
        {"role": "assistant", "content": "A gang is a set of nodes."},
        {"role": "user", "content": "Why?"},
    ]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|user|>What is a gang?<|end|><|assistant|>A gang is a set of nodes.<|end|><|user|>Why?<|end|><|assistant|>"
    )
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [token for token in tokenizer.convert_ids_to_tokens(ids) if token.startswith("<|")] == [
        *("<|user|>", END, "<|assistant|>", END, "<|user|>", END, "<|assistant|>")
    ], "a marker is one token"


def test_generation_stops_at_the_end_of_an_answer(folder: Path) -> None:
    end = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(END)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((folder / file).read_text())["eos_token_id"] == end


def test_a_new_export_takes_the_place_of_the_old(folder: Path, tokenizer: str) -> None:
    (folder / "left-over").touch()
    before = (folder / "model.safetensors").read_bytes()
    export(folder, weights=weights(1), shape=SHAPE, tokenizer=tokenizer)
    assert (folder / "model.safetensors").read_bytes() != before
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "no drafts, nothing old"
    assert not (folder / "left-over").exists()


def test_an_export_that_fails_leaves_the_old_folder(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(json.JSONDecodeError):
        export(folder, weights=weights(1), shape=SHAPE, tokenizer="not JSON")
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
