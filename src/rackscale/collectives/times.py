"""A collective's time. Every argument but the kind may be an array; they broadcast, and no element is looped over."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from rackscale.collectives.tiers import Network, Tier

Array: TypeAlias = NDArray[np.float64]
Number: TypeAlias = Array | float
Kind: TypeAlias = Literal[
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "point_to_point", "broadcast"
]
KINDS: tuple[Kind, ...] = get_args(Kind)

TREE_STEP = 2.5
"""Steps of a ring that a tree's step costs; it needs log2 of the ranks. A tree then wins from 8 ranks on, as NCCL's."""

ROUNDS = {"all_reduce": 2.0}
"""Times that a ring goes round, 1.0 where not told."""

FEW_RANKS = {"all_reduce": 0.3}
"""Few ranks use fewer of a GPU's links: n of them reach n / (n + this) of the rate, 1.0 where not told."""

EXCHANGE = 0.93
"""An all-to-all's rate over an all-gather's: 0.87 to 0.98 on seven accelerators."""


def seconds(
    kind: Kind, *, nbytes: Number, ranks: Number, local: Number, network: Network, leaf: Number | None = None
) -> Array:
    """One collective among `ranks` GPUs, `local` of them in each NVLink domain, `leaf` under each leaf switch, s.

    `nbytes` is the message as NCCL counts it: what each rank contributes to an all-reduce, sends in an all-to-all or a
    point-to-point, and holds after an all-gather or before a reduce-scatter. Zero where `ranks` is 1 or less. `leaf`
    None: all are under one. Where domains hold unequal parts of the ranks, `local` is the emptiest one's.

    A large message takes the longest of its times inside domains, between them and between leaves, which are pipelined.
    Inside, a ring passes (ranks - 1)/ranks of it through each GPU, twice for an all-reduce, or the switches add it up
    (NVLink SHARP). Between domains, rings and trees use at most `network.rails` NICs of each; an all-to-all uses each
    GPU's own. Between leaves they share the uplinks: one NIC's worth for each `network.oversubscription` GPUs. A small
    message pays for the steps of a ring, or of a tree where that is less (Thakur, Rabenseifner, Gropp 2005,
    doi:10.1177/1094342005051521).
    """
    message = np.asarray(nbytes, float)
    n, inside = _ranks(ranks, local)
    domains = n / inside
    nics = np.minimum(inside, network.rails)
    byte_s = 1.0 / network.out.bytes_per_s
    pace = np.maximum(_inside(kind, n, network), _between(kind, n, inside, nics, byte_s))
    time = _overhead(kind, network.up, message, n)
    time = time + (domains > 1.0) * _overhead(kind, network.out, message, domains)
    if leaf is not None:
        under = np.minimum(np.maximum(leaf, inside), n)
        uplink_s = byte_s * network.oversubscription
        uplinks = np.minimum(nics * network.oversubscription, under)
        pace = np.maximum(pace, _between(kind, n, under, uplinks, uplink_s))
        time = time + _steps_s(kind, network.hop_s, n / under)
    return np.asarray((n > 1.0) * (message * pace + time))


def dispatch(
    *,
    across_bytes: Number,
    inside_bytes: Number,
    ranks: Number,
    local: Number,
    network: Network,
    leaf: Number | None = None,
) -> Array:
    """Tokens on their way to their experts among `ranks` GPUs, placed as `seconds` tells, s.

    As DeepEP and HybridEP send them: a token crosses the fabric once per domain that holds an expert of its own,
    through its GPU's own NIC, and is forwarded over NVLink there. `across_bytes` is what one rank sends to other
    domains; `inside_bytes` what it sends to other ranks of its domain, its own tokens and those that it forwards. Both
    flow at once, so the longer counts, with one message's latency on each tier. Balanced: every rank sends as much. The
    way back (combine) takes the same time for its own bytes. Zero where `ranks` is 1 or less.
    """
    n, inside = _ranks(ranks, local)
    up, out = network.up, network.out
    across = np.asarray(across_bytes, float) / (EXCHANGE * out.bytes_per_s)
    time = np.maximum(np.asarray(inside_bytes, float) / (EXCHANGE * up.bytes_per_s), across)
    latency = up.latency_s + up.step_s + (n > inside) * (out.latency_s + out.step_s)
    if leaf is not None:
        under = np.minimum(np.maximum(leaf, inside), n)
        apart = (n - under) / np.maximum(n - inside, 1.0)  # of what leaves the domain, what leaves the leaf
        time = np.maximum(time, across * network.oversubscription * apart)
        latency = latency + (n > under) * network.hop_s
    return np.asarray((n > 1.0) * (time + latency))


def _ranks(ranks: Number, local: Number) -> tuple[Array, Array]:
    """Of the collective, and of its part in a domain; at least one."""
    n = np.maximum(np.asarray(ranks, float), 1.0)
    return n, np.minimum(np.maximum(np.asarray(local, float), 1.0), n)


def _inside(kind: Kind, n: Array, network: Network) -> Array:
    """Seconds per byte of the message over NVLink."""
    byte_s = 1.0 / network.up.bytes_per_s
    few = FEW_RANKS.get(kind, 1.0)
    if kind == "broadcast":
        return np.asarray(byte_s)
    if kind == "point_to_point":  # an exchange of two, each of which keeps half
        return np.asarray((1.0 + few / 2.0) * byte_s / EXCHANGE)
    part = 1.0 / n
    passes = (1.0 - part) * (1.0 + few * part)
    if kind != "all_reduce":
        return np.asarray(passes * (byte_s / EXCHANGE if kind == "all_to_all" else byte_s))
    ring = passes * (2.0 * byte_s)
    return np.asarray(np.minimum(ring, 1.0 / network.sharp_bytes_per_s) if network.sharp else ring)


def _between(kind: Kind, n: Array, group: Array, nics: Array, byte_s: float) -> Array:
    """Seconds per byte of the message between groups of ranks: domains, or what is under a leaf.

    A ring visits one group after the other, so that one flow per NIC leaves each. NCCL's two binary trees (Sanders,
    Speck, Traff 2009, doi:10.1016/j.parco.2009.09.001) send half the message each: once where there are two groups,
    from four groups on twice, as a ring does; three take one and a half.
    """
    if kind == "all_to_all":
        return np.asarray((n - group) * byte_s / n)
    if kind == "point_to_point":
        return np.asarray((n > group) * byte_s)
    apart = (n > group) * byte_s / nics
    if kind == "all_reduce":
        trees = np.maximum(0.5 * n / group, 1.0)  # up to the twice that a ring is less than
        return np.asarray(np.minimum(trees, 2.0 - 2.0 / n) * apart)
    return np.asarray(apart if kind == "broadcast" else apart * (n - 1.0) / n)


def _steps_s(kind: Kind, step_s: float, n: Array) -> Array:
    """Steps of a ring of `n`, or of a tree where that is less; twice for an all-reduce; one of a point-to-point."""
    if kind == "point_to_point":
        return np.asarray((n > 1.0) * step_s)
    return np.asarray(np.minimum(n - 1.0, TREE_STEP * np.log2(n)) * (ROUNDS.get(kind, 1.0) * step_s))


def _overhead(kind: Kind, tier: Tier, message: Array, n: Array) -> Array:
    """What a tier costs besides its bandwidth: its steps, and filling the pipeline where the message is large."""
    if kind == "point_to_point":  # nobody else to wait for
        return np.asarray(tier.latency_s + tier.step_s)
    large = message / (message + tier.ramp_bytes)
    full = tier.ramp_s + (ROUNDS.get(kind, 1.0) * tier.fill_s) * (n - 1.0)
    return np.asarray(tier.latency_s + _steps_s(kind, tier.step_s, n) + large * full)
