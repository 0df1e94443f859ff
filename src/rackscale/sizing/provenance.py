"""Every input of an answer, with its unit and where it comes from."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from rackscale import kernels
from rackscale.catalog import Provenance
from rackscale.models.description import Model
from rackscale.sizing.recipe import NEWEST, Recipe

Basis: TypeAlias = Provenance | Literal["given"]
"""Where an input comes from; given: by whoever asked."""


class Input(Struct, frozen=True, kw_only=True):
    """One number or word that an answer rests on."""

    name: str
    value: float | str | None
    unit: str
    provenance: Basis
    source: str


def inputs(
    model: Model,
    recipe: Recipe,
    *,
    failures_per_gpu_hour: float,
    checkpoint_s: float,
    restart_s: float,
    usd_per_gpu_hour: float | None,
) -> tuple[Input, ...]:
    """In the order in which they matter."""
    found = [
        Input(name="model", value=model.name, unit="", provenance="vendor", source=model.source or "given")
    ]
    chip, system = recipe.hardware.accelerator, recipe.hardware
    curve = kernels.kernels().gemm(recipe.chip, recipe.products).fit
    for holder, name, unit in (
        (chip, "bf16_flop_per_s", "FLOP/s"),
        (chip, "fp8_flop_per_s", "FLOP/s"),
        (chip, "fp4_flop_per_s", "FLOP/s"),
        (chip, "hbm_bytes", "bytes"),
        (chip, "hbm_bytes_per_s", "bytes/s"),
        (chip, "scale_up_bytes_per_s", "bytes/s"),
        (system, "fabric_bits_per_s_per_gpu", "bit/s"),
    ):
        if name in holder.origins:
            origin = holder.origins[name]
            found.append(
                Input(
                    name=name,
                    value=getattr(holder, name),
                    unit=unit,
                    provenance=origin.provenance,
                    source=origin.source,
                )
            )
    found += [
        Input(
            name="kernel curves",
            value=f"{recipe.chip} {recipe.products}",
            unit="",
            provenance=curve.origin.provenance,
            source=curve.origin.source,
        ),
        Input(
            name="constants",
            value=f"software of {recipe.year:.1f} ({recipe.family})"
            + (", the newest known" if recipe.year >= NEWEST else ""),
            unit="year",
            provenance="measured",
            source="sizing/fitted.toml, published training runs",
        ),
        Input(
            name="failures",
            value=failures_per_gpu_hour,
            unit="1/(GPU h)",
            provenance="assumed",
            source="1e-5 to 4e-5 published for H100 and A100; none for NVL72 racks",
        ),
        Input(
            name="checkpoint stall",
            value=checkpoint_s,
            unit="s",
            provenance="assumed",
            source="published stalls span seconds to minutes",
        ),
        Input(
            name="restart",
            value=restart_s,
            unit="s",
            provenance="assumed",
            source="5 to 10 minutes published",
        ),
    ]
    found += _leaves(recipe)
    price = recipe.price
    if usd_per_gpu_hour is not None:
        found.append(
            Input(
                name="price",
                value=usd_per_gpu_hour,
                unit="USD/(GPU h)",
                provenance="given",
                source="as given",
            )
        )
    elif price is not None:
        origin = price.origins["usd_per_gpu_hour"]
        found.append(
            Input(
                name="price",
                value=price.usd_per_gpu_hour,
                unit="USD/(GPU h)",
                provenance=origin.provenance,
                source=f"{origin.source}, {price.model}, {price.seen}",
            )
        )
    return tuple(found)


def _leaves(recipe: Recipe) -> list[Input]:
    """How much of a job shares a leaf switch, and what its uplinks carry."""
    if recipe.leaf_gpus is None:
        return [
            Input(
                name="leaf",
                value="all GPUs",
                unit="",
                provenance="assumed",
                source="default: one leaf switch (or rail group) holds the job",
            )
        ]
    network = recipe.network
    origin = None if recipe.oversubscription is not None else network.oversubscription_origin
    return [
        Input(name="leaf", value=recipe.leaf_gpus, unit="GPUs", provenance="given", source="as given"),
        Input(
            name="oversubscription",
            value=network.oversubscription,
            unit="GPUs per NIC of uplinks",
            provenance="given" if origin is None else origin.provenance,
            source="as given" if origin is None else origin.source,
        ),
    ]
