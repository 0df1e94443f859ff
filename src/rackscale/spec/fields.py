"""What documents are made of: a strict base, and names, durations and times with their rules and JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from rackscale import catalog
from rackscale.errors import UnknownNameError
from rackscale.spec.problems import Path, nearest
from rackscale.spec.rehearsal import Arrivals, Duration
from rackscale.workload import NAME_RULE


class Fault(NamedTuple):
    """What is wrong between fields of one document."""

    path: Path
    message: str
    fix: str | None = None


class Strict(BaseModel):
    """A mapping whose fields are known, typed and checked; nothing is coerced, no other field is taken."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def conflicts(cls, _data: Mapping[str, object]) -> Iterator[Fault]:
        """What is wrong about which fields are given, whatever their values."""
        yield from ()

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the values of fields that are right each by itself."""
        yield from ()

    @classmethod
    def partial_faults(cls, _data: Mapping[str, object]) -> Iterator[Fault]:
        """The same of parts that are right each by itself, where the whole is not."""
        yield from ()


def within(name: str | int, faults: Iterator[Fault]) -> Iterator[Fault]:
    """The faults of a section, seen from the document that holds it."""
    return (fault._replace(path=(name, *fault.path)) for fault in faults)


def exclude(data: Mapping[str, object], name: str, others: Collection[str]) -> Iterator[Fault]:
    """A fault where `name` is given beside one of `others`."""
    beside = [other for other in others if other in data]
    if name in data and beside:
        yield Fault((name,), f"can't be given together with {' and '.join(beside)}")


def mappings(value: object) -> list[dict[str, object]]:
    """The entries of a list; what is no mapping counts as an empty one, since its type is reported elsewhere."""
    items = value if isinstance(value, list) else []
    return [item if isinstance(item, dict) else {} for item in items]


LONGEST_S = 100 * 365.25 * 86_400

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
_UNIT = r"(?:ms|s|m|h|d|w)"
_DURATION = re.compile(rf"^(?:{_NUMBER}{_UNIT})+$")
_CLOCK = re.compile(r"^([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))?$")


def seconds(value: object) -> float:
    """`30s`, `10m`, `1h30m`, `2d`, `1w`, `200ms`, or a number of seconds."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        parts = re.findall(rf"({_NUMBER})({_UNIT})", value)
        value = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError(
            "duration", "must be a duration such as 30s, 10m, 4h or 2d, or a number of seconds"
        )
    if not 0 <= value <= LONGEST_S:  # also refuses NaN
        raise PydanticCustomError("duration", "must be from 0 seconds to 100 years")
    return float(value)


def clock_seconds(value: object) -> float:
    """`09:00`, `18:30:15`, up to `24:00`: seconds since midnight of the first day; or anything `seconds` takes."""
    if isinstance(value, str) and (match := _CLOCK.fullmatch(value)):
        hours, minutes, rest = (int(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + rest
        if value > 86_400:
            raise PydanticCustomError(
                "clock", "a day ends at 24:00; write later times as a duration, such as 1d9h"
            )
    try:
        return seconds(value)
    except PydanticCustomError:
        raise PydanticCustomError(
            "clock", "must be a time such as 09:00, or a duration since midnight"
        ) from None


def _positive(value: object) -> float:
    found = seconds(value)
    if found <= 0:
        raise PydanticCustomError("positive", "must be more than 0")
    return found


def _interval(value: object) -> float | None:
    return None if value == "never" else _positive(value)


def _numbers(*, positive: bool = False) -> dict[str, Any]:
    return {"type": "number", "exclusiveMinimum" if positive else "minimum": 0, "maximum": LONGEST_S}


DURATION_PATTERN, CLOCK_PATTERN = _DURATION.pattern, _CLOCK.pattern

_DURATION_SCHEMA = {"type": "string", "pattern": _DURATION.pattern, "examples": ["30s", "10m", "1h30m", "2d"]}
_CLOCK_SCHEMA = {"type": "string", "pattern": _CLOCK.pattern, "examples": ["09:00"]}
_POSITIVE_SCHEMA = {"anyOf": [_numbers(positive=True), _DURATION_SCHEMA]}
_TIME_SCHEMA = {"anyOf": [_numbers(), _CLOCK_SCHEMA, _DURATION_SCHEMA]}

Seconds = Annotated[
    float, BeforeValidator(seconds), WithJsonSchema({"anyOf": [_numbers(), _DURATION_SCHEMA]})
]
"""A duration, seconds."""

PositiveSeconds = Annotated[float, BeforeValidator(_positive), WithJsonSchema(_POSITIVE_SCHEMA)]
"""A duration that is not zero, seconds."""

Interval = Annotated[
    float | None,
    BeforeValidator(_interval),
    WithJsonSchema({"anyOf": [{"const": "never"}, *_POSITIVE_SCHEMA["anyOf"]]}),
]
"""Time between repetitions, seconds; None: `never`."""

Clock = Annotated[float, BeforeValidator(clock_seconds), WithJsonSchema(_TIME_SCHEMA)]
"""A time of the rehearsal, seconds since midnight of its first day."""

Clocks = Annotated[
    list[Clock],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    WithJsonSchema({"anyOf": [_TIME_SCHEMA, {"type": "array", "items": _TIME_SCHEMA, "minItems": 1}]}),
    Field(min_length=1, max_length=10_000),
]
"""One time, or a list of them."""

VARIABLE_RULE = r"^[A-Za-z_][A-Za-z0-9_]*$"

Name = Annotated[str, Field(pattern=NAME_RULE)]
"""Also the name of folders and of labels, hence the narrow alphabet."""


def _system(name: str) -> str:
    try:
        return catalog.system(name).name
    except UnknownNameError as error:
        fix = nearest(name, (s.name for s in catalog.systems()))
        raise PydanticCustomError("unknown_name", "unknown system", {"fix": fix}) from error


System = Annotated[
    str,
    AfterValidator(_system),
    WithJsonSchema({"type": "string", "enum": [s.name for s in catalog.systems()]}),
]
"""A system of the catalog."""

Text = Annotated[str, Field(min_length=1)]
Few = Annotated[int, Field(ge=0, le=1_000_000)]
"""None at all, or few enough for any site."""
Usd = Annotated[float, Field(ge=0, le=1e6)]
Rank = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""At least one, and few enough for any site."""


def _variable_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Variables = dict[
    Annotated[str, Field(pattern=VARIABLE_RULE)],
    Annotated[str, BeforeValidator(_variable_text), WithJsonSchema({"type": ["string", "integer"]})],
]
"""Environment variables; whole numbers need no quotes."""


class Span(Strict):
    """How long something takes: one duration, or a log-normal distribution by its median and 90 % quantile."""

    median: PositiveSeconds = Field(description="Half of all take at most so long.")
    p90: PositiveSeconds | None = Field(
        default=None, description="Nine of ten take at most so long. Left out: always the median."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_one_duration(cls, value: object) -> object:
        return value if isinstance(value, dict | Span) else {"median": value}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [*_POSITIVE_SCHEMA["anyOf"], handler(schema)]}

    def faults(self) -> Iterator[Fault]:
        if self.p90 is not None and self.p90 < self.median:
            yield Fault(("p90",), "must not be less than the median")

    def value(self) -> Duration:
        return Duration(median_s=self.median, p90_s=self.median if self.p90 is None else self.p90)


class ArrivalsSection(Strict):
    """When a rehearsal submits the job: exactly one of `at`, `every`, `per_hour`. Applying the document ignores it."""

    at: Clocks | None = Field(default=None, description="Fixed times: one, or a list.", examples=["09:00"])
    every: PositiveSeconds | None = Field(default=None, description="One arrival every so often.")
    per_hour: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="Random arrivals (a Poisson process) at this mean rate per hour."
    )
    start: Clock = Field(default=0.0, alias="from", description="No arrival before this time.")
    until: Clock | None = Field(default=None, description="No arrival at or after this time.")
    jitter: Seconds = Field(default=0.0, description="Each arrival is late by a random time up to this.")
    repeat_every: PositiveSeconds | None = Field(
        default=None, description="The whole pattern again after so long: 1d for every day. Left out: once."
    )

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        yield from exclude(data, "at", ("every", "per_hour", "from", "until"))
        yield from exclude(data, "every", ("per_hour",))
        yield from exclude(data, "jitter", ("per_hour",))
        if not data.keys() & {"at", "every", "per_hour"}:
            yield Fault((), "needs one of at, every or per_hour")

    def faults(self) -> Iterator[Fault]:
        last = self.until if self.at is None else max(self.at) + self.jitter
        if self.until is not None and self.until <= self.start:
            yield Fault(("until",), "must be after from")
        if self.every is not None and self.jitter > self.every:
            yield Fault(("jitter",), "must not be more than every")
        if self.repeat_every is not None and (last is None or last > self.repeat_every):
            yield Fault(
                ("repeat_every",), "the pattern must end before it repeats", "give until, or repeat later"
            )

    def value(self) -> Arrivals:
        return Arrivals(
            at_s=tuple(sorted(self.at or ())),
            every_s=self.every,
            per_hour=self.per_hour,
            from_s=self.start,
            until_s=self.until,
            jitter_s=self.jitter,
            repeat_every_s=self.repeat_every,
        )
