"""Degrees of parallelism that a model can't be divided by."""

from __future__ import annotations

from rackscale.models.description import Attention, Experts, LatentAttention, Model

SPARE = 3
"""Layers' places in a pipeline's chunks that may stay free: Megatron lets the embedding and the head account for one
each (account_for_embedding_in_pipeline_split: 126 layers of Llama 3.1 405B in 128 places), and DeepSeek-V3's 61 were
run in 64 without the one that predicts further tokens."""


def undivided(
    model: Model,
    *,
    tp: int | None = None,
    pp: int | None = None,
    virtual: int | None = None,
    ep: int | None = None,
    etp: int | None = None,
) -> dict[str, str]:
    """What is wrong with each degree, by its name; None: the degree is open, and so never wrong."""
    return _layers(model, pp, virtual) | _heads(model, tp) | _experts(model, ep, etp)


def _layers(model: Model, pp: int | None, virtual: int | None) -> dict[str, str]:
    has = f"{model.name} has {model.depth} layers"
    if pp is not None and pp > model.depth:
        return {"pp": has}
    chunks = (pp or 1) * (virtual or 1)
    if virtual is None or virtual == 1 or chunks <= model.depth + model.mtp_layers + SPARE:
        return {}
    return {"virtual": f"{pp or 1} stages of so many chunks make {chunks}, and {has}"}


def _heads(model: Model, tp: int | None) -> dict[str, str]:
    heads = {kind.mixer.heads for kind in model.layers if isinstance(kind.mixer, Attention | LatentAttention)}
    if tp is None or all(count % tp == 0 for count in heads):
        return {}
    return {"tp": f"the {_counts(heads)} attention heads of {model.name} are not a multiple of it"}


def _experts(model: Model, ep: int | None, etp: int | None) -> dict[str, str]:
    feeds = [kind.feed for kind in model.layers if isinstance(kind.feed, Experts)]
    degrees = {
        name: degree for name, degree in (("ep", ep), ("etp", etp)) if degree is not None and degree > 1
    }
    if not feeds:
        return dict.fromkeys(degrees, f"{model.name} has no experts")
    found = {}
    counts, widths = {feed.count for feed in feeds}, {feed.width for feed in feeds}
    if any(count % degrees.get("ep", 1) for count in counts):
        found["ep"] = f"{_counts(counts)} experts of {model.name} are not a multiple of it"
    if any(width % degrees.get("etp", 1) for width in widths):
        found["etp"] = f"experts of {model.name} are {_counts(widths)} wide, which is not a multiple of it"
    return found


def _counts(of: set[int]) -> str:
    return " and ".join(map(str, sorted(of)))
