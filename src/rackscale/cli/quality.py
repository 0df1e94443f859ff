"""quality: how well a fleet was used, from a site's journal or from a rehearsal's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from rackscale.capacity.quality import Quality, measure
from rackscale.cli.output import JsonOption, SiteOption, show
from rackscale.cli.rehearse import UNITS_S
from rackscale.cli.site import Site
from rackscale.errors import JournalError, RackscaleError
from rackscale.events import Event, decode
from rackscale.report import quality as report

TimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="4h (after the journal's start), -4h (before its end; a running site's ends now) or 2026-01-31T12:00.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's verb."""
    app.command("quality", rich_help_panel="A running fleet")(run)


def run(
    site: SiteOption = Path(),
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Measure a rehearsal's journal, not the site's."),
    ] = None,
    since: TimeOption = None,
    until: TimeOption = None,
    json: JsonOption = False,
) -> None:
    """Say how well the fleet was used: allocation, fragmentation, waits, placement, goodput, recovery.

    What runs at `--since` counts from then on.

    Examples: `rackscale quality --site site --since -24h`,
    `rackscale rehearse examples/one-rack --journal day.jsonl` and then `rackscale quality --journal day.jsonl --json`
    """
    window = Window(since, until)
    found = _of_site(Site(site), window) if journal is None else _of_file(journal, window)
    show(found, report.quality(found), json=json)


class Window:
    """What `--since` and `--until` say. Raises RackscaleError."""

    def __init__(self, since: str | None, until: str | None) -> None:
        self._since = None if since is None else _moment(since)
        self._until = None if until is None else _moment(until)

    def since_s(self, start_s: float, end_s: float) -> float | None:
        """None: everything."""
        if self._since is None:
            return None
        since_s = self._since.at_s(start_s, end_s)
        if since_s >= self.until_s(start_s, end_s):
            raise RackscaleError(
                "--since is not before the end", hint="the journal ends there, or --until does"
            )
        return since_s if since_s > start_s else None

    def until_s(self, start_s: float, end_s: float) -> float:
        until_s = end_s if self._until is None else self._until.at_s(start_s, end_s)
        if until_s < start_s:
            raise RackscaleError("--until is before the journal's start")
        return until_s


class Moment:
    """A time, absolute or from the start (+1) or the end (-1) of a journal."""

    def __init__(self, seconds: float, origin: int) -> None:
        self._seconds, self._origin = seconds, origin

    def at_s(self, start_s: float, end_s: float) -> float:
        return self._seconds + (0.0, start_s, end_s)[self._origin]


def _moment(text: str) -> Moment:
    match = re.fullmatch(r"(-?)(\d+(?:\.\d+)?)([smhdw]?)", text)
    if match is not None:
        seconds = float(match[2]) * UNITS_S[match[3] or "s"]
        return Moment(-seconds, -1) if match[1] else Moment(seconds, 1)
    try:
        return Moment(datetime.fromisoformat(text).astimezone().timestamp(), 0)
    except ValueError:
        raise RackscaleError(f"{text!r} is no time", hint="write 4h, -30m, 2d or 2026-01-31T12:00") from None


def _of_site(site: Site, window: Window) -> Quality:
    with site.journal() as journal:
        events = journal.events()
        first = next(events, None)
        if first is None:
            raise JournalError(f"{journal.path} is empty")
        (last,) = journal.events(journal.seq - 1)
        end_s = max(time.time(), last.at_s) if site.running else last.at_s
        until_s = min(end_s, window.until_s(first.at_s, end_s))
        return measure(chain((first,), events), since_s=window.since_s(first.at_s, end_s), until_s=until_s)


def _of_file(path: Path, window: Window) -> Quality:
    lines = Lines(path)
    start_s, end_s = lines.ends()
    try:
        return measure(
            lines, since_s=window.since_s(start_s, end_s), until_s=window.until_s(start_s, end_s)
        )  # fmt: skip
    except KeyError as error:
        raise JournalError(f"{path}:{lines.number}: nothing before tells of {error}") from None


class Lines:
    """Events of a file of JSON lines. Raises JournalError that names the line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.number = 0
        """Of the line read last."""

    def __iter__(self) -> Iterator[Event]:
        with self._path.open("rb") as stream:
            for self.number, line in enumerate(stream, 1):
                try:
                    event = decode(line)
                except ValueError as error:
                    raise JournalError(f"{self._path}:{self.number}: this is no event: {error}") from None
                yield event

    def ends(self) -> tuple[float, float]:
        """Times of the first event and of the last."""
        start_s = end_s = None
        for event in self:
            start_s = event.at_s if start_s is None else start_s
            end_s = event.at_s if end_s is None else max(end_s, event.at_s)
        if start_s is None or end_s is None:
            raise JournalError(f"{self._path} is empty")
        return start_s, end_s
