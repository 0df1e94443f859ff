"""What a transformer is made of, as far as it costs: layers of a mixer and a feed-forward part, and their sizes."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct


class Attention(Struct, frozen=True, kw_only=True, tag="attention", forbid_unknown_fields=True):
    """Softmax attention with `kv_heads` shared among `heads` (multi-head where they are equal)."""

    heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int | None = None
    """A token sees this many before it; None: all of them."""
    gated: bool = False
    """The output is gated by a projection of the hidden state as wide as the queries (Qwen3-Next)."""


class LatentAttention(Struct, frozen=True, kw_only=True, tag="latent", forbid_unknown_fields=True):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values come from one small latent."""

    heads: int
    q_rank: int | None = None
    """None: queries are projected straight from the hidden state."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


class Mamba(Struct, frozen=True, kw_only=True, tag="mamba", forbid_unknown_fields=True):
    """A Mamba-2 (state space duality) mixer, arXiv:2405.21060."""

    heads: int
    head_dim: int
    state_dim: int
    groups: int
    conv: int = 4
    """Width of the short convolution, tokens."""
    chunk_tokens: int = 128


class LinearAttention(Struct, frozen=True, kw_only=True, tag="linear", forbid_unknown_fields=True):
    """Gated linear attention with a delta rule (Gated DeltaNet and its kin)."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int = 4
    chunk_tokens: int = 64


class Dense(Struct, frozen=True, kw_only=True, tag="dense", forbid_unknown_fields=True):
    """A feed-forward part: up (and gate), activation, down."""

    width: int
    gated: bool = True


class Experts(Struct, frozen=True, kw_only=True, tag="experts", forbid_unknown_fields=True):
    """A mixture of experts: each token goes to `active` of `count`, and through `shared_width` in any case."""

    count: int
    active: int
    width: int
    gated: bool = True
    shared_width: int = 0
    clamped: bool = False
    """Clamps its gated activation and adds biases (gpt-oss): frameworks ran that as separate kernels for a while."""
    latent_dim: int | None = None
    """Experts work on the hidden state projected down to this many dimensions; None: on the hidden state itself."""


Mixer: TypeAlias = Attention | LatentAttention | Mamba | LinearAttention
Feed: TypeAlias = Dense | Experts


class Layers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`count` alike layers; a hybrid's layer may have a mixer only, or a feed-forward part only."""

    count: int
    mixer: Mixer | None = None
    feed: Feed | None = None


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. Layers alike are counted together: their order does not matter to what they cost."""

    name: str
    hidden: int
    vocab: int
    layers: tuple[Layers, ...]
    tied_embeddings: bool = False
    positions: int = 0
    """Learned position embeddings; 0: rotary or none."""
    norm: Literal["rms", "layer"] = "rms"
    biases: bool = False
    """Linear layers have biases (GPT-2 and GPT-3 do)."""
    mtp_layers: int = 0
    """Multi-token prediction modules, each one more layer (the last attention and feed-forward part of `layers`, which
    in a hybrid may be two entries) and one more pass through the head."""
    max_tokens: int | None = None
    """Longest sequence it was made for."""
    parameters: float | None = None
    """As published, for checks; None: not published."""
    source: str = ""
    family: str = ""

    @property
    def depth(self) -> int:
        """Layers of all kinds, without those of multi-token prediction."""
        return sum(layers.count for layers in self.layers)
