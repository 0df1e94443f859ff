"""Reads the catalog's TOML tables: every fact with its source, anything unknown or unsourced refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, ClassVar, Literal, TypeVar, get_args

import msgspec
from msgspec import Struct

Provenance = Literal["measured", "vendor", "assumed"]


class Origin(Struct, frozen=True, kw_only=True):
    """Where a number comes from."""

    provenance: Provenance
    """measured: seen by someone who measured it; vendor: stated by its seller; assumed: chosen by rackscale."""
    source: str
    url: str = ""
    note: str = ""


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """A publication that facts are taken from."""

    title: str
    url: str = ""


class _Fact(Struct, frozen=True, forbid_unknown_fields=True):
    value: int | float | str
    measured: str | None = None
    vendor: str | None = None
    assumed: str | None = None
    note: str = ""

    def origin(self, sources: Mapping[str, Source]) -> Origin:
        given = [(p, key) for p in get_args(Provenance) if (key := getattr(self, p)) is not None]
        if len(given) != 1:
            raise ValueError(f"a fact needs exactly one of measured, vendor, assumed: {self}")
        provenance, key = given[0]
        if key not in sources:
            raise ValueError(f"no source {key!r} in sources.toml")
        source = sources[key]
        return Origin(provenance=provenance, source=source.title, url=source.url, note=self.note)


class Row(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table's row. `LABELS` are plain strings; every other field is a fact, whose origin is in `origins`."""

    LABELS: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    origins: dict[str, Origin] = {}


R = TypeVar("R", bound=Row)


def read(filename: str) -> dict[str, Any]:
    """One of the catalog's files, as it is."""
    return tomllib.loads(resources.files(__package__).joinpath(filename).read_text("utf-8"))


def sources() -> dict[str, Source]:
    """Every source by the key that facts name."""
    return msgspec.convert(read("sources.toml"), dict[str, Source])


def row(kind: type[R], fields: Mapping[str, Any], known: Mapping[str, Source]) -> R:
    """`fields` as a `kind`. Raises ValueError for an unknown field, a wrong type, or a fact without a source."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for name, given in fields.items():
        if name in kind.LABELS:
            values[name] = given
            continue
        fact = msgspec.convert(given, _Fact)
        values[name], origins[name] = fact.value, fact.origin(known)
    return msgspec.convert(values | {"origins": origins}, kind)
