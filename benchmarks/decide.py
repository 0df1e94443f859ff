"""What one decision costs: a 64-node gang in segments of 16, on a busy fleet.

Usage: python -m benchmarks.decide [--nodes N ...] [--hours H] [--repeat R] [--json]

The fleet is filled by `benchmarks.mix` through the same control loop (arrivals, ends, failures, preemption) for some
simulated hours, then one gang is put in front of `decide` again and again, in three situations:

    fits    there is room: domains are emptied first where the fleet is too full
    waits   it has no room and nobody may be evicted for it (same priority as everyone)
    clears  it has no room, is of the highest priority, and domains must be cleared for it

Microseconds of this process's own time (its CPU time: on a shared machine the wall says little).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from benchmarks import mix
from rackscale.control import Controller
from rackscale.events import (
    Cancelled,
    Claim,
    Configured,
    Decided,
    Delivered,
    GangEnded,
    Plan,
    Start,
    Submitted,
)
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.spec import Failures
from rackscale.twin import TwinExecutor
from rackscale.workload import Job, Policy, Shape

HOUR_S = 3600.0
SIZES = (2_500, 9_000, 25_000, 65_520, 250_000)
"""Nodes: 10^4, 3.6 x 10^4, 10^5, 2.6 x 10^5 and 10^6 GPUs."""
SHAPE = Shape(segments=4, nodes_per_segment=16)


def busy(nodes: int, hours: float, seed: int) -> FleetState:
    """A fleet in the middle of its day."""
    fleet = mix.fleet(nodes * 4)
    state = FleetState()
    twin = TwinExecutor(
        seed=seed, submissions=mix.load(len(fleet), seed=seed, end_s=hours * HOUR_S), failures=Failures(),
        inputs=(Configured(at_s=0.0, policy=Policy()), Delivered(at_s=0.0, domains=fleet)),
    )  # fmt: skip
    controller = Controller(state, twin)
    while twin.now_s < hours * HOUR_S and not twin.done:
        controller.step(hours * HOUR_S)
    return state


def held(state: FleetState) -> float:
    """Share of the nodes that gangs hold."""
    occupancy = state.occupancy
    return sum(m.bit_count() for m in occupancy.held) / sum(m.bit_count() for m in occupancy.full)


def ask(state: FleetState, priority: str, repeat: int) -> tuple[list[float], Plan]:
    """CPU microseconds of `decide` for one new gang, sorted, and what it decides. The state is as before."""
    times: list[float] = []
    name = "benchmark"
    for _ in range(repeat):
        state.fold(
            Submitted(at_s=state.now_s, job=Job(name=name, kind="training", shape=SHAPE, priority=priority))
        )
        began_ns = time.process_time_ns()
        plan = decide(state, state.now_s)
        times.append((time.process_time_ns() - began_ns) / 1000)
        state.fold(Cancelled(at_s=state.now_s, job=name))
        state.ended.pop(name)
    return sorted(times), plan


def empty(state: FleetState, domains: int) -> None:
    """Let the gangs of a few domains finish, so that there is room."""
    for d in range(domains):
        for gang in list(state.tenants.on[d]):
            attempt = state.gangs[gang].attempt
            state.fold(GangEnded(at_s=state.now_s, gang=gang, attempt=attempt, outcome="finished"))


def settle(state: FleetState) -> None:
    """Bring the state to where nothing else is left to decide, with the waiting line emptied."""
    for job in [gang.job for gang in state.gangs.values() if not gang.binding]:
        state.fold(Cancelled(at_s=state.now_s, job=job))
    state.fold(Decided(at_s=state.now_s, plan=Plan(at_s=state.now_s)))


def measure(nodes: int, hours: float, repeat: int, seed: int) -> dict[str, Any]:
    """One size, in the three situations."""
    began_s = time.process_time()
    state = busy(nodes, hours, seed)
    row: dict[str, Any] = {
        "nodes": sum(m.bit_count() for m in state.occupancy.full), "domains": len(state.domains),
        "gangs": len(state.gangs), "waiting": state.waiting.size, "held": held(state),
    }  # fmt: skip
    settle(state)
    row["fill_cpu_s"] = time.process_time() - began_s
    take_room(state)
    for situation, priority, wanted in (("waits", "low", None), ("clears", "production", Claim)):
        times, plan = ask(state, priority, repeat)
        row[situation] = _summary(times, plan, wanted)
    empty(state, max(8, len(state.domains) // 50))
    settle(state)
    times, plan = ask(state, "normal", repeat)
    row["fits"] = _summary(times, plan, Start)
    return row


def take_room(state: FleetState) -> None:
    """Fill every domain that could still take a segment, so that the gang has no room."""
    for number in range(len(state.domains)):
        job = Job(name=f"filler-{number}", kind="batch", shape=Shape(nodes_per_segment=16), preemptible=False)
        state.fold(Submitted(at_s=state.now_s, job=job))
        plan = decide(state, state.now_s)
        state.fold(Decided(at_s=state.now_s, plan=plan))
        if not any(isinstance(action, Start) and action.gang == job.name for action in plan.actions):
            break
    settle(state)


def _summary(times: list[float], plan: Plan, wanted: type | None) -> dict[str, float]:
    kinds = [type(action).__name__ for action in plan.actions]
    assert (not kinds) if wanted is None else isinstance(plan.actions[0], wanted), kinds
    return {"p50_us": times[len(times) // 2], "p99_us": times[int(len(times) * 0.99)], "actions": len(kinds)}


def show(rows: list[dict[str, Any]]) -> None:
    print("one 64-node gang in segments of 16: CPU microseconds of decide, p50 (p99)\n")
    print("   nodes     GPUs  domains   held   gangs             fits            waits           clears")
    for row in rows:
        cells = "".join(
            f"{row[s]['p50_us']:9,.0f} ({row[s]['p99_us']:,.0f})".rjust(17)
            for s in ("fits", "waits", "clears")
        )
        print(
            f"{row['nodes']:8,} {row['nodes'] * 4:8,} {row['domains']:8,} {row['held']:6.1%} {row['gangs']:7,}{cells}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decide", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--hours", type=float, default=6.0, help="simulated hours before the question")
    parser.add_argument("--repeat", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for nodes in args.nodes:
        print(f"filling {nodes:,} nodes ...", file=sys.stderr)
        rows.append(measure(nodes, args.hours, args.repeat, args.seed))
    print(json.dumps(rows, indent=2)) if args.json else show(rows)


if __name__ == "__main__":
    main()
