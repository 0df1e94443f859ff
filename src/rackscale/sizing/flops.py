"""FLOPs of a model per token: what MFU counts."""

from __future__ import annotations

import numpy as np

from rackscale.models.description import Model
from rackscale.sizing.layout import Layout, Layouts
from rackscale.sizing.work import head_work, layers_of, works_of

HALVED = 2025.0
"""Year from which NVIDIA's tables count the pairs of causal attention that are computed; before, they counted all."""


def flops_per_token(model: Model, tokens: int, *, trains_all: bool = True, all_pairs: bool = False) -> float:
    """Forward and backward, per token of a sequence of `tokens`.

    Two per weight and token forward and four backward (two where adapters alone are trained), and causal attention's
    own products, only the pairs that are computed (or `all_pairs`, where tokens see the whole sequence; a window's
    pairs stay as they are). Nothing that is computed again counts: this is what MFU divides (arXiv:2204.02311,
    appendix B, which counts all pairs; vendors differ by up to 5 % on one model).
    """
    at = Layouts.of([Layout(gpus=1)], global_batch=1, tokens=tokens, domain=1)
    total, passes = np.zeros(1), 3.0 if trains_all else 2.0
    for kind in layers_of(model):
        for work in works_of(kind, model, at):
            products = sum((p.flops for p in work.products), np.zeros(1)) * passes
            cores = sum(
                (c.flops * (1.0 + (all_pairs & (c.reach >= at.tokens))) for c in work.cores), np.zeros(1)
            )
            others = 3.0 * (cores + work.scan_flops)
            total += kind.count * (products + others)
    total += sum((p.flops for p in head_work(model, at).products), np.zeros(1)) * passes
    return float(total[0]) / tokens
