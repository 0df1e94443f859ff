"""From kill -9 of an instance to training again beyond the last checkpoint, on emulated instances of this machine.

Usage: python -m benchmarks.restart [--program count|train] [--nodes N] [--times N] [--json]

count: a program that starts in no time, so that what remains is ours. train: `rackscale.programs.train`, where most of
the time is the start of Python and torch, once per rank and all at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rackscale import events as ev
from rackscale.control import Controller
from rackscale.fleet.state import FleetState
from rackscale.programs import attempt
from rackscale.programs.contract import Beat, read_beats
from rackscale.runtime.local import LocalExecutor
from rackscale.workload import Durability, Job, Policy, Program, Shape

PROGRAMS = {
    "count": r"""
step=$(cat "$RACKSCALE_CHECKPOINT_DIR/$RANK" 2>/dev/null || echo 0)
say() { echo "{\"at_s\": $EPOCHREALTIME, \"kind\": \"$1\", \"step\": $step}" >> "$RACKSCALE_HEARTBEAT_FILE"; }
say started
while sleep 0.02; do
  step=$((step + 1)); say step
  if [ $((step % 10)) = 0 ]; then echo $step > "$RACKSCALE_CHECKPOINT_DIR/$RANK"; say checkpoint; fi
done""",
    "train": "exec python -m rackscale.programs.train --steps 100000 --checkpoint-every 10",
}


class Site:
    """One domain of emulated nodes and a gang that runs on all of them but one."""

    def __init__(self, folder: Path, program: str, nodes: int) -> None:
        self.folder = folder
        self.state = FleetState()
        self.executor = LocalExecutor(folder, repair_s=0.5)
        self.executor.recover(self.state)
        self.controller = Controller(self.state, self.executor)
        now_s = time.time()
        domain = ev.DomainSpec(name="r/us-000", system="local", nodes=nodes + 1, gpus_per_node=1, cluster="r")
        job = Job(
            name="a", kind="training", shape=Shape(nodes_per_segment=nodes), durability=Durability(max_restarts=0),
            program=Program(run=PROGRAMS[program]),
        )  # fmt: skip
        self.controller.cycle(
            [
                ev.Configured(at_s=now_s, policy=Policy()),
                ev.Delivered(at_s=now_s, domains=(domain,)),
                ev.Submitted(at_s=now_s, job=job),
            ]
        )

    def until(self, holds: Callable[[], bool]) -> float:
        end_s = time.time() + 120
        while not holds():
            assert "a" in self.state.gangs, self.state.ended
            assert time.time() < end_s, f"nothing happened in {self.folder}"
            self.controller.step(time.time() + 0.1)
        return time.time()

    @property
    def attempt(self) -> int:
        return self.state.gangs["a"].attempt

    def file(self, number: int, name: str) -> Path:
        return self.folder / ".rackscale/gangs/a" / str(number) / name

    def beats(self, number: int) -> list[Beat]:
        return read_beats(self.file(number, "rank-0.jsonl"))[0]

    def beat(self, number: int, kind: str, beyond: int = -1) -> Beat | None:
        found = (b for b in self.beats(number) if b.kind == kind and (b.step or 0) > beyond)
        return next(found, None)

    def kill_one(self) -> dict[str, float]:
        """Kill the last node rank's instance; milliseconds from then until each stage."""
        number = self.attempt
        saved = self.beat(number, "checkpoint")
        self.until(lambda: self.beat(number, "checkpoint", saved.step or 0 if saved else 0) is not None)
        self.until(lambda: self.state.failed == [0])  # the spare is there again
        spec = attempt.read_spec(max(self.file(number, "spec-0.json").parent.glob("spec-*.json")))
        claim = attempt.read_claim(spec)
        assert claim is not None
        last = max(b.step or 0 for b in self.beats(number) if b.kind == "checkpoint")
        killed_s = time.time()
        os.killpg(claim.pid, signal.SIGKILL)
        stages = {"decided": self.until(lambda: self.attempt > number)}
        up = [self.file(number + 1, f"up-{rank}") for rank in range(spec.nodes)]
        self.until(lambda: all(path.exists() for path in up))
        stages["ranks up"] = max(path.stat().st_mtime for path in up)
        self.until(lambda: self.beat(number + 1, "step", last) is not None)
        for name, kind, beyond in (("resumed", "started", -1), ("beyond", "step", last)):
            found = self.beat(number + 1, kind, beyond)
            assert found is not None
            stages[name] = found.at_s
        return {name: (at_s - killed_s) * 1000 for name, at_s in stages.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", choices=PROGRAMS, default="count")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), args.program, args.nodes)
        try:
            runs = [site.kill_one() for _ in range(args.times)]
        finally:
            site.executor.kill()
            site.executor.close()
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    if args.json:
        told = {"program": args.program, "nodes": args.nodes, "unit": "ms", "median": medians, "runs": runs}
        print(json.dumps(told))
        return
    print(f"{args.program} on {args.nodes} nodes, ms after kill -9 of an instance, {args.times} times")
    for name, median in medians.items():
        values = [run[name] for run in runs]
        print(f"  {name:10} median {median:7.0f}   min {min(values):7.0f}   max {max(values):7.0f}")


if __name__ == "__main__":
    main()
