"""What a layout needs of an accelerator's memory at its peak, part by part, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import reduce

import numpy as np
import numpy.typing as npt

from rackscale.models.description import Layers, Model
from rackscale.sizing.layout import MODULES, SHARDINGS, Array, Layouts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.stage import (
    Weights,
    chunk_layers,
    first_stage,
    later_stage,
    matrices_of,
    vocabulary,
    weights_of,
    widths,
)
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
"""How far off the estimate of a need may be: of 733 published layouts that ran, none is estimated to need more than
9.9 % above the accelerator's memory (docs/explanation/measurements.md, which says how far that is by construction)."""
HOST_BYTES = 960.0 * 2**30 / 4.0
"""Host memory per GPU where the catalog has none: as P6e-GB200 (assumed)."""
HOST_SHARE = 0.75
"""Of host memory that activations may take (assumed): the rest is for the system, data and copies of checkpoints."""
INPUTS = {
    "input": "",
    "copy": "",
    "norm": "norm",
    "activation": "activation",
    "dispatched": "experts",
    "shared": "activation",
}
"""What work.Work keeps of linear layers' inputs, in the products' precision, and the module that computes it again."""
UNEVEN = frozenset({"experts", "dispatched", "activation"})
"""What grows with the tokens of the busiest rank's experts, in a part that has any."""
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
    """What the fullest stage of a pipeline needs: the first, the second or the last one."""
    return _needs(model, at, recipe)[0]


@dataclass(slots=True, kw_only=True)
class _Kind:
    """Of one layer of a kind."""

    weights: Weights
    kept: Array
    """Bytes for the backward pass, of one micro-batch."""
    everything: Array
    """The same with nothing computed again."""
    sent: Array
    """Bytes of tokens on their way to experts, and of as many that come."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """Of one stage."""

    parameters: Array
    gradients: Array
    optimizer: Array
    flying: Array
    """Activations of all micro-batches in flight, on the accelerator or the host."""
    logits: Array
    ends: Array
    """FSDP: bytes of the vocabulary's matrices, gathered."""
    unreduced: Array
    """Gradients of a layer until they are scattered, where ranks divide them."""


def _needs(model: Model, at: Layouts, recipe: Recipe) -> tuple[Memory, Array]:
    """Of the accelerator, and of its host."""
    kinds = layers_of(model)
    found = [_kind(works_of(kind, model, at), model, at, recipe) for kind in kinds]
    held = _fullest(kinds, found, model, at, recipe)
    widest = _most([one.everything for one in found])
    activations = held.flying * (1.0 - at.offload) + widest
    gathered = np.where(at.sharding == FSDP, _gathered(kinds, found), 0.0) + held.ends
    states = held.parameters + held.gradients + held.optimizer
    needs = Memory(
        parameters=held.parameters,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=activations,
        logits=held.logits,
        buffers=gathered + held.unreduced + _most([one.sent for one in found]) + CONTEXT_BYTES,
        fragments=FRAGMENTS * (states + activations + held.logits),
    )
    return needs, held.flying * at.offload


def _fullest(
    kinds: Sequence[Layers], found: Sequence[_Kind], model: Model, at: Layouts, recipe: Recipe
) -> _Held:
    """The first stage has the embedding and the most micro-batches in flight, the last one the head and its logits;
    any but the first may have none of the layers that stand in front."""
    first, second, last = _flying(at)
    logits = recipe.logit_copies * head_work(model, at).kept[""] / (1.0 + model.mtp_layers)
    alone = at.pp == 1
    none = np.zeros(len(at))
    chunk = chunk_layers(model, at)
    stages = (
        (
            first_stage,
            first,
            np.where(alone, matrices_of(model), 1.0),
            np.where(alone, logits, 0.0),
        ),
        (later_stage, second, none, none),
        (later_stage, last, 1.0, logits),
    )
    layer = _most([one.weights.own + one.weights.routed for one in found])
    gradient = recipe.gradient_bytes * recipe.trained
    held = []
    for counts_of, flying, matrices, some in stages:
        each = [_layer_bytes(one, at, recipe, flying) for one in found]
        weights, kept = vocabulary(model, at, matrices), np.zeros(len(at))
        ends = np.where(at.sharding == FSDP, weights.own * BF16, 0.0)
        for one, count in zip(found, counts_of(kinds, chunk, at.virtual, each), strict=True):
            weights = weights + one.weights.times(count)
            kept = kept + one.kept * count
        parameters, gradients, optimizer, divided = _states(weights, at, recipe)
        held.append(
            _Held(
                parameters=parameters,
                gradients=gradients,
                optimizer=optimizer,
                flying=kept * flying,
                logits=some,
                ends=ends,
                unreduced=np.where(at.sharding >= ZERO2, np.minimum(layer, divided), 0.0) * gradient,
            )
        )
    return reduce(lambda one, other: _fuller(one, other, at), held)


def _layer_bytes(one: _Kind, at: Layouts, recipe: Recipe, flying: Array) -> Array:
    states = _states(one.weights, at, recipe)
    return sum(states[:3], one.kept * flying * (1.0 - at.offload))


def _fuller(one: _Held, other: _Held, at: Layouts) -> _Held:
    """The other where it needs more, and where there are more stages than one."""

    def total(held: _Held) -> Array:
        states = held.parameters + held.gradients + held.optimizer
        lasting = states + held.flying * (1.0 - at.offload) + held.logits
        return lasting * (1.0 + FRAGMENTS) + held.ends + held.unreduced

    more = (at.pp > 1) & (total(other) > total(one))
    return _Held(
        **{f.name: np.where(more, getattr(other, f.name), getattr(one, f.name)) for f in fields(_Held)}
    )


def _states(weights: Weights, at: Layouts, recipe: Recipe) -> tuple[Array, Array, Array, Array]:
    """Bytes of parameters, gradients and optimizer; and how many parameters' gradients are other ranks'.

    ZeRO-1 divides the optimizer's states, ZeRO-2 gradients too, FSDP everything (arXiv:1910.02054). ZeRO-2 scatters
    each micro-batch's gradients, layer by layer, as DeepSpeed's stage 2 and PyTorch's SHARD_GRAD_OP do: whole gradients
    are never kept, and messages are sent once per micro-batch (see parts.py).
    """
    width, expert_width = widths(at)
    whole = weights.own + weights.routed
    share = weights.own / width + weights.routed / expert_width
    fsdp, scatters = at.sharding == FSDP, at.sharding >= ZERO2
    own, routed = weights.sizes(recipe.weight_bytes)
    parameters = np.where(fsdp, own / width + routed / expert_width, own + routed)
    gradients = np.where(scatters, share, whole) * recipe.gradient_bytes * recipe.trained
    optimizer = np.where(at.sharding >= ZERO1, share, whole) * optimizer_bytes(recipe) * recipe.trained
    if recipe.family == "torch" and recipe.task != "lora" and not recipe.all_bf16:
        # FSDP2's mixed precision divides FP32 parameters, which are the optimizer's own, and gathers them in BF16;
        # gradients become FP32 when they are reduced
        parameters = np.where(fsdp, share * MASTER, parameters)
        gradients = np.where(fsdp, share * MASTER, gradients)
        optimizer = np.where(fsdp, share * MOMENTS[recipe.optimizer], optimizer)
    return parameters, gradients, optimizer, whole - share


def _gathered(kinds: Sequence[Layers], found: Sequence[_Kind]) -> Array:
    """FSDP: bytes of the layer that is computed and of the next one, in BF16: the widest two in a row."""
    sizes = [(one.weights.own + one.weights.routed) * BF16 for one in found]
    one = np.ones(len(sizes[0]))
    rows = (first_stage(kinds, 2.0 * one, one, sizes), later_stage(kinds, 2.0 * one, one, sizes))
    return _most([_sum(zip(sizes, counts, strict=True)) for counts in rows])


def _sum(products: Iterable[tuple[Array, Array]]) -> Array:
    return reduce(np.add, (size * count for size, count in products))


def _most(many: Sequence[Array]) -> Array:
    return reduce(np.maximum, many)


def _flying(at: Layouts) -> tuple[Array, Array, Array]:
    """Micro-batches that the first, the second and the last stage keep activations of.

    1F1B, arXiv:2104.04473; interleaved, a stage has two chunks less in flight than the one before it.
    """
    interleaved = at.virtual > 1
    first = at.pp * (1.0 + (at.pp - 1.0) / (at.pp * at.virtual) * interleaved)
    second = first - np.where(interleaved, 2.0 / at.virtual, 1.0)
    last = ((at.virtual - 1.0) * at.pp + 1.0) / at.virtual
    return (
        np.minimum(first, at.micro_batches),
        np.minimum(np.maximum(second, 1.0), at.micro_batches),
        np.minimum(last, at.micro_batches),
    )


def _kind(works: Sequence[Work], model: Model, at: Layouts, recipe: Recipe) -> _Kind:
    everything, kept = kept_of_layer(works, model, at, recipe)
    return _Kind(
        weights=weights_of(works, at, recipe),
        kept=kept,
        everything=everything,
        sent=reduce(np.maximum, (_sent(work, at, recipe) for work in works), np.zeros(len(at))),
    )


def kept_of_layer(works: Sequence[Work], model: Model, at: Layouts, recipe: Recipe) -> tuple[Array, Array]:
    """Bytes that a layer keeps for the backward pass of one micro-batch: with nothing computed again, and as it is.

    A layer that is computed again as a whole keeps what it began with, a hidden state.
    """
    everything, some = np.zeros(len(at)), np.zeros(len(at))
    for work in works:
        whole, part = kept_of(work, at, recipe)
        everything += whole
        some += part
    entry = tokens_of(at) / at.tp * model.hidden * BF16
    return everything, (1.0 - at.full) * some + at.full * entry


def kept_of(work: Work, at: Layouts, recipe: Recipe) -> tuple[Array, Array]:
    """Bytes that a part keeps with nothing computed again, and with what the layouts compute again."""
    again = dict(zip(MODULES, at.again, strict=True))
    everything, some = np.zeros(len(at)), np.zeros(len(at))
    for name, kept in work.kept.items():
        size = kept
        if name in INPUTS:
            # frozen weights have no gradients, so adapters keep no inputs; in BF16 a copy is the tensor itself
            bare = recipe.task == "lora" or (name == "copy" and not recipe.is_low)
            size = kept * (0.0 if bare else recipe.product_bytes)
        if work.active and name in UNEVEN:
            size = size * np.minimum(recipe.imbalance, at.ep)
        everything += size
        some += size * (1.0 - again.get(INPUTS.get(name, name), 0.0))
    return everything, some


def _sent(work: Work, at: Layouts, recipe: Recipe) -> Array | float:
    """Bytes of tokens on their way to experts of other ranks, and of as many that come to the busiest one: a copy for
    each place, or for each expert."""
    copies = work.routed
    if recipe.dispatcher == "alltoall":
        copies = work.tokens_bytes * work.active * at.etp * (1.0 - 1.0 / at.ep)
    return (1.0 + np.minimum(recipe.imbalance, at.ep)) * copies
