"""How long kernels take on an accelerator, by class, shape and precision: measured curves with few constants.

Every function is an array program: each argument may be a float64 array, and they broadcast. Times are of the forward
kernel alone, in seconds, launched one after another without gaps other than `launch_s`.
"""

from rackscale.kernels.curves import Attention, Chip, Curve, Fit, Kernels, Memory, kernels
from rackscale.kernels.times import (
    Array,
    Number,
    attention_seconds,
    gemm_seconds,
    grouped_gemm_seconds,
    memory_seconds,
)

__all__ = [
    "Array",
    "Attention",
    "Chip",
    "Curve",
    "Fit",
    "Kernels",
    "Memory",
    "Number",
    "attention_seconds",
    "gemm_seconds",
    "grouped_gemm_seconds",
    "kernels",
    "memory_seconds",
]
