"""The scorecard's pages, from a small table."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from rackscale.sizing.measurements import read
from tests.sizing.test_measurements import table

pytest.importorskip("scipy")
ROOT = Path(__file__).parents[2]


def test_every_row_is_in_the_table_and_in_the_picture(tmp_path: Path) -> None:
    file = table(
        tmp_path,
        {},
        {"row_id": "a2", "model": "llama3-8b", "tp": "1", "pp": "1", "vp": "1", "step_time_s": "2.0"},
        {"row_id": "a3", "system": "gb200_nvl72", "step_time_s": "5.0"},
        {"row_id": "bad", "system": "abacus"},
    )
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "benchmarks.scorecard",
        "--data",
        file,
        "--without",
        "model",
        "--out",
        tmp_path,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows, _ = read(file)
    lines = (tmp_path / "explanation" / "scorecard-rows.md").read_text("utf-8").splitlines()
    cells = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines if line.startswith("| ")
    }
    for row in rows:
        assert cells[row.row][6:8] == [str(row.layout), f"{row.seconds:,.3f}"]
    assert "abacus" in cells["bad"][2]
    page = (tmp_path / "explanation" / "scorecard.md").read_text("utf-8")
    assert "| dgx-h100 | 2 |" in page
    assert "| llama3-8b | 1 |" in page
    picture = ET.fromstring((tmp_path / "scorecard.svg").read_text("utf-8"))  # noqa: S314 - our own file
    points = [c for c in picture.iter("{http://www.w3.org/2000/svg}circle") if len(c)]
    assert len(points) == len(rows)
    for point in points:
        assert 0 < float(point.get("cx") or -1) < 640
        assert 0 < float(point.get("cy") or -1) < 640
