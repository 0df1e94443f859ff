"""What the parts of a step take at nominal speed, before calibration: seconds by class of kernel and of message.

`parts` prices the counts of work.py with the kernel curves and the network; it knows no framework. step.py puts the
parts together. All arrays have one entry per layout; per micro-batch unless the name says step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from msgspec.structs import replace

from rackscale import collectives, kernels
from rackscale.models import prediction_layer
from rackscale.models.description import Model
from rackscale.sizing.layout import MODULES, Array, Layouts
from rackscale.sizing.recipe import FUSED_EXPERTS, Recipe
from rackscale.sizing.work import BF16, Work, feed_work, head_work, mixer_work, tokens_of


@dataclass(slots=True, kw_only=True)
class Parts:
    """Seconds of an average stage's layers for one micro-batch, forward (f) and backward (b), and per step."""

    low_f: Array
    """Products in the recipe's low precision."""
    low_b: Array
    high_f: Array
    """Products that stay in BF16."""
    high_b: Array
    grouped_f: Array
    grouped_b: Array
    core_f: Array
    """Attention's own products."""
    core_b: Array
    scan_f: Array
    scan_b: Array
    moved_f: Array
    """Memory-bound kernels."""
    moved_b: Array
    cast_f: Array
    """Quantisation of inputs."""
    cast_b: Array
    cast_experts: Array
    """Quantisation of what experts work on, both ways."""
    routing_f: Array
    """Permuting tokens for experts and back."""
    routing_b: Array
    again_low: Array
    """Computed again going backward."""
    again_grouped: Array
    again_core: Array
    again_moved: Array
    kernels_f: Array
    """Kernels launched: a count."""
    kernels_b: Array
    kernels_experts: Array
    """Launched for one expert at a time, both ways: no graph holds them where tokens per expert vary."""
    head_f: Array
    head_b: Array
    tp_f: Array
    tp_b: Array
    tp_bare: Array
    """Of layers whose products can't hide them, both ways."""
    ring_f: Array
    ring_b: Array
    ep_f: Array
    ep_b: Array
    hop: Array
    """One activation passed to the next stage."""
    gather: Array
    """FSDP: all parameters of a stage gathered once."""
    scatter: Array
    """FSDP: all gradients of a stage scattered once."""
    step_reduce: Array
    """Gradients of a stage reduced once per step."""
    step_gather: Array
    """Updated parameters gathered once per step."""
    step_update: Array
    """The optimizer's pass over its states."""
    layers: Array
    """Layers of the slowest stage, over the average."""
    head_share: Array
    """How much of the head adds to the slowest stage."""

    def where(self, chosen: Array) -> Parts:
        """Some entries."""
        return Parts(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


def parts(model: Model, at: Layouts, recipe: Recipe) -> Parts:
    """The parts of a step of `model`, with `recipe`, on the recipe's system."""
    zero = np.zeros(len(at))
    total = Parts(**{f.name: zero.copy() for f in fields(Parts)})
    own, routed = zero.copy(), zero.copy()
    layers = list(model.layers)
    if model.mtp_layers:
        layers.append(replace(prediction_layer(model), count=model.mtp_layers))
    for kind in layers:
        for work in (
            None if kind.mixer is None else mixer_work(model, kind.mixer, at),
            None if kind.feed is None else feed_work(model, kind.feed, at),
        ):
            if work is not None:
                here, there = _price(total, work, kind.count / at.pp, at, recipe, model)
                own += here
                routed += there
    _price_head(total, model, at, recipe)
    own += (2.0 - model.tied_embeddings) * model.vocab * model.hidden / at.tp / at.pp
    _price_messages(total, model, at, recipe)
    _price_step(total, own, routed, at, recipe)
    _stages(total, model, at)
    return total


def _price(
    total: Parts, work: Work, count: Array, at: Layouts, recipe: Recipe, model: Model
) -> tuple[Array, Array]:
    """Adds `count` layers' work; answers with the parameters of it on this GPU: of its own, and of experts."""
    chip, precision = recipe.chip, recipe.products
    again = dict(zip(MODULES, at.again, strict=True))
    own, routed = work.plain * count, np.zeros(len(at))
    cast_f, cast_b, cast_experts = np.zeros(len(at)), np.zeros(len(at)), np.zeros(len(at))
    for p in work.products:
        low = p.low and recipe.is_low
        redo = np.maximum(at.full, again.get(p.module, 0.0))
        if p.groups is not None:
            shape = {"groups": p.groups, "chip": chip, "precision": precision if low else "bf16"}
            forward = count * kernels.grouped_gemm_seconds(m=p.m, n=p.n, k=p.k, **shape)
            back = count * kernels.grouped_gemm_seconds(m=p.m, n=p.k, k=p.n, **shape)
            total.grouped_f += forward
            total.grouped_b += back * recipe.backward_products
            total.again_grouped += forward * redo
            routed = routed + p.weights * count
            rows = p.m * p.groups
        else:
            shape = {"chip": chip, "precision": precision if low else "bf16"}
            forward = count * kernels.gemm_seconds(m=p.m, n=p.n, k=p.k, **shape)
            back = count * kernels.gemm_seconds(m=p.m, n=p.k, k=p.n, **shape)
            if recipe.backward_products > 1:
                back = back + count * kernels.gemm_seconds(m=p.n, n=p.k, k=p.m, **shape)
            if low:
                total.low_f += forward
                total.low_b += back
            else:
                total.high_f += forward
                total.high_b += back
            total.again_low += forward * redo
            own = own + p.weights * count
            rows = p.m
        if low and p.groups is not None:
            cast_experts += count * rows * (p.k + p.n)
        elif low:
            cast_f += count * rows * p.k
            cast_b += count * rows * p.n
    low_bytes = recipe.product_bytes
    total.cast_f += kernels.memory_seconds(nbytes=cast_f * (BF16 + 2.0 * low_bytes), chip=chip)
    total.cast_b += kernels.memory_seconds(nbytes=cast_b * (BF16 + 2.0 * low_bytes), chip=chip)
    total.cast_experts += kernels.memory_seconds(nbytes=cast_experts * (BF16 + 2.0 * low_bytes), chip=chip)
    _price_cores(total, work, count, at, recipe)
    for module, nbytes in work.moved.items():
        is_routing = module == "" and not isinstance(work.routed, float)
        seconds = count * kernels.memory_seconds(nbytes=nbytes, chip=chip)
        if is_routing:
            total.routing_f += seconds
            total.routing_b += seconds
        else:
            total.moved_f += seconds
            total.moved_b += 1.6 * seconds
        total.again_moved += seconds * np.maximum(at.full, again.get(module, 0.0))
    if recipe.year < FUSED_EXPERTS:
        apart = count * kernels.memory_seconds(nbytes=work.unfused, chip=chip)
        total.moved_f += apart
        total.moved_b += 2.0 * apart
    total.kernels_f += count * work.kernels
    total.kernels_b += count * (work.kernels + len(work.products)) * (1.0 + at.full / 2.0)
    total.kernels_experts += 3.0 * count * work.expert_kernels * (2.0 if recipe.is_low else 1.0)
    _price_layer_messages(total, work, count, at, recipe, model)
    return own, routed


def _price_cores(total: Parts, work: Work, count: Array, at: Layouts, recipe: Recipe) -> None:
    again = np.maximum(at.full, at.again[MODULES.index("attention")])
    for core in work.cores:
        whole = kernels.attention_seconds(
            tokens_q=at.document,
            tokens_kv=at.document,
            heads=core.heads,
            head_dim=(core.key_dim + core.value_dim) / 2.0,
            causal=True,
            batch=at.micro_batch * at.tokens / at.document,
            chip=recipe.chip,
        )
        # a window or a rank's part of the context computes its share of the pairs
        seconds = count * whole * core.pairs / (at.micro_batch * at.tokens * at.document / 2.0)
        total.core_f += seconds
        total.core_b += (
            2.5 * seconds
        )  # the flash backward pass has five products, one of them the scores again
        total.again_core += seconds * again
    scan = count * (
        work.scan_flops / recipe.peak_bf16 + kernels.memory_seconds(nbytes=work.scan_bytes, chip=recipe.chip)
    )
    total.scan_f += scan
    total.scan_b += 2.5 * scan + scan * again


def _price_layer_messages(
    total: Parts, work: Work, count: Array, at: Layouts, recipe: Recipe, model: Model
) -> None:
    net = recipe.network
    tokens = tokens_of(at)
    if work.sums:
        hidden = tokens * model.hidden * BF16
        local = np.minimum(at.tp, at.domain)
        gather = collectives.seconds("all_gather", nbytes=hidden, ranks=at.tp, local=local, network=net)
        scatter = collectives.seconds("reduce_scatter", nbytes=hidden, ranks=at.tp, local=local, network=net)
        forward = count * work.sums * (gather + scatter)
        back = count * work.sums * (2.0 * gather + scatter + at.full * (gather + scatter))
        if work.hides:
            total.tp_f += forward
            total.tp_b += back
        else:
            total.tp_bare += forward + back
    if not isinstance(work.ring, float):
        local = np.clip(at.domain / at.tp, 1.0, at.cp)
        passed = collectives.seconds(
            "all_gather", nbytes=work.ring * at.cp, ranks=at.cp, local=local, network=net
        )
        total.ring_f += count * passed
        total.ring_b += 2.0 * count * passed
    if not isinstance(work.routed, float):
        local = np.clip(at.domain / at.etp, 1.0, at.ep)
        # NCCL counts an all-to-all's bytes with the share that a rank keeps
        nbytes = work.routed * at.ep / np.maximum(at.ep - 1.0, 1.0)
        sent = collectives.seconds("all_to_all", nbytes=nbytes, ranks=at.ep, local=local, network=net)
        total.ep_f += count * 2.0 * sent
        total.ep_b += count * (2.0 + at.full) * sent


def _price_head(total: Parts, model: Model, at: Layouts, recipe: Recipe) -> None:
    work = head_work(model, at)
    chip = recipe.chip
    for p in work.products:
        total.head_f += kernels.gemm_seconds(m=p.m, n=p.n, k=p.k, chip=chip, precision="bf16")
        total.head_b += kernels.gemm_seconds(m=p.m, n=p.k, k=p.n, chip=chip, precision="bf16")
        if recipe.backward_products > 1:
            total.head_b += kernels.gemm_seconds(m=p.n, n=p.k, k=p.m, chip=chip, precision="bf16")
    seconds = kernels.memory_seconds(nbytes=work.moved[""], chip=chip)
    total.head_f += seconds
    total.head_b += seconds


def _price_messages(total: Parts, model: Model, at: Layouts, recipe: Recipe) -> None:
    """Between stages: a stage's replicas fill whole domains before the next stage begins (Megatron's order)."""
    nbytes = tokens_of(at) / at.tp * model.hidden * BF16
    stage = at.gpus / at.pp
    local = np.where(stage * 2.0 <= at.domain, 2.0, 1.0)
    hop = collectives.seconds(
        "point_to_point", nbytes=nbytes, ranks=np.full(len(at), 2.0), local=local, network=recipe.network
    )
    total.hop += np.where(at.pp > 1, hop, 0.0)


def _price_step(total: Parts, own: Array, routed: Array, at: Layouts, recipe: Recipe) -> None:
    """Data parallelism. Experts are replicated dp x tp x cp / (ep x etp) times, everything else dp x cp times."""
    net = recipe.network
    ranks = at.dp * at.cp
    local = np.clip(at.domain / at.tp, 1.0, ranks)
    expert_ranks = np.maximum(at.dp * at.cp * at.tp / (at.ep * at.etp), 1.0)
    expert_local = np.clip(at.domain / (at.ep * at.etp), 1.0, expert_ranks)
    fsdp = at.sharding == 3
    shard = np.minimum(at.shard * np.where(fsdp, 1.0, at.cp), ranks)
    shard_local = np.minimum(local, shard)

    def both(kind: str, size: float, width: Array, near: Array) -> Array:
        seconds: Array = collectives.seconds(kind, nbytes=own * size, ranks=width, local=near, network=net)
        wide = np.minimum(width, expert_ranks)
        more: Array = collectives.seconds(
            kind, nbytes=routed * size, ranks=wide, local=np.minimum(expert_local, wide), network=net
        )
        return seconds + more

    gather = both("all_gather", recipe.gather_bytes, shard, shard_local)
    total.gather += np.where(fsdp, gather, 0.0)
    total.scatter += recipe.trained * np.where(
        fsdp, both("reduce_scatter", recipe.gradient_bytes, shard, shard_local), 0.0
    )
    across = np.maximum(ranks / shard, 1.0)
    trained = recipe.trained
    total.step_reduce += trained * np.where(
        fsdp,
        both("all_reduce", recipe.gradient_bytes, across, np.clip(local / shard, 1.0, across)) / shard,
        np.where(
            at.sharding == 0,
            both("all_reduce", recipe.gradient_bytes, ranks, local),
            both("reduce_scatter", recipe.gradient_bytes, ranks, local),
        ),
    )
    total.step_gather += np.where(
        fsdp | (at.sharding == 0), 0.0, trained * both("all_gather", recipe.gather_bytes, ranks, local)
    )
    divided = np.where(at.sharding == 0, 1.0, shard)
    states = own / divided + routed / np.minimum(divided, expert_ranks)
    total.step_update += kernels.memory_seconds(
        nbytes=states * recipe.trained * recipe.update_bytes, chip=recipe.chip
    )


def _stages(total: Parts, model: Model, at: Layouts) -> None:
    """Whole layers go to chunks; where places are left over, the embedding and the head take them."""
    depth = float(model.depth + model.mtp_layers)
    chunks = at.pp * at.virtual
    full = np.ceil(depth / chunks - 1e-9)
    spare = full * chunks - depth
    total.layers += np.where(at.pp > 1, full * chunks / depth, 1.0)
    total.head_share += np.where((at.pp > 1) & (spare >= 1.0), 0.3, 1.0)
