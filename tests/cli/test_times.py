"""Times as people type them at a live fleet."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from rackscale.cli.times import moment

NOON_S = datetime(2026, 11, 25, 12).astimezone().timestamp()


@pytest.mark.parametrize(
    ("text", "after_s"), [("2h", 7200.0), ("in 2h", 7200.0), ("90s", 90.0), ("13:30", 5400.0)]
)
def test_from_now_and_by_the_clock(text: str, after_s: float) -> None:
    assert moment(text, NOON_S) == NOON_S + after_s


def test_a_date_says_its_zone() -> None:
    assert moment("2026-12-01T02:00Z", NOON_S) == moment("2026-12-01T03:00+01:00", NOON_S) == 1_796_090_400.0
    with pytest.raises(typer.BadParameter, match="needs its zone"):
        moment("2026-12-01T02:00", NOON_S)


@pytest.mark.parametrize("text", ["", "tonight", "25:00", "2 h", "-1h", "2026-13-01T02:00Z"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time"):
        moment(text, NOON_S)


@given(st.integers(0, 23), st.integers(0, 59), st.floats(0.0, 2e9))
def test_the_clock_means_the_next_such_time(hours: int, minutes: int, now_s: float) -> None:
    found_s = moment(f"{hours:02}:{minutes:02}", now_s)
    shown = datetime.fromtimestamp(found_s).astimezone()
    assert now_s < found_s <= now_s + timedelta(hours=25).total_seconds()
    assert (shown.hour, shown.minute) == (hours, minutes)
