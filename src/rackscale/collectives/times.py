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
"""A tree's step costs this many steps of a ring, which it needs log2 of: where a tree starts to win, at 8 ranks."""


def seconds(kind: Kind, *, nbytes: Number, ranks: Number, local: Number, network: Network) -> Array:
    """One collective among `ranks` GPUs, `local` of them in each NVLink domain, s.

    `nbytes` is the message as NCCL counts it: what each rank contributes to an all-reduce, sends in an all-to-all or a
    point-to-point, and holds after an all-gather or before a reduce-scatter. Zero where `ranks` is 1 or less.

    Large messages take the longer of the time inside domains and across them (they are pipelined). Inside, a ring
    passes (ranks - 1)/ranks of the message through each GPU, twice for an all-reduce, or the switches add it up (NVLink
    SHARP). Across, an all-reduce moves 2 (domains - 1)/domains of it (a tree), through at most `network.rails` NICs of
    a domain; an all-to-all uses each GPU's own NIC. Small messages pay for steps: of a ring, or of a tree where that
    needs fewer (Thakur, Rabenseifner, Gropp 2005, doi:10.1177/1094342005051521).
    """
    message = np.asarray(nbytes, float)
    n = np.maximum(np.asarray(ranks, float), 1.0)
    inside = np.clip(np.asarray(local, float), 1.0, n)
    domains = n / inside
    rounds = 2.0 if kind == "all_reduce" else 1.0
    passes = 1.0 if kind in {"point_to_point", "broadcast"} else rounds * (n - 1.0) / n
    up_s = passes / network.up.bytes_per_s
    if kind == "all_reduce" and network.sharp:
        up_s = np.minimum(up_s, 1.0 / network.sharp_bytes_per_s)
    out_s = _crossing(kind, n, inside, domains, network) / network.out.bytes_per_s
    hops = 1.0 if kind == "point_to_point" else None
    time = message * np.maximum(up_s, out_s)
    time = time + _overhead(network.up, message, n, rounds, hops)
    time = time + np.where(domains > 1.0, _overhead(network.out, message, domains, rounds, hops), 0.0)
    return np.asarray(np.where(n > 1.0, time, 0.0))


def _crossing(kind: Kind, n: Array, inside: Array, domains: Array, network: Network) -> Array:
    """The part of the message that leaves through each NIC in use."""
    if kind == "all_to_all":
        return np.asarray((n - inside) / n)
    apart = domains > 1.0
    if kind == "point_to_point":
        return np.asarray(np.where(apart, 1.0, 0.0))
    nics = np.minimum(inside, float(network.rails))
    if kind == "all_reduce":
        return np.asarray(2.0 * (domains - 1.0) / domains / nics)
    part = 1.0 if kind == "broadcast" else (n - 1.0) / n
    return np.asarray(np.where(apart, part, 0.0) / nics)


def _overhead(tier: Tier, message: Array, n: Array, rounds: float, hops: float | None) -> Array:
    """What steps cost besides bandwidth; `hops` of them where not of a ring over `n`."""
    ring = rounds * (n - 1.0) if hops is None else np.full_like(n, hops)
    steps = np.minimum(ring, rounds * TREE_STEP * np.log2(n)) if hops is None else ring
    large = message / (message + tier.ramp_bytes)
    return np.asarray(tier.latency_s + tier.step_s * steps + large * (tier.ramp_s + tier.fill_s * ring))
