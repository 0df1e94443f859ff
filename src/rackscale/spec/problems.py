"""What is wrong with a document, and where: one printable line per problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rackscale.errors import did_you_mean

Path = tuple[str | int, ...]
"""A field's place inside a document: `("clusters", 0, "system")`."""

Place = tuple[int, int]
"""Line and column, from 1."""

NO_VALUE = object()
_LONGEST_VALUE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`line` 0: the problem is not at a line of the file."""

    file: str
    line: int = 0
    column: int = 0
    document: str = ""
    """`Training 'exp-812'`, or the kind alone where it has no usable name."""
    field: str = ""
    message: str
    value: object = NO_VALUE
    fix: str | None = None

    def __str__(self) -> str:
        place = f"{printable(self.file)}:{self.line}:{self.column}" if self.line else printable(self.file)
        subject = " ".join(part for part in (self.document, self.field) if part)
        text = f"{place}: {subject}: {self.message}" if subject else f"{place}: {self.message}"
        if self.value is not NO_VALUE:
            text += f" ({shown(self.value)})"
        return f"{text}; {self.fix}" if self.fix else text


def dotted(path: Path) -> str:
    """`("clusters", 0, "system")` as people write it: `clusters[0].system`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if step.isidentifier() else shown(step)
            text += f".{name}" if text else name
    return text


def shown(value: object) -> str:
    """A user's value on one line: quoted, cut when long, containers by their size only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = printable(repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def printable(text: str) -> str:
    """`text` without line breaks, control characters or bytes that a terminal can't print."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in safe)


def nearest(name: object, known: Iterable[str]) -> str | None:
    """What to write instead of an unknown name: the nearest known one, or the whole list when it is short."""
    names = sorted(known)
    near = did_you_mean(name, names) if isinstance(name, str) and len(name) <= _LONGEST_VALUE else None
    if near or not names:
        return near
    if len(names) > 12:
        return f"one of {', '.join(names[:12])} and {len(names) - 12} more"
    return f"one of {', '.join(names)}" if len(names) > 1 else f"only {names[0]} exists"
