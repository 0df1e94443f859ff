"""rehearse: a fleet and its work in simulated time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import typer
from rich.console import Group as Stack
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from rackscale import spec
from rackscale.cli.output import Files, JsonOption, err, print_json, show
from rackscale.commands import Reply
from rackscale.errors import ControllerError
from rackscale.events import Event, encode
from rackscale.report import outcome, timeline
from rackscale.twin import Progress as Place
from rackscale.twin import Rehearsal, rehearse
from rackscale.twin.traces import Trace, read_jobs
from rackscale.workload import Policy

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def register(app: typer.Typer) -> None:
    """Add this group's verb."""
    app.command("rehearse", rich_help_panel="Without a fleet")(run)


def seconds(text: str) -> float:
    """`90`, `30s`, `10m`, `4h`, `2d`, `1w` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text)
    if match is None or float(match[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is no time; write 90s, 10m, 4h, 2d or 1w")
    return float(match[1]) * UNITS_S[match[2] or "s"]


def run(
    files: Files,
    until: Annotated[str, typer.Option(metavar="TIME", help="Simulated time: 4h, 2d, 1w.")] = "24h",
    seed: Annotated[int, typer.Option(help="Seed of arrivals, run times and failures.")] = 0,
    jobs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Recorded jobs beside the documents': CSV, Parquet or `sacct -P` output."
        ),
    ] = None,
    failures: Annotated[bool, typer.Option(help="Let hardware fail as the Fleet document says.")] = True,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Write every event; equal seeds write equal bytes."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw what ran where (small fleets).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="policy.FIELD=VALUE", help="Another value for a field of the Policy."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a fleet and its work in simulated time, with the scheduler that runs real ones, and say what happened.

    Examples: `rackscale rehearse examples/one-rack --seed 7`,
    `rackscale rehearse examples/aws-openai --until 24h --set policy.spares=adaptive --json`,
    `rackscale rehearse fleet.yaml --jobs sacct.txt --until 30d`
    """
    until_s = seconds(until)
    documents = spec.load(files, settings=settings or ())
    documents.for_rehearsal()
    if not documents.fleet:
        raise ControllerError("there is no Fleet document to rehearse on", hint="name its file or folder too")
    policy = documents.policy or Policy()
    trace = read_jobs(jobs, documents.fleet, priorities=policy.priorities) if jobs is not None else None
    if not documents.work and trace is None:
        raise ControllerError("there is no work to rehearse", hint="add job documents or --jobs FILE")
    events: list[Event] = []
    with _bar(until_s) as progress, _log(journal) as log:
        found = rehearse(
            documents, until_s=until_s, seed=seed, jobs=trace.submissions if trace else (), failures=failures, log=log,
            listeners=(events.append,) if picture is not None else (), progress=progress,
        )  # fmt: skip
    if picture is not None:
        picture.write_text(timeline.svg(events))
    if json:
        print_json(_as_json(found, trace))
        return
    parts = (
        [outcome.rehearsal(found)] if trace is None else [_traced(trace), Text(), outcome.rehearsal(found)]
    )
    show(found, Stack(*parts), json=False)


def _as_json(found: Rehearsal, trace: Trace | None) -> dict[str, object]:
    answer: dict[str, object] = msgspec.to_builtins(found, enc_hook=str)
    if trace is not None:
        kept = {key: value for key, value in msgspec.structs.asdict(trace).items() if key != "submissions"}
        answer["trace"] = {"jobs": len(trace.submissions), **kept}
    return answer


def _traced(trace: Trace) -> Text:
    more = trace.held_gpu_h / trace.asked_gpu_h - 1 if trace.asked_gpu_h else 0.0
    text = (
        f"{len(trace.submissions):,} recorded jobs, {trace.asked_gpu_h:,.0f} GPU-h; in whole nodes"
        f" {trace.held_gpu_h:,.0f} GPU-h ({more:+.0%}), {trace.rounded:,} rounded up, {trace.segmented:,} in segments"
    )
    if trace.skipped:
        text += "; skipped: " + ", ".join(f"{count:,} {reason}" for reason, count in trace.skipped.items())
    return Text(text, style="dim")


class _JsonLines:
    """A `control.Log` that writes events as JSON lines."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def append(self, events: Sequence[Event], replies: Mapping[int, Reply]) -> None:
        assert not replies, "nobody asks a rehearsal anything"
        self._stream.writelines(encode(event) + b"\n" for event in events)


@contextmanager
def _log(path: Path | None) -> Iterator[_JsonLines | None]:
    if path is None:
        yield None
        return
    with path.open("wb") as stream:
        yield _JsonLines(stream)


@contextmanager
def _bar(until_s: float) -> Iterator[Callable[[Place], None] | None]:
    """A progress bar on standard error, only for people."""
    if not err.is_terminal:
        yield None
        return
    columns = (
        TextColumn("rehearsing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("h {task.fields[note]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
        task = progress.add_task("", total=round(until_s / 3600), note="")

        def update(place: Place) -> None:
            note = f"{place.events:,} events, {place.gangs:,} gangs, {place.waiting:,} waiting"
            progress.update(task, completed=round(place.at_s / 3600), note=note)

        yield update
