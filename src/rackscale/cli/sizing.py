"""size: the best layouts of a model on a system, what they take, and how sure that is."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from math import log2
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from rackscale import catalog
from rackscale.cli.output import FAILED, JsonOption, err, fail, show
from rackscale.cli.scoring import PANEL, Constants
from rackscale.errors import DocumentError, RackscaleError, did_you_mean

if TYPE_CHECKING:
    from rackscale.models.description import Model
    from rackscale.sizing.provenance import Input
    from rackscale.sizing.recipe import Recipe
    from rackscale.sizing.search import Limits
    from rackscale.sizing.size import Sizing

T = TypeVar("T", bound=str)
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
TOKENS = 8192
"""Of a sequence, where nothing is said: what Llama 3 and its successors are trained on at first."""
STEP_TOKENS = {"pretrain": 2**24, "sft": 2**19, "lora": 2**19}
"""Of a step, about, where nothing is said: 16 M is what Llama 3.1 405B ends with; 0.5 M to fine-tune is assumed."""
RECOMPUTE = {"none": frozenset[str](), "attention": frozenset({"attention"}), "full": frozenset({"layer"})}
MORE = 7
"""Doublings of the GPUs that are tried where nothing fits."""


def register(app: typer.Typer) -> None:
    """Add this group's verb."""
    app.command("size", rich_help_panel=PANEL)(size)


def number(option: str, text: str) -> float:
    """15T, 1.5B, 4k or 8192. Raises typer.BadParameter, which names the option."""
    found = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([kmbgt]?)\s*", text.lower())
    if found is None or float(found[1]) <= 0:
        raise typer.BadParameter(f"{option} {text!r} is not a number above 0 such as 8192, 4k, 1.5B or 15T")
    return float(found[1]) * SCALES[found[2]]


def whole(option: str, text: str) -> int:
    """The same, without a fraction; `4k` of a sequence is 4,096. Raises typer.BadParameter."""
    value = number(option, text)
    if value != int(value):
        raise typer.BadParameter(f"{option} {text!r} is not a whole number")
    return int(value)


def sequence(option: str, text: str) -> int:
    """Tokens of a sequence: 4k is 4,096, as everybody means it. Raises typer.BadParameter."""
    found = re.fullmatch(r"\s*([0-9]+)\s*k\s*", text.lower())
    return whole(option, text) if found is None else int(found[1]) * 1024


def _systems(incomplete: str) -> list[str]:
    return [s.name for s in catalog.systems() if s.name.startswith(incomplete)]


def _models(incomplete: str) -> list[str]:
    from rackscale import models

    names = [*(m.name for m in models.models()), *models.aliases()]
    return [name for name in names if name.startswith(incomplete.lower())]


def _choice(option: str, text: str | None, known: tuple[T, ...]) -> T:
    """Raises typer.BadParameter."""
    for one in known:
        if one == text:
            return one
    hint = did_you_mean(text or "", known)
    raise typer.BadParameter(
        f"{option} {text!r} is none of {', '.join(known)}" + (f"; {hint}" if hint else "")
    )


def _degree(what: str) -> Any:
    return typer.Option(min=1, metavar="N", help=f"{what}; left out, it is searched.", show_default=False)


def size(
    model: Annotated[
        str,
        typer.Argument(
            help="A model of the catalog, or a Hugging Face config.json.",
            autocompletion=_models,
            show_default=False,
        ),
    ],
    system: Annotated[
        str, typer.Option(help="A system of the catalog.", autocompletion=_systems, show_default=False)
    ],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the job.", show_default=False)],
    train: Annotated[
        bool, typer.Option("--train/--serve", help="What for; serving is not there yet.", show_default=False)
    ] = True,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens to train on, such as 15T: adds time and money.")
    ] = None,
    seq: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Tokens per sequence; 4k is 4,096. [default: 8192, or the model's longest]"
        ),
    ] = None,
    global_batch: Annotated[
        str | None,
        typer.Option(metavar="N", help="Sequences per step. [default: 16 M tokens; 0.5 M to fine-tune]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="bf16, fp8, fp8-block, mxfp8 or nvfp4. [default: fp8 where the chip has it]"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="pretrain, sft or lora. [default: pretrain]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, muon or sgd. [default: adamw]")] = None,
    framework: Annotated[
        str | None,
        typer.Option(
            help="megatron, plain (Megatron-LM untuned), mlperf, torch, composer or maxtext. [default: megatron]"
        ),
    ] = None,
    software_year: Annotated[
        float | None,
        typer.Option(min=2020.0, help="When it was released, such as 2025.5. [default: the newest known]"),
    ] = None,
    tp: Annotated[int | None, _degree("Tensor parallel ranks")] = None,
    pp: Annotated[int | None, _degree("Pipeline stages")] = None,
    cp: Annotated[int | None, _degree("Context parallel ranks")] = None,
    ep: Annotated[int | None, _degree("Expert parallel ranks")] = None,
    micro_batch: Annotated[int | None, _degree("Sequences in one pass")] = None,
    virtual: Annotated[int | None, _degree("Model chunks per stage")] = None,
    sharding: Annotated[
        str | None, typer.Option(help="zero1, fsdp or hsdp; left out, all are tried.")
    ] = None,
    recompute: Annotated[
        str | None, typer.Option(help="none, attention or full; left out, all are tried.")
    ] = None,
    zero_bubble: Annotated[
        bool, typer.Option("--zero-bubble", help="Pipelines by ZB-H1 instead of interleaving.")
    ] = False,
    ulysses: Annotated[
        bool, typer.Option("--ulysses", help="Context parallelism all to all instead of by a ring.")
    ] = False,
    segment: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="GPUS", help="Per NVLink domain. [default: a power of two, spares are left]"
        ),
    ] = None,
    leaf: Annotated[
        int | None,
        typer.Option(min=1, metavar="GPUS", help="Under one leaf switch or rail group. [default: all]"),
    ] = None,
    oversubscription: Annotated[
        float | None,
        typer.Option(
            min=1.0, metavar="X", help="Of each leaf's uplinks: 2 where they carry half. [default: 1]"
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Layouts to show.")] = 5,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="USD per GPU-hour. [default: the newest list price]")
    ] = None,
    failures: Annotated[
        float | None, typer.Option(min=0.0, help="Per GPU-hour. [default: 2e-5, assumed]")
    ] = None,
    checkpoint_stall: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="[default: 60, assumed]")
    ] = None,
    restart: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="[default: 600, assumed]")
    ] = None,
    constants: Constants = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Where time and memory go, and every input.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Find the best parallel layouts to train MODEL on so many GPUs: time, memory, money, and how sure that is.

    Exit code 1: nothing fits in memory (what to change is said). What it can't know: docs/explanation/sizing.md.

    Examples: `rackscale size llama3.1-405b --train --system u-p6e-gb300x72 --gpus 2304 --tokens 15T`,
    `rackscale size deepseek-v3 --train --system p6-b200 --gpus 1024 --precision mxfp8 --explain`,
    `rackscale size ./config.json --train --system p5 --gpus 64 --precision bf16 --seq 4k --tp 8 --json`
    """
    if not train:
        raise fail("sizing for serving is not there yet", hint="--train answers for training")
    asked = dict(locals())
    from rackscale.report import sizing as report

    with err.status("searching"):
        question = _question(asked)
        found = question.answer()
    show(found, report.sizing(found, question.recipe, explain=explain), json=json)
    if not found.fitting:
        raise typer.Exit(FAILED)


@dataclass(slots=True, kw_only=True)
class Question:
    """What was asked, with what was chosen where nothing was said."""

    model: Model
    recipe: Recipe
    gpus: int
    batch: int
    tokens: int
    limits: Limits
    top: int
    more: dict[str, Any]
    """Of `size`, what was given."""
    choices: list[Input]

    def answer(self) -> Sizing:
        """Raises RackscaleError where no layout divides the job."""
        from msgspec.structs import replace

        found = self._sized(self.gpus, self.limits)
        inputs = {one.name: one for one in (*found.inputs, *self.choices)}
        advice = found.advice if found.fitting else (*found.advice, *self._ways_out())
        return replace(found, inputs=tuple(inputs.values()), advice=advice)

    def _sized(self, gpus: int, limits: Limits) -> Sizing:
        from rackscale.sizing.size import size

        try:
            return size(
                self.model, self.recipe, gpus=gpus, global_batch=self.batch, tokens=self.tokens, limits=limits,
                top=self.top, **self.more,
            )  # fmt: skip
        except ValueError as error:
            raise RackscaleError(
                str(error), hint="see --global-batch, and the degrees that are fixed"
            ) from error

    def _ways_out(self) -> list[str]:
        """Without the limits, and on more GPUs: the first that fits."""
        from rackscale.sizing.search import Limits

        if self.limits != Limits():
            free = self._sized(self.gpus, Limits())
            if free.fitting:
                return [
                    f"without the limits given, {free.fitting:,} layouts fit, the best {free.candidates[0].layout}"
                ]
        for doubling in range(1, MORE + 1):
            gpus = self.gpus << doubling
            try:
                enough = self._sized(gpus, Limits())
            except RackscaleError:
                continue
            if enough.fitting:
                return [
                    f"on {gpus:,} GPUs {enough.fitting:,} layouts fit, the best {enough.candidates[0].layout}"
                ]
        return [f"nothing fits on {self.gpus << MORE:,} GPUs either"]


def _question(asked: dict[str, Any]) -> Question:
    """Raises DocumentError, UnknownNameError and typer.BadParameter."""
    from rackscale import models
    from rackscale.sizing.scoring import from_toml

    choices = Choices()
    model = models.model(asked["model"])
    recipe = _recipe(asked, choices)
    limits = _limits(asked)
    gpus, segment = asked["gpus"], asked["segment"]
    _check(model, recipe, limits, gpus, segment)
    tokens = sequence("--seq", asked["seq"]) if asked["seq"] else min(TOKENS, model.max_tokens or TOKENS)
    why = "the model's longest" if tokens < TOKENS else "as Llama 3 is trained at first"
    choices.add("sequence", tokens, "tokens", given=asked["seq"], why=why)
    batch = (
        whole("--global-batch", asked["global_batch"])
        if asked["global_batch"]
        else usual_batch(gpus, tokens, recipe.task)
    )
    why = (
        f"about {STEP_TOKENS[recipe.task] / 1e6:,.1f} M tokens, and a power of two times or parts of the GPUs"
    )
    choices.add("global batch", batch, "sequences", given=asked["global_batch"], why=why)
    more = {
        "domain": segment,
        "run_tokens": None if asked["tokens"] is None else number("--tokens", asked["tokens"]),
        "usd_per_gpu_hour": asked["price"],
        "failures_per_gpu_hour": asked["failures"],
        "checkpoint_s": asked["checkpoint_stall"],
        "restart_s": asked["restart"],
    }
    for key, unit in (("failures", "1/(GPU h)"), ("checkpoint_stall", "s"), ("restart", "s")):
        if asked[key] is not None:
            choices.add(key.replace("_", " "), asked[key], unit, given=True)
    if asked["constants"] is not None:
        more["values"], source = from_toml(asked["constants"])
        choices.add("constants", "of your own", "", given=True, source=source)
    return Question(
        model=model, recipe=recipe, gpus=gpus, batch=batch, tokens=tokens, limits=limits, top=asked["top"],
        more={name: value for name, value in more.items() if value is not None}, choices=choices.made,
    )  # fmt: skip


class Choices:
    """What was chosen, and by whom."""

    def __init__(self) -> None:
        self.made: list[Input] = []

    def add(
        self,
        name: str,
        value: float | str,
        unit: str,
        *,
        given: object,
        why: str = "",
        source: str = "as given",
    ) -> None:
        """`why`: the reason of a default."""
        from rackscale.sizing.provenance import Input

        is_given = given is not None
        self.made.append(
            Input(
                name=name,
                value=value,
                unit=unit,
                provenance="given" if is_given else "assumed",
                source=source if is_given else f"default: {why}",
            )
        )


def _recipe(asked: dict[str, Any], choices: Choices) -> Recipe:
    from rackscale.sizing.recipe import FAMILIES, NEWEST, OPTIMIZERS, PRECISIONS, TASKS, Recipe

    hardware = catalog.system(asked["system"])
    usual = "bf16" if hardware.accelerator.fp8_flop_per_s is None else "fp8"
    year = NEWEST if asked["software_year"] is None else asked["software_year"]
    recipe = Recipe(
        system=asked["system"],
        precision=_choice("--precision", asked["precision"] or usual, PRECISIONS),
        task=_choice("--task", asked["task"] or "pretrain", TASKS),
        optimizer=_choice("--optimizer", asked["optimizer"] or "adamw", OPTIMIZERS),
        family=_choice("--framework", asked["framework"] or "megatron", FAMILIES),
        year=year,
        leaf_gpus=asked["leaf"],
        oversubscription=asked["oversubscription"],
    )
    _ = recipe.architecture  # raises where training is modelled on no such chip
    for name, value, why in (
        ("precision", recipe.precision, "FP8 where the chip has it"),
        ("task", recipe.task, "most of what is trained on so many GPUs"),
        ("optimizer", recipe.optimizer, "the usual one"),
        ("framework", recipe.family, "what most measurements are of"),
    ):
        choices.add(name, value, "", given=asked[name], why=why)
    choices.add("software year", year, "", given=asked["software_year"], why="the newest that was measured")
    return recipe


def _limits(asked: dict[str, Any]) -> Limits:
    from rackscale.sizing.search import Limits

    told = {"sharding", "recompute"}
    plain = {f.name: asked[f.name] for f in fields(Limits) if f.name in asked and f.name not in told}
    sharding, again = asked["sharding"], asked["recompute"]
    return Limits(
        **plain,
        sharding=None if sharding is None else _choice("--sharding", sharding, ("zero1", "fsdp", "hsdp")),
        recompute=None if again is None else RECOMPUTE[_choice("--recompute", again, tuple(RECOMPUTE))],
    )


def usual_batch(gpus: int, tokens: int, task: str) -> int:
    """Sequences per step: the GPUs times a power of two (or divided by one), near the usual tokens of a step.

    So every layout whose replicas are a divisor of the GPUs finds a batch that it can share out.
    """
    wanted = STEP_TOKENS[task] / tokens
    halvings = (gpus & -gpus).bit_length() - 1
    choices = [gpus >> n for n in range(halvings, 0, -1)] + [gpus << n for n in range(32)]
    return min(choices, key=lambda batch: abs(log2(batch / wanted)))


def _check(model: Model, recipe: Recipe, limits: Limits, gpus: int, segment: int | None) -> None:
    """Raises DocumentError with everything that can't be, before anything is searched."""
    from rackscale.sizing.segments import domain_gpus

    chip, hardware = recipe.hardware.accelerator, recipe.hardware
    problems = [
        f"--{name} {degree}: {gpus:,} GPUs are not a multiple of it"
        for name in ("tp", "pp", "cp", "ep")
        if (degree := cast("int | None", getattr(limits, name))) is not None and gpus % degree
    ]
    node = hardware.gpus_per_node
    if gpus > node and gpus % node:
        problems.append(
            f"--gpus {gpus}: an instance of {hardware.name} has {node} GPUs, and jobs hold whole ones:"
            f" {gpus // node * node:,} or {(gpus // node + 1) * node:,}"
        )
    if segment is not None and (segment > hardware.gpus or gpus % segment):
        problems.append(
            f"--segment {segment}: a domain of {hardware.name} has {hardware.gpus} GPUs, and {gpus:,} must be a"
            " multiple of it"
        )
    if recipe.precision == "nvfp4" and chip.fp4_flop_per_s is None:
        problems.append(f"--precision nvfp4: {chip.name} has no FP4; say bf16 or fp8")
    elif recipe.precision != "bf16" and chip.fp8_flop_per_s is None:
        problems.append(f"--precision {recipe.precision}: {chip.name} has no FP8; say bf16")
    elif recipe.precision == "mxfp8" and recipe.architecture != "blackwell":
        problems.append(f"--precision mxfp8: {chip.name} has no block scales; say fp8 or fp8-block")
    problems += [*_leaves(recipe, segment or domain_gpus(hardware.name, gpus)), *_undivided(model, limits)]
    if problems:
        raise DocumentError(problems)


def _leaves(recipe: Recipe, domain: int) -> list[str]:
    """What can't be of the fabric; `domain`: GPUs of the job in each NVLink domain."""
    leaf, tight = recipe.leaf_gpus, recipe.oversubscription
    if leaf is None:
        missing = "says nothing without --leaf, the GPUs of the job under one leaf switch"
        return [] if tight is None else [f"--oversubscription {tight:g}: {missing}"]
    if leaf % domain == 0:
        return []
    least = leaf // domain * domain
    sizes = [f"{size:,}" for size in (least, least + domain) if size]
    return [
        f"--leaf {leaf:,}: a leaf holds whole NVLink domains, {domain} GPUs of the job each: {' or '.join(sizes)}"
    ]


def _undivided(model: Model, limits: Limits) -> list[str]:
    """Degrees that the model can't be divided by."""
    from rackscale.models import Attention, LatentAttention
    from rackscale.sizing.experts import experts_of

    problems = []
    mixers = (kind.mixer for kind in model.layers)
    heads = {mixer.heads for mixer in mixers if isinstance(mixer, Attention | LatentAttention)}
    if limits.tp is not None and any(count % limits.tp for count in heads):
        counts = " and ".join(map(str, sorted(heads)))
        problems.append(
            f"--tp {limits.tp}: the {counts} attention heads of {model.name} are not a multiple of it"
        )
    if limits.pp is not None and limits.pp > model.depth:
        problems.append(f"--pp {limits.pp}: {model.name} has {model.depth} layers")
    experts = experts_of(model)
    if limits.ep is not None and limits.ep > 1:
        if experts is None:
            problems.append(f"--ep {limits.ep}: {model.name} has no experts")
        elif experts.count % limits.ep:
            problems.append(
                f"--ep {limits.ep}: {experts.count} experts of {model.name} are not a multiple of it"
            )
    return problems
