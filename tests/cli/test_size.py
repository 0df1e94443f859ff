"""`rackscale size`, as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rackscale.sizing.recipe import NEWEST
from tests.cli.conftest import SCRIPT, rackscale

SIZE = ("size", "llama3.1-70b", "--train", "--system", "u-p6e-gb300x72", "--gpus", "64")
DEEPSEEK = ("size", "deepseek-v3", "--system", "p5", "--gpus", "24")
P5 = ("size", "llama3.1-70b", "--system", "p5", "--gpus", "8")


def inputs(found: Any) -> dict[str, Any]:
    return {one["name"]: one for one in found["inputs"]}


def test_ranked_layouts_with_band_memory_and_shape() -> None:
    text = rackscale(*SIZE, "--tokens", "2T").out
    for part in (
        "llama3.1-70b on 64 x GB300",
        "8 in 10",
        "within",
        "MFU",
        "exposed",
        "memory of 1: ",
        "segments 1, nodes_per_segment 16",
        "goodput",
        "a checkpoint every",
        "2 T tokens:",
        "chosen: ",
        "assumed inputs: --explain shows each with its source",
    ):
        assert part in text


def test_explain_draws_where_time_and_memory_go() -> None:
    text = rackscale(*SIZE, "--explain", "--top", 2).out
    for part in (
        "where the time goes",
        "█",
        "matrix products",
        "optimizer",
        "parameters",
        "NVIDIA",
        "assumed",
    ):
        assert part in text


def test_json_is_everything() -> None:
    found = rackscale(*SIZE, "--tokens", "2T", "--json", "--top", 3).json
    assert len(found["candidates"]) == 3
    assert [c["step_s"] for c in found["candidates"]] == sorted(c["step_s"] for c in found["candidates"])
    best = found["candidates"][0]
    assert sum(best["seconds"].values()) == pytest.approx(best["step_s"])
    assert sum(best["bytes"].values()) == pytest.approx(best["total_bytes"])
    assert best["low_s"] < best["step_s"] < best["high_s"]
    assert best["offer"]["shape"]["segments"] == 1
    ideal_s = 2e12 / (best["tokens_per_s_per_gpu"] * 64)
    assert found["run_s"] * found["goodput"]["share"] == pytest.approx(ideal_s)


def test_every_choice_says_who_made_it() -> None:
    usual = inputs(rackscale(*SIZE, "--json").json)
    assert (usual["precision"]["value"], usual["precision"]["provenance"]) == ("fp8", "assumed")
    assert (usual["sequence"]["value"], usual["global batch"]["value"]) == (8192, 1024)
    assert usual["failures"]["provenance"] == "assumed"
    given = (
        "--precision",
        "bf16",
        "--seq",
        "4k",
        "--global-batch",
        "512",
        "--failures",
        "1e-5",
        "--price",
        "3",
    )
    found = rackscale(*SIZE, *given, "--json").json
    chosen = inputs(found)
    values = {
        name: chosen[name]["value"] for name in ("precision", "sequence", "global batch", "failures", "price")
    }
    assert values == {
        "precision": "bf16", "sequence": 4096, "global batch": 512, "failures": 1e-5, "price": 3.0,
    }  # fmt: skip
    assert {chosen[name]["provenance"] for name in values} == {"given"}
    best = found["candidates"][0]
    assert best["usd_per_million_tokens"] == pytest.approx(3.0 / 3600 / best["tokens_per_s_per_gpu"] * 1e6)
    assert "given: " in rackscale(*SIZE, *given).out


def test_a_fine_tuning_takes_smaller_steps_and_an_old_chip_no_fp8() -> None:
    found = rackscale(
        "size", "llama3-8b", "--system", "dgx-a100", "--gpus", 8, "--task", "lora", "--json"
    ).json
    assert found["global_batch"] * found["sequence_tokens"] == 2**19
    assert inputs(found)["precision"]["value"] == "bf16"


def test_degrees_can_be_fixed() -> None:
    found = rackscale(
        *SIZE, "--tp", 4, "--pp", 2, "--recompute", "none", "--sharding", "zero1", "--json"
    ).json
    assert {(c["layout"]["tp"], c["layout"]["pp"]) for c in found["candidates"]} == {(4, 2)}
    assert {c["layout"]["sharding"] for c in found["candidates"]} == {"zero1"}
    found = rackscale(*SIZE, "--recompute", "norm+activation", "--offload", 0.5, "--json").json
    assert {(*c["layout"]["recompute"], c["layout"]["offload"]) for c in found["candidates"]} == {
        ("activation", "norm", 0.5)
    }


def test_segments_are_what_was_asked_for() -> None:
    found = rackscale(*SIZE, "--segment", 16, "--json").json
    shape = found["candidates"][0]["offer"]["shape"]
    assert (shape["segments"], shape["nodes_per_segment"]) == (4, 4)


def test_nothing_fails_and_goodput_is_whole() -> None:
    found = rackscale(*SIZE, "--failures", 0, "--json").json
    assert found["goodput"]["share"] == 1.0
    assert "nothing fails" in rackscale(*SIZE, "--failures", 0).out


@pytest.mark.parametrize("rate", [100, 1e9])
def test_what_fails_faster_than_it_saves_has_no_end(rate: float) -> None:
    command = ("size", "llama3-8b", "--system", "p5", "--gpus", 8, "--failures", rate, "--tokens", "1T")
    assert "never reached" in rackscale(*command).out


def test_a_config_json_is_a_model(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    found = rackscale("size", tmp_path / "config.json", "--system", "p5", "--gpus", 8, "--json").json
    assert found["sequence_tokens"] == 4096
    assert found["fitting"] > 0


def test_what_does_not_fit_fails_with_what_to_change() -> None:
    done = rackscale("size", "llama3.1-405b", "--system", "p5", "--gpus", 8, code=1)
    for part in (
        "nothing fits in memory",
        "too much",
        "optimizer",
        "GPUs",
        "of the GPUs fit, the best",
        "with --gpus ",
    ):
        assert part in done.out
    assert "for the scheduler" not in done.out
    found = rackscale("size", "llama3.1-405b", "--system", "p5", "--gpus", 8, "--json", code=1).json
    assert found["fitting"] == 0
    assert len(found["advice"]) > 2


def test_options_that_keep_everything_out_are_named() -> None:
    limits = ("--tp", 1, "--pp", 1, "--sharding", "zero1", "--recompute", "none")
    done = rackscale("size", "llama3.1-405b", "--system", "p5", "--gpus", 512, *limits, code=1)
    assert "without the limits given" in done.out
    for option in ("--sharding fsdp", "--tp", "--pp", "--gpus"):
        assert option in done.out
    long = ("--seq", "128k", "--cp", 1, "--tp", 1, "--micro-batch", 2, "--recompute", "none")
    done = rackscale("size", "llama3.1-8b", "--system", "p5", "--gpus", 8, *long, code=1)
    for option in ("--recompute full", "--micro-batch 1", "--cp", "--seq"):
        assert option in done.out


def test_one_option_that_keeps_everything_out_is_named() -> None:
    """And what is advised does fit."""
    job = ("size", "llama3.1-70b", "--system", "p5", "--gpus", 64)
    found = rackscale(
        *job, "--tp", 1, "--recompute", "none", "--pp", 1, "--micro-batch", 8, "--json", code=1
    ).json
    ways = [line.split()[1] for line in found["advice"] if line.startswith("without --")]
    assert ways
    limits = {"--tp": 1, "--recompute": "none", "--pp": 1, "--micro-batch": 8}
    for way in ways:
        others = [text for option, value in limits.items() if option != way for text in (option, value)]
        assert rackscale(*job, *others, "--json").json["fitting"] > 0


def broken_numbers(text: str) -> list[str]:
    """Lines of the table below its heading that hold no layout but digits of numbers."""
    lines = text.split("layout ", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [line for line in lines if not line[:2].strip() and re.search(r"\d[.,%]|\d\s*s\b", line)]


@pytest.mark.parametrize("model", ["llama3.1-405b", "deepseek-v3"])
@pytest.mark.parametrize("columns", [80, 100, 120])
def test_layouts_wrap_but_numbers_never_break(model: str, columns: int) -> None:
    job = ("size", model, "--system", "p6-b200", "--gpus", 1024, "--explain", "--top", 7)
    text = rackscale(*job, columns=columns).out
    assert max(map(len, text.splitlines())) <= columns
    best = rackscale(*job, "--json").json["candidates"][0]
    (row,) = (line for line in text.splitlines() if line.startswith("1  TP"))
    for number in (
        f"{best['tokens_per_s_per_gpu']:,.0f}",
        f"{best['mfu']:.1%}",
        f"{best['total_bytes'] / 1e9:,.0f}",
    ):
        assert f" {number} " in f"{row} "
    assert ("exposed %" in text) == (columns > 80)
    if columns != 100:  # messages by kind take two lines there
        assert not broken_numbers(text)


def test_the_picture_is_drawn_in_ascii_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    text = rackscale("size", "llama3-8b", "--system", "p5", "--gpus", 8, "--explain", columns=60).out
    assert "1 ####" in text
    assert "#  matrix products" in text
    assert max(map(len, text.splitlines())) <= 60


def test_what_the_letters_mean_is_told_for_those_that_appear() -> None:
    flat = ("--pp", 1, "--cp", 1, "--sharding", "zero1")
    plain = rackscale("size", "llama3-8b", "--system", "p5", "--gpus", 8, *flat)
    legend = " ".join(plain.out.split("TP PP DP: ")[1].split("\n\n")[0].split())
    assert legend.startswith("tensor, pipeline, data parallel ranks; zero1: replicas divide")
    assert "MB: sequences in one pass" in legend
    assert "fsdp" not in legend
    deep = rackscale(*SIZE, "--pp", 4, "--virtual", 5).out
    assert "PP4x5: 5 chunks of layers per stage" in deep
    assert (
        "hsdp(8): fsdp inside groups of 8 ranks"
        in rackscale("size", "llama3-8b", "--system", "p5", "--gpus", 16, "--sharding", "hsdp").out
    )


def test_a_sequence_beyond_the_model_is_warned_about() -> None:
    job = ("size", "llama3-8b", "--system", "p5", "--gpus", 8, "--seq")
    warned = rackscale(*job, "16k").out
    assert "warning: --seq 16384: beyond the 8,192 tokens that llama3-8b was made for" in warned
    answer = rackscale(*job, "16k", "--json")
    assert "beyond the 8,192 tokens" in inputs(answer.json)["sequence"]["source"]
    assert "warning" in answer.err
    usual = rackscale(*job, "8k")
    assert "warning" not in usual.out + usual.err


@pytest.mark.parametrize(("text", "gpus"), [("1_024", 1024), ("1k", 1000), ("1e3", 1000)])
def test_gpus_are_written_as_other_numbers(text: str, gpus: int) -> None:
    assert rackscale("size", "llama3-8b", "--system", "p5", "--gpus", text, "--json").json["gpus"] == gpus


@pytest.mark.parametrize(
    ("model", "least", "most"),
    [("llama3.1-8b", 3e6, 6e6), ("llama3.1-405b", 12e6, 20e6), ("llama3.2-1b", 1e6, 3e6)],
)
def test_the_usual_batch_grows_with_the_model(model: str, least: float, most: float) -> None:
    found = rackscale("size", model, "--system", "gb200-nvl72", "--gpus", 512, "--json").json
    assert least < found["global_batch"] * found["sequence_tokens"] < most


def test_a_million_gpus_find_a_batch_to_share() -> None:
    found = rackscale("size", "llama3.1-8b", "--system", "P5", "--gpus", "1M", "--json").json
    assert (found["system"], found["gpus"]) == ("p5", 10**6)
    assert found["global_batch"] >= 10**6 / 32
    assert found["fitting"] > 0


def test_the_help_says_what_is_the_newest_software_and_what_k_means() -> None:
    text = " ".join(rackscale("size", "--help").out.replace("│", " ").split())
    assert f"the newest known, {NEWEST}" in text
    assert "4k is 4,096, elsewhere k is 1,000" in text
    assert "rackscale catalog --models" in text


def test_constants_of_ones_own_are_named(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('[constants]\n"jitter" = 0.01\n', "utf-8")
    text = rackscale(*SIZE, "--constants", "ours.toml", cwd=tmp_path).out
    assert "given: constants ours.toml" in text


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("size llama3.1-4", {"llama3.1-405b"}),
        ("size llama3-8b --system u-p6e-gb200", {"u-p6e-gb200x36", "u-p6e-gb200x72"}),
        ("size llama3-8b --precision nv", {"nvfp4"}),
        ("size llama3-8b --sharding f", {"fsdp"}),
        ("catalog --models mpt-3", {"mpt-350m", "mpt-3b", "mpt-30b"}),
        ("catalog p5", {"p5", "p5en"}),
    ],
)
def test_the_shell_completes_names(words: str, offered: set[str]) -> None:
    env = {
        **os.environ, "_RACKSCALE_COMPLETE": "complete_bash", "COMP_WORDS": f"rackscale {words}",
        "COMP_CWORD": str(len(words.split())),
    }  # fmt: skip
    done = subprocess.run([SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("size", "lama3.1-70b", "--system", "p5", "--gpus", "8"), 1, ["lama3.1-70b", "did you mean 'llama3.1-70b'"]),
        (("size", "zzz", "--system", "p5", "--gpus", "8"), 1, ["`rackscale catalog --models` lists them"]),
        (("size", "llama3-8b", "--system", "p55", "--gpus", "8"), 1, ["did you mean 'p5'? `rackscale catalog` lists"]),
        (("size", "absent/config.json", "--system", "p5", "--gpus", "8"), 1, ["absent/config.json"]),
        (("size", "llama3.1-70b", "--system", "local", "--gpus", "8"), 1, ["CPU"]),
        ((*P5, "--precision", "fp9"), 2, ["fp9", "did you mean 'fp8'?"]),
        ((*P5, "--task", "prtrain"), 2, ["did you mean 'pretrain'?"]),
        ((*P5, "--optimizer", "adam"), 2, ["say adamw"]),
        ((*P5, "--framework", "megatrn"), 2, ["did you mean 'megatron'?"]),
        ((*P5, "--sharding", "zero9"), 2, ["did you mean 'zero2'?"]),
        ((*P5, "--recompute", "norm+selective"), 2, ["'selective'", "say attention"]),
        ((*P5, "--tokens", "lots"), 2, ["lots", "15T"]),
        ((*P5, "--global-batch", "1.5"), 2, ["1.5", "whole"]),
        ((*P5, "--gpus", "0"), 2, ["--gpus '0' is not a number above 0"]),
        ((*P5, "--gpus", "2.5"), 2, ["--gpus '2.5' is not a whole number"]),
        ((*P5, "--gpus", "1e18"), 1, ["at most 10,000,000"]),
        ((*P5, "--failures", "inf"), 2, ["--failures inf: say a number that is not infinite"]),
        ((*P5, "--task", "finetune"), 2, ["say sft, which trains all parameters, or lora"]),
        ((*P5, "--sharding", "zero3"), 2, ["say fsdp"]),
        ((*P5, "--framework", "NeMo"), 2, ["say megatron"]),
        ((*P5, "--software-year", "2035"), 2, ["--software-year 2035: software from 2020 to 2027.6", "2026.6"]),
        ((*P5, "--software-year", "1999"), 2, ["2020"]),
        ((*P5, "--tokens", "lots", "--seq", "long", "--task", "x"), 2, ["'lots'", "'long'", "--task 'x'"]),
        (("size",), 2, ["MODEL is missing: `rackscale catalog --models`", "--system is missing: `rackscale catalog`"]),
        ((*P5, "--gpus", "13"), 1, ["--gpus 13", "8 or 16"]),
        ((*P5, "--tokens", "15X"), 2, ["--tokens '15X'"]),
        (("size", "llama3-8b", "--system", "trn2-ultraserver", "--gpus", "64"), 1, ["Trainium2", "H100"]),
        ((*P5, "--precision", "nvfp4", "--tp", "3", "--pp", "99"), 1, ["--tp 3", "--pp 99", "no FP4", "problems"]),
        ((*P5, "--ep", "8"), 1, ["--ep 8: llama3.1-70b has no experts"]),
        ((*DEEPSEEK, "--ep", "3", "--tp", "3"), 1, ["256 experts", "128 attention heads"]),
        ((*P5, "--precision", "mxfp8"), 1, ["has no block scales"]),
        ((*P5, "--segment", "16"), 1, ["--segment 16"]),
        (("size", "llama3-8b", "--system", "gb300-nvl72", "--gpus", "72", "--segment", "3"), 1,
         ["--segment 3", "4 GPUs", "say 4 or 8 or 12 or 24 or 36 or 72"]),
        (("size", "llama3-8b", "--system", "gb300-nvl72", "--gpus", "4", "--segment", "2"), 1, ["say 4"]),
        ((*P5, "--etp", "2"), 1, ["--etp 2: llama3.1-70b has no experts"]),
        ((*DEEPSEEK, "--etp", "3"), 1, ["--etp 3", "2048 wide"]),
        ((*P5, "--serve"), 1, ["not there yet"]),
        ((*P5, "--constants", "absent.toml"), 1, ["absent.toml"]),
        (("size", "llama3.1-70b", "--system", "p5", "--gpus", "7", "--global-batch", "3"), 1, ["evenly"]),
        (("size", "llama3.1-70b", "--system", "p5"), 2, ["--gpus is missing"]),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_mistakes_are_explained(arguments: tuple[str, ...], code: int, words: list[str]) -> None:
    done = rackscale(*arguments, code=code)
    said = " ".join(done.err.replace("│", " ").split())
    for word in words:
        assert word in said
    assert done.out == ""


def test_constants_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('[constants]\n"clock.hoper.bf16" = 1.0\n"jitter" = -1\n"ring" = nan\n', "utf-8")
    done = rackscale(*SIZE, "--constants", file, code=1)
    for part in ("clock.hoper.bf16", "clock.hopper.bf16", "jitter", "ring", "3 problems"):
        assert part in done.err
    file.write_text("constants = 3\n", "utf-8")
    assert "no table [constants]" in rackscale(*SIZE, "--constants", file, code=1).err
    file.write_text("[constants\n", "utf-8")
    assert "ours.toml" in rackscale(*SIZE, "--constants", file, code=1).err


CROSSING = (
    "size", "llama3.1-70b", "--system", "gb200-nvl72", "--gpus", "512", "--sharding", "fsdp", "--tp", "8", "--pp", "1",
)  # fmt: skip


def layouts(*options: str) -> dict[str, dict[str, Any]]:
    """Every layout by name."""
    found = rackscale(*CROSSING, "--global-batch", "512", "--top", 1000, *options, "--json").json
    for one in found["candidates"]:
        one["layout"]["recompute"].sort()
    return {json.dumps(one["layout"], sort_keys=True): one for one in found["candidates"]}


def test_a_tight_fabric_is_never_faster_and_slows_what_leaves_its_leaf() -> None:
    one = layouts()
    free, tight = (layouts("--leaf", "64", "--oversubscription", x) for x in ("1", "4"))
    assert one.keys() == free.keys() == tight.keys()
    for name, at in one.items():
        assert at["step_s"] <= free[name]["step_s"] * (1 + 1e-9)
        assert free[name]["step_s"] <= tight[name]["step_s"] * (1 + 1e-9)
        assert tight[name]["seconds"]["data"] > 1.5 * free[name]["seconds"]["data"]
    assert layouts("--leaf", "512", "--oversubscription", "4") == one


def test_a_leaf_and_its_uplinks_are_told() -> None:
    size: tuple[str, ...] = (*CROSSING, "--leaf", "256")
    assert (
        "64 GPUs in each of 8 NVLink domains, 256 under each leaf, non-blocking above" in rackscale(*size).out
    )
    found = inputs(rackscale(*size, "--json").json)
    assert (found["leaf"]["value"], found["leaf"]["provenance"]) == (256, "given")
    assert (found["oversubscription"]["value"], found["oversubscription"]["provenance"]) == (1.0, "vendor")
    size = (*size, "--oversubscription", "2")
    assert "256 under each leaf, 2:1 above" in rackscale(*size).out
    assert inputs(rackscale(*size, "--json").json)["oversubscription"]["provenance"] == "given"
    usual = inputs(rackscale(*CROSSING, "--json").json)
    assert (usual["leaf"]["value"], usual["leaf"]["provenance"]) == ("all GPUs", "assumed")
    assert "oversubscription" not in usual


def test_a_leaf_that_cannot_be_is_refused() -> None:
    said = rackscale(*CROSSING, "--leaf", "100", code=1).err
    assert "--leaf 100: a leaf holds whole NVLink domains, 64 GPUs of the job each: 64 or 128" in said
    said = rackscale(*CROSSING, "--oversubscription", "2", code=1).err
    assert "--oversubscription 2: says nothing without --leaf" in said


def test_options_without_effect_are_named() -> None:
    job = ("size", "llama3-8b", "--system", "p5", "--gpus", "8")
    options = ("--dispatcher", "alltoall", "--imbalance", "1.5", "--overlap-ep")
    text = " ".join(rackscale(*job, *options, "--precision", "bf16", "--bf16-layers", "0.1").out.split())
    assert (
        "warning: --dispatcher and --imbalance and --overlap-ep: of no effect, llama3-8b has no experts"
        in text
    )
    assert "warning: --bf16-layers: of no effect" in text
    assert "no effect" not in rackscale(*job).out
    assert inputs(rackscale(*job, "--overlap-ep", "--json").json)["overlap ep"]["value"] == "yes"


def test_the_software_is_an_input_that_moves_results() -> None:
    """Graphs, how tokens travel to experts, how evenly, and what stays in BF16 are told and listed."""
    job = ("size", "qwen3-30b-a3b", "--system", "p6-b200", "--gpus", "16", "--ep", "16", "--tp", "1", "--pp", "1",
           "--cp", "1", "--micro-batch", "1", "--precision", "mxfp8", "--json")  # fmt: skip

    def first(*options: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(rackscale(*job, *options).out)
        return found

    usual = first()["candidates"][0]["step_s"]
    for options in (("--imbalance", "1.5"), ("--dispatcher", "alltoall")):
        found = first(*options)
        assert found["candidates"][0]["step_s"] > usual * 1.01
        told = {one["name"]: one["provenance"] for one in found["inputs"]}
        assert told[options[0].removeprefix("--")] == "given"
    assert first("--overlap-ep")["candidates"][0]["step_s"] < usual
    small = ("size", "qwen3-30b-a3b", "--system", "p6-b200", "--gpus", "8", "--ep", "8", "--precision", "mxfp8",
             "--software-year", "2026", "--json")  # fmt: skip
    slow, fast = (
        json.loads(
            rackscale(
                *small, "--micro-batch", "1", "--pp", "1", "--tp", "1", "--seq", "1k", "--graphs", word
            ).out
        )["candidates"][0]["step_s"]
        for word in ("none", "step")
    )
    assert slow > fast * 1.01
    error = rackscale(*job, "--graphs", "full", code=2).err
    assert "say step" in error


def test_numbers_and_words_are_taken_as_they_are_printed() -> None:
    """Thousands as the answer writes them, words in capitals."""
    found = rackscale(
        "size", "llama3.1-8b", "--system", "P5", "--gpus", "1,024", "--precision", "FP8", "--json"
    ).json
    assert found["gpus"] == 1024
    wrong = rackscale("size", "llama3.1-8b", "--system", "p5", "--gpus", "1,02", code=2)
    assert "--gpus '1,02' is not a number" in wrong.err


def test_what_a_model_is_and_a_batch_of_tokens_taken_for_sequences_are_told() -> None:
    job = ("size", "deepseek-v3", "--system", "p6-b200", "--gpus", "256", "--top", "1")
    usual = rackscale(*job)
    assert "671.0 B parameters, 37.6 B of them active" in " ".join(usual.out.split())
    assert rackscale(*job, "--json").json["active_parameters"] == pytest.approx(37.6e9, rel=0.01)
    much = rackscale(*job, "--global-batch", "4M", "--seq", "4k")
    assert "it counts sequences, not tokens" in " ".join(much.out.split())
