"""Units: a machine and its software twice as fast in everything take half as long, whatever the job.

Seconds come from nothing but rates and delays, so that doubling every FLOP/s and byte/s and halving every second must
halve each part of a step. A factor that is forgotten, or counted in the wrong unit, breaks that.
"""

from __future__ import annotations

from dataclasses import fields

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from rackscale import kernels, models
from rackscale.collectives import Network, Tier
from rackscale.kernels import curves, times
from rackscale.models.description import Model
from rackscale.sizing.constants import fitted
from rackscale.sizing.experts import experts_of
from rackscale.sizing.layout import Layout, Layouts
from rackscale.sizing.parts import parts
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.search import factors
from rackscale.sizing.step import Step, step
from tests.sizing.test_laws import layouts, models_, precisions, systems

SECONDS = ("launch", "kernel", "piece", "fixed", "fixed.graph")
"""The constants that are seconds; the others are factors or shares."""


def twice(value: object) -> object:
    """Every rate doubled, every delay halved."""
    if not isinstance(value, msgspec.Struct):
        return value
    found = {}
    for name in value.__struct_fields__:
        old = getattr(value, name)
        if name.endswith("_per_s"):
            found[name] = old * 2.0
        elif name.endswith("_s"):
            found[name] = old / 2.0
    return changed(value, **found)


def faster_kernels() -> curves.Kernels:
    chips = {
        name: changed(
            chip,
            gemm={p: twice(c) for p, c in chip.gemm.items()},
            grouped={p: twice(c) for p, c in chip.grouped.items()},
            attention=twice(chip.attention),
            memory=twice(chip.memory),
        )
        for name, chip in kernels.kernels().chips.items()
    }
    return curves.Kernels(chips=chips)


def faster_network(network: Network) -> Network:
    found = twice(network)
    assert isinstance(found, Network)
    up, out = twice(network.up), twice(network.out)
    assert isinstance(up, Tier)
    assert isinstance(out, Tier)
    return changed(found, up=up, out=out)


def priced(model: Model, at: Layouts, recipe: Recipe, values: dict[str, float]) -> Step:
    by = factors(recipe, experts=experts_of(model), values=values)
    return step(parts(model, at, recipe), at, by, years=0.0, dense=experts_of(model) is None)


@given(model=models_, layout=layouts(), system=systems, precision=precisions, far=st.booleans())
def test_twice_as_fast_in_everything_takes_half_as_long(
    model: Model, layout: Layout, system: str, precision: str, far: bool
) -> None:
    layout = changed(layout, offload=0.5)
    at = Layouts.of(
        [layout],
        global_batch=layout.dp * layout.micro_batch * 4,
        tokens=4096,
        domain=max(layout.gpus // 2, 1) if far else layout.gpus,
    )
    usual = dict(fitted())
    slow = Recipe(system=system, precision=precision)  # type: ignore[arg-type]
    before = priced(model, at, slow, usual)
    fast = Recipe(system=system, precision=precision)  # type: ignore[arg-type]
    chip = slow.hardware.accelerator
    rates = {n: getattr(chip, n) * 2 for n in ("bf16_flop_per_s", "host_bytes_per_s") if getattr(chip, n)}
    vars(fast)["hardware"] = changed(slow.hardware, accelerator=changed(chip, **rates))
    vars(fast)["network"] = faster_network(slow.network)
    halved = usual | {name: usual[name] / 2.0 for name in SECONDS}
    with pytest.MonkeyPatch.context() as patch:
        # the curves are data: another table of them is put where the measured one is read
        patch.setattr(times, "measured", faster_kernels)
        after = priced(model, at, fast, halved)
    for field in fields(Step):
        old, new = (float(getattr(one, field.name)[0]) for one in (before, after))
        assert new == pytest.approx(old / 2.0, rel=1e-9, abs=1e-12), field.name


def test_the_constants_that_are_seconds_are_told_so() -> None:
    from rackscale.sizing.constants import constants

    told = {name for name, one in constants().items() if "seconds" in one.meaning}
    assert told | {"fixed.graph"} == set(SECONDS)
    assert models.models()
