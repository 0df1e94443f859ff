"""How good the scheduling was: what is allocated, fragmented, waited for, spread, lost and recovered.

The metrics take their names from Kant (arXiv 2510.01256), which speaks of nodes; the definitions are ours, for NVLink
domains, and figures are not comparable with the paper's:

    GAR     allocation rate: GPUs that gangs hold, of the GPUs in service (neither failed nor out of use)
    SOR     scheduling occupancy rate: GPU-time that gangs held, of the GPU-time delivered
    GFR     fragmentation ratio: NVLink domains that are in use and have idle nodes left beyond their spares, of all
            domains delivered. Those nodes are the ledger's `stranded` ones: no gang of a whole domain fits there
    JWTD    distribution of waiting times from submission to first start, by priority and size
    JTTED   what placement does to training time, as far as placement shows it: NVLink domains and fabric units
            that a gang spans, as a multiple of the least that its shape allows. No step time is estimated

Goodput is the share of held GPU-time that did productive work; badput is the rest, by what it went into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

from rackscale import events as ev
from rackscale.capacity.curve import Curve
from rackscale.capacity.ledger import CAUSES, US_PER_H, Ledger, Row
from rackscale.capacity.lots import DRAINED, LEMONS, MAINTAINED, UNHEALTHY
from rackscale.capacity.placement import Placements, Span
from rackscale.capacity.waits import Queue, Spread, Wait, spread

BADPUT = {
    "lost": "WASTED_PROGRESS_FROM_DISRUPTION",
    "checkpointing": "UNPRODUCTIVE_CHECKPOINT_SAVE_TIME",
    "starting": "PROGRAM_STARTUP",
    "leaving": "OTHER",
    "spare": "OTHER",
}
"""State -> Google's name (ml-goodput-measurement, BadputType). Starting is also their TPU_INITIALIZATION,
TRAINING_PREP and UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME: no event tells them apart."""


class Share(Struct, frozen=True, kw_only=True):
    """A share over time. None: it was defined at no time (nothing was delivered, or nothing in service)."""

    mean: float | None
    """Weighted by time."""
    every_s: float
    curve: tuple[float | None, ...]
    """Its mean in each stretch of `every_s`."""


class Badput(Struct, frozen=True, kw_only=True):
    """Held GPU-time that did no work, or work that was lost."""

    name: str
    state: str
    cause: str
    gpu_h: float
    of_held: float
    of_capacity: float


class Recovery(Struct, frozen=True, kw_only=True):
    """From the end of productive work (or of a start that came to nothing) until the gang worked again."""

    cause: str
    times: Spread


class Quality(Struct, frozen=True, kw_only=True):
    """Of the time from `since_s` until `until_s`."""

    since_s: float
    until_s: float
    gpus: int
    """Delivered at the end."""
    delivered_gpu_h: float
    undelivered_gpu_h: float
    """Promised and not there; no part of what was delivered."""
    gar: Share
    sor: float | None
    gfr: Share
    stranded_of_free: float | None
    """GPU-time of stranded nodes, of all that was up, free and no spare."""
    waits: tuple[Wait, ...]
    placements: tuple[Span, ...]
    goodput: float | None
    """Productive, of held GPU-time."""
    goodput_of_capacity: float | None
    badput: tuple[Badput, ...]
    """The largest first."""
    lost_of_capacity: float | None
    departures: dict[str, dict[str, int]]
    """preempted, moved, stopped, requeued, restarted -> gangs by cause."""
    recoveries: tuple[Recovery, ...]


VERBS: dict[type, str] = {
    ev.Preempt: "preempted", ev.Move: "moved", ev.Stop: "stopped", ev.Requeue: "requeued", ev.Restart: "restarted",
}  # fmt: skip


class Meter:
    """A listener that measures. It hands every event on to its ledger, which nobody else may do."""

    def __init__(self, ledger: Ledger, *, start_s: float | None = None) -> None:
        self.ledger = ledger
        self._start_s = start_s
        """None: the first event's time."""
        self._now_s = start_s or 0.0
        self._totals = ledger.estate.totals
        self._seen = -1
        """Changes of the totals that the curves know of."""
        self._gar, self._gfr = Curve(self._now_s), Curve(self._now_s)
        self._queue, self._placements = Queue(), Placements(ledger.estate)
        self._departures: Counter[tuple[str, str]] = Counter()
        self._look: dict[type, Callable[[Any], None]] = {
            ev.Submitted: self._submitted, ev.Cancelled: self._cancelled, ev.GangEnded: self._gang_ended,
            ev.Decided: self._decided,
        }  # fmt: skip

    def __call__(self, event: ev.Event) -> None:
        if self._start_s is None:
            self.begin(event.at_s)
        self._now_s = max(self._now_s, event.at_s)
        self.ledger(event)
        look = self._look.get(type(event))
        if look is not None:
            look(event)
        if self._totals.changes != self._seen:
            self._sample()

    def begin(self, at_s: float) -> None:
        """Measure from `at_s` on, which is not before the last event. The ledger begins anew, too."""
        if self._start_s is not None:
            self.ledger.begin(at_s)
        self._start_s = self._now_s = at_s
        self._gar, self._gfr = Curve(at_s, self._gar.value), Curve(at_s, self._gfr.value)
        self._queue.begin()
        self._placements.begin()
        self._departures.clear()

    def _sample(self) -> None:
        """The shares may have changed."""
        totals, now_s = self._totals, self._now_s
        free = totals.free
        in_service = totals.gpus - (free[DRAINED] + free[MAINTAINED] + free[LEMONS] + free[UNHEALTHY])
        self._gar.step((totals.gpus - totals.unheld) / in_service if in_service else None, now_s)
        self._gfr.step(totals.fragmented / totals.domains if totals.domains else None, now_s)
        self._seen = totals.changes

    # -- events ------------------------------------------------------------------------------------------------------

    def _submitted(self, event: ev.Submitted) -> None:
        self._queue.submitted(event.job, self._now_s)
        self._placements.submitted(event.job)

    def _cancelled(self, event: ev.Cancelled) -> None:
        self._queue.left(event.job)

    def _gang_ended(self, event: ev.GangEnded) -> None:
        if event.outcome == "finished":
            self._placements.forget(event.gang)

    def _decided(self, event: ev.Decided) -> None:
        for action in event.plan.actions:
            kind = type(action)
            verb = VERBS.get(kind)
            if verb is not None:
                code = action.reason.code
                self._departures[verb, CAUSES.get(code, code) if kind is not ev.Restart else code] += 1
            if isinstance(action, ev.Start | ev.Restart):
                self._queue.started(action.gang, self._now_s)
                self._placements.placed(action.gang, action.binding)
            elif isinstance(action, ev.Refuse):
                self._queue.left(action.job)

    # -- the answer --------------------------------------------------------------------------------------------------

    def answer(self, until_s: float) -> Quality:
        """All metrics until `until_s`, which is not before the last event."""
        ledger = self.ledger
        self._gar.until(until_s)
        self._gfr.until(until_s)
        self._now_s = until_s
        rows = ledger.rows(until_s)
        delivered_us = ledger.delivered_gpu_us()
        by_state: Counter[str] = Counter()
        held_us = 0
        for row in rows:
            by_state[row.state] += row.gpu_us
            if row.kind:  # somebody's job
                held_us += row.gpu_us
        productive_us, lost_us = by_state["productive"], by_state["lost"]
        return Quality(
            since_s=self._start_s or 0.0, until_s=until_s, gpus=ledger.delivered_gpus(),
            delivered_gpu_h=delivered_us / US_PER_H,
            undelivered_gpu_h=sum(row.gpu_us for row in ledger.undelivered()) / US_PER_H,
            gar=_share(self._gar), sor=_ratio(held_us, delivered_us), gfr=_share(self._gfr),
            stranded_of_free=_ratio(by_state["stranded"], by_state["stranded"] + by_state["idle"]),
            waits=self._queue.waits(until_s), placements=self._placements.spans(),
            goodput=_ratio(productive_us, held_us), goodput_of_capacity=_ratio(productive_us, delivered_us),
            badput=_badput(rows, held_us, delivered_us), lost_of_capacity=_ratio(lost_us, delivered_us),
            departures=self._departed(), recoveries=self._recoveries(),
        )  # fmt: skip

    def _departed(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for (verb, cause), count in sorted(self._departures.items()):
            found.setdefault(verb, {})[cause] = count
        return found

    def _recoveries(self) -> tuple[Recovery, ...]:
        done, still = self.ledger.recoveries, self.ledger.recovering()
        return tuple(
            Recovery(cause=cause, times=spread(done.get(cause, ()), still.get(cause, [])))
            for cause in sorted(done.keys() | still.keys())
        )


def measure(events: Iterable[ev.Event], *, since_s: float | None = None, until_s: float) -> Quality:
    """Of a journal, from its first event (or `since_s`) until `until_s`; what is later is not looked at.

    Raises KeyError for an event about what no event before it tells of.
    """
    meter = Meter(Ledger())
    for event in events:
        if event.at_s > until_s:
            break
        if since_s is not None and event.at_s >= since_s:
            meter.begin(since_s)
            since_s = None
        meter(event)
    if since_s is not None:
        meter.begin(since_s)
    return meter.answer(until_s)


def _share(curve: Curve) -> Share:
    return Share(mean=curve.mean(), every_s=curve.width_s, curve=curve.points())


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _badput(rows: Iterable[Row], held_us: int, delivered_us: int) -> tuple[Badput, ...]:
    spent: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.kind and row.state in BADPUT:
            spent[row.state, row.cause] += row.gpu_us
    return tuple(
        Badput(
            name=BADPUT[state], state=state, cause=cause, gpu_h=us / US_PER_H, of_held=us / held_us,
            of_capacity=us / delivered_us,
        )
        for (state, cause), us in sorted(spent.items(), key=lambda item: (-item[1], item[0]))
    )  # fmt: skip
