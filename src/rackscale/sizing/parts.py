"""What the parts of a step take at nominal speed, before calibration: seconds by class of kernel and of message.

`parts` prices the counts of work.py with the kernel curves and the network; it knows no framework. step.py puts the
parts together. All arrays have one entry per layout; per micro-batch unless the name says step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from rackscale import collectives, kernels
from rackscale.collectives import Kind
from rackscale.models.description import Model
from rackscale.sizing.experts import experts_of
from rackscale.sizing.layout import MODULES, SHARDINGS, Array, Layouts
from rackscale.sizing.memory import kept_of_layer
from rackscale.sizing.recipe import FUSED_EXPERTS, Recipe, fuses_experts
from rackscale.sizing.stage import (
    chunk_layers,
    depth_of,
    expert_ranks,
    high_share,
    matrices_of,
    vocabulary,
    weights_of,
    widths,
)
from rackscale.sizing.work import (
    BF16,
    Product,
    Work,
    head_work,
    layers_of,
    reached,
    tokens_of,
    works_of,
)

TILE = 128.0
"""Keys that a tile of flash attention computes beyond a window's edge."""
BACK_CORE = 2.5
"""Flash attention's backward pass against its forward one: five products, the scores again among them, against two
(Dao, arXiv:2307.08691). A state space's chunks are taken to be alike (assumed)."""
BACK_MOVED = 1.6
"""Bytes that memory-bound kernels move going backward against forward (assumed): a norm reads its input, its output's
gradient and the residual's (5 passes or 6 against 5), an activation three tensors and writes two (5 against 3)."""
BACK_APART = 2.0
"""The same of an activation whose elementwise kernels run apart (assumed): each derivative reads what went in, too."""
PRODUCTS = 3.0
"""Kernels per product and expert: forward, and the gradients of its input and its weights."""
SPARE_HEAD = 0.3
"""How much of the head adds to the slowest stage where a layer's place is left free for it (assumed: it takes the time
of about one layer of a large model, and more of a small one)."""


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
    pieces: Array
    """Kernels that quantise one expert's input or gradient: a count."""
    routing_f: Array
    """Permuting tokens for experts and back."""
    routing_b: Array
    again_low: Array
    """Computed again going backward, by class as above."""
    again_high: Array
    again_cast: Array
    again_routing: Array
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
    swap: Array
    """Heads exchanged for tokens and back, both ways; nothing hides it."""
    ep: Array
    """Tokens to experts and back, both ways, as if all were in one domain."""
    ep_far: Array
    """The same over the fabric, where they are in several domains."""
    offload: Array
    """Activations that go to host memory; they come back as fast."""
    hop: Array
    """One activation passed to the next stage."""
    gather: Array
    """FSDP: all parameters of a stage gathered once."""
    scatter: Array
    """FSDP, and ZeRO-2 but for the last micro-batch: all gradients of a stage scattered once."""
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

    def where(self, chosen: npt.NDArray[np.bool_]) -> Parts:
        """Some entries."""
        return Parts(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


def parts(model: Model, at: Layouts, recipe: Recipe) -> Parts:
    """The parts of a step of `model`, with `recipe`, on the recipe's system."""
    zero = np.zeros(len(at))
    pricer = _Pricer(model, at, recipe, Parts(**{f.name: zero.copy() for f in fields(Parts)}))
    for kind in layers_of(model):
        works = works_of(kind, model, at)
        for work in works:
            pricer.layer(work, kind.count / at.pp)
        pricer.held = pricer.held + weights_of(works, at, recipe).times(kind.count / at.pp)
        pricer.offloaded(works, kind.count / at.pp)
    pricer.head()
    pricer.hops()
    pricer.step()
    pricer.stages()
    return pricer.total


class _Pricer:
    """Adds up seconds in `total`, and the parameters on a GPU of an average stage: `held`."""

    def __init__(self, model: Model, at: Layouts, recipe: Recipe, total: Parts) -> None:
        self.model, self.at, self.recipe, self.total = model, at, recipe, total
        self.fused = fuses_experts(recipe, experts_of(model))
        # at most, one rank has all tokens; with all experts on every rank none has more than another
        self.imbalance: Array = np.minimum(recipe.imbalance, at.ep)
        self.again = dict(zip(MODULES, at.again, strict=True))
        self.held = vocabulary(model, at, matrices_of(model) / at.pp)
        self.newton: Array = np.zeros(len(at))

    def layer(self, work: Work, count: Array) -> None:
        """`count` layers' part of an average stage."""
        total = self.total
        for p in work.products:
            high = high_share(p, self.recipe)
            if high < 1.0:
                self.product(p, count * (1.0 - high), low=self.recipe.is_low)
            if high > 0.0:
                self.product(p, count * high, low=False)
        self.cores(work, count)
        self.moved(work, count)
        total.kernels_f += count * work.kernels
        total.kernels_b += count * (work.kernels + len(work.products)) * (1.0 + self.at.full / 2.0)
        if not self.recipe.drops:
            twice = 2.0 if self.recipe.is_low else 1.0
            total.kernels_experts += (PRODUCTS + self.at.full) * count * work.expert_kernels * twice
        self.tensor_messages(work, count)
        self.context_messages(work, count)
        self.expert_messages(work, count)

    def redone(self, module: str) -> Array:
        """Where it is computed again."""
        return np.maximum(self.at.full, self.again.get(module, 0.0))

    def bytes_seconds(self, nbytes: Array | float) -> Array:
        return kernels.memory_seconds(nbytes=nbytes, chip=self.recipe.chip)

    def product(self, p: Product, count: Array, *, low: bool) -> None:
        """Forward, and the gradients of its input and, where weights are trained, of its weights."""
        total, both = self.total, self.recipe.backward_products > 1
        # the busiest rank's experts have more tokens, and the others wait for it
        m = p.m if p.groups is None else p.m * self.imbalance
        precision = self.recipe.products if low else "bf16"
        forward = count * self._product(m, p.n, p.k, p.groups, precision)
        back = count * self._product(m, p.k, p.n, p.groups, precision)
        if both:
            back = back + count * (
                self._product(p.n, p.k, m, None, precision)
                if p.groups is None
                else self._product(m, p.k, p.n, p.groups, precision)
            )
        if self.recipe.optimizer == "muon":
            self.newton = self.newton + count * _newton_schulz(p)
        if p.groups is not None:
            total.grouped_f += forward
            total.grouped_b += back
            total.again_grouped += forward * self.redone(p.module)
        else:
            if self.recipe.task == "lora" and self.recipe.family == "torch":
                total.moved_f += count * self.bytes_seconds(p.m * (p.k + 4.0 * p.n) * BF16)
                total.moved_b += count * self.bytes_seconds(p.m * (4.0 * p.k + 2.0 * p.n) * BF16)
            if low:
                total.low_f += forward
                total.low_b += back
                total.again_low += forward * self.redone(p.module)
            else:
                total.high_f += forward
                total.high_b += back
                total.again_high += forward * self.redone(p.module)
        if low:
            self.casts(p, count)

    def _product(self, m: Array, n: Array, k: Array, groups: Array | None, precision: str) -> Array:
        chip = self.recipe.chip
        if groups is None:
            return kernels.gemm_seconds(m=m, n=n, k=k, chip=chip, precision=precision)
        return kernels.grouped_gemm_seconds(groups=groups, m=m, n=n, k=k, chip=chip, precision=precision)

    def casts(self, p: Product, count: Array) -> None:
        """Inputs and gradients of outputs are read in BF16 and written twice: as they are, and transposed."""
        each = BF16 + 2.0 * self.recipe.product_bytes
        rows = count * p.m * (1.0 if p.groups is None else p.groups * self.imbalance)
        if p.groups is not None:
            if self.fused:
                self.total.cast_f += self.bytes_seconds(rows * (p.k + p.n) * each)
            else:
                self.total.cast_experts += self.bytes_seconds(rows * (p.k + p.n) * each)
                self.total.pieces += count * p.groups * PRODUCTS
        else:
            forward = self.bytes_seconds(rows * p.k * each)
            self.total.cast_f += forward
            self.total.again_cast += forward * self.redone(p.module)
            self.total.cast_b += self.bytes_seconds(rows * p.n * each)

    def cores(self, work: Work, count: Array) -> None:
        """Attention, and the chunks of state-space and linear attention."""
        total, at, recipe = self.total, self.at, self.recipe
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
            start = kernels.attention_seconds(
                tokens_q=1.0, tokens_kv=1.0, heads=1.0, head_dim=1.0, causal=True, batch=0.0, chip=recipe.chip
            )
            # a window or a rank's part of the context computes its share of the pairs, in whole tiles
            tiles = np.where(core.reach < at.document, tokens_of(at) * TILE, 0.0)
            share = (core.pairs + tiles) / (at.micro_batch * at.tokens * at.document / 2.0)
            seconds = count * ((whole - start) * np.minimum(share, 1.0) + start)
            total.core_f += seconds
            total.core_b += BACK_CORE * seconds
            total.again_core += seconds * self.redone("attention")
        scan = count * (work.scan_flops / recipe.peak_bf16 + self.bytes_seconds(work.scan_bytes))
        total.scan_f += scan
        total.scan_b += BACK_CORE * scan + scan * self.redone("attention")

    def moved(self, work: Work, count: Array) -> None:
        """Memory-bound kernels; what has no module, in a layer of experts, is the routing of tokens."""
        total = self.total
        for module, nbytes in work.moved.items():
            seconds = count * self.bytes_seconds(nbytes)
            if module == "" and not isinstance(work.routed, float):
                seconds = seconds * self.imbalance
                total.routing_f += seconds
                total.routing_b += seconds
                total.again_routing += seconds * self.redone(module)
            else:
                total.moved_f += seconds
                total.moved_b += BACK_MOVED * seconds
                total.again_moved += seconds * self.redone(module)
        if self.recipe.year < FUSED_EXPERTS:
            apart = count * self.bytes_seconds(work.unfused)
            total.moved_f += apart
            total.moved_b += BACK_APART * apart
            total.again_moved += apart * self.redone("activation")

    def offloaded(self, works: Sequence[Work], count: Array) -> None:
        """What the backward pass needs of some layers waits in host memory."""
        if self.at.offload.any():
            _, kept = kept_of_layer(works, self.model, self.at, self.recipe)
            self.total.offload += count * kept * self.at.offload / self.recipe.host_bytes_per_s

    # -- messages ----------------------------------------------------------------------------------------------------

    def message(self, kind: Kind, nbytes: Array, ranks: Array, local: Array) -> Array:
        """`local` is less than one where a group's next rank is further than a domain away."""
        return collectives.seconds(
            kind, nbytes=nbytes, ranks=ranks, local=local, leaf=self.leaf(local), network=self.recipe.network
        )

    def leaf(self, local: Array) -> Array | None:
        """Of a group that has `local` ranks in a domain, those under a leaf switch; None: all."""
        gpus = self.recipe.leaf_gpus
        return None if gpus is None else local * (gpus / self.at.domain)

    def tensor_messages(self, work: Work, count: Array) -> None:
        """Sequence parallelism, arXiv:2205.05198: gathered before a part, scattered after it, and back."""
        if not work.sums:
            return
        at, total = self.at, self.total
        hidden = tokens_of(at) * self.model.hidden * BF16
        local = np.minimum(at.tp, at.domain)
        gather = self.message("all_gather", hidden, at.tp, local)
        scatter = self.message("reduce_scatter", hidden, at.tp, local)
        forward = count * work.sums * (gather + scatter)
        back = count * work.sums * (2.0 * gather + scatter + at.full * (gather + scatter))
        if work.hides:
            total.tp_f += forward
            total.tp_b += back
        else:
            total.tp_bare += forward + back

    def context_messages(self, work: Work, count: Array) -> None:
        """Keys and values pass every rank of a ring, their gradients too; or heads are swapped for tokens."""
        if isinstance(work.ring, float):
            return
        at = self.at
        local = np.clip(at.domain / at.tp, 1.0, at.cp)
        swaps = at.ulysses * np.ones(len(at)) if not isinstance(work.swapped, float) else np.zeros(len(at))
        passed = count * self.message("all_gather", work.ring * at.cp, at.cp, local) * (1.0 - swaps)
        self.total.ring_f += passed
        self.total.ring_b += (2.0 + at.full) * passed
        if swaps.any():
            swapped = self.message("all_to_all", work.swapped * np.ones(len(at)), at.cp, local)
            self.total.swap += (2.0 + at.full) * count * swapped * swaps

    def expert_messages(self, work: Work, count: Array) -> None:
        """Tokens go to their experts and come back; so do gradients."""
        if isinstance(work.routed, float):
            return
        at = self.at
        local = np.clip(at.domain / at.etp, 1.0, at.ep)
        near, far = self.dispatched(work, local)
        # there and back, and the gradients too
        times = count * 2.0 * (2.0 + self.redone("experts")) * self.imbalance
        self.total.ep += times * near
        self.total.ep_far += times * far
        if (at.etp > 1).any():
            rows = np.asarray(work.tokens_bytes * work.active * at.etp)
            gather = self.message("all_gather", rows, at.etp, at.etp)
            scatter = self.message("reduce_scatter", rows, at.etp, at.etp)
            self.total.ep += count * (2.0 + self.redone("experts")) * (gather + scatter)

    def dispatched(self, work: Work, local: Array) -> tuple[Array, Array]:
        """Seconds of tokens to their experts over NVLink, as if all were in one domain, and over the fabric.

        Of `local` ranks in each domain. Both flow at once: see step.py.
        """
        at, each = self.at, np.asarray(work.tokens_bytes)
        domains = at.ep / local
        if self.recipe.dispatcher == "alltoall":
            inside = each * work.active * (at.ep - 1.0) / at.ep
            across = each * work.active * (at.ep - local) / at.ep
        else:
            inside = each * (at.ep - 1.0) * reached(at.ep, work.active)
            across = each * (domains - 1.0) * reached(domains, work.active)
        near = self.dispatch(inside, 0.0, at.ep)
        far = np.where(domains > 1.0, self.dispatch(0.0, across, local), 0.0)
        return near, far

    def dispatch(self, inside: Array | float, across: Array | float, local: Array) -> Array:
        return collectives.dispatch(
            inside_bytes=inside,
            across_bytes=across,
            ranks=self.at.ep,
            local=local,
            leaf=self.leaf(local),
            network=self.recipe.network,
        )

    def hops(self) -> None:
        """Between stages: a stage's replicas fill whole domains before the next stage begins (Megatron's order)."""
        at = self.at
        nbytes = tokens_of(at) / at.tp * self.model.hidden * BF16
        local = np.minimum(2.0 * at.domain / at.gpus, 2.0)
        hop = self.message("point_to_point", nbytes, np.full(len(at), 2.0), local)
        self.total.hop += np.where(at.pp > 1, hop, 0.0)

    # -- once per step -----------------------------------------------------------------------------------------------

    def head(self) -> None:
        total, work = self.total, head_work(self.model, self.at)
        for p in work.products:
            total.head_f += self._product(p.m, p.n, p.k, None, "bf16")
            total.head_b += self._product(p.m, p.k, p.n, None, "bf16")
            if self.recipe.backward_products > 1:
                total.head_b += self._product(p.n, p.k, p.m, None, "bf16")
        seconds = self.bytes_seconds(work.moved[""])
        total.head_f += seconds
        total.head_b += seconds
        # the embedding's sums are scattered and the head's inputs gathered, going backward the other way round
        hidden = tokens_of(self.at) * self.model.hidden * BF16
        local = np.minimum(self.at.tp, self.at.domain)
        gather = self.message("all_gather", hidden, self.at.tp, local)
        scatter = self.message("reduce_scatter", hidden, self.at.tp, local)
        total.tp_bare += 2.0 * (gather + scatter) / self.at.pp

    def step(self) -> None:
        """Data parallelism and the optimizer.

        Experts are replicated dp x cp x tp / (ep x etp) times, everything else dp x cp times.
        """
        total, at, recipe = self.total, self.at, self.recipe
        ranks = at.dp * at.cp
        local = np.clip(at.domain / at.tp, 1.0, ranks)
        fsdp = at.sharding == SHARDINGS.index("fsdp")
        replicated = at.sharding == SHARDINGS.index("none")
        shard, expert_shard = widths(at)
        across = np.maximum(ranks / shard, 1.0)

        def within(kind: Kind, sizes: tuple[Array, Array]) -> Array:
            return self.over(kind, sizes, shard, np.minimum(local, shard))

        def over_all(kind: Kind, sizes: tuple[Array, Array]) -> Array:
            return self.over(kind, sizes, ranks, local)

        gradients = self.held.sizes(recipe.gradient_bytes, recipe.gradient_bytes)
        weights = self.held.sizes(recipe.gather_bytes)
        total.gather += np.where(fsdp, within("all_gather", weights), 0.0)
        total.scatter += recipe.trained * np.where(fsdp, within("reduce_scatter", gradients), 0.0)
        # ZeRO-2 keeps no whole gradients: each micro-batch's are scattered, the last one's by the step's messages
        scatters = np.where(at.sharding == SHARDINGS.index("zero2"), 1.0 - 1.0 / at.micro_batches, 0.0)
        if scatters.any():
            total.scatter += recipe.trained * scatters * over_all("reduce_scatter", gradients)
        between = self.over("all_reduce", gradients, across, np.minimum(local / shard, across)) / shard
        total.step_reduce += recipe.trained * np.where(
            fsdp,
            between,
            np.where(replicated, over_all("all_reduce", gradients), over_all("reduce_scatter", gradients)),
        )
        total.step_gather += recipe.trained * np.where(
            fsdp | replicated, 0.0, over_all("all_gather", weights)
        )
        divided = np.where(replicated, 1.0, shard)
        states = self.held.own / divided
        states = states + self.held.routed / np.where(replicated, 1.0, expert_shard)
        total.step_update += self.bytes_seconds(states * recipe.trained * recipe.update_bytes)
        # each rank orthogonalises its share of the matrices
        total.step_update += recipe.trained * self.newton / divided / recipe.peak_bf16

    def over(self, kind: Kind, sizes: tuple[Array, Array], width: Array, near: Array) -> Array:
        """Own parameters of that many bytes over `width` ranks, `near` of them in a domain; experts' over theirs.

        Frameworks send them layer by layer, so that they can hide behind the layers' work.
        """
        at = self.at
        pieces = np.maximum(depth_of(self.model) / at.pp, 1.0)
        own, routed = (size / pieces for size in sizes)
        wide = np.minimum(width, expert_ranks(at))
        local = np.minimum(at.domain / (at.ep * at.etp), wide)
        return pieces * (self.message(kind, own, width, near) + self.message(kind, routed, wide, local))

    def stages(self) -> None:
        """Whole layers go to chunks; where places are left over, the embedding and the head take them."""
        at = self.at
        depth, chunks = depth_of(self.model), at.pp * at.virtual
        full = chunk_layers(self.model, at)
        spare = full * chunks - depth
        self.total.layers += np.where(at.pp > 1, full * chunks / depth, 1.0)
        self.total.head_share += np.where((at.pp > 1) & (spare >= 1.0), SPARE_HEAD, 1.0)


def _newton_schulz(p: Product) -> Array:
    """FLOPs of Muon's five Newton-Schulz iterations over a weight of m x n, m the smaller: X X', its square, their
    product with X (Jordan et al., 2024, kellerjordan.github.io/posts/muon)."""
    small, large = np.minimum(p.n, p.k), np.maximum(p.n, p.k)
    each = 5.0 * (4.0 * small * small * large + 2.0 * small**3)
    return np.asarray(each * (1.0 if p.groups is None else p.groups))
