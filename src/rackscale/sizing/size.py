"""The answer to "how should this model be trained on these GPUs": ranked layouts with everything known about each."""

from __future__ import annotations

from dataclasses import fields
from math import log2

import numpy as np
from msgspec import Struct

from rackscale.models.description import Model
from rackscale.sizing import bands
from rackscale.sizing.advice import advice
from rackscale.sizing.experts import experts_of
from rackscale.sizing.flops import flops_per_token
from rackscale.sizing.goodput import Goodput, goodput
from rackscale.sizing.layout import Layout
from rackscale.sizing.memory import Memory
from rackscale.sizing.provenance import Input, inputs
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import Limits, Priced, candidates, layout_of, price
from rackscale.sizing.segments import domain_gpus
from rackscale.sizing.step import Step
from rackscale.workload import Offer, Shape

CHECKPOINT_S = 60.0
"""Assumed stall of a checkpoint; asynchronous ones stall a few seconds (data/reliability/checkpoints.csv)."""
RESTART_S = 600.0
"""Assumed: detect, reschedule, load and warm up (Llama 3 and Meta's clusters report 5 to 10 minutes)."""
FAILURES_PER_GPU_HOUR = 2e-5
"""Published rates are 1e-5 to 4e-5; no field data for NVL72 racks was found."""


P99_PER_DOUBLING = 0.0072
"""How much longer the 99th percentile of a step is than its median, per doubling of GPUs beyond 8: 1.067 was measured
on 5,120 GB200; that it grows so in between is assumed."""


class Candidate(Struct, frozen=True, kw_only=True):
    """One layout, priced."""

    layout: Layout
    step_s: float
    low_s: float
    """Nine steps in ten that were measured took longer than this against their prediction, one in ten less."""
    high_s: float
    p99_s: float
    """One step in a hundred takes longer: stragglers, retries, collectors."""
    tokens_per_s_per_gpu: float
    mfu: float
    """Model FLOPs over the dense BF16 peak's, or the precision's peak's: see `Sizing.peak_flop_per_s`."""
    seconds: dict[str, float]
    """By part: see step.Step."""
    exposed_s: float
    """Messages that nothing hides."""
    bytes: dict[str, float]
    """Of memory by part: see memory.Memory."""
    total_bytes: float
    fits: bool
    usd_per_million_tokens: float | None
    offer: Offer
    """For the scheduler: the gang's shape and its throughput in steps per second."""


class Sizing(Struct, frozen=True, kw_only=True):
    """Ranked layouts of a model on a system."""

    model: str
    system: str
    gpus: int
    domain_gpus: int
    """GPUs of the job in each NVLink domain."""
    global_batch: int
    """Sequences per step."""
    sequence_tokens: int
    considered: int
    fitting: int
    candidates: tuple[Candidate, ...]
    hbm_bytes: float | None
    peak_flop_per_s: float
    flops_per_token: float
    advice: tuple[str, ...]
    """What to change where nothing fits."""
    goodput: Goodput
    run_tokens: float | None
    run_s: float | None
    """Expected wall time to `run_tokens` by the best layout, with failures and checkpoints."""
    run_usd: float | None
    inputs: tuple[Input, ...]


def size(
    model: Model,
    recipe: Recipe,
    *,
    gpus: int,
    global_batch: int,
    tokens: int,
    domain: int | None = None,
    limits: Limits | None = None,
    top: int = 5,
    run_tokens: float | None = None,
    usd_per_gpu_hour: float | None = None,
    failures_per_gpu_hour: float = FAILURES_PER_GPU_HOUR,
    checkpoint_s: float = CHECKPOINT_S,
    restart_s: float = RESTART_S,
    values: dict[str, float] | None = None,
) -> Sizing:
    """Searches every layout that makes sense, and ranks those that fit in memory by step time.

    `global_batch` in sequences of `tokens`; `domain`: GPUs of the job in each NVLink domain (None: whole nodes, spares
    left); `values`: constants of a user's calibration. Raises ValueError where no layout divides the job evenly.
    """
    near = domain_gpus(recipe.system, gpus) if domain is None else domain
    at = candidates(model, gpus=gpus, global_batch=global_batch, tokens=tokens, domain=near, limits=limits)
    if not len(at):
        raise ValueError(
            f"no layout divides {gpus} GPUs and a global batch of {global_batch} sequences evenly:"
            " choose a batch that is a multiple of the data-parallel replicas"
        )
    priced = price(model, at, recipe, values=values)
    per_token = flops_per_token(model, tokens, trains_all=recipe.task != "lora")
    peak = recipe.peak_flop_per_s
    costs = usd_per_gpu_hour if usd_per_gpu_hour is not None else recipe.usd_per_gpu_hour
    bounds = bands.band(recipe, experts=experts_of(model) is not None)
    best = tuple(
        _candidate(priced, int(place), recipe, band=bounds, mfu=per_token / peak, usd=costs)
        for place in priced.order[:top]
    )
    good = goodput(
        gpus=gpus, failures_per_gpu_hour=failures_per_gpu_hour, write_s=checkpoint_s, restart_s=restart_s
    )
    run_s = None
    if run_tokens is not None:
        ideal_s = run_tokens / (best[0].tokens_per_s_per_gpu * gpus)
        run_s = ideal_s / good.share if good.share > 0 else float("inf")
    return Sizing(
        model=model.name,
        system=recipe.system,
        gpus=gpus,
        domain_gpus=near,
        global_batch=global_batch,
        sequence_tokens=tokens,
        considered=len(at),
        fitting=int(np.count_nonzero(priced.fits)),
        candidates=best,
        hbm_bytes=recipe.hardware.accelerator.hbm_bytes,
        peak_flop_per_s=peak,
        flops_per_token=per_token,
        advice=() if best[0].fits else advice(priced, recipe),
        goodput=good,
        run_tokens=run_tokens,
        run_s=run_s,
        run_usd=None if run_s is None or costs is None else run_s / 3600.0 * gpus * costs,
        inputs=inputs(
            model,
            recipe,
            failures_per_gpu_hour=failures_per_gpu_hour,
            checkpoint_s=checkpoint_s,
            restart_s=restart_s,
            usd_per_gpu_hour=usd_per_gpu_hour,
        ),
    )


def _candidate(
    priced: Priced, place: int, recipe: Recipe, *, band: tuple[float, float], mfu: float, usd: float | None
) -> Candidate:
    """`mfu`: of one token per second and GPU."""
    at = priced.layouts
    seconds = float(priced.step.seconds[place])
    speed = float(at.global_batch[place] * at.tokens[place] / (seconds * at.gpus[place]))
    layout = layout_of(at, place)
    return Candidate(
        layout=layout,
        step_s=seconds,
        low_s=seconds * band[0],
        high_s=seconds * band[1],
        p99_s=seconds * (1.0 + P99_PER_DOUBLING * log2(max(layout.gpus / 8.0, 1.0))),
        tokens_per_s_per_gpu=speed,
        mfu=speed * mfu,
        seconds={f.name: float(getattr(priced.step, f.name)[place]) for f in fields(Step)},
        exposed_s=float(priced.step.exposed[place]),
        bytes={f.name: float(getattr(priced.memory, f.name)[place]) for f in fields(Memory)},
        total_bytes=float(priced.memory.total[place]),
        fits=bool(priced.fits[place]),
        usd_per_million_tokens=None if usd is None else usd / 3600.0 / speed * 1e6,
        offer=_offer(layout, int(at.domain[place]), recipe, 1.0 / seconds),
    )


def _offer(layout: Layout, domain: int, recipe: Recipe, throughput: float) -> Offer:
    """Whole nodes of whole segments; a job smaller than a node takes the node."""
    per_node = recipe.hardware.gpus_per_node
    near = min(domain, layout.gpus)
    return Offer(
        shape=Shape(segments=max(layout.gpus // near, 1), nodes_per_segment=max(-(-near // per_node), 1)),
        system=recipe.system,
        throughput=throughput,
    )
