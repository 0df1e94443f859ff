"""The fleet's domains as the ledger sees them: what is there, what is out of use, and what is kept for whom."""

from __future__ import annotations

from collections.abc import Iterable

from rackscale import events as ev
from rackscale.capacity.lots import (
    ABSENT,
    EXPIRED,
    LEMON,
    MAINTENANCE,
    Domain,
    Lot,
    LotKey,
    Promises,
    Totals,
    lot_key,
)
from rackscale.events import DomainSpec
from rackscale.fleet.health import spares_worth
from rackscale.fleet.machines import Machines
from rackscale.fleet.occupancy import mask_of
from rackscale.workload import Policy

Masks = list[tuple[int, int]]
"""(domain, nodes as a mask)."""


class Estate:
    """Domains by index, in lots. Whoever changes the masks of a domain calls `recount`."""

    def __init__(self) -> None:
        self.now_us = 0
        self.lots: list[Lot] = []
        self.domains: list[Domain] = []
        self.index: dict[str, int] = {}
        self.totals = Totals()
        self.promises = Promises()
        self._policy = Policy()
        self._adaptive = False
        """Whether spares depend on who is there."""
        self._lot_of: dict[LotKey, int] = {}
        self._bookings: dict[str, Masks] = {}

    # -- what is there -----------------------------------------------------------------------------------------------

    def announce(self, event: ev.Announced) -> None:
        for spec in event.domains:
            if spec.name not in self.index:
                self._expect(spec)
            if self.domains[self.index[spec.name]].absent:
                self.promises.announce(spec, microseconds(event.ready_s))

    def _expect(self, spec: DomainSpec) -> None:
        """A domain that is known and not there: people may drain it already."""
        self.deliver((spec,))
        domain = self.domains[-1]
        domain.close(ABSENT, "", domain.full)
        self.presence(domain)

    def delivered(self, event: ev.Delivered) -> None:
        self.deliver(spec for spec in event.domains if spec.name not in self.index)
        for spec in event.domains:
            domain = self.domains[self.index[spec.name]]
            if domain.absent:
                self.promises.keep(spec.name, self.now_us)
                domain.open(ABSENT, "", domain.full)
                self.presence(domain)

    def deliver(self, domains: Iterable[DomainSpec]) -> None:
        for spec in domains:
            key = lot_key(spec)
            at = self._lot_of.setdefault(key, len(self.lots))
            if at == len(self.lots):
                self.lots.append(Lot(spec, self.totals))
            self.index[spec.name] = len(self.domains)
            domain = Domain(spec, at)
            self.domains.append(domain)
            self.totals.domains += 1
            self.lots[at].deliver(domain.gpus, self.now_us)
            self._respare(domain)
            self.recount(domain)

    def adopt(self, machines: Machines) -> None:
        """The domains of a live fleet as they are, on which nothing is held yet."""
        health, known = machines.health, machines.topology.domains
        for d, spec in enumerate(known):
            if health.absent[d]:
                self._expect(spec)
                self.promises.announce(spec, max(self.now_us, microseconds(health.ready_s[d])))
            else:
                self.deliver((spec,))
            domain = self.domains[self.index[spec.name]]
            domain.failed, domain.drained = health.failed[d], health.drained[d]
        for (d, why), mask in health.closures.items():
            domain = self.domains[self.index[known[d].name]]
            domain.close(*((why, "") if why in (EXPIRED, LEMON) else (MAINTENANCE, why)), mask)
        for domain in self.domains:
            self.presence(domain)
        for booking, binding in machines.calendar.holding.items():
            self.book(booking, binding)

    def configure(self, event: ev.Configured) -> None:
        self._policy = event.policy
        self._adaptive = event.policy.spares == "adaptive"
        for domain in self.domains:
            self._respare(domain)
            self.recount(domain)

    # -- what is out of use ------------------------------------------------------------------------------------------

    def close(self, domain: Domain, mask: int, reason: ev.Reason) -> None:
        """Close nodes; `presence` takes in what expired."""
        domain.close(*_closure(reason), mask)
        self.presence(domain)

    def open(self, domain: Domain, mask: int, reason: ev.Reason) -> None:
        domain.open(*_closure(reason), mask)
        self.presence(domain)

    def stay(self, domain: Domain) -> None:
        """The domain has not expired after all."""
        domain.open(EXPIRED, "", domain.full)
        self.presence(domain)

    def undrain(self, domain: Domain, mask: int) -> None:
        """People want these nodes used, also those that were taken for lemons."""
        domain.drained &= ~mask
        domain.open(LEMON, "", mask)
        self.recount(domain)

    def unplan(self, event: ev.Unplanned) -> None:
        """The maintenance is off, or over."""
        for domain in self.domains:
            if (MAINTENANCE, event.maintenance) in domain.closures:
                domain.open(MAINTENANCE, event.maintenance, domain.full)
                self.recount(domain)

    def presence(self, domain: Domain) -> None:
        """Nodes of the domain may have expired, or not after all."""
        gpus = (domain.full & ~domain.gone).bit_count() * domain.gpus_per_node
        if gpus != domain.gpus:
            self.totals.domains += (gpus > 0) - (domain.gpus > 0)
            self.lots[domain.lot].deliver(gpus - domain.gpus, self.now_us)
            domain.gpus = gpus
        self.recount(domain)

    # -- what is kept ------------------------------------------------------------------------------------------------

    def hold(self, on: Iterable[tuple[int, int]], gang: str, gpus: int) -> None:
        """Nodes of a gang that works on so many GPUs, here and elsewhere."""
        for d, mask in on:
            domain = self.domains[d]
            domain.held |= mask
            domain.tenants[gang] = gpus
            if self._adaptive:
                self._respare(domain)
            domain.recount_held(self.lots[domain.lot], self.now_us)

    def release(self, on: Iterable[tuple[int, int]], gang: str) -> None:
        for d, mask in on:
            domain = self.domains[d]
            domain.held &= ~mask
            domain.tenants.pop(gang, None)
            if self._adaptive:
                self._respare(domain)
            domain.recount_held(self.lots[domain.lot], self.now_us)

    def claim(self, claim: Masks) -> None:
        for d, mask in claim:
            domain = self.domains[d]
            domain.claimed |= mask
            self.recount(domain)

    def unclaim(self, claim: Iterable[tuple[int, int]]) -> None:
        for d, mask in claim:
            domain = self.domains[d]
            domain.claimed &= ~mask
            self.recount(domain)

    def book(self, booking: str, binding: ev.Binding) -> None:
        self.unbook(booking)
        booked = self._bookings[booking] = self.masks(binding)
        for d, mask in booked:
            domain = self.domains[d]
            domain.booked |= mask
            self.recount(domain)

    def unbook(self, booking: str) -> None:
        for d, mask in self._bookings.pop(booking, ()):
            domain = self.domains[d]
            domain.booked &= ~mask
            self.recount(domain)

    # -- parts -------------------------------------------------------------------------------------------------------

    def recount(self, domain: Domain) -> None:
        """The domain as it is counts from now on."""
        domain.recount(self.lots[domain.lot], self.now_us)

    def _respare(self, domain: Domain) -> None:
        """How many free nodes the policy keeps there for repairs: the larger the gang, the sooner they are worth it."""
        largest = max(domain.tenants.values(), default=0)
        domain.spares = domain.spec.spares if spares_worth(self._policy, domain.spec, largest) else 0

    def part(self, name: str, nodes: tuple[int, ...] | None) -> tuple[Domain, int]:
        domain = self.domains[self.index[name]]
        return domain, domain.full if nodes is None else mask_of(nodes)

    def masks(self, binding: ev.Binding) -> Masks:
        return [(self.index[segment.domain], mask_of(segment.held)) for segment in binding]

    def gpus(self, on: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Lot -> GPUs on these nodes that are there and have not failed."""
        gpus: dict[int, int] = {}
        for d, mask in on:
            domain = self.domains[d]
            healthy = (mask & ~(domain.failed | domain.gone)).bit_count() * domain.gpus_per_node
            gpus[domain.lot] = gpus.get(domain.lot, 0) + healthy
        return gpus


def microseconds(at_s: float) -> int:
    return round(at_s * 1e6)


def _closure(reason: ev.Reason) -> tuple[str, str]:
    """(code, window) under which nodes are closed."""
    code = reason.code if reason.code in (EXPIRED, LEMON) else MAINTENANCE
    return code, reason.window or "" if code == MAINTENANCE else ""
