"""A config.json of Hugging Face becomes a description, or an error that names every problem."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from rackscale.errors import DocumentError
from rackscale.models import model, read
from rackscale.models.architectures import architectures

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}

KNOWN: dict[str, dict[str, Any]] = {
    "llama3.1-8b": LLAMA,
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 48,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
    "deepseek-v3-671b": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "num_nextn_predict_layers": 1,
        "vocab_size": 129280,
        "max_position_embeddings": 163840,
    },
    "gemma3-27b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 5376,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "intermediate_size": 21504,
            "sliding_window": 1024,
        },
    },
    "nemotron-h-56b": {
        "model_type": "nemotron_h",
        "hidden_size": 8192,
        "num_hidden_layers": 118,
        "hybrid_override_pattern": "M-M-M-M*-" + "M-M-M-M-M*-" * 9 + "M-M-M-M-M-",
        "attention_head_dim": 128,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 32768,
        "mamba_head_dim": 64,
        "mamba_num_heads": 256,
        "n_groups": 8,
        "ssm_state_size": 256,
        "conv_kernel": 4,
        "chunk_size": 128,
        "vocab_size": 131072,
        "max_position_embeddings": 8192,
    },
    "gpt2-124m": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_inner": None,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "mpt-7b": {
        "model_type": "mpt",
        "d_model": 4096,
        "n_heads": 32,
        "n_layers": 32,
        "expansion_ratio": 4,
        "max_seq_len": 2048,
        "vocab_size": 50368,
        "attn_config": {"alibi": False},
    },
}

TRAITS = ("hidden", "vocab", "tied_embeddings", "positions", "norm", "biases", "mtp_layers", "max_tokens")


def written(folder: Path, fields: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(fields), "utf-8")
    return file


def problems(folder: Path, fields: object) -> tuple[str, ...]:
    file = written(folder, fields)
    with pytest.raises(DocumentError) as caught:
        read(file)
    return tuple(problem.removeprefix(f"{file}: ") for problem in caught.value.problems)


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_model_is_read_as_the_catalog_has_it(name: str, tmp_path: Path) -> None:
    found, known = read(written(tmp_path, KNOWN[name])), model(name)
    assert sorted(map(repr, found.layers)) == sorted(map(repr, known.layers))
    for field in TRAITS:
        assert getattr(found, field) == getattr(known, field), field


def test_a_folder_names_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "Our-Llama"
    folder.mkdir()
    written(folder, LLAMA)
    found = read(folder)
    assert (found.name, found.family, found.source) == ("Our-Llama", "llama", str(folder / "config.json"))


def test_windows_alternate_with_full_attention(tmp_path: Path) -> None:
    fields = LLAMA | {"model_type": "gpt_oss", "sliding_window": 128, "num_local_experts": 4}
    fields |= {"num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"] * 16}
    windows = {entry.mixer.window_tokens: entry.count for entry in read(written(tmp_path, fields)).layers}  # type: ignore[union-attr]
    assert windows == {128: 16, None: 16}


def test_alibi_and_no_biases_turn_traits_off(tmp_path: Path) -> None:
    found = read(written(tmp_path, KNOWN["mpt-7b"] | {"no_bias": True, "attn_config": {"alibi": True}}))
    assert (found.positions, found.biases) == (0, False)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    fields = {key: value for key, value in LLAMA.items() if key != "vocab_size"}
    fields |= {
        "hidden_size": "4096",
        "num_hidden_layers": 0,
        "num_key_value_heads": 5,
        "tie_word_embeddings": 1,
    }
    assert problems(tmp_path, fields) == (
        "hidden_size: not a whole number of at least 1 ('4096'); write the model's own",
        "vocab_size: missing; add it, a whole number",
        "num_hidden_layers: not a whole number of 1 to 10000 (0); write the model's own",
        "num_key_value_heads: does not divide 32 heads (5); write a divisor of them",
        "head_dim: missing, and 32 heads don't divide 1; add it, a whole number",
        "tie_word_embeddings: neither true nor false (1); write one of them",
    )


def test_a_problem_names_the_field_as_the_file_does(tmp_path: Path) -> None:
    fields = KNOWN["gpt2-124m"] | {"n_embd": -1, "n_head": 1}
    assert problems(tmp_path, fields) == (
        "n_embd: not a whole number of at least 1 (-1); write the model's own",
    )


def test_an_unknown_architecture_proposes_the_nearest(tmp_path: Path) -> None:
    assert problems(tmp_path, LLAMA | {"model_type": "qwen3_moee"}) == (
        "model_type: unknown architecture ('qwen3_moee'); did you mean 'qwen3_moe'?",
    )
    (problem,) = problems(tmp_path, LLAMA | {"model_type": "wavenet"})
    assert problem.startswith("model_type: unknown architecture ('wavenet'); known are llama, mistral")
    (problem,) = problems(tmp_path, {"hidden_size": 3})
    assert problem.startswith("model_type: missing; write one of llama, mistral")


def test_what_can_not_be_described_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, LLAMA | {"model_type": "deepseek_v32"})
    assert problem == (
        "model_type: can't be described yet, its attention is sparse, by an indexer ('deepseek_v32'); "
        "name the nearest model of the catalog instead"
    )


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        (
            "nemotron-h-56b",
            {"hybrid_override_pattern": "M-MX"},
            "hybrid_override_pattern: describes 4 layers of 118; write one letter or word for each of 118 layers",
        ),
        (
            "nemotron-h-56b",
            {"hybrid_override_pattern": "M-MX", "num_hidden_layers": 4},
            "hybrid_override_pattern: no kind of layer ('X'); write M or mamba, * or attention, - or mlp, E or moe",
        ),
        (
            "qwen3-30b-a3b",
            {"num_experts_per_tok": 200},
            "num_experts_per_tok: more than the 128 experts there are (200); write how many see a token",
        ),
        (
            "qwen3-30b-a3b",
            {"layer_types": ["full_attention", {}]},
            "layer_types: describes 2 layers of 48; write one item per layer",
        ),
        (
            "qwen3-30b-a3b",
            {"layer_types": 7},
            "layer_types: not a list (7); write one item per layer",
        ),
        (
            "deepseek-v3-671b",
            {"moe_layer_freq": [0, 1]},
            "moe_layer_freq: describes 2 layers of 61; write one item per layer",
        ),
        (
            "deepseek-v3-671b",
            {"kv_lora_rank": None},
            "kv_lora_rank: missing; add it, a whole number",
        ),
    ],
)
def test_problems_name_field_value_and_fix(
    name: str, changed: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    assert problem in problems(tmp_path, KNOWN[name] | changed)


def test_what_is_no_config_at_all(tmp_path: Path) -> None:
    assert problems(tmp_path, [1, 2]) == ("not a JSON object ([1, 2]); give a model's config.json",)
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 1,\n oops}', "utf-8")
    with pytest.raises(DocumentError, match=r"config\.json:2:2: not JSON: .*; download the model's"):
        read(file)
    for unfit in ("[" * 100_000, "1" * 5_000):
        file.write_text(unfit, "utf-8")
        with pytest.raises(DocumentError, match=r"can't be parsed \("):
            read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DocumentError, match="not UTF-8 text"):
        read(file)
    file.unlink()
    with pytest.raises(DocumentError, match=r"can't be read \(No such file or directory\); give a model's"):
        read(tmp_path)


@pytest.mark.parametrize("kind", architectures())
@pytest.mark.parametrize("value", [None, "x", 0, -1, 1.5, [], {}, [{}], True, 10**15])
def test_no_value_of_a_field_ends_in_anything_but_a_problem(kind: str, value: object, tmp_path: Path) -> None:
    whole = {name: 8 for known in KNOWN.values() for name in known} | KNOWN["deepseek-v3-671b"] | LLAMA
    for field in ("hidden_size", "num_hidden_layers", "layer_types", "n_routed_experts", "head_dim"):
        file = written(tmp_path, whole | {"model_type": kind, field: value})
        with contextlib.suppress(DocumentError):
            read(file)
