"""What one GPU does for one micro-batch of one layer: products, attention, bytes. Counts only, no seconds.

Every count is an array with one entry per layout. Symbols as in the papers: T tokens of a micro-batch on this GPU,
h hidden, and the degrees tp, cp, ep, etp. A product is forward's (m, k) x (k, n); backward has two of the same FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from rackscale.models import prediction_layer
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
from rackscale.sizing.layout import Array, Layouts

BF16 = 2.0
"""Bytes of an activation that is not quantised."""


CLAMPED_KERNELS = 18.0
"""Elementwise kernels of a clamped gated activation and of experts' biases where they run apart, forward; each moves
1.5 times the activation's input. Counted in Megatron's code of 2025 (chunks, clamps, sigmoid, sums and products, then
the second bias in FP32: some 13 to 18), and assumed: gpt-oss is the only such model that was measured."""
EXPERT_KERNELS = 12.0
"""Launched for one expert going forward: two products, each with its inputs split, quantised and its scales arranged
(assumed; the calibrated launch time absorbs what the count misses)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix product of the forward pass; of `groups` experts if more than None."""

    m: Array
    n: Array
    k: Array
    groups: Array | None = None
    low: bool = True
    """Whether a low-precision recipe quantises it."""
    projects: bool = False
    """Whether it projects for attention or into experts' latent space: some recipes quantise neither."""
    module: str = ""
    """Which of layout.MODULES computes it again; empty: only a whole layer does."""

    @property
    def weights(self) -> Array:
        """Parameters on this GPU."""
        return self.n * self.k * (1.0 if self.groups is None else self.groups)

    @property
    def flops(self) -> Array:
        """Forward."""
        return 2.0 * self.m * self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Attention's own products: scores and their weighted sum, over `pairs` of tokens of one head."""

    pairs: Array
    """Query-key pairs that a causal kernel computes, all sequences of the micro-batch, one head."""
    heads: Array
    key_dim: float
    value_dim: float
    reach: Array
    """Tokens that a query sees at most."""

    @property
    def flops(self) -> Array:
        """Forward: a product for the scores, one for the sum."""
        return 2.0 * self.pairs * self.heads * (self.key_dim + self.value_dim)


@dataclass(slots=True, kw_only=True)
class Work:
    """Of one layer's part."""

    products: list[Product] = field(default_factory=list)
    cores: list[Core] = field(default_factory=list)
    scan_flops: Array | float = 0.0
    """State-space and linear-attention chunks, forward."""
    scan_bytes: Array | float = 0.0
    """What those chunks read and write, with the state that each one leaves in FP32."""
    moved: dict[str, Array] = field(default_factory=dict)
    """Bytes that memory-bound kernels read and write going forward, by module ("" is computed again by nobody)."""
    kept: dict[str, Array] = field(default_factory=dict)
    """Bytes kept for the backward pass, by module ("" is computed again by a whole layer only: the residual stream, and
    other inputs of norms). Elements of linear layers' inputs, not bytes: "input", "norm" and "activation" (each
    computed again with its module), "copy" (another kernel's output, kept quantised), "dispatched" (tokens as they come
    to experts) and "shared" (a shared expert's "activation")."""
    unfused: Array | float = 0.0
    """Bytes that an activation moves besides, forward, where it runs as separate kernels."""
    kernels: int = 0
    """Launched going forward."""
    expert_kernels: Array | float = 0.0
    """Launched going forward for one expert at a time."""
    sums: int = 0
    """Tensor-parallel reductions of one hidden state, forward (as many gathers)."""
    hides: bool = False
    """Whether those run beside the products they belong to, tile by tile: dense layers only."""
    routed: Array | float = 0.0
    """Bytes of hidden states that a rank sends to experts, forward, before it is said how far."""
    tokens_bytes: Array | float = 0.0
    """Of hidden states that experts see, each token of a rank once."""
    active: int = 0
    """Experts of a token."""
    ring: Array | float = 0.0
    """Bytes of keys and values of one rank that context parallelism passes on."""
    swapped: Array | float = 0.0
    """Bytes of queries, keys, values and outputs of one rank: what all-to-all context parallelism exchanges instead."""
    plain: Array | float = 0.0
    """Parameters that are not in products: norms, biases, convolutions, on this GPU."""


def layers_of(model: Model) -> tuple[Layers, ...]:
    """The model's layers, and those of multi-token prediction."""
    if not model.mtp_layers:
        return model.layers
    return (*model.layers, replace(prediction_layer(model), count=model.mtp_layers))


def works_of(kind: Layers, model: Model, at: Layouts) -> list[Work]:
    """Of one layer of a kind: its mixer's and its feed-forward part's, as far as it has them."""
    found = [] if kind.mixer is None else [mixer_work(model, kind.mixer, at)]
    return found if kind.feed is None else [*found, feed_work(model, kind.feed, at)]


def tokens_of(at: Layouts) -> Array:
    """Tokens of a micro-batch on one GPU, shared by the tensor-parallel ranks."""
    return at.micro_batch * at.tokens / at.cp


def _norm(model: Model, at: Layouts) -> Array:
    """A norm reads and writes the hidden state; the residual reads two and writes one."""
    return 5.0 * tokens_of(at) / at.tp * model.hidden * BF16


def _core(at: Layouts, heads: float, key_dim: float, value_dim: float, window: int | None) -> Core:
    """Causal: a token sees the `reach` before it; in packed sequences none of another document."""
    reach = at.document if window is None else np.minimum(at.document, float(window))
    pairs = at.tokens / at.document * (at.document * reach - reach * reach / 2.0)
    return Core(
        pairs=at.micro_batch * pairs / at.cp,
        heads=heads / at.tp,
        key_dim=key_dim,
        value_dim=value_dim,
        reach=reach,
    )


def attention(model: Model, mixer: Attention, at: Layouts) -> Work:
    """Grouped-query attention, arXiv:2305.13245."""
    tokens, h = tokens_of(at), float(model.hidden)
    inner, both = mixer.heads * mixer.head_dim, (mixer.heads + 2 * mixer.kv_heads) * mixer.head_dim
    one = np.ones_like(tokens)
    kv = (
        np.maximum(mixer.kv_heads / at.tp, 1.0) * mixer.head_dim
    )  # fewer key-value heads than ranks are copied
    qkv = inner / at.tp * (1.0 + mixer.gated) + 2.0 * kv
    return Work(
        products=[
            Product(m=tokens, n=qkv, k=h * one, projects=True),
            Product(m=tokens, n=h * one, k=inner / at.tp, projects=True),
        ],
        cores=[_core(at, mixer.heads, mixer.head_dim, mixer.head_dim, mixer.window_tokens)],
        moved={"norm": _norm(model, at), "": 2.0 * tokens * qkv * BF16},
        kept={
            "": tokens / at.tp * h * BF16,
            "norm": tokens / at.tp * h,
            "copy": tokens * inner / at.tp,
            "attention": tokens * (qkv + inner / at.tp) * BF16,
        },
        kernels=9,
        sums=1,
        hides=True,
        ring=2.0 * tokens * kv * BF16,
        swapped=tokens * (inner / at.tp + qkv) * BF16,
        plain=h * (2.0 if model.norm == "layer" else 1.0) + (both / at.tp + h if model.biases else 0.0),
    )


def latent(model: Model, mixer: LatentAttention, at: Layouts) -> Work:
    """Multi-head latent attention, arXiv:2405.04434 section 2.1, as trained: keys and values expanded per head."""
    tokens, h = tokens_of(at), float(model.hidden)
    one = np.ones_like(tokens)
    key_dim = mixer.nope_dim + mixer.rope_dim
    queries, values = mixer.heads * key_dim / at.tp, mixer.heads * mixer.value_dim / at.tp
    expanded = mixer.heads * (mixer.nope_dim + mixer.value_dim) / at.tp
    own = tokens / at.tp  # the low-rank projections are not divided: each rank does its share of the tokens
    products = [
        Product(m=own, n=(mixer.kv_rank + mixer.rope_dim) * one, k=h * one),
        Product(m=tokens, n=expanded, k=mixer.kv_rank * one, module="latent"),
        Product(m=tokens, n=h * one, k=values),
    ]
    if mixer.q_rank is None:
        products.append(Product(m=tokens, n=queries, k=h * one))
    else:
        products.append(Product(m=own, n=mixer.q_rank * one, k=h * one))
        products.append(Product(m=tokens, n=queries, k=mixer.q_rank * one, module="latent"))
    ranks = mixer.kv_rank + mixer.rope_dim + (mixer.q_rank or 0)
    return Work(
        products=products,
        cores=[_core(at, mixer.heads, key_dim, mixer.value_dim, None)],
        moved={
            "norm": _norm(model, at) + 2.0 * own * ranks * BF16,
            "latent": 2.0 * tokens * (2.0 * queries + values) * BF16,
        },
        kept={
            "": own * (h + ranks) * BF16,
            "norm": own * h,
            "input": own * ranks,
            "copy": tokens * values,
            "latent": tokens * (2.0 * queries + values) * BF16,
            "attention": tokens * values * BF16,
        },
        kernels=16,
        sums=1,
        hides=True,
        ring=tokens * (queries + values) * BF16,
        swapped=tokens * (2.0 * queries + 2.0 * values) * BF16,
        plain=2.0 * h + ranks,
    )


def mamba(model: Model, mixer: Mamba, at: Layouts) -> Work:
    """Mamba-2, arXiv:2405.21060 section 6: inside a chunk as attention, between chunks as a recurrence."""
    tokens, h = tokens_of(at), float(model.hidden)
    one = np.ones_like(tokens)
    inner = mixer.heads * mixer.head_dim / at.tp
    states = 2.0 * np.maximum(mixer.groups / at.tp, 1.0) * mixer.state_dim
    projected = 2.0 * inner + states + mixer.heads / at.tp
    per_token = mixer.chunk_tokens * (states / 2.0 + inner) + 4.0 * inner * mixer.state_dim
    return Work(
        products=[Product(m=tokens, n=projected, k=h * one), Product(m=tokens, n=h * one, k=inner)],
        scan_flops=tokens * per_token,
        scan_bytes=tokens
        * (4.0 * (inner + states) * BF16 + 3.0 * inner * mixer.state_dim * 4.0 / mixer.chunk_tokens),
        moved={"norm": _norm(model, at), "": 3.0 * tokens * inner * BF16},
        kept={
            "": tokens / at.tp * h * BF16,
            "norm": tokens / at.tp * h,
            "input": tokens * inner,
            "attention": tokens * (projected + states + 2.0 * inner) * BF16,
        },
        kernels=12,
        sums=1,
        ring=mixer.heads * mixer.head_dim * mixer.state_dim / at.tp * 4.0 * at.micro_batch,
        plain=h + (inner + states) * (mixer.conv + 1) + 3.0 * mixer.heads / at.tp + inner,
    )


def linear(model: Model, mixer: LinearAttention, at: Layouts) -> Work:
    """Gated DeltaNet, arXiv:2412.06464: chunks of the delta rule, then a gated output."""
    tokens, h = tokens_of(at), float(model.hidden)
    one = np.ones_like(tokens)
    keys, values = mixer.key_heads * mixer.key_dim / at.tp, mixer.value_heads * mixer.value_dim / at.tp
    projected = 2.0 * keys + 2.0 * values + 2.0 * mixer.value_heads / at.tp
    per_token = mixer.chunk_tokens * (2.0 * keys + 2.0 * values) + 4.0 * values * mixer.key_dim
    return Work(
        products=[Product(m=tokens, n=projected, k=h * one), Product(m=tokens, n=h * one, k=values)],
        scan_flops=tokens * per_token,
        scan_bytes=tokens
        * (4.0 * (2.0 * keys + values) * BF16 + 3.0 * values * mixer.key_dim * 4.0 / mixer.chunk_tokens),
        moved={"norm": _norm(model, at), "": 3.0 * tokens * values * BF16},
        kept={
            "": tokens / at.tp * h * BF16,
            "norm": tokens / at.tp * h,
            "input": tokens * values,
            "attention": tokens * (projected + 2.0 * keys + 2.0 * values) * BF16,
        },
        kernels=16,
        sums=1,
        ring=values * mixer.key_dim * 4.0 * at.micro_batch,
        plain=h + (2.0 * keys + values) * mixer.conv + 2.0 * mixer.value_heads / at.tp + mixer.value_dim,
    )


def dense(model: Model, feed: Dense, at: Layouts) -> Work:
    """A feed-forward part, gated as in arXiv:2002.05202 or not."""
    tokens, h = tokens_of(at), float(model.hidden)
    one = np.ones_like(tokens)
    width = feed.width / at.tp
    up = width * (2.0 if feed.gated else 1.0)
    return Work(
        products=[
            Product(m=tokens, n=up, k=h * one, module="mlp"),
            Product(m=tokens, n=h * one, k=width, module="mlp"),
        ],
        moved={"norm": _norm(model, at), "activation": tokens * (up + width) * BF16},
        kept={
            "": tokens / at.tp * h * BF16,
            "norm": tokens / at.tp * h,
            "mlp": tokens * up * BF16,
            "activation": tokens * width,
        },
        kernels=5,
        sums=1,
        hides=True,
        plain=h * (2.0 if model.norm == "layer" else 1.0) + (up + h if model.biases else 0.0),
    )


def experts(model: Model, feed: Experts, at: Layouts) -> Work:
    """A mixture of experts with tokens spread evenly (as the published runs force them to be)."""
    tokens, h = tokens_of(at), float(model.hidden)
    one = np.ones_like(tokens)
    inner = float(feed.latent_dim or model.hidden)
    own = tokens / at.tp
    rows = own * at.etp * feed.active
    local = feed.count / at.ep
    width = feed.width / at.etp
    up = width * (2.0 if feed.gated else 1.0)
    products = [
        Product(m=own, n=feed.count * one, k=h * one, low=False),
        Product(m=rows / local, n=up, k=inner * one, groups=local, module="experts"),
        Product(m=rows / local, n=inner * one, k=width, groups=local, module="experts"),
    ]
    if feed.latent_dim is not None:
        products += [
            Product(m=own, n=inner * one, k=h * one, projects=True),
            Product(m=own, n=h * one, k=inner * one, projects=True),
        ]
    shared = feed.shared_width / at.tp
    if feed.shared_width:
        products += [
            Product(m=tokens, n=shared * (2.0 if feed.gated else 1.0), k=h * one, module="mlp"),
            Product(m=tokens, n=h * one, k=shared, module="mlp"),
        ]
    both = 3.0 if feed.gated else 2.0
    return Work(
        products=products,
        moved={
            "norm": _norm(model, at),
            "": 4.0 * rows * inner * BF16 + 4.0 * own * feed.count * 4.0,
            "activation": (rows * width + tokens * shared) * both * BF16,
        },
        kept={
            "": own * h * BF16,
            "norm": own * h,
            "dispatched": rows * inner,
            "experts": rows * up * BF16,
            "mlp": tokens * shared * (both - 1.0) * BF16,
            "activation": rows * width,
            "shared": tokens * shared,
        },
        kernels=22 if feed.shared_width else 16,
        expert_kernels=EXPERT_KERNELS * local,
        unfused=CLAMPED_KERNELS * 1.5 * rows * up * BF16 if feed.clamped else 0.0,
        sums=1 if feed.shared_width else 0,  # the router works on its share of the tokens
        routed=own * inner * BF16 * _copies(feed, at),
        tokens_bytes=own * inner * BF16,
        active=feed.active,
        plain=h + feed.count,
    )


def reached(places: Array, active: int) -> Array:
    """Chance that one of `places` alike (ranks, domains) holds one of a token's `active` experts, drawn evenly."""
    return 1.0 - (1.0 - 1.0 / places) ** active


def _copies(feed: Experts, at: Layouts) -> Array:
    """Ranks that a token is sent to: its experts' ranks, each one once, its own not."""
    return (at.ep - 1.0) * reached(at.ep, feed.active) * at.etp


def mixer_work(model: Model, mixer: Mixer, at: Layouts) -> Work:
    """Of one mixer."""
    match mixer:
        case Attention():
            return attention(model, mixer, at)
        case LatentAttention():
            return latent(model, mixer, at)
        case Mamba():
            return mamba(model, mixer, at)
        case LinearAttention():
            return linear(model, mixer, at)


def feed_work(model: Model, feed: Feed, at: Layouts) -> Work:
    """Of one feed-forward part."""
    return dense(model, feed, at) if isinstance(feed, Dense) else experts(model, feed, at)


def head_work(model: Model, at: Layouts) -> Work:
    """The vocabulary-parallel head and its loss; multi-token prediction goes through it again."""
    tokens, one = tokens_of(at), np.ones_like(at.tp)
    passes = 1.0 + model.mtp_layers
    vocab = model.vocab / at.tp
    return Work(
        products=[Product(m=tokens * passes, n=vocab, k=model.hidden * one, low=False)],
        moved={"": passes * tokens * vocab * (2.0 * BF16 + 4.0)},
        kept={"": passes * tokens * vocab * 4.0 + tokens / at.tp * model.hidden * BF16},
        kernels=12,
        sums=0,
        plain=float(model.hidden),
    )
