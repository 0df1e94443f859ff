"""The constants of the curves, read from gemm.toml: few per accelerator and precision, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import msgspec
from msgspec import Struct

from rackscale.catalog import Accelerator, Origin, systems
from rackscale.catalog.tables import Source
from rackscale.errors import UnknownNameError

PEAK = {
    "bf16": "bf16_flop_per_s",
    "fp16": "bf16_flop_per_s",
    "fp8": "fp8_flop_per_s",
    "fp8_block": "fp8_flop_per_s",
    "mxfp8": "fp8_flop_per_s",
    "nvfp4": "fp4_flop_per_s",
}
"""The catalog's field that holds the dense peak of a precision."""

OPERAND_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.03125,
    "mxfp8": 1.03125,
    "nvfp4": 0.5625,
}
"""Bytes per element of both operands, with their scales: one per 32 values in MXFP8, one per 16 in NVFP4."""


class Gemm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast matrix products are: an asymptote, and how much of each dimension is lost.

    A product takes 2 (m + lost_m)(n + lost_n)(k + lost_k) / flop_per_s, or as long as its operands take to stream.
    """

    flop_per_s: float
    """What very large products reach."""
    lost_m: float
    lost_n: float
    """In precisions below bf16 mostly the quantising of the left operand, which costs the same for every n."""
    lost_k: float
    hbm_bytes_per_s: float
    operand_bytes: float
    """Per element of either operand; results are of 2 bytes."""
    launch_s: float
    median_error: float
    """Relative, over the measured products of training size (m, n, k >= 512)."""
    p90_error: float
    origin: Origin


class Attention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast fused attention is in its forward pass."""

    flop_per_s: float
    """What very long sequences reach."""
    lost_tokens: float
    """Of the queries' length: short sequences fill the chip badly."""
    launch_s: float
    median_error: float
    p90_error: float
    origin: Origin


class Chip(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The curves of one accelerator."""

    name: str
    launch_s: float
    """From the end of a kernel to the start of the next one, and its own ramp."""
    hbm_bytes_per_s: float
    """What kernels that only move memory reach."""
    gemm: dict[str, Gemm]
    grouped_fraction: float
    """Of a plain product's speed, for grouped products (the experts of a layer)."""
    attention: Attention


class Kernels(Struct, frozen=True, kw_only=True):
    """The curves of every accelerator that has some; a calibration replaces some with `msgspec.structs.replace`."""

    chips: dict[str, Chip]

    def chip(self, name: str) -> Chip:
        """Raises UnknownNameError where nothing was measured on that accelerator."""
        if name not in self.chips:
            raise UnknownNameError("accelerator with measured kernels", name, self.chips)
        return self.chips[name]

    def gemm(self, chip: str, precision: str) -> Gemm:
        """Raises UnknownNameError for an accelerator or a precision of it that nobody measured."""
        curves = self.chip(chip).gemm
        if precision not in curves:
            raise UnknownNameError(f"measured precision of {chip}", precision, curves)
        return curves[precision]


@cache
def kernels() -> Kernels:
    """The curves of gemm.toml."""
    table = tomllib.loads(resources.files(__package__).joinpath("gemm.toml").read_text("utf-8"))
    sources = msgspec.convert(table.pop("sources"), dict[str, Source])
    accelerators = {s.accelerator.name: s.accelerator for s in systems()}
    return Kernels(chips={name: _chip(accelerators[name], rows, sources) for name, rows in table.items()})


def _chip(accelerator: Accelerator, rows: Mapping[str, Any], sources: Mapping[str, Source]) -> Chip:
    hbm = accelerator.hbm_bytes_per_s
    bf16 = accelerator.bf16_flop_per_s
    assert hbm is not None
    assert bf16 is not None
    attention = rows["attention"]
    return Chip(
        name=accelerator.name,
        launch_s=rows["launch_s"],
        hbm_bytes_per_s=rows["hbm_fraction"] * hbm,
        grouped_fraction=rows["grouped_fraction"],
        gemm={
            precision: _gemm(accelerator, precision, row, hbm, sources)
            for precision, row in rows["gemm"].items()
        },
        attention=Attention(
            flop_per_s=attention["peak_fraction"] * bf16,
            lost_tokens=attention["lost_tokens"],
            launch_s=attention["launch_s"],
            median_error=attention["median_error"],
            p90_error=attention["p90_error"],
            origin=_origin(attention, sources),
        ),
    )


def _gemm(
    accelerator: Accelerator,
    precision: str,
    row: Mapping[str, Any],
    hbm: float,
    sources: Mapping[str, Source],
) -> Gemm:
    return Gemm(
        flop_per_s=row["peak_fraction"] * getattr(accelerator, PEAK[precision]),
        lost_m=row["lost_m"],
        lost_n=row["lost_n"],
        lost_k=row["lost_k"],
        hbm_bytes_per_s=row["hbm_fraction"] * hbm,
        operand_bytes=OPERAND_BYTES[precision],
        launch_s=row["launch_s"],
        median_error=row["median_error"],
        p90_error=row["p90_error"],
        origin=_origin(row, sources),
    )


def _origin(row: Mapping[str, Any], sources: Mapping[str, Source]) -> Origin:
    provenance = next(p for p in ("measured", "vendor", "assumed") if p in row)
    source = sources[row[provenance]]
    return Origin(provenance=provenance, source=source.title, url=source.url, note=row.get("note", ""))
