"""Layouts that were published are among those that the search chooses from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rackscale import models
from rackscale.sizing.division import SPARE
from rackscale.sizing.layout import SHARDINGS
from rackscale.sizing.measurements import Measurement, read
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.size import size
from rackscale.sizing.space import (
    CONTEXT,
    LEAST_TOKENS,
    MICRO_BATCHES,
    Limits,
    candidates,
    divisions,
    spare,
)

DATA = Path(__file__).parents[3] / "shared/data/training/measured.csv"
MORE_EXPERTS_THAN_RANKS = {"r0272"}
"""EP64 in stages of 32 GPUs: as it is stated it can't be."""


def holds(row: Measurement, limits: Limits) -> bool:
    """Whether the row's division is one of those within `limits`. Gradients divided are a saving, and one replica
    divides nothing."""
    of = row.layout
    at = divisions(
        row.model, gpus=of.gpus, global_batch=row.global_batch, tokens=row.tokens, domain=row.domain,
        family=row.recipe.family, limits=limits,
    )  # fmt: skip
    whole = of.sharding == "zero2" or (of.sharding == "none" and of.dp == 1)
    alike = at.sharding == SHARDINGS.index("zero1" if whole else of.sharding)
    alike &= at.shard == (min(max(of.shard // of.cp, 1), of.dp) if of.shard else of.dp)
    for name in ("tp", "pp", "cp", "ep", "etp", "virtual", "micro_batch"):
        alike &= getattr(at, name) == getattr(of, name)
    return bool(alike.any())


def untried(row: Measurement) -> Limits:
    """Degrees that are only used where they are asked for."""
    of, is_odd = row.layout, row.layout.micro_batch not in MICRO_BATCHES
    is_short = of.cp > 1 and (of.cp not in CONTEXT or row.tokens // of.cp < LEAST_TOKENS)
    return Limits(micro_batch=of.micro_batch if is_odd else None, cp=of.cp if is_short else None)


@pytest.mark.skipif(not DATA.exists(), reason="the whole table is not at hand")
def test_published_layouts_are_in_the_space() -> None:
    """All of them where odd micro-batches and thin parts of a context are asked for, four in five without."""
    rows = [row for row in read(DATA)[0] if row.complete]
    found: Counter[str] = Counter()
    for row in rows:
        asked = untried(row)
        if row.row not in MORE_EXPERTS_THAN_RANKS:
            assert holds(row, asked), (row.row, row.layout)
        found[str(asked)] += 1
    assert found[str(Limits())] > 0.8 * len(rows)


@pytest.mark.parametrize(
    ("name", "pp", "virtual"),
    [
        ("llama3.1-405b", 8, 4), ("llama3.1-405b", 16, 4), ("llama3.1-405b", 16, 8), ("llama3.1-405b", 8, 8),
        ("deepseek-v3-671b", 8, 4), ("deepseek-v3-671b", 16, 1),
    ],
)  # fmt: skip
def test_the_embedding_and_the_head_may_take_layers_places(name: str, pp: int, virtual: int) -> None:
    at = divisions(models.model(name), gpus=512, global_batch=1024, tokens=4096, domain=64)
    assert ((at.pp == pp) & (at.virtual == virtual)).any()


def test_chunks_are_full_but_for_few_places() -> None:
    for name in ("llama3.1-405b", "llama3.1-8b"):
        model = models.model(name)
        at = candidates(model, gpus=96, global_batch=192, tokens=8192, domain=8)
        free = spare(model, at.pp * at.virtual)
        assert free.max() <= SPARE
        assert (free >= 0).all()
        assert (free[at.pp == 1] == 0).all()
        places = (model.depth + free) / (at.pp * at.virtual)
        assert (places == np.round(places)).all()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(pp=8, virtual=5), ["--pp 8 --virtual 5: the 126 layers", "say --virtual 1 or 2 or 4"]),
        (Limits(virtual=100), ["--virtual 100: the 126 layers", "another --virtual"]),
        (Limits(pp=100), ["--pp 100: the 126 layers", "say --pp 1 or 2 or "]),
        (Limits(pp=1, virtual=2), ["--pp 1 --virtual 2", "pipeline"]),
    ],
)
def test_where_layers_are_the_reason_no_batch_is_blamed(limits: Limits, words: list[str]) -> None:
    model, recipe = models.model("llama3.1-405b"), Recipe(system="gb300-nvl72", precision="fp8")
    with pytest.raises(ValueError, match=r"--virtual|--pp") as error:
        size(model, recipe, gpus=1600, global_batch=1600, tokens=8192, limits=limits)
    for word in words:
        assert word in str(error.value)
    assert "batch" not in str(error.value)


def test_where_the_batch_is_the_reason_it_is_told() -> None:
    model, recipe = models.model("llama3.1-405b"), Recipe(system="gb300-nvl72", precision="fp8")
    with pytest.raises(ValueError, match="evenly"):
        size(model, recipe, gpus=64, global_batch=7, tokens=8192, limits=Limits(pp=8, virtual=4))
