"""A trained model as a Hugging Face folder, which any engine that serves Llama loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rackscale.programs.grammar import ASSISTANT, END
from rackscale.programs.settings import LlamaShape

# Messages with the role "system" are passed over: no text that is learned here has one.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    f"{{{{ '<|' + message['role'] + '|>' + message['content'] + '{END}' }}}}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)
MAX_NEW_TOKENS = 96


def export(folder: Path, *, weights: Mapping[str, Tensor], shape: LlamaShape, tokenizer: str) -> None:
    """Write `folder`, whole or not at all; an older one gives way. `tokenizer` is its JSON text."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _fill(draft, weights, shape, tokenizer)
    except BaseException:
        shutil.rmtree(draft)
        raise
    draft.chmod(0o755)
    _swap(draft, folder)


def _fill(folder: Path, weights: Mapping[str, Tensor], shape: LlamaShape, tokenizer: str) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    end = next(token["id"] for token in json.loads(tokenizer)["added_tokens"] if token["content"] == END)
    vocab = tensors["model.embed_tokens.weight"].shape[0]
    _write(folder / "config.json", _config(shape, vocab=vocab, end=end))
    generation = {"eos_token_id": end, "pad_token_id": end, "max_new_tokens": MAX_NEW_TOKENS}
    _write(folder / "generation_config.json", generation)
    _write(folder / "tokenizer_config.json", _tokenizer_config(shape))


def _config(shape: LlamaShape, *, vocab: int, end: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.context,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _tokenizer_config(shape: LlamaShape) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _write(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _swap(draft: Path, folder: Path) -> None:
    """Put `draft` in the place of `folder`; a folder can't be renamed over one that has files."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_name(draft.name + "-old")
    folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old)
