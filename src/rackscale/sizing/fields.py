"""One row of a table of measurements: its fields by name, and what is wrong with them."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from rackscale.errors import did_you_mean

T = TypeVar("T")


@dataclass(slots=True)
class Fields:
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
def columns() -> dict[str, dict[str, Any]]:
    """How the words of such tables are read (columns.toml)."""
    return tomllib.loads(resources.files(__package__).joinpath("columns.toml").read_text("utf-8"))
