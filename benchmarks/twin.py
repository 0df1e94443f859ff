"""Events per second of the twin, with preemption and failures on.

Usage: python -m benchmarks.twin [--gpus N ...] [--days D] [--load L] [--interval S] [--seed S] [--json]

    python -m benchmarks.twin --gpus 100000 --days 30             the bar: 60 s on one core, 2 GB
    python -m benchmarks.twin --gpus 10000 100000 1000000         how it grows

The load is `benchmarks.mix`, the loop is `rackscale.twin.play`: everything that a rehearsal does, its ledger and its
counts too. An event is one record of the journal (the split says which). Times are of this process on one core: `cpu`
is what the machine gave it, `wall` what a clock on the wall showed. Every size runs in a process of its own, so that
the memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks import mix
from rackscale.events import Configured, Delivered
from rackscale.fleet.state import FleetState
from rackscale.spec import Failures
from rackscale.twin import TwinExecutor, play
from rackscale.workload import Policy, Queue

DAY_S = 86_400.0


INTERVAL_S = 10.0
"""Between decisions (assumed: an operator's choice; Slurm's main loop runs every 60 s, its backfill every 30 s)."""


def policy(interval_s: float = INTERVAL_S) -> Policy:
    """Everything on: preemption, reclaim, backfill with reservations, fair share. Else the defaults."""
    return Policy(decision_interval_s=interval_s)


def measure(gpus: int, days: float, seed: int, load: float, interval_s: float = INTERVAL_S) -> dict[str, Any]:
    """One run from an empty fleet, in this process."""
    fleet, rules = mix.fleet(gpus), policy(interval_s)
    queues = mix.queues(len(fleet))
    twin = TwinExecutor(
        seed=seed, submissions=mix.load(len(fleet), seed=seed, end_s=days * DAY_S, share=load),
        failures=Failures(),
        inputs=(Configured(at_s=0.0, policy=rules, queues=queues), Delivered(at_s=0.0, domains=fleet)),
    )  # fmt: skip
    before, state = _megabytes(), FleetState()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = play(state, twin, until_s=days * DAY_S, seed=seed)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    total = sum(found.events.values())
    return {
        "gpus": found.gpus,
        "domains": len(fleet),
        "days": days,
        "load": load,
        "policy": in_force(rules, queues),
        "events": total,
        "events_by_kind": found.events,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "events_per_cpu_s": total / cpu_s,
        "events_per_wall_s": total / wall_s,
        "jobs": found.jobs,
        "jobs_per_cpu_s": found.jobs["submitted"] / cpu_s,
        "departures": found.departures,
        "preemptions": found.departures.get("preempted-for", 0),
        "failures": sum(found.failures.values()),
        "restarts": found.restarts,
        "held": sum(found.occupancy[len(found.occupancy) // 4 :]) / (len(found.occupancy) * 3 / 4),
        "memory_mb": _megabytes(),
        "memory_before_mb": before,
    }


def in_force(rules: Policy, queues: tuple[Queue, ...]) -> str:
    """The policy in words."""
    quotas = sum(queue.guaranteed for queue in queues)
    half_life_d = (rules.fair_share_half_life_s or 0.0) / DAY_S
    failures = Failures()
    return (
        f"decisions at most every {rules.decision_interval_s:g} s; {rules.reservations} reservations, backfill"
        f" {_on(rules.backfill)}; fair share, half-life {half_life_d:g} d; {len(queues)} queues in a tree, {quotas}"
        f" with quotas, reclaim {_on(rules.reclaim)}; preemption {_on(rules.preemption)}; {failures.per_gpu_hour:g}"
        f" failures per GPU-hour, {failures.domain_share:.0%} of whole domains; the load and these values are assumed"
    )


def _on(value: bool) -> str:
    return "on" if value else "off"


def _megabytes() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _apart(gpus: int, days: float, seed: int, load: float, interval_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.twin", "--here", "--gpus", str(gpus), "--days", str(days)]
    run = subprocess.run(
        [*command, "--seed", str(seed), "--load", str(load), "--interval", str(interval_s)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{rows[0]['days']:g} simulated day(s) at load {rows[0]['load']:g}, ledger and quality metrics on")
    print(f"{rows[0]['policy']}\n")
    print(
        "     GPUs  domains  held       jobs      events   cpu s  wall s  events/s  jobs/s  us/job"
        "  preempted  failed     MB"
    )
    for row in rows:
        print(
            f"{row['gpus']:9,} {row['domains']:8,} {row['held']:5.1%} {row['jobs']['submitted']:10,}"
            f" {row['events']:11,} {row['cpu_s']:7.1f} {row['wall_s']:7.1f} {row['events_per_cpu_s']:9,.0f}"
            f" {row['jobs_per_cpu_s']:7,.0f} {1e6 / row['jobs_per_cpu_s']:7.0f} {row['preemptions']:10,}"
            f" {row['failures']:7,} {row['memory_mb']:6,.0f}"
        )
    print("\nevents by kind")
    for row in rows:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in row["events_by_kind"].items())
        print(f"{row['gpus']:9,}  {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.twin", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[10_000, 100_000], metavar="N")
    parser.add_argument("--days", type=float, default=1.0, metavar="D", help="simulated days")
    parser.add_argument(
        "--load", type=float, default=mix.LOAD, help="work asked for, of what the fleet can give"
    )
    parser.add_argument(
        "--interval", type=float, default=INTERVAL_S, metavar="S", help="seconds between decisions"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.gpus[0], args.days, args.seed, args.load, args.interval)))
        return
    rows = [_apart(gpus, args.days, args.seed, args.load, args.interval) for gpus in args.gpus]
    print(json.dumps(rows, indent=2)) if args.json else show(rows)


if __name__ == "__main__":
    main()
