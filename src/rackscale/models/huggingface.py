"""Reads a model's description from the config.json that Hugging Face publishes with it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rackscale.errors import DocumentError, did_you_mean
from rackscale.models.architectures import Architecture, Config, architectures, shown
from rackscale.models.description import (
    Attention,
    Dense,
    Experts,
    Feed,
    LatentAttention,
    Layers,
    LinearAttention,
    Mamba,
    Mixer,
    Model,
)

Layer = tuple[Mixer | None, Feed | None]

WRAPPED = ("text_config", "llm_config", "language_config")
"""Where a model of several media keeps its language model, the part that is described."""

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""A hybrid's layers as letters (Nemotron-H)."""

PARTS = LETTERS | {"linear_attention": "mamba", "full_attention": "attention"}
"""The same, with what transformers writes."""

DEEPEST = 10_000
"""A config.json with more layers than this is a mistake."""

KINDS = {
    "full_attention": "full",
    "attention": "full",
    "1": "full",
    "sliding_attention": "window",
    "chunked_attention": "window",
    "linear_attention": "linear",
    "0": "linear",
}
"""A layer's kind of attention by the words and numbers of `layer_types`."""


def read(path: str | Path) -> Model:
    """The model that a config.json describes, or the one in that folder. Its name is the folder's.

    Raises DocumentError with every problem of the file: what is missing or wrong, and an unknown architecture.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    fields = _language_model(_fields(file))
    kind = str(fields.get("model_type", "")).removesuffix("_text")
    architecture = _architecture(file, kind)
    config = Config(str(file), fields, architecture)
    name = file.absolute().parent.name if file.name == "config.json" else file.stem
    found = _model(config, architecture, name=name, family=kind)
    if config.problems:
        raise DocumentError(config.problems)
    return found


def _fields(file: Path) -> dict[str, object]:
    again = "download the model's config.json again"
    try:
        fields = json.loads(file.read_text("utf-8"))
    except OSError as error:
        fix = "give a model's config.json, or the folder that holds it"
        raise DocumentError([f"{file}: can't be read ({error.strerror}); {fix}"]) from error
    except UnicodeDecodeError as error:
        raise DocumentError([f"{file}: not UTF-8 text; {again}"]) from error
    except json.JSONDecodeError as error:
        place = f"{file}:{error.lineno}:{error.colno}"
        raise DocumentError([f"{place}: not JSON: {error.msg}; {again}"]) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise DocumentError([f"{file}: can't be parsed ({error}); {again}"]) from error
    if not isinstance(fields, dict):
        raise DocumentError([f"{file}: not a JSON object ({shown(fields)}); give a model's config.json"])
    return fields


def _language_model(fields: dict[str, object]) -> dict[str, object]:
    for name in WRAPPED:
        inner = fields.get(name)
        if isinstance(inner, dict):
            shared = ("model_type", "tie_word_embeddings")
            return {key: value for key, value in fields.items() if key in shared} | inner
    return fields


def _architecture(file: Path, kind: str) -> Architecture:
    known = architectures()
    usable = [name for name, row in known.items() if not row.refused]
    if not kind:
        raise DocumentError([f"{file}: model_type: missing; write one of {', '.join(usable)}"])
    if kind not in known:
        fix = did_you_mean(kind, usable) or f"known are {', '.join(usable)}"
        raise DocumentError([f"{file}: model_type: unknown architecture ({shown(kind)}); {fix}"])
    if reason := known[kind].refused:
        fix = "name the nearest model of the catalog instead"
        raise DocumentError([f"{file}: model_type: can't be described yet, {reason} ({shown(kind)}); {fix}"])
    return known[kind]


def _model(config: Config, architecture: Architecture, *, name: str, family: str) -> Model:
    on = {
        trait: getattr(architecture, trait) and not _truth(config, architecture.unless.get(trait))
        for trait in ("biases", "positions")
    }
    longest = config.whole("max_position_embeddings", default=0, at_least=0)
    return Model(
        name=name,
        family=family,
        source=config.file,
        hidden=config.whole("hidden_size"),
        vocab=config.whole("vocab_size"),
        layers=_layers(config, architecture),
        tied_embeddings=config.flag("tie_word_embeddings"),
        positions=config.whole("max_position_embeddings") if on["positions"] else 0,
        norm=architecture.norm,
        biases=on["biases"],
        mtp_layers=config.whole("num_nextn_predict_layers", default=0, at_least=0),
        max_tokens=longest or None,
    )


def _truth(config: Config, name: str | None) -> bool:
    return name is not None and config.flag(name)


def _layers(config: Config, architecture: Architecture) -> tuple[Layers, ...]:
    """Layers alike counted together, in the order of their first."""
    pattern = config.items("layers_block_type")
    found = _hybrid(config, architecture, *pattern) if pattern else _plain(config, architecture)
    return tuple(
        Layers(count=count, mixer=mixer, feed=feed) for (mixer, feed), count in Counter(found).items()
    )


def _hybrid(config: Config, architecture: Architecture, own: str, pattern: list[object]) -> list[Layer]:
    """A layer has one part only, as the pattern says: a mixer or a feed-forward part."""
    depth = config.whole("num_hidden_layers", default=len(pattern))
    if depth != len(pattern):
        fix = f"write one letter or word for each of {depth} layers"
        config.problem(own, f"describes {len(pattern)} layers of {depth}", fix=fix)
    parts = [PARTS.get(str(part), str(part)) for part in pattern]
    made: dict[str, Layer] = {}
    for part in dict.fromkeys(parts):
        match part:
            case "mamba":
                made[part] = _mamba(config), None
            case "attention":
                made[part] = _attention(config, windowed=False, gated=False), None
            case "mlp":
                made[part] = None, _dense(config, architecture)
            case "moe":
                made[part] = None, _experts(config, architecture)
            case _:
                fix = f"write {', '.join(f'{letter} or {word}' for letter, word in LETTERS.items())}"
                config.problem(own, "no kind of layer", part, fix=fix)
                made[part] = None, None
    return [made[part] for part in parts]


def _plain(config: Config, architecture: Architecture) -> list[Layer]:
    depth = config.whole("num_hidden_layers", at_most=DEEPEST)
    kinds, sparse = _kinds(config, depth), _sparse(config, depth)
    mixers = {kind: _mixer(config, architecture, kind) for kind in dict.fromkeys(kinds)}
    feeds: dict[bool, Feed | None] = {}
    for each in dict.fromkeys(sparse):
        feeds[each] = _experts(config, architecture) if each else _dense(config, architecture)
    return [(mixers[kind], feeds[each]) for kind, each in zip(kinds, sparse, strict=True)]


def _kinds(config: Config, depth: int) -> list[str]:
    """Each layer's attention: full, window or linear. Every n-th is full where there is an interval."""
    listed = config.items("layer_types")
    if listed:
        own, types = listed
        if len(types) != depth:
            config.problem(own, f"describes {len(types)} layers of {depth}", fix="write one item per layer")
        for each in types:
            if str(each) not in KINDS:
                config.problem(own, "no kind of attention", each, fix=f"write one of {', '.join(KINDS)}")
        return [KINDS.get(str(each), "full") for each in types[:depth]] + ["full"] * (depth - len(types))
    if config.has("full_attention_interval"):
        interval = config.whole("full_attention_interval")
        other = "linear" if config.has("linear_num_key_heads") else "window"
        return [other if (layer + 1) % interval else "full" for layer in range(depth)]
    if not config.flag("use_sliding_window", default=config.has("sliding_window")):
        return ["full"] * depth
    first = config.whole("max_window_layers", default=0, at_least=0)
    return ["full" if layer < first else "window" for layer in range(depth)]


def _sparse(config: Config, depth: int) -> list[bool]:
    """Whether each layer has experts: by a list of layers, or from the first that has them, every so many."""
    if config.whole("n_routed_experts", default=0, at_least=0) == 0:
        return [False] * depth
    for name, dense in (("mlp_layer_types", "dense"), ("moe_layer_freq", 0)):
        own, value = config.find(name)
        if isinstance(value, list):
            if len(value) != depth:
                config.problem(
                    own, f"describes {len(value)} layers of {depth}", fix="write one item per layer"
                )
            return ([each != dense for each in value] + [True] * depth)[:depth]
    first = config.whole("first_k_dense_replace", default=0, at_least=0)
    every = config.whole("moe_layer_freq", default=1)
    step = config.whole("decoder_sparse_step", default=1)
    _, dense_ones = config.items("mlp_only_layers") or ("", [])
    return [
        layer >= first and layer % every == 0 and (layer + 1) % step == 0 and layer not in dense_ones
        for layer in range(depth)
    ]


def _mixer(config: Config, architecture: Architecture, kind: str) -> Mixer:
    if kind == "linear":
        return _linear(config)
    match architecture.mixer:
        case "latent":
            return _latent(config)
        case "mamba":
            return _mamba(config)
        case "attention":
            gated = config.flag("attn_output_gate")
            return _attention(config, windowed=kind == "window", gated=gated)


def _attention(config: Config, *, windowed: bool, gated: bool) -> Attention:
    heads, hidden = config.whole("num_attention_heads"), config.whole("hidden_size")
    kv_heads = config.whole("num_key_value_heads", default=heads)
    if heads % kv_heads:
        own = config.find("num_key_value_heads")[0]
        config.problem(own, f"does not divide {heads} heads", kv_heads, fix="write a divisor of them")
    if not config.has("head_dim") and hidden % heads:
        config.problem(
            "head_dim", f"missing, and {heads} heads don't divide {hidden}", fix="add it, a whole number"
        )
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.whole("head_dim", default=max(1, hidden // heads)),
        window_tokens=config.whole("sliding_window") if windowed else None,
        gated=gated,
    )


def _latent(config: Config) -> LatentAttention:
    return LatentAttention(
        heads=config.whole("num_attention_heads"),
        q_rank=config.whole("q_lora_rank") if config.has("q_lora_rank") else None,
        kv_rank=config.whole("kv_lora_rank"),
        nope_dim=config.whole("qk_nope_head_dim"),
        rope_dim=config.whole("qk_rope_head_dim"),
        value_dim=config.whole("v_head_dim"),
    )


def _mamba(config: Config) -> Mamba:
    return Mamba(
        heads=config.whole("mamba_num_heads"),
        head_dim=config.whole("mamba_head_dim"),
        state_dim=config.whole("ssm_state_size"),
        groups=config.whole("n_groups"),
        conv=config.whole("conv_kernel", default=4),
        chunk_tokens=config.whole("chunk_size", default=256),
    )


def _linear(config: Config) -> LinearAttention:
    return LinearAttention(
        key_heads=config.whole("linear_num_key_heads"),
        value_heads=config.whole("linear_num_value_heads"),
        key_dim=config.whole("linear_key_head_dim"),
        value_dim=config.whole("linear_value_head_dim"),
        conv=config.whole("linear_conv_kernel_dim", default=4, at_least=0),
        chunk_tokens=config.whole("block_size", default=64),
    )


def _dense(config: Config, architecture: Architecture) -> Dense | None:
    if not config.flag("feed_forward", default=True):
        return None
    if config.has("expansion_ratio") and not config.has("intermediate_size"):
        width = config.whole("expansion_ratio") * config.whole("hidden_size")
    else:
        width = config.whole("intermediate_size")
    return Dense(width=width, gated=architecture.gated)


def _experts(config: Config, architecture: Architecture) -> Experts:
    count, width = config.whole("n_routed_experts"), config.whole("moe_intermediate_size")
    active = config.whole("num_experts_per_tok")
    if active > count:
        own = config.find("num_experts_per_tok")[0]
        config.problem(
            own, f"more than the {count} experts there are", active, fix="write how many see a token"
        )
    own_width = config.has("shared_expert_intermediate_size")
    shared = config.whole("n_shared_experts", default=1 if own_width else 0, at_least=0)
    each = config.whole("shared_expert_intermediate_size", default=width, at_least=0)
    return Experts(
        count=count,
        active=active,
        width=width,
        gated=architecture.gated,
        shared_width=shared * each,
        latent_dim=config.whole("moe_latent_size") if config.has("moe_latent_size") else None,
    )
