"""All layouts that make sense for a model on so many GPUs, priced at once; the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

import numpy as np
import numpy.typing as npt

from rackscale.models.description import Attention, Experts, LatentAttention, Model
from rackscale.sizing.constants import fitted, roles
from rackscale.sizing.experts import experts_of
from rackscale.sizing.layout import FULL, MODULES, SHARDINGS, Array, Layout, Layouts
from rackscale.sizing.memory import Memory, memory
from rackscale.sizing.parts import parts
from rackscale.sizing.recipe import NEWEST, Recipe
from rackscale.sizing.step import Factors, Step, step

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
ZERO1, FSDP = (float(SHARDINGS.index(way)) for way in ("zero1", "fsdp"))
WAYS = ("zero1", "fsdp", "hsdp")
"""Of dividing states: HSDP is FSDP inside each NVLink domain, replicated over domains."""
VIRTUAL = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the search may use; None leaves a degree open."""

    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    ep: int | None = None
    micro_batch: int | None = None
    virtual: int | None = None
    sharding: str | None = None
    recompute: frozenset[str] | None = None
    zero_bubble: bool = False
    """Pipelines by ZB-H1 instead of interleaving; no measurement of one was at hand."""
    ulysses: bool = False
    """Context parallelism all to all instead of by a ring; no measurement of one was at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Layouts with what they take: entries that fit in memory first in `order`, the fastest first among them."""

    layouts: Layouts
    step: Step
    memory: Memory
    fits: npt.NDArray[np.bool_]
    order: npt.NDArray[np.intp]


def factors(recipe: Recipe, *, experts: Experts | None, values: dict[str, float] | None = None) -> Factors:
    """The calibrated constants that concern `recipe`, by role."""
    known = fitted() if values is None else values
    return {
        role: prod(known[name] for name in names) for role, names in roles(recipe, experts=experts).items()
    }


def divisors(number: int) -> list[int]:
    """In ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def candidates(
    model: Model, *, gpus: int, global_batch: int, tokens: int, domain: int, limits: Limits | None = None
) -> Layouts:
    """Every layout that a framework would accept, as arrays.

    Tensor parallelism stays inside an NVLink domain; experts are not divided further; pipelines interleave only where
    micro-batches come in whole rounds; FSDP goes without a pipeline.
    """
    limits = limits or Limits()
    columns = _grid(model, gpus, tokens, domain, limits)
    tp, pp, cp, ep, micro, virtual, sharding, again = columns
    replicas = gpus / (tp * pp * cp)
    passes = global_batch / (micro * replicas)
    depth = model.depth + model.mtp_layers
    fsdp, hsdp = sharding >= WAYS.index("fsdp"), sharding == WAYS.index("hsdp")
    near = domain / (tp * cp)
    good = (replicas == np.floor(replicas)) & (passes == np.floor(passes)) & (passes >= 1)
    good &= (tp * cp * replicas) % ep == 0
    good &= pp * virtual <= depth
    if limits.zero_bubble:
        good &= virtual == 1
    if limits.ulysses:
        good &= (_heads(model) % (tp * cp) == 0) | (cp == 1)
    good &= (virtual == 1) | ((pp > 1) & (passes % pp == 0) & (depth % (pp * virtual) == 0))
    good &= ~hsdp | (
        (near == np.floor(near)) & (near > 1) & (near < replicas) & (replicas % np.maximum(near, 1.0) == 0)
    )
    good &= ~(fsdp & (pp > 1)) & (fsdp | (passes >= pp))
    chosen = [column[good] for column in columns]
    tp, pp, cp, ep, micro, virtual, sharding, again = chosen
    one = np.ones_like(tp)
    divided = gpus / (tp * pp * cp)
    return Layouts(
        gpus=gpus * one,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=ep,
        etp=one,
        virtual=virtual,
        zero_bubble=limits.zero_bubble * (pp > 1) * one,
        ulysses=limits.ulysses * (cp > 1) * one,
        micro_batch=micro,
        sharding=np.where(sharding >= WAYS.index("fsdp"), FSDP, ZERO1),
        shard=np.where(sharding == WAYS.index("hsdp"), domain / (tp * cp), divided),
        again=tuple((again == 1) * (module == "attention") * 1.0 + 0.0 * one for module in MODULES),
        full=(again == 2) * 1.0,
        offload=0.0 * one,
        global_batch=global_batch * one,
        tokens=tokens * one,
        document=tokens * one,
        domain=domain * one,
    )


RECOMPUTE: tuple[frozenset[str], ...] = (frozenset(), frozenset({"attention"}), frozenset({"layer"}))


def _heads(model: Model) -> int:
    """What attention's heads have in common, as far as they are divided; 0: no attention."""
    found = 0
    for kind in model.layers:
        if isinstance(kind.mixer, Attention | LatentAttention):
            found = gcd(found, kind.mixer.heads)
    return found


def _grid(model: Model, gpus: int, tokens: int, domain: int, limits: Limits) -> Sequence[Array]:
    heads = _heads(model)
    experts = 0
    for kind in model.layers:
        if isinstance(kind.feed, Experts):
            experts = gcd(experts, kind.feed.count)

    def only(limit: int | None, every: Sequence[int]) -> list[int]:
        return list(every) if limit is None else [limit]

    tps = only(limits.tp, [n for n in divisors(heads or 8) if n <= 64 and domain % n == 0 and gpus % n == 0])
    pps = only(limits.pp, [n for n in divisors(gpus) if n <= model.depth + model.mtp_layers])
    cps = only(
        limits.cp, [n for n in (1, 2, 4, 8, 16, 32) if n == 1 or (gpus % n == 0 and tokens // n >= 2048)]
    )
    eps = only(limits.ep, divisors(experts) if experts else [1])
    shardings = [i for i, way in enumerate(WAYS) if limits.sharding in {None, way}]
    again = [i for i, r in enumerate(RECOMPUTE) if limits.recompute in {None, r}]
    grids = np.meshgrid(
        tps,
        pps,
        cps,
        eps,
        only(limits.micro_batch, MICRO_BATCHES),
        only(limits.virtual, VIRTUAL),
        shardings,
        again,
        indexing="ij",
    )
    return [grid.ravel().astype(float) for grid in grids]


def price(model: Model, at: Layouts, recipe: Recipe, *, values: dict[str, float] | None = None) -> Priced:
    """Step time and memory of every layout."""
    by = factors(recipe, experts=experts_of(model), values=values)
    years = max(NEWEST - recipe.year, 0.0)
    dense = 1.0 if experts_of(model) is None else 0.0
    steps = step(parts(model, at, recipe), at, by, years=years, dense=dense)
    needs = memory(model, at, recipe)
    room = recipe.hardware.accelerator.hbm_bytes
    fits = np.asarray(needs.total <= (np.inf if room is None else room))
    return Priced(
        layouts=at,
        step=steps,
        memory=needs,
        fits=fits,
        order=np.lexsort((steps.seconds, needs.total * ~fits, ~fits)),
    )


def layout_of(at: Layouts, place: int) -> Layout:
    """One of the arrays' layouts."""
    again = frozenset(m for m, column in zip(MODULES, at.again, strict=True) if column[place])
    return Layout(
        gpus=int(at.gpus[place]),
        tp=int(at.tp[place]),
        pp=int(at.pp[place]),
        cp=int(at.cp[place]),
        ep=int(at.ep[place]),
        etp=int(at.etp[place]),
        virtual=int(at.virtual[place]),
        zero_bubble=bool(at.zero_bubble[place]),
        ulysses=bool(at.ulysses[place]),
        micro_batch=int(at.micro_batch[place]),
        sharding=SHARDINGS[int(at.sharding[place])],
        shard=int(at.shard[place] * at.cp[place]) if at.shard[place] < at.dp[place] else 0,
        recompute=FULL if at.full[place] else again,
        recomputed=float(at.full[place]) or 1.0,
        offload=float(at.offload[place]),
    )
