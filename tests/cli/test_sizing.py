"""`rackscale size`, `score` and `calibrate`, as processes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import rackscale
from tests.sizing.test_measurements import table

SIZE = ("size", "llama3.1-70b", "--train", "--system", "u-p6e-gb300x72", "--gpus", "64")


def test_ranked_layouts_with_band_memory_and_shape() -> None:
    text = rackscale(*SIZE, "--tokens", "2T").out
    for part in (
        "llama3.1-70b on 64 x GB300",
        "8 in 10 within",
        "MFU",
        "exposed",
        "segments 1 x nodes 16",
        "goodput",
        "2 T tokens:",
        "assumed: failures",
    ):
        assert part in text
    assert "\x1b" not in text


def test_explain_draws_where_time_and_memory_go() -> None:
    text = rackscale(*SIZE, "--explain", "--top", 2).out
    for part in ("where the time goes", "█", "products", "optimizer", "parameters", "NVIDIA", "assumed", "vendor"):
        assert part in text


def test_json_is_everything() -> None:
    found = rackscale(*SIZE, "--tokens", "2T", "--json", "--top", 3).json
    assert len(found["candidates"]) == 3
    best = found["candidates"][0]
    assert sum(best["seconds"].values()) == pytest.approx(best["step_s"])
    assert best["offer"]["shape"]["segments"] == 1
    assert found["run_s"] > 0
    assert {one["provenance"] for one in found["inputs"]} == {"measured", "vendor", "assumed"}


def test_degrees_can_be_fixed() -> None:
    found = rackscale(*SIZE, "--tp", 4, "--pp", 2, "--recompute", "none", "--json").json
    assert {(c["layout"]["tp"], c["layout"]["pp"]) for c in found["candidates"]} == {(4, 2)}


def test_a_config_json_is_a_model(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 16,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    found = rackscale("size", tmp_path / "config.json", "--system", "p5", "--gpus", 8, "--json").json
    assert found["tokens"] == 4096
    assert found["fitting"] > 0


def test_what_does_not_fit_fails_with_what_to_change() -> None:
    done = rackscale("size", "llama3.1-405b", "--system", "p5", "--gpus", 8, code=1)
    assert "out of memory" in done.out
    assert "too much" in done.out
    assert "optimizer" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("size", "lama3.1-70b", "--system", "p5", "--gpus", "8"), 1, ["lama3.1-70b", "llama3.1-70b"]),
        (("size", "llama3.1-70b", "--system", "p55", "--gpus", "8"), 1, ["p55", "p5"]),
        (("size", "llama3.1-70b", "--system", "p5", "--gpus", "8", "--precision", "fp9"), 2, ["fp9", "fp8"]),
        (("size", "llama3.1-70b", "--system", "p5", "--gpus", "8", "--tokens", "lots"), 2, ["lots", "15T"]),
        (
            ("size", "llama3.1-70b", "--system", "p5", "--gpus", "8", "--precision", "nvfp4", "--tp", "3"),
            1,
            ["--tp 3", "has no FP4"],
        ),
        (("size", "llama3.1-70b", "--system", "p5", "--gpus", "8", "--serve"), 1, ["not there yet"]),
        (("size", "llama3.1-70b", "--system", "p5", "--gpus", "7", "--global-batch", "3"), 1, ["evenly"]),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], code: int, words: list[str]) -> None:
    done = rackscale(*arguments, code=code)
    for word in words:
        assert word in done.err


def test_score_predicts_every_row_and_names_those_it_cannot(tmp_path: Path) -> None:
    file = table(tmp_path, {}, {"row_id": "a2", "vp": ""}, {"row_id": "bad", "system": "abacus"})
    text = rackscale("score", file).out
    for part in ("a1", "a2", "predicted", "vp", "1 rows can't be read", "rows.csv:4: bad: system: 'abacus'", "median error"):
        assert part in text
    found = rackscale("score", file, "--json").json
    assert [row["row"] for row in found["rows"]] == ["a1", "a2"]
    assert found["rows"][0]["measured_s"] == 10.5
    assert found["unread"][0]["line"] == 4
    assert found["total"]["rows"] == 2
    assert found["complete"]["rows"] == 1
    assert found["by"]["model"]["llama3.1-70b"]["rows"] == 2


def test_score_without_a_readable_row_fails(tmp_path: Path) -> None:
    assert "abacus" in rackscale("score", table(tmp_path, {"system": "abacus"}), code=1).out


def test_calibrate_learns_a_slower_fleet(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    runs = [
        {"row_id": f"{tp}-{pp}", "tp": str(tp), "pp": str(pp), "cp": "1", "vp": "1" if pp == 1 else "5", "num_gpus": "64"}
        for tp, pp in ((1, 4), (2, 4), (4, 4), (8, 4), (2, 8), (4, 8), (8, 8), (8, 1), (4, 2), (8, 2))
    ]
    file = table(tmp_path, *runs)
    predicted = {row["row"]: row["predicted_s"] for row in rackscale("score", file, "--json").json["rows"]}
    slower = table(tmp_path, *(run | {"step_time_s": f"{predicted[run['row_id']] * 1.25:.4f}"} for run in runs))
    out = tmp_path / "ours.toml"
    found = rackscale("calibrate", slower, "--out", out, "--json").json
    assert found["before"]["median"] == pytest.approx(0.2, abs=0.01)
    assert found["after"]["median"] < 0.07
    assert set(tomllib.loads(out.read_text("utf-8"))) == {"constants"}
    again = rackscale("score", slower, "--constants", out, "--json").json
    assert again["total"]["median"] < 0.07
    assert "before" in rackscale("calibrate", slower).out


def test_calibrate_needs_rows_and_says_how_many(tmp_path: Path) -> None:
    assert "needs 5" in rackscale("calibrate", table(tmp_path, {}), code=1).err


def test_constants_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('[constants]\n"clock.hoper.bf16" = 1.0\n"jitter" = -1\n', "utf-8")
    done = rackscale(*SIZE, "--constants", file, code=1)
    assert "clock.hoper.bf16" in done.err
    assert "clock.hopper.bf16" in done.err
    assert "jitter" in done.err
