"""The benchmarks of the twin and of decisions run, on a small fleet, and measure what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import decide, mix, twin

ROOT = Path(__file__).parents[2]


def test_the_load_fills_the_fleet_and_preempts() -> None:
    found = twin.measure(5_000, 0.5, 1, load=1.0)
    assert found["events"] == sum(found["events_by_kind"].values())
    assert 0.85 < found["held"] < 0.95
    assert found["preemptions"] > 0
    assert found["jobs"]["refused"] == 0


def test_decisions_are_measured_by_what_was_decided() -> None:
    found = decide.measure(5_000, hours=6.0, samples=10, load=1.0, seed=1)
    assert found["nodes"] >= 5_000
    assert found["clusters"] == mix.CLUSTERS
    assert {"fits", "waits", "clears"} <= found["cases"].keys()
    for times in found["cases"].values():
        assert 0.0 < times["cpu_p50_ms"] <= times["cpu_p99_ms"]


@pytest.mark.parametrize(
    "command",
    [
        ["twin", "--gpus", "2000", "--days", "0.02"],
        ["decide", "--nodes", "500", "--hours", "1", "--samples", "2"],
    ],
    ids=lambda command: command[0],
)
def test_they_print_json(command: list[str]) -> None:
    name, *options = command
    line = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json"]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    (row,) = json.loads(run.stdout)
    assert row["gpus"] >= 2000
