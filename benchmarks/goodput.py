"""Checkpoints and goodput against published cases.

    python -m benchmarks.goodput

Reads ../shared/data/reliability/goodput_cases.csv (or what --cases names): every case whose inputs were published goes
through the renewal form. Published checkpoints are listed in CASES with what they state; those that rates were taken
from are marked, so that only the others test anything. Restarts were published as 5 to 20 minutes only.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rackscale.sizing.checkpoint import Checkpoint, sized
from rackscale.sizing.goodput import goodput

CASES_CSV = Path(__file__).parents[2] / "shared/data/reliability/goodput_cases.csv"
PER_PARAMETER = 14.0
"""Bytes: BF16 weights, FP32 weights and two moments; BLOOM states it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A published time of one checkpoint."""

    name: str
    parameters: float
    gpus: int
    what: str
    seconds: float
    fitted: bool = False
    """Whether a rate was taken from it."""


CASES = (
    Case("ByteCheckpoint 405B", 405e9, 8960, "stall", 0.59, fitted=True),
    Case("ByteCheckpoint 7B", 7e9, 1488, "stall", 0.34, fitted=True),
    Case("DCP, Llama 3 8B (at most)", 8e9, 512, "stall", 0.5),
    Case("ByteCheckpoint 7B", 7e9, 1488, "save", 20.13, fitted=True),
    Case("ByteCheckpoint 405B", 405e9, 8960, "save", 51.06, fitted=True),
    Case("BLOOM 176B", 176e9, 384, "save", 40.0, fitted=True),
    Case("Orbax 405B", 405e9, 8192, "save", 173.0, fitted=True),
    Case("DCP 405B", 405e9, 8192, "save", 595.0, fitted=True),
    Case("GPT 175B to HDFS", 175e9, 4096, "save", 200.0, fitted=True),
    Case("DCP, Llama 3 8B, synchronous", 8e9, 512, "save", 50.0),
    Case("Ling 1T, before", 1e12, 2016, "save", 269.0),
    Case("Ling 1T, after", 1e12, 2016, "save", 30.0),
)
"""Orbax', DCP's and Ling's GPUs were not published; only the storage's rate matters at their size."""
TIMES: dict[str, Callable[[Checkpoint], float]] = {
    "stall": lambda found: found.stall_s,
    "save": lambda found: found.synchronous_s,
}


def checkpoints() -> None:
    print(f"{'checkpoint':38} {'':8} {'published':>10} {'predicted':>10} {'ratio':>6}")
    for case in CASES:
        nbytes = case.parameters * PER_PARAMETER
        found = sized(nbytes, nbytes, gpus=case.gpus)
        seconds = TIMES[case.what](found)
        told = f"{case.name:38} {case.what:8} {case.seconds:8.2f} s {seconds:8.2f} s {seconds / case.seconds:6.2f}"
        print(told + ("  rates are from it" if case.fitted else ""))


def published(path: Path) -> None:
    print(f"{'case':22} {'GPUs':>7} {'published':>10} {'predicted':>10}")
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] != "ETTR" or not row["checkpoint_interval_min"]:
                continue
            found = goodput(
                gpus=int(row["gpus"]),
                failures_per_gpu_hour=float(row["failures_per_1000_node_days"])
                / 24e3
                / float(row["gpus_per_node"]),
                write_s=60.0 * float(row["checkpoint_write_min"]),
                restart_s=60.0 * float(row["restart_min"]),
                interval_s=60.0 * float(row["checkpoint_interval_min"]),
            )
            print(f"{row['case']:22} {row['gpus']:>7} {row['published']:>10} {found.share:10.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, default=CASES_CSV)
    args = parser.parse_args()
    checkpoints()
    large = sized(405e9 * PER_PARAMETER, 405e9 * PER_PARAMETER, gpus=16_384)
    print(
        f"restart of 405B on 16,384 GPUs: {large.restart_s / 60.0:.1f} min; published: 5 to 20 (RSC, large jobs)\n"
    )
    published(args.cases)


if __name__ == "__main__":
    main()
