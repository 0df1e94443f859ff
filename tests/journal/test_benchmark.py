"""The journal's benchmark runs, and its journal is the state's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_writing_and_loading() -> None:
    line = [
        sys.executable,
        "-m",
        "benchmarks.journal",
        "--events",
        "12000",
        "--gpus",
        "500",
        "--cycles",
        "50",
    ]
    run = subprocess.run([*line, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    row = json.loads(run.stdout)
    assert row["events"] >= 12_000
    assert row["append_cycles"] == 50
    assert 0.0 < row["append_p50_ms"] <= row["append_p99_ms"]
    assert row["snapshots"] >= 1
    assert row["events_after_snapshot"] < row["events"] / 2
