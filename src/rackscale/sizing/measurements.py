"""Measured steps from a CSV file: each row as a model, a layout and a recipe, or the reason why it can't be read."""

from __future__ import annotations

import csv
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import gcd
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from rackscale import catalog, models
from rackscale.errors import DocumentError, UnknownNameError, did_you_mean
from rackscale.models.description import Model
from rackscale.sizing.experts import experts_of
from rackscale.sizing.flops import HALVED, flops_per_token
from rackscale.sizing.layout import FULL, Layout, Layouts, Sharding
from rackscale.sizing.memory import TIGHT, Memory
from rackscale.sizing.memory import memory as memory_of
from rackscale.sizing.recipe import (
    NEWEST,
    Dispatcher,
    Family,
    Graphs,
    Precision,
    Recipe,
    Task,
    usual_gradient_bytes,
    usual_overlap,
)
from rackscale.sizing.segments import domain_gpus

T = TypeVar("T")

DATE = r"(\d{4})(?:-(\d{2}))?"
NEEDED = ("system", "model", "num_gpus", "global_batch_size", "seq_len")
"""Columns without which no row can be read."""


SHARDED = ("ddp", "dist", "zero1", "zero2", "zero3", "fsdp", "hsdp", "none")
"""How values of `dp_type` begin."""
PACKED_TOKENS = 512.0
"""Assumed mean length of the documents that NeMo's fine-tuning recipes pack (SQuAD)."""


SHARES = 8
"""Parts of the layers whose recompute or offload is tried where a table leaves open what was kept."""


class Measurement(Struct, frozen=True, kw_only=True):
    """One measured step."""

    row: str
    """`row_id`, or the line of the file."""
    source: str
    model: Model
    label: str
    """The model as the table names it."""
    layout: Layout
    recipe: Recipe
    global_batch: int
    tokens: int
    """Per sequence."""
    domain: int
    """GPUs of the job in one NVLink domain."""
    seconds: float
    """Of the step, as measured."""
    memory_bytes: float | None
    assumed: tuple[str, ...]
    """Columns that the table leaves open, and that matter."""

    @property
    def complete(self) -> bool:
        """Whether the table says everything that the model needs."""
        return not self.assumed


class Unread(Struct, frozen=True, kw_only=True):
    """A row that can't be used, and why."""

    row: str
    line: int
    reason: str


@dataclass(slots=True)
class _Fields:
    """One row of the table, asked for by name; what is missing or odd is collected."""

    values: Mapping[str, str]
    reasons: list[str]
    assumed: list[str]

    def text(self, name: str) -> str:
        return (self.values.get(name) or "").strip()

    def number(self, name: str, default: float | None = None, *, matters: bool = False) -> float | None:
        text = self.text(name)
        if not text:
            if matters:
                self.assumed.append(name)
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return value
        self.reasons.append(f"{name}: {text!r} is not a number")
        return default

    def positive(self, name: str) -> float | None:
        value = self.number(name)
        if value is None or value > 0:
            return value
        self.reasons.append(f"{name}: {self.text(name)!r} is not above 0")
        return None

    def count(self, name: str, default: int | None = None, *, matters: bool = False) -> int:
        told = len(self.reasons)
        value = self.number(name, default, matters=matters)
        if value is None:
            if len(self.reasons) == told:
                self.reasons.append(f"{name} is missing")
            return 1
        if value < 1 or value != int(value):
            self.reasons.append(f"{name}: {value:g} is not a whole number of at least 1")
            return 1
        return int(value)

    def known(self, name: str, words: Mapping[str, T], default: str | None = None) -> T | None:
        text = self.text(name) or (default or "")
        if text.lower() in words:
            return words[text.lower()]
        hint = did_you_mean(text.lower(), words)
        self.reasons.append(f"{name}: {text!r} is unknown" + (f" ({hint})" if hint else ""))
        return None


@cache
def _columns() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files(__package__).joinpath("columns.toml").read_text("utf-8"))


def read(path: Path) -> tuple[list[Measurement], list[Unread]]:
    """Every row of `path`. Raises DocumentError where the file itself is unusable."""
    rows = csv.DictReader(_lines(path))
    try:
        return _rows(path, rows)
    except csv.Error as error:
        raise DocumentError([f"{path}:{rows.line_num}: {error}"]) from error


def _lines(path: Path) -> list[str]:
    """Raises DocumentError where there is no text to read."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise DocumentError([f"{path}: {(error.strerror or str(error)).lower()}"]) from error
    except UnicodeDecodeError as error:
        raise DocumentError([f"{path}: this is no text in UTF-8, so no CSV table"]) from error
    if not text.strip():
        raise DocumentError(
            [f"{path}: this is empty; its first line names columns, at least {', '.join(NEEDED)}"]
        )
    return text.splitlines()


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raises DocumentError with every column that is missing."""
    if len(names) == 1 and (mark := next((m for m in ";\t|" if m in names[0]), None)):
        raise DocumentError([f"{path}:1: columns are separated by {mark!r}; rows are read with commas"])
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DocumentError(
            f"{path}:1: there is no column {name!r}"
            + (f" ({hint})" if (hint := did_you_mean(name, names)) else "")
            for name in missing
        )


def _rows(path: Path, rows: csv.DictReader[str]) -> tuple[list[Measurement], list[Unread]]:
    _check_columns(path, list(rows.fieldnames or []))
    good: list[Measurement] = []
    bad: list[Unread] = []
    for values in rows:
        line = rows.line_num
        row = (values.get("row_id") or "").strip() or f"line {line}"
        fields = _Fields(values, [], [])
        found = _measurement(row, fields)
        if found is None or fields.reasons:
            bad.append(Unread(row=row, line=line, reason="; ".join(fields.reasons)))
        else:
            good.append(found)
    if not good and not bad:
        raise DocumentError([f"{path}: there are no rows below the names of the columns"])
    return good, bad


def _measurement(row: str, of: _Fields) -> Measurement | None:
    words = _columns()
    known = {**{s.name: s.name for s in catalog.systems()}, **words["systems"]}
    system = of.known("system", known)
    precision: Precision | None = of.known("precision", words["precisions"], "bf16")
    model = _model(of)
    gpus, batch, tokens = of.count("num_gpus"), of.count("global_batch_size"), of.count("seq_len")
    layout = _layout(of, model, gpus, batch, system)
    seconds = _seconds(of, model, gpus, batch, tokens)
    if (date := of.text("source_date")) and re.match(DATE, date) is None:
        of.reasons.append(f"source_date: {date!r} is not a date such as 2026-06")
    if system is None or precision is None or model is None or seconds is None or of.reasons:
        return None
    recipe = _recipe(of, model, system, precision)
    stated = of.number("memory_gib")
    near = domain_gpus(system, gpus)
    if of.text("recompute") in {"", "selective"}:
        as_told = layout
        layout = _least_recompute(model, layout, recipe, batch, tokens)
        if layout != as_told:
            of.assumed.append("recompute" if layout.sharding == as_told.sharding else "dp_type")
    return Measurement(
        row=row,
        source=of.text("source_id") or of.text("source"),
        model=model,
        label=of.text("model"),
        layout=layout,
        recipe=recipe,
        global_batch=batch,
        tokens=tokens,
        domain=near,
        seconds=seconds,
        memory_bytes=None if stated is None else stated * 2**30,
        assumed=tuple(of.assumed),
    )


def _least_recompute(model: Model, layout: Layout, recipe: Recipe, batch: int, tokens: int) -> Layout:
    """Where a table leaves open what was kept: all of it if that fits in memory.

    Else the activations of as few layers as will do wait in host memory, where it is as near as Grace's, or are
    computed again. Where not even weights and gradients fit, the table does not say that they are divided (FSDP).
    """
    hbm_bytes = recipe.hardware.accelerator.hbm_bytes
    if hbm_bytes is None:
        return layout
    room = hbm_bytes * (1.0 + TIGHT)
    needs = _needs(model, layout, recipe, batch, tokens)
    if float((needs.parameters + needs.gradients)[0]) > hbm_bytes:
        layout = msgspec.structs.replace(layout, sharding="fsdp")
    shares = [n / SHARES for n in range(1, SHARES + 1)]
    if recipe.chip in {"GB200", "GB300"}:
        ways = [msgspec.structs.replace(layout, offload=share) for share in shares[:-1]]
    else:
        ways = [msgspec.structs.replace(layout, recompute=FULL, recomputed=share) for share in shares]
    fits = (
        way for way in (layout, *ways) if float(_needs(model, way, recipe, batch, tokens).total[0]) <= room
    )
    return next(fits, ways[-1])


def _needs(model: Model, layout: Layout, recipe: Recipe, batch: int, tokens: int) -> Memory:
    return memory_of(
        model, Layouts.of([layout], global_batch=batch, tokens=tokens, domain=layout.gpus), recipe
    )


def _model(of: _Fields) -> Model | None:
    name = of.text("model")
    try:
        found = models.model(name)
    except (UnknownNameError, DocumentError) as error:
        hint = getattr(error, "hint", None)
        of.reasons.append(f"model: {error}" + (f" ({hint})" if hint else ""))
        return None
    if "w/o MTP" in of.text("notes"):
        found = msgspec.structs.replace(found, mtp_layers=0)
    layers = of.count("layers", found.depth)
    return found if layers == found.depth else shortened(found, layers)


def shortened(model: Model, depth: int) -> Model:
    """`model` with `depth` layers, of each kind in proportion: the proxies that vendors measure."""
    share, left, kinds = depth / model.depth, depth, []
    for place, kind in enumerate(model.layers):
        rest = len(model.layers) - place - 1
        count = left if not rest else min(max(round(kind.count * share), 1), left - rest)
        left -= count
        kinds.append(msgspec.structs.replace(kind, count=count))
    return msgspec.structs.replace(model, layers=tuple(k for k in kinds if k.count > 0), parameters=None)


def _layout(of: _Fields, model: Model | None, gpus: int, batch: int, system: str | None) -> Layout:
    # tables of FSDP runs often leave out degrees that are 1
    alone = 1 if of.text("dp_type").lower().startswith("fsdp") else None
    tp, pp, cp = (
        of.count("tp", alone, matters=alone == 1),
        of.count("pp", alone, matters=alone == 1),
        of.count("cp", 1),
    )
    degree = tp * pp * cp
    if gpus % degree:
        of.reasons.append(f"num_gpus: {gpus} is not a multiple of tp x pp x cp = {degree}")
    dp = max(gpus // degree, 1)
    micro = of.count("micro_batch_size", 1, matters=batch > dp)
    if batch % dp:
        of.reasons.append(f"global_batch_size: {batch} is not a multiple of {dp} data-parallel replicas")
    elif batch // dp % micro:
        of.reasons.append(
            f"micro_batch_size: {batch // dp} sequences per replica are not a multiple of {micro}"
        )
    if (text := of.text("dp_type")) and not text.lower().startswith(SHARDED):
        of.reasons.append(f"dp_type: {text!r} is unknown; say ddp+dist-optimizer, zero2, fsdp, hsdp or none")
    sharding, shard = _sharding(text, system)
    # Megatron's own default divides experts as the rest is; Megatron Bridge's recipes, since 2025, don't
    experts = None if model is None else experts_of(model)
    # DeepEP is there to send tokens to experts: a table that names it and no degree divides them as far as it goes
    usual = (
        gcd(gpus, experts.count) if experts is not None and "deepep" in of.text("framework").lower() else 1
    )
    ep = of.count("ep", usual, matters=experts is not None)
    etp = of.count("etp", tp if _year(of.text("source_date")) < 2025.4 else 1)
    virtual = of.count("vp", _deepest(model, pp), matters=pp > 1)
    return Layout(
        gpus=gpus,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=ep,
        etp=etp if ep > 1 else 1,
        virtual=virtual if pp > 1 else 1,
        micro_batch=micro,
        sharding=sharding,
        shard=shard,
        recompute=_recompute(of),
        offload=_offload(of, 80 if model is None else model.depth),
    )


def _deepest(model: Model | None, pp: int) -> int:
    """Chunks per stage that a table leaves open: as many as there are layers in a stage, if stages are alike."""
    depth = 1 if model is None else model.depth
    return depth // pp if depth % pp == 0 else 1


def _sharding(text: str, system: str | None) -> tuple[Sharding, int]:
    words = text.lower()
    group = re.search(r"group=(\d+)", words)
    if "shard_grad_op" in words:
        return "zero2", 0
    if words.startswith("hsdp"):
        return "fsdp", 8 if system is None else catalog.system(system).gpus
    if words.startswith(("fsdp", "zero3")):
        return "fsdp", int(group[1]) if group else 0
    if words.startswith("none"):
        return "none", 0
    return "zero2" if words.startswith("zero2") else "zero1", 0


def _recompute(of: _Fields) -> frozenset[str]:
    text = of.text("recompute").lower()
    if not text:
        return frozenset()
    found: set[str] = set()
    known = _columns()["recompute"]
    for word in re.split(r"[:+() ,;]+", text.split(")")[0]):
        if word in known and not (word == "selective" and re.search(r"selective[:(]", text)):
            found |= set(known[word])
    if found == {"attention"} and "torchtitan" in of.text("framework").lower():
        # torchtitan's selective recompute keeps attention, and computes every other product again
        found = set(known["per-op"])
    if not found and not text.startswith("none"):
        of.reasons.append(f"recompute: {text!r} is unknown; say none, full or selective:MODULE+MODULE")
    return frozenset(found)


def _offload(of: _Fields, depth: int) -> float:
    found = re.search(r"(\d+)\s*layers", of.text("offload"))
    return 0.0 if found is None else min(int(found[1]) / depth, 1.0)


def _recipe(of: _Fields, model: Model, system: str, precision: Precision) -> Recipe:
    family = _family(of)
    all_bf16 = "automodel" in of.text("framework").lower()
    task = of.text("task") or "pretrain"
    nic = of.number("nic_gbps_per_gpu")
    precise = _columns()["precise"].get(f"{model.name}.{precision}", {})
    return Recipe(
        system=system,
        precision=precision,
        task=_one_of(task, ("pretrain", "sft", "lora"), of),
        family=family,
        year=_year(of.text("source_date")),
        graphs=_graphs(of),
        bf16_layers=precise.get("layers", 0.0),
        bf16_projections=precise.get("projections", False),
        drops="drop" in of.text("moe_routing").lower().replace("dropless", ""),
        dispatcher=_dispatcher(of),
        overlaps_ep=bool(re.search(r"a2a_overlap=true|ep_overlap=on", of.text("comm_overlap").lower())),
        nic_bits_per_s=None if nic is None else nic * 1e9,
        overlaps_tp=_overlaps_tp(of, family),
        document_tokens=PACKED_TOKENS if task != "pretrain" and family == "megatron" else None,
        gradient_bytes=2.0 if all_bf16 else usual_gradient_bytes(family),
        all_bf16=all_bf16,
    )


def _overlaps_tp(of: _Fields, family: Family) -> bool:
    """Megatron-LM and torchtitan do it only where they are told to; NeMo's recipes, unless they are told not to."""
    words = of.text("comm_overlap").lower()
    if not usual_overlap(family):
        return "tp-comm-overlap" in words or "async_tp" in words
    return "tp_overlap=none" not in words and "tp_comm_overlap=false" not in words


def _dispatcher(of: _Fields) -> Dispatcher:
    """What the table names; else what Megatron Bridge's recipes had then."""
    words = of.text("comm_overlap").lower() + of.text("framework").lower()
    if "deepep" in words or "hybridep" in words:
        return "once"
    told = "dispatcher" in words or "a2a_overlap" in words
    return "alltoall" if told or _year(of.text("source_date")) < 2025.6 else "once"


def _graphs(of: _Fields) -> Graphs:
    words = of.text("cuda_graph").lower() + of.text("comm_overlap").lower()
    if "none" in of.text("cuda_graph"):
        return "none"
    return "step" if "full" in words else "layers"


def _family(of: _Fields) -> Family:
    words = _columns()["families"]
    framework = of.text("framework").lower()
    return next((words[word] for word in words if word.lower() in framework), "megatron")


def _one_of(text: str, tasks: tuple[Task, ...], of: _Fields) -> Task:
    for task in tasks:
        if task == text:
            return task
    of.reasons.append(f"task: {text!r} is none of {', '.join(tasks)}")
    return "pretrain"


def _year(text: str) -> float:
    found = re.match(DATE, text)
    if found is None:
        return NEWEST
    return int(found[1]) + (int(found[2] or 7) - 0.5) / 12.0


def _seconds(of: _Fields, model: Model | None, gpus: int, batch: int, tokens: int) -> float | None:
    """As told, or from tokens per second and GPU, or from model FLOPs (whose count differs by publisher)."""
    names = ("step_time_s", "tokens_per_s_per_gpu", "model_tflops_per_gpu")
    seconds, speed, tflops = (of.positive(name) for name in names)
    if not any(map(of.text, names)):
        of.reasons.append(f"none of {', '.join(names)} is given")
    if seconds is not None:
        return seconds
    if speed is not None:
        return batch * tokens / (speed * gpus)
    if tflops is None or model is None:
        return None
    of.assumed.append("step_time_s")
    flops = flops_per_token(
        model, tokens, trains_all=of.text("task") != "lora", all_pairs=_year(of.text("source_date")) < HALVED
    )
    return batch * tokens * flops / (tflops * 1e12 * gpus)


def groups(rows: list[Measurement], key: Callable[[Measurement], str]) -> Iterator[tuple[str, list[int]]]:
    """Places of rows by key, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(key(row), []).append(place)
    yield from found.items()
