"""What a layout needs of an accelerator's memory at its peak, part by part, in bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from rackscale.models.description import Model
from rackscale.sizing.layout import MODULES, SHARDINGS, Array, Layouts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.work import BF16, Work, head_work, layers_of, tokens_of, works_of

_, ZERO1, ZERO2, FSDP = range(len(SHARDINGS))
MASTER = 4.0
"""FP32 weights that the optimizer keeps, bytes per parameter. Megatron's distributed optimizer makes FP32 gradients of
its share only in its own step, when the activations are gone: they are in no peak."""
MOMENTS = {"adamw": 8.0, "muon": 4.0, "sgd": 4.0}
"""FP32 moments, bytes per parameter: Adam keeps two, Muon and momentum one."""
CONTEXT_BYTES = 3.5e9
"""CUDA context, NCCL and cuBLAS workspaces (assumed; NCCL takes 1-4 GB with many communicators)."""
FRAGMENTS = 0.03
"""Share of what the allocator holds that fits no request (assumed; expandable segments keep it under 5 %)."""
TIGHT = 0.1
"""How far off the estimate of a need may be: of 687 published layouts that ran and were read as they are stated, none
is estimated to need more than 9.1 % above the accelerator's memory (docs/explanation/measurements.md)."""
HOST_BYTES = 960.0 * 2**30 / 4.0
"""Host memory per GPU where the catalog has none: as P6e-GB200 (assumed)."""
HOST_SHARE = 0.75
"""Of host memory that activations may take (assumed): the rest is for the system, data and copies of checkpoints."""
FITS, CLOSE, OUT = 0, 1, 2
"""Verdicts, the best first: sure to fit, within the estimate's error of the memory on either side, out of memory."""


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
    """Gathered parameters, gradients until they are scattered, tokens sent to experts, the context of CUDA and NCCL."""
    fragments: Array

    @property
    def total(self) -> Array:
        """Of all parts."""
        return sum((getattr(self, f.name) for f in fields(self)), np.zeros(1))


def optimizer_bytes(recipe: Recipe) -> float:
    """What the optimizer keeps, per parameter that is trained."""
    moments = MOMENTS[recipe.optimizer]
    return moments / 2.0 if recipe.all_bf16 else MASTER + moments


def verdicts(need: Array, room: float | None) -> npt.NDArray[np.int8]:
    """FITS, CLOSE or OUT of needs in bytes; everything fits where the accelerator's memory is unknown."""
    if room is None:
        return np.zeros(len(need), dtype=np.int8)
    found = np.where(need <= room * (1.0 + TIGHT), CLOSE, OUT)
    return np.where(need * (1.0 + TIGHT) <= room, FITS, found).astype(np.int8)


def host_room(recipe: Recipe) -> float:
    """Bytes of host memory that activations of one GPU may take."""
    node, hardware = recipe.hardware.memory_bytes_per_node, recipe.hardware
    return HOST_SHARE * (HOST_BYTES if node is None else node / hardware.gpus_per_node)


def judged(model: Model, at: Layouts, recipe: Recipe) -> tuple[Memory, Array, npt.NDArray[np.int8]]:
    """What layouts need of the accelerator and, in bytes per GPU, of its host; and the verdict on both."""
    needs, host = _needs(model, at, recipe)
    verdict = verdicts(needs.total, recipe.hardware.accelerator.hbm_bytes)
    return needs, host, np.where(host > host_room(recipe), OUT, verdict).astype(np.int8)


def memory(model: Model, at: Layouts, recipe: Recipe) -> Memory:
    """What the fullest stage of a pipeline needs: the first or the last one."""
    return _needs(model, at, recipe)[0]


def _needs(model: Model, at: Layouts, recipe: Recipe) -> tuple[Memory, Array]:
    """Of the accelerator, and of its host."""
    found = _layers(model, at, recipe)
    states = _states(model, found, at)
    logits = recipe.logit_copies * head_work(model, at).kept[""] / (1.0 + model.mtp_layers)
    first, last = _flying(at)
    kept = found.kept * _crowded(model, at)
    # the first stage has the most micro-batches in flight, the last one the logits
    ends_first = kept * first >= kept * last + logits
    logits = np.where((at.pp > 1) & ends_first, 0.0, logits)
    flying = kept * np.where(ends_first, first, last)
    activations = flying * (1.0 - at.offload) + found.widest
    parameters = states.weights * recipe.weight_bytes
    gradients = states.gradients * recipe.gradient_bytes * recipe.trained
    optimizer = states.optimizer * optimizer_bytes(recipe) * recipe.trained
    bucket = states.unreduced * recipe.gradient_bytes * recipe.trained
    needs = Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        buffers=states.gathered * BF16 + bucket + found.sent + CONTEXT_BYTES,
        fragments=FRAGMENTS * (parameters + gradients + optimizer + activations + logits),
    )
    return needs, flying * at.offload


@dataclass(slots=True, kw_only=True)
class _Stage:
    """Of an average stage: parameters in numbers, activations in bytes."""

    own: Array
    routed: Array
    """Of experts."""
    kept: Array
    """For the backward pass, of one micro-batch."""
    widest: Array
    """Of the widest layer, with nothing computed again."""
    sent: Array
    """Tokens on their way to experts, and as many that come."""


@dataclass(slots=True, kw_only=True)
class _States:
    """Parameters whose states one GPU holds, in numbers."""

    weights: Array
    gradients: Array
    optimizer: Array
    gathered: Array
    """FSDP: of the layer that is computed, of the next one, and of the vocabulary."""
    unreduced: Array
    """Gradients of a layer until they are scattered, where ranks divide them."""


def _states(model: Model, found: _Stage, at: Layouts) -> _States:
    """ZeRO-1 divides the optimizer's states, ZeRO-2 gradients too, FSDP everything (arXiv:1910.02054).

    ZeRO-2 scatters each micro-batch's gradients, layer by layer, as DeepSpeed's stage 2 and PyTorch's SHARD_GRAD_OP do:
    whole gradients are never kept, and messages are sent once per micro-batch (see parts.py).
    """
    ends = np.where(at.pp > 1, 1.0, 2.0 - model.tied_embeddings) * model.vocab * model.hidden / at.tp
    own = found.own + ends
    ranks = at.dp * at.cp
    width = np.minimum(at.shard * at.cp, ranks)
    expert_ranks = np.maximum(ranks * at.tp / (at.ep * at.etp), 1.0)
    share = own / width + found.routed / np.minimum(width, expert_ranks)
    whole = own + found.routed
    fsdp, scatters = at.sharding == FSDP, at.sharding >= ZERO2
    layer = (found.own + found.routed) / (model.depth + model.mtp_layers) * at.pp
    return _States(
        weights=np.where(fsdp, share, whole),
        gradients=np.where(scatters, share, whole),
        optimizer=np.where(at.sharding >= ZERO1, share, whole),
        gathered=np.where(fsdp, 2.0 * layer + ends, 0.0),
        unreduced=np.where(scatters, np.minimum(layer, whole - share), 0.0),
    )


def _crowded(model: Model, at: Layouts) -> Array:
    """How many more layers the fullest chunks hold than the average ones."""
    depth, chunks = model.depth + model.mtp_layers, at.pp * at.virtual
    return np.where(at.pp > 1, np.ceil(depth / chunks - 1e-9) * chunks / depth, 1.0)


def _flying(at: Layouts) -> tuple[Array, Array]:
    """Micro-batches that the first and the last stage keep activations of (1F1B, arXiv:2104.04473, interleaved)."""
    interleaved = at.virtual > 1
    first = at.pp * (1.0 + (at.pp - 1.0) / (at.pp * at.virtual) * interleaved)
    last = ((at.virtual - 1.0) * at.pp + 1.0) / at.virtual
    return np.minimum(first, at.micro_batches), np.minimum(last, at.micro_batches)


def _layers(model: Model, at: Layouts, recipe: Recipe) -> _Stage:
    own, routed, kept, widest, sent = (np.zeros(len(at)) for _ in range(5))
    entry = tokens_of(at) / at.tp * model.hidden * BF16
    for kind in layers_of(model):
        count = kind.count / at.pp
        layer = np.zeros(len(at))
        for work in works_of(kind, model, at):
            own += work.plain * count
            for p in work.products:
                target = own if p.groups is None else routed
                target += p.weights * count
            everything, some = kept_of(work, at, recipe)
            layer += everything
            kept += count * (1.0 - at.full) * some
            sent = np.maximum(sent, 2.0 * work.routed)
        kept += count * at.full * entry
        widest = np.maximum(widest, layer)
    return _Stage(own=own, routed=routed, kept=kept, widest=widest, sent=sent)


def kept_of(work: Work, at: Layouts, recipe: Recipe) -> tuple[Array, Array]:
    """Bytes that a part keeps with nothing computed again, and with what the layouts compute again."""
    again = dict(zip(MODULES, at.again, strict=True))
    everything, some = np.zeros(len(at)), np.zeros(len(at))
    for module, kept in work.kept.items():
        size = kept
        if module in {"input", "activation", "copy"}:
            # frozen weights have no gradients, so adapters keep no inputs; in BF16 a copy is the tensor itself
            bare = recipe.task == "lora" or (module == "copy" and not recipe.is_low)
            size = kept * (0.0 if bare else recipe.product_bytes)
        if module == "experts":
            size = size * recipe.imbalance
        everything += size
        some += size * (1.0 - again.get(module, 0.0))
    return everything, some
