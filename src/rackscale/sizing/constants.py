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
    arch, family, precision = recipe.architecture, recipe.family, recipe.precision
    chip = {"H100": "", "B200": "", "A100-80GB": ""}.get(recipe.chip, recipe.chip)
    every = ((f"chip.{chip}",) if f"chip.{chip}" in constants() else ()) + (
        ("plain",) if family == "plain" else ()
    )
    software = (
        "torch" if family in {"torch", "maxtext"} else "composer" if family == "composer" else "megatron"
    )
    high = "clock.ampere" if arch == "ampere" else f"clock.{arch}.bf16"
    low = {
        "ampere": "clock.ampere",
        "hopper": "clock.hopper.low",
        "blackwell": f"clock.blackwell.{'fp8' if precision in {'fp8', 'fp8-block', 'bf16'} else precision}",
    }[arch]
    core = (
        *every,
        *(() if arch == "ampere" else (f"core.{arch}",)),
        *(("core.composer",) if software == "composer" else ()),
    )
    cast = {"mxfp8": "cast.mx", "fp8-block": "cast.mx", "nvfp4": "cast.nvfp4"}.get(precision, "cast.low")
    return {
        "high": (*every, high),
        "low": (*every, low if recipe.is_low else high),
        "grouped": (*every, low if recipe.is_low else high),
        "core": core,
        "core_back": (*core, "core.back"),
        "scan": (*every, f"scan.{'blackwell' if arch == 'blackwell' else 'hopper'}"),
        "moved": (f"memory.{software}",),
        "cast": (cast,),
        "cast_experts": (cast, "cast.experts"),
        "piece": ("piece",),
        "routing": ("routing",),
        "launch": ("launch",),
        "graph": ("launch.graph",) if recipe.graphs != "none" else (),
        "each_expert": ("launch.graph",) if recipe.graphs == "step" else (),
        "kernel": ("kernel",),
        "tp": () if not recipe.overlaps_tp else ("tp.megatron",) if software == "megatron" else ("tp.torch",),
        "ring": ("ring",),
        "ep": ("ep",),
        "ep_far": ("ep.far",),
        "paired": ("ep.overlap",) if recipe.overlaps_ep else (),
        "offload": ("offload",),
        "hop": ("hop",),
        "window": ("dp.window",),
        "fsdp": ("fsdp.window",),
        "drag": ("fsdp.drag",),
        "update": ("update",),
        "jitter": ("jitter",),
        "fixed": ("fixed.graph",) if recipe.graphs == "step" else ("fixed",),
        "pace": ("pace.blackwell" if arch == "blackwell" else "pace.hopper",),
        "pace_experts": (f"pace.experts.{'blackwell' if arch == 'blackwell' else 'hopper'}",)
        if experts
        else (),
    }
