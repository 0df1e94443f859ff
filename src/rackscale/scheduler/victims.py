"""The words of preemption: who wants what, who would give it, and what was found."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from rackscale.events import Binding
from rackscale.fleet.gangs import Gang
from rackscale.scheduler.elastic import Shrunk
from rackscale.scheduler.price import Taker
from rackscale.workload import Job, Offer


class Victim(Struct, frozen=True, gc=False):
    """A gang that has to give nodes: all of them, or those that it goes on without."""

    name: str
    price: float
    """GPU-seconds."""
    priority: int
    age_s: float
    gives: int
    """Nodes that it frees in the domain looked at."""
    shrunk: Shrunk | None = None


class Guest(Struct, gc=False):
    """A gang in one domain, as those who seek victims see it."""

    gang: Gang
    name: str
    priority: int
    queue: str
    mask: int
    """The nodes that it holds in the domain."""
    may: bool | None = None
    """Whether somebody may interrupt it now, whoever that is; None: not asked yet."""
    whole: Victim | None = None
    """As the victim that it was last taken for, evicted whole."""


class Clearing(NamedTuple):
    """Nodes to claim and the gangs that must leave them."""

    binding: Binding
    victims: tuple[str, ...]
    price: float
    """GPU-seconds."""
    shrunk: dict[str, Shrunk]
    """Those of the victims that go on with fewer nodes."""


class Ask(NamedTuple):
    """What is wanted: a shape on some system, for somebody, in domains that may be used."""

    job: Job
    offer: Offer
    taker: Taker
    closed: int = 0
    """Domains not to be touched: others were promised them, or they go out of use."""
