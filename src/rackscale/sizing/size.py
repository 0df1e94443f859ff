"""The answer to "how should this model be trained on these GPUs": ranked layouts with everything known about each."""

from __future__ import annotations

from dataclasses import fields
from math import log2
from typing import Literal, TypeAlias

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from rackscale import models
from rackscale.models.description import Model
from rackscale.sizing import bands
from rackscale.sizing.advice import advice
from rackscale.sizing.checkpoint import Checkpoint, checkpoint
from rackscale.sizing.experts import experts_of
from rackscale.sizing.flops import flops_per_token
from rackscale.sizing.goodput import Goodput, goodput
from rackscale.sizing.groups import Group, groups
from rackscale.sizing.layout import Layout
from rackscale.sizing.memory import CLOSE, TIGHT, Memory
from rackscale.sizing.provenance import Input, inputs
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import Found, Limits, Priced, divisions, layout_of, savings, search
from rackscale.sizing.segments import domain_gpus
from rackscale.sizing.space import NEAR_HOSTS, uneven
from rackscale.sizing.step import Step
from rackscale.workload import Offer, Shape

FAILURES_PER_GPU_HOUR = 2e-5
"""Published rates are 1e-5 to 4e-5; no field data for NVL72 racks was found."""

Verdict: TypeAlias = Literal["fits", "tight", "out of memory"]
VERDICTS: tuple[Verdict, ...] = ("fits", "tight", "out of memory")
"""Of memory.verdicts, in their order."""
P99_PER_DOUBLING = 0.0072
"""How much longer the 99th percentile of a step is than its median, per doubling of GPUs beyond 8: 1.067 was measured
on 5,120 GB200; that it grows so in between is assumed."""


FEW = "few measured steps say what that costs"
UNTRIED = f"not tried: activations in host memory, which is near here (--offload 0.25 to 0.75); {FEW}"
OFFLOADED = f"nothing is sure to fit without activations in host memory (offload); {FEW}"


class Candidate(Struct, frozen=True, kw_only=True):
    """One layout, priced."""

    layout: Layout
    step_s: float
    low_s: float
    """Nine steps in ten that were measured took longer than this against their prediction, one in ten less. Wider where
    nothing of this size, precision or kind was measured: see bands.band."""
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
    groups: tuple[Group, ...]
    """Where the ranks that talk to each other lie."""
    bytes: dict[str, float]
    """Of memory by part: see memory.Memory."""
    total_bytes: float
    host_bytes: float
    """Of host memory per GPU, for offloaded activations."""
    fits: bool
    """Whether memory is sure to suffice."""
    verdict: Verdict
    """Of memory; tight: within the estimate's error of the accelerator's memory, on either side."""
    usd_per_million_tokens: float | None
    offer: Offer
    """For the scheduler: the gang's shape and its throughput in steps per second."""


class Sizing(Struct, frozen=True, kw_only=True):
    """Ranked layouts of a model on a system."""

    model: str
    parameters: int
    """All, without those of multi-token prediction."""
    active_parameters: int
    """That one token passes through."""
    system: str
    gpus: int
    domain_gpus: int
    """GPUs of the job in each NVLink domain."""
    global_batch: int
    """Sequences per step."""
    sequence_tokens: int
    considered: int
    """Layouts: every division of the GPUs with every way to save memory."""
    divisions: int
    """Ways to divide the model, the batch and the states over the GPUs."""
    fitting: int
    """Divisions that fit in memory, with some saving."""
    tight: int
    """Divisions that may fit."""
    candidates: tuple[Candidate, ...]
    """Those that fit, the fastest first; then those that are tight; where there are none, the leanest."""
    faster: Candidate | None
    """A tight layout that is faster than the first that fits: worth a try before it is relied on."""
    hbm_bytes: float | None
    peak_flop_per_s: float
    flops_per_token: float
    advice: tuple[str, ...]
    """What to change where nothing fits; else whether offload, which is not tried unasked, could be."""
    checkpoint: Checkpoint
    """What one takes, and a restart from it."""
    goodput: Goodput
    run_tokens: float | None
    run_s: float | None
    """Expected wall time to `run_tokens` by the best layout, with failures and checkpoints; None where none fits."""
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
    checkpoint_s: float | None = None,
    restart_s: float | None = None,
    values: dict[str, float] | None = None,
) -> Sizing:
    """Searches every layout that makes sense, and ranks those that fit in memory by step time.

    A tight layout comes after all that fit, whatever its speed: one that runs out of memory gives nothing, and a plan
    that counts on it is wrong as a whole; the fastest of them is told beside (`faster`).

    `global_batch` in sequences of `tokens`; `domain`: GPUs of the job in each NVLink domain (None: whole nodes, spares
    left); `checkpoint_s`, `restart_s`: stall and restart, instead of what follows from the job's size; `values`:
    constants of a user's calibration. Raises ValueError where no layout divides the job evenly.
    """
    near = domain_gpus(recipe.system, gpus) if domain is None else domain
    asked = {"gpus": gpus, "global_batch": global_batch, "tokens": tokens, "domain": near}
    found = _found(model, recipe, limits or Limits(), top=top, values=values, **asked)
    saved = checkpoint(model, recipe, gpus=gpus).given(stall_s=checkpoint_s, restart_s=restart_s)
    rests_on = inputs(
        model, recipe, gpus=gpus, failures_per_gpu_hour=failures_per_gpu_hour, p99_per_doubling=P99_PER_DOUBLING,
        saved=saved, usd_per_gpu_hour=usd_per_gpu_hour,
    )  # fmt: skip
    usd = usd_per_gpu_hour if usd_per_gpu_hour is not None else recipe.usd_per_gpu_hour
    good = _goodput(gpus, failures_per_gpu_hour, saved)
    answer = _answer(model, recipe, found, saved=saved, good=good, rests_on=rests_on, top=top, usd=usd)
    answer = replace(answer, advice=_advice(found, recipe, limits or Limits()))
    return answer if run_tokens is None else _with_run(answer, run_tokens, usd)


def _found(
    model: Model,
    recipe: Recipe,
    limits: Limits,
    *,
    top: int,
    values: dict[str, float] | None,
    **asked: int,
) -> Found:
    """The best layouts; with activations offloaded where that was asked for, or where nothing fits without.

    Raises ValueError where no layout divides the job evenly.
    """
    at = divisions(model, **asked, family=recipe.family, limits=limits)
    if not len(at):
        raise ValueError(uneven(model, gpus=asked["gpus"], limits=limits) or _undivided(**asked))

    def best(chip: str) -> Found:
        ways = savings(model, chip=chip, family=recipe.family, limits=limits)
        return search(model, at, ways, recipe, top=top, values=values)

    found = best("")
    return found if found.fitting or not _near(recipe, limits) else best(recipe.chip)


def _near(recipe: Recipe, limits: Limits) -> bool:
    """Whether activations could wait in host memory, and nobody said how many."""
    return recipe.chip in NEAR_HOSTS and limits.offload is None


def _undivided(*, gpus: int, global_batch: int, **_: int) -> str:
    return (
        f"no layout divides {gpus} GPUs and a global batch of {global_batch} sequences evenly:"
        " choose a batch that is a multiple of the data-parallel replicas"
    )


def _answer(
    model: Model, recipe: Recipe, found: Found, *, saved: Checkpoint, good: Goodput, rests_on: tuple[Input, ...],
    top: int, usd: float | None,
) -> Sizing:  # fmt: skip
    """Everything that is told of what was found, but for a whole run."""
    at = found.best.layouts
    tokens = int(at.tokens[0])
    per_token = flops_per_token(model, tokens, trains_all=recipe.task != "lora")
    best, faster = _candidates(model, found.best, recipe, per_token=per_token, usd=usd, top=top)
    return Sizing(
        model=model.name,
        parameters=models.parameters(model),
        active_parameters=models.active_parameters(model),
        system=recipe.system,
        gpus=int(at.gpus[0]),
        domain_gpus=int(at.domain[0]),
        global_batch=int(at.global_batch[0]),
        sequence_tokens=tokens,
        considered=found.considered,
        divisions=found.divisions,
        fitting=found.fitting,
        tight=found.tight,
        candidates=best,
        faster=faster,
        hbm_bytes=recipe.hardware.accelerator.hbm_bytes,
        peak_flop_per_s=recipe.peak_flop_per_s,
        flops_per_token=per_token,
        advice=(),
        checkpoint=saved,
        goodput=good,
        run_tokens=None,
        run_s=None,
        run_usd=None,
        inputs=rests_on,
    )


def _with_run(answer: Sizing, tokens: float, usd: float | None) -> Sizing:
    """With what a run takes; of a layout that is not sure to fit nothing is told."""
    best, gpus = answer.candidates[0], answer.gpus
    if not best.fits:
        return replace(answer, run_tokens=tokens)
    run_s = _run_s(tokens, best, gpus, answer.goodput)
    run_usd = None if usd is None else run_s / 3600.0 * gpus * usd
    return replace(answer, run_tokens=tokens, run_s=run_s, run_usd=run_usd)


def _goodput(gpus: int, failures_per_gpu_hour: float, saved: Checkpoint) -> Goodput:
    return goodput(
        gpus=gpus,
        failures_per_gpu_hour=failures_per_gpu_hour,
        write_s=saved.stall_s,
        save_s=saved.save_s,
        restart_s=saved.restart_s,
    )


def _advice(found: Found, recipe: Recipe, limits: Limits) -> tuple[str, ...]:
    """What to change where nothing fits for sure, and what was not tried or is less sure where something does."""
    if found.fitting:
        return (OFFLOADED if found.best.layouts.offload.any() else UNTRIED,) if _near(recipe, limits) else ()
    if found.tight:
        near = (
            f"{found.tight:,} divisions of the GPUs come within {TIGHT:.0%} of the memory, above it or below"
        )
        return (f"{near}: nearer than the estimate is sure. Try the first, or give it more room",)
    return advice(found.best, recipe)


def _run_s(tokens: float, best: Candidate, gpus: int, good: Goodput) -> float:
    """Wall time to `tokens`, with failures and checkpoints."""
    return tokens / (best.tokens_per_s_per_gpu * gpus) / good.share if good.share > 0 else float("inf")


def _candidates(
    model: Model, priced: Priced, recipe: Recipe, *, per_token: float, usd: float | None, top: int
) -> tuple[tuple[Candidate, ...], Candidate | None]:
    """The `top` best, and a tight layout that would be faster than the first of them."""
    gpus = float(priced.layouts.gpus[0])
    bounds = bands.band(recipe, experts=experts_of(model) is not None, gpus=gpus, model=model)

    def told(place: np.intp) -> Candidate:
        mfu = per_token / recipe.peak_flop_per_s
        return _candidate(priced, int(place), recipe, band=bounds, mfu=mfu, usd=usd)

    first = priced.order[0]
    tight = [place for place in priced.order if priced.verdict[place] == CLOSE]
    is_faster = bool(tight) and priced.step.seconds[tight[0]] < priced.step.seconds[first]
    return tuple(map(told, priced.order[:top])), told(tight[0]) if is_faster else None


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
        groups=groups(layout, domain=int(at.domain[place]), leaf=recipe.leaf_gpus),
        bytes={f.name: float(getattr(priced.memory, f.name)[place]) for f in fields(Memory)},
        total_bytes=float(priced.memory.total[place]),
        host_bytes=float(priced.host[place]),
        fits=bool(priced.fits[place]),
        verdict=VERDICTS[priced.verdict[place]],
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
