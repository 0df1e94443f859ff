"""One row of a table of measurements: its fields by name, and what is wrong with them."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from rackscale.errors import did_you_mean

T = TypeVar("T")

MOST = {"num_gpus": 10_000_000, "seq_len": 100_000_000}
"""What counts may be at most: far beyond what anybody trains with, and where arithmetic is still exact."""
MOST_ELSE = 10_000_000
RANGE = (1e-6, 1e12)
"""Of what is measured, in the units of its column."""
DATE = r"(\d{4})(?:-(\d{2})(?:-\d{2})?)?"
"""A year, its month, its day."""
OLDEST = 2015
"""Year of the oldest software that can be meant: nothing older trained what is modelled here."""


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
        value, (least, most) = self.number(name), RANGE
        if value is None or least <= value <= most:
            return value
        told = "above 0" if value <= 0 else f"between {least:g} and {most:g}"
        self.reasons.append(f"{name}: {self.text(name)!r} is not {told}")
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
        if value > (most := MOST.get(name, MOST_ELSE)):
            self.reasons.append(f"{name}: {value:g} is above {most:,}, the most that is read")
            return 1
        return int(value)

    def date(self, name: str) -> float | None:
        """A year and its fraction, the middle of the month (or year); None: it is left open, or no date."""
        if not (text := self.text(name)):
            return None
        newest = datetime.now(UTC).year + 1
        found = re.fullmatch(DATE, text)
        if found is None or not 1 <= (month := int(found[2] or 7)) <= 12:
            self.reasons.append(f"{name}: {text!r} is not a date such as 2026-06")
        elif not OLDEST <= (year := int(found[1])) <= newest:
            self.reasons.append(f"{name}: {text!r} is not of a year from {OLDEST} to {newest}")
        else:
            return year + (month - 0.5) / 12.0
        return None

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
