"""How long one decision takes for a gang of 64 nodes in segments of 16, on a busy fleet with every rule in force.

Usage: python -m benchmarks.decide [--nodes N ...] [--cycle] [--hours H] [--samples S] [--load L] [--limit S] [--json]

    python -m benchmarks.decide                      the bars: 0.5 ms at 9,000 nodes, 1 ms at 65,520, 2 ms at 250,000
    python -m benchmarks.decide --cycle              the bar: 1,000 waiting jobs at 65,520 nodes in 100 ms

The fleet (several clusters of 18-node UltraServers) is filled by `benchmarks.mix` through the twin, that is by the
scheduler itself: arrivals, departures, preemption and failures for `--hours` of simulated time. More is asked for than
it can give, so that somebody always waits. Then the gang is asked for again and again, some events apart; `decide` is
timed and its plan is thrown away (decide changes nothing).

    fits     a gang of that size has just ended, if it did not fit anyway: it starts
    waits    of the lowest priority, while no domains are free: it has to wait
    clears   of production priority in a queue within its quota: victims of queues over theirs are chosen
    denied   the same, and no lawful set of victims opens enough domains: it has to wait

`wall` is the clock on the wall, `cpu` what this process had of its core. Domains touched are those given or claimed and
those looked at for victims and for reservations; they are counted in a second, untimed run of the same decision. Every
fleet is filled in a process of its own, with a time limit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from msgspec.structs import replace

from benchmarks import mix
from rackscale.control import Controller
from rackscale.events import (
    Cancelled,
    Claim,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    Plan,
    Planned,
    Start,
    Submitted,
)
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import mask_of
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide, preempt, reserve
from rackscale.spec import Failures
from rackscale.twin import TwinExecutor
from rackscale.workload import Job, Maintenance, Policy, Shape

SHAPE = Shape(segments=4, nodes_per_segment=16)
CYCLE_LOAD = 0.98
APART = 25
"""Cycles of the twin between two samples."""
LOAD = 1.04
"""More work than the fleet can give: somebody always waits."""
CASES = ("fits", "waits", "clears", "denied")
ASKS = (("production", "foundation", True), ("low", "platform", False), ("production", "foundation", False))
"""(priority, queue, whether a gang of that size has just ended)."""
WAITING = 1_000
PLANNED_EVERY = 50
"""One domain of so many has maintenance to come."""
POLICY = Policy(decision_interval_s=10.0, defragment="on")


def in_force() -> str:
    """The policy in words."""
    return (
        f"decisions at most every {POLICY.decision_interval_s:g} s; {len(mix.QUOTAS)} queues in a tree with quotas and"
        f" borrowing, reclaim on; fair share; {POLICY.reservations} reservations, backfill on; preemption on, with"
        f" {POLICY.candidate_domains} candidates; 1 spare node per domain; lemons after {POLICY.lemon_failures}"
        f" failures; defragmentation on; maintenance to come on 1 domain of {PLANNED_EVERY}. The gang that asks:"
        " `foundation` (production, within its quota) or `platform` (low); victims borrow. All values are assumed"
    )


def windows(fleet: tuple[DomainSpec, ...]) -> Iterator[Planned]:
    """Maintenance of some domains, over the next days."""
    for n, spec in enumerate(fleet[::PLANNED_EVERY]):
        start_s = (24.0 + n % 72) * 3600.0
        yield Planned(
            at_s=0.0,
            maintenance=Maintenance(
                name=f"m-{n}", domain=spec.name, start_s=start_s, end_s=start_s + 4 * 3600.0
            ),
        )


class Sample(NamedTuple):
    """One decision."""

    case: str
    wall_s: float
    cpu_s: float
    touched: int
    """Domains."""


class Fleet:
    """A fleet in the middle of its work, and the gang that asks."""

    def __init__(self, nodes: int, *, hours: float, load: float, seed: int) -> None:
        domains = mix.fleet(nodes * 4)
        queues = mix.queues(len(domains))
        self.twin = TwinExecutor(
            seed=seed, submissions=mix.load(len(domains), seed=seed, end_s=1e9, share=load), failures=Failures(),
            inputs=(
                Configured(at_s=0.0, policy=POLICY, queues=queues), Delivered(at_s=0.0, domains=domains),
                *windows(domains),
            ),
        )  # fmt: skip
        self.state = FleetState()
        self.controller = Controller(self.state, self.twin)
        self.random = random.Random(seed)
        self.names = itertools.count()
        while self.twin.now_s < hours * 3600.0:
            self.controller.step(hours * 3600.0)

    def ask(self, priority: str, queue: str, make_room: bool) -> Sample:
        """One decision about one gang. The fleet is afterwards as before."""
        state = self.state
        job = Job(
            name=f"asks-{next(self.names)}", kind="training", shape=SHAPE, priority=priority, queue=queue,
            duration_s=12 * 3600.0,
        )  # fmt: skip
        left = self._leaver() if make_room else None
        if left is not None:
            self._move(left, away=True)
        state.fold(Submitted(at_s=state.now_s, job=job))
        plan, wall_s, cpu_s = timed(state)
        with counted() as looked:
            decide(state, state.now_s)
        state.fold(Cancelled(at_s=state.now_s, job=job.name))
        del state.ended[job.name]
        if left is not None:
            self._move(left, away=False)
        mine = [a for a in plan.actions if isinstance(a, Start | Claim) and a.gang == job.name]
        given = len(mine[0].binding) if mine else 0
        return Sample(self._case(mine, job), wall_s, cpu_s, given + len(looked))

    def _case(self, mine: list[Start | Claim], job: Job) -> str:
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

    def burst(self, seed: int) -> tuple[Sample, Sample, int]:
        """A cycle with `WAITING` jobs that have just come, and the next in which all who still wait are looked at.

        Returns both and how many wait in the second. The state that they are tried on is thrown away.
        """
        state = self.state.fork()
        state.dirty, state.retry_at_s = True, None
        decide(state, state.now_s)  # a fork knows nothing yet of when domains come free; a live state does
        missing = WAITING - state.waiting.size
        for job in itertools.islice(_many(seed), max(0, missing)):
            state.fold(Submitted(at_s=state.now_s, job=job))
        state.dirty, state.retry_at_s = True, None
        plan, wall_s, cpu_s = timed(state)
        first = Sample("new", wall_s, cpu_s, 0)
        state.fold(Decided(at_s=state.now_s, plan=plan))
        state.dirty, state.retry_at_s = True, None
        for job in itertools.islice(_many(seed + 1), max(0, WAITING - state.waiting.size)):
            if job.shape.nodes >= 8:  # what is small starts at once, and would not wait
                state.fold(Submitted(at_s=state.now_s, job=job))
        state.fresh.clear()
        waiting = state.waiting.size
        _, wall_s, cpu_s = timed(state)
        return first, Sample("again", wall_s, cpu_s, 0), waiting

    def go_on(self) -> None:
        for _ in range(APART):
            self.controller.step(self.twin.now_s + 3600.0)


def timed(state: FleetState) -> tuple[Plan, float, float]:
    """A decision, and the seconds that it took: on the wall, and of the core."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    plan = decide(state, state.now_s)
    return plan, time.perf_counter() - wall_s, time.process_time() - cpu_s


@contextmanager
def counted() -> Iterator[set[tuple[str, int]]]:
    """Domains that decisions look at meanwhile: for victims, and for reservations."""
    looked: set[tuple[str, int]] = set()
    look, candidates = preempt._Search._look, reserve._View.candidates  # noqa: SLF001 - only counted here

    def counting_look(search: Any, d: int) -> bool:
        looked.add(("victims", d))
        return look(search, d)

    def counting_candidates(view: Any) -> Iterator[tuple[float, int]]:
        for at_s, d in candidates(view):
            looked.add(("reservations", d))
            yield at_s, d

    with (
        mock.patch.object(preempt._Search, "_look", counting_look),  # noqa: SLF001
        mock.patch.object(reserve._View, "candidates", counting_candidates),  # noqa: SLF001
    ):
        yield looked


def _many(seed: int) -> Iterator[Job]:
    """Jobs of many classes: kinds of `mix` with other sizes, users and times."""
    chance = random.Random(seed)
    for n in itertools.count():
        kind = chance.choice([kind for kind in mix.KINDS if kind.kind != "service"])
        shape = kind.shape
        if shape.segments > 1:
            shape = replace(shape, segments=chance.choice((2, 4, 8, 16)))
        else:
            shape = replace(shape, nodes_per_segment=chance.randint(1, 16))
        yield Job(
            name=f"burst-{seed}-{n}", kind=kind.kind, shape=shape, queue=kind.queue, priority=kind.priority,
            user=f"user-{chance.randrange(50)}", preemptible=kind.preemptible,
            duration_s=chance.uniform(0.1, 3.0) * kind.median_h * 3600.0,
        )  # fmt: skip


def measure(
    nodes: int, *, hours: float, samples: int, load: float, seed: int, cycle: bool = False
) -> dict[str, Any]:
    """Times by case on one fleet, in this process."""
    began_s = time.process_time()
    fleet = Fleet(nodes, hours=hours, load=load, seed=seed)
    filled_s = time.process_time() - began_s
    found: list[Sample] = []
    held: list[tuple[float, float]] = []
    waiting: list[int] = []
    for n in range(samples):
        fleet.go_on()
        held.append(_held(fleet.state))
        if cycle:
            new, again, count = fleet.burst(seed + 2 * n)
            found += [new, again]
            waiting.append(count)
            continue
        waiting.append(fleet.state.waiting.size)
        for priority, queue, make_room in ASKS:
            sample = fleet.ask(priority, queue, make_room)
            if (sample.case == "fits") == make_room:
                found.append(sample)
    state = fleet.state
    cases = {case: [s for s in found if s.case == case] for case in (*CASES, "new", "again")}
    return {
        "nodes": sum(spec.nodes for spec in state.domains),
        "gpus": sum(spec.nodes * spec.gpus_per_node for spec in state.domains),
        "domains": len(state.domains),
        "clusters": mix.CLUSTERS,
        "policy": in_force(),
        "load": load,
        "gangs": len(state.gangs),
        "waiting": statistics.fmean(waiting),
        "classes": len(state.waiting.classes),
        "held": statistics.fmean(share for share, _ in held),
        "held_of_givable": statistics.fmean(share for _, share in held),
        "fill_cpu_s": filled_s,
        "cases": {case: _summary(samples) for case, samples in cases.items() if samples},
        "samples": [(s.case, s.cpu_s, s.touched) for s in found],
    }


def _held(state: FleetState) -> tuple[float, float]:
    """Share of all nodes, and of those that placement may give, that gangs hold."""
    held = sum(mask.bit_count() for mask in state.occupancy.held)
    nodes, spares = sum(spec.nodes for spec in state.domains), sum(spec.spares for spec in state.domains)
    return held / nodes, held / (nodes - spares)


def _summary(samples: list[Sample]) -> dict[str, float]:
    wall, cpu = sorted(s.wall_s for s in samples), sorted(s.cpu_s for s in samples)
    return {
        "samples": len(samples),
        "touched": statistics.fmean(s.touched for s in samples),
        "wall_p50_ms": statistics.median(wall) * 1e3,
        "wall_p99_ms": wall[int(0.99 * len(wall))] * 1e3,
        "cpu_p50_ms": statistics.median(cpu) * 1e3,
        "cpu_p99_ms": cpu[int(0.99 * len(cpu))] * 1e3,
    }


def fit(xs: list[float], ys: list[float]) -> tuple[float, float, float] | None:
    """Least squares: (intercept, slope, R^2); None where x does not vary."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    slope, intercept = statistics.linear_regression(xs, ys)
    return intercept, slope, statistics.correlation(xs, ys) ** 2


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"one gang of {SHAPE.segments} x {SHAPE.nodes_per_segment} nodes, load {rows[0]['load']:g}; milliseconds"
    )
    print(f"{rows[0]['policy']}\n")
    print(
        "    nodes       GPUs  domains   gangs  waiting  held  of givable  case    samples  touched  p50 wall"
        "  p99 wall   p50 cpu   p99 cpu  growth"
    )
    first = rows[0]
    for row in rows:
        for case, found in row["cases"].items():
            base = first["cases"].get(case)
            growth = f"{found['cpu_p50_ms'] / base['cpu_p50_ms']:5.1f} x" if base else "      -"
            print(
                f"{row['nodes']:9,} {row['gpus']:10,} {row['domains']:8,} {row['gangs']:7,} {row['waiting']:8,.0f}"
                f" {row['held']:5.1%} {row['held_of_givable']:11.1%}"
                f"  {case:7} {found['samples']:7,} {found['touched']:8.0f} {found['wall_p50_ms']:9.3f}"
                f" {found['wall_p99_ms']:9.3f} {found['cpu_p50_ms']:9.3f} {found['cpu_p99_ms']:9.3f} {growth}"
            )
    show_fits(rows)


def show_fits(rows: list[dict[str, Any]]) -> None:
    """What the time follows: domains touched, or nodes of the fleet. Over the samples of all sizes, CPU time."""
    print("\nleast squares over all samples, CPU time")
    samples = [
        (case, 1e6 * cpu_s, touched, row["nodes"]) for row in rows for case, cpu_s, touched in row["samples"]
    ]
    for name, cases in (("clears", ("clears",)), ("all", CASES)):
        those = [s for s in samples if s[0] in cases]
        for unit, xs in (
            ("domain touched", [float(s[2]) for s in those]),
            ("1,000 nodes", [s[3] / 1e3 for s in those]),
        ):
            found = fit(xs, [s[1] for s in those])
            if found is not None:
                intercept, slope, r2 = found
                print(
                    f"  {name:7} {intercept:9.1f} us + {slope:8.3f} us per {unit:15} R^2 {r2:5.3f}  n {len(those):,}"
                )


def _apart(nodes: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """One fleet in a process of its own; None where it took too long."""
    command = [
        sys.executable, "-m", "benchmarks.decide", "--here", "--nodes", str(nodes), "--hours", str(args.hours),
        "--samples", str(args.samples), "--load", str(args.load), "--seed", str(args.seed),
        *(["--cycle"] if args.cycle else []),
    ]  # fmt: skip
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        print(f"{nodes:,} nodes took more than {args.limit:g} s and were left out", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decide", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--nodes", type=int, nargs="+", metavar="N")
    parser.add_argument("--cycle", action="store_true", help=f"whole cycles with {WAITING:,} waiting jobs")
    parser.add_argument("--hours", type=float, default=2.0, help="simulated hours before the first sample")
    parser.add_argument("--samples", type=int, help="decisions of each case that are tried")
    parser.add_argument(
        "--load",
        type=float,
        help=f"work asked for, of what the fleet can give ({LOAD:g}; {CYCLE_LOAD:g} with --cycle)",
    )
    parser.add_argument("--limit", type=float, default=150.0, metavar="S", help="seconds for one fleet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.nodes = args.nodes or ([65_520] if args.cycle else [2_500, 9_000, 25_000, 65_520, 250_000])
    args.load = args.load or (CYCLE_LOAD if args.cycle else LOAD)
    args.samples = args.samples or (10 if args.cycle else 100)
    if args.here:
        options = {"hours": args.hours, "samples": args.samples, "load": args.load, "seed": args.seed}
        print(json.dumps(measure(args.nodes[0], cycle=args.cycle, **options)))
        return
    rows = [row for nodes in args.nodes if (row := _apart(nodes, args)) is not None]
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        show(rows)


if __name__ == "__main__":
    main()
