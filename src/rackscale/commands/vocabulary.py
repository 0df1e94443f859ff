"""The words of people's commands, and of the replies to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from rackscale.errors import DriftError, RackscaleError
from rackscale.events import Action, DomainSpec, Event, Forecast
from rackscale.workload import Booking, Job, Maintenance, Policy, Queue


class Submit(Struct, frozen=True, kw_only=True, tag=True):
    """Accept all of these jobs or none. Those that are live with the very same specification stay as they are."""

    jobs: tuple[Job, ...]
    expected: tuple[Action, ...] | None = None
    """What `preview` said when the plan was made: if it says something else now, nothing is submitted."""
    forecasts: tuple[Forecast, ...] = ()
    """What the plan promised, kept for `audit`."""


class Cancel(Struct, frozen=True, kw_only=True, tag=True):
    job: str


class Drain(Struct, frozen=True, kw_only=True, tag=True):
    target: str
    """A domain (`use1-a/us-007`, or `us-007` where only one cluster has it) or a node (`use1-a/us-007/n03`)."""
    deadline_s: float | None = None
    """What runs there may go on, but must have left by then; None: it leaves at once."""


class Undrain(Struct, frozen=True, kw_only=True, tag=True):
    target: str


class Repair(Struct, frozen=True, kw_only=True, tag=True):
    """Failed nodes are usable again."""

    target: str


class Configure(Struct, frozen=True, kw_only=True, tag=True):
    """The policy and all queues from now on."""

    policy: Policy
    queues: tuple[Queue, ...] = ()


class Deliver(Struct, frozen=True, kw_only=True, tag=True):
    """These domains are part of the fleet; those that are already stay as they are."""

    domains: tuple[DomainSpec, ...]


class Announce(Struct, frozen=True, kw_only=True, tag=True):
    """These domains are contracted, and expected at `ready_s`."""

    domains: tuple[DomainSpec, ...]
    ready_s: float


class Extend(Struct, frozen=True, kw_only=True, tag=True):
    """The capacity of these domains goes back at another time than was said; None: it stays."""

    domains: tuple[str, ...]
    expires_s: float | None


class Book(Struct, frozen=True, kw_only=True, tag=True):
    """Keep nodes for somebody's jobs from one time to another."""

    booking: Booking
    from_now: bool = False
    """Whether its times count from now, so that the same asked a little later is no news."""


class Unbook(Struct, frozen=True, kw_only=True, tag=True):
    booking: str


class Maintain(Struct, frozen=True, kw_only=True, tag=True):
    """Take nodes out of use from one time to another; `maintenance.domain` may be the end of a domain's name."""

    maintenance: Maintenance
    from_now: bool = False
    """As in `Book`."""


class Unmaintain(Struct, frozen=True, kw_only=True, tag=True):
    maintenance: str


class Shutdown(Struct, frozen=True, kw_only=True, tag=True):
    """End the controller. Commands that come later wait for the next one."""

    stop_gangs: bool = False
    """Cancel every job first and wait until all gangs have ended; otherwise they go on without a controller."""


Command = (
    Submit | Cancel | Drain | Undrain | Repair | Configure | Deliver | Announce | Extend
    | Book | Unbook | Maintain | Unmaintain | Shutdown
)  # fmt: skip


class Reply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one command."""

    outcome: Literal["done", "unchanged", "refused", "drifted"]
    """`unchanged`: what was asked for is so already. `refused` and `drifted`: nothing was done."""
    message: str
    """A sentence for people; one line per problem."""
    hint: str | None = None
    expected: tuple[Action, ...] = ()
    """Where drifted: the actions of the plan, and those that would follow now."""
    actual: tuple[Action, ...] = ()

    def check(self) -> Reply:
        """This reply. Raises DriftError or RackscaleError if nothing was done."""
        if self.outcome == "drifted":
            raise DriftError(self.message, hint=self.hint)
        if self.outcome == "refused":
            raise RackscaleError(self.message, hint=self.hint)
        return self


class Request(Struct, frozen=True, kw_only=True):
    """A command that waits for its answer."""

    id: int
    at_s: float
    """When the controller took it up, seconds since the epoch."""
    command: Command


Answer = tuple[tuple[Event, ...], Reply]
"""The events that a command becomes, and its reply."""


def count(number: int, what: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def joined(names: Sequence[str], most: int = 4) -> str:
    """`a`, `a and b`, `a, b, c, d and 3 more`."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def refused(problems: list[str], hint: str | None = None) -> Answer:
    """Nothing is done, for all of these reasons."""
    return (), Reply(outcome="refused", message="\n".join(problems), hint=hint)


def unchanged(message: str) -> Answer:
    return (), Reply(outcome="unchanged", message=message)


def done(events: tuple[Event, ...], message: str) -> Answer:
    return events, Reply(outcome="done", message=message)
