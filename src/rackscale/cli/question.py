"""What `rackscale size` was asked, with what is chosen where nothing is said; and what can't be, before a search."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import cbrt, isfinite, log2
from typing import TYPE_CHECKING, Any

from rackscale import catalog, models
from rackscale.cli.values import Values
from rackscale.errors import DocumentError, RackscaleError, UnknownNameError
from rackscale.sizing.division import undivided
from rackscale.sizing.experts import experts_of
from rackscale.sizing.layout import FULL, MODULES
from rackscale.sizing.provenance import Input
from rackscale.sizing.recipe import (
    DISPATCHERS,
    FAMILIES,
    GRAPHS,
    NEWEST,
    OPTIMIZERS,
    PRECISIONS,
    TASKS,
    Precision,
    Recipe,
    usual_gradient_bytes,
    usual_overlap,
)
from rackscale.sizing.search import Limits
from rackscale.sizing.segments import domain_gpus
from rackscale.sizing.space import WAYS

if TYPE_CHECKING:
    from rackscale.models.description import Model
    from rackscale.sizing.size import Sizing

TOKENS = 8192
"""Of a sequence, where nothing is said: what Llama 3 and its successors are trained on at first."""
STEP_TOKENS = {"sft": 2.0**19, "lora": 2.0**19}
"""Of a step that fine-tunes, about, where nothing is said (assumed)."""
PRETRAIN_TOKENS, PRETRAIN_PARAMETERS = 2.0**22, 7e9
"""Of a step, of a model so large. See `step_tokens`."""
MOST_PER_SEQUENCE = 32
"""GPUs: on more of them the usual batch grows, so that there are sequences to share out (assumed)."""
RECOMPUTE = {"none": frozenset[str](), "full": FULL} | {module: frozenset({module}) for module in MODULES}
OLDEST, AHEAD = 2020.0, 1.0
"""Years: of the oldest software that is sized, and by how much one may be ahead of the newest known."""
MOST_GPUS = 10_000_000
MOST_TOKENS = 2**28
"""Of a step, without a warning: four times the most that was published (63 M, DeepSeek-V3)."""
MORE = 7
"""Doublings of the GPUs that are tried where nothing fits."""
MEANT = {
    "precision": {"fp16": "bf16", "mxfp4": "nvfp4", "fp8-cs": "fp8", "fp32": "bf16"},
    "task": {
        "finetune": "sft, which trains all parameters, or lora, which trains adapters",
        "fine-tune": "sft, which trains all parameters, or lora, which trains adapters",
        "train": "pretrain", "training": "pretrain", "peft": "lora", "qlora": "lora",
    },
    "optimizer": {"adam": "adamw"},
    "framework": {
        "nemo": "megatron", "megatron-bridge": "megatron", "megatron-lm": "megatron, or plain where it is untuned",
        "torchtitan": "torch", "pytorch": "torch", "fsdp": "torch", "jax": "maxtext", "llm-foundry": "composer",
    },
    "graphs": {"full": "step", "full-iteration": "step", "no": "none", "yes": "layers"},
    "dispatcher": {"deepep": "once", "hybridep": "once", "flex": "once", "nccl": "alltoall"},
    "sharding": {
        "ddp": "zero1, which is the least that is modelled", "zero3": "fsdp", "fsdp2": "fsdp",
    },
    "recompute": {"selective": "attention", "all": "full", "layer": "full", "yes": "full", "no": "none"},
}  # fmt: skip
"""What others call the words of an option."""


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
    warnings: list[str]

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
        """What does fit: without one of the limits, without all of them, on more GPUs; the first of each kind."""
        if self.limits != Limits():
            freed = [(name, self._fitting(self.gpus, free)) for name, free in freed_limits(self.limits)]
            ways = [f"without {name} {told}" for name, told in freed if told]
            if ways:
                return ways
            if told := self._fitting(self.gpus, Limits()):
                return [f"without the limits given {told}"]
        for doubling in range(1, MORE + 1):
            gpus = self.gpus << doubling
            if told := self._fitting(gpus, Limits()):
                return [f"all layouts of these GPUs were tried; with --gpus {gpus} {told}"]
        return [f"all layouts were tried, and nothing is sure to fit on {self.gpus << MORE:,} GPUs either"]

    def _fitting(self, gpus: int, limits: Limits) -> str | None:
        """How many layouts fit, and the best of them."""
        try:
            found = self._sized(gpus, limits)
        except RackscaleError:
            return None
        if not found.fitting:
            return None
        how_many = f"{found.fitting:,} division{'' if found.fitting == 1 else 's'} of the GPUs fit"
        return how_many + ("s" if found.fitting == 1 else "") + f", the best {found.candidates[0].layout}"


def freed_limits(limits: Limits) -> list[tuple[str, Limits]]:
    """Each limit that is set, by its option, with the others alone."""
    from dataclasses import replace

    open_ = Limits()
    return [
        (f"--{f.name.replace('_', '-')}", replace(limits, **{f.name: getattr(open_, f.name)}))
        for f in fields(Limits)
        if getattr(limits, f.name) != getattr(open_, f.name)
    ]


def question(asked: dict[str, Any]) -> Question:
    """Raises DocumentError, UnknownNameError and typer.BadParameter."""
    read, choices = Values(), Choices()
    for name, pointer in (
        ("model", "`rackscale catalog --models` lists those that are known"),
        ("system", "`rackscale catalog` lists them"),
        ("gpus", "how many GPUs the job has"),
    ):
        if asked[name] is None:
            read.problems.append(f"{'MODEL' if name == 'model' else f'--{name}'} is missing: {pointer}")
    read.check()
    gpus = read.whole("--gpus", asked["gpus"])
    limits = _limits(asked, read)
    tokens = read.sequence("--seq", asked["seq"]) if asked["seq"] else None
    batch = read.whole("--global-batch", asked["global_batch"]) if asked["global_batch"] else None
    run_tokens = read.number("--tokens", asked["tokens"]) if asked["tokens"] else None
    words = _words(asked, read)
    read.problems += [
        f"--{name.replace('_', '-')} {asked[name]}: say a number that is not infinite"
        for name in ("price", "failures", "checkpoint_stall", "restart", "oversubscription", "imbalance")
        if asked[name] is not None and not isfinite(asked[name])
    ]
    read.check()

    model, hardware = _named("model", asked["model"]), _named("system", asked["system"])
    recipe = _recipe(asked, words, model, hardware, choices)
    _check(model, recipe, limits, gpus, asked["segment"])
    tokens, warnings = _sequence(model, tokens, choices)
    warnings += _ignored(model, recipe, asked)
    batch = _batch(model, batch, gpus, tokens, recipe, choices)
    if batch * tokens > MOST_TOKENS:
        told = f"{batch:,} sequences are {batch * tokens / 1e6:,.0f} M tokens a step"
        warnings.append(
            f"--global-batch: {told}, more than was ever published; it counts sequences, not tokens"
        )
    more = {"run_tokens": run_tokens, **_more(asked, choices)}
    return Question(
        model=model, recipe=recipe, gpus=gpus, batch=batch, tokens=tokens, limits=limits, top=asked["top"],
        more={name: value for name, value in more.items() if value is not None}, choices=choices.made,
        warnings=warnings,
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


def _named(kind: str, name: str) -> Any:
    """The model or system. Raises UnknownNameError that says where all are listed."""
    try:
        return models.model(name) if kind == "model" else catalog.system(name.lower())
    except UnknownNameError as error:
        verb = "`rackscale catalog --models`" if kind == "model" else "`rackscale catalog`"
        path = ", and a path of a config.json describes others" if kind == "model" else ""
        error.hint = " ".join([*([error.hint] if error.hint else []), f"{verb} lists them{path}"])
        raise


def _words(asked: dict[str, Any], read: Values) -> dict[str, Any]:
    """The options that are one of a few words, and the year."""
    newest = NEWEST + AHEAD
    year = asked["software_year"]
    if year is not None and not OLDEST <= year <= newest:
        read.problems.append(
            f"--software-year {year:g}: software from {OLDEST:.0f} to {newest:.1f} can be sized; the newest known is"
            f" of {NEWEST:.1f}"
        )
    return {
        name: read.word(f"--{name}", asked[name] or usual, known, meant=MEANT.get(name))
        for name, usual, known in (
            ("precision", "bf16", PRECISIONS),
            ("task", "pretrain", TASKS),
            ("optimizer", "adamw", OPTIMIZERS),
            ("framework", "megatron", FAMILIES),
            ("graphs", "layers", GRAPHS),
            ("dispatcher", "once", DISPATCHERS),
        )
    }


def _recipe(
    asked: dict[str, Any], words: dict[str, Any], model: Model, hardware: catalog.System, choices: Choices
) -> Recipe:
    if asked["precision"] is None:
        words = words | {"precision": usual_precision(model, hardware)}
    year = NEWEST if asked["software_year"] is None else asked["software_year"]
    family, overlap, kept = words["framework"], asked["overlap_tp"], asked["bf16_layers"]
    recipe = Recipe(
        system=hardware.name,
        precision=words["precision"],
        task=words["task"],
        optimizer=words["optimizer"],
        family=family,
        year=year,
        gradient_bytes=usual_gradient_bytes(family),
        graphs=words["graphs"],
        dispatcher=words["dispatcher"],
        overlaps_tp=usual_overlap(family) if overlap is None else overlap,
        overlaps_ep=asked["overlap_ep"],
        imbalance=1.0 if asked["imbalance"] is None else asked["imbalance"],
        bf16_layers=0.0 if kept is None else kept,
        leaf_gpus=asked["leaf"],
        oversubscription=asked["oversubscription"],
    )
    _ = recipe.architecture  # raises where training is modelled on no such chip
    _tell(recipe, asked, choices)
    return recipe


def usual_precision(model: Model, hardware: catalog.System) -> Precision:
    """Where nothing is said: one scale per tensor is quick for dense layers, and slow for many small experts."""
    if hardware.accelerator.fp8_flop_per_s is None:
        return "bf16"
    blackwell = hardware.accelerator.fp4_flop_per_s is not None and hardware.accelerator.maker == "NVIDIA"
    return "mxfp8" if blackwell and experts_of(model) is not None else "fp8"


def _tell(recipe: Recipe, asked: dict[str, Any], choices: Choices) -> None:
    """What was chosen of a recipe, as inputs of the answer."""
    for name, value, why in (
        ("precision", recipe.precision, "FP8 where the chip has it, MXFP8 for experts on Blackwell"),
        ("task", recipe.task, "most of what is trained on so many GPUs"),
        ("optimizer", recipe.optimizer, "the usual one"),
        ("framework", recipe.family, "what most measurements are of"),
        ("software_year", recipe.year, "the newest that was measured"),
        ("graphs", recipe.graphs, "what most recipes have since 2025"),
        ("dispatcher", recipe.dispatcher, "what most recipes have since 2025"),
        ("overlap_tp", "yes" if recipe.overlaps_tp else "no", "as the framework does it"),
        ("imbalance", recipe.imbalance, "even, as published runs force it; real routing is slower"),
    ):
        choices.add(name.replace("_", " "), value, "", given=asked[name], why=why)
    overlaps = "yes" if recipe.overlaps_ep else "no"
    choices.add("overlap ep", overlaps, "", given=asked["overlap_ep"] or None, why="few recipes have it")
    if recipe.is_low:
        why = "as recipes for performance have it"
        if recipe.precision == "nvfp4":
            why += "; models that were trained in NVFP4 kept 0.15 (arXiv:2509.25149)"
        choices.add("BF16 layers", recipe.bf16_layers, "share", given=asked["bf16_layers"], why=why)


def _limits(asked: dict[str, Any], read: Values) -> Limits:
    told = {"sharding", "recompute"}
    plain = {f.name: asked[f.name] for f in fields(Limits) if f.name in asked and f.name not in told}
    sharding, again = asked["sharding"], asked["recompute"]
    return Limits(
        **plain,
        sharding=None
        if sharding is None
        else read.word("--sharding", sharding, WAYS, meant=MEANT["sharding"]),
        recompute=None if again is None else _recompute(again, read),
    )


def _recompute(text: str, read: Values) -> frozenset[str]:
    """none, full, or modules such as norm+activation."""
    words = [
        read.word("--recompute", word, tuple(RECOMPUTE), meant=MEANT["recompute"]) for word in text.split("+")
    ]
    return FULL if "full" in words else frozenset[str]().union(*(RECOMPUTE[word] for word in words))


def _sequence(model: Model, given: int | None, choices: Choices) -> tuple[int, list[str]]:
    """Tokens of a sequence, and a warning where the model was not made for so many."""
    longest = model.max_tokens
    tokens = given or min(TOKENS, longest or TOKENS)
    why = "the model's longest" if tokens < TOKENS else "as Llama 3 is trained at first"
    if longest is None or tokens <= longest:
        choices.add("sequence", tokens, "tokens", given=given, why=why)
        return tokens, []
    beyond = f"beyond the {longest:,} tokens that {model.name} was made for"
    choices.add("sequence", tokens, "tokens", given=given, source=f"as given; {beyond}")
    return tokens, [f"--seq {tokens}: {beyond}; the time is that of longer training, not of a usable model"]


def _batch(model: Model, given: int | None, gpus: int, tokens: int, recipe: Recipe, choices: Choices) -> int:
    """Sequences of a step."""
    wanted = step_tokens(model, recipe.task)
    batch = given or usual_batch(gpus, max(wanted / tokens, gpus / MOST_PER_SEQUENCE))
    grown = "as much as models of its size" if recipe.task == "pretrain" else "fine-tuning takes little"
    why = f"about {wanted / 1e6:,.1f} M tokens, {grown}; a power of two times or parts of the GPUs"
    if wanted / tokens < gpus / MOST_PER_SEQUENCE:
        why = f"a sequence for {MOST_PER_SEQUENCE} GPUs; {wanted / 1e6:,.1f} M tokens would be as usual"
    choices.add("global batch", batch, "sequences", given=given, why=why)
    return batch


def step_tokens(model: Model, task: str) -> float:
    """Tokens that a step sees, where nothing is said (assumed).

    To pretrain, 4 M for 7 G parameters, and the cube root of their number more or less: 16 M for 405 G. Published are
    4 M (Llama 2, 7 G to 70 G, arXiv:2307.09288), 4 M growing to 16 M (Llama 3.1 405B, arXiv:2407.21783), 13 M growing
    to 63 M (DeepSeek-V3, 671 G, arXiv:2412.19437), 0.5 M to 3.2 M (GPT-3, 125 M to 175 G, arXiv:2005.14165).
    """
    if task in STEP_TOKENS:
        return STEP_TOKENS[task]
    return PRETRAIN_TOKENS * cbrt(models.parameters(model) / PRETRAIN_PARAMETERS)


def usual_batch(gpus: int, wanted: float) -> int:
    """Sequences per step: the GPUs times a power of two (or divided by one), near those `wanted`.

    So every layout whose replicas are a divisor of the GPUs finds a batch that it can share out.
    """
    halvings = (gpus & -gpus).bit_length() - 1
    choices = [gpus >> n for n in range(halvings, 0, -1)] + [gpus << n for n in range(32)]
    return min(choices, key=lambda batch: abs(log2(batch / wanted)))


def _more(asked: dict[str, Any], choices: Choices) -> dict[str, Any]:
    """What `size` takes beside the job itself."""
    from rackscale.sizing.scoring import from_toml

    more = {
        "domain": asked["segment"],
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
        choices.add("constants", str(asked["constants"]), "", given=True, source=source)
    return more


def _check(model: Model, recipe: Recipe, limits: Limits, gpus: int, segment: int | None) -> None:
    """Raises DocumentError with everything that can't be, before anything is searched."""
    chip, hardware = recipe.hardware.accelerator, recipe.hardware
    if gpus > MOST_GPUS:
        raise DocumentError([f"--gpus {gpus}: at most {MOST_GPUS:,} are sized"])
    problems = [
        f"--{name} {degree}: {gpus:,} GPUs are not a multiple of it"
        for name in ("tp", "pp", "cp", "ep", "etp")
        if (degree := getattr(limits, name)) is not None and gpus % degree
    ]
    node = hardware.gpus_per_node
    if gpus > node and gpus % node:
        problems.append(
            f"--gpus {gpus}: an instance of {hardware.name} has {node} GPUs, and jobs hold whole ones:"
            f" {gpus // node * node:,} or {(gpus // node + 1) * node:,}"
        )
    problems += _segments(hardware, gpus, segment)
    if recipe.precision == "nvfp4" and chip.fp4_flop_per_s is None:
        problems.append(f"--precision nvfp4: {chip.name} has no FP4; say bf16 or fp8")
    elif recipe.precision != "bf16" and chip.fp8_flop_per_s is None:
        problems.append(f"--precision {recipe.precision}: {chip.name} has no FP8; say bf16")
    elif recipe.precision == "mxfp8" and recipe.architecture != "blackwell":
        problems.append(f"--precision mxfp8: {chip.name} has no block scales; say fp8 or fp8-block")
    problems += [*_leaves(recipe, segment or domain_gpus(hardware.name, gpus)), *_undivided(model, limits)]
    if problems:
        raise DocumentError(problems)


def _segments(hardware: catalog.System, gpus: int, segment: int | None) -> list[str]:
    """What can't be of the job's part of each NVLink domain: gangs hold whole nodes."""
    if segment is None:
        return []
    if segment > hardware.gpus or gpus % segment:
        has = f"a domain of {hardware.name} has {hardware.gpus} GPUs"
        return [f"--segment {segment}: {has}, and {gpus:,} must be a multiple of it"]
    node = hardware.gpus_per_node
    if segment == gpus or segment % node == 0:
        return []
    whole = [n for n in range(node, hardware.gpus + 1, node) if gpus % n == 0] or [gpus]
    holds = f"an instance of {hardware.name} has {node} GPUs, and segments hold whole ones"
    return [f"--segment {segment}: {holds}: say {' or '.join(map(str, whole))}"]


def _ignored(model: Model, recipe: Recipe, asked: dict[str, Any]) -> list[str]:
    """Warnings of options that change nothing here."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("dispatcher", "imbalance", "overlap_ep")
        if asked[name] and experts_of(model) is None
    ]
    told = [f"{' and '.join(given)}: of no effect, {model.name} has no experts"] if given else []
    if asked["bf16_layers"] is not None and not recipe.is_low:
        told.append("--bf16-layers: of no effect, in bf16 all layers are")
    return told


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
    degrees = {name: getattr(limits, name) for name in ("tp", "pp", "virtual", "ep", "etp")}
    return [f"--{name} {degrees[name]}: {why}" for name, why in undivided(model, **degrees).items()]
