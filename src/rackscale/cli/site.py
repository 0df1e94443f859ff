"""A site as the command line sees it: its documents, its journal, its folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rackscale import daemon, spec
from rackscale.commands import Command, Reply
from rackscale.errors import ControllerError
from rackscale.events import Configured, Delivered
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer
from rackscale.workload import Policy

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


def state_of(documents: spec.Documents, at_s: float = 0.0) -> FleetState:
    """An empty fleet as the documents declare it."""
    state = FleetState()
    state.fold(Configured(at_s=at_s, policy=documents.policy or Policy(), queues=documents.queues))
    state.fold(Delivered(at_s=at_s, domains=documents.fleet))
    return state


class Picture(NamedTuple):
    """What a question is asked about: a state, the documents in the question, and whether the state is live."""

    state: FleetState
    documents: spec.Documents
    live: bool


def picture(site: Site, files: Sequence[Path]) -> Picture:
    """The live state where the site has a journal, else the empty fleet that the documents declare.

    Raises DocumentError; ControllerError where there is neither a journal nor a Fleet document.
    """
    if site.has_journal:
        with site.journal() as journal:
            state = journal.load()
        around = spec.Documents(
            fleet=tuple(state.domains), queues=tuple(state.queues.values()), policy=state.policy
        )
        return Picture(state, spec.load(files, around=around), live=True)
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
