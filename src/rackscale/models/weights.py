"""Parameters of a model by part: what is stored, and what one token passes through.

Counted are matrices, embeddings, the biases of `Model.biases`, convolutions, and one norm before each part of a layer.
Left out are vectors that some models add and that cost nothing: norms of single heads, norms after a part, attention
sinks, biases of queries, keys and values alone, corrections of a router. Together they are under 0.01 % of every model
in the catalog.

In the formulas h is the hidden size.
"""

from __future__ import annotations

from msgspec import Struct

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


class LayerWeights(Struct, frozen=True, kw_only=True):
    """Parameters of one layer; `count` layers are alike."""

    count: int
    mixer: int = 0
    feed: int = 0
    """What every token passes through: a dense feed-forward part, or shared experts and latent projections."""
    experts: int = 0
    """All routed experts."""
    active_experts: int = 0
    """Those of them that one token is sent to."""
    router: int = 0
    norm: int = 0

    @property
    def total(self) -> int:
        """Stored for one layer."""
        return self.mixer + self.feed + self.experts + self.router + self.norm

    @property
    def active(self) -> int:
        """Passed through by one token in one layer."""
        return self.total - self.experts + self.active_experts


class Weights(Struct, frozen=True, kw_only=True):
    """Parameters of a model."""

    embedding: int
    """Of tokens, and of positions where they are learned."""
    head: int
    """Output projection; 0 where it is the token embedding's matrix."""
    norm: int
    """The last norm, before the head."""
    layers: tuple[LayerWeights, ...]
    """In the order of `Model.layers`."""
    prediction: tuple[LayerWeights, ...] = ()
    """Multi-token prediction modules, all alike: one entry, or none. Embedding and head are the model's own."""

    def total(self, *, mtp: bool = False) -> int:
        """Stored in all; with the multi-token prediction modules if `mtp`."""
        parts = self.layers + self.prediction if mtp else self.layers
        return self.embedding + self.head + self.norm + sum(part.count * part.total for part in parts)

    def active(self, *, mtp: bool = False) -> int:
        """Passed through by one token, embedding and head included."""
        parts = self.layers + self.prediction if mtp else self.layers
        return self.embedding + self.head + self.norm + sum(part.count * part.active for part in parts)


def weights(model: Model) -> Weights:
    """Parameters of `model` by part.

    embedding = (vocab + positions) h; head = vocab h unless tied; a norm has h parameters (rms) or 2 h (layer).
    """
    head = model.vocab * model.hidden
    return Weights(
        embedding=head + model.positions * model.hidden,
        head=0 if model.tied_embeddings else head,
        norm=_norm(model),
        layers=tuple(layer(model, layers) for layers in model.layers),
        prediction=(_prediction(model),) if model.mtp_layers else (),
    )


def parameters(model: Model, *, mtp: bool = False) -> int:
    """All parameters, as published counts have them: without multi-token prediction modules unless `mtp`."""
    return weights(model).total(mtp=mtp)


def active_parameters(model: Model, *, mtp: bool = False) -> int:
    """Parameters that one token passes through: all but the experts that it isn't sent to."""
    return weights(model).active(mtp=mtp)


def layer(model: Model, layers: Layers) -> LayerWeights:
    """Parameters of one of `layers`: its mixer, its feed-forward part, and a norm before each of them."""
    feed, experts, active_experts, router = _feed(model, layers.feed)
    parts = (layers.mixer is not None) + (layers.feed is not None)
    return LayerWeights(
        count=layers.count,
        mixer=mixer(model, layers.mixer),
        feed=feed,
        experts=experts,
        active_experts=active_experts,
        router=router,
        norm=parts * _norm(model),
    )


def prediction_layer(model: Model) -> Layers:
    """The layer of a multi-token prediction module: the last attention and the last feed-forward part of `model`."""
    mixers = [entry.mixer for entry in model.layers if isinstance(entry.mixer, Attention | LatentAttention)]
    feeds = [entry.feed for entry in model.layers if entry.feed is not None]
    return Layers(
        count=model.mtp_layers,
        mixer=mixers[-1] if mixers else None,
        feed=feeds[-1] if feeds else None,
    )


def mixer(model: Model, part: Mixer | None) -> int:
    """Parameters of one mixer.

    attention: h H d queries, as much again for the output and for a gate, 2 h K d keys and values, of H heads and K
    key-value heads of d.
    """
    h = model.hidden
    match part:
        case None:
            return 0
        case Attention():
            queries, keys = part.heads * part.head_dim, part.kv_heads * part.head_dim
            biases = queries + 2 * keys + h if model.biases else 0
            return h * queries * (3 if part.gated else 2) + 2 * h * keys + biases
        case LatentAttention():
            return _latent(h, part)
        case Mamba():
            return _mamba(h, part)
        case LinearAttention():
            return _linear(h, part)


def _latent(h: int, part: LatentAttention) -> int:
    """Multi-head latent attention, with q and c the ranks of the latents, each with an rms norm.

    h q + q + q H (nope + rope) queries (h H (nope + rope) without a latent), h (c + rope) + c down, c H (nope + value)
    up, H value h out: DeepSeek-V2, arXiv:2405.04434, section 2.1 and appendix B.
    """
    queries = part.heads * (part.nope_dim + part.rope_dim)
    down = h * queries if part.q_rank is None else part.q_rank * (h + 1 + queries)
    latent = h * (part.kv_rank + part.rope_dim) + part.kv_rank
    return down + latent + part.heads * (part.kv_rank * (part.nope_dim + part.value_dim) + part.value_dim * h)


def _mamba(h: int, part: Mamba) -> int:
    """Mamba-2 with inner width i = heads head_dim and n = groups state_dim, as its reference implementation has it.

    h (2 i + 2 n + heads) in, (i + 2 n) (conv + 1) convolution with bias, 3 heads for A, D and dt, i norm, i h out.
    """
    inner, state = part.heads * part.head_dim, part.groups * part.state_dim
    convolution = (inner + 2 * state) * (part.conv + 1)
    return h * (2 * inner + 2 * state + part.heads) + convolution + 3 * part.heads + inner + inner * h


def _linear(h: int, part: LinearAttention) -> int:
    """Gated DeltaNet (arXiv:2412.06464) with k and v the widths of all keys and all values, as in Qwen3-Next.

    h (2 k + 2 v) queries, keys, values and gate, 2 h heads for decay and step, (2 k + v) conv, 2 heads for A and dt,
    value_dim norm, v h out.
    """
    keys, values = part.key_heads * part.key_dim, part.value_heads * part.value_dim
    scalars = 2 * part.value_heads * (h + 1)
    return 2 * h * (keys + values) + scalars + part.conv * (2 * keys + values) + part.value_dim + values * h


def _feed(model: Model, part: Feed | None) -> tuple[int, int, int, int]:
    """Parameters of a feed-forward part: for every token, of all experts, of those one token is sent to, of the router.

    dense: h w (2, or 3 with a gate); experts: the same with e for h each, where e is h or the latent's width, then with
    2 h e for the projections to it and back.
    """
    h = model.hidden
    match part:
        case None:
            return 0, 0, 0, 0
        case Dense():
            return _block(h, part.width, gated=part.gated, biases=model.biases), 0, 0, 0
        case Experts():
            inner = part.latent_dim or h
            one = _block(inner, part.width, gated=part.gated, biases=model.biases)
            shared = h * part.shared_width * (3 if part.gated else 2)
            latent = 2 * h * part.latent_dim if part.latent_dim else 0
            router = part.count * (h + (1 if model.biases else 0))
            return shared + latent, part.count * one, part.active * one, router


def _block(h: int, width: int, *, gated: bool, biases: bool) -> int:
    up = 2 if gated else 1
    return h * width * (up + 1) + (up * width + h if biases else 0)


def _norm(model: Model) -> int:
    return model.hidden * (2 if model.norm == "layer" else 1)


def _prediction(model: Model) -> LayerWeights:
    """A module: its layer, norms of the hidden state and of the next token's embedding, a 2 h h projection of both, and
    a last norm (DeepSeek-V3, arXiv:2412.19437, section 2.2)."""
    one = layer(model, prediction_layer(model))
    return LayerWeights(
        count=one.count,
        mixer=one.mixer + 2 * model.hidden**2,
        feed=one.feed,
        experts=one.experts,
        active_experts=one.active_experts,
        router=one.router,
        norm=one.norm + 3 * _norm(model),
    )
