"""Parameters of small models, against networks that transformers builds from the same config.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rackscale.models import parameters, read

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ATTENTION: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = ATTENTION | {"head_dim": 24}
LATENT = ATTENTION | {
    "num_key_value_heads": 8,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
LINEAR = WIDE | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
SHARED = QWEN | {"shared_expert_intermediate_size": 56}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA = {"n_groups": 2, "conv_kernel": 4, "chunk_size": 16}
HYBRID = MAMBA | {
    "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "mlp"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 24,
    "ssm_state_size": 16,
    "moe_shared_expert_intermediate_size": 56,
    "moe_latent_size": 32,
}


class Case(NamedTuple):
    fields: dict[str, Any]
    left_out: str = "nothing"
    """Names of the parameters that weights.py leaves out."""


HEADS = r"\.[qk]_norm\."
CASES = {
    "llama": Case(WIDE),
    "mistral": Case(WIDE),
    "smollm3": Case(ATTENTION),
    "phi3": Case(ATTENTION),
    "granite": Case(ATTENTION),
    "olmo2": Case(ATTENTION, HEADS),
    "mixtral": Case(WIDE | LOCAL),
    "qwen2": Case(ATTENTION, r"\.[qkv]_proj\.bias"),
    "qwen3": Case(WIDE, HEADS),
    "qwen2_moe": Case(
        ATTENTION | SHARED | {"decoder_sparse_step": 2}, r"\.[qkv]_proj\.bias|shared_expert_gate"
    ),
    "qwen3_moe": Case(WIDE | QWEN | {"mlp_only_layers": [1]}, HEADS),
    "qwen3_next": Case(LINEAR | SHARED, HEADS + "|shared_expert_gate"),
    "qwen3_5_text": Case(LINEAR, HEADS),
    "qwen3_5_moe_text": Case(LINEAR | SHARED, HEADS + "|shared_expert_gate"),
    "deepseek_v2": Case(LATENT | DEEPSEEK | {"q_lora_rank": None, "first_k_dense_replace": 1}),
    "deepseek_v3": Case(LATENT | DEEPSEEK | {"q_lora_rank": 32, "first_k_dense_replace": 2}),
    "glm4_moe": Case(WIDE | DEEPSEEK | {"first_k_dense_replace": 2}),
    "gpt_oss": Case(WIDE | LOCAL, "sinks"),
    "gemma2": Case(WIDE, r"post_\w+_layernorm"),
    "gemma3_text": Case(WIDE, HEADS + r"|post_\w+_layernorm"),
    "llama4_text": Case(
        WIDE
        | LOCAL
        | {"intermediate_size_mlp": 200, "interleave_moe_layer_step": 2, "num_experts_per_tok": 1}
    ),
    "minimax_m2": Case(WIDE | LOCAL, HEADS),
    "nemotron": Case(ATTENTION),
    "nemotron_h": Case(WIDE | DEEPSEEK | HYBRID | {"n_shared_experts": 1, "num_hidden_layers": 6}),
    "gpt2": Case({"n_embd": 96, "n_layer": 6, "n_head": 8, "vocab_size": 512, "n_positions": 64}),
    "gpt_neox": Case({k: v for k, v in ATTENTION.items() if k != "num_key_value_heads"}),
    "mamba2": Case(
        MAMBA
        | {"hidden_size": 96, "num_hidden_layers": 6, "num_heads": 8, "head_dim": 24}
        | {"state_size": 16, "expand": 2, "vocab_size": 512}
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_parameters_against_transformers(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    config = transformers.AutoConfig.for_model(kind, **case.fields)
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    counted = sum(
        each.numel() for name, each in network.named_parameters() if not re.search(case.left_out, name)
    )
    assert parameters(read(tmp_path)) == counted
