"""What a stage of a pipeline holds: its parameters, who divides them, and how many layers of which kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rackscale.models.description import Dense, Experts, Layers, Model
from rackscale.sizing.layout import Array, Layouts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.work import BF16, Product, Work

ROUNDING = 1e-9
"""That a quotient of whole numbers may be off by."""


@dataclass(slots=True, kw_only=True)
class Weights:
    """Parameters on one GPU, in numbers: its part of what tensor-parallel ranks divide, and its experts'."""

    own: Array
    routed: Array
    own_low: Array
    """Of `own`, those whose products a low-precision recipe quantises."""
    routed_low: Array

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            own=self.own + other.own,
            routed=self.routed + other.routed,
            own_low=self.own_low + other.own_low,
            routed_low=self.routed_low + other.routed_low,
        )

    def times(self, count: Array | float) -> Weights:
        """Of `count` layers alike."""
        return Weights(
            own=self.own * count,
            routed=self.routed * count,
            own_low=self.own_low * count,
            routed_low=self.routed_low * count,
        )

    def sizes(self, low: float, high: float = BF16) -> tuple[Array, Array]:
        """Bytes, own and routed, where a quantised parameter takes `low` and any other `high`."""
        saved = high - low
        return self.own * high - self.own_low * saved, self.routed * high - self.routed_low * saved


def high_share(p: Product, recipe: Recipe) -> float:
    """Share of a product's layers in which it stays in BF16."""
    if not p.low or (p.projects and recipe.bf16_projections):
        return 1.0
    return recipe.bf16_layers if recipe.is_low else 0.0


def weights_of(works: Sequence[Work], at: Layouts, recipe: Recipe) -> Weights:
    """Of one layer. Norms, biases, routers and whatever the recipe says stay in BF16."""
    own, routed, own_low, routed_low = (np.zeros(len(at)) for _ in range(4))
    for work in works:
        own += work.plain
        for p in work.products:
            count, low = p.weights, 1.0 - high_share(p, recipe)
            whole, quantised = (own, own_low) if p.groups is None else (routed, routed_low)
            whole += count
            quantised += low * count
    return Weights(own=own, routed=routed, own_low=own_low, routed_low=routed_low)


def vocabulary(model: Model, at: Layouts, matrices: Array | float) -> Weights:
    """The embedding, the head or both: `matrices` of them, in BF16."""
    own, zero = matrices * model.vocab * model.hidden / at.tp, np.zeros(len(at))
    return Weights(own=own, routed=zero, own_low=zero, routed_low=zero)


def matrices_of(model: Model) -> float:
    """Embedding and head, where they aren't one."""
    return 2.0 - model.tied_embeddings


def expert_ranks(at: Layouts) -> Array:
    """Replicas of an expert; of everything else there are dp x cp."""
    return np.maximum(at.dp * at.cp * at.tp / (at.ep * at.etp), 1.0)


def widths(at: Layouts) -> tuple[Array, Array]:
    """Ranks that divide states, where they are divided: of own parameters, and of experts'."""
    width = np.minimum(at.shard * at.cp, at.dp * at.cp)
    return width, np.minimum(width, expert_ranks(at))


def depth_of(model: Model) -> int:
    """Layers, those of multi-token prediction too."""
    return model.depth + model.mtp_layers


def chunk_layers(model: Model, at: Layouts) -> Array:
    """Whole layers of a pipeline's fullest chunk."""
    return np.ceil(depth_of(model) / (at.pp * at.virtual) - ROUNDING)


def in_front(kinds: Sequence[Layers]) -> list[bool]:
    """Which kinds stand before all others: dense layers that are fewer than those of experts, as in DeepSeek-V3,
    GLM-4.5 and Kimi K2. Others alternate (Llama 4, hybrids, windows of attention)."""
    experts = sum(kind.count for kind in kinds if isinstance(kind.feed, Experts))
    return [
        kind.mixer is not None and isinstance(kind.feed, Dense) and kind.count < experts for kind in kinds
    ]


def first_stage(kinds: Sequence[Layers], chunk: Array, chunks: Array, weight: Sequence[Array]) -> list[Array]:
    """Layers of each kind at most in `chunks` chunks of `chunk` layers, the first of which is the model's first."""
    counts, room = [], chunk
    for kind, front in zip(kinds, in_front(kinds), strict=True):
        counts.append(np.minimum(room, kind.count) if front else np.zeros(len(chunk)))
        room = room - counts[-1]
    rest = _behind(kinds, ((room, np.ones(len(chunk))), (chunk, chunks - 1.0)), weight)
    return [a + b for a, b in zip(counts, rest, strict=True)]


def later_stage(kinds: Sequence[Layers], chunk: Array, chunks: Array, weight: Sequence[Array]) -> list[Array]:
    """The same without those in front."""
    return _behind(kinds, ((chunk, chunks),), weight)


def _behind(
    kinds: Sequence[Layers], rows: Sequence[tuple[Array, Array]], weight: Sequence[Array]
) -> list[Array]:
    """Of kinds that alternate, in rows of so many layers, each so often: of the heaviest kinds, any number together, a
    row has at most their share of its layers, rounded up."""
    zero = np.zeros(len(rows[0][0]))
    counts = [zero for _ in kinds]
    behind = [k for k, front in enumerate(in_front(kinds)) if not front]
    each = np.array([float(kinds[k].count) for k in behind])
    every = each.sum()
    if len(behind) == 1:
        counts[behind[0]] = np.minimum(sum((length * times for length, times in rows), zero), every)
        return counts
    order = np.argsort(-np.stack([weight[k] for k in behind]), axis=0, kind="stable")
    heavy, taken = zero, zero
    for place in order:
        heavy = heavy + each[place]
        most = sum((np.ceil(length * heavy / every - ROUNDING) * times for length, times in rows), zero)
        most = np.minimum(most, heavy)
        for number, k in enumerate(behind):
            counts[k] = counts[k] + np.where(place == number, most - taken, 0.0)
        taken = most
    return counts
