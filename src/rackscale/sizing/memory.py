"""What a layout needs of an accelerator's memory at its peak, part by part, in bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from rackscale.models.description import Model
from rackscale.sizing.layout import MODULES, Array, Layouts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.work import BF16, Work, head_work, layers_of, tokens_of, works_of

MASTER = 4.0
"""FP32 weights that the optimizer keeps, bytes per parameter."""
MOMENTS = {"adamw": 8.0, "muon": 4.0, "sgd": 4.0}
"""FP32 moments: Adam keeps two, Muon and momentum one."""
CONTEXT_BYTES = 3.5e9
"""CUDA context, NCCL and cuBLAS workspaces (assumed; NCCL takes 1-4 GB with many communicators)."""
FRAGMENTS = 0.03
"""Share of what the allocator holds that fits no request (assumed; expandable segments keep it under 5 %)."""
TIGHT = 0.1
"""How far over a device's memory an estimate may be and the layout still run: the error on stated peaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the fullest GPU; they sum to `total`."""

    parameters: Array
    gradients: Array
    optimizer: Array
    activations: Array
    """What all micro-batches in flight keep for the backward pass, with the part that is being computed."""
    logits: Array
    buffers: Array
    """Gathered parameters, messages, the context of CUDA and NCCL."""
    fragments: Array

    @property
    def total(self) -> Array:
        """Of all parts."""
        return sum((getattr(self, f.name) for f in fields(self)), np.zeros(1))


def memory(model: Model, at: Layouts, recipe: Recipe) -> Memory:
    """What the fullest stage of a pipeline needs: the first or the last one."""
    own, routed, kept, working = _layers(model, at, recipe)
    vocabulary = model.vocab * model.hidden / at.tp
    ends = np.where(at.pp > 1, 1.0, 2.0 - model.tied_embeddings) * vocabulary
    own = own + ends
    expert_ranks = np.maximum(at.dp * at.cp * at.tp / (at.ep * at.etp), 1.0)
    ranks = at.dp * at.cp
    fsdp = at.sharding == 3
    width = np.minimum(at.shard * at.cp, ranks)

    def divided(sharded: npt.NDArray[np.bool_]) -> Array:
        return np.where(sharded, own / width + routed / np.minimum(width, expert_ranks), own + routed)

    weights, gradients, states = divided(fsdp), divided(at.sharding >= 2), divided(at.sharding >= 1)
    depth = model.depth + model.mtp_layers
    layer = (own + routed - ends) / depth * at.pp
    gathered = np.where(fsdp, 2.0 * layer + ends, 0.0)
    unreduced = np.where(fsdp, layer * recipe.gradient_bytes * recipe.trained, 0.0)
    logits = recipe.logit_copies * head_work(model, at).kept[""] / (1.0 + model.mtp_layers)
    first, last = _flying(at)
    kept = kept * np.where(
        at.pp > 1, np.ceil(depth / (at.pp * at.virtual) - 1e-9) * at.pp * at.virtual / depth, 1.0
    )
    # the first stage has the most micro-batches in flight, the last one the logits
    ends_first = kept * first >= kept * last + logits
    flying = np.where(ends_first, first, last)
    logits = np.where((at.pp > 1) & ends_first, 0.0, logits)
    activations = kept * flying * (1.0 - at.offload) + working
    parameters = weights * recipe.weight_bytes
    gradient = gradients * recipe.gradient_bytes * recipe.trained
    optimizer = states * (MASTER + MOMENTS[recipe.optimizer]) * recipe.trained
    buffers = gathered * BF16 + unreduced + CONTEXT_BYTES
    return Memory(
        parameters=parameters,
        gradients=gradient,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        buffers=buffers,
        fragments=FRAGMENTS * (parameters + gradient + optimizer + activations + logits),
    )


def _flying(at: Layouts) -> tuple[Array, Array]:
    """Micro-batches that the first and the last stage keep activations of (1F1B, arXiv:2104.04473, interleaved)."""
    interleaved = at.virtual > 1
    first = at.pp * (1.0 + (at.pp - 1.0) / (at.pp * at.virtual) * interleaved)
    last = ((at.virtual - 1.0) * at.pp + 1.0) / at.virtual
    return np.minimum(first, at.micro_batches), np.minimum(last, at.micro_batches)


def _layers(model: Model, at: Layouts, recipe: Recipe) -> tuple[Array, Array, Array, Array]:
    """Of an average stage: own parameters, experts' parameters, bytes kept for backward, and of the widest layer."""
    zero = np.zeros(len(at))
    own, routed, kept, widest = zero.copy(), zero.copy(), zero.copy(), zero.copy()
    entry = tokens_of(at) / at.tp * model.hidden * BF16
    for kind in layers_of(model):
        count = kind.count / at.pp
        layer = zero.copy()
        for work in works_of(kind, model, at):
            own += work.plain * count
            for p in work.products:
                target = own if p.groups is None else routed
                target += p.weights * count
            everything, some = _kept(work, at, recipe)
            layer += everything
            kept += count * np.where(at.full > 0, 0.0, some)
        kept += count * np.where(at.full > 0, entry, 0.0)
        widest = np.maximum(widest, layer)
    return own, routed, kept, widest


def _kept(work: Work, at: Layouts, recipe: Recipe) -> tuple[Array, Array]:
    """Bytes that a part keeps with nothing computed again, and with what the layouts compute again."""
    again = dict(zip(MODULES, at.again, strict=True))
    everything, some = np.zeros(len(at)), np.zeros(len(at))
    for module, kept in work.kept.items():
        size = kept
        if module in {"input", "activation", "copy"}:
            # frozen weights have no gradients, so adapters keep no inputs; in BF16 a copy is the tensor itself
            bare = recipe.task == "lora" or (module == "copy" and not recipe.is_low)
            size = kept * (0.0 if bare else recipe.product_bytes)
        everything += size
        some += size * (1.0 - again.get(module, 0.0))
    return everything, some
