"""Tables of measured steps: what is read, what is assumed, what is named as unreadable."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from rackscale import catalog, models
from rackscale.errors import DocumentError
from rackscale.sizing import calibration
from rackscale.sizing.flops import flops_per_token
from rackscale.sizing.measurements import Measurement, Unread, read
from rackscale.sizing.recipe import PRECISIONS

COLUMNS = [
    "row_id",
    "source_id",
    "source_date",
    "system",
    "model",
    "precision",
    "num_gpus",
    "global_batch_size",
    "micro_batch_size",
    "seq_len",
    "tp",
    "pp",
    "cp",
    "vp",
    "ep",
    "etp",
    "dp_type",
    "recompute",
    "framework",
    "tokens_per_s_per_gpu",
    "step_time_s",
    "model_tflops_per_gpu",
    "cuda_graph",
    "comm_overlap",
    "moe_routing",
    "layers",
    "offload",
    "nic_gbps_per_gpu",
    "task",
    "memory_gib",
]
GOOD = {
    "row_id": "a1",
    "source_id": "mine",
    "source_date": "2026-06-01",
    "system": "h100_sxm",
    "model": "llama3.1-70b",
    "precision": "fp8-cs",
    "num_gpus": "64",
    "global_batch_size": "128",
    "micro_batch_size": "1",
    "seq_len": "8192",
    "tp": "4",
    "pp": "4",
    "cp": "2",
    "vp": "5",
    "ep": "1",
    "dp_type": "ddp+dist-optimizer",
    "recompute": "none",
    "framework": "nemo 25.04",
    "step_time_s": "10.5",
}
SPARSE = {"model": "qwen3-30b-a3b", "tp": "1", "pp": "1", "cp": "1", "vp": ""}


def table(path: Path, *rows: dict[str, str]) -> Path:
    file = path / "rows.csv"
    lines = [",".join(COLUMNS)] + [",".join((GOOD | row).get(name, "") for name in COLUMNS) for row in rows]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def one(path: Path, **changed: str) -> Measurement:
    good, bad = read(table(path, changed))
    assert not bad
    return good[0]


def refused(path: Path, **changed: str) -> Unread:
    good, bad = read(table(path, changed))
    assert not good
    return bad[0]


def test_a_complete_row(tmp_path: Path) -> None:
    row = one(tmp_path)
    assert (row.row, row.source, row.model.name) == ("a1", "mine", "llama3.1-70b")
    assert str(row.layout) == "TP4 PP4x5 CP2 DP2 zero1 MB1"
    assert (row.recipe.system, row.recipe.precision, row.recipe.family) == ("dgx-h100", "fp8", "megatron")
    assert (row.seconds, row.domain, row.complete) == (10.5, 8, True)


def test_seconds_from_tokens_per_second(tmp_path: Path) -> None:
    row = one(tmp_path, step_time_s="", tokens_per_s_per_gpu="1600")
    assert row.seconds == pytest.approx(128 * 8192 / (1600 * 64))


def test_what_is_left_open_is_said(tmp_path: Path) -> None:
    row = one(tmp_path, micro_batch_size="", vp="")
    assert set(row.assumed) == {"micro_batch_size", "vp"}
    assert row.layout.virtual == 20
    assert not row.complete


def test_expert_parallelism_that_is_left_open_is_said_where_there_are_experts(tmp_path: Path) -> None:
    sparse = {"model": "deepseek-v3", "tp": "1", "pp": "1", "cp": "1", "vp": "", "dp_type": "fsdp"}
    row = one(tmp_path, **sparse, ep="")
    assert (row.layout.ep, row.assumed) == (1, ("ep",))
    assert one(tmp_path, **sparse, ep="8").complete
    assert one(tmp_path, ep="").complete


@pytest.mark.parametrize(
    ("text", "sharding", "shard"),
    [
        ("fsdp(group=64)", "fsdp", 64),
        ("fsdp2(group=8)", "fsdp", 8),
        ("fsdp(shard_grad_op)", "zero2", 0),
        ("hsdp", "fsdp", 8),
        ("zero1(dist-optimizer)", "zero1", 0),
        ("none(dp=1)", "none", 0),
        ("", "zero1", 0),
    ],
)
def test_ways_of_sharding(tmp_path: Path, text: str, sharding: str, shard: int) -> None:
    layout = one(tmp_path, dp_type=text, pp="1", vp="").layout
    assert (layout.sharding, layout.shard) == (sharding, shard)


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("full", {"layer"}),
        ("none", set()),
        ("selective(attention)+sequence-parallel", {"attention"}),
        ("selective:layernorm+moe_act", {"norm", "activation"}),
        ("selective:mla_up_proj+mlp", {"latent", "mlp"}),
    ],
)
def test_ways_of_recomputing(tmp_path: Path, text: str, modules: set[str]) -> None:
    assert one(tmp_path, recompute=text).layout.recompute == modules


def test_where_recompute_is_left_open_it_is_what_memory_needs(tmp_path: Path) -> None:
    roomy = one(tmp_path, recompute="")
    assert roomy.layout.recompute == frozenset()
    crowded = one(tmp_path, recompute="", dp_type="fsdp", tp="1", pp="1", cp="1", vp="", micro_batch_size="2")
    assert crowded.layout.recompute == {"layer"}


def test_proxies_have_fewer_layers(tmp_path: Path) -> None:
    assert one(tmp_path, layers="20", vp="1").model.depth == 20


def test_a_domain_of_many(tmp_path: Path) -> None:
    assert one(tmp_path, system="gb200_nvl72", num_gpus="64").domain == 64
    assert one(tmp_path, system="gb200_nvl72", num_gpus="512").domain == 64
    assert (
        one(
            tmp_path,
            system="gb300_nvl72",
            num_gpus="72",
            tp="1",
            pp="1",
            cp="1",
            vp="",
            global_batch_size="72",
        ).domain
        == 72
    )


@pytest.mark.parametrize(
    ("changed", "reasons"),
    [
        ({"system": "h100sxm"}, ["system: 'h100sxm' is unknown", "h100_sxm"]),
        ({"model": "llama3.1-80b"}, ["llama3.1-80b", "llama3.1-8"]),
        ({"num_gpus": "60"}, ["num_gpus: 60 is not a multiple of tp x pp x cp = 32"]),
        ({"tp": "", "pp": ""}, ["tp is missing", "pp is missing"]),
        ({"tp": "four"}, ["tp: 'four' is not a number"]),
        ({"precision": "int3"}, ["precision: 'int3' is unknown"]),
        ({"step_time_s": ""}, ["none of step_time_s, tokens_per_s_per_gpu, model_tflops_per_gpu is given"]),
        ({"step_time_s": "-1"}, ["step_time_s: '-1' is not above 0"]),
        (
            {"step_time_s": "0", "tokens_per_s_per_gpu": "0"},
            ["step_time_s: '0'", "tokens_per_s_per_gpu: '0'"],
        ),
        ({"step_time_s": "nan"}, ["step_time_s: 'nan' is not a number"]),
        ({"num_gpus": "inf"}, ["num_gpus: 'inf' is not a number"]),
        ({"layers": "0"}, ["layers: 0 is not a whole number"]),
        ({"source_date": "June"}, ["source_date: 'June' is not a date such as 2026-06"]),
        ({"dp_type": "fspd"}, ["dp_type: 'fspd' is unknown"]),
        ({"global_batch_size": "127"}, ["global_batch_size: 127 is not a multiple of 2"]),
        ({"task": "distil"}, ["task: 'distil' is none of pretrain, sft, lora"]),
        ({"recompute": "some"}, ["recompute: 'some' is unknown"]),
        ({"source_date": "2026-13"}, ["source_date: '2026-13' is not a date such as 2026-06"]),
        ({"source_date": "0001-01-01"}, ["source_date: '0001-01-01' is not of a year from 2015 to 20"]),
        ({"source_date": "9999"}, ["source_date: '9999' is not of a year from 2015 to 20"]),
        # what nobody measured
        (
            {"precision": "nvfp4"},
            ["precision: no nvfp4 products were measured on H100; bf16, fp8, fp8-block were"],
        ),
        ({"precision": "mxfp8"}, ["precision: no mxfp8 products were measured on H100"]),
        ({"system": "a100_80gb"}, ["precision: no fp8 products were measured on A100-80GB; bf16 were"]),
        (
            {"system": "trn2-ultraserver"},
            ["system: trn2-ultraserver: nothing was measured of training on Trainium2 (tr"],
        ),
        # what can't be counted
        ({"nic_gbps_per_gpu": "0"}, ["nic_gbps_per_gpu: '0' is not above 0"]),
        ({"nic_gbps_per_gpu": "-5"}, ["nic_gbps_per_gpu: '-5' is not above 0"]),
        ({"nic_gbps_per_gpu": "1e300"}, ["nic_gbps_per_gpu: '1e300' is not between 1e-06 and 1e+12"]),
        ({"memory_gib": "0"}, ["memory_gib: '0' is not above 0"]),
        ({"seq_len": "1e308"}, ["seq_len: 1e+308 is above 100,000,000, the most that is read"]),
        ({"num_gpus": "2e7"}, ["num_gpus: 2e+07 is above 10,000,000, the most that is read"]),
        ({"global_batch_size": "1e9"}, ["global_batch_size: 1e+09 is above 10,000,000"]),
        ({"step_time_s": "1e-320"}, ["step_time_s: '1e-320' is not between 1e-06 and 1e+12"]),
        # what can't be divided
        (
            {"pp": "128", "tp": "1", "cp": "1", "num_gpus": "128", "vp": "1"},
            ["pp: 128: llama3.1-70b has 80 layers"],
        ),
        ({"vp": "100"}, ["vp: 100: 4 stages of so many chunks make 400, and llama3.1-70b has 80 layers"]),
        ({"pp": "1", "vp": "1000"}, ["vp: 1000: 1 stages of so many"]),
        (
            {"tp": "3", "pp": "1", "num_gpus": "48"},
            ["tp: 3: the 64 attention heads of llama3.1-70b are not a multiple"],
        ),
        ({"ep": "8"}, ["ep: 8: llama3.1-70b has no experts"]),
        (
            SPARSE | {"ep": "3", "num_gpus": "48"},
            ["ep: 3: 128 experts of qwen3-30b-a3b are not a multiple of it"],
        ),
        (SPARSE | {"ep": "1024"}, ["num_gpus: 64 is not a multiple of ep x etp = 1024"]),
        (SPARSE | {"ep": "8", "etp": "5"}, ["etp: 5: experts of qwen3-30b-a3b are 768 wide"]),
        (SPARSE | {"ep": "1", "etp": "5"}, ["etp: 5: experts of qwen3-30b-a3b are 768 wide"]),
        # several at once
        (
            {"precision": "nvfp4", "task": "distil", "vp": "90"},
            ["no nvfp4 products", "task: 'distil'", "vp: 90"],
        ),
        (
            {"system": "abacus", "precision": "int3", "tp": "0", "step_time_s": "-2"},
            ["abacus", "int3", "tp: 0 is not a whole number", "step_time_s: '-2'"],
        ),
    ],
)
def test_rows_that_cannot_be_read_say_why(
    tmp_path: Path, changed: dict[str, str], reasons: list[str]
) -> None:
    found = refused(tmp_path, **changed)
    assert (found.row, found.line) == ("a1", 2)
    for reason in reasons:
        assert reason in found.reason
    assert "neither" not in found.reason or changed == {"step_time_s": ""}


def test_columns_that_are_missing_are_all_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("model,systems,num_gpus\nllama3-8b,b200,8\n", "utf-8")
    with pytest.raises(DocumentError) as caught:
        read(file)
    text = str(caught.value)
    assert "there is no column 'system'" in text
    assert "systems" in text
    assert "there is no column 'global_batch_size'" in text
    assert "there is no column 'seq_len'" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"rows\.csv: this is empty; its first line names columns, at least system, model, num_gpus"),
        (b"\n \n", "this is empty"),
        (b"system,model,num_gpus,global_batch_size,seq_len\n", "there are no rows"),
        (b"system;model;num_gpus\np5;llama3-8b;8\n", "rows.csv:1: columns are separated by ';'"),
        (b"\xff\xfe\x80", "no text in UTF-8"),
    ],
)
def test_a_file_that_is_no_table_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DocumentError, match=words):
        read(tmp_path / "rows.csv")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none\.csv: no such file or directory$"):
        read(tmp_path / "none.csv")
    with pytest.raises(DocumentError, match="is a directory"):
        read(tmp_path)


def test_model_flops_are_turned_into_seconds_as_their_year_counted_them(tmp_path: Path) -> None:
    """Llama 3.1 70B: 4.6e11 FLOPs per token of 8,192; all pairs of attention counted until 2024."""
    new = one(tmp_path, step_time_s="", model_tflops_per_gpu="700")
    old = one(tmp_path, step_time_s="", model_tflops_per_gpu="700", source_date="2024-06-01")
    per_token = new.seconds * 700e12 * 64 / (128 * 8192)
    assert per_token == pytest.approx(4.55e11, rel=0.02)
    assert old.seconds / new.seconds == pytest.approx(1.07, abs=0.01)
    assert "step_time_s" in new.assumed


@pytest.mark.parametrize(
    ("told", "graphs", "dispatcher", "overlaps", "drops"),
    [
        ({}, "layers", "once", False, False),
        ({"cuda_graph": "none"}, "none", "once", False, False),
        ({"cuda_graph": "full_iteration:"}, "step", "once", False, False),
        ({"comm_overlap": "dispatcher=deepep;moe_a2a_overlap=True"}, "layers", "once", True, False),
        ({"comm_overlap": "moe_a2a_overlap=False"}, "layers", "alltoall", False, False),
        ({"source_date": "2024-11-01"}, "layers", "alltoall", False, False),
        ({"moe_routing": "token-drop"}, "layers", "once", False, True),
        ({"moe_routing": "force-balanced dropless"}, "layers", "once", False, False),
    ],
)
def test_what_the_software_did_is_read(  # noqa: PLR0917
    tmp_path: Path, told: dict[str, str], graphs: str, dispatcher: str, overlaps: bool, drops: bool
) -> None:
    recipe = one(tmp_path, model="qwen3-30b-a3b", tp="1", pp="1", cp="1", ep="8", vp="", **told).recipe
    assert (recipe.graphs, recipe.dispatcher, recipe.overlaps_ep, recipe.drops) == (
        graphs, dispatcher, overlaps, drops
    )  # fmt: skip


def test_who_overlaps_tensor_parallel_messages(tmp_path: Path) -> None:
    """NeMo's recipes do; Megatron-LM and torchtitan only where the table says so."""
    assert one(tmp_path).recipe.overlaps_tp
    assert not one(tmp_path, comm_overlap="tp_overlap=none").recipe.overlaps_tp
    assert not one(tmp_path, framework="torchtitan").recipe.overlaps_tp
    assert one(tmp_path, framework="torchtitan", comm_overlap="async_tp").recipe.overlaps_tp
    assert not one(tmp_path, framework="Megatron-LM").recipe.overlaps_tp


def test_as_few_layers_as_will_do_are_computed_again_where_a_table_leaves_it_open(tmp_path: Path) -> None:
    told = {"recompute": "", "seq_len": "4096", "dp_type": "fsdp", "vp": "", "micro_batch_size": "2"}
    open_ = one(tmp_path, tp="1", pp="1", cp="1", precision="bf16", framework="nemo 24.11", **told)
    assert open_.layout.recompute == {"layer"}
    assert 0.0 < open_.layout.recomputed < 1.0
    assert "recompute" in open_.assumed


def test_the_embedding_and_the_loss_may_take_a_layers_place(tmp_path: Path) -> None:
    """Llama 3.1 405B was published with 16 stages of 8 chunks for its 126 layers."""
    told = {"model": "llama3.1-405b", "tp": "4", "pp": "16", "cp": "1", "vp": "8"}
    assert one(tmp_path, **told).layout.virtual == 8


@pytest.mark.parametrize(
    ("framework", "open_"), [("", True), ("DeepSpeed", True), ("Megatron-LM", False), ("maxtext", False)]
)
def test_a_framework_that_is_unknown_is_left_open(tmp_path: Path, framework: str, open_: bool) -> None:
    row = one(tmp_path, framework=framework)
    assert row.assumed == (("framework",) if open_ else ())
    assert row.complete is not open_


@pytest.mark.parametrize(
    "largest",
    [{"seq_len": "100000000"}, {"num_gpus": "10000000", "tp": "8", "global_batch_size": "10000000"}],
)
def test_the_largest_that_is_read_is_counted_without_a_warning(
    tmp_path: Path, largest: dict[str, str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = one(tmp_path, pp="1", cp="1", vp="", nic_gbps_per_gpu="1e12", **{"recompute": "", **largest})
        seconds = calibration.problem([row]).predict(calibration.published()).seconds
    assert 0.0 < seconds[0] < math.inf


def test_every_system_and_precision_is_predicted_or_refused_with_the_reason(tmp_path: Path) -> None:
    """No row may take the others with it, whatever the catalog holds."""
    rows = [
        {"row_id": f"{system.name} {precision} {model}", "system": system.name, "precision": precision} | more
        for system in catalog.systems()
        for precision in PRECISIONS
        for model, more in (("dense", {}), ("sparse", SPARSE | {"ep": "8"}))
    ]
    good, bad = read(table(tmp_path, *rows))
    assert np.all(calibration.problem(good).predict(calibration.published()).seconds > 0)
    assert {row.recipe.architecture for row in good} == {"ampere", "hopper", "blackwell"}
    assert len(good) + len(bad) == len(rows)
    for row in bad:
        assert row.reason.startswith(("system: ", "precision: ")), row


def test_only_rows_without_a_time_rest_on_a_count_of_flops(tmp_path: Path) -> None:
    assert not one(tmp_path, model_tflops_per_gpu="700").from_flops
    assert not one(
        tmp_path, step_time_s="", tokens_per_s_per_gpu="1600", model_tflops_per_gpu="700"
    ).from_flops
    assert one(tmp_path, step_time_s="", model_tflops_per_gpu="700").from_flops


def test_a_windows_pairs_were_never_counted_twice() -> None:
    """gpt-oss: half its layers see 128 tokens. Counting all pairs adds those of the other half alone."""
    model, tokens = models.model("gpt-oss-120b"), 8192
    mixers = [(kind.mixer, kind.count) for kind in model.layers if isinstance(kind.mixer, models.Attention)]
    (full,) = ((mixer, count) for mixer, count in mixers if mixer.window_tokens is None)
    assert full[1] == model.depth // 2
    more = flops_per_token(model, tokens, all_pairs=True) - flops_per_token(model, tokens)
    # forward and backward: 3 times two products of 2 FLOPs, over the half of the sequence that is not before a token
    assert more == pytest.approx(full[1] * 3 * 2 * 2 * full[0].heads * full[0].head_dim * tokens / 2)


def test_misspelt_columns_are_not_taken_for_defaults(tmp_path: Path) -> None:
    """`precison` would make every row BF16; columns that are nobody's are left alone."""
    file = table(tmp_path, {})
    text = file.read_text("utf-8")
    file.write_text(text.replace("precision", "precison", 1), "utf-8")
    with pytest.raises(DocumentError, match=r"no column .precison. to read .did you mean .precision."):
        read(file)
    header, *rest = text.splitlines()
    file.write_text("\n".join([header + ",operator", *(line + ",ann" for line in rest)]) + "\n", "utf-8")
    good, bad = read(file)
    assert (len(good), bad) == (1, [])
