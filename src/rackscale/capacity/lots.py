"""Delivered GPUs that no gang uses, by state; and GPUs that were promised and are not there."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from rackscale.events import DomainSpec

SLOTS = (
    ("claimed", ""), ("booked", ""), ("idle", ""), ("stranded", ""), ("spare", ""),
    ("drained", ""), ("drained", "maintenance"), ("drained", "lemon"), ("unhealthy", ""),
)  # fmt: skip
"""(state, cause) of nodes that no gang uses."""
IDLE, STRANDED, SPARE, DRAINED, MAINTAINED, LEMONS, UNHEALTHY = range(2, 9)
EXPIRED, LEMON, MAINTENANCE, ABSENT = "expired", "lemon", "maintenance", "absent"

LotKey = tuple[str, str, float | None]


def lot_key(spec: DomainSpec) -> LotKey:
    return (spec.cluster, spec.system, spec.usd_per_gpu_hour)


class Totals:
    """Of all lots, now."""

    __slots__ = ("changes", "domains", "fragmented", "free", "gpus", "unheld")

    def __init__(self) -> None:
        self.changes = 0
        """Grows with every change."""
        self.gpus = 0
        """Delivered."""
        self.free = [0] * len(SLOTS)
        """GPUs, by slot."""
        self.unheld = 0
        """GPUs in all slots."""
        self.domains = 0
        """Domains with a delivered node."""
        self.fragmented = 0
        """Domains with a stranded node."""


class Lot:
    """Domains of one cluster, system and price, with the GPUs that no gang uses, by slot.

    The time that `n` GPUs spend in a slot is summed without looking at the clock: who enters at `t` owes n x t, who
    leaves gets it back, and what a slot has spent at `T` is its GPUs x T less what they owe.
    """

    __slots__ = ("_delivered_owe", "_owe", "cluster", "free", "gpus", "system", "totals", "usd_per_gpu_hour")

    def __init__(self, spec: DomainSpec, totals: Totals) -> None:
        self.cluster, self.system = spec.cluster, spec.system
        self.usd_per_gpu_hour = price(spec)
        self.totals = totals
        self.gpus = self._delivered_owe = 0
        self.free = [0] * len(SLOTS)
        """GPUs now, by slot."""
        self._owe = [0] * len(SLOTS)

    def deliver(self, gpus: int, now_us: int) -> None:
        """More (or, with expiry, fewer) GPUs are there from now on."""
        self.gpus += gpus
        self.totals.gpus += gpus
        self.totals.changes += 1
        self._delivered_owe += gpus * now_us

    def change(self, slot: int, gpus: int, now_us: int) -> None:
        """More (or fewer) GPUs are in this slot from now on."""
        totals = self.totals
        self.free[slot] += gpus
        totals.free[slot] += gpus
        totals.unheld += gpus
        totals.changes += 1
        self._owe[slot] += gpus * now_us

    def begin(self, now_us: int) -> None:
        """Time counts from now on."""
        self._delivered_owe = self.gpus * now_us
        self._owe = [gpus * now_us for gpus in self.free]

    def delivered_us(self, now_us: int) -> int:
        """GPU-microseconds delivered until now."""
        return self.gpus * now_us - self._delivered_owe

    def spent_us(self, slot: int, now_us: int) -> int:
        """GPU-microseconds in this slot until now."""
        return self.free[slot] * now_us - self._owe[slot]


class Domain:
    """One NVLink domain's nodes, as masks. Masks change from outside, then `recount` takes them in."""

    __slots__ = (
        "_counts", "_plain", "booked", "claimed", "closures", "drained", "failed", "full", "gone", "gpus",
        "gpus_per_node", "held", "lemons", "lot", "maintained", "spares", "spec", "tenants",
    )  # fmt: skip

    def __init__(self, spec: DomainSpec, lot: int) -> None:
        self.spec, self.lot, self.gpus_per_node = spec, lot, spec.gpus_per_node
        self.full = (1 << spec.nodes) - 1
        self.gpus = spec.nodes * spec.gpus_per_node
        """That are delivered and have not expired."""
        self.failed = self.drained = self.held = self.claimed = self.booked = 0
        self.gone = self.maintained = self.lemons = 0
        self.spares = spec.spares
        """Nodes kept for repairs, by the policy in force."""
        self.closures: dict[tuple[str, str], int] = {}
        """(reason code, name of the window) -> mask that it closes."""
        self.tenants: dict[str, int] = {}
        """Gang -> GPUs that it works on, in all domains."""
        self._counts = [0] * len(SLOTS)
        self._plain = True
        """Whether every node is held, or free and nothing else."""

    @property
    def absent(self) -> bool:
        """Whether it is announced, and not delivered."""
        return bool(self.closures.get((ABSENT, "")))

    def close(self, code: str, window: str, mask: int) -> None:
        self.closures[code, window] = self.closures.get((code, window), 0) | mask
        self._closed()

    def open(self, code: str, window: str, mask: int) -> None:
        self.closures[code, window] = self.closures.get((code, window), 0) & ~mask
        self._closed()

    def _closed(self) -> None:
        self.gone = self.maintained = self.lemons = 0
        for (code, _), mask in self.closures.items():
            if code in (EXPIRED, ABSENT):
                self.gone |= mask
            elif code == LEMON:
                self.lemons |= mask
            else:
                self.maintained |= mask

    def recount(self, lot: Lot, now_us: int) -> None:
        """Take the masks as they are into the lot, from now on."""
        marks = (
            self.failed
            | self.drained
            | self.claimed
            | self.booked
            | self.gone
            | self.maintained
            | self.lemons
        )
        self._plain = not marks
        if not marks:
            self.recount_held(lot, now_us)
        for slot, after in enumerate(self._marked() if marks else (0, 0, *self._counts[2:5], 0, 0, 0, 0)):
            self._set(slot, after, lot, now_us)

    def recount_held(self, lot: Lot, now_us: int) -> None:
        """The same, where nothing but `held` has changed."""
        if not self._plain:
            self.recount(lot, now_us)
            return
        counts = self._counts
        free = (self.full ^ self.held).bit_count()
        spare = min(free, self.spares)
        idle = stranded = 0
        if self.held:
            stranded = free - spare
        else:
            idle = free - spare
        if counts[IDLE] != idle:
            self._set(IDLE, idle, lot, now_us)
        if counts[STRANDED] != stranded:
            self._set(STRANDED, stranded, lot, now_us)
        if counts[SPARE] != spare:
            self._set(SPARE, spare, lot, now_us)

    def _set(self, slot: int, nodes: int, lot: Lot, now_us: int) -> None:
        before = self._counts[slot]
        if before == nodes:
            return
        self._counts[slot] = nodes
        lot.change(slot, (nodes - before) * self.gpus_per_node, now_us)
        if slot == STRANDED and not (before and nodes):
            lot.totals.fragmented += 1 if nodes else -1

    def _marked(self) -> tuple[int, ...]:
        """Nodes by slot. What no gang uses and nobody keeps is stranded where anything of the domain is in use."""
        there = self.full & ~self.gone
        rest = there & ~(self.failed | self.held)
        usable = rest & ~self.drained
        drained, rest = rest ^ usable, usable
        usable = rest & ~self.maintained
        maintained, rest = rest ^ usable, usable
        usable = rest & ~self.lemons
        lemons = rest ^ usable
        claimed = usable & self.claimed
        booked = usable & self.booked & ~claimed
        free = (usable ^ (claimed | booked)).bit_count()
        spare = min(free, self.spares)
        idle, stranded = free - spare, 0
        if there & (self.held | self.claimed | self.booked):
            idle, stranded = 0, idle
        return (
            claimed.bit_count(), booked.bit_count(), idle, stranded, spare, drained.bit_count(),
            maintained.bit_count(), lemons.bit_count(), (there & self.failed).bit_count(),
        )  # fmt: skip


class Promises:
    """Capacity that was announced: from the time that was promised first until it is there, it is missing."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[DomainSpec, int]] = {}
        self._missed: dict[LotKey, int] = {}
        """GPU-microseconds of what has come."""

    def announce(self, spec: DomainSpec, ready_us: int) -> None:
        """A later announcement of the same domain does not forgive the slip."""
        self._open.setdefault(spec.name, (spec, ready_us))

    def keep(self, name: str, now_us: int) -> None:
        """The domain is there, if it was announced."""
        promise = self._open.pop(name, None)
        if promise is not None:
            key = lot_key(promise[0])
            self._missed[key] = self._missed.get(key, 0) + _missing(promise, now_us)

    def begin(self, now_us: int) -> None:
        """Time counts from now on."""
        self._missed.clear()
        self._open = {name: (spec, max(ready_us, now_us)) for name, (spec, ready_us) in self._open.items()}

    def missed(self, now_us: int) -> Iterator[tuple[LotKey, int]]:
        """GPU-microseconds until now, in order of cluster, system and price."""
        missed = self._missed.copy()
        for promise in self._open.values():
            key = lot_key(promise[0])
            missed[key] = missed.get(key, 0) + _missing(promise, now_us)
        yield from sorted(missed.items(), key=lambda item: (*item[0][:2], item[0][2] or 0.0))


def _missing(promise: tuple[DomainSpec, int], now_us: int) -> int:
    spec, ready_us = promise
    return spec.nodes * spec.gpus_per_node * max(0, now_us - ready_us)


def price(spec: DomainSpec) -> Decimal | None:
    """US dollars per GPU-hour."""
    return None if spec.usd_per_gpu_hour is None else Decimal(str(spec.usd_per_gpu_hour))
