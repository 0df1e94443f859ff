"""`rackscale score`, as a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import rackscale
from tests.sizing.test_measurements import table


def test_every_row_is_predicted_and_those_that_cannot_be_are_named(tmp_path: Path) -> None:
    file = table(tmp_path, {}, {"row_id": "a2", "vp": ""}, {"row_id": "bad", "system": "abacus"})
    text = rackscale("score", file).out
    for part in (
        "a1",
        "a2",
        "predicted",
        "vp",
        "1 row can't be read",
        "rows.csv:4:",
        "bad: system: 'abacus'",
        "median error",
    ):
        assert part in text
    found = rackscale("score", file, "--json").json
    assert [row["row"] for row in found["rows"]] == ["a1", "a2"]
    assert found["unread"][0]["line"] == 4
    assert found["total"]["rows"] == 2
    assert found["complete"]["rows"] == 1
    assert {kind: [e["rows"] for e in by.values()] for kind, by in found["by"].items()} == {
        "system": [2], "model": [2], "precision": [2],
    }  # fmt: skip
    assert found["by"]["model"]["llama3.1-70b"]["rows"] == 2


def test_rows_that_cannot_be_priced_or_divided_leave_the_others_scored(tmp_path: Path) -> None:
    file = table(
        tmp_path,
        {},
        {"row_id": "four", "precision": "nvfp4"},
        {"row_id": "trn", "system": "trn2-ultraserver"},
        {"row_id": "nic", "nic_gbps_per_gpu": "0"},
        {"row_id": "deep", "vp": "64"},
        {"row_id": "old", "source_date": "0001-01"},
    )
    found = rackscale("score", file, "--json").json
    assert [row["row"] for row in found["rows"]] == ["a1"]
    assert {bad["row"]: bad["reason"].split(":")[0] for bad in found["unread"]} == {
        "four": "precision", "trn": "system", "nic": "nic_gbps_per_gpu", "deep": "vp", "old": "source_date",
    }  # fmt: skip
    text = rackscale("score", file).out
    assert "5 rows can't be read" in text
    assert "rows.csv:3: four: precision: no nvfp4 products were measured on H100" in " ".join(text.split())


def test_a_row_of_an_unknown_framework_says_so(tmp_path: Path) -> None:
    file = table(tmp_path, {}, {"row_id": "a2", "framework": "DeepSpeed 0.16"})
    known, unknown = rackscale("score", file, "--json").json["rows"]
    assert (known["assumed"], unknown["assumed"]) == ([], ["framework"])


def test_errors_are_of_the_prediction_against_the_measurement(tmp_path: Path) -> None:
    found = rackscale("score", table(tmp_path, {}, {"row_id": "a2", "step_time_s": "21"}), "--json").json
    first, second = found["rows"]
    assert (first["measured_s"], second["measured_s"]) == (10.5, 21.0)
    assert first["predicted_s"] == second["predicted_s"]
    for row in (first, second):
        assert row["error"] == pytest.approx(row["predicted_s"] / row["measured_s"] - 1)
        assert row["low_s"] < row["predicted_s"] < row["high_s"]
    assert found["total"]["worst"] == pytest.approx(max(abs(first["error"]), abs(second["error"])))


def test_a_row_without_a_name_is_named_by_its_line_once(tmp_path: Path) -> None:
    file = table(tmp_path, {}, {"row_id": "", "step_time_s": "-3"})
    text = rackscale("score", file).out
    assert "rows.csv:3: step_time_s: '-3' is not above 0" in text
    assert rackscale("score", file, "--json").json["unread"][0]["row"] == "line 3"


@pytest.mark.parametrize("columns", [80, 120])
def test_words_wrap_but_numbers_never_break(tmp_path: Path, columns: int) -> None:
    file = table(tmp_path, {}, {"row_id": "a-name-of-some-length", "vp": ""})
    text = rackscale("score", file, columns=columns).out
    (row,) = rackscale("score", file, "--json").json["rows"][:1]
    (line,) = (line for line in text.splitlines() if line.startswith("a1"))
    for number in ("10.50 s", f"{row['predicted_s']:.2f} s", f"{row['low_s']:.1f}-{row['high_s']:.1f} s"):
        assert number in line
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= columns


def test_without_a_readable_row_it_fails(tmp_path: Path) -> None:
    assert "abacus" in rackscale("score", table(tmp_path, {"system": "abacus"}), code=1).out


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("system,model,gpus\n", "utf-8")
    done = rackscale("score", file, code=1)
    assert "rows.csv:1: there is no column 'num_gpus'" in " ".join(done.err.split())
    assert "problems" in done.err
    absent = rackscale("score", tmp_path / "absent.csv", code=1).err
    assert "absent.csv: no such file or directory" in absent
    assert "Errno" not in absent
    file.write_bytes(b"\x00\xff\x80")
    assert "rows.csv" in rackscale("score", file, code=1).err


def test_the_help_names_the_columns() -> None:
    text = rackscale("score", "--help").out
    for column in (
        "system",
        "model",
        "num_gpus",
        "global_batch_size",
        "seq_len",
        "tokens_per_s_per_gpu",
        "recompute",
    ):
        assert column in text
