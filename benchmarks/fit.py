"""Fits the constants of kernels/gemm.toml and collectives/tiers.toml to measured tables, and prints them.

Usage: python -m benchmarks.fit DIR [--only FOLDER ...]

DIR is as for `benchmarks.kernels --tables`. What is fitted is the logarithm of the error, by least squares with soft l1
(errors beyond a tenth count by their size, not their square). Products with m < 512 weigh a third of larger ones,
head_dim 64 half of 128, messages below 4 MB two fifths: training rarely has them, but they tell launches and bandwidth
from speed. What is not fitted stays as it is: `sharp_fraction` and `fill_s`, which one node can't tell, `[out]`, and
`lost_k`, `hbm_fraction` and `launch_s` of grouped products, which are those of plain ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from benchmarks import kernels as tables
from benchmarks.kernels import CHIPS, COLLECTIVES, PRECISIONS, Columns
from rackscale.catalog import Accelerator, system
from rackscale.collectives import Array, Network, network
from rackscale.kernels import Chip, Kernels, kernels

SOFT = 0.1
"""The error from which on it counts by its size."""

BOUNDS = {
    "peak_fraction": (0.1, 0.7, 1.0),
    "of_peak": (0.1, 0.7, 1.1),
    "hbm_fraction": (0.3, 0.8, 1.0),
    "lost_m": (1.0, 100.0, 3e3),
    "lost_n": (1.0, 100.0, 3e3),
    "lost_k": (1.0, 300.0, 5e3),
    "lost_tokens": (1.0, 300.0, 5e3),
    "lost_dim": (1.0, 20.0, 300.0),
    "launch_s": (1e-7, 3e-6, 6e-5),
    "fraction": (0.4, 0.8, 1.0),
    "latency_s": (1e-7, 6e-6, 3e-5),
    "step_s": (1e-8, 1e-6, 5e-6),
    "ramp_s": (1e-7, 2.5e-5, 2e-4),
    "ramp_bytes": (1e5, 5e6, 1e8),
}
"""Of each constant the least, where the search starts, and the most. `of_peak` is attention's: its lost_dim, of a
hundred, keeps every head_dim in use below the peak."""

PEAKS = {"bf16": "bf16_flop_per_s", "nvfp4": "fp4_flop_per_s"}
S = TypeVar("S", bound=Struct)


def fit(
    names: str, errors: Callable[[dict[str, float]], Array], weights: Array
) -> tuple[dict[str, float], Array]:
    """The constants with the least soft-l1 error, and the errors: Levenberg-Marquardt on the constants' logarithms."""
    keys = names.split()
    low, at, high = np.log(np.array([BOUNDS[key] for key in keys])).T

    def weighed(x: Array) -> Array:
        return errors(dict(zip(keys, np.exp(x).tolist(), strict=True))) * weights

    here, damping = weighed(at), 1e-2
    for _ in range(200):
        trust = 1.0 / np.sqrt(1.0 + (here / SOFT) ** 2)
        slopes = np.stack([(weighed(at + step) - here) / 1e-4 for step in 1e-4 * np.eye(len(at))], axis=1)
        normal, downhill = slopes.T @ (slopes * trust[:, None]), slopes.T @ (here * trust)
        damped = normal + damping * np.diag(np.diag(normal) + 1e-9)
        there = np.clip(at - np.linalg.solve(damped, downhill), low, high)
        after = weighed(there)
        gain = cost(here) - cost(after)
        damping *= 0.3 if gain > 0.0 else 4.0
        if gain > 0.0:
            at, here = there, after
        if 0.0 <= gain < 1e-7 * cost(here) or damping > 1e9:
            break
    return dict(zip(keys, np.exp(at).tolist(), strict=True)), here / weights


def cost(errors: Array) -> float:
    return float(np.sum(np.sqrt(1.0 + (errors / SOFT) ** 2) - 1.0))


def line(name: str, constants: dict[str, float], errors: Array) -> str:
    size = np.abs(np.expm1(errors))
    told = [f"{key} = {value:.3g}" for key, value in constants.items()]
    told += [f"shapes = {len(size)}", f"median_error = {np.median(size):.3f}"]
    return f"{name} = {{ {', '.join(told)}, p90_error = {np.quantile(size, 0.9):.3f} }}"


def tried(curve: S, constants: dict[str, float], peak: float, hbm: float) -> S:
    """The curve with these constants, fractions as rates."""
    values: dict[str, Any] = dict(constants)
    for fraction, rate, of in (
        ("peak_fraction", "flop_per_s", peak),
        ("hbm_fraction", "hbm_bytes_per_s", hbm),
    ):
        if fraction in values:
            values[rate] = values.pop(fraction) * of
    return replace(curve, **values)


def curves(chip: Chip, **changes: Any) -> Kernels:
    return replace(kernels(), chips={chip.name: replace(chip, **changes)})


def products(folder: Path, part: Accelerator, chip: Chip) -> Iterator[str]:
    hbm = part.hbm_bytes_per_s or 0.0
    for name, precision in PRECISIONS.items():
        if precision not in chip.gemm:
            continue
        peak = getattr(part, PEAKS.get(precision, "fp8_flop_per_s"))
        ask = partial(_product_errors, chip=chip, precision=precision, peak=peak, hbm=hbm)
        c = tables.products(folder, name, least_m=16)
        large = c["m"] >= 512
        names = "peak_fraction lost_m lost_n lost_k hbm_fraction launch_s"
        found, errors = fit(names, partial(ask, c), np.where(large, 1.0, 1.0 / 3.0))
        yield line(f"gemm.{precision}", found, errors[large])
        c = tables.experts(folder, name)
        found, errors = fit(
            "peak_fraction lost_m lost_n", partial(ask, c, grouped=True), np.ones(len(c["s"]))
        )
        yield line(f"grouped.{precision}", found, errors)


def _product_errors(
    c: Columns,
    constants: dict[str, float],
    *,
    chip: Chip,
    precision: str,
    peak: float,
    hbm: float,
    grouped: bool = False,
) -> Array:
    if grouped:
        curve = tried(chip.grouped[precision], constants, peak, hbm)
        computed = tables.layer_s(c, chip.name, precision, curves(chip, grouped={precision: curve}))
    else:
        curve = tried(chip.gemm[precision], constants, peak, hbm)
        computed = tables.product_s(c, chip.name, precision, curves(chip, gemm={precision: curve}))
    return np.asarray(np.log(computed / c["s"]))


def attention(folder: Path, part: Accelerator, chip: Chip) -> str:
    c, peak = tables.attention(folder), part.bf16_flop_per_s or 0.0

    def errors(constants: dict[str, float]) -> Array:
        values = constants | {"peak_fraction": constants["of_peak"]}
        del values["of_peak"]
        used = curves(chip, attention=tried(chip.attention, values, peak, 0.0))
        return np.asarray(np.log(tables.attention_s(c, chip.name, used) / c["s"]))

    dims = np.unique(c["head_dim"])
    names = "of_peak lost_tokens launch_s" + (" lost_dim" if len(dims) > 1 else "")
    found, left = fit(names, errors, np.where(c["head_dim"] == 128, 1.0, 0.5))
    return line("attention", found, left)


def links(folder: Path, part: Accelerator, on: Network) -> str:
    measured = {
        kind: tables.collectives(folder, name, least_bytes=4096.0) for name, kind in COLLECTIVES.items()
    }
    link = (part.scale_up_bytes_per_s or 0.0) / 2.0

    def errors(constants: dict[str, float]) -> Array:
        values = {key: value for key, value in constants.items() if key != "fraction"}
        tier = replace(on.up, bytes_per_s=constants["fraction"] * link, **values)
        used = replace(on, up=tier)
        return np.concatenate(
            [np.log(tables.collective_s(c, kind, used) / c["s"]) for kind, c in measured.items()]
        )

    large = np.concatenate([c["nbytes"] for c in measured.values()]) >= 4e6
    found, left = fit("fraction latency_s step_s ramp_s ramp_bytes", errors, np.where(large, 1.0, 0.4))
    return line("up", found, left[large])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fit", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("tables", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="*", choices=CHIPS, default=list(CHIPS), metavar="FOLDER")
    args = parser.parse_args()
    for name in args.only:
        chip, of = CHIPS[name]
        part, folder = system(of).accelerator, args.tables / name
        print(f"[{chip}]")
        for found in products(folder, part, kernels().chip(chip)):
            print(found, flush=True)
        print(attention(folder, part, kernels().chip(chip)))
        print(links(folder, part, network(of)), flush=True)


if __name__ == "__main__":
    main()
