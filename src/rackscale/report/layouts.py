"""What the letters of a layout mean, for those that appear."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from rackscale.sizing.layout import Layout

DEGREES = {"tp": "tensor", "pp": "pipeline", "cp": "context", "ep": "expert"}
SHARDED = {
    "none": "none: replicas divide the batch alone",
    "zero1": "zero1: replicas divide the optimizer's states",
    "zero2": "zero2: replicas divide states and gradients",
    "fsdp": "fsdp: replicas divide states, gradients and parameters",
}


def legend(layouts: Iterable[Layout], *more: str) -> Text:
    """One dim paragraph; `more`: about the other columns."""
    every = list(layouts)
    parts = [_degrees(every)]
    if chunks := next((one for one in every if one.virtual > 1), None):
        parts.append(f"PP{chunks.pp}x{chunks.virtual}: {chunks.virtual} chunks of layers per stage")
    if any(one.etp > 1 for one in every):
        parts.append("ETP: tensor parallel ranks inside an expert")
    if any(one.zero_bubble for one in every):
        parts.append("zero-bubble: weights' gradients fill the pipeline's gaps")
    if any(one.ulysses and one.cp > 1 for one in every):
        parts.append("all-to-all: ranks exchange heads for tokens")
    ways = {one.sharding for one in every if not (one.sharding == "fsdp" and one.shard)}
    parts += [meaning for way, meaning in SHARDED.items() if way in ways]
    if groups := next((one.shard for one in every if one.sharding == "fsdp" and one.shard), None):
        parts.append(f"hsdp({groups}): fsdp inside groups of {groups} ranks")
    parts.append("MB: sequences in one pass")
    if any(one.recompute for one in every):
        parts.append("recompute: computed again going backward, not kept")
    if any(one.offload for one in every):
        parts.append("offload: of activations, to host memory")
    return Text("; ".join([*parts, *more]), style="dim")


def _degrees(layouts: list[Layout]) -> str:
    names = {
        short: name
        for short, name in DEGREES.items()
        if short in {"tp", "pp"} or any(getattr(one, short) > 1 for one in layouts)
    }
    return f"{' '.join(map(str.upper, names))} DP: {', '.join(names.values())}, data parallel ranks"
