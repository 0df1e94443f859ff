"""The table of architectures, and fields of a config.json as the table names them."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

import msgspec
from msgspec import Struct

Trait = Literal["biases", "positions"]


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of architectures.toml, where its fields are explained."""

    refused: str = ""
    mixer: Literal["attention", "latent", "mamba"] = "attention"
    gated: bool = True
    norm: Literal["rms", "layer"] = "rms"
    biases: bool = False
    positions: bool = False
    unless: dict[Trait, str] = {}
    names: dict[str, str] = {}
    defaults: dict[str, int | str | bool] = {}


@cache
def architectures() -> dict[str, Architecture]:
    """Every row by its model_type, what it is like included."""
    rows = _file()["architectures"]
    return {name: msgspec.convert(_whole(rows, name), Architecture) for name in rows}


@cache
def synonyms() -> dict[str, list[str]]:
    """The other names of fields."""
    return msgspec.convert(_file()["names"], dict[str, list[str]])


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("architectures.toml").read_text("utf-8"))


def _whole(rows: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    row = dict(rows[name])
    like = row.pop("like", None)
    return (_whole(rows, like) if like else {}) | row


class Config:
    """Typed look-ups in a config.json. What is wrong is noted in `problems`, and a harmless value answered."""

    def __init__(self, file: str, fields: Mapping[str, object], architecture: Architecture) -> None:
        self.file = file
        self.problems: list[str] = []
        self._fields = fields
        self._architecture = architecture

    def find(self, name: str) -> tuple[str, object]:
        """The field's own name in this config and its value; None where it has none."""
        own = self._architecture.names.get(name)
        names = [own] if own else [name, *synonyms().get(name, ())]
        for each in names:
            value = _at(self._fields, each)
            if value is not None:
                return each, value
        defaults = self._architecture.defaults
        return names[0], next((defaults[each] for each in names if each in defaults), None)

    def has(self, name: str) -> bool:
        """Whether the field has a value, its default included."""
        return self.find(name)[1] is not None

    def whole(
        self, name: str, *, default: int | None = None, at_least: int = 1, at_most: float = math.inf
    ) -> int:
        """A whole number."""
        own, value = self.find(name)
        if value is None and default is not None:
            return default
        if value is None:
            self.problem(own, "missing", fix="add it, a whole number")
        elif isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
            wanted = f"at least {at_least}" if at_most == math.inf else f"{at_least} to {at_most}"
            self.problem(own, f"not a whole number of {wanted}", value, fix="write the model's own")
        else:
            return value
        return max(at_least, 1)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        own, value = self.find(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(own, "neither true nor false", value, fix="write one of them")
        return value is True

    def items(self, name: str) -> tuple[str, list[object]] | None:
        """A list, or the letters of a text, with the field's own name; None where there is none."""
        own, value = self.find(name)
        if value is None:
            return None
        if not isinstance(value, list | str):
            self.problem(own, "not a list", value, fix="write one item per layer")
            return own, []
        return own, list(value)

    def problem(self, field: str, message: str, value: object = None, *, fix: str) -> None:
        """Notes one, once."""
        text = f"{self.file}: {field}: {message}"
        if value is not None:
            text += f" ({shown(value)})"
        text = f"{text}; {fix}"
        if text not in self.problems:
            self.problems.append(text)


def shown(value: object) -> str:
    """A value as a message quotes it: on one line, cut when long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(fields: Mapping[str, object], name: str) -> object:
    value: object = fields
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
