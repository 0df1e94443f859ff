"""The one loop: events in, journal, decide, apply. The twin and every real executor are driven by this code.

It reads no clock: time arrives on events, so that the twin and reality differ only in the `Executor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rackscale.events import Event, Input, Plan
from rackscale.fleet.state import FleetState


class Executor(Protocol):
    """Runs gangs somewhere. Actions are idempotent by (gang, attempt): asking twice starts nothing twice."""

    def recover(self, state: FleetState) -> None:
        """Make reality match `state` after the controller was restarted.

        Starts what `state` says was started and does not exist, repeats requests to leave, and kills attempts that
        `state` does not know. Called once, before the first `poll`.
        """

    def apply(self, plan: Plan) -> None:
        """Act on a plan that is already in the journal. Must not block for longer than starting processes takes."""

    def poll(self, deadline_s: float | None) -> Sequence[Input]:
        """The next events, in time order; `[Ticked]` when `deadline_s` passes first; empty when nothing can happen.

        A real executor returns within a fraction of a second even when nothing happened (with an empty list).
        """

    def close(self) -> None:
        """Let go of resources; running gangs go on."""
