"""What people can ask of a controller, what it answers, and what would happen.

`answer` is the gate: what passes it folds without complaint, what does not is refused with the reason and changes
nothing. It is pure, so that a plan asks the very same questions without a controller.
"""

from __future__ import annotations

import traceback

from rackscale.commands.capacity import announce, deliver, extend
from rackscale.commands.jobs import DEFAULT_QUEUE, Again, cancel, concerning, preview, runs_again, submit
from rackscale.commands.nodes import change_nodes, gangs_on, resolve
from rackscale.commands.site import configure, shutdown
from rackscale.commands.vocabulary import (
    Announce,
    Answer,
    Book,
    Cancel,
    Command,
    Configure,
    Deliver,
    Drain,
    Extend,
    Maintain,
    Repair,
    Reply,
    Request,
    Shutdown,
    Submit,
    Unbook,
    Undrain,
    Unmaintain,
)
from rackscale.commands.windows import book, maintain, unbook, unmaintain
from rackscale.errors import RackscaleError
from rackscale.fleet.state import FleetState

__all__ = [
    "DEFAULT_QUEUE",
    "Again",
    "Announce",
    "Answer",
    "Book",
    "Cancel",
    "Command",
    "Configure",
    "Deliver",
    "Drain",
    "Extend",
    "Maintain",
    "Repair",
    "Reply",
    "Request",
    "Shutdown",
    "Submit",
    "Unbook",
    "Undrain",
    "Unmaintain",
    "answer",
    "closes_cycle",
    "concerning",
    "gangs_on",
    "preview",
    "resolve",
    "runs_again",
]


def closes_cycle(command: Command) -> bool:
    """Whether a decision must follow before the next command, so that what was expected is what is decided."""
    return isinstance(command, Submit) and command.expected is not None


def answer(state: FleetState, command: Command, now_s: float) -> Answer:
    """What the command means in this state. Pure: folding the events is up to the caller."""
    try:
        return _answer(state, command, now_s)
    except RackscaleError as error:
        return (), Reply(outcome="refused", message=str(error), hint=error.hint)
    except Exception as error:  # noqa: BLE001 - a command that trips over a mistake of ours must not end the controller
        traceback.print_exc()
        return (), Reply(
            outcome="refused", message=f"an unexpected error: {error!r}", hint="see controller.log"
        )


def _answer(state: FleetState, command: Command, now_s: float) -> Answer:  # noqa: C901, PLR0911 - a table
    match command:
        case Submit():
            return submit(state, command, now_s)
        case Cancel():
            return cancel(state, command.job, now_s)
        case Drain() | Undrain() | Repair():
            return change_nodes(state, command, now_s)
        case Configure():
            return configure(state, command, now_s)
        case Deliver():
            return deliver(state, command, now_s)
        case Announce():
            return announce(state, command, now_s)
        case Extend():
            return extend(state, command, now_s)
        case Book():
            return book(state, command.booking, now_s, from_now=command.from_now)
        case Unbook():
            return unbook(state, command.booking, now_s)
        case Maintain():
            return maintain(state, command.maintenance, now_s, from_now=command.from_now)
        case Unmaintain():
            return unmaintain(state, command.maintenance, now_s)
        case Shutdown():
            return shutdown(state, command, now_s)
