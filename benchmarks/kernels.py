"""How well the curves of kernels and collectives fit what was measured, and how long it takes to ask them.

Usage: python -m benchmarks.kernels [--tables DIR] [--elements N] [--json]

    python -m benchmarks.kernels                    how fast it is, and the errors that gemm.toml claims
    python -m benchmarks.kernels --tables DIR       the errors again, from the measured tables

DIR is `aiconfigurator_core/systems/data` of the unpacked wheel of aiconfigurator-core 0.12.0 (PyPI, Apache-2.0), which
is not part of this project; reading it needs pyarrow (the extra `parquet`). Of every shape the best kernel over engines
and versions is taken. Errors are relative, |computed / measured - 1|; `bias` is the median of the signed ones.

    gemm         m, n, k >= 512
    grouped      a gated layer of experts on one GPU, 128 tokens per expert or more, inner width >= 512: both products,
                 and a pass over memory for the activation and the permutations
    attention    causal, 1,024 tokens or more, head_dim 64 and 128, at least 32,768 query rows
    collectives  one node or tray, messages of 4 MB and more
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rackscale.collectives import KINDS, Array, Kind, Network, network, seconds
from rackscale.kernels import (
    Kernels,
    attention_seconds,
    gemm_seconds,
    grouped_gemm_seconds,
    kernels,
    memory_seconds,
)

CHIPS = {
    "a100_sxm": ("A100-80GB", "dgx-a100"),
    "h100_sxm": ("H100", "dgx-h100"),
    "h200_sxm": ("H200", "dgx-h200"),
    "b200_sxm": ("B200", "dgx-b200"),
    "b300_sxm": ("B300", "dgx-b300"),
    "gb200": ("GB200", "gb200-nvl72"),
    "gb300": ("GB300", "gb300-nvl72"),
}
"""Folder of the tables: accelerator, and a system of it."""

PRECISIONS = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
COLLECTIVES: dict[str, Kind] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}

Row: TypeAlias = dict[str, Any]
Columns: TypeAlias = dict[str, Array]


def best(folder: Path, pattern: str, keys: list[str], **only: list[Any]) -> Columns:
    """The least latency in s of each distinct `keys`, over all tables of that name, as columns."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    tables = []
    for path in sorted(folder.glob(pattern)):
        table = pq.read_table(path)
        for name, values in only.items():
            if name in table.column_names:
                table = table.filter(pc.is_in(table[name], pa.array(values, table[name].type)))
        table = table.filter(pc.greater(table["latency"], 0.0)).select([*keys, "latency"])
        tables.append(table.cast(pa.schema([(key, pa.float64()) for key in (*keys, "latency")])))
    least = pa.concat_tables(tables).group_by(keys).aggregate([("latency", "min")])
    found = {key: least[key].to_numpy() for key in keys}
    return found | {"s": least["latency_min"].to_numpy() / 1e3}


def where(columns: Columns, chosen: NDArray[np.bool_]) -> Columns:
    return {name: values[chosen] for name, values in columns.items()}


def row(chip: str, kind: str, what: str, computed: Array, measured: Array) -> Row:
    error = computed / measured - 1.0
    size = np.abs(error)
    return {
        "accelerator": chip,
        "class": kind,
        "what": what,
        "shapes": len(error),
        "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)),
        "bias": float(np.median(error)),
    }


def products(folder: Path, name: str, *, least_m: int = 512) -> Columns:
    found = best(folder, "gemm/*/*/gemm_perf.parquet", ["m", "n", "k"], gemm_dtype=[name])
    return where(found, (found["m"] >= least_m) & (found["n"] >= 512) & (found["k"] >= 512))


def experts(folder: Path, name: str) -> Columns:
    keys = ["num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"]
    only: dict[str, list[Any]] = {"moe_dtype": [name], "distribution": ["balanced"], "moe_ep_size": [1]}
    c = best(folder, "moe/*/*/moe_perf.parquet", keys, **only)
    c |= {
        "m": c["num_tokens"] * c["topk"] / c["num_experts"],
        "width": c["inter_size"] / c["moe_tp_size"],
    }
    fits = (c["m"] >= 128) & (c["width"] >= 512) & (c["hidden_size"] >= 1024)
    return where(c, fits & (c["topk"] <= 8) & (c["moe_tp_size"] <= 4) & (c["num_experts"] >= 2))


def attention(folder: Path) -> Columns:
    keys = ["batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim"]
    only: dict[str, list[Any]] = {
        "attn_dtype": ["bfloat16"],
        "kv_cache_dtype": ["bfloat16"],
        "window_size": [0],
        "step": [0],
        "head_dim": [64, 128],
    }
    c = best(folder, "attention/*/*/context_attention_perf.parquet", keys, **only)
    return where(c, (c["isl"] >= 1024) & (c["batch_size"] * c["isl"] * c["num_heads"] >= 32_768))


def collectives(folder: Path, name: str, *, least_bytes: float = 4e6) -> Columns:
    only: dict[str, list[Any]] = {"op_name": [name], "nccl_dtype": ["half"]}
    c = best(folder, "comm/nccl/*/nccl_perf.parquet", ["num_gpus", "message_size"], **only)
    c["nbytes"] = 2.0 * c["message_size"]  # it counts elements
    return where(c, c["nbytes"] >= least_bytes)


def product_s(c: Columns, chip: str, precision: str, curves: Kernels | None = None) -> Array:
    return gemm_seconds(m=c["m"], n=c["n"], k=c["k"], chip=chip, precision=precision, kernels=curves)


def layer_s(c: Columns, chip: str, precision: str, curves: Kernels | None = None) -> Array:
    """A gated layer of experts: up and gate in one product, down in another, and what moves between them."""
    groups, m, hidden, width = c["num_experts"], c["m"], c["hidden_size"], c["width"]
    product = partial(
        grouped_gemm_seconds, groups=groups, m=m, chip=chip, precision=precision, kernels=curves
    )
    moved = memory_seconds(nbytes=groups * m * (6.0 * width + 4.0 * hidden), chip=chip, kernels=curves)
    return product(n=2.0 * width, k=hidden) + product(n=hidden, k=width) + moved


def attention_s(c: Columns, chip: str, curves: Kernels | None = None) -> Array:
    return attention_seconds(
        tokens_q=c["isl"],
        tokens_kv=c["isl"],
        heads=c["num_heads"],
        head_dim=c["head_dim"],
        causal=True,
        chip=chip,
        batch=c["batch_size"],
        kernels=curves,
    )


def collective_s(c: Columns, kind: Kind, on: Network) -> Array:
    return seconds(kind, nbytes=c["nbytes"], ranks=c["num_gpus"], local=c["num_gpus"], network=on)


def measured(tables: Path) -> Iterator[Row]:
    for name, (chip, system) in CHIPS.items():
        folder, on = tables / name, network(system)
        known = [(table, p) for table, p in PRECISIONS.items() if p in kernels().chip(chip).gemm]
        for table, precision in known:
            c = products(folder, table)
            yield row(chip, "gemm", precision, product_s(c, chip, precision), c["s"])
        for table, precision in known:
            c = experts(folder, table)
            yield row(chip, "grouped", precision, layer_s(c, chip, precision), c["s"])
        c = attention(folder)
        yield row(chip, "attention", "bf16", attention_s(c, chip), c["s"])
        for table, kind in COLLECTIVES.items():
            c = collectives(folder, table)
            yield row(chip, "collective", kind, collective_s(c, kind, on), c["s"])


def claimed() -> Iterator[Row]:
    """The errors that the constants' file has beside them."""
    for chip in kernels().chips.values():
        curves = [("gemm", p, c.fit) for p, c in chip.gemm.items()]
        curves += [("grouped", p, c.fit) for p, c in chip.grouped.items()]
        for kind, what, fit in [*curves, ("attention", "bf16", chip.attention.fit)]:
            if fit.origin.provenance == "measured":
                yield {
                    "accelerator": chip.name,
                    "class": kind,
                    "what": what,
                    "shapes": fit.shapes,
                    "median": fit.median_error,
                    "p90": fit.p90_error,
                }


def speeds(elements: int) -> Iterator[Row]:
    """The least of 50 timings of each function on arrays of that length."""
    stream = np.random.default_rng(1)
    m, n, k, nbytes = (stream.uniform(512.0, 65_536.0, elements) for _ in range(4))
    ranks = np.exp2(stream.integers(1, 10, elements).astype(float))
    local, on = np.minimum(ranks, 64.0), network("gb200-nvl72")
    programs: dict[str, Callable[[], Array]] = {
        "gemm": lambda: gemm_seconds(m=m, n=n, k=k, chip="GB200", precision="nvfp4"),
        "grouped": lambda: grouped_gemm_seconds(groups=8.0, m=m, n=n, k=k, chip="GB200", precision="fp8"),
        "attention": lambda: attention_seconds(
            tokens_q=m, tokens_kv=m, heads=8.0, head_dim=128.0, causal=True, chip="GB200"
        ),
        "memory": lambda: memory_seconds(nbytes=nbytes, chip="GB200"),
    }
    shared = partial(seconds, nbytes=nbytes, ranks=ranks, local=local, network=on)
    programs |= {kind: partial(shared, kind) for kind in KINDS}
    for name, program in programs.items():
        yield {"function": name, "us_per_1000": least_s(program) * 1e9 / elements}


def least_s(program: Callable[[], Array], times: int = 50) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        program()
        taken.append(time.perf_counter() - began)
    return min(taken)


def show(fits: list[Row], timings: list[Row]) -> None:
    print("accelerator     class       what             shapes   median      p90     bias")
    for r in fits:
        bias = f"{r['bias']:+8.1%}" if "bias" in r else ""
        print(
            f"{r['accelerator']:15} {r['class']:11} {r['what']:15} {r['shapes']:7,} {r['median']:8.1%} {r['p90']:8.1%}"
            f" {bias}"
        )
    print("\nfunction         us per 1,000 elements")
    for r in timings:
        print(f"{r['function']:15} {r['us_per_1000']:22.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--tables", type=Path, metavar="DIR")
    parser.add_argument("--elements", type=int, default=4_000, metavar="N")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.tables is not None and not args.tables.is_dir():
        sys.exit(
            f"{args.tables}: no such folder; give aiconfigurator_core/systems/data of the unpacked wheel"
        )
    fits = list(claimed() if args.tables is None else measured(args.tables))
    timings = list(speeds(args.elements))
    print(json.dumps({"fits": fits, "speeds": timings}, indent=2)) if args.json else show(fits, timings)


if __name__ == "__main__":
    main()
