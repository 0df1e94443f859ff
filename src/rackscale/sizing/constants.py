"""The few constants that measurements of whole steps turn: names, meanings, ranges, priors, and what was fitted."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from msgspec import Struct, convert

from rackscale.models.description import Experts
from rackscale.sizing.recipe import Recipe


class Constant(Struct, frozen=True, forbid_unknown_fields=True):
    """One constant. Its logarithm has the prior normal(log start, spread), cut off at `low` and `high`."""

    start: float
    spread: float
    low: float
    high: float
    meaning: str


@cache
def constants() -> dict[str, Constant]:
    """Every constant by name."""
    return convert(tomllib.loads(_text("constants.toml")), dict[str, Constant])


@cache
def fitted() -> Mapping[str, float]:
    """What the published measurements say; a constant that none of them concerns stays at its prior."""
    values = {name: constant.start for name, constant in constants().items()}
    return values | convert(tomllib.loads(_text("fitted.toml")).get("constants", {}), dict[str, float])


def _text(filename: str) -> str:
    return resources.files(__package__).joinpath(filename).read_text("utf-8")


def roles(recipe: Recipe, *, experts: Experts | None) -> dict[str, tuple[str, ...]]:
    """Which constants play which part for `recipe`; a part's factor is the product of its constants."""
    return _of_computing(recipe) | _of_messages(recipe) | _of_software(recipe, experts)


def _software(recipe: Recipe) -> str:
    """Whose kernels run."""
    return {"torch": "torch", "maxtext": "torch", "composer": "composer"}.get(recipe.family, "megatron")


def _generation(recipe: Recipe) -> str:
    """Blackwell, or Hopper and before."""
    return "blackwell" if recipe.architecture == "blackwell" else "hopper"


def _of_computing(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    arch, precision = recipe.architecture, recipe.precision
    chip = () if f"chip.{recipe.chip}" not in constants() else (f"chip.{recipe.chip}",)
    every = (*chip, *(("plain",) if recipe.family == "plain" else ()))
    high = "clock.ampere" if arch == "ampere" else f"clock.{arch}.bf16"
    low = {
        "ampere": "clock.ampere",
        "hopper": "clock.hopper.low",
        "blackwell": f"clock.blackwell.{'fp8' if precision in {'fp8', 'fp8-block', 'bf16'} else precision}",
    }[arch]
    core = (
        *every,
        *(() if arch == "ampere" else (f"core.{arch}",)),
        *(("core.composer",) if recipe.family == "composer" else ()),
    )
    cast = {"mxfp8": "cast.mx", "fp8-block": "cast.mx", "nvfp4": "cast.nvfp4"}.get(precision, "cast.low")
    return {
        "high": (*every, high),
        "low": (*every, low if recipe.is_low else high),
        "grouped": (*every, low if recipe.is_low else high),
        "core": core,
        "core_back": (*core, "core.back"),
        "scan": (*every, f"scan.{_generation(recipe)}"),
        "moved": (f"memory.{_software(recipe)}",),
        "cast": (cast,),
        "cast_experts": (cast, "cast.experts"),
        "piece": ("piece",),
        "routing": ("routing",),
        "kernel": ("kernel",),
        "update": ("update",),
    }


def _of_messages(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    beside = "tp.megatron" if _software(recipe) == "megatron" else "tp.torch"
    return {
        "tp": (beside,) if recipe.overlaps_tp else (),
        "ring": ("ring",),
        "ep": ("ep",),
        "ep_far": ("ep.far",),
        "paired": ("ep.overlap",) if recipe.overlaps_ep else (),
        "offload": ("offload",),
        "hop": ("hop",),
        "window": ("dp.window",),
        "fsdp": ("fsdp.window",),
        "drag": ("fsdp.drag",),
    }


def _of_software(recipe: Recipe, experts: Experts | None) -> dict[str, tuple[str, ...]]:
    generation = _generation(recipe)
    return {
        "launch": ("launch",),
        "graph": ("launch.graph",) if recipe.graphs != "none" else (),
        "each_expert": ("launch.graph",) if recipe.graphs == "step" else (),
        "jitter": ("jitter",),
        "fixed": ("fixed.graph",) if recipe.graphs == "step" else ("fixed",),
        "pace": (f"pace.{generation}",),
        "pace_experts": (f"pace.experts.{generation}",) if experts else (),
    }
