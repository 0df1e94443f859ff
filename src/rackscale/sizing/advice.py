"""What to change where a layout does not fit in memory."""

from __future__ import annotations

from dataclasses import fields

from rackscale.sizing.memory import Memory
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import Priced

_LEVERS = {
    "parameters": "divide the parameters further: more GPUs, more tensor, pipeline or expert parallelism, or FSDP",
    "gradients": "divide the gradients: FSDP, or reduce them in BF16 instead of FP32",
    "optimizer": "divide the optimizer's states over more data-parallel ranks, or keep them in fewer bytes",
    "activations": "keep fewer activations: smaller micro-batches, recompute, context or tensor parallelism",
    "logits": "divide the logits: tensor parallelism, or smaller micro-batches",
    "buffers": "gather smaller pieces at a time, or use fewer communicators",
}


def advice(priced: Priced, recipe: Recipe) -> tuple[str, ...]:
    """For the layout that needs least, if even that one does not fit: its greatest parts and what makes each less."""
    place = priced.order[0]
    room = recipe.hardware.accelerator.hbm_bytes
    if room is None or priced.fits[place]:
        return ()
    total = float(priced.memory.total[place])
    found = [
        f"the leanest layout needs {total / 1e9:.0f} GB of {room / 1e9:.0f} GB: {(total - room) / 1e9:.0f} GB too much"
    ]
    parts = {f.name: float(getattr(priced.memory, f.name)[place]) for f in fields(Memory)}
    for name, size in sorted(parts.items(), key=lambda part: -part[1]):
        if name in _LEVERS and size > 0.1 * total:
            found.append(f"{name} {size / 1e9:.0f} GB: {_LEVERS[name]}")
    return tuple(found)
