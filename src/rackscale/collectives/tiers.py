"""The tiers of a system's network, from the catalog and from tiers.toml: few constants, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any, get_args

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
    """A system's network: `up` inside an NVLink domain, `out` between domains, and what leaves lack of it."""

    up: Tier
    out: Tier
    rails: float
    """NICs of a domain whose worth one collective drives at most."""
    oversubscription: float = 1.0
    """GPUs under a leaf switch for each NIC's worth of its uplinks; 1: the fabric is non-blocking."""
    oversubscription_origin: Origin | None = None
    hop_s: float = 0.0
    """What a step between leaves takes besides: the way over a spine."""
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
    kind = _fabric(found, fabrics)
    up, out, spine = links[chip.name], fabrics[kind], table["spine"][kind]
    return Network(
        up=_tier(up, link_bytes_per_s, sources),
        out=_tier(out, bits_per_s / 8.0, sources),
        rails=out["rails"],
        oversubscription=spine["oversubscription"]["value"],
        oversubscription_origin=_origin(spine["oversubscription"], sources),
        hop_s=spine["hop_s"]["value"],
        sharp_bytes_per_s=up.get("sharp_fraction", 0.0) * link_bytes_per_s,
    )


def _fabric(found: System, known: Iterable[str]) -> str:
    """The kind of fabric: every version of EFA or InfiniBand is one. What is unpublished is AWS's."""
    return next(kind for kind in known if (found.fabric or "EFA").startswith(kind))


def _tier(row: Mapping[str, Any], link_bytes_per_s: float, sources: Mapping[str, Source]) -> Tier:
    return Tier(
        bytes_per_s=row["fraction"] * link_bytes_per_s,
        latency_s=row["latency_s"],
        step_s=row["step_s"],
        ramp_s=row["ramp_s"],
        fill_s=row["fill_s"],
        ramp_bytes=row["ramp_bytes"],
        origin=_origin(row, sources),
    )


def _origin(row: Mapping[str, Any], sources: Mapping[str, Source]) -> Origin:
    provenance = next(word for word in get_args(Provenance) if word in row)
    source = sources[row[provenance]]
    return Origin(provenance=provenance, source=source.title, url=source.url, note=row.get("note", ""))
