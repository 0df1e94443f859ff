"""What leaves and their uplinks change of a step: nothing under one, never a gain, most where all GPUs send."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale import models
from rackscale.sizing.layout import Layout, Layouts
from rackscale.sizing.parts import Parts, parts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import Limits, divisions

SYSTEM, GPUS, DOMAIN = "gb200-nvl72", 512, 64
MESSAGES = ("tp_f", "ring_f", "swap", "ep_far", "hop", "gather", "scatter", "step_reduce", "step_gather")
MODELS = ("llama3.1-70b", "deepseek-v3-671b")


def at(name: str) -> Layouts:
    return divisions(
        models.model(name),
        gpus=GPUS,
        global_batch=GPUS,
        tokens=8192,
        domain=DOMAIN,
        limits=Limits(micro_batch=1),
    )


AT = {name: at(name) for name in MODELS}


def priced(name: str, leaf: int | None = None, oversubscription: float | None = None) -> Parts:
    recipe = Recipe(system=SYSTEM, precision="fp8", leaf_gpus=leaf, oversubscription=oversubscription)
    return parts(models.model(name), AT[name], recipe)


@pytest.mark.parametrize("name", MODELS)
def test_under_one_leaf_nothing_changes(name: str) -> None:
    one, whole = priced(name), priced(name, GPUS, 8.0)
    for part in fields(Parts):
        np.testing.assert_array_equal(getattr(one, part.name), getattr(whole, part.name), part.name)


@given(
    name=st.sampled_from(MODELS),
    leaf=st.sampled_from([64, 128, 192, 256]),
    tight=st.floats(1.0, 8.0),
    tighter=st.floats(0.0, 8.0),
)
def test_smaller_leaves_and_fewer_uplinks_are_never_faster(
    name: str, leaf: int, tight: float, tighter: float
) -> None:
    steps = (
        priced(name),
        priced(name, 2 * leaf, tight),
        priced(name, leaf, tight),
        priced(name, leaf, tight + tighter),
    )
    for part in fields(Parts):
        times = [getattr(step, part.name) for step in steps]
        for less, more in pairwise(times):
            assert (less <= more * (1 + 1e-9)).all(), part.name
        if part.name not in {*MESSAGES, "tp_b", "tp_bare", "ring_b"}:
            np.testing.assert_array_equal(times[0], times[-1], part.name)


def test_what_crosses_pays_in_full_where_every_gpu_sends() -> None:
    layouts = [Layout(gpus=GPUS, tp=1, pp=8, ep=64), Layout(gpus=GPUS, tp=1, ep=256)]
    many = Layouts.of(layouts, global_batch=GPUS, tokens=8192, domain=DOMAIN)
    model = models.model("deepseek-v3-671b")
    free, tight = (
        parts(model, many, Recipe(system=SYSTEM, precision="fp8", leaf_gpus=64, oversubscription=x))
        for x in (1.0, 4.0)
    )
    assert tight.ep_far[0] == free.ep_far[0] == 0.0  # all of its experts are in one domain
    assert tight.hop[0] > 3.0 * free.hop[0]
    assert tight.ep_far[1] > 3.0 * free.ep_far[1]
    assert (tight.tp_f == free.tp_f).all()
