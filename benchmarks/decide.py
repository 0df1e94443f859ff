"""How long one decision takes for a gang of 64 nodes in segments of 16, on a busy fleet.

Usage: python -m benchmarks.decide [--nodes N ...] [--hours H] [--samples S] [--load L] [--json]

The fleet (several clusters of 18-node UltraServers) is filled by `benchmarks.mix` through the twin, that is by the
scheduler itself: arrivals, departures, preemption and failures for `--hours` of simulated time. Then the gang is asked
for again and again, some events apart; `decide` is timed and its plan is thrown away (decide changes nothing).

    fits     a gang of that size has just ended, if it did not fit anyway: it starts
    waits    of the lowest priority, while no domains are free: it has to wait
    clears   of production priority, while no domains are free: victims are chosen and domains claimed
    denied   of production priority, and no lawful set of victims opens enough domains: it has to wait

`wall` is the clock on the wall, `cpu` what this process had of its core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from typing import Any

from benchmarks import mix
from rackscale.control import Controller
from rackscale.events import Cancelled, Claim, Configured, Delivered, Plan, Start, Submitted
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import mask_of
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.spec import Failures
from rackscale.twin import TwinExecutor
from rackscale.workload import Job, Policy, Shape

SHAPE = Shape(segments=4, nodes_per_segment=16)
POLICY = Policy(defragment="on")
"""All of it is on: quotas with borrowing and reclaim, fair share, reservations, backfill, spares, defragmentation."""
APART = 25
"""Cycles of the twin between two samples."""
LOAD = 1.15
"""More work than the fleet can give: somebody always waits, so that no four domains are free for long."""
CASES = ("fits", "waits", "clears", "denied")


class Fleet:
    """A fleet in the middle of its work, and the gang that asks."""

    def __init__(self, nodes: int, *, hours: float, load: float, seed: int) -> None:
        domains = mix.fleet(nodes * 4)
        self.twin = TwinExecutor(
            seed=seed, submissions=mix.load(len(domains), seed=seed, end_s=1e9, share=load), failures=Failures(),
            inputs=(
                Configured(at_s=0.0, policy=POLICY, queues=mix.queues(len(domains))),
                Delivered(at_s=0.0, domains=domains),
            ),
        )  # fmt: skip
        self.state = FleetState()
        self.controller = Controller(self.state, self.twin)
        self.random = random.Random(seed)
        self.names = itertools.count()
        while self.twin.now_s < hours * 3600.0:
            self.controller.step(hours * 3600.0)

    def ask(self, priority: str, *, make_room: bool = False) -> tuple[str, float, float]:
        """(case, wall seconds, CPU seconds) of one decision about one gang. The fleet is afterwards as before."""
        state = self.state
        queue = "foundation" if priority == "production" else "platform"
        job = Job(
            name=f"asks-{next(self.names)}", kind="training", shape=SHAPE, priority=priority, queue=queue,
            user="asker", duration_s=6 * 3600.0,
        )  # fmt: skip
        left = self._leaver() if make_room else None
        if left is not None:
            self._move(left, away=True)
        state.fold(Submitted(at_s=state.now_s, job=job))
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        plan = decide(state, state.now_s)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        state.fold(Cancelled(at_s=state.now_s, job=job.name))
        del state.ended[job.name]
        if left is not None:
            self._move(left, away=False)
        return self._case(plan, job), wall_s, cpu_s

    def _case(self, plan: Plan, job: Job) -> str:
        mine = [a for a in plan.actions if isinstance(a, Start | Claim) and a.gang == job.name]
        if mine:
            return "fits" if isinstance(mine[0], Start) else "clears"
        return "waits" if job.priority == "low" else "denied"

    def _leaver(self) -> Gang | None:
        """A running gang of the same shape."""
        gangs = [
            gang
            for gang in self.state.gangs.values()
            if gang.status is Status.RUNNING and self.state.jobs[gang.job].shape == SHAPE
        ]
        return self.random.choice(gangs) if gangs else None

    def _move(self, gang: Gang, *, away: bool) -> None:
        occupancy = self.state.occupancy
        for segment in gang.binding:
            change = occupancy.release if away else occupancy.hold
            change(self.state.index[segment.domain], mask_of(segment.nodes))

    def go_on(self) -> None:
        for _ in range(APART):
            self.controller.step(self.twin.now_s + 3600.0)


def measure(nodes: int, *, hours: float, samples: int, load: float, seed: int) -> dict[str, Any]:
    """Times by case on one fleet, in this process."""
    began_s = time.process_time()
    fleet = Fleet(nodes, hours=hours, load=load, seed=seed)
    filled_s = time.process_time() - began_s
    times: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    held: list[float] = []
    for _ in range(samples):
        fleet.go_on()
        held.append(_held(fleet.state))
        for priority, make_room in (("production", True), ("low", False), ("production", False)):
            case, wall_s, cpu_s = fleet.ask(priority, make_room=make_room)
            if (case == "fits") == make_room:
                times[case].append((wall_s, cpu_s))
    state = fleet.state
    return {
        "nodes": sum(spec.nodes for spec in state.domains),
        "gpus": sum(spec.nodes * spec.gpus_per_node for spec in state.domains),
        "domains": len(state.domains),
        "clusters": mix.CLUSTERS,
        "gangs": len(state.gangs),
        "waiting": state.waiting.size,
        "held": statistics.fmean(held),
        "fill_cpu_s": filled_s,
        "cases": {case: _summary(found) for case, found in times.items() if found},
    }


def _held(state: FleetState) -> float:
    held = sum(mask.bit_count() for mask in state.occupancy.held)
    return held / sum(spec.nodes for spec in state.domains)


def _summary(found: list[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = (sorted(times) for times in zip(*found, strict=True))
    return {
        "samples": len(found),
        "wall_p50_ms": statistics.median(wall) * 1e3,
        "wall_p99_ms": wall[int(0.99 * len(wall))] * 1e3,
        "cpu_p50_ms": statistics.median(cpu) * 1e3,
        "cpu_p99_ms": cpu[int(0.99 * len(cpu))] * 1e3,
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(f"one gang of {SHAPE.segments} x {SHAPE.nodes_per_segment} nodes; milliseconds\n")
    print(
        "    nodes       GPUs  domains   gangs  held  case    samples  p50 wall  p99 wall   p50 cpu   p99 cpu  growth"
    )
    first = rows[0]
    for row in rows:
        for case, found in row["cases"].items():
            base = first["cases"].get(case)
            growth = f"{found['cpu_p50_ms'] / base['cpu_p50_ms']:5.1f} x" if base else "      -"
            print(
                f"{row['nodes']:9,} {row['gpus']:10,} {row['domains']:8,} {row['gangs']:7,} {row['held']:5.1%}"
                f"  {case:7} {found['samples']:7,} {found['wall_p50_ms']:9.3f} {found['wall_p99_ms']:9.3f}"
                f" {found['cpu_p50_ms']:9.3f} {found['cpu_p99_ms']:9.3f} {growth}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decide", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[2_500, 9_000, 25_000, 65_520, 250_000], metavar="N"
    )
    parser.add_argument("--hours", type=float, default=8.0, help="simulated hours before the first sample")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--load", type=float, default=LOAD, help="work asked for, of what the fleet can give")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    options = {"hours": args.hours, "samples": args.samples, "load": args.load, "seed": args.seed}
    rows = [measure(nodes, **options) for nodes in args.nodes]
    print(json.dumps(rows, indent=2)) if args.json else show(rows)


if __name__ == "__main__":
    main()
