"""Times as people type them at a live fleet."""

from __future__ import annotations

from datetime import datetime, timedelta

import typer
from pydantic_core import PydanticCustomError

from rackscale.spec.fields import seconds
from rackscale.spec.times import when

FORMS = "`02:00` (the next one here), `2h` (from now) or `2026-12-01T02:00Z`"


def moment(text: str, now_s: float) -> float:
    """Seconds since the epoch: the next time that the clock here shows `02:00`, so long from now, or a date.

    Raises typer.BadParameter.
    """
    try:
        found = when(text)
        if found.basis != "rehearsal":
            return found.at_s(now_s)
        return _next(text, now_s) if ":" in text else now_s + seconds(text)
    except PydanticCustomError as error:
        reason = error.message() if "needs its zone" in error.message() else f"write {FORMS}"
        raise typer.BadParameter(f"{text!r} is no time; {reason}") from None


def from_now(text: str | None) -> bool:
    """Whether a time that `moment` took counts from now; None, which stands for now, does."""
    return text is None or (":" not in text and when(text).basis != "date")


def _next(text: str, now_s: float) -> float:
    """The next time that the clock of this machine shows so."""
    now = datetime.fromtimestamp(now_s).astimezone()
    hours, minutes, *rest = map(int, text.split(":"))
    at = now.replace(hour=hours % 24, minute=minutes, second=rest[0] if rest else 0, microsecond=0)
    return (at if at > now else at + timedelta(days=1)).timestamp()
