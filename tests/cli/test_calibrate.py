"""`rackscale calibrate`, as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import PATIENCE_S, SCRIPT, rackscale
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


@pytest.fixture(name="known")
def _known(tmp_path: Path) -> Path:
    """A fleet that is as the published constants say already: there is nothing to gain."""
    rows = rackscale("score", table(tmp_path, *map(dict, RUNS)), "--json").json["rows"]
    steps = {row["row"]: f"{row['predicted_s']:.6f}" for row in rows}
    return table(tmp_path, *({**run, "step_time_s": steps[run["row_id"]]} for run in RUNS))


def test_what_gains_nothing_is_not_written_but_for_anyway(known: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.toml"
    done = rackscale("calibrate", known, "--out", out, code=1)
    assert "keep the published constants" in done.out
    assert "ours.toml is not written: on rows held back the median error is" in done.err
    assert "--anyway" in done.err
    assert not out.exists()
    asked = rackscale("calibrate", known, "--out", out, "--json", code=1)
    assert asked.json["gains"] is False
    rackscale("calibrate", known, "--out", out, "--anyway")
    assert "[constants]" in out.read_text("utf-8")
    assert {file.name for file in tmp_path.iterdir()} == {"rows.csv", "ours.toml"}


def test_a_place_that_cannot_be_written_is_named_before_anything_is_read(tmp_path: Path) -> None:
    absent = tmp_path / "absent.csv"
    done = rackscale("calibrate", absent, "--out", tmp_path / "nowhere" / "a.toml", code=1)
    assert "--out" in done.err
    assert "there is no folder" in done.err
    assert "absent.csv" not in done.err
    assert "this is a folder" in rackscale("calibrate", absent, "--out", tmp_path, code=1).err


def test_interrupted_it_ends_with_130_and_leaves_the_old_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    out = tmp_path / "ours.toml"
    out.write_text("old", "utf-8")
    running = subprocess.Popen(
        [SCRIPT, "calibrate", tmp_path / "rows.csv", "--out", out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with (tmp_path / "rows.csv").open("w"):  # opens once it reads
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert out.read_text("utf-8") == "old"
    assert {file.name for file in tmp_path.iterdir()} == {"rows.csv", "ours.toml"}


def test_a_table_that_no_fleet_explains_gains_nothing(known: Path, tmp_path: Path) -> None:
    """Every step in milliseconds: a fit would turn all constants to their ends and call that a gain."""
    lines = known.read_text("utf-8").splitlines()
    place = lines[0].split(",").index("step_time_s")
    wrong = []
    for line in lines[1:]:
        cells = line.split(",")
        cells[place] = str(float(cells[place]) * 1000.0)
        wrong.append(",".join(cells))
    table = tmp_path / "wrong.csv"
    table.write_text("\n".join([lines[0], *wrong]) + "\n", "utf-8")
    done = rackscale("calibrate", table, "--out", tmp_path / "ours.toml", code=1)
    assert "check units, layouts and models" in done.out
    assert not (tmp_path / "ours.toml").exists()


def test_nothing_is_fitted_to_a_count_of_flops(slower: Path) -> None:
    rows = slower.read_text("utf-8").splitlines()
    names = rows[0].split(",")
    cells = dict(zip(names, rows[1].split(","), strict=True))
    counted = cells | {"row_id": "counted", "step_time_s": "", "model_tflops_per_gpu": "1"}
    plain = rackscale("calibrate", slower, "--json").json
    slower.write_text("\n".join([*rows, ",".join(counted[name] for name in names)]) + "\n", "utf-8")
    found = rackscale("calibrate", slower, "--json").json
    assert (plain["from_flops"], found["from_flops"]) == (0, 1)
    assert found["rows"] == plain["rows"]
    assert found["constants"] == plain["constants"]
    assert len(rackscale("score", slower, "--json").json["rows"]) == len(RUNS) + 1
    assert "1 more state model FLOPs and no time" in " ".join(rackscale("calibrate", slower).out.split())


def test_rows_of_flops_alone_are_too_few(tmp_path: Path) -> None:
    rows = [{"row_id": f"f{n}", "step_time_s": "", "model_tflops_per_gpu": "500"} for n in range(6)]
    done = rackscale("calibrate", table(tmp_path, *rows), code=1)
    assert "6 rows can be read, 0 of them with a time" in " ".join(done.err.split())
