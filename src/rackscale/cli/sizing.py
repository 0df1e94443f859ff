"""size, score, calibrate: the best layout of a model on a system, and how right the model of it is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rackscale import catalog
from rackscale.cli.output import FAILED, JsonOption, err, fail, out, print_json, show
from rackscale.errors import DocumentError, RackscaleError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from rackscale.models.description import Model
    from rackscale.sizing.recipe import Recipe
    from rackscale.sizing.search import Limits

SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
RECOMPUTE = {"none": frozenset[str](), "attention": frozenset({"attention"}), "full": frozenset({"layer"})}
PANEL = "Sizing"


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    app.command("size", rich_help_panel=PANEL)(size)
    app.command("score", rich_help_panel=PANEL)(score)
    app.command("calibrate", rich_help_panel=PANEL)(calibrate)


def number(text: str) -> float:
    """15T, 1.5B, 4k or 8192. Raises typer.BadParameter."""
    found = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([kmbgt]?)\s*", text.lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a number such as 8192, 4k or 15T")
    return float(found[1]) * SCALES[found[2]]


def whole(text: str) -> int:
    """The same, without a fraction and above 0."""
    value = number(text)
    if value < 1 or value != int(value):
        raise typer.BadParameter(f"{text!r} is not a whole number of at least 1")
    return int(value)


def _systems(incomplete: str) -> list[str]:
    return [s.name for s in catalog.systems() if s.name.startswith(incomplete)]


def _models(incomplete: str) -> list[str]:
    from rackscale import models

    return [m.name for m in models.models() if m.name.startswith(incomplete)]


def _choice(kind: str, text: str, known: tuple[str, ...] | list[str]) -> str:
    if text in known:
        return text
    hint = did_you_mean(text, known)
    raise typer.BadParameter(
        f"there is no {kind} {text!r}; one of {', '.join(known)}" + (f" ({hint})" if hint else "")
    )


Count = Annotated[int | None, typer.Option(min=1, help="Fix this degree; left out, it is searched.")]


def size(
    model: Annotated[
        str,
        typer.Argument(help="A model of the catalog, or a Hugging Face config.json.", autocompletion=_models),
    ],
    system: Annotated[
        str,
        typer.Option(
            "--system", help="A system of the catalog.", autocompletion=_systems, show_default=False
        ),
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs of the job.", show_default=False)],
    train: Annotated[bool, typer.Option("--train/--serve", help="What for.", show_default=False)] = True,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Tokens to train on, such as 15T: adds time and money.")
    ] = None,
    seq: Annotated[
        str | None, typer.Option("--seq", help="Tokens per sequence. [default: 8192, or the model's longest]")
    ] = None,
    global_batch: Annotated[
        str | None,
        typer.Option("--global-batch", help="Sequences per step. [default: as many as GPUs, at least 128]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help="bf16, fp8, fp8-block, mxfp8, nvfp4. [default: fp8 where the chip has it]"
        ),
    ] = None,
    task: Annotated[str, typer.Option("--task", help="pretrain, sft, lora.")] = "pretrain",
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, muon, sgd.")] = "adamw",
    framework: Annotated[
        str,
        typer.Option(
            "--framework", help="megatron, plain (Megatron-LM untuned), mlperf, torch, composer, maxtext."
        ),
    ] = "megatron",
    software_year: Annotated[
        float | None,
        typer.Option("--software-year", help="When it was released, such as 2025.5. [default: newest]"),
    ] = None,
    tp: Count = None,
    pp: Count = None,
    cp: Count = None,
    ep: Count = None,
    virtual: Count = None,
    micro_batch: Count = None,
    sharding: Annotated[str | None, typer.Option("--sharding", help="zero1 or fsdp; left out, both.")] = None,
    recompute: Annotated[
        str | None, typer.Option("--recompute", help="none, attention or full; left out, all.")
    ] = None,
    segment: Annotated[
        int | None,
        typer.Option("--segment", min=1, help="GPUs per NVLink domain. [default: spares are left]"),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Layouts to show.")] = 5,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0.0, help="USD per GPU-hour. [default: the newest list price]"),
    ] = None,
    failures: Annotated[
        float | None,
        typer.Option("--failures", min=0.0, help="Failures per GPU-hour. [default: 2e-5, assumed]"),
    ] = None,
    checkpoint_stall: Annotated[
        float | None, typer.Option("--checkpoint-stall", min=0.0, help="Seconds. [default: 60, assumed]")
    ] = None,
    restart: Annotated[
        float | None, typer.Option("--restart", min=0.0, help="Seconds. [default: 600, assumed]")
    ] = None,
    constants: Annotated[
        Path | None,
        typer.Option("--constants", help="Of your own fleet, as `rackscale calibrate` writes them."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where the time goes, and every input.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Find the best parallel layout to train MODEL on so many GPUs: time, memory, money, and how sure it is.

    Examples: `rackscale size llama-3.1-405b --train --system u-p6e-gb300x72 --gpus 2304 --tokens 15T`,
    `rackscale size ./config.json --system p5 --gpus 64 --precision bf16 --seq 4k --explain`
    """
    if not train:
        raise fail("sizing for serving is not there yet", hint="--train answers for training")
    from rackscale.report import sizing as report
    from rackscale.sizing import size as answer
    from rackscale.sizing.recipe import FAMILIES, NEWEST, OPTIMIZERS, PRECISIONS, TASKS, Recipe
    from rackscale.sizing.search import Limits

    described, hardware = _described(model), catalog.system(system)
    has_low = hardware.accelerator.fp8_flop_per_s is not None
    recipe = Recipe(
        system=system,
        precision=_choice("precision", precision or ("fp8" if has_low else "bf16"), PRECISIONS),  # type: ignore[arg-type]
        task=_choice("task", task, TASKS),  # type: ignore[arg-type]
        optimizer=_choice("optimizer", optimizer, OPTIMIZERS),  # type: ignore[arg-type]
        family=_choice("framework", framework, FAMILIES),  # type: ignore[arg-type]
        year=NEWEST if software_year is None else software_year,
    )
    limits = Limits(
        tp=tp,
        pp=pp,
        cp=cp,
        ep=ep,
        virtual=virtual,
        micro_batch=micro_batch,
        sharding=None if sharding is None else _choice("sharding", sharding, ("zero1", "fsdp")),
        recompute=None if recompute is None else RECOMPUTE[_choice("recompute", recompute, list(RECOMPUTE))],
    )
    length = whole(seq) if seq else min(8192, described.max_tokens or 8192)
    batch = whole(global_batch) if global_batch else gpus * -(-max(gpus, 128) // gpus)
    given: dict[str, Any] = {
        "run_tokens": None if tokens is None else number(tokens),
        "usd_per_gpu_hour": price,
        "failures_per_gpu_hour": failures,
        "checkpoint_s": checkpoint_stall,
        "restart_s": restart,
        "values": None if constants is None else read_constants(constants),
        "domain": segment,
    }
    _check(described, recipe, limits, gpus, segment)
    try:
        found = answer.size(
            described,
            recipe,
            gpus=gpus,
            global_batch=batch,
            tokens=length,
            limits=limits,
            top=top,
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValueError as error:
        raise fail(str(error)) from error
    show(found, report.sizing(found, recipe, explain=explain), json=json)
    if not found.fitting:
        raise typer.Exit(FAILED)


def _described(name: str) -> Model:
    from rackscale import models

    return models.model(name)


def _check(model: Model, recipe: Recipe, limits: Limits, gpus: int, segment: int | None) -> None:
    """Raises DocumentError with everything that can't be, before anything is searched."""
    problems = []
    for name in ("tp", "pp", "cp", "ep"):
        degree = getattr(limits, name)
        if degree is not None and gpus % degree:
            problems.append(f"--{name} {degree}: {gpus} GPUs are not a multiple of it")
    if segment is not None and (gpus % segment or segment > recipe.hardware.gpus):
        problems.append(
            f"--segment {segment}: a domain of {recipe.system} has {recipe.hardware.gpus} GPUs, and {gpus} must be a"
            " multiple of it"
        )
    if recipe.precision == "nvfp4" and recipe.hardware.accelerator.fp4_flop_per_s is None:
        problems.append(f"--precision nvfp4: {recipe.chip} has no FP4; bf16 or fp8")
    if recipe.precision != "bf16" and recipe.hardware.accelerator.fp8_flop_per_s is None:
        problems.append(f"--precision {recipe.precision}: {recipe.chip} has no FP8; bf16")
    if recipe.precision == "mxfp8" and recipe.architecture != "blackwell":
        problems.append(f"--precision mxfp8: {recipe.chip} has no block scales; fp8 or fp8-block")
    if limits.pp is not None and limits.pp > model.depth:
        problems.append(f"--pp {limits.pp}: {model.name} has {model.depth} layers")
    if problems:
        raise DocumentError(problems)


def read_constants(path: Path) -> dict[str, float]:
    """A file that `calibrate` wrote. Raises DocumentError with all that is wrong with it."""
    from rackscale.sizing.constants import constants, fitted

    try:
        given = tomllib.loads(path.read_text("utf-8")).get("constants", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DocumentError([f"{path}: {error}"]) from error
    known = constants()
    problems = []
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, known)
            problems.append(f"{path}: there is no constant {name!r}" + (f" ({hint})" if hint else ""))
        elif not isinstance(value, int | float) or value <= 0:
            problems.append(f"{path}: {name}: {value!r} is not a number above 0")
    if problems:
        raise DocumentError(problems)
    return {**fitted(), **given}


File = Annotated[Path, typer.Argument(help="A CSV table of measured steps.", show_default=False)]


def score(
    file: File,
    constants: Annotated[
        Path | None,
        typer.Option("--constants", help="Of your own fleet, as `rackscale calibrate` writes them."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Predict every measured step of a table, and say how far off it was, row by row and in summary.

    Columns (* needed): row_id, source_id, source_date, system*, nic_gbps_per_gpu, model*, layers, precision, task,
    framework, num_gpus*, global_batch_size*, micro_batch_size, seq_len*, tp*, pp*, cp, vp, ep, etp, dp_type, recompute,
    offload, cuda_graph, comm_overlap, memory_gib, and step_time_s or tokens_per_s_per_gpu*. Rows that can't be read are
    named with the reason.

    Examples: `rackscale score measured.csv`, `rackscale score ours.csv --constants ours.toml --json`
    """
    from rackscale.report import sizing as report
    from rackscale.sizing import scoring

    found = scoring.score(file, values=None if constants is None else read_constants(constants))
    show(found, report.score(found), json=json)
    if not found.rows:
        raise typer.Exit(FAILED)


def calibrate(
    file: File,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the constants here (TOML).")] = None,
    json: JsonOption = False,
) -> None:
    """Sharpen the model on your own fleet's measured steps, and show the error before and after.

    Every fifth row is held back: errors are of those, which the constants have not seen. The constants written are
    then fitted to all rows.

    Examples: `rackscale calibrate ours.csv --out ours.toml`, then
    `rackscale size llama-3.1-70b --system p5 --gpus 64 --constants ours.toml`
    """
    from rackscale.report import sizing as report
    from rackscale.sizing import scoring

    with err.status("fitting"):
        found = scoring.calibrate(file)
    if out_file is not None:
        out_file.write_text(scoring.as_toml(found, file), "utf-8")
    if json:
        print_json(found)
        return
    out.print(report.calibration(found))
    if out_file is not None:
        out.print(f"written: {out_file}", markup=False)


__all__ = ["DocumentError", "RackscaleError", "UnknownNameError", "register"]
