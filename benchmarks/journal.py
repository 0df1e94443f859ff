"""How long writing a cycle takes, and loading the state of a long journal.

Usage: python -m benchmarks.journal [--events N] [--gpus N] [--cycles N] [--seed S] [--json]

The events are those of the twin under `benchmarks.mix`, from the control loop itself. The first `--cycles` cycles are
written as a controller writes them: one transaction each, synced to the disk. The rest is written in larger
transactions, since nobody waits for them here; snapshots are taken as a controller takes them. Loading is what a
controller does on recovery and every reader does first. Without snapshots is what it would be from the first event.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import mix
from rackscale.commands import Reply
from rackscale.control import Controller
from rackscale.events import Configured, Delivered, Event
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal
from rackscale.spec import Failures
from rackscale.twin import TwinExecutor
from rackscale.workload import Policy

BATCH = 2000
YEAR_S = 365 * 86_400.0


class Recorder:
    """Implements `control.Log`: the first cycles one by one, against the clock; the others in batches."""

    def __init__(self, journal: Journal, cycles: int) -> None:
        self._journal, self._cycles = journal, cycles
        self._batch: list[Event] = []
        self.append_s: list[float] = []
        self.snapshot_s: list[float] = []
        self.events = 0

    def append(self, events: Sequence[Event], _replies: Mapping[int, Reply]) -> None:
        self.events += len(events)
        if len(self.append_s) >= self._cycles:
            self._batch += events
            return
        before_s = time.perf_counter()
        self._journal.append(events)
        self.append_s.append(time.perf_counter() - before_s)

    def between(self, state: FleetState) -> None:
        """After a cycle, as the controller's loop does it."""
        if len(self._batch) >= BATCH:
            self.flush()
        elif self._batch:
            return
        before_s = time.perf_counter()
        if self._journal.snapshot(state):
            self.snapshot_s.append(time.perf_counter() - before_s)

    def flush(self) -> None:
        self._journal.append(self._batch)
        self._batch = []


def write(path: Path, events: int, gpus: int, cycles: int, seed: int) -> tuple[Recorder, FleetState]:
    fleet = mix.fleet(gpus)
    twin = TwinExecutor(
        seed=seed, submissions=mix.load(len(fleet), seed=seed, end_s=YEAR_S), failures=Failures(),
        inputs=(Configured(at_s=0.0, policy=Policy()), Delivered(at_s=0.0, domains=fleet)),
    )  # fmt: skip
    with Journal.open(path, writer=True) as journal:
        state, recorder = journal.load(), Recorder(journal, cycles)
        controller = Controller(state, twin, log=recorder)
        while recorder.events < events:
            controller.step()
            recorder.between(state)
        recorder.flush()
    return recorder, state


def load(path: Path) -> tuple[float, bytes]:
    """Seconds to load, and the state's bytes."""
    with Journal.open(path) as journal:
        before_s = time.perf_counter()
        state = journal.load()
        return time.perf_counter() - before_s, state.snapshot()


def measure(folder: Path, events: int, gpus: int, cycles: int, seed: int) -> dict[str, Any]:
    path = folder / "journal.db"
    recorder, state = write(path, events, gpus, cycles, seed)
    expected = state.snapshot()
    with_s, loaded = load(path)
    size = path.stat().st_size
    raw = sqlite3.connect(path)
    (tail,) = raw.execute(
        "SELECT count(*) FROM events WHERE seq > (SELECT max(seq) FROM snapshots)"
    ).fetchone()
    with raw:
        raw.execute("DELETE FROM snapshots")
    raw.close()
    without_s, folded = load(path)
    assert loaded == folded == expected, "a loaded state is not the state"
    before_s = time.perf_counter()
    with Journal.open(path) as journal, Path(os.devnull).open("wb") as nowhere:
        journal.export(nowhere)
    quantiles = statistics.quantiles(recorder.append_s, n=100)
    return {
        "events": recorder.events,
        "gpus": gpus,
        "append_cycles": len(recorder.append_s),
        "append_p50_ms": quantiles[49] * 1e3,
        "append_p99_ms": quantiles[98] * 1e3,
        "append_max_ms": max(recorder.append_s) * 1e3,
        "snapshots": len(recorder.snapshot_s),
        "snapshot_mb": len(expected) / 1e6,
        "snapshot_max_ms": max(recorder.snapshot_s, default=0.0) * 1e3,
        "events_after_snapshot": tail,
        "load_s": with_s,
        "load_without_snapshot_s": without_s,
        "export_s": time.perf_counter() - before_s,
        "file_mb": size / 1e6,
    }


def show(row: dict[str, Any]) -> None:
    print(f"{row['events']:,} events of {row['gpus']:,} GPUs, {row['file_mb']:,.0f} MB\n")
    for text, value in (
        ("write one cycle, synced: p50", f"{row['append_p50_ms']:.2f} ms"),
        ("                         p99", f"{row['append_p99_ms']:.2f} ms"),
        (f"                         max of {row['append_cycles']:,}", f"{row['append_max_ms']:.1f} ms"),
        (f"write a snapshot ({row['snapshot_mb']:.1f} MB at the end): max of {row['snapshots']}",
         f"{row['snapshot_max_ms']:.0f} ms"),
        (f"load: snapshot and {row['events_after_snapshot']:,} events", f"{row['load_s']:.2f} s"),
        ("load: from the first event", f"{row['load_without_snapshot_s']:.2f} s"),
        ("export as JSON lines", f"{row['export_s']:.2f} s"),
    ):  # fmt: skip
        print(f"{text:60} {value:>10}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.journal", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--gpus", type=int, default=100_000)
    parser.add_argument("--cycles", type=int, default=5000, help="cycles written one by one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        row = measure(Path(folder), args.events, args.gpus, args.cycles, args.seed)
    print(json.dumps(row, indent=2)) if args.json else show(row)


if __name__ == "__main__":
    main()
