"""Facts about the systems that can be bought, each with its unit, its source and its provenance.

The tables beside this file hold the numbers; `system(name)` answers with one of them. Nothing here is a default of
the scheduler, and a number that nobody publishes is None.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from rackscale.catalog.tables import Origin, Provenance, Row, read, row, sources
from rackscale.errors import UnknownNameError

__all__ = ["Accelerator", "Origin", "Price", "Provenance", "System", "system", "systems"]


class Accelerator(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU or other accelerator. Compute is dense: no sparsity."""

    LABELS: ClassVar[tuple[str, ...]] = ("name", "maker")

    maker: str
    hbm_bytes: int | None = None
    """Memory that a program sees."""
    hbm_bytes_per_s: float | None = None
    bf16_flop_per_s: float | None = None
    fp8_flop_per_s: float | None = None
    fp4_flop_per_s: float | None = None
    scale_up_bytes_per_s: float | None = None
    """NVLink or NeuronLink bandwidth as its maker counts it (NVIDIA: both directions together)."""
    host_bytes_per_s: float | None = None
    """Of the link to host memory, counted alike."""
    tdp_w: float | None = None


class Price(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A list price, as it was seen on one day. `name` is the system's."""

    LABELS: ClassVar[tuple[str, ...]] = ("name", "model", "region", "seen")

    model: str
    """on-demand, capacity-block, reserved-3y"""
    region: str
    seen: str
    """Year and month."""
    usd_per_gpu_hour: float


class System(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of NVLink (or NeuronLink) domain: `nodes` instances of `gpus_per_node` accelerators each."""

    LABELS: ClassVar[tuple[str, ...]] = ("name", "title", "accelerator", "prices")

    title: str
    accelerator: Accelerator
    nodes: int
    gpus_per_node: int
    instance_type: str | None = None
    vcpus_per_node: int | None = None
    memory_bytes_per_node: int | None = None
    nvme_bytes_per_node: float | None = None
    fabric: str | None = None
    """The network between domains."""
    fabric_bits_per_s_per_gpu: float | None = None
    prices: tuple[Price, ...] = ()
    """Oldest first."""

    @property
    def gpus(self) -> int:
        """Accelerators of one domain."""
        return self.nodes * self.gpus_per_node

    @property
    def hbm_bytes(self) -> int | None:
        """Accelerator memory of one domain."""
        per_gpu = self.accelerator.hbm_bytes
        return None if per_gpu is None else self.gpus * per_gpu


def systems() -> tuple[System, ...]:
    """Every system of the catalog, in the order of its file."""
    return tuple(_load().values())


def system(name: str) -> System:
    """The system of that name. Raises UnknownNameError, with the nearest name as a hint."""
    known = _load()
    if name not in known:
        raise UnknownNameError("system", name, known)
    return known[name]


@cache
def _load() -> dict[str, System]:
    known = sources()
    accelerators = {
        name: row(Accelerator, {"name": name, **fields}, known)
        for name, fields in read("accelerators.toml").items()
    }
    prices: dict[str, list[Price]] = {}
    for fields in read("prices.toml")["price"]:
        prices.setdefault(fields["system"], []).append(
            row(
                Price, {"name": fields["system"], **{k: v for k, v in fields.items() if k != "system"}}, known
            )
        )
    loaded = {}
    for name, fields in read("systems.toml").items():
        labels = {
            "name": name,
            "accelerator": accelerators[fields["accelerator"]],
            "prices": tuple(prices.pop(name, ())),
        }
        loaded[name] = row(System, {**fields, **labels}, known)
    if prices:
        raise ValueError(f"prices of systems that do not exist: {sorted(prices)}")
    return loaded
