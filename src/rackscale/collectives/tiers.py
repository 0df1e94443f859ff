"""The two tiers of a system's network, from the catalog and from tiers.toml: few constants, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import msgspec
from msgspec import Struct

from rackscale.catalog import Origin, System, system
from rackscale.catalog.tables import Source
from rackscale.errors import UnknownNameError


class Tier(Struct, frozen=True, kw_only=True):
    """One tier, per GPU and in one direction."""

    bytes_per_s: float
    """What large messages reach."""
    latency_s: float
    """Of any collective, whatever its size."""
    step_s: float
    """Of each step of the ring or, between domains, of the chain of domains."""
    ramp_s: float
    """What a large message loses besides, whatever the ranks: protocols with synchronised chunks."""
    fill_s: float
    """What each step costs a large message besides: the pipeline fills with chunks."""
    ramp_bytes: float
    """The message that loses half of both."""
    origins: dict[str, Origin] = {}


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

    Raises UnknownNameError for a system that is not there, or whose links or fabric nobody publishes.
    """
    found = system(system_name)
    table = tomllib.loads(resources.files(__package__).joinpath("tiers.toml").read_text("utf-8"))
    sources = msgspec.convert(table["sources"], dict[str, Source])
    if found.accelerator.name not in table["up"]:
        raise UnknownNameError("accelerator with measured links", found.accelerator.name, table["up"])
    up = table["up"][found.accelerator.name]
    out = table["out"][_fabric(found, table["out"])]
    link, fabric = found.accelerator.scale_up_bytes_per_s, found.fabric_bits_per_s_per_gpu
    if fabric is None:
        fabric = table["unpublished_fabric_bits_per_s_per_gpu"]
    assert link is not None
    return Network(
        up=_tier(up, link / 2.0, sources),
        out=_tier(out, fabric / 8.0, sources),
        rails=out["rails"],
        sharp_bytes_per_s=up.get("sharp_fraction", 0.0) * link / 2.0,
    )


def _fabric(found: System, known: Mapping[str, Any]) -> str:
    """EFA of any version is one kind of fabric, and so are InfiniBand and RoCE."""
    name = (found.fabric or "EFA").split()[0]
    return next((kind for kind in known if name.startswith(kind)), "InfiniBand")


def _tier(row: Mapping[str, Any], link_bytes_per_s: float, sources: Mapping[str, Source]) -> Tier:
    provenance = next(p for p in ("measured", "vendor", "assumed") if p in row)
    source = sources[row[provenance]]
    origin = Origin(provenance=provenance, source=source.title, url=source.url, note=row.get("note", ""))
    fields = ("latency_s", "step_s", "ramp_s", "fill_s", "ramp_bytes")
    return Tier(
        bytes_per_s=row["fraction"] * link_bytes_per_s,
        **{name: row[name] for name in fields},
        origins=dict.fromkeys(("bytes_per_s", *fields), origin),
    )
