"""Measured steps from a CSV file: each row as a model, a layout and a recipe, or the reason why it can't be read."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from rackscale import catalog
from rackscale.errors import DocumentError, did_you_mean
from rackscale.models.description import Model
from rackscale.sizing.fields import Fields, columns
from rackscale.sizing.flops import HALVED, flops_per_token
from rackscale.sizing.layout import FULL, Layout, Layouts
from rackscale.sizing.memory import TIGHT, Memory
from rackscale.sizing.memory import memory as memory_of
from rackscale.sizing.recipe import NEWEST, Precision, Recipe
from rackscale.sizing.segments import domain_gpus
from rackscale.sizing.stated import layout_of, model_of, recipe_of, unmeasured

NEEDED = ("system", "model", "num_gpus", "global_batch_size", "seq_len")
"""Columns without which no row can be read."""
KNOWN = frozenset(
    [
        "comm_overlap",
        "cp",
        "cuda_graph",
        "dp_type",
        "ep",
        "etp",
        "framework",
        "global_batch_size",
        "layers",
        "memory_gib",
        "micro_batch_size",
        "model",
        "model_tflops_per_gpu",
        "moe_routing",
        "nic_gbps_per_gpu",
        "notes",
        "num_gpus",
        "offload",
        "pp",
        "precision",
        "recompute",
        "row_id",
        "seq_len",
        "source",
        "source_date",
        "source_id",
        "step_time_s",
        "system",
        "task",
        "tokens_per_s_per_gpu",
        "tp",
        "vp",
    ]
)
"""Columns that are read."""
ALIKE = 0.85
"""Likeness (difflib's ratio) from which an unknown column is taken for a known one that is misspelt."""
TIMES = ("step_time_s", "tokens_per_s_per_gpu")
"""Columns that say how long a step took, without a count of FLOPs between."""
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
    from_flops: bool = False
    """Whether `seconds` rest on our own count of model FLOPs: such a row is scored, but nothing is fitted to it."""
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
    problems = [
        f"{path}:1: there is no column {name!r}"
        + (f" ({hint})" if (hint := did_you_mean(name, names)) else "")
        for name in NEEDED
        if name not in names
    ]
    # a misspelt column would be a default for every row, without a word
    absent = KNOWN - set(names) - set(NEEDED)
    for name in names:
        near = difflib.get_close_matches(name.strip().lower(), absent, n=1, cutoff=ALIKE)
        if name not in KNOWN and near:
            problems.append(f"{path}:1: there is no column {name!r} to read (did you mean {near[0]!r}?)")
    if problems:
        raise DocumentError(problems)


def _rows(path: Path, rows: csv.DictReader[str]) -> tuple[list[Measurement], list[Unread]]:
    _check_columns(path, list(rows.fieldnames or []))
    good: list[Measurement] = []
    bad: list[Unread] = []
    for values in rows:
        line = rows.line_num
        row = (values.get("row_id") or "").strip() or f"line {line}"
        fields = Fields(values, [], [])
        found = _measurement(row, fields)
        if found is None or fields.reasons:
            bad.append(Unread(row=row, line=line, reason="; ".join(fields.reasons)))
        else:
            good.append(found)
    if not good and not bad:
        raise DocumentError([f"{path}: there are no rows below the names of the columns"])
    return good, bad


def _measurement(row: str, of: Fields) -> Measurement | None:
    words = columns()
    known = {**{s.name: s.name for s in catalog.systems()}, **words["systems"]}
    system = of.known("system", known)
    precision: Precision | None = of.known("precision", words["precisions"], "bf16")
    model = model_of(of)
    gpus, batch, tokens = of.count("num_gpus"), of.count("global_batch_size"), of.count("seq_len")
    year = of.date("source_date") or NEWEST
    layout = layout_of(of, model, gpus=gpus, batch=batch, system=system, year=year)
    seconds = _seconds(of, model, gpus=gpus, batch=batch, tokens=tokens, year=year)
    stated = of.positive("memory_gib")
    if system is None or precision is None or model is None:
        return None
    recipe = recipe_of(of, model, system, precision, year)
    of.reasons += unmeasured(recipe, model)
    if seconds is None or of.reasons:
        return None
    layout = _filled_in(of, model, layout, recipe, batch=batch, tokens=tokens)
    return Measurement(
        row=row,
        source=of.text("source_id") or of.text("source"),
        model=model,
        label=of.text("model"),
        layout=layout,
        recipe=recipe,
        global_batch=batch,
        tokens=tokens,
        domain=domain_gpus(system, gpus),
        seconds=seconds,
        from_flops=not any(map(of.text, TIMES)),
        memory_bytes=None if stated is None else stated * 2**30,
        assumed=tuple(of.assumed),
    )


def _filled_in(
    of: Fields, model: Model, layout: Layout, recipe: Recipe, *, batch: int, tokens: int
) -> Layout:
    """With what the row leaves open of how memory is saved."""
    if of.text("recompute") not in {"", "selective"}:
        return layout
    found = _least_recompute(model, layout, recipe, batch, tokens)
    if found != layout:
        of.assumed.append("recompute" if found.sharding == layout.sharding else "dp_type")
    return found


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


def _seconds(
    of: Fields, model: Model | None, *, gpus: int, batch: int, tokens: int, year: float
) -> float | None:
    """As told, or from tokens per second and GPU, or from model FLOPs (whose count differs by publisher)."""
    names = (*TIMES, "model_tflops_per_gpu")
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
        model,
        tokens,
        trains_all=of.text("task") != "lora",
        all_pairs=year < HALVED,
    )
    return batch * tokens * flops / (tflops * 1e12 * gpus)


def groups(rows: list[Measurement], key: Callable[[Measurement], str]) -> Iterator[tuple[str, list[int]]]:
    """Places of rows by key, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(key(row), []).append(place)
    yield from found.items()
