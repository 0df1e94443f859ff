"""Calibration: it finds what made the measurements, stays near its prior where they say nothing, and holds back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from rackscale import models
from rackscale.sizing import calibration
from rackscale.sizing.constants import constants, fitted
from rackscale.sizing.layout import Array, Layout
from rackscale.sizing.measurements import Measurement
from rackscale.sizing.recipe import Recipe

pytest.importorskip("scipy")


def rows() -> list[Measurement]:
    """A small fleet's runs, their seconds still to be filled in."""
    made = []
    for name, gpus, batch in (
        ("llama3.1-8b", 8, 128),
        ("llama3.1-70b", 64, 128),
        ("llama3.1-405b", 512, 256),
    ):
        for tp, pp, micro in ((1, 1, 1), (2, 4, 1), (4, 2, 1), (8, 1, 1), (8, 4, 1)):
            if gpus % (tp * pp):
                continue
            made.append(
                Measurement(
                    row=f"{name} {tp} {pp}",
                    source="ours",
                    model=models.model(name),
                    label=name,
                    layout=Layout(gpus=gpus, tp=tp, pp=pp, micro_batch=micro),
                    recipe=Recipe(system="gb300-nvl72", precision="fp8"),
                    global_batch=batch,
                    tokens=8192,
                    domain=min(gpus, 64),
                    seconds=1.0,
                    memory_bytes=None,
                    assumed=(),
                )
            )
    return made


def run_with(made: list[Measurement], **changed: float) -> list[Measurement]:
    """The same with the seconds that some constants give."""
    values = {**fitted(), **changed}
    took = calibration.problem(made).predict(calibration.logs_of(values)).seconds
    return [replace(row, seconds=float(s)) for row, s in zip(made, took, strict=True)]


def error(made: list[Measurement], values: dict[str, float]) -> Array:
    problem = calibration.problem(made)
    return np.abs(problem.predict(calibration.logs_of(values)).seconds / problem.seconds - 1.0)


def test_a_fleet_that_is_slower_is_learned() -> None:
    ours = run_with(rows(), **{"clock.blackwell.fp8": fitted()["clock.blackwell.fp8"] * 1.3})
    before = error(ours, dict(fitted()))
    learned = calibration.fit(calibration.problem(ours), start=fitted(), spread=0.5)
    after = error(ours, learned)
    assert before.max() > 0.1
    assert after.max() < before.max() / 2
    assert np.median(after) < np.median(before) / 4


def test_constants_that_no_row_concerns_stay() -> None:
    ours = run_with(rows())
    learned = calibration.fit(calibration.problem(ours), start=fitted(), spread=0.5)
    for name in ("clock.ampere", "core.hopper", "scan.hopper", "memory.composer", "cast.nvfp4"):
        assert learned[name] == pytest.approx(fitted()[name], rel=1e-3)


def test_what_is_held_out_is_not_seen() -> None:
    """A row of nonsense must not change the prediction for itself when it is held out."""
    ours = run_with(rows())
    spoiled = [*ours[:-1], replace(ours[-1], seconds=ours[-1].seconds * 3.0)]
    ratio = calibration.held_out(calibration.problem(spoiled), lambda row: row.row)
    clean = calibration.held_out(calibration.problem(ours), lambda row: row.row)
    assert ratio[-1] == pytest.approx(clean[-1] / 3.0, rel=1e-3)


def test_fitted_constants_are_within_their_ranges() -> None:
    known = constants()
    assert fitted().keys() == known.keys()
    for name, value in fitted().items():
        assert known[name].low <= value * 1.01
        assert value <= known[name].high * 1.01
        assert known[name].meaning


def test_every_constant_plays_a_part(tmp_path: Path) -> None:
    """No constant is left that no recipe asks for."""
    from itertools import product

    from rackscale.sizing.constants import roles
    from rackscale.sizing.experts import experts_of
    from rackscale.sizing.recipe import FAMILIES, GRAPHS, PRECISIONS

    mixture, dense = experts_of(models.model("qwen3-30b-a3b")), None
    systems = (
        "dgx-a100-320gb",
        "dgx-a100",
        "dgx-h100",
        "hgx-h100-96gb",
        "dgx-h200",
        "dgx-b200",
        "dgx-b300",
        "gb200-nvl72",
        "gb300-nvl72",
    )
    used: set[str] = set()
    for system, family, precision, experts, graphs in product(
        systems, FAMILIES, PRECISIONS, (mixture, dense), GRAPHS
    ):
        recipe = Recipe(system=system, family=family, precision=precision, graphs=graphs, overlaps_ep=True)
        for names in roles(recipe, experts=experts).values():
            used.update(names)
    assert used == set(constants())
