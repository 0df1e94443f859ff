"""Numbers and words of options as people write them; what is wrong with them is told all at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import TypeVar

import typer

from rackscale.errors import did_you_mean

T = TypeVar("T", bound=str)
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


class Values:
    """Reads texts; a mistake is kept with the option's name, and something harmless is answered."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def check(self) -> None:
        """Raises typer.BadParameter with every mistake so far."""
        if self.problems:
            raise typer.BadParameter("\n".join(self.problems))

    def number(self, option: str, text: str) -> float:
        """15T, 1.5B, 4k (4,000), 2_304, 2,304 or 8192; above 0."""
        plain = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text.lower())
        found = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([kmbgt]?)\s*", plain)
        value = 0.0 if found is None else float(found[1]) * SCALES[found[2]]
        if value > 0 and isfinite(value):
            return value
        self.problems.append(
            f"{option} {text!r} is not a number above 0 such as 8192, 2_304, 4k, 1.5B or 15T"
        )
        return 1.0

    def whole(self, option: str, text: str) -> int:
        """The same, without a fraction."""
        value = self.number(option, text)
        if value != int(value):
            self.problems.append(f"{option} {text!r} is not a whole number")
        return int(value)

    def sequence(self, option: str, text: str) -> int:
        """Tokens of a sequence, where k is 1,024, as everybody means it: 4k is 4,096."""
        found = re.fullmatch(r"\s*([0-9]+)\s*k\s*", text.lower())
        return self.whole(option, text if found is None else str(int(found[1]) * 1024))

    def word(
        self, option: str, text: str, known: tuple[T, ...], *, meant: Mapping[str, str] | None = None
    ) -> T:
        """One of `known`; `meant`: what others call them, for the hint."""
        for one in known:
            if one == text.lower():
                return one
        other = (meant or {}).get(text.lower())
        hint = f"say {other}" if other else did_you_mean(text.lower(), known)
        self.problems.append(
            f"{option} {text!r} is none of {', '.join(known)}" + (f"; {hint}" if hint else "")
        )
        return known[0]
