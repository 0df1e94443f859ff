"""Every error that rackscale raises on purpose.

    RackscaleError               anything below; the command line prints it without a traceback
    ├── DocumentError            documents that can't be used: carries every problem found, each with its place
    ├── UnknownNameError         a job, queue, system, domain or node that does not exist ("did you mean")
    ├── JournalError             the durable log can't be read or written
    ├── ControllerError          no controller answers, or one is already running
    ├── DriftError               the state moved since the plan was made, so that an action changes
    └── ExecutorError            an executor can't do what a plan asks of it (an engine is missing, a port is taken)

Programming mistakes stay `AssertionError` and are never caught.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RackscaleError(Exception):
    """Base of all expected errors. `str(error)` is fit to show to a user; `hint` says what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DocumentError(RackscaleError):
    """One or more documents can't be used. `problems` holds one printable line per problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownNameError(RackscaleError):
    """A name that does not exist; the message proposes the nearest one that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"there is no {kind} {name!r}", hint=did_you_mean(name, known))


class JournalError(RackscaleError):
    """The durable log can't be read or written."""


class ControllerError(RackscaleError):
    """No controller answers for this site, or one is already running."""


class DriftError(RackscaleError):
    """The live state moved since the plan was made in a way that changes an action."""


class ExecutorError(RackscaleError):
    """An executor can't do what a plan asks of it."""


LEAST_PART = 3
"""Letters that a part of a name must have to be taken for one."""
MOST_MEANT = 3
"""So many names are proposed at once."""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The nearest known name as a question, or None when nothing is near.

    Names of which it is a part are nearer than those that only look alike: `gb300` is meant for `u-p6e-gb300x72`.
    """
    names = list(dict.fromkeys(known))
    within = [n for n in names if name.lower() in n.lower()] if len(name) >= LEAST_PART else []
    if 1 < len(within) <= MOST_MEANT:
        return f"did you mean {' or '.join(map(repr, within))}?"
    near = difflib.get_close_matches(name, within or names, n=1, cutoff=0.0 if within else 0.6)
    return f"did you mean {near[0]!r}?" if near else None
