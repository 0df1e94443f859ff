"""The layouts to choose from: how GPUs can be divided, and how each division can save memory.

A division says who computes what: degrees of parallelism, micro-batch, sharding. A saving says what a division gives up
to need less memory: what is computed again, what waits in host memory, gradients divided (ZeRO-2). No step is faster
with savings than without any, so that a division without bounds what it can reach: see search.py. (Of two that offload
activations, the one that computes more again may be faster: it has less to send.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd

import numpy as np
import numpy.typing as npt

from rackscale.models.description import Attention, Experts, LatentAttention, Model
from rackscale.sizing.division import SPARE
from rackscale.sizing.layout import FULL, MODULES, SHARDINGS, Array, Layout, Layouts
from rackscale.sizing.memory import INPUTS
from rackscale.sizing.stage import ROUNDING, depth_of
from rackscale.sizing.work import layers_of, works_of

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
VIRTUAL = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24)
CONTEXT = (1, 2, 4, 8, 16, 32)
LEAST_TOKENS = 2048
"""Of a sequence on each rank of context parallelism; less leaves attention's kernels nothing to do (assumed)."""
ZERO1, ZERO2, FSDP = (float(SHARDINGS.index(way)) for way in ("zero1", "zero2", "fsdp"))
DIVIDED = ("zero1", "fsdp", "hsdp")
"""Of dividing states: HSDP is FSDP inside each NVLink domain, replicated over domains. ZeRO-2 is a saving of ZeRO-1."""
WAYS = ("zero1", "zero2", "fsdp", "hsdp")
"""What `Limits.sharding` may say."""
CHEAP = frozenset({"norm", "activation"})
"""Modules that cost little to compute again: Megatron Bridge's recipes name them first (layernorm, moe_act)."""
RECOMPUTE: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"attention"}),
    frozenset({"latent"}),
    frozenset({"norm"}),
    frozenset({"activation"}),
    CHEAP,
    CHEAP | {"latent"},
    CHEAP | {"attention"},
    CHEAP | {"mlp"},
    CHEAP | {"experts"},
    CHEAP | {"latent", "mlp"},
    CHEAP | {"latent", "attention", "mlp"},
    frozenset(MODULES),
    FULL,
)
"""What recipes compute again, from least to most; modules that a model lacks fall out."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of layers that are computed again as a whole (Megatron's method "block"); all of them where that is asked for."""
OFFLOAD = (0.0, 0.25, 0.5, 0.75)
"""Shares of layers whose activations wait in host memory. Megatron keeps at least the last layer on the accelerator."""
NEAR_HOSTS = frozenset({"GB200", "GB300"})
"""Accelerators with a coherent link to their host's memory (NVLink-C2C): only there offloading is tried unasked, and
only where nothing fits without, since few measured steps say what it costs."""

STAGED = frozenset({"torch", "maxtext"})
"""Frameworks that divide parameters or gradients in a pipeline's stages too (torchtitan, MaxText). Megatron-FSDP, which
has ZeRO-2 as well, excludes pipelines (Megatron-LM's pull requests 6081 and 6486, the latter open in August 2026)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the search may use; None leaves a degree open."""

    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    ep: int | None = None
    etp: int | None = None
    micro_batch: int | None = None
    virtual: int | None = None
    sharding: str | None = None
    """One of WAYS."""
    recompute: frozenset[str] | None = None
    offload: float | None = None
    """Share of layers; None: tried where host memory is near and nothing fits without."""
    zero_bubble: bool = False
    """Pipelines by ZB-H1 instead of interleaving; no measurement of one was at hand."""
    ulysses: bool = False
    """Context parallelism all to all instead of by a ring; no measurement of one was at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What is given up to need less memory."""

    recompute: frozenset[str] = frozenset()
    recomputed: float = 1.0
    """Share of layers, where whole ones are computed again."""
    offload: float = 0.0
    zero2: bool = False
    staged: bool = True
    """Whether ZeRO-2 goes with a pipeline."""

    def within(self, other: Saving) -> bool:
        """Whether `other` gives up all that this one does, and more, and so is never faster.

        With offload it may be, where it computes more again: that leaves less to send.
        """
        if other.recompute == FULL:
            mine = self.recomputed if self.recompute == FULL else 1.0 if self.recompute else 0.0
            again = mine <= other.recomputed
        else:
            again = self.recompute <= other.recompute
        same = (self.recompute, self.recomputed) == (other.recompute, other.recomputed)
        again &= same or not self.offload
        return self != other and again and self.offload <= other.offload and self.zero2 <= other.zero2


def stages(family: str, limits: Limits) -> bool:
    """Whether FSDP and ZeRO-2 go with pipelines: where the framework has it, or where both are asked for."""
    return family in STAGED or (limits.sharding not in {None, "zero1"} and limits.pp is not None)


def savings(
    model: Model, *, chip: str, family: str = "torch", limits: Limits | None = None
) -> tuple[Saving, ...]:
    """Every saving that the limits allow; the first computes least again.

    Shares of layers are offloaded where `chip` is one of NEAR_HOSTS, or where the limits say so.
    """
    limits = limits or Limits()
    has = {module for module in MODULES if module in _modules(model)}
    sets = dict.fromkeys(again if again == FULL else again & has for again in RECOMPUTE)
    offload = OFFLOAD if chip in NEAR_HOSTS else OFFLOAD[:1]
    zero2 = {None: (False, True), "zero2": (True,)}.get(limits.sharding, (False,))
    return tuple(
        Saving(recompute=again, recomputed=part, offload=share, zero2=divided, staged=stages(family, limits))
        for again in (sets if limits.recompute is None else (limits.recompute,))
        for part in (SHARES if again == FULL and limits.recompute is None else (1.0,))
        for share in (offload if limits.offload is None else (limits.offload,))
        for divided in zero2
    )


def saved(at: Layouts, ways: Sequence[Saving]) -> Layouts:
    """Each layout with each saving, those of one together; ZeRO-2 only where ZeRO-1 divides states."""
    many = at.take(np.repeat(np.arange(len(at)), len(ways)))

    def each(of: Callable[[Saving], float]) -> Array:
        return np.tile(np.array([of(way) for way in ways], dtype=float), len(at))

    def again(module: str) -> Array:
        return each(lambda way: module in way.recompute)

    zero2 = (each(lambda way: way.zero2) > 0) & can_scatter(many, each(lambda way: way.staged))
    return replace(
        many,
        again=tuple(map(again, MODULES)),
        full=each(lambda way: way.recomputed * ("layer" in way.recompute)),
        offload=each(lambda way: way.offload),
        sharding=np.where(zero2, ZERO2, many.sharding),
    )


def can_scatter(at: Layouts, staged: Array | float) -> npt.NDArray[np.bool_]:
    """Where ZeRO-2 is another layout than ZeRO-1, and one that runs."""
    return np.asarray(
        (at.sharding == ZERO1) & (at.dp * at.cp > 1) & ((at.pp == 1) | (np.asarray(staged) > 0))
    )


def divisions(
    model: Model,
    *,
    gpus: int,
    global_batch: int,
    tokens: int,
    domain: int,
    family: str = "torch",
    limits: Limits | None = None,
) -> Layouts:
    """Every division that a framework would accept, with nothing given up.

    Tensor parallelism stays inside an NVLink domain; an expert is whole or divided as attention is; a pipeline's chunks
    are full but for SPARE places, and interleave only where micro-batches come in whole rounds; FSDP goes with them
    where the framework (`family`) has it.
    """
    limits = limits or Limits()
    batch = {"gpus": gpus, "global_batch": global_batch, "tokens": tokens, "domain": domain}
    asked = _Asked(model=model, **batch, staged=stages(family, limits), limits=limits)
    at = asked.shares(asked.passes())
    one = np.ones_like(at["tp"])
    sharding, replicas = at.pop("sharding"), gpus / (at["tp"] * at["pp"] * at["cp"])
    return Layouts(
        **at,
        **{name: count * one for name, count in batch.items()},
        zero_bubble=limits.zero_bubble * (at["pp"] > 1) * one,
        ulysses=limits.ulysses * (at["cp"] > 1) * one,
        sharding=np.where(sharding >= DIVIDED.index("fsdp"), FSDP, ZERO1),
        shard=np.where(sharding == DIVIDED.index("hsdp"), domain / (at["tp"] * at["cp"]), replicas),
        again=tuple(0.0 * one for _ in MODULES),
        full=0.0 * one,
        offload=0.0 * one,
        document=tokens * one,
    )


def candidates(
    model: Model,
    *,
    gpus: int,
    global_batch: int,
    tokens: int,
    domain: int,
    chip: str = "",
    family: str = "torch",
    limits: Limits | None = None,
) -> Layouts:
    """The whole space: every division with every saving, each layout once."""
    at = divisions(
        model,
        gpus=gpus,
        global_batch=global_batch,
        tokens=tokens,
        domain=domain,
        family=family,
        limits=limits,
    )
    ways = savings(model, chip=chip, family=family, limits=limits)
    many = saved(at, ways)
    twice = np.tile([way.zero2 for way in ways], len(at)) & (many.sharding != ZERO2)
    return many if all(way.zero2 for way in ways) else many.take(~twice)


def spare(model: Model, chunks: Array) -> Array:
    """Places for layers that stay free where as many chunks of a pipeline are alike."""
    return np.asarray(np.ceil(depth_of(model) / chunks - ROUNDING) * chunks - depth_of(model))


def uneven(model: Model, *, gpus: int, limits: Limits) -> str | None:
    """Why no pipeline within `limits` divides the model's layers, and what does; None: one does."""
    depths = [n for n in divisors(gpus) if n <= depth_of(model)]
    pps = depths if limits.pp is None else [limits.pp]
    virtuals = VIRTUAL if limits.virtual is None else (limits.virtual,)

    def good(pp: int, virtual: int) -> bool:
        chunks = np.array(float(pp * virtual))
        return (pp > 1 or virtual == 1) and bool(spare(model, chunks) <= SPARE)

    if any(good(pp, virtual) for pp in pps for virtual in virtuals):
        return None
    told = {"--pp": limits.pp, "--virtual": limits.virtual}
    given = " ".join(f"{name} {value}" for name, value in told.items() if value is not None)
    if limits.pp == 1:
        return f"{given}: only a pipeline's stages have chunks: say a higher --pp, or --virtual 1"
    ways = {
        "--virtual": [n for n in VIRTUAL if limits.pp and good(limits.pp, n)],
        "--pp": [n for n in depths if good(n, limits.virtual or 1)],
    }
    fixes = [f"{name} {' or '.join(map(str, some))}" for name, some in ways.items() if some]
    return (
        f"{given}: the {depth_of(model)} layers of {model.name} would leave more than {SPARE} places free in chunks"
        f" that are alike: say {', or '.join(fixes) or 'another --virtual'}"
    )


def divisors(number: int) -> list[int]:
    """In ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is to be divided, and the two grids of degrees that are filtered one after the other."""

    model: Model
    gpus: int
    global_batch: int
    tokens: int
    domain: int
    staged: bool
    limits: Limits

    def passes(self) -> dict[str, Array]:
        """Who works on which tokens and layers: degrees that divide evenly, with whole rounds of micro-batches."""
        limits = self.limits
        tps = (n for n in divisors(_heads(self.model) or 8) if n <= 64 and not self.domain % n)
        cps = (n for n in CONTEXT if n == 1 or self.tokens // n >= LEAST_TOKENS)
        of = _grid(
            tp=_or(limits.tp, tps),
            pp=_or(limits.pp, (n for n in divisors(self.gpus) if n <= depth_of(self.model))),
            cp=_or(limits.cp, cps),
            micro_batch=_or(limits.micro_batch, MICRO_BATCHES),
            virtual=_or(limits.virtual, VIRTUAL),
        )
        tp, pp, cp, virtual = of["tp"], of["pp"], of["cp"], of["virtual"]
        replicas = self.gpus / (tp * pp * cp)
        passes = self.global_batch / (of["micro_batch"] * replicas)
        good = (replicas == np.floor(replicas)) & (passes == np.floor(passes)) & (passes >= pp)
        good &= spare(self.model, pp * virtual) <= SPARE
        good &= (virtual == 1) | ((pp > 1) & (passes % pp == 0))
        if limits.zero_bubble:
            good &= virtual == 1
        if limits.ulysses:
            good &= (_heads(self.model) % (tp * cp) == 0) | (cp == 1)
        return {name: column[good] for name, column in of.items()}

    def shares(self, of: dict[str, Array]) -> dict[str, Array]:
        """With how experts and states are divided. An expert is whole, or divided as attention is (0 in the grid)."""
        limits, experts = self.limits, _experts(self.model)
        sharding = "zero1" if limits.sharding == "zero2" else limits.sharding
        more = _grid(
            ep=_or(limits.ep, divisors(experts) if experts else (1,)),
            etp=_or(limits.etp, (1, 0) if experts else (1,)),
            sharding=(i for i, way in enumerate(DIVIDED) if sharding in {None, way}),
        )
        many, each = len(more["ep"]), len(of["tp"])
        of = {name: np.repeat(column, many) for name, column in of.items()}
        of |= {name: np.tile(column, each) for name, column in more.items()}
        again = (of["etp"] == 0) & (of["tp"] == 1)
        of["etp"] = np.where(of["etp"] == 0, of["tp"], of["etp"])
        ranks = self.gpus / of["pp"]
        near = self.domain / (of["tp"] * of["cp"])
        replicas = ranks / (of["tp"] * of["cp"])
        even = (near == np.floor(near)) & (near > 1) & (near < replicas)
        hsdp = of["sharding"] == DIVIDED.index("hsdp")
        good = ~again & (ranks % (of["ep"] * of["etp"]) == 0)
        if not self.staged:
            good &= (of["pp"] == 1) | (
                (of["sharding"] == DIVIDED.index("zero1")) & (limits.sharding != "zero2")
            )
        good &= ~hsdp | (even & (replicas % np.maximum(near, 1.0) == 0))
        return {name: column[good] for name, column in of.items()}


def _grid(**choices: Iterable[int]) -> dict[str, Array]:
    """Every combination."""
    grids = np.meshgrid(*(list(some) for some in choices.values()), indexing="ij")
    return {name: grid.ravel().astype(float) for name, grid in zip(choices, grids, strict=True)}


def _or(limit: int | None, every: Iterable[int]) -> Iterable[int]:
    return every if limit is None else [limit]


def _heads(model: Model) -> int:
    """What attention's heads have in common, as far as they are divided; 0: no attention."""
    found = 0
    for kind in model.layers:
        if isinstance(kind.mixer, Attention | LatentAttention):
            found = gcd(found, kind.mixer.heads)
    return found


def _experts(model: Model) -> int:
    """What the layers' numbers of experts have in common; 0: a dense model."""
    found = 0
    for kind in model.layers:
        if isinstance(kind.feed, Experts):
            found = gcd(found, kind.feed.count)
    return found


def _modules(model: Model) -> set[str]:
    """Modules that keep something for the backward pass."""
    at = Layouts.of([Layout(gpus=1)], global_batch=1, tokens=1, domain=1)
    works = [work for kind in layers_of(model) for work in works_of(kind, model, at)]
    kept = {name for work in works for name, size in work.kept.items() if np.any(size > 0)}
    return {INPUTS.get(name, name) for name in kept}
