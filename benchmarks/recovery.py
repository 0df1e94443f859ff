"""From kill -9 of an instance to training again beyond the last checkpoint, on emulated instances of this machine.

Usage: python -m benchmarks.recovery [--on local|ray] [--program train|count] [--nodes N] [--times N] [--hang] [--json]

train: `rackscale.programs.train`, a checkpoint every 10 steps; most of the time is the start of Python and torch, once
per rank and all at once. count: a shell script that starts in no time, so that what remains is ours.

The stages, in seconds since the kill: the controller has seen it (`seen`), the ranks of the next attempt run (`up`),
rank 0 has loaded the last checkpoint (`resumed`), has done a step beyond it (`beyond`), and one that was never done
before (`regained`). The lost node is repaired only after that: starting a Ray node takes two seconds of a core.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rackscale import events as ev
from rackscale.control import Controller
from rackscale.fleet.state import FleetState
from rackscale.programs import attempt
from rackscale.programs.contract import Beat, read_beats
from rackscale.runtime.gangs import GangExecutor
from rackscale.runtime.launcher import NodeRef
from rackscale.workload import Durability, Job, Policy, Program, Shape

COUNT = r"""
step=$(cat "$RACKSCALE_CHECKPOINT_DIR/$RANK" 2>/dev/null || echo 0)
say() { echo "{\"at_s\": $EPOCHREALTIME, \"kind\": \"$1\", \"step\": $step}" >> "$RACKSCALE_HEARTBEAT_FILE"; }
say started
while sleep 0.02; do
  step=$((step + 1)); say step
  if [ $((step % 10)) = 0 ]; then echo $step > "$RACKSCALE_CHECKPOINT_DIR/$RANK"; say checkpoint; fi
done"""
TRAIN = "exec python -m rackscale.programs.train --steps 100000 --checkpoint-every 10 --report-s 0"
PROGRAMS = {"train": TRAIN, "count": COUNT}
DOMAIN = "r/us-000"
STAGES = ("seen", "up", "resumed", "beyond", "regained")
REPAIR_S = 12.0


class Local:
    """Instances as process groups."""

    def __init__(self, site: Path) -> None:
        from rackscale.runtime.local import LocalExecutor  # only what is measured is loaded

        self.executor: GangExecutor = LocalExecutor(site, repair_s=REPAIR_S)

    def ready(self, nodes: int) -> bool:  # noqa: ARG002  # nodes of `local` are only names
        return True

    def end(self, spec: attempt.InstanceSpec, number: signal.Signals) -> None:
        claim = attempt.read_claim(spec)
        assert claim is not None
        os.killpg(claim.pid, number)

    def stop(self) -> None:
        self.executor.close()


class Ray:
    """Instances as Ray nodes."""

    def __init__(self, site: Path) -> None:
        from rackscale.runtime.ray import marks
        from rackscale.runtime.ray.executor import RayExecutor

        self._site, self._marks = site, marks
        self._ray = RayExecutor(site, repair_s=REPAIR_S)
        self.executor: GangExecutor = self._ray

    def ready(self, nodes: int) -> bool:
        """Every node runs its raylet, two helpers of Ray and our agent, the spare too."""
        return all(len(self._marks.of_node(self._site, NodeRef(DOMAIN, n))) >= 4 for n in range(nodes))

    def end(self, spec: attempt.InstanceSpec, number: signal.Signals) -> None:
        self._marks.kill_node(self._site, spec.domain, spec.node, number)

    def stop(self) -> None:
        self._ray.shutdown()


class Site:
    """One domain of emulated nodes, and a gang that runs on all of them but one."""

    def __init__(self, folder: Path, on: type[Local | Ray], program: str, nodes: int) -> None:
        self._folder, self._nodes = folder, nodes
        self.on = on(folder)
        self._state, self._events = FleetState(), list[ev.Event]()
        self.on.executor.recover(self._state)
        self._controller = Controller(self._state, self.on.executor, listeners=[self._events.append])
        now_s = time.time()
        domain = ev.DomainSpec(
            name=DOMAIN, system="local", nodes=nodes + 1, gpus_per_node=1, cluster="r", spares=1
        )
        job = Job(
            name="a", kind="training", shape=Shape(nodes_per_segment=nodes), durability=Durability(max_restarts=0),
            program=Program(run=PROGRAMS[program]),
        )  # fmt: skip
        self._controller.cycle(
            [
                ev.Configured(at_s=now_s, policy=Policy()),
                ev.Delivered(at_s=now_s, domains=(domain,)),
                ev.Submitted(at_s=now_s, job=job),
            ]
        )

    def lose_one(self, number: signal.Signals) -> dict[str, float]:
        """Kill or stop the last node rank's instance; seconds from then until each stage."""
        attempt_number = self._attempt
        first = max((beat.step or 0 for beat in self._beats(attempt_number, "checkpoint")), default=0)
        self._until(lambda: any((b.step or 0) > first for b in self._beats(attempt_number, "checkpoint")))
        self._until(lambda: self._state.failed == [0] and self.on.ready(self._nodes + 1))
        spec = attempt.read_spec(self._file(attempt_number, f"spec-{self._nodes - 1}.json"))
        self._events.clear()
        began_s = time.time()
        self.on.end(spec, number)
        self._until(lambda: self._attempt > attempt_number)
        seen_s = next(event.at_s for event in self._events if isinstance(event, ev.NodeFailed))
        following = attempt_number + 1
        up = [self._file(following, f"up-{rank}") for rank in range(self._nodes)]
        self._until(lambda: all(path.exists() for path in up))
        last = max(beat.step or 0 for beat in self._beats(attempt_number, "step"))
        self._until(lambda: any((beat.step or 0) > last for beat in self._beats(following, "step")))
        steps = self._beats(following, "step")
        stages = (
            seen_s,
            max(path.stat().st_mtime for path in up),
            self._beats(following, "started")[0].at_s,
            steps[0].at_s,
            next(beat.at_s for beat in steps if (beat.step or 0) > last),
        )
        return {name: at_s - began_s for name, at_s in zip(STAGES, stages, strict=True)}

    def _until(self, holds: Callable[[], bool]) -> None:
        end_s = time.time() + 180
        while not holds():
            assert "a" in self._state.gangs, self._state.ended
            assert time.time() < end_s, f"nothing happened in {self._folder}"
            self._controller.step(time.time() + 0.1)

    @property
    def _attempt(self) -> int:
        return self._state.gangs["a"].attempt

    def _file(self, number: int, name: str) -> Path:
        return self._folder / ".rackscale/gangs/a" / str(number) / name

    def _beats(self, number: int, kind: str) -> list[Beat]:
        return [beat for beat in read_beats(self._file(number, "rank-0.jsonl"))[0] if beat.kind == kind]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", choices=("local", "ray"), default="local")
    parser.add_argument("--program", choices=PROGRAMS, default="train")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--hang", action="store_true", help="stop the instance (SIGSTOP) instead; ray only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.hang and args.on == "local":
        parser.error("--hang needs --on ray: on local nothing watches a stopped process group")
    number = signal.SIGSTOP if args.hang else signal.SIGKILL
    runs, loads = [], []
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), Ray if args.on == "ray" else Local, args.program, args.nodes)
        try:
            for _ in range(args.times):
                runs.append(site.lose_one(number))
                loads.append(os.getloadavg()[0])
                print(" ".join(f"{name} {s:.2f}" for name, s in runs[-1].items()), file=sys.stderr)
        finally:
            site.on.executor.kill()
            site.on.stop()
    told = {
        "on": args.on,
        "program": args.program,
        "nodes": args.nodes,
        "lost by": number.name,
        "load": loads,
    }
    if args.json:
        print(json.dumps({**told, "unit": "s", "runs": runs}))
        return
    print(
        f"{args.program} on {args.nodes} nodes of {args.on}, s after {number.name}, {args.times} times, load {loads}"
    )
    for name in STAGES:
        values = [run[name] for run in runs]
        print(
            f"  {name:8} median {statistics.median(values):6.2f}   min {min(values):6.2f}   max {max(values):6.2f}"
        )


if __name__ == "__main__":
    main()
