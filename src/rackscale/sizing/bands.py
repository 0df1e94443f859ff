"""How far off a prediction may be: from rows that the calibration did not see, and wider where those end."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from math import exp, log2
from typing import Any

import msgspec
from msgspec import Struct

from rackscale.catalog import Origin
from rackscale.catalog.tables import Row, Source, row
from rackscale.models.description import Model
from rackscale.sizing.recipe import Recipe

UNKNOWN = (0.6, 1.6)
"""Where nothing alike was ever measured (assumed)."""


class Widening(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bands grow where measurements end, in logarithms of the step time."""

    per_doubling: float
    """Of the GPUs beyond the largest measured size."""
    unmeasured: float
    """For a precision, and for a kind of mixer, that was not measured."""


class Reach(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured of one class."""

    gpus: int
    """The largest size."""
    rows: int
    precisions: tuple[str, ...]
    mixers: tuple[str, ...]


class _Table(Struct, frozen=True, kw_only=True):
    bands: Mapping[str, list[float]]
    widening: Widening
    reach: Mapping[str, Reach]
    sources: Mapping[str, Source]


@cache
def _table() -> _Table:
    def read(filename: str) -> dict[str, Any]:
        return tomllib.loads(resources.files(__package__).joinpath(filename).read_text("utf-8"))

    table = read("bands.toml")
    sources = msgspec.convert(table["sources"], dict[str, Source])
    return _Table(
        bands=read("fitted.toml").get("bands", {}),
        widening=row(Widening, {"name": "widening", **table["widening"]}, sources),
        reach=msgspec.convert(table["reach"], dict[str, Reach]),
        sources=sources,
    )


def key(recipe: Recipe, *, experts: bool) -> str:
    """Of the measurements that are alike."""
    return f"{recipe.architecture}.{'experts' if experts else 'dense'}"


def mixers(model: Model) -> tuple[str, ...]:
    """Kinds of mixers that the model's layers have."""
    return tuple(sorted({type(kind.mixer).__name__ for kind in model.layers if kind.mixer is not None}))


def band(
    recipe: Recipe, *, experts: bool, gpus: float = 0.0, model: Model | None = None
) -> tuple[float, float]:
    """Measured over predicted step time, 10th and 90th percentile of measurements alike that were held back.

    Wider by `per_doubling` for each doubling of `gpus` beyond the largest measured size, by `unmeasured` for a
    precision and for a mixer of `model` that were not measured. It always contains the prediction.
    """
    table, name = _table(), key(recipe, experts=experts)
    low, high = table.bands.get(name, UNKNOWN)
    grown = exp(sum(_grown(recipe, name, gpus, model).values()))
    return min(low, 1.0) / grown, max(high, 1.0) * grown


def explained(recipe: Recipe, *, experts: bool, gpus: float, model: Model) -> tuple[float, float, Origin]:
    """The band, and where it comes from."""
    table, name = _table(), key(recipe, experts=experts)
    low, high = band(recipe, experts=experts, gpus=gpus, model=model)
    if name not in table.bands:
        return low, high, Origin(provenance="assumed", source="nothing alike was ever measured")
    grown = _grown(recipe, name, gpus, model)
    note = "; ".join(f"{100 * by:.0f} % wider: {why}" for why, by in grown.items())
    return low, high, Origin(provenance="measured", source=table.sources["held-out"].title, note=note)


def _grown(recipe: Recipe, name: str, gpus: float, model: Model | None) -> dict[str, float]:
    """By how much each side of the band grows, in logarithms, by the reason."""
    table, found = _table(), {}
    reach = table.reach.get(name)
    if reach is None:
        return {}
    if gpus > reach.gpus:
        why = f"no {name.replace('.', ', ')} step of more than {reach.gpus:,} GPUs was measured"
        found[why] = table.widening.per_doubling * log2(gpus / reach.gpus)
    if recipe.precision not in reach.precisions:
        found[f"{recipe.precision} was not measured on {recipe.architecture}"] = table.widening.unmeasured
    new = [] if model is None else [kind for kind in mixers(model) if kind not in reach.mixers]
    if new:
        found[f"{' and '.join(new)} was not measured there"] = table.widening.unmeasured
    return found
