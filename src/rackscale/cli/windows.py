"""book, unbook, maintain, unmaintain: nodes that are kept, or out of use, from one time to another."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rackscale import spec
from rackscale.cli.output import JsonOption, SiteOption, fail
from rackscale.cli.site import Site, around, ask_all, windows_of
from rackscale.cli.times import FORMS, from_now, moment
from rackscale.commands import Book, Maintain, Unbook, Unmaintain
from rackscale.workload import Booking, Maintenance, Shape

From = Annotated[str | None, typer.Option("--from", metavar="TIME", help=f"When it begins: {FORMS}.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="When it ends, likewise.")]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    for verb in (book, unbook, maintain, unmaintain):
        app.command(rich_help_panel="A running fleet")(verb)


def book(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files with Booking documents.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Book without a file, under this name.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes in one NVLink domain, or of each segment.")] = 1,
    segments: Annotated[int, typer.Option(min=1, help="So many NVLink domains with that many nodes.")] = 1,
    start: From = None,
    until: Until = None,
    queue: Annotated[str, typer.Option(help="Whose booking it is.")] = "default",
    priority: Annotated[str, typer.Option(help="What may be cleared for it when it begins.")] = "normal",
    system: Annotated[str | None, typer.Option(help="Only this system.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Only this cluster.")] = None,
    site: SiteOption = Path(),
    json: JsonOption = False,
) -> None:
    """Keep nodes for somebody's jobs from one time to another. Jobs that say `booking: NAME` run on them.

    Examples: `rackscale book review.yaml`,
    `rackscale book --name review --nodes 16 --from 22:00 --until 23:30 --queue research`
    """
    if bool(files) == (name is not None):
        raise typer.BadParameter("name files with Booking documents, or give --name, --from and --until")
    where, now_s = Site(site), time.time()
    if files:
        documents = spec.load(files, around=around(where))
        documents.for_site(kinds=("Booking",))
        commands = [c for c in windows_of(documents, now_s) if isinstance(c, Book)]
        if not commands:
            raise fail("there is no Booking document in these files", "kind: Booking")
    else:
        assert name is not None
        start_s, end_s = _window(start, until, now_s)
        shape = Shape(segments=segments, nodes_per_segment=nodes)
        booking = Booking(
            name=name, shape=shape, start_s=start_s, end_s=end_s, queue=queue, priority=priority, system=system,
            cluster=cluster,
        )  # fmt: skip
        commands = [Book(booking=booking, from_now=from_now(start) or from_now(until))]
    ask_all(where, commands, json=json)


def unbook(
    name: Annotated[str, typer.Argument(help="The booking.")],
    site: SiteOption = Path(),
    json: JsonOption = False,
) -> None:
    """Call a booking off, or end it: what runs on its nodes has to leave. Example: `rackscale unbook review`"""
    ask_all(Site(site), [Unbook(booking=name)], json=json)


def maintain(
    target: Annotated[
        str,
        typer.Argument(metavar="NODE|DOMAIN", help="`us-007`, `use1-a/us-007` or `use1-a/us-007/n03`."),
    ],
    start: From = None,
    until: Until = None,
    name: Annotated[
        str | None, typer.Option(help="What to call it; made of the target when left out.")
    ] = None,
    site: SiteOption = Path(),
    json: JsonOption = False,
) -> None:
    """Take nodes out of use from one time to another. What would still run by then is not started there.

    What runs there when it begins leaves with a checkpoint in time.

    Examples: `rackscale maintain us-007 --from 02:00 --until 04:30`,
    `rackscale maintain use1-a/us-007/n03 --from 2026-12-01T02:00Z --until 2026-12-01T04:00Z --name psu`
    """
    now_s = time.time()
    start_s, end_s = _window(start, until, now_s)
    maintenance = Maintenance(
        name=name or target.replace("/", "."), domain=target, start_s=start_s, end_s=end_s
    )
    relative = from_now(start) or from_now(until)
    ask_all(Site(site), [Maintain(maintenance=maintenance, from_now=relative)], json=json)


def unmaintain(
    name: Annotated[str, typer.Argument(help="The maintenance.")],
    site: SiteOption = Path(),
    json: JsonOption = False,
) -> None:
    """Call a maintenance off, or end it: its nodes are used again. Example: `rackscale unmaintain us-007`"""
    ask_all(Site(site), [Unmaintain(maintenance=name)], json=json)


def _window(start: str | None, until: str | None, now_s: float) -> tuple[float, float]:
    """When it begins (now, where that is not said) and ends."""
    if until is None:
        raise typer.BadParameter("say when it ends with --until")
    return now_s if start is None else moment(start, now_s), moment(until, now_s)
