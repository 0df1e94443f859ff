"""size: the best layouts of a model on a system, what they take, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from rackscale import catalog
from rackscale.cli.output import FAILED, JsonOption, err, fail, show
from rackscale.cli.scoring import PANEL, Constants

TRAINED, LAID_OUT = "How it is trained", "Layout: what is left out is searched"
FABRIC, COSTS, ANSWER = "Fabric", "Failures and money", "Answer"


def register(app: typer.Typer) -> None:
    """Add this group's verb."""
    app.command("size", rich_help_panel=PANEL)(size)


def known_systems(incomplete: str) -> list[str]:
    """Completes the name of a system."""
    return [s.name for s in catalog.systems() if s.name.startswith(incomplete)]


def known_models(incomplete: str) -> list[str]:
    """Completes the name of a model, or else another that it goes by."""
    from rackscale import models

    begun = incomplete.lower()
    found = [m.name for m in models.models() if m.name.startswith(begun)]
    return found or [alias for alias in models.aliases() if alias.startswith(begun)]


def _words(name: str) -> Callable[[str], list[str]]:
    """Completes one of the words that `rackscale.sizing.recipe` lists by `name`."""

    def complete(incomplete: str) -> list[str]:
        from rackscale.sizing import recipe

        return [word for word in getattr(recipe, name) if word.startswith(incomplete.lower())]

    return complete


def _word(name: str, text: str) -> Any:
    return typer.Option(
        metavar="WORD", help=text, autocompletion=_words(name), show_default=False, rich_help_panel=TRAINED
    )


def _degree(what: str) -> Any:
    return typer.Option(min=1, metavar="N", help=what, show_default=False, rich_help_panel=LAID_OUT)


def _way(text: str, *words: str) -> Any:
    return typer.Option(
        metavar="WORD", help=text, show_default=False, rich_help_panel=LAID_OUT,
        autocompletion=lambda incomplete: [word for word in words if word.startswith(incomplete)],
    )  # fmt: skip


def _cost(text: str, metavar: str) -> Any:
    return typer.Option(min=0.0, metavar=metavar, help=text, show_default=False, rich_help_panel=COSTS)


def size(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model that `rackscale catalog --models` lists, or the path of a Hugging Face config.json."
            " [required]",
            autocompletion=known_models,
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A system that `rackscale catalog` lists. [required]",
            autocompletion=known_systems,
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="GPUs of the job, such as 2304; 4k is 4,000. [required]", show_default=False
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train/--serve", help="What for; serving is not there yet.", show_default=False)
    ] = True,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens to train on, such as 15T: adds time and money.")
    ] = None,
    seq: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Tokens per sequence; here 4k is 4,096, elsewhere k is 1,000."
            " [default: 8192, or the model's longest]",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    global_batch: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Sequences per step. [default: 4 M tokens for a 7B model, 16 M for a 405B one; 0.5 M to fine-tune]",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        _word(
            "PRECISIONS",
            "bf16, fp8, fp8-block, mxfp8 or nvfp4. [default: fp8, or mxfp8 for experts on Blackwell; bf16 on A100]",
        ),
    ] = None,
    task: Annotated[
        str | None,
        _word("TASKS", "pretrain, or fine-tune all parameters (sft) or adapters (lora). [default: pretrain]"),
    ] = None,
    optimizer: Annotated[str | None, _word("OPTIMIZERS", "adamw, muon or sgd. [default: adamw]")] = None,
    framework: Annotated[
        str | None,
        _word(
            "FAMILIES",
            "megatron (NeMo too), plain (Megatron-LM untuned), mlperf, torch, composer or maxtext."
            " [default: megatron]",
        ),
    ] = None,
    software_year: Annotated[
        float | None,
        typer.Option(
            metavar="YEAR",
            help="When it was released, such as 2025.5. [default: the newest known, 2026.6]",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    graphs: Annotated[
        str | None,
        _word("GRAPHS", "What CUDA graphs hold: none, layers (but their experts) or step. [default: layers]"),
    ] = None,
    dispatcher: Annotated[
        str | None,
        _word(
            "DISPATCHERS",
            "Tokens to experts: once per domain and rank (DeepEP, HybridEP), or alltoall, one copy per expert."
            " [default: once]",
        ),
    ] = None,
    overlap_tp: Annotated[
        bool | None,
        typer.Option(
            "--overlap-tp/--no-overlap-tp",
            help="Tensor-parallel messages beside products. [default: as the framework does it]",
            show_default=False,
            rich_help_panel=TRAINED,
        ),
    ] = None,
    overlap_ep: Annotated[
        bool,
        typer.Option(
            "--overlap-ep",
            help="Messages to experts beside another micro-batch's work.",
            rich_help_panel=TRAINED,
        ),
    ] = False,
    imbalance: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            metavar="X",
            help="Tokens of the busiest rank's experts over the mean. [default: 1]",
            show_default=False,
            rich_help_panel=TRAINED,
        ),
    ] = None,
    bf16_layers: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Of layers that stay in BF16; models trained in nvfp4 kept 0.15. [default: 0]",
            show_default=False,
            rich_help_panel=TRAINED,
        ),
    ] = None,
    tp: Annotated[int | None, _degree("Tensor parallel ranks.")] = None,
    pp: Annotated[int | None, _degree("Pipeline stages.")] = None,
    cp: Annotated[int | None, _degree("Context parallel ranks.")] = None,
    ep: Annotated[int | None, _degree("Expert parallel ranks.")] = None,
    etp: Annotated[int | None, _degree("Tensor parallel ranks inside an expert.")] = None,
    micro_batch: Annotated[int | None, _degree("Sequences in one pass.")] = None,
    virtual: Annotated[int | None, _degree("Model chunks per stage.")] = None,
    sharding: Annotated[
        str | None, _way("zero1, zero2, fsdp or hsdp.", "zero1", "zero2", "fsdp", "hsdp")
    ] = None,
    recompute: Annotated[
        str | None,
        _way(
            "none, full (all layers), or modules such as norm+activation: attention, mlp, norm, activation, latent,"
            " experts. Shares of layers are tried where nothing is said.",
            "none",
            "full",
            "attention",
            "mlp",
            "norm",
            "activation",
            "latent",
            "experts",
        ),
    ] = None,
    offload: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Of layers whose activations wait in host memory. [default: 0; tried near a host if nothing fits]",
            show_default=False,
            rich_help_panel=LAID_OUT,
        ),
    ] = None,
    zero_bubble: Annotated[
        bool,
        typer.Option(
            "--zero-bubble", help="Pipelines by ZB-H1 instead of interleaving.", rich_help_panel=LAID_OUT
        ),
    ] = False,
    ulysses: Annotated[
        bool,
        typer.Option(
            "--ulysses",
            help="Context parallelism all to all instead of by a ring.",
            rich_help_panel=LAID_OUT,
        ),
    ] = False,
    segment: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="GPUS",
            help="Of the job in each NVLink domain. [default: a power of two, spares are left]",
            rich_help_panel=FABRIC,
        ),
    ] = None,
    leaf: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="GPUS",
            help="Under one leaf switch or rail group. [default: all]",
            rich_help_panel=FABRIC,
        ),
    ] = None,
    oversubscription: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            metavar="X",
            help="Of each leaf's uplinks: 2 where they carry half. [default: 1]",
            rich_help_panel=FABRIC,
        ),
    ] = None,
    price: Annotated[
        float | None, _cost("Per GPU-hour. [default: the newest list price, if any]", "USD")
    ] = None,
    failures: Annotated[float | None, _cost("Per GPU-hour. [default: 2e-5, assumed]", "RATE")] = None,
    checkpoint_stall: Annotated[
        float | None, _cost("Of training, per checkpoint. [default: by the size of the job]", "SECONDS")
    ] = None,
    restart: Annotated[
        float | None, _cost("From a failure to training again. [default: by the size of the job]", "SECONDS")
    ] = None,
    constants: Constants = None,
    top: Annotated[
        int, typer.Option(min=1, metavar="N", help="Layouts to show.", rich_help_panel=ANSWER)
    ] = 5,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Where time and memory go, and every input.", rich_help_panel=ANSWER),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Find the best parallel layouts to train MODEL on so many GPUs: time, memory, money, and how sure that is.

    Exit code 1: nothing is sure to fit in memory (what to change is said). What it can't know:
    docs/explanation/sizing.md.
    The fields of the JSON: docs/reference/sizing.md.

    Examples: `rackscale size llama3.1-405b --train --system u-p6e-gb300x72 --gpus 2304 --tokens 15T`,
    `rackscale size deepseek-v3 --train --system p6-b200 --gpus 1024 --precision mxfp8 --explain`,
    `rackscale size ./config.json --train --system p5 --gpus 64 --precision bf16 --seq 4k --tp 8 --json`
    """
    asked = dict(locals())
    if not train:
        raise fail("sizing for serving is not there yet", hint="--train answers for training")
    from rackscale.cli.question import question
    from rackscale.report import sizing as report

    with err.status("searching"):
        what = question(asked)
        found = what.answer()
    picture = report.sizing(found, what.recipe, warnings=what.warnings, explain=explain)
    show(found, picture, json=json)
    if json:
        for warning in what.warnings:
            err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not found.fitting:
        raise typer.Exit(FAILED)
