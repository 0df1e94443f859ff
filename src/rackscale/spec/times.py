"""Times that documents and people state: of a rehearsal, from now, or as a date with its zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Struct
from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from rackscale.spec.fields import CLOCK_PATTERN, DURATION_PATTERN, LONGEST_S, clock_seconds, seconds

Basis = Literal["rehearsal", "now", "date"]
"""Since when a time counts: the start of a rehearsal, the moment when it takes effect, or the epoch."""

_DATE = re.compile(
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?$"
)
_MUST = (
    "must be a time of a rehearsal such as 02:00 or 1d9h, one from now such as `in 2h`, "
    "or a date with its zone such as 2026-12-01T02:00Z"
)


class When(Struct, frozen=True):
    """A stated time; what it means depends on when it takes effect."""

    s: float
    """Seconds since `basis`."""
    basis: Basis

    def at_s(self, now_s: float) -> float:
        """Seconds on the clock of what it is used for; `now_s`: when it takes effect."""
        return now_s + self.s if self.basis == "now" else self.s


def when(value: object) -> When:
    """`02:00`, `1d9h`: of a rehearsal; `in 2h`: from now; `2026-12-01T02:00Z`: a date."""
    if isinstance(value, When):
        return value
    if isinstance(value, str) and value.startswith("in "):
        try:
            return When(seconds(value[3:].lstrip(" ")), "now")
        except PydanticCustomError:
            raise PydanticCustomError("when", _MUST) from None
    if isinstance(value, str) and (match := _DATE.fullmatch(value)):
        return When(_date_s(value, has_zone=match[1] is not None), "date")
    try:
        return When(clock_seconds(value), "rehearsal")
    except PydanticCustomError as error:
        if "24:00" in error.message():
            raise
        raise PydanticCustomError("when", _MUST) from None


def _date_s(text: str, *, has_zone: bool) -> float:
    if not has_zone:
        raise PydanticCustomError("when", "a date needs its zone, such as 2026-12-01T02:00Z or +01:00")
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise PydanticCustomError("when", "there is no such date") from None


def _fixed(value: object) -> When:
    found = when(value)
    if found.basis == "now":
        raise PydanticCustomError(
            "when",
            "must be a time of a rehearsal such as 1d9h, or a date with its zone such as 2026-12-01T02:00Z",
        )
    return found


_SCHEMAS = [
    {"type": "number", "minimum": 0, "maximum": LONGEST_S},
    {"type": "string", "pattern": CLOCK_PATTERN, "examples": ["09:00"]},
    {"type": "string", "pattern": DURATION_PATTERN, "examples": ["30s"]},
    {"type": "string", "pattern": _DATE.pattern.replace("?$", "$"), "examples": ["2026-12-01T02:00Z"]},
]
_FROM_NOW = {"type": "string", "pattern": "^in +" + DURATION_PATTERN.lstrip("^"), "examples": ["in 2h"]}

Stated = Annotated[When, PlainValidator(when), WithJsonSchema({"anyOf": [*_SCHEMAS, _FROM_NOW]})]
"""A time of a rehearsal, from now, or a date."""

Fixed = Annotated[When, PlainValidator(_fixed), WithJsonSchema({"anyOf": _SCHEMAS})]
"""A time that means the same whenever the document is read again: of a rehearsal, or a date."""


def dated(at_s: float) -> str:
    """Seconds since the epoch as documents write them: `2026-12-01T02:00Z`, with seconds where it has any."""
    text = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    return text.removesuffix(":00") + "Z"


def span(seconds: float) -> str:
    """`90 s`, `12 min`, `2 h 30`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d}"
