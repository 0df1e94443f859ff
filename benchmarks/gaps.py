"""How far placement and the choice of victims are from the exact optimum, on random small fleets.

Usage: python -m benchmarks.gaps [--instances N] [--seed S] [--json]

Fleets of one or two clusters with up to six domains of two to six nodes and up to ten gangs, some nodes failed and some
kept as spares. OR-Tools CP-SAT gives the optimum (it is installed with the `dev` extra).

    placement        free nodes left over in the domains used; nobody is moved
    victims          price of the gangs that leave, GPU-seconds, under priorities, budgets and quotas
    elastic victims  the same where gangs may shrink instead
    batch            weight of the gangs started in one cycle, of six to ten that wait; nobody is moved

`missed` counts instances where the optimum has an answer and ours has none, `wrong` where ours has one and no lawful
answer exists. Gaps are over the instances where both have one: ours less the best, in the unit above; `relative` is
the sum of ours over the sum of the best, less one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

from tests.against import gap
from tests.against.gap import Gap
from tests.against.instances import WEIGHTS, Pick, Seeded, busy, wanted


def placement(pick: Pick) -> Gap:
    return gap.of_placement(busy(pick, guarded=False), wanted(pick, priority="low", preemptible=False))


def victims(pick: Pick) -> Gap:
    return gap.of_victims(busy(pick), wanted(pick, priority="high", queue="c"))


def elastic_victims(pick: Pick) -> Gap:
    return gap.of_victims(busy(pick, elastic=True), wanted(pick, priority="high", queue="c"))


def batch(pick: Pick) -> Gap:
    instance = busy(pick, most_gangs=4, guarded=False)
    jobs = tuple(
        wanted(pick, f"w{i}", priority=pick(tuple(WEIGHTS)), preemptible=False)
        for i in range(pick((6, 8, 10)))
    )
    return gap.of_batch(instance, jobs)


CASES: dict[str, Callable[[Pick], Gap]] = {
    "placement": placement,
    "victims": victims,
    "elastic victims": elastic_victims,
    "batch": batch,
}


def measure(case: str, instances: int, seed: int) -> dict[str, Any]:
    """The distribution of gaps over so many instances."""
    found = [CASES[case](Seeded(seed * 1_000_003 + number)) for number in range(instances)]
    both = [g for g in found if g.ours is not None and g.best is not None]
    excess = sorted(abs(g.excess) for g in both)
    best = sum(g.best or 0 for g in both)
    return {
        "case": case,
        "instances": instances,
        "answers": len(both),
        "missed": sum(g.ours is None and g.best is not None for g in found),
        "wrong": sum(g.ours is not None and g.best is None for g in found),
        "optimal": sum(e == 0 for e in excess) / len(both) if both else 1.0,
        "mean": statistics.fmean(excess) if excess else 0.0,
        "p95": excess[int(0.95 * len(excess))] if excess else 0,
        "max": excess[-1] if excess else 0,
        "relative": sum(g.ours or 0 for g in both) / best - 1.0 if best else 0.0,
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(
        "case             instances  answers  missed  wrong  optimal       mean        p95        max  relative"
    )
    for row in rows:
        print(
            f"{row['case']:16} {row['instances']:9,} {row['answers']:8,} {row['missed']:7,} {row['wrong']:6,}"
            f" {row['optimal']:8.1%} {row['mean']:10.2f} {row['p95']:10,} {row['max']:10,} {row['relative']:+9.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gaps", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--instances", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [measure(case, args.instances, args.seed) for case in CASES]
    print(json.dumps(rows, indent=2)) if args.json else show(rows)


if __name__ == "__main__":
    main()
