"""What to change where a layout does not fit in memory, by the options of `rackscale size` that do it."""

from __future__ import annotations

from dataclasses import fields

from rackscale.sizing.layout import Layout
from rackscale.sizing.memory import Memory
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import Priced, layout_of

WORTH = 0.1
"""Parts of the memory below this share are not worth a line."""


def advice(priced: Priced, recipe: Recipe) -> tuple[str, ...]:
    """For the layout that needs least, if even that one does not fit: its greatest parts and what makes each less."""
    place = int(priced.order[0])
    room = recipe.hardware.accelerator.hbm_bytes
    if room is None or priced.fits[place]:
        return ()
    total, layout = float(priced.memory.total[place]), layout_of(priced.layouts, place)
    need = f"the leanest layout, {layout}, needs {total / 1e9:.0f} GB of {room / 1e9:.0f} GB"
    found = [f"{need}: {(total - room) / 1e9:.0f} GB too much"]
    parts = {f.name: float(getattr(priced.memory, f.name)[place]) for f in fields(Memory)}
    for name, size in sorted(parts.items(), key=lambda part: -part[1]):
        ways = _ways(name, layout, recipe)
        if ways and size > WORTH * total:
            found.append(f"{name} {size / 1e9:.0f} GB: less with {', '.join(ways)}")
    return tuple(found)


def _ways(part: str, layout: Layout, recipe: Recipe) -> list[str]:
    """What makes `part` less, and is not done yet; what the GPUs allow comes before more of them."""
    fully = layout.sharding == "fsdp" and not layout.shard
    fsdp = [] if fully else ["--sharding fsdp"]
    again = [] if "layer" in layout.recompute else ["--recompute full"]
    small = [] if layout.micro_batch == 1 else ["--micro-batch 1"]
    states = [] if recipe.optimizer != "adamw" or recipe.task == "lora" else ["--optimizer muon"]
    return {
        "parameters": [*fsdp, "higher --tp, --pp or --ep", "more --gpus"],
        "gradients": [*fsdp, "higher --tp, --pp or --ep", "more --gpus"],
        "optimizer": [*fsdp, *states, "more --gpus"],
        "activations": [*again, *small, "higher --tp or --cp", "a shorter --seq"],
        "logits": [*small, "higher --tp", "a shorter --seq"],
        "buffers": ["higher --tp", *(["--sharding zero1 with a higher --pp"] if fully else [])],
    }.get(part, [])
