"""How far measured steps reach, and how errors change with scale: what the bands of `size` widen by.

    python -m benchmarks.bands            sizes, precisions and mixers by class; with --drift how errors move with size
    python -m benchmarks.bands --write    writes the reach into src/rackscale/sizing/bands.toml

Drift: rows of one table, model, system and precision that differ in GPUs; by how much does the logarithm of predicted
over measured change from one size to the next, per doubling? Predictions are held out by model (three minutes; needs
SciPy). Reads ../shared/data/training/measured.csv, or the file that --data names.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.training import DATA, HELD, ROOT
from rackscale.sizing import bands, calibration
from rackscale.sizing.measurements import Measurement, groups, read

TABLE = ROOT / "src/rackscale/sizing/bands.toml"
FEW = 3
"""Rows that a size, a precision or a mixer needs to count as measured."""


def key(row: Measurement) -> str:
    return bands.key(row.recipe, experts=calibration.has_experts(row))


def reach(rows: list[Measurement]) -> list[str]:
    """Lines of the table: of each class the largest size, the precisions and the mixers with FEW rows or more."""
    lines = []
    for name, places in groups(rows, key):
        some = [rows[i] for i in places]
        sizes = Counter(row.layout.gpus for row in some)
        precisions = Counter(str(row.recipe.precision) for row in some)
        mixers = Counter(mixer for row in some for mixer in bands.mixers(row.model))
        words = [sorted(w for w, n in found.items() if n >= FEW) for found in (precisions, mixers)]
        told = [", ".join(f'"{word}"' for word in some_words) for some_words in words]
        largest = max(size for size, n in sizes.items() if n >= FEW)
        lines.append(
            f'"{name}" = {{ gpus = {largest}, rows = {len(some)}, precisions = [{told[0]}], mixers = [{told[1]}] }}'
        )
    return lines


def drift(rows: list[Measurement]) -> None:
    problem = calibration.problem(rows)
    off = np.log(calibration.held_out(problem, HELD["model"]))
    moves = []
    for _, places in groups(
        rows, lambda row: repr((row.source, row.label, row.recipe.system, row.recipe.precision))
    ):
        sizes = sorted({rows[i].layout.gpus for i in places})
        by = [np.median([off[i] for i in places if rows[i].layout.gpus == size]) for size in sizes]
        for (small, before), (large, after) in zip(
            zip(sizes, by, strict=True), zip(sizes[1:], by[1:], strict=False), strict=False
        ):
            moves.append(abs(after - before) / np.log2(large / small))
    told = ", ".join(f"{share:.0%} {np.quantile(moves, share):.3f}" for share in (0.5, 0.8, 0.9))
    print(f"drift of the error per doubling of GPUs, {len(moves)} steps of one series: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--drift", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    # bands are of rows that a fit may see: none whose seconds rest on our own count of FLOPs
    rows = [row for row in read(args.data)[0] if not row.from_flops]
    lines = reach(rows)
    print("\n".join(lines))
    if args.drift:
        drift(rows)
    if args.write:
        text = TABLE.read_text("utf-8")
        head = re.split(r"(?m)^\[reach\]\n", text)[0]
        TABLE.write_text(head + "[reach]\n" + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
