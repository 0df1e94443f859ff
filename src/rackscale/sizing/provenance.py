"""Every input of an answer, with its unit and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from msgspec import Struct

from rackscale import kernels
from rackscale.catalog import Origin, Provenance
from rackscale.models.description import Attention, LatentAttention, Model
from rackscale.sizing import bands
from rackscale.sizing.checkpoint import Checkpoint, rates
from rackscale.sizing.experts import experts_of
from rackscale.sizing.memory import CONTEXT_BYTES, FRAGMENTS, HOST_BYTES, HOST_SHARE, TIGHT, optimizer_bytes
from rackscale.sizing.recipe import NEWEST, Recipe

Basis: TypeAlias = Provenance | Literal["given"]
"""Where an input comes from; given: by whoever asked."""

OURS = "rackscale's own choice"
PUBLISHED = "published training runs"


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
    gpus: int,
    failures_per_gpu_hour: float,
    p99_per_doubling: float,
    saved: Checkpoint,
    usd_per_gpu_hour: float | None,
) -> tuple[Input, ...]:
    """In the order in which they matter. `saved`: what a checkpoint and a restart take."""
    return (
        Input(name="model", value=model.name, unit="", provenance="vendor", source=model.source or "given"),
        *_hardware(recipe),
        *_network(recipe),
        *_leaves(recipe),
        *_curves(model, recipe),
        *_constants(model, recipe, gpus, p99_per_doubling),
        *_memory(recipe),
        *_failures(failures_per_gpu_hour, saved),
        *_price(recipe, usd_per_gpu_hour),
    )


def _of(name: str, value: float | str | None, unit: str, origin: Origin) -> Input:
    source = f"{origin.source}: {origin.note}" if origin.note else origin.source
    return Input(name=name, value=value, unit=unit, provenance=origin.provenance, source=source)


def _assumed(name: str, value: float | str, unit: str, source: str) -> Input:
    return Input(name=name, value=value, unit=unit, provenance="assumed", source=source)


def _hardware(recipe: Recipe) -> Iterator[Input]:
    """Facts of the catalog."""
    chip, system = recipe.hardware.accelerator, recipe.hardware
    for holder, name, unit in (
        (chip, "bf16_flop_per_s", "FLOP/s"),
        (chip, "fp8_flop_per_s", "FLOP/s"),
        (chip, "fp4_flop_per_s", "FLOP/s"),
        (chip, "hbm_bytes", "bytes"),
        (chip, "hbm_bytes_per_s", "bytes/s"),
        (chip, "scale_up_bytes_per_s", "bytes/s"),
        (chip, "host_bytes_per_s", "bytes/s"),
        (system, "fabric_bits_per_s_per_gpu", "bit/s"),
    ):
        if name in holder.origins:
            yield _of(name, getattr(holder, name), unit, holder.origins[name])


def _network(recipe: Recipe) -> Iterator[Input]:
    """What collectives reach, inside a domain and between domains."""
    network = recipe.network
    for name, tier in (("in a domain", network.up), ("between domains", network.out)):
        if tier.origin is not None:
            yield _of(f"collectives {name}", tier.bytes_per_s, "bytes/s", tier.origin)
    if recipe.nic_bits_per_s is not None:
        nic = recipe.nic_bits_per_s
        yield Input(name="NIC", value=nic, unit="bit/s", provenance="given", source="as given")


def _leaves(recipe: Recipe) -> Iterator[Input]:
    """How much of a job shares a leaf switch, and what its uplinks carry."""
    if recipe.leaf_gpus is None:
        yield _assumed("leaf", "all GPUs", "", "default: one leaf switch (or rail group) holds the job")
        return
    yield Input(name="leaf", value=recipe.leaf_gpus, unit="GPUs", provenance="given", source="as given")
    network, unit = recipe.network, "GPUs per NIC of uplinks"
    if recipe.oversubscription is not None or network.oversubscription_origin is None:
        value = network.oversubscription
        yield Input(name="oversubscription", value=value, unit=unit, provenance="given", source="as given")
    else:
        yield _of("oversubscription", network.oversubscription, unit, network.oversubscription_origin)


def _curves(model: Model, recipe: Recipe) -> Iterator[Input]:
    """What kernels were measured to take."""
    known, chip = kernels.kernels(), recipe.chip
    yield _of("kernel curves", f"{chip} {recipe.products}", "", known.gemm(chip, recipe.products).fit.origin)
    if recipe.is_low:
        yield _of("kernel curves of the head", f"{chip} bf16", "", known.gemm(chip, "bf16").fit.origin)
    if experts_of(model) is not None:
        grouped = known.gemm(chip, recipe.products, grouped=True).fit.origin
        yield _of("kernel curves of experts", f"{chip} {recipe.products}", "", grouped)
    if any(isinstance(kind.mixer, Attention | LatentAttention) for kind in model.layers):
        yield _of("kernel curves of attention", f"{chip} bf16", "", known.chip(chip).attention.fit.origin)
    yield _of("kernel curves of memory", chip, "", known.chip(chip).memory.fit.origin)


def _constants(model: Model, recipe: Recipe, gpus: int, p99_per_doubling: float) -> Iterator[Input]:
    """What was fitted to whole steps, and how far it reaches."""
    software = f"software of {recipe.year:.1f} ({recipe.family})"
    newest = ", the newest known" if recipe.year >= NEWEST else ""
    fitted = f"sizing/fitted.toml, {PUBLISHED}"
    yield Input(name="constants", value=software + newest, unit="year", provenance="measured", source=fitted)
    low, high, origin = bands.explained(recipe, experts=experts_of(model) is not None, gpus=gpus, model=model)
    yield _of("band", f"{low:.2f} to {high:.2f}", "measured / predicted", origin)
    p99 = "1.067 was measured on 5,120 GB200; that it grows evenly with the logarithm is assumed"
    yield _assumed("p99 step", p99_per_doubling, "per doubling of GPUs beyond 8", p99)


def _memory(recipe: Recipe) -> Iterator[Input]:
    """What the estimate of memory adds to counts."""
    context = "CUDA context and NCCL; 1 to 4 GB are usual with many communicators"
    yield _assumed("memory beside the allocator", CONTEXT_BYTES, "bytes", context)
    yield _assumed("fragments", FRAGMENTS, "of memory", "expandable segments keep it under 0.05")
    system = recipe.hardware
    if "memory_bytes_per_node" in system.origins:
        yield _of(
            "host memory", system.memory_bytes_per_node, "bytes", system.origins["memory_bytes_per_node"]
        )
    else:
        host = HOST_BYTES * system.gpus_per_node
        yield _assumed("host memory", host, "bytes", "of a node; as P6e-GB200, where nothing is published")
    yield _assumed("offloaded at most", HOST_SHARE, "of host memory", "the rest is for data and checkpoints")
    ran = (
        f"no {PUBLISHED} that ran are estimated to need more above their memory (python -m benchmarks.memory)"
    )
    yield Input(name="tight within", value=TIGHT, unit="of memory", provenance="measured", source=ran)
    states = "BF16 alone" if recipe.all_bf16 else "FP32 weights and moments"
    yield _assumed(
        "optimizer states", optimizer_bytes(recipe), "bytes per parameter", f"{recipe.optimizer}: {states}"
    )
    bridge = "as Megatron Bridge's performance recipes; FP32 gradients take 4"
    yield _assumed("gradients", recipe.gradient_bytes, "bytes per parameter", bridge)


def _failures(failures_per_gpu_hour: float, saved: Checkpoint) -> Iterator[Input]:
    """What goodput rests on; the stall and the restart follow from the job's size and the rates named."""
    rate = "1e-5 to 4e-5 published for H100 and A100; none for NVL72 racks"
    yield _assumed("failures", failures_per_gpu_hour, "1/(GPU h)", rate)
    by = rates()
    copied = f"copy of {saved.gpu_bytes / 1e9:.2f} GB to host memory at {by.copy_bytes_per_s / 1e9:.1f} GB/s"
    yield _assumed("checkpoint stall", saved.stall_s, "s", f"asynchronous: {copied}")
    for name, unit in (
        ("copy_bytes_per_s", "bytes/s"),
        ("storage_bytes_per_s", "bytes/s"),
        ("storage_bytes_per_s_per_gpu", "bytes/s"),
    ):
        yield _of(name, getattr(by, name), unit, by.origins[name])
    starts = (
        f"detect {by.detect_s:.0f} s, reschedule {by.reschedule_s:.0f} s, start from {by.start_s:.0f} s, load"
    )
    yield _assumed("restart", saved.restart_s, "s", f"{starts}; 5 to 20 minutes published")


def _price(recipe: Recipe, usd_per_gpu_hour: float | None) -> Iterator[Input]:
    unit, price = "USD/(GPU h)", recipe.price
    if usd_per_gpu_hour is not None:
        yield Input(name="price", value=usd_per_gpu_hour, unit=unit, provenance="given", source="as given")
    elif price is not None:
        origin = price.origins["usd_per_gpu_hour"]
        source = f"{origin.source}, {price.model}, {price.seen}"
        yield Input(
            name="price",
            value=price.usd_per_gpu_hour,
            unit=unit,
            provenance=origin.provenance,
            source=source,
        )
