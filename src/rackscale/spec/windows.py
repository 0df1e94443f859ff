"""The documents that keep nodes from one time to another: Booking, Maintenance.

In a rehearsal, times count from its start (`02:00`, `1d9h`). On a live site they are dates with their zone
(`2026-12-01T02:00Z`), or count from when the document is applied (`in 2h`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from rackscale.spec.fields import Fault, Name, Strict, Text
from rackscale.spec.shapes import Asking
from rackscale.spec.times import Stated, When, span
from rackscale.workload import Booking, Job, Maintenance, Shape

RESERVED = ("expired", "lemon")
"""What closures are called that are no maintenance."""

_RULE = "In a rehearsal: since its start; on a live site: a date with its zone, or `in 2h` from when it is applied."


class BookingDocument(Asking):
    """An advance reservation: nodes that are kept for the jobs that name this booking."""

    kind: Literal["Booking"]
    start: Stated = Field(alias="from", description=f"When it begins. {_RULE}")
    until: Stated = Field(description="When it ends, stated likewise.")

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        yield from _order(self.start, self.until)
        if self.near.apart is not None:
            yield Fault(("near", "apart"), "a booking is one gang's nodes", "did you mean spread?")

    def value(self, now_s: float = 0.0) -> Booking:
        """The booking if it takes effect at `now_s`."""
        return Booking(
            name=self.name,
            shape=self.shape(),
            start_s=self.start.at_s(now_s),
            end_s=self.until.at_s(now_s),
            queue=self.queue,
            priority=self.priority,
            system=self.system,
            cluster=self.cluster,
            nearness=self.near.value(),
        )


class MaintenanceDocument(Strict):
    """Nodes that are out of use for a time. What would still run by then is not started there."""

    kind: Literal["Maintenance"]
    name: Name
    domain: Text = Field(
        description="The NVLink domain, by its name or the end of it.", examples=["use1-a/us-007"]
    )
    nodes: (
        Annotated[list[Annotated[int, Field(ge=0, le=999)]], Field(min_length=1, max_length=1000)] | None
    ) = Field(default=None, description="Numbers of its nodes, from 0. Left out: the whole domain.")
    start: Stated = Field(alias="from", description=f"When it begins. {_RULE}")
    until: Stated = Field(description="When the nodes are back, stated likewise.")

    @classmethod
    def conflicts(cls, data: Mapping[str, object]) -> Iterator[Fault]:
        nodes = data.get("nodes")
        if isinstance(nodes, list) and len(set(map(str, nodes))) < len(nodes):
            yield Fault(("nodes",), "a node is listed twice")

    def faults(self) -> Iterator[Fault]:
        if self.name in RESERVED:
            yield Fault(("name",), "the scheduler calls other closures so", "choose another name")
        yield from _order(self.start, self.until)

    def value(self, now_s: float = 0.0) -> Maintenance:
        """The maintenance if it takes effect at `now_s`."""
        return Maintenance(
            name=self.name,
            domain=self.domain,
            nodes=None if self.nodes is None else tuple(sorted(self.nodes)),
            start_s=self.start.at_s(now_s),
            end_s=self.until.at_s(now_s),
        )


def _order(start: When, until: When) -> Iterator[Fault]:
    """Times that count since different moments are compared when the document takes effect."""
    if {start.basis, until.basis} == {"rehearsal", "date"}:
        yield Fault(("until",), "must be stated like from", "both as dates, or both as times of a rehearsal")
    elif start.basis == until.basis and until.s <= start.s:
        yield Fault(("until",), "must be after from")


def never_inside(job: Job, booking: Booking, lasts_s: float) -> str | None:
    """Why the job can never start on the booking's nodes, of which `lasts_s` seconds are to come; None: it can.

    A job of which nobody knows how long it takes always can.
    """
    kept = booking.shape
    fitting = [offer for offer in job.choices if _fits_in(offer.shape, kept)]
    if not fitting:
        return (
            f"the booking {booking.name!r} keeps only {kept.segments} x {kept.nodes_held_per_segment} nodes"
        )
    if job.duration_s is None:
        return None
    takes_s = job.durability.restart_s + job.duration_s / max(offer.throughput for offer in fitting)
    if takes_s <= lasts_s:
        return None
    left = f"{span(lasts_s)} of the booking {booking.name!r} are to come"
    return f"can never start: it takes {span(takes_s)} with its start, and {left}"


def _fits_in(shape: Shape, kept: Shape) -> bool:
    return shape.nodes_held_per_segment <= kept.nodes_held_per_segment and shape.nodes_held <= kept.nodes_held
