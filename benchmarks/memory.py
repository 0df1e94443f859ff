"""Estimated peaks of memory against published layouts that ran, and against the peaks that tables state.

    python -m benchmarks.memory

Verdicts of all layouts that ran (none may be out of memory), those nearest to it with their parts, and the error on
stated peaks by source. What tables state are statistics of PyTorch's allocator: they leave out what CUDA and NCCL take
beside it, so that the assumed context is not counted against them. Reads ../shared/data/training/measured.csv, or the
file that --data names.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np

from rackscale.sizing import calibration
from rackscale.sizing.measurements import Measurement, read
from rackscale.sizing.memory import CONTEXT_BYTES, Memory, memory, verdicts

DATA = Path(__file__).parents[2] / "shared/data/training/measured.csv"
NAMES = ("fits", "tight", "out of memory")
SHOWN = 12


def needs(row: Measurement) -> Memory:
    return memory(row.model, calibration.problem([row]).layouts, row.recipe)


def ran(rows: list[Measurement], found: list[Memory]) -> None:
    """Verdicts, and the layouts that come out fullest."""
    told: Counter[str] = Counter()
    full = []
    for row, need in zip(rows, found, strict=True):
        room = row.recipe.hardware.accelerator.hbm_bytes
        told[NAMES[verdicts(need.total, room)[0]]] += 1
        if room is not None:
            full.append((float(need.total[0]) / room, row, need))
    above = sum(share > 1.0 for share, *_ in full)
    print(", ".join(f"{told[name]} {name}" for name in NAMES) + f"; {above} of {len(rows)} above the memory")
    for share, row, need in sorted(full, key=lambda one: -one[0])[:SHOWN]:
        parts = " ".join(f"{f.name} {getattr(need, f.name)[0] / 1e9:.1f}" for f in fields(Memory))
        print(f"  {share:5.1%} {row.row} {row.label} {row.recipe.system} {row.layout}: {parts}")


def stated(rows: list[Measurement], found: list[Memory]) -> None:
    """Estimated over stated peaks by source."""
    off: dict[str, list[float]] = {}
    for row, need in zip(rows, found, strict=True):
        if row.memory_bytes is not None:
            off.setdefault(row.source, []).append(float(need.total[0] - CONTEXT_BYTES) / row.memory_bytes)
    print(f"{'stated peaks':26} {'rows':>4} {'median':>8} {'p90':>8} {'worst':>8} {'bias':>8}")
    every = [ratio for some in off.values() for ratio in some]
    for name, some in (*off.items(), ("all", every)):
        e = calibration.errors(np.array(some))
        print(f"{name:26} {e.rows:4} {e.median:8.1%} {e.p90:8.1%} {e.worst:8.1%} {e.bias:+8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    rows, _ = read(parser.parse_args().data)
    found = [needs(row) for row in rows]
    ran(rows, found)
    stated(rows, found)


if __name__ == "__main__":
    main()
