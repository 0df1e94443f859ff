"""Following a controller's journal: print what happens until something is true."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from rackscale.cli.site import Site
from rackscale.errors import ControllerError
from rackscale.events import Checkpointed, Decided, Event, GangRunning
from rackscale.fleet.state import FleetState
from rackscale.report import words

POLL_S = 0.1


class Watcher:
    """The state as the journal tells it, with one printed line per event worth reading."""

    def __init__(self, site: Site, console: Console, *, quiet: bool = False) -> None:
        self.state = FleetState()
        self.events: list[Event] = []
        """Everything so far, for pictures and sums at the end."""
        self.runs: dict[tuple[str, int], GangRunning] = {}
        """(gang, attempt) -> when its first step of productive work was done, and from where it went on."""
        self._site, self._console, self._quiet = site, console, quiet
        self._journal = site.journal()
        self._began_s = time.time()
        self._saved: set[tuple[str, int]] = set()

    def close(self) -> None:
        self._journal.close()

    def until(self, what: str, true: Callable[[FleetState], bool], *, timeout_s: float) -> None:
        """Wait, printing, until `true`. Raises ControllerError when it takes too long or the controller is gone."""
        deadline_s = time.monotonic() + timeout_s
        waiting = (
            self._console.status(f"waiting: {what}")
            if self._console.is_terminal and not self._quiet
            else None
        )
        if waiting is not None:
            waiting.start()
        try:
            while True:
                self.read()
                if true(self.state):
                    return
                if not self._site.running:
                    raise ControllerError(
                        "the controller has ended", hint=f"see {self._site.folder}/controller.log"
                    )
                if time.monotonic() > deadline_s:
                    raise ControllerError(f"waited {timeout_s:.0f} s in vain: {what}")
                time.sleep(POLL_S)
        finally:
            if waiting is not None:
                waiting.stop()

    def read(self) -> None:
        """Take in and print what is new."""
        for event in self._journal.events(len(self.events)):
            self.events.append(event)
            self._print(event)
            self.state.fold(event)
            if isinstance(event, GangRunning):
                self.runs[event.gang, event.attempt] = event

    def _print(self, event: Event) -> None:
        if self._quiet:
            return
        if isinstance(event, Decided):
            for action in event.plan.actions:
                verb, subject, sentence = words.action(action)
                self._line(event.at_s, f"{verb} {subject} {sentence}", "bold")
        elif isinstance(event, Checkpointed) and (event.gang, event.attempt) in self._saved:
            return  # the first of an attempt is news
        elif (text := words.happened(event)) is not None:
            if isinstance(event, Checkpointed):
                self._saved.add((event.gang, event.attempt))
            self._line(event.at_s, text, "")

    def _line(self, at_s: float, text: str, style: str) -> None:
        clock = f"{max(0.0, at_s - self._began_s):6.1f} s  "
        self._console.print(Text.assemble((clock, "dim"), (text, style)), soft_wrap=True)
