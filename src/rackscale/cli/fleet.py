"""up, down, status, logs, drain, undrain, repair: a running fleet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Group as Stack
from rich.live import Live
from rich.text import Text

from rackscale import spec
from rackscale.cli.output import FAILED, JsonOption, SiteOption, fail, out, print_json
from rackscale.cli.running import Engine, bring_up, take_down
from rackscale.cli.site import Site, ask_all, tell, windows_of
from rackscale.cli.times import FORMS, moment
from rackscale.commands import Book, Command, Drain, Repair, Undrain
from rackscale.errors import UnknownNameError
from rackscale.fleet.state import FleetState
from rackscale.report import tables
from rackscale.workload import Booking, Maintenance

POLL_S = 0.2


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    for verb in (up, status, logs, drain, undrain, repair, down):
        app.command(rich_help_panel="A running fleet")(verb)


def up(
    site: Annotated[Path, typer.Argument(help="Folder with the site's documents.")] = Path(),
    on: Annotated[Engine, typer.Option(help="What runs the gangs.")] = Engine.local,
    address: Annotated[
        str | None, typer.Option(help="Ray: join this cluster instead of starting nodes here.")
    ] = None,
    repair_after: Annotated[
        float, typer.Option(metavar="SECONDS", help="Emulated nodes come back so long after they died.")
    ] = 60.0,
    json: JsonOption = False,
) -> None:
    """Start the controller of a site, in the background. It recovers what an earlier one left.

    The site's Fleet, Policy and Queue documents come into force, then its maintenance and bookings that are not over;
    jobs are not submitted (that is `apply`). A booking that is refused is told; the controller runs all the same.

    Examples: `rackscale up examples/demo`, `rackscale up site/ --on ray --address auto`
    """
    if address is not None and on is not Engine.ray:
        raise typer.BadParameter("--address goes with --on ray")
    where = Site(site)
    documents = spec.load([site])
    if not documents.fleet and not where.has_journal:
        raise fail(f"{site} has no Fleet document", "see `rackscale schema` or examples/demo")
    standing = bring_up(site, on, address=address, repair_s=repair_after)
    replies = [where.ask(command) for command in _not_over(windows_of(documents, time.time()))]
    if json:
        print_json({**msgspec.to_builtins(standing), "planned": replies})
    else:
        with where.journal() as journal:
            count = len(journal.load().domains)
        out.print(f"controller {standing.pid} drives {count} NVLink domains on {on.value}", highlight=False)
        tell(replies)
    if any(reply.outcome == "refused" for reply in replies):
        raise typer.Exit(FAILED)


def _not_over(commands: list[Command]) -> Iterator[Command]:
    """Windows of a site's documents that still mean something."""
    for command in commands:
        window = command.booking if isinstance(command, Book) else getattr(command, "maintenance", None)
        if isinstance(window, Booking | Maintenance) and window.end_s > time.time():
            yield command


def down(
    site: SiteOption = Path(),
    keep_gangs: Annotated[
        bool, typer.Option("--keep-gangs", help="Leave gangs running without a controller.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Cancel all jobs, also those that wait; stop their gangs (they get their grace period to checkpoint), then the
    controller. The jobs don't come back with `up`: apply them again, and they go on from their checkpoints.

    With `--keep-gangs`, gangs run on, jobs wait on, and the next `up` takes them over. The journal, checkpoints and
    outputs stay. Examples: `rackscale down --site examples/demo`, `rackscale down --keep-gangs`
    """
    take_down(site, stop_gangs=not keep_gangs)
    message = "the controller has ended"
    message += "; gangs go on" if keep_gangs else " and so have all gangs; jobs that waited are cancelled"
    if json:
        print_json({"message": message})
    else:
        out.print(message)


def status(
    site: SiteOption = Path(),
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, and show changes as they happen.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show the fleet: nodes by domain, gangs, where and since when.

    Node marks: `#` held, `.` free, `~` held for a gang while victims leave, `!` failed, `-` drained.

    Examples: `rackscale status`, `rackscale status --watch`
    """
    where = Site(site)
    with where.journal() as journal:
        alive = where.running
        state = journal.load()
        if json:
            print_json({"controller": alive, "now_s": time.time(), "state": msgspec.Raw(state.snapshot())})
            return
        if not (watch and out.is_terminal):
            out.print(_screen(state, alive))
            return
        with Live(_screen(state, alive), console=out, screen=False, auto_refresh=False) as live:
            for events in journal.follow(journal.seq, every_s=POLL_S):
                for event in events:
                    state.fold(event)
                live.update(_screen(state, where.running), refresh=True)


def _screen(state: FleetState, alive: bool) -> Stack:
    parts = [tables.status(state, time.time())]
    if not alive:
        warning = Text("no controller runs: this is the last state it wrote (rackscale up)", style="yellow")
        return Stack(warning, Text(), *parts)
    return Stack(*parts)


def logs(
    name: Annotated[str, typer.Argument(help="A job, or one gang of a service (`chat/0`).")],
    site: SiteOption = Path(),
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the gang has ended.")
    ] = False,
    rank: Annotated[int | None, typer.Option(help="Only this rank.")] = None,
    attempt: Annotated[int | None, typer.Option(help="This attempt; the latest when left out.")] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", help="Start with the last so many lines of each rank.")
    ] = 20,
) -> None:
    """Print what a gang's ranks wrote, across restarts.

    Examples: `rackscale logs exp-812 -f`, `rackscale logs chat/0 --rank 0 -n 100`
    """
    where = Site(site)
    with where.journal() as journal:
        gang = _gang_name(journal.load(), name)
        shown: dict[Path, int] = {}
        while True:
            state = journal.load()
            live = state.gangs.get(gang)
            last = live.attempt if live else state.ended[gang].attempts
            number = attempt or last
            found = _print_new(where.attempt_folder(gang, number), rank, lines, shown)
            if not found and not follow:
                raise fail(f"{gang} has no logs of attempt {number}", f"attempts so far: {last}")
            if not follow or live is None or (attempt is not None and attempt < last):
                return
            time.sleep(POLL_S)


def _gang_name(state: FleetState, name: str) -> str:
    if name in state.gangs or name in state.ended:
        return name
    if name in state.jobs:
        return state.jobs[name].gangs()[0]
    if ended := [gang for gang, end in state.ended.items() if end.job == name]:
        return min(ended)
    raise UnknownNameError("job", name, [*state.gangs, *state.ended])


def _print_new(folder: Path, rank: int | None, lines: int, shown: dict[Path, int]) -> bool:
    """Print what was added to the attempt's logs since last time; whether there are any."""
    paths = sorted([*folder.glob("setup-*.log"), *folder.glob("rank-*.log")], key=_log_order)
    if rank is not None:
        paths = [path for path in paths if path.name == f"rank-{rank}.log"]
    for path in paths:
        data = path.read_bytes()
        fresh = data[shown[path] :] if path in shown else b"".join(data.splitlines(keepends=True)[-lines:])
        shown[path] = len(data)
        prefix = f"[{folder.name} {path.stem}] " if rank is None else ""
        for line in fresh.decode(errors="replace").splitlines():
            out.print(prefix + line, markup=False, highlight=False, soft_wrap=True)
    return bool(paths)


def _log_order(path: Path) -> tuple[bool, int]:
    """Set-up first, then ranks by number."""
    kind, _, number = path.stem.partition("-")
    return kind != "setup", int(number)


Target = Annotated[
    str, typer.Argument(metavar="NODE|DOMAIN", help="`us-007`, `use1-a/us-007` or `use1-a/us-007/n03`.")
]


def drain(
    target: Target,
    by: Annotated[
        str | None,
        typer.Option(metavar="TIME", help=f"Gangs may go on, but must have left by then: {FORMS}."),
    ] = None,
    site: SiteOption = Path(),
    json: JsonOption = False,
) -> None:
    """Let nothing new start on a node or domain; gangs there checkpoint and move, at once or by a time.

    Ask first with `rackscale plan --drain us-007`.

    Examples: `rackscale drain use1-a/us-007/n03`, `rackscale drain us-007 --by 02:00`
    """
    deadline_s = None if by is None else moment(by, time.time())
    ask_all(Site(site), [Drain(target=target, deadline_s=deadline_s)], json=json)


def undrain(target: Target, site: SiteOption = Path(), json: JsonOption = False) -> None:
    """Use a drained node or domain again. Example: `rackscale undrain us-007`"""
    ask_all(Site(site), [Undrain(target=target)], json=json)


def repair(target: Target, site: SiteOption = Path(), json: JsonOption = False) -> None:
    """Say that failed nodes are usable again. Example: `rackscale repair use1-a/us-007/n03`"""
    ask_all(Site(site), [Repair(target=target)], json=json)
