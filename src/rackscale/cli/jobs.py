"""plan, apply, audit, cancel; with why, which has a file of its own, the four verbs, and taking a job back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Group as Stack
from rich.text import Text

from rackscale import audit as auditing
from rackscale import spec
from rackscale.cli.output import FAILED, Files, JsonOption, SiteOption, err, fail, out, print_json, show
from rackscale.cli.site import Picture, Site, commands_of, picture
from rackscale.cli.times import FORMS, moment
from rackscale.cli.why import why
from rackscale.commands import (
    Again,
    Cancel,
    Command,
    Drain,
    Reply,
    Submit,
    answer,
    gangs_on,
    preview,
    runs_again,
)
from rackscale.errors import ControllerError, RackscaleError
from rackscale.events import Action, Event, Forecast, Preempt, Requeue, Restart
from rackscale.forecast import forecast
from rackscale.report import tables, words
from rackscale.workload import Job


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    panel = "The four verbs"
    for verb in (plan, apply, why, audit):
        app.command(rich_help_panel=panel)(verb)
    app.command(rich_help_panel="A running fleet")(cancel)


class PlanFile(Struct, frozen=True, kw_only=True):
    """What `plan --out` saves and `apply --plan` holds the controller to."""

    jobs: tuple[Job, ...]
    actions: tuple[Action, ...]
    forecasts: tuple[Forecast, ...]


def plan(
    files: Annotated[
        list[Path] | None, typer.Argument(help="YAML files or folders with the jobs.", show_default=False)
    ] = None,
    site: SiteOption = Path(),
    drain: Annotated[
        str | None, typer.Option(metavar="NODE|DOMAIN", help="Plan a drain instead of, or with, the jobs.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help=f"Gangs on what is drained may go on until then: {FORMS}."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the plan for `apply --plan`.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show each promise to those who wait, and where.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say what would start where, who gives way and what it costs. Touches nothing.

    Asks the live fleet where a controller has run in the site, else the empty fleet of its Fleet document. Starts that
    lie in the future come from one run of the twin from there.

    Examples: `rackscale plan train.yaml`, `rackscale plan train.yaml --out plan.json`,
    `rackscale plan --drain us-001`, `rackscale plan --drain us-001 --at 02:00`,
    `rackscale plan examples/one-rack --json`
    """
    if not files and drain is None:
        raise typer.BadParameter("name at least one file, or a node or domain with --drain")
    if drain is not None and output is not None:
        raise typer.BadParameter("a saved plan holds jobs only: drain with `rackscale drain`")
    if at is not None and drain is None:
        raise typer.BadParameter("--at goes with --drain")
    deadline_s = None if at is None else moment(at, time.time())
    seen = picture(Site(site), files) if files else _live(site)
    asked = None if drain is None else Drain(target=drain, deadline_s=deadline_s)
    made = make(seen, seen.documents.jobs, asked)
    if output is not None:
        saved = msgspec.json.encode(
            PlanFile(jobs=seen.documents.jobs, actions=made.actions, forecasts=made.forecasts)
        )
        output.write_bytes(msgspec.json.format(saved, indent=2) + b"\n")
    show(made, drawn(made, seen, verbose=verbose), json=json)


class Made(Struct, frozen=True, kw_only=True):
    """A plan as it is printed."""

    at_s: float
    live: bool
    actions: tuple[Action, ...]
    forecasts: tuple[Forecast, ...]
    """Of the jobs in the question."""
    moved: tuple[Forecast, ...]
    """Of gangs that have to leave: when they start again; `end_s` alone where they end before they have to."""
    again: tuple[Again, ...]
    """Jobs in the question that ended before."""
    lost_gpu_h: float
    """At most: work since the victims' last checkpoints."""
    restart_gpu_h: float


def _live(site: Path) -> Picture:
    with Site(site).journal() as journal:
        return Picture(journal.load(), spec.Documents(), live=True)


def make(seen: Picture, jobs: tuple[Job, ...], drain: Drain | None = None) -> Made:
    """Ask the scheduler and the twin; touches nothing. Raises RackscaleError for what would be refused."""
    state = seen.state
    at_s = max(time.time(), state.now_s) if seen.live else state.now_s
    events: tuple[Event, ...] = ()
    for command in (drain, Submit(jobs=jobs) if jobs else None):
        if command is not None:
            asked, reply = answer(state, command, at_s)
            reply.check()
            events += asked
    actions = preview(state, events)
    reasons = [action.reason for action in actions]
    movers = {
        action.gang
        for action in actions
        if isinstance(action, Preempt | Restart | Requeue) and action.gang in state.gangs
    }
    if drain is not None and drain.deadline_s is not None:
        movers |= {gang.name for gang in gangs_on(state, drain.target)}
    names = [job.name for job in jobs]
    found = forecast(state, events, names=names, moved=sorted(movers - set(names)), now_s=at_s)
    return Made(
        at_s=at_s,
        live=seen.live,
        actions=actions,
        forecasts=found[: len(names)],
        moved=found[len(names) :],
        again=runs_again(state, jobs),
        lost_gpu_h=sum(r.lost_gpu_s for r in reasons) / 3600,
        restart_gpu_h=sum(r.restart_gpu_s for r in reasons) / 3600,
    )


def drawn(made: Made, seen: Picture, *, verbose: bool = False) -> Stack:
    """The plan for people: the actions, then when everything starts."""
    parts: list[object] = (
        [tables.actions(made.actions, verbose=verbose)]
        if made.actions
        else [Text("nothing would be done now")]
    )
    if made.lost_gpu_h or made.restart_gpu_h:
        cost = f"at most {made.lost_gpu_h:.2f} GPU-h of work lost, {made.restart_gpu_h:.2f} GPU-h to restart"
        parts += [Text(), Text(cost, style="bold")]
    if made.again:
        parts.append(Text())
    for again in made.again:
        ago = words.duration(max(0.0, made.at_s - again.at_s))
        parts.append(Text(f"{again.job} will run again: {again.outcome} {ago} ago", style="yellow"))
    if made.forecasts:
        parts += [Text(), tables.forecasts(made.forecasts, made.at_s)]
    if made.moved:
        parts += [Text(), tables.moved(made.moved, made.at_s)]
    if not seen.live:
        parts += [
            Text(),
            Text("no controller has run here: planned on the empty fleet of the documents", style="dim"),
        ]
    return Stack(*parts)  # type: ignore[arg-type]  # rich's renderables have no common base


def apply(
    files: Files = [],  # noqa: B006  # typer reads it, nobody writes to it
    site: SiteOption = Path(),
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="A plan saved by `plan --out`: refused if it no longer holds."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Submit jobs to the controller; whatever else the files hold comes into force first.

    That is policy, queues, domains, maintenance and bookings; times are dates, or from now (`in 2h`).

    The plan is made again at once. If the fleet changes between plan and deed so that an action changes, nothing is
    submitted, and both are shown.

    Examples: `rackscale apply train.yaml`, `rackscale apply --plan plan.json`
    """
    if bool(files) == (plan_file is not None):
        raise typer.BadParameter("name files, or one plan with --plan")
    where = Site(site)
    saved = _read_plan(plan_file) if plan_file is not None else _replan(where, files, json=json)
    reply = where.ask(Submit(jobs=saved.jobs, expected=saved.actions, forecasts=saved.forecasts))
    if json:
        print_json(reply)
    else:
        _say(reply)
    if reply.outcome in ("refused", "drifted"):
        raise typer.Exit(FAILED)


def _read_plan(path: Path) -> PlanFile:
    try:
        return msgspec.json.decode(path.read_bytes(), type=PlanFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise RackscaleError(
            f"{path} is no saved plan: {error}", hint="make one with rackscale plan --out"
        ) from None


def _replan(where: Site, files: list[Path], *, json: bool) -> PlanFile:
    if not where.running:
        raise ControllerError(f"no controller runs in {where.path}", hint=f"rackscale up {where.path}")
    seen = picture(where, files)
    documents = seen.documents
    commands = commands_of(documents, seen.state, time.time())
    _rehearse_commands(seen, commands, documents.jobs)
    messages = [where.ask(command).check().message for command in commands]
    if not documents.jobs:
        reply = Reply(outcome="done", message="; ".join(messages))
        show(reply, Text(reply.message), json=json)
        raise typer.Exit
    if commands:
        seen = picture(where, files)
        if not json:
            out.print("; ".join(messages), highlight=False)
    made = make(seen, documents.jobs)
    if not json:
        out.print(drawn(made, seen))
    return PlanFile(jobs=documents.jobs, actions=made.actions, forecasts=made.forecasts)


def _rehearse_commands(seen: Picture, commands: Sequence[Command], jobs: tuple[Job, ...]) -> None:
    """Everything in the files, tried on a copy: what would be refused is refused before anything is changed."""
    fork, at_s = seen.state.fork(), max(time.time(), seen.state.now_s)
    for command in (*commands, *([Submit(jobs=jobs)] if jobs else [])):
        events, reply = answer(fork, command, at_s)
        reply.check()
        for event in events:
            fork.fold(event)


def _say(reply: Reply) -> None:
    if reply.outcome == "drifted":
        err.print(f"refused: {reply.message}", style="red")
        err.print("planned:", tables.actions(reply.expected), "now:", tables.actions(reply.actual))
    elif reply.outcome == "refused":
        fail(reply.message, reply.hint)
    else:
        out.print(reply.message, style="green", highlight=False)


def audit(site: SiteOption = Path(), json: JsonOption = False) -> None:
    """Show what each plan promised beside what then happened.

    Forecasts are single runs of the twin so far: they have an error, not a band.

    Example: `rackscale audit --json`
    """
    with Site(site).journal() as journal:
        rows = auditing.audit(journal.events())
    score = auditing.score(rows)
    show({"jobs": rows, "score": score}, tables.audit(rows, score), json=json)


def cancel(
    names: Annotated[list[str], typer.Argument(help="Jobs to stop for good.")],
    site: SiteOption = Path(),
    json: JsonOption = False,
) -> None:
    """Stop jobs: they get their grace period to checkpoint, and do not come back.

    Example: `rackscale cancel exp-812 sweep-9`
    """
    replies = {name: Site(site).ask(Cancel(job=name)) for name in names}
    if json:
        print_json(replies)
    else:
        for reply in replies.values():
            _say(reply)
    if any(reply.outcome == "refused" for reply in replies.values()):
        raise typer.Exit(FAILED)
