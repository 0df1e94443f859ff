"""The catalog answers by name, and every number in it has a source."""

from __future__ import annotations

from typing import Any

import pytest

from rackscale.catalog import Accelerator, System, system, systems
from rackscale.catalog.tables import Row, Source, read, row, sources
from rackscale.errors import UnknownNameError

KNOWN = {"vendor-page": Source(title="A data sheet", url="https://vendor.example/sheet")}
FACT = {"value": 1e15, "vendor": "vendor-page"}


def test_the_systems_of_the_agreement_are_known() -> None:
    names = [s.name for s in systems()]
    assert names == list(dict.fromkeys(names))
    assert {"u-p6e-gb200x36", "u-p6e-gb200x72", "u-p6e-gb300x72", "local"} <= set(names)


def test_an_unknown_system_proposes_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="there is no system 'u-p6e-gb300x27'") as caught:
        system("u-p6e-gb300x27")
    assert caught.value.hint == "did you mean 'u-p6e-gb300x72'?"


def test_loaded_once() -> None:
    assert system("p5") is system("p5")


@pytest.mark.parametrize("found", systems(), ids=lambda s: s.name)
def test_every_number_has_an_origin(found: System) -> None:
    rows: list[Row] = [found, found.accelerator, *found.prices]
    for each in rows:
        facts = [f for f in each.__struct_fields__ if f not in (*each.LABELS, "origins")]
        given = [f for f in facts if getattr(each, f) is not None]
        assert sorted(given) == sorted(each.origins)
        for origin in each.origins.values():
            assert origin.source


def test_every_source_is_used() -> None:
    used = {
        origin.source
        for s in systems()
        for each in (s, s.accelerator, *s.prices)
        for origin in each.origins.values()
    }
    assert used == {source.title for source in sources().values()}


def test_every_accelerator_is_used() -> None:
    assert {s.accelerator.name for s in systems()} == set(read("accelerators.toml"))


def test_prices_are_oldest_first() -> None:
    for found in systems():
        seen = [p.seen for p in found.prices]
        assert seen == sorted(seen)


def test_what_nobody_publishes_is_none() -> None:
    assert system("trn3-gen2-ultraserver").instance_type is None
    assert system("u-p6e-gb300x72").fabric_bits_per_s_per_gpu is None
    assert system("local").hbm_bytes is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"fp8_flop_per_s": FACT | {"unit": "flop/s"}}, "unknown field `unit`"),
        ({"fp9_flop_per_s": FACT}, "unknown field `fp9_flop_per_s`"),
        ({"fp8_flop_per_s": 1e15}, "Expected `object`"),
        ({"fp8_flop_per_s": {"value": 1e15}}, "exactly one of measured, vendor, assumed"),
        ({"fp8_flop_per_s": FACT | {"assumed": "vendor-page"}}, "exactly one of"),
        ({"fp8_flop_per_s": {"value": 1e15, "vendor": "hearsay"}}, "no source 'hearsay'"),
        ({"fp8_flop_per_s": FACT | {"value": "fast"}}, "Expected `float"),
    ],
)
def test_a_row_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        row(Accelerator, {"name": "X100", "maker": "nobody", **fields}, KNOWN)
