"""Schedulers side by side on recorded jobs: waits of whole-domain gangs, lost work, occupancy, fragmentation.

    python -m benchmarks.traces                 two weeks, every load, three seeds: whole tables, ten minutes
    python -m benchmarks.traces --days 26       all that the record has of a full cluster
    python -m benchmarks.traces --scale small   a quarter of the jobs, four days: seconds

`benchmarks.recorded` says how the records become work, `benchmarks.peers` what the other schedulers stand for. All
run in the same twin, with the same jobs, failures and seeds. The records lie beside the project in
../shared/data/jobs; without them there is nothing to compare.

What is measured, for gangs submitted after the warm-up:

    wait       from submission to the first start. Gangs that never started count as having waited until the end, at
               least; those submitted in the last day are left out.
and over the whole run, as `rackscale quality` defines them:

    occupancy  SOR: GPU-time that gangs held, of all delivered
    useful     productive GPU-time, of all delivered
    lost       work that has to be done again, of all delivered; by the scheduler: because it sent gangs away
    overhead   checkpointing, leaving and starting again because it sent gangs away, of all delivered
    GFR        domains in use that have idle nodes left beyond their spares, of all
    stranded   GPU-time of those nodes, of all that was free
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from msgspec.structs import replace

from benchmarks import peers, recorded
from benchmarks.recorded import DAY_S, GPUS_PER_NODE, NODES, Record, World
from rackscale.capacity.waits import quantile
from rackscale.control import Decide
from rackscale.events import Configured, Decided, Delivered, Event, Start, Submitted
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.spec import Failures
from rackscale.twin import Rehearsal, TwinExecutor, play
from rackscale.workload import Policy

SCHEDULERS: dict[str, Callable[[], Decide]] = {
    "FIFO": peers.Fifo,
    "EASY + quota": peers.Easy,
    "EASY by rack": peers.Racks,
    "no topology": peers.Scatter,
    "rackscale": lambda: decide,
}
POLICY = Policy(max_evictions_per_day=12)
"""The full policy, as it is by default but for one guard: production comes here in bursts of short gangs, and with
four evictions a day and gang a third of the fleet is soon out of their reach. What an eviction costs is counted."""
LOADS = (0.7, 0.85, 0.95)
SEEDS = (1, 2, 3)
SENT_AWAY = ("preempted", "reclaimed", "shrunk", "moved")
"""Causes in the ledger that are the scheduler's doing."""
SCALES: dict[str, dict[str, float]] = {
    "full": {"days": 14.0, "warm_days": 2.0, "cool_days": 1.0, "thin": 1.0, "largest": 16},
    "small": {"days": 4.0, "warm_days": 1.0, "cool_days": 0.5, "thin": 0.25, "largest": 4},
}
QUANTILES = (0.5, 0.95, 0.99)
CLASSES = ("production", "research 9-32 nodes", "research 2-8 nodes", "research 1 node")


class Waits:
    """A listener: waits from submission to the first start, by class."""

    def __init__(self, *, warm_s: float, cool_s: float) -> None:
        self._warm_s, self._cool_s = warm_s, cool_s
        self._open: dict[str, tuple[str, float]] = {}
        self._waits: dict[str, list[tuple[float, bool]]] = defaultdict(list)

    def __call__(self, event: Event) -> None:
        match event:
            case Submitted(at_s=at_s, job=job) if self._warm_s <= at_s < self._cool_s:
                self._open[job.name] = (kind(job.queue, job.shape.nodes), at_s)
            case Decided(plan=plan):
                for action in plan.actions:
                    if type(action) is Start and action.gang in self._open:
                        name, at_s = self._open.pop(action.gang)
                        self._waits[name].append((event.at_s - at_s, False))

    def answer(self, until_s: float) -> dict[str, dict[str, Any]]:
        """Quantiles by class, seconds; `open` counts those that never started, with their waits so far."""
        waits = {name: list(found) for name, found in self._waits.items()}
        for name, at_s in self._open.values():
            waits.setdefault(name, []).append((until_s - at_s, True))
        return {
            name: {
                "gangs": len(found),
                "open": sum(unstarted for _, unstarted in found),
                "mean_s": mean(wait for wait, _ in found),
                **{f"p{share * 100:g}_s": quantile(sorted(wait for wait, _ in found), share) for share in QUANTILES},
            }
            for name in CLASSES
            if (found := waits.get(name))
        }  # fmt: skip


def kind(queue: str, nodes: int) -> str:
    """The class of a gang, one of `CLASSES`."""
    if queue == recorded.PRODUCTION:
        return CLASSES[0]
    return CLASSES[1] if nodes > 8 else CLASSES[2] if nodes > 1 else CLASSES[3]


def measure(
    world: World, scheduler: str, *, seed: int, warm_s: float, cool_s: float, policy: Policy = POLICY
) -> dict[str, Any]:
    """One rehearsal of a world under one scheduler."""
    state = FleetState()
    twin = TwinExecutor(
        seed=seed, submissions=world.submissions, failures=Failures(),
        inputs=(
            Configured(at_s=0.0, policy=policy, queues=world.queues),
            Delivered(at_s=0.0, domains=world.fleet),
        ),
    )  # fmt: skip
    waits = Waits(warm_s=warm_s, cool_s=world.until_s - cool_s)
    started_s = time.process_time()
    found = play(
        state, twin, until_s=world.until_s, seed=seed, listeners=(waits,), decide=SCHEDULERS[scheduler]()
    )
    quality = found.quality
    assert quality.sor is not None
    assert quality.gfr.mean is not None
    sent = [row for row in found.ledger if row.cause in SENT_AWAY]
    lost_h = sum(row.gpu_h for row in sent if row.state == "lost")
    return {
        "scheduler": scheduler,
        "seed": seed,
        "load": world.load,
        "domains": len(world.fleet),
        "gpus": len(world.fleet) * NODES * GPUS_PER_NODE,
        "waits": waits.answer(world.until_s),
        "occupancy": quality.sor,
        "useful": _share(found, "productive"),
        "lost": _share(found, "lost"),
        "lost_sent": lost_h / quality.delivered_gpu_h,
        "overhead": (sum(row.gpu_h for row in sent) - lost_h) / quality.delivered_gpu_h,
        "gfr": quality.gfr.mean,
        "stranded": quality.stranded_of_free or 0.0,
        "departures": found.departures,
        "jobs": found.jobs,
        "failures": sum(found.failures.values()),
        "cpu_s": time.process_time() - started_s,
    }


def _share(found: Rehearsal, state: str) -> float:
    return next(total.share for total in found.totals if total.state == state)


def compare(
    research: Sequence[Record],
    production: Sequence[Record],
    *,
    scale: str,
    loads: Sequence[float],
    seeds: Sequence[int],
    schedulers: Sequence[str],
    mix: recorded.Mix | None = None,
    policy: Policy = POLICY,
    days: float | None = None,
    progress: Callable[[str], object] = str,
) -> list[dict[str, Any]]:
    """One row per load, seed and scheduler."""
    size = SCALES[scale]
    rows = []
    for load in loads:
        for seed in seeds:
            world = recorded.world(
                research, production, load=load, days=days or size["days"], seed=seed, mix=mix, thin=size["thin"],
                largest=int(size["largest"]),
            )  # fmt: skip
            for scheduler in schedulers:
                row = measure(
                    world, scheduler, seed=seed, warm_s=size["warm_days"] * DAY_S, cool_s=size["cool_days"] * DAY_S,
                    policy=policy,
                )  # fmt: skip
                rows.append(row | {"asked_load": load})
                progress(
                    f"load {load:g}, seed {seed}, {scheduler}: {row['jobs']['finished']:,} finished,"
                    f" {row['cpu_s']:.0f} s"
                )
    return rows


# -- tables ----------------------------------------------------------------------------------------------------------


def show(rows: list[dict[str, Any]]) -> None:
    """All tables. Where there are several seeds, the mean over them and, of the bars, the worst."""
    for load in dict.fromkeys(row["asked_load"] for row in rows):
        these = [row for row in rows if row["asked_load"] == load]
        domains = sorted({row["domains"] for row in these})
        print(
            f"\nload {load:g}: {_span(domains)} UltraServers, {len({row['seed'] for row in these})} seed(s)\n"
        )
        _show_waits(these)
        _show_use(these)
        _show_bars(these)


def _span(values: list[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _by_scheduler(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["scheduler"]].append(row)
    return found


def _show_waits(rows: list[dict[str, Any]]) -> None:
    print("wait, hours (mean over seeds)    gangs  never started      mean       p50       p95       p99")
    for name in CLASSES:
        for scheduler, these in _by_scheduler(rows).items():
            found = [row["waits"][name] for row in these if name in row["waits"]]
            if not found:
                continue
            hours = [
                mean(wait[key] for wait in found) / 3600 for key in ("mean_s", "p50_s", "p95_s", "p99_s")
            ]
            print(
                f"{name:19} {scheduler:13} {sum(w['gangs'] for w in found):5,} {sum(w['open'] for w in found):14,}"
                + "".join(f" {h:9.3f}" for h in hours)
            )
    print()


def _show_use(rows: list[dict[str, Any]]) -> None:
    shares = ("occupancy", "useful", "lost", "lost_sent", "overhead", "gfr", "stranded")
    print(f"{'of all GPU-time, %':14}" + "".join(f" {name:>14}" for name in shares) + "  sent away  finished")
    for scheduler, these in _by_scheduler(rows).items():
        cells = "".join(f" {mean(row[name] for row in these):14.2%}" for name in shares)
        sent = mean(sum(row["departures"].values()) for row in these)
        finished = mean(row["jobs"]["finished"] for row in these)
        print(f"{scheduler:18}{cells} {sent:10,.0f} {finished:9,.0f}")
    print()


def _show_bars(rows: list[dict[str, Any]]) -> None:
    """What rackscale is held to, seed by seed."""
    found = _by_scheduler(rows)
    for name in ("EASY + quota", "EASY by rack"):
        for ours, theirs in zip(found.get("rackscale", []), found.get(name, []), strict=False):
            waits = [
                row["waits"][CLASSES[0]]["p95_s"] for row in (theirs, ours) if CLASSES[0] in row["waits"]
            ]
            if len(waits) == 2:
                print(
                    f"seed {ours['seed']}, against {name}: p95 wait of production"
                    f" {waits[0] / max(waits[1], 1.0):,.0f} times lower, lost {ours['lost']:.2%},"
                    f" occupancy {ours['occupancy'] - theirs['occupancy']:+.2%},"
                    f" GFR {ours['gfr'] - theirs['gfr']:+.2%}"
                )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traces", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS), metavar="L")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="N")
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS), default=list(SCHEDULERS))
    parser.add_argument(
        "--guarantee", type=float, default=recorded.Mix().guarantee, metavar="Q",
        help="quantile in time of production's demand that its quota covers",
    )  # fmt: skip
    parser.add_argument(
        "--research", type=float, default=recorded.Mix().research_share, metavar="S",
        help="share of the rest that is guaranteed to the virtual clusters",
    )  # fmt: skip
    parser.add_argument(
        "--evictions", type=int, default=POLICY.max_evictions_per_day, metavar="N",
        help="preemptions that rackscale lets one gang suffer in a day",
    )  # fmt: skip
    parser.add_argument("--days", type=float, default=None, metavar="D", help="instead of the scale's")
    parser.add_argument("--data", type=Path, default=None, help="the folder with the records")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = args.data or recorded.found(Path(__file__).parents[1])
    if data is None:
        sys.exit("there are no records in ../shared/data/jobs: say where they are with --data")
    rows = compare(
        recorded.read(data / "philly_first_half.parquet"), recorded.read(data / "acme_kalos_completed.parquet"),
        scale=args.scale, loads=args.loads, seeds=args.seeds, schedulers=args.schedulers,
        policy=replace(POLICY, max_evictions_per_day=args.evictions),
        mix=recorded.Mix(guarantee=args.guarantee, research_share=args.research), days=args.days,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(json.dumps(rows, indent=2)) if args.json else show(rows)


if __name__ == "__main__":
    main()
