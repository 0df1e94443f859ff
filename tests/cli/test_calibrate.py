"""`rackscale calibrate`, as a process."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import rackscale
from tests.sizing.test_measurements import table

pytest.importorskip("scipy")

SLOWER = 1.25
RUNS: Sequence[Mapping[str, str]] = [
    {"row_id": f"{tp}-{pp}", "tp": str(tp), "pp": str(pp), "cp": "1", "vp": "1" if pp == 1 else "5", "num_gpus": "64"}
    for tp, pp in ((1, 4), (2, 4), (4, 4), (8, 4), (2, 8), (4, 8), (8, 8), (8, 1), (4, 2), (8, 2))
]  # fmt: skip


@pytest.fixture(name="slower")
def _slower(tmp_path: Path) -> Path:
    """A fleet whose steps take a quarter longer than the published constants say."""
    rows = rackscale("score", table(tmp_path, *map(dict, RUNS)), "--json").json["rows"]
    predicted = {row["row"]: row["predicted_s"] for row in rows}
    return table(
        tmp_path, *({**run, "step_time_s": f"{predicted[run['row_id']] * SLOWER:.4f}"} for run in RUNS)
    )


def test_a_slower_fleet_is_learned_and_the_file_used(slower: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.toml"
    found = rackscale("calibrate", slower, "--out", out, "--json").json
    assert found["before"]["median"] == pytest.approx(1 - 1 / SLOWER, abs=0.01)
    assert found["after"]["median"] < 0.07
    assert found["held_back"] == found["rows"] == len(RUNS)
    written = tomllib.loads(out.read_text("utf-8"))
    assert written["provenance"]["file"] == slower.name
    assert written["provenance"]["rows"] == len(RUNS)
    assert written["constants"] == pytest.approx(found["constants"], rel=1e-4)
    assert rackscale("score", slower, "--constants", out, "--json").json["total"]["median"] < 0.07
    command = ("size", "llama3.1-70b", "--system", "dgx-h100", "--gpus", 64, "--json")
    ours = rackscale(*command, "--constants", out).json
    assert ours["candidates"][0]["step_s"] > rackscale(*command).json["candidates"][0]["step_s"]
    (source,) = (one["source"] for one in ours["inputs"] if one["name"] == "constants")
    assert f"{len(RUNS)} rows of {slower.name}" in source


def test_people_see_errors_before_and_after(slower: Path) -> None:
    text = rackscale("calibrate", slower).out
    for part in (
        "before, on rows held back",
        "after, on rows held back",
        "new over published",
        "nothing is written",
    ):
        assert part in text


def test_it_needs_rows_and_says_how_many(tmp_path: Path) -> None:
    done = rackscale("calibrate", table(tmp_path, {}, {"row_id": "bad", "system": "abacus"}), code=1)
    assert "needs 5" in done.err
    assert "abacus" in done.err


def test_a_place_that_cannot_be_written_is_named(slower: Path, tmp_path: Path) -> None:
    assert "absent" in rackscale("calibrate", slower, "--out", tmp_path / "absent" / "a.toml", code=1).err
