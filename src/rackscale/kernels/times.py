"""Kernels' times from their curves. Every argument may be an array; they broadcast, and no element is looped over."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rackscale.kernels.curves import Curve, Kernels
from rackscale.kernels.curves import kernels as measured

Array: TypeAlias = NDArray[np.float64]
Number: TypeAlias = Array | float


def gemm_seconds(
    *,
    m: Number,
    n: Number,
    k: Number,
    chip: str,
    precision: str,
    count: Number = 1.0,
    kernels: Kernels | None = None,
) -> Array:
    """`count` products of (m, k) by (k, n), one after another, s.

    Each takes the longer of 2 (m + lost_m)(n + lost_n)(k + lost_k) / flop_per_s and of the time to stream its operands
    and its result, and `launch_s`. Raises UnknownNameError for an accelerator or precision without a curve.
    """
    curve = (kernels or measured()).gemm(chip, precision)
    return np.asarray(count * (_product(curve, m, n, k) + curve.launch_s))


def grouped_gemm_seconds(
    *,
    groups: Number,
    m: Number,
    n: Number,
    k: Number,
    chip: str,
    precision: str,
    kernels: Kernels | None = None,
) -> Array:
    """One launch of `groups` products of (m, k) by (k, n): one matrix of each expert of a GPU, m tokens each, s.

    As `gemm_seconds`, `groups` times but launched once, by a curve of its own. Below bf16 the measured kernels quantise
    a token once, not once for each of its experts. Raises UnknownNameError as `gemm_seconds` does.
    """
    curve = (kernels or measured()).gemm(chip, precision, grouped=True)
    return np.asarray(groups * _product(curve, m, n, k) + curve.launch_s)


def attention_seconds(
    *,
    tokens_q: Number,
    tokens_kv: Number,
    heads: Number,
    head_dim: Number,
    causal: Number | bool,
    chip: str,
    batch: Number = 1.0,
    kernels: Kernels | None = None,
) -> Array:
    """Fused attention in bf16, the forward pass, s.

    4 x batch x heads x head_dim x pairs FLOPs, where pairs = tokens_q x tokens_kv, or, where `causal` (the queries are
    the last tokens), tokens_q x (tokens_kv - (tokens_q - 1) / 2) of them (Dao, arXiv:2307.08691). `head_dim` is the
    mean of the dimensions of keys and values where they differ.
    """
    curve = (kernels or measured()).chip(chip).attention
    q, kv = np.asarray(tokens_q, float), np.asarray(tokens_kv, float)
    seen = kv - np.asarray(causal, float) * 0.5 * np.maximum(q - 1.0, 0.0)
    rows = np.asarray(batch, float) * heads * (q + curve.lost_tokens)
    work = rows * seen * (np.asarray(head_dim, float) + curve.lost_dim)
    return np.asarray(work * (4.0 / curve.flop_per_s) + curve.launch_s)


def memory_seconds(*, nbytes: Number, chip: str, kernels: Kernels | None = None) -> Array:
    """A kernel that reads and writes `nbytes` of accelerator memory in all and computes next to nothing, s."""
    used = (kernels or measured()).chip(chip).memory
    return np.asarray(np.asarray(nbytes, float) / used.hbm_bytes_per_s + used.launch_s)


def _product(curve: Curve, m: Number, n: Number, k: Number) -> Array:
    m, n, k = np.asarray(m, float), np.asarray(n, float), np.asarray(k, float)
    compute = (m + curve.lost_m) * (n + curve.lost_n) * (k + curve.lost_k) * (2.0 / curve.flop_per_s)
    stream = (curve.operand_bytes * k * (m + n) + 2.0 * m * n) / curve.hbm_bytes_per_s
    return np.asarray(np.maximum(compute, stream))
