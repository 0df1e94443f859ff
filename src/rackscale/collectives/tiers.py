"""The two tiers of a system's network, from the catalog and from tiers.toml: few constants, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import msgspec
from msgspec import Struct

from rackscale.catalog import Origin, Provenance, System, system
from rackscale.catalog.tables import Source
from rackscale.errors import UnknownNameError


class Tier(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tier, per GPU and in one direction."""

    bytes_per_s: float
    """What large messages approach."""
    latency_s: float
    """Of any collective, whatever its size."""
    step_s: float
    """Of each step of a ring: over ranks inside a domain, over domains outside."""
    ramp_s: float
    """What a large message loses besides, whatever the ranks: a protocol of synchronised chunks."""
    fill_s: float
    """What each step costs a large message besides: the pipeline fills chunk by chunk."""
    ramp_bytes: float
    """The message that loses half of both."""
    origin: Origin | None = None


class Network(Struct, frozen=True, kw_only=True):
    """A system's network: `up` inside an NVLink domain, `out` between domains."""

    up: Tier
    out: Tier
    rails: int
    """NICs of a domain that one collective drives at most."""
    sharp_bytes_per_s: float = 0.0
    """Message bytes per second of an all-reduce that the switches add up (NVLink SHARP); 0: they can't."""

    @property
    def sharp(self) -> bool:
        """The switches of a domain can reduce."""
        return self.sharp_bytes_per_s > 0.0


@cache
def network(system_name: str) -> Network:
    """The network of a system of the catalog.

    Raises UnknownNameError for a system that is not there, or whose links nobody measured.
    """
    found = system(system_name)
    table = tomllib.loads(resources.files(__package__).joinpath("tiers.toml").read_text("utf-8"))
    sources = msgspec.convert(table["sources"], dict[str, Source])
    links, fabrics = table["up"], table["out"]
    chip = found.accelerator
    if chip.name not in links:
        raise UnknownNameError("accelerator with measured links", chip.name, links)
    assert chip.scale_up_bytes_per_s is not None
    link_bytes_per_s = chip.scale_up_bytes_per_s / 2.0
    bits_per_s = found.fabric_bits_per_s_per_gpu or table["unpublished"]["fabric_bits_per_s_per_gpu"]["value"]
    up, out = links[chip.name], fabrics[_fabric(found, fabrics)]
    return Network(
        up=_tier(up, link_bytes_per_s, sources),
        out=_tier(out, bits_per_s / 8.0, sources),
        rails=out["rails"],
        sharp_bytes_per_s=up.get("sharp_fraction", 0.0) * link_bytes_per_s,
    )


def _fabric(found: System, known: Iterable[str]) -> str:
    """The kind of fabric: every version of EFA or InfiniBand is one. What is unpublished is AWS's."""
    return next(kind for kind in known if (found.fabric or "EFA").startswith(kind))


def _tier(row: Mapping[str, Any], link_bytes_per_s: float, sources: Mapping[str, Source]) -> Tier:
    provenance: Provenance = "measured" if "measured" in row else "assumed"
    source = sources[row[provenance]]
    return Tier(
        bytes_per_s=row["fraction"] * link_bytes_per_s,
        latency_s=row["latency_s"],
        step_s=row["step_s"],
        ramp_s=row["ramp_s"],
        fill_s=row["fill_s"],
        ramp_bytes=row["ramp_bytes"],
        origin=Origin(provenance=provenance, source=source.title, url=source.url, note=row.get("note", "")),
    )
