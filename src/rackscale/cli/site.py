"""A site as the command line sees it: its documents, its journal, its folders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from rackscale import daemon, spec
from rackscale.cli.output import FAILED, fail, out, print_json
from rackscale.commands import (
    Announce,
    Book,
    Command,
    Configure,
    Deliver,
    Maintain,
    Reply,
    answer,
)
from rackscale.errors import ControllerError
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer
from rackscale.spec.times import When
from rackscale.workload import Booking

FOLDER = ".rackscale"


class Site(NamedTuple):
    """A folder with documents, and `.rackscale/` in it with everything that a controller writes."""

    path: Path

    @property
    def folder(self) -> Path:
        return self.path / FOLDER

    @property
    def has_journal(self) -> bool:
        return location(self.path).exists()

    def journal(self) -> Journal:
        """The journal for reading. Raises ControllerError where no controller has ever run."""
        if not self.has_journal:
            raise ControllerError(f"no controller has run in {self.path}", hint=f"rackscale up {self.path}")
        return Journal.open(location(self.path))

    @property
    def running(self) -> bool:
        """Whether a controller runs here."""
        return self.has_journal and writer(location(self.path)) is not None

    def attempt_folder(self, gang: str, attempt: int) -> Path:
        return self.folder / "gangs" / gang / str(attempt)

    def ask(self, command: Command) -> Reply:
        """Hand a command to the controller and wait for its answer. Raises ControllerError if none comes."""
        return daemon.ask(self.path, command)


def commands_of(
    documents: spec.Documents, state: FleetState, now_s: float, *, windows: bool = True
) -> list[Command]:
    """What brings the site's documents into force beside what is: domains, policy and queues, then (`windows`)
    maintenance and bookings, with times from now. Raises DocumentError for times of a rehearsal.
    """
    documents.for_site() if windows else documents.for_site(kinds=("Fleet",))
    commands: list[Command] = []
    if documents.delivered:
        commands.append(Deliver(domains=documents.delivered))
    commands += [Announce(domains=specs, ready_s=ready.at_s(now_s)) for ready, specs in documents.later]
    if documents.policy is not None or documents.queues:
        queues = {**state.queues, **{queue.name: queue for queue in documents.queues}}
        policy = documents.policy or state.policy
        commands.append(Configure(policy=policy, queues=tuple(queues.values())))
    return commands + windows_of(documents, now_s) if windows else commands


def windows_of(documents: spec.Documents, now_s: float) -> list[Command]:
    """The maintenance, then the bookings, with times from now."""
    commands: list[Command] = []
    for window in documents.windows:
        value, from_now = window.at(now_s), "now" in (window.start.basis, window.end.basis)
        if isinstance(value, Booking):
            commands.append(Book(booking=value, from_now=from_now))
        else:
            commands.append(Maintain(maintenance=value, from_now=from_now))
    return sorted(commands, key=lambda command: isinstance(command, Book))


def ask_all(site: Site, commands: Sequence[Command], *, json: bool) -> None:
    """Ask one after the other and print what came of each. Raises typer.Exit if any was refused."""
    replies = [site.ask(command) for command in commands]
    if json:
        print_json(replies[0] if len(replies) == 1 else replies)
    else:
        tell(replies)
    if any(reply.outcome == "refused" for reply in replies):
        raise typer.Exit(FAILED)


def tell(replies: Sequence[Reply]) -> None:
    """What came of commands, for people."""
    for reply in replies:
        if reply.outcome == "refused":
            fail(reply.message, reply.hint)
        else:
            out.print(reply.message, highlight=False)


def state_of(documents: spec.Documents) -> FleetState:
    """An empty fleet as the documents declare it: now where they state dates, else when a rehearsal of them begins."""
    state = FleetState()
    if not documents.dated:
        for opening in documents.opening():
            if opening.at_s <= 0.0:
                state.fold(opening)
        return state
    now_s = time.time()
    for command in commands_of(documents, state, now_s):
        events, reply = answer(state, command, now_s)
        reply.check()
        for event in events:
            state.fold(event)
    return state


class Picture(NamedTuple):
    """What a question is asked about: a state, the documents in the question, and whether the state is live."""

    state: FleetState
    documents: spec.Documents
    live: bool


def known(state: FleetState) -> spec.Documents:
    """What a live fleet has already, for documents to refer to."""
    bookings = state.machines.calendar.bookings.values()
    return spec.Documents(
        fleet=tuple(state.domains),
        queues=tuple(state.queues.values()),
        policy=state.policy,
        windows=tuple(
            spec.Window(value=b, start=When(b.start_s, "date"), end=When(b.end_s, "date")) for b in bookings
        ),
    )


def around(site: Site) -> spec.Documents:
    """What the site's live fleet has already. Raises ControllerError where no controller has ever run."""
    with site.journal() as journal:
        return known(journal.load())


def declared(site: Site) -> spec.Documents:
    """What the site has: live where a controller has ever run, else as its documents say.

    Raises ControllerError where there is neither; DocumentError.
    """
    if site.has_journal:
        return around(site)
    if not any(site.path.glob("*.y*ml")):
        raise ControllerError(
            f"{site.path} has neither a journal nor documents", hint="name the site with --site"
        )
    return spec.load([site.path])


def picture(site: Site, files: Sequence[Path]) -> Picture:
    """The live state where the site has a journal, else the empty fleet that the documents declare.

    Raises DocumentError; ControllerError where there is neither a journal nor a Fleet document.
    """
    if site.has_journal:
        with site.journal() as journal:
            state = journal.load()
        return Picture(state, spec.load(files, around=known(state)), live=True)
    documents = spec.load(files)
    if not documents.fleet:
        declared = spec.load([site.path]) if any(site.path.glob("*.y*ml")) else None
        if declared is None or not declared.fleet:
            raise ControllerError(
                f"{site.path} has neither a journal nor a Fleet document",
                hint="name the site with --site, or include its Fleet document",
            )
        documents = spec.load(files, around=declared)
        return Picture(state_of(declared), documents, live=False)
    return Picture(state_of(documents), documents, live=False)
