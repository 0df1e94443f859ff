"""How well sizing predicts measured training steps, and how fast: errors held out, ranking, memory, search speed.

    python -m benchmarks.training                 what README and docs/explanation/scorecard.md quote
    python -m benchmarks.training --fit           fits the constants anew and writes src/rackscale/sizing/fitted.toml
    python -m benchmarks.training --speed         layouts per second, and a whole answer with start-up
    python -m benchmarks.training --ablate        what the fit loses when a constant is held at its prior

Reads ../shared/data/training/measured.csv, or the file that --data names. Needs SciPy (the extra "calibrate").
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from rackscale import models
from rackscale.sizing import bands, calibration
from rackscale.sizing.calibration import Errors, Problem
from rackscale.sizing.constants import constants
from rackscale.sizing.layout import Array
from rackscale.sizing.measurements import Measurement, groups, read
from rackscale.sizing.memory import OUT, memory, verdicts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import divisions, price, savings, search

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared/data/training/measured.csv"
FITTED = ROOT / "src/rackscale/sizing/fitted.toml"


def publisher(source: str) -> str:
    """Releases of one publisher's tables are reruns of the same recipes: they are left out together."""
    return re.split(r"-?v?\d", source)[0]


HELD: dict[str, Callable[[Measurement], str]] = {
    "model": lambda row: row.model.name,
    "system": lambda row: row.recipe.system,
    "source": lambda row: publisher(row.source),
}
"""What is left out together."""


def line(name: str, e: Errors) -> str:
    return f"{name:34} {e.rows:5} {e.median:8.1%} {e.p90:8.1%} {e.worst:8.1%} {e.bias:+8.1%}"


def fit(rows: list[Measurement]) -> None:
    """Writes the constants of all rows, and the bands of rows held out by model."""
    problem = calibration.problem(rows)
    values = calibration.fit(problem)
    ratio = calibration.held_out(problem, HELD["model"])
    text = [
        "# Written by `python -m benchmarks.training --fit`. Meanings, ranges and priors: constants.toml.",
        f"# {len(rows)} measured steps; bands are measured / predicted, 10th and 90th percentile, held out by model.",
        "",
        "[constants]",
        *(f'"{name}" = {value:.4g}' for name, value in values.items()),
        "",
        "[bands]",
    ]
    for name, places in groups(rows, lambda row: bands.key(row.recipe, experts=calibration.has_experts(row))):
        if len(places) >= 8:
            low, high = np.quantile(1.0 / ratio[places], [0.1, 0.9])
            text.append(f'"{name}" = [{low:.3f}, {high:.3f}]')
    FITTED.write_text("\n".join(text) + "\n", "utf-8")


def predicted(problem: Problem) -> Array:
    """Over measured, by the published constants."""
    return np.asarray(problem.predict(calibration.published()).seconds / problem.seconds)


def errors(rows: list[Measurement], problem: Problem) -> None:
    ratio = predicted(problem)
    full = np.array([row.complete for row in rows])
    print(f"{'':34} {'rows':>5} {'median':>8} {'p90':>8} {'worst':>8} {'bias':>8}")
    print(line("seen, all", calibration.errors(ratio)))
    for name, key in HELD.items():
        held = calibration.held_out(problem, key)
        print(line(f"held out by {name}", calibration.errors(held)))
        print(line(f"held out by {name}, complete", calibration.errors(held[full])))
        if name == "model":
            tables(rows, held)
    larger(problem)


def larger(problem: Problem) -> None:
    """Rows of many GPUs, by constants fitted to rows of fewer."""
    gpus = np.array([row.layout.gpus for row in problem.rows])
    for least in (256, 512, 1024):
        many = gpus >= least
        values = calibration.fit(problem.take(~many))
        some = problem.take(many)
        ratio = some.predict(calibration.logs_of(values)).seconds / some.seconds
        print(line(f"{least}+ GPUs, by a fit to fewer", calibration.errors(ratio)))


def ablation(problem: Problem) -> None:
    """Each constant held at its prior in turn, the others fitted anew: how much worse do seen rows come out?"""
    known, base = constants(), calibration.fit(problem)
    seconds = problem.predict(calibration.logs_of(base)).seconds / problem.seconds
    print(line("all fitted", calibration.errors(seconds)))
    found = []
    for name, constant in known.items():
        known[name] = msgspec.structs.replace(constant, spread=1e-4)
        values = calibration.fit(problem, guess=base | {name: constant.start})
        known[name] = constant
        ratio = problem.predict(calibration.logs_of(values)).seconds / problem.seconds
        found.append((calibration.errors(ratio), name, constant.start, base[name]))
    for errors_, name, start, fitted in sorted(found, key=lambda one: -one[0].p90):
        print(line(f"{name} at {start:.4g}, not {fitted:.4g}", errors_))


def tables(rows: list[Measurement], ratio: Array) -> None:
    for title, key in (
        ("system", lambda row: row.recipe.system),
        ("family", lambda row: row.model.family),
        ("precision", lambda row: row.recipe.precision),
    ):
        print(f"  by {title}, held out by model")
        for name, e in calibration.table(rows, ratio, key):
            print("  " + line(name, e))


def ranking(rows: list[Measurement], problem: Problem) -> None:
    """Groups of layouts of one model in one setting: is the measured best among our first three, and what is lost?"""
    predicted = problem.predict(calibration.published()).seconds
    first, lost = [], []
    for _, places in groups(
        rows,
        lambda row: repr(
            (
                row.source,
                row.label,
                row.recipe,
                row.layout.gpus,
                row.global_batch,
                row.tokens,
                row.model.depth,
            )
        ),
    ):
        if len({str(rows[i].layout) for i in places}) < 2:
            continue
        order = sorted(places, key=lambda i: predicted[i])
        best = min(places, key=lambda i: rows[i].seconds)
        first.append(best in order[:3])
        lost.append(rows[order[0]].seconds / rows[best].seconds - 1.0)
    print(
        f"ranking: {len(first)} groups of two layouts or more; measured best in our top 3: {np.mean(first):.0%};"
        f" lost by our top 1: median {np.median(lost):.1%}, mean {np.mean(lost):.1%}, worst {max(lost):.1%}"
    )


def remembered(rows: list[Measurement]) -> None:
    """No layout that ran may be called out of memory; where the table states the peak, how far off is ours?

    More: python -m benchmarks.memory."""
    over, off = [], []
    for row in rows:
        at = calibration.problem([row]).layouts
        need = float(memory(row.model, at, row.recipe).total[0])
        room = row.recipe.hardware.accelerator.hbm_bytes
        if verdicts(np.array([need]), room)[0] == OUT:
            assert room is not None
            over.append(f"{row.row} {row.label} {row.layout}: {need / 1e9:.0f} GB of {room / 1e9:.0f}")
        if row.memory_bytes is not None:
            off.append(need / row.memory_bytes)
    print(f"memory: {len(over)} of {len(rows)} layouts that ran are called out of memory")
    for text in over[:40]:
        print("  " + text)
    if off:
        print("  " + line("stated peaks", calibration.errors(np.array(off))))


def speed() -> None:
    model, recipe = models.model("llama3.1-405b"), Recipe(system="u-p6e-gb300x72", precision="fp8")
    asked: dict[str, int] = {"gpus": 2304, "global_batch": 2304, "tokens": 8192, "domain": 64}
    began = time.process_time()
    searches = 0
    while time.process_time() - began < 3.0:
        at = divisions(model, **asked, family=recipe.family)  # type: ignore[arg-type]
        found = search(model, at, savings(model, chip=recipe.chip, family=recipe.family), recipe)
        searches += 1
    spent = (time.process_time() - began) / searches
    print(
        f"search: {found.considered:,} layouts decided in {1e3 * spent:.0f} ms on one core, {found.priced:,} of them by"
        f" computing time or memory: {found.considered / spent:,.0f} and {found.priced / spent:,.0f} a second"
    )
    began = time.process_time()
    price(model, at, recipe)
    spent = time.process_time() - began
    print(f"pricing time and memory of each: {len(at) / spent:,.0f} layouts a second")
    command = [
        sys.executable,
        "-c",
        "from rackscale.cli import main; main()",
        "size",
        "llama3.1-405b",
        "--train",
    ]
    command += ["--system", "u-p6e-gb300x72", "--gpus", "2304"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"whole answer, 405B on 2,304 GPUs, with start-up: {time.perf_counter() - began:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--ablate", action="store_true")
    args = parser.parse_args()
    if args.speed:
        speed()
        return
    rows, unread = read(args.data)
    print(f"{args.data.name}: {len(rows)} rows read, {len(unread)} not")
    timed = [row for row in rows if not row.from_flops]
    if args.fit:
        fit(timed)
        return
    if args.ablate:
        ablation(calibration.problem(timed))
        return
    errors(timed, calibration.problem(timed))
    if counted := [row for row in rows if row.from_flops]:
        ratio = predicted(calibration.problem(counted))
        print(line("from model FLOPs, never fitted", calibration.errors(ratio)))
    ranking(rows, calibration.problem(rows))
    remembered(rows)


if __name__ == "__main__":
    main()
