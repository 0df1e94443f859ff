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

FEW_RANKS = {"all_reduce": 0.3}
"""Few ranks use fewer of a GPU's links: n of them reach n / (n + this) of the rate, 1.0 where not told."""

EXCHANGE = 0.93
"""An all-to-all's rate over an all-gather's: 0.87 to 0.98 on seven accelerators."""


def seconds(kind: Kind, *, nbytes: Number, ranks: Number, local: Number, network: Network) -> Array:
    """One collective among `ranks` GPUs, `local` of them in each NVLink domain, s.

    `nbytes` is the message as NCCL counts it: what each rank contributes to an all-reduce, sends in an all-to-all or a
    point-to-point, and holds after an all-gather or before a reduce-scatter. Zero where `ranks` is 1 or less.

    A large message takes the longer of the time inside domains and across them, which are pipelined. Inside, a ring
    passes (ranks - 1)/ranks of it through each GPU, twice for an all-reduce, or the switches add it up (NVLink SHARP).
    Across, an all-reduce moves 2 (domains - 1)/domains of it (a tree), a ring nearly all, through at most
    `network.rails` NICs of a domain; an all-to-all uses each GPU's own. A small message pays for the steps of a ring,
    or of a tree where that is less (Thakur, Rabenseifner, Gropp 2005, doi:10.1177/1094342005051521).
    """
    message = np.asarray(nbytes, float)
    n = np.maximum(np.asarray(ranks, float), 1.0)
    inside = np.minimum(np.maximum(np.asarray(local, float), 1.0), n)
    domains = n / inside
    pace = np.maximum(_inside(kind, n, network), _across(kind, n, inside, domains, network))
    outside = (domains > 1.0) * _overhead(kind, network.out, message, domains)
    time = message * pace + _overhead(kind, network.up, message, n) + outside
    return np.asarray((n > 1.0) * time)


def dispatch(
    *,
    across_bytes: Number,
    inside_bytes: Number,
    ranks: Number,
    local: Number,
    network: Network,
) -> Array:
    """Tokens on their way to their experts among `ranks` GPUs, `local` of them in each NVLink domain, s.

    As DeepEP and HybridEP send them: a token crosses the fabric once per domain that holds an expert of its own,
    through its GPU's own NIC, and is forwarded over NVLink there. `across_bytes` is what one rank sends to other
    domains; `inside_bytes` what it sends to other ranks of its domain, its own tokens and those that it forwards. Both
    flow at once, so the longer counts, with one message's latency on each tier. Balanced: every rank sends as much. The
    way back (combine) takes the same time for its own bytes. Zero where `ranks` is 1 or less.
    """
    n = np.maximum(np.asarray(ranks, float), 1.0)
    inside = np.minimum(np.maximum(np.asarray(local, float), 1.0), n)
    up, out = network.up, network.out
    over_links = np.asarray(inside_bytes, float) / (EXCHANGE * up.bytes_per_s)
    over_fabric = np.asarray(across_bytes, float) / (EXCHANGE * out.bytes_per_s)
    latency = up.latency_s + up.step_s + (n > inside) * (out.latency_s + out.step_s)
    return np.asarray((n > 1.0) * (np.maximum(over_links, over_fabric) + latency))


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


def _across(kind: Kind, n: Array, inside: Array, domains: Array, network: Network) -> Array:
    """Seconds per byte of the message between domains."""
    byte_s = 1.0 / network.out.bytes_per_s
    if kind == "all_to_all":
        return np.asarray((n - inside) * byte_s / n)
    if kind == "point_to_point":
        return np.asarray((domains > 1.0) * byte_s)
    nics = np.minimum(inside, float(network.rails))
    if kind == "all_reduce":
        return np.asarray((domains - 1.0) * (2.0 * byte_s) / (domains * nics))
    apart = (domains > 1.0) * byte_s / nics
    return np.asarray(apart if kind == "broadcast" else apart * (n - 1.0) / n)


def _overhead(kind: Kind, tier: Tier, message: Array, n: Array) -> Array:
    """What a tier costs besides its bandwidth: its steps, and filling the pipeline where the message is large."""
    if kind == "point_to_point":  # nobody else to wait for
        return np.asarray(tier.latency_s + tier.step_s)
    rounds = 2.0 if kind == "all_reduce" else 1.0
    ring = n - 1.0
    steps = np.minimum(ring, TREE_STEP * np.log2(n))
    large = message / (message + tier.ramp_bytes)
    full = tier.ramp_s + (rounds * tier.fill_s) * ring
    return np.asarray(tier.latency_s + (rounds * tier.step_s) * steps + large * full)
