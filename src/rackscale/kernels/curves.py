"""The constants of the curves, read from gemm.toml: few per accelerator, class and precision, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from rackscale.catalog import Accelerator, Origin, Provenance, systems
from rackscale.catalog.tables import Source
from rackscale.errors import UnknownNameError

PEAK = {
    "bf16": "bf16_flop_per_s",
    "fp8": "fp8_flop_per_s",
    "fp8_block": "fp8_flop_per_s",
    "mxfp8": "fp8_flop_per_s",
    "nvfp4": "fp4_flop_per_s",
}
"""The catalog's field that holds the dense peak of a precision."""

OPERAND_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "mxfp8": 1.03125, "nvfp4": 0.5625}
"""Bytes per element of both operands, with their scales: one per 32 values in MXFP8, one per 16 in NVFP4."""


class Fit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well a curve fits what was measured; None: it was not fitted."""

    origin: Origin
    shapes: int | None = None
    median_error: float | None = None
    """Relative."""
    p90_error: float | None = None


class Curve(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast matrix products are: an asymptote, and how much of each dimension is lost.

    A product takes 2 (m + lost_m)(n + lost_n)(k + lost_k) / flop_per_s, or as long as its operands take to stream.
    That is the same as efficiencies m / (m + lost_m) and so on, multiplied.
    """

    flop_per_s: float
    """What very large products approach."""
    lost_m: float
    lost_n: float
    """Below bf16 mostly the quantising of the left operand, which costs the same for every n."""
    lost_k: float
    hbm_bytes_per_s: float
    operand_bytes: float
    """Per element of either operand; a result takes 2."""
    launch_s: float
    fit: Fit


class Attention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast fused attention is in its forward pass, in bf16."""

    flop_per_s: float
    lost_tokens: float
    """Of the queries' length: tiles on the diagonal, and filling the chip."""
    lost_dim: float
    """Of head_dim: the exponentials cost the same for every head_dim."""
    launch_s: float
    fit: Fit


class Memory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast kernels are that only move memory."""

    hbm_bytes_per_s: float
    launch_s: float
    """From the end of a kernel to the start of the next one, and its own ramp."""
    fit: Fit


class Chip(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The curves of one accelerator, products by precision."""

    name: str
    gemm: dict[str, Curve]
    grouped: dict[str, Curve]
    """Products of one launch, a layer's experts."""
    attention: Attention
    memory: Memory


class Kernels(Struct, frozen=True, kw_only=True):
    """The curves of every accelerator that has some; a calibration replaces some with `msgspec.structs.replace`."""

    SAME: ClassVar[dict[str, str]] = {"fp16": "bf16"}
    """Precisions that are as fast as another."""

    chips: dict[str, Chip]

    def chip(self, name: str) -> Chip:
        """Raises UnknownNameError where nothing was measured on that accelerator."""
        if name not in self.chips:
            raise UnknownNameError("accelerator with measured kernels", name, self.chips)
        return self.chips[name]

    def gemm(self, chip: str, precision: str, *, grouped: bool = False) -> Curve:
        """Raises UnknownNameError for an accelerator or a precision of it that nobody measured."""
        found = self.chip(chip)
        curves = found.grouped if grouped else found.gemm
        name = self.SAME.get(precision, precision)
        if name not in curves:
            raise UnknownNameError(f"measured precision of {chip}", precision, curves)
        return curves[name]


@cache
def kernels() -> Kernels:
    """The curves of gemm.toml."""
    table = tomllib.loads(resources.files(__package__).joinpath("gemm.toml").read_text("utf-8"))
    sources = msgspec.convert(table.pop("sources"), dict[str, Source])
    accelerators = {s.accelerator.name: s.accelerator for s in systems()}
    return Kernels(chips={name: _chip(accelerators[name], rows, sources) for name, rows in table.items()})


def _chip(accelerator: Accelerator, rows: Mapping[str, Any], sources: Mapping[str, Source]) -> Chip:
    curves = {
        kind: {p: _curve(accelerator, p, row, sources) for p, row in rows[kind].items()}
        for kind in ("gemm", "grouped")
    }
    attention = _absolute(accelerator, "bf16", rows["attention"], sources)
    memory = _absolute(accelerator, "bf16", rows["memory"], sources)
    return Chip(
        name=accelerator.name,
        attention=msgspec.convert(attention, Attention),
        memory=msgspec.convert(memory, Memory),
        **curves,
    )


def _curve(
    accelerator: Accelerator, precision: str, row: Mapping[str, Any], sources: Mapping[str, Source]
) -> Curve:
    fields = _absolute(accelerator, precision, row, sources) | {"operand_bytes": OPERAND_BYTES[precision]}
    return msgspec.convert(fields, Curve)


def _absolute(
    accelerator: Accelerator, precision: str, row: Mapping[str, Any], sources: Mapping[str, Source]
) -> dict[str, Any]:
    """The row with rates instead of fractions of the catalog's, and its fit in one value."""
    fields = dict(row)
    if "peak_fraction" in fields:
        fields["flop_per_s"] = fields.pop("peak_fraction") * getattr(accelerator, PEAK[precision])
    if "hbm_fraction" in fields:
        assert accelerator.hbm_bytes_per_s is not None
        fields["hbm_bytes_per_s"] = fields.pop("hbm_fraction") * accelerator.hbm_bytes_per_s
    provenance: Provenance = "measured" if "measured" in fields else "assumed"
    source = sources[fields.pop(provenance)]
    origin = Origin(provenance=provenance, source=source.title, url=source.url, note=fields.pop("note", ""))
    quality = {name: fields.pop(name, None) for name in ("shapes", "median_error", "p90_error")}
    return fields | {"fit": Fit(origin=origin, **quality)}
