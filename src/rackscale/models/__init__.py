"""Descriptions of models, from the catalog or from a Hugging Face config.json; what they weigh and compute.

`model(name_or_path)` answers with one of them. The files of catalog/ hold the facts, one file per family, and
aliases.toml the other names that a model goes by.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from rackscale.errors import UnknownNameError
from rackscale.models.description import (
    Attention,
    Dense,
    Experts,
    Feed,
    LatentAttention,
    Layers,
    LinearAttention,
    Mamba,
    Mixer,
    Model,
)
from rackscale.models.huggingface import read
from rackscale.models.weights import (
    LayerWeights,
    Weights,
    active_parameters,
    parameters,
    prediction_layer,
    weights,
)

__all__ = [
    "Attention",
    "Dense",
    "Experts",
    "Feed",
    "LatentAttention",
    "LayerWeights",
    "Layers",
    "LinearAttention",
    "Mamba",
    "Mixer",
    "Model",
    "Weights",
    "active_parameters",
    "aliases",
    "model",
    "models",
    "parameters",
    "prediction_layer",
    "read",
    "weights",
]


def models() -> tuple[Model, ...]:
    """Every model of the catalog, family by family."""
    return tuple(_load().values())


@cache
def aliases() -> dict[str, str]:
    """The other names of models, each with the catalog's."""
    text = resources.files(__package__).joinpath("catalog", "aliases.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, str])


def model(name_or_path: str | Path) -> Model:
    """The model of that name or alias, in any case, or the one that a config.json (or its folder) describes.

    Raises UnknownNameError, with the nearest name as a hint, and DocumentError for a config.json that can't be used.
    """
    known, others = _load(), aliases()
    name = str(name_or_path).lower()
    name = others.get(name, name)
    if name in known:
        return known[name]
    if (path := _path(name_or_path)) is not None:
        return read(path)
    raise UnknownNameError("model", str(name_or_path), [*known, *others])


def _path(given: str | Path) -> Path | None:
    try:
        path = Path(given).expanduser()
        return path if str(given) and (path.exists() or path.suffix == ".json") else None
    except (OSError, RuntimeError):  # no name of a file at all: too long, or of an unknown user's home
        return None


@cache
def _load() -> dict[str, Model]:
    loaded: dict[str, Model] = {}
    files = resources.files(__package__).joinpath("catalog").iterdir()
    for file in sorted(files, key=lambda each: each.name):
        if file.name == "aliases.toml":
            continue
        family = file.name.removesuffix(".toml")
        for name, fields in tomllib.loads(file.read_text("utf-8")).items():
            if name in loaded:
                raise ValueError(f"two models named {name!r}")
            loaded[name] = msgspec.convert({"name": name, "family": family, **fields}, Model)
    return loaded
