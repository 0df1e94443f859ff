"""How far off a prediction may be: from rows that the calibration did not see."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from rackscale.sizing.recipe import Recipe

UNKNOWN = (0.6, 1.6)
"""Where nothing alike was ever measured (assumed)."""


@cache
def _bands() -> Mapping[str, list[float]]:
    table = tomllib.loads(resources.files(__package__).joinpath("fitted.toml").read_text("utf-8"))
    found: Mapping[str, list[float]] = table.get("bands", {})
    return found


def key(recipe: Recipe, *, experts: bool) -> str:
    """Of the measurements that are alike."""
    return f"{recipe.architecture}.{'experts' if experts else 'dense'}"


def band(recipe: Recipe, *, experts: bool) -> tuple[float, float]:
    """Measured over predicted step time, 10th and 90th percentile of measurements alike that were held back."""
    found = _bands().get(key(recipe, experts=experts))
    return UNKNOWN if found is None else (found[0], found[1])
