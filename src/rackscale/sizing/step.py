"""A step from its parts: what overlaps with what, the pipeline, data parallelism, stragglers.

`Factors` are the calibrated constants, one value or one per layout; `step` is elementwise, so that the same lines price
one layout, a search over a million of them, and all measurements at once in a calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np

from rackscale.sizing.layout import Array, Layouts
from rackscale.sizing.parts import Parts

ZERO_BUBBLE = 1.0 / 3.0
"""What is left of a bubble that weights' gradients fill, where they take a third of a pass (ZB-H1)."""

HIDDEN = 0.95
"""Share of a step's gradients and gathers that can be hidden at most: not the last bucket of some twenty (assumed)."""

Factors: TypeAlias = Mapping[str, Array | float]
"""By role: see constants.roles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where the seconds of a step go, on the critical path; they sum to `seconds`."""

    products: Array
    """Matrix products, the head's too."""
    attention: Array
    """Attention's and state-space kernels."""
    memory: Array
    """Norms, activations, quantisation, routing of tokens, kernels' starts."""
    recompute: Array
    host: Array
    """The accelerator waits for the host to launch kernels."""
    tensor: Array
    """Exposed messages, by kind of parallelism."""
    context: Array
    expert: Array
    pipeline: Array
    data: Array
    offload: Array
    """Waiting for activations on their way to host memory or back."""
    bubble: Array
    """The pipeline fills and drains, and stages wait for the slowest one."""
    optimizer: Array
    other: Array
    """Stragglers and what belongs to no part."""

    @property
    def seconds(self) -> Array:
        """Of the whole step."""
        return sum((getattr(self, f.name) for f in fields(self)), np.zeros(1))

    @property
    def exposed(self) -> Array:
        """Messages that nothing hides."""
        return self.tensor + self.context + self.expert + self.pipeline + self.data


@dataclass(slots=True)
class _Pass:
    """Seconds of one micro-batch's pass over an average stage, forward and backward."""

    products: Array
    attention: Array
    memory: Array
    recompute: Array
    tensor: Array
    context: Array
    expert: Array
    offload: Array
    host: Array
    data: Array
    """FSDP's messages that nothing hides, and what the hidden ones slow."""

    @property
    def seconds(self) -> Array:
        """Of the whole pass."""
        return sum((getattr(self, f.name) for f in fields(self)), np.zeros(1))


def step(parts: Parts, at: Layouts, by: Factors, *, years: Array | float, dense: Array | float = 1.0) -> Step:
    """The seconds of a step. `years`: how much older the software is than the newest one known (at least 0)."""
    aged = np.exp(by["pace"] * years + np.where(dense, 0.0, by["pace_experts"] * years))
    one, count = _pass(parts, at, by, aged), at.micro_batches
    each = one.seconds
    head = (parts.head_f + parts.head_b) * by["high"] * aged
    bubble = _bubble(parts, at, each, head)
    pipeline = parts.hop * (by["hop"] * 2.0 * at.virtual * count + 2.0 * (at.pp - 1.0))
    messages = parts.step_reduce + parts.step_gather
    steady = each * parts.layers + head * parts.head_share
    # the last piece of gradients has nothing left to hide behind
    data = messages - np.minimum(HIDDEN * messages, steady / at.virtual * by["window"])
    update = parts.step_update * by["update"]
    known = each * count + head * parts.head_share * count + bubble + pipeline + data + update
    straggle = known * by["jitter"] * np.log2(np.maximum(at.gpus / 8.0, 1.0))
    return Step(
        products=one.products * count + head * parts.head_share * count,
        attention=one.attention * count,
        memory=one.memory * count,
        recompute=one.recompute * count,
        host=one.host * count,
        tensor=one.tensor * count,
        context=one.context * count,
        expert=one.expert * count,
        pipeline=pipeline,
        data=data + one.data * count,
        offload=one.offload * count,
        bubble=bubble,
        optimizer=update,
        other=straggle + by["fixed"],
    )


def _pass(parts: Parts, at: Layouts, by: Factors, aged: Array) -> _Pass:
    """Computing, then the messages that it doesn't hide, then what the host is late with."""
    products = (
        (parts.low_f + parts.low_b) * by["low"]
        + (parts.high_f + parts.high_b) * by["high"]
        + (parts.grouped_f + parts.grouped_b) * by["grouped"]
    ) * aged
    attention = (
        parts.core_f * by["core"]
        + parts.core_b * by["core_back"]
        + (parts.scan_f + parts.scan_b) * by["scan"]
    ) * aged
    memory = (
        (parts.moved_f + parts.moved_b) * by["moved"]
        + (parts.cast_f + parts.cast_b) * by["cast"]
        + parts.cast_experts * by["cast_experts"]
        + parts.pieces * by["piece"]
        + (parts.routing_f + parts.routing_b) * by["routing"]
        + (parts.kernels_f + parts.kernels_b) * by["kernel"]
    ) * aged
    recompute = (
        parts.again_low * by["low"]
        + parts.again_high * by["high"]
        + parts.again_cast * by["cast"]
        + parts.again_routing * by["routing"]
        + parts.again_grouped * by["grouped"]
        + parts.again_core * by["core"]
        + parts.again_moved * by["moved"]
    ) * aged
    compute = products + attention + memory + recompute
    tensor, context, expert, offload = _messages(parts, at, by, aged, compute)
    busy = compute + tensor + context + expert + offload
    launches = (parts.kernels_f + parts.kernels_b) * by["graph"] + parts.kernels_experts * by["each_expert"]
    host = np.maximum(launches * by["launch"] * aged - busy, 0.0)
    sharded = 2.0 * parts.gather + parts.scatter
    # they run on while others wait, for the host too
    hidden = np.minimum(sharded, (busy + host) * by["fsdp"])
    data = sharded - hidden + hidden * by["drag"]
    return _Pass(products, attention, memory, recompute, tensor, context, expert, offload, host, data)


def _messages(
    parts: Parts, at: Layouts, by: Factors, aged: Array, compute: Array
) -> tuple[Array, Array, Array, Array]:
    """What is exposed of messages of tensor, context and expert parallelism, and of offload.

    Each second of compute hides one kind of message: what would need more is waited for.
    """
    # experts' messages run beside another micro-batch's work, if there is one
    paired = np.where(at.micro_batches > 1, by["paired"], 1.0)
    beside, exposed = compute, []
    for message, share in (
        (parts.tp_f + parts.tp_b, by["tp"]),
        (parts.ring_f + parts.ring_b, by["ring"]),
        (parts.ep, by["ep"] * paired * aged),
        (2.0 * parts.offload, by["offload"]),
    ):
        exposed.append(_exposed(message, share, beside))
        beside = beside - (message - exposed[-1])
    tensor, context, expert, offload = exposed
    # tokens flow over NVLink and over the fabric at once
    expert = np.maximum(expert, parts.ep_far * by["ep_far"] * paired)
    return tensor + parts.tp_bare, context + parts.swap, expert, offload


def _bubble(parts: Parts, at: Layouts, each: Array, head: Array) -> Array:
    """The pipeline fills and drains, and stages wait for the one with more layers (or with the head)."""
    filled = 1.0 - at.zero_bubble * (1.0 - ZERO_BUBBLE)
    drained = (at.pp - 1.0) / at.virtual * filled * each + head * (1.0 - parts.head_share)
    idle = (parts.layers - 1.0) * each * at.micro_batches
    return np.where(at.pp > 1, drained, 0.0) + idle


def _exposed(message: Array, share: Array | float, beside: Array) -> Array:
    """Of messages, what is not hidden: a calibrated share, and all that there is no compute for to hide behind."""
    return np.maximum(message * share, message - beside)
