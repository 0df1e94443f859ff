"""The fleet's hardware and who is on it: topology, occupancy, health, what is planned, and when room is expected.

GPU gangs and CPU-only gangs have books of their own over the same nodes, so that neither is in the other's way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from rackscale.events import Binding, DomainSpec
from rackscale.fleet.calendar import Calendar, Window
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.health import EXPIRED, LEMON, Health, spares_worth
from rackscale.fleet.horizon import NOW, Horizon, overrun
from rackscale.fleet.occupancy import Occupancy, mask_of, members
from rackscale.fleet.queues import Charge, segment_charge
from rackscale.fleet.tenants import Tenants
from rackscale.fleet.topology import Topology
from rackscale.workload import Job, Maintenance, Policy

FOR_GOOD = (EXPIRED, LEMON)
"""Closures that nothing but people end."""


class Books(NamedTuple):
    """Who has which nodes, for one kind of gang."""

    occupancy: Occupancy
    tenants: Tenants


class Machines:
    """Domains by index. `gangs` and `jobs` are the state's own: expected ends come from them."""

    def __init__(self, gangs: Mapping[str, Gang], jobs: Mapping[str, Job]) -> None:
        self.topology = Topology()
        self.health = Health()
        self.calendar = Calendar()
        self.gpu = Books(Occupancy(), Tenants())
        self.cpu = Books(Occupancy(), Tenants())
        self.policy = Policy()
        self.horizon = Horizon(self)
        self.now_s = 0.0
        self.given: dict[int, list[tuple[float, int]]] = {}
        """Domain -> (expected end, nodes) of what the decision that is being made gives away."""
        self._gangs, self._jobs = gangs, jobs

    def books(self, job: Job) -> Books:
        return self.cpu if job.cpu_only else self.gpu

    # -- domains -----------------------------------------------------------------------------------------------------

    def add(self, spec: DomainSpec, *, ready_s: float | None = None) -> int:
        """A domain joins, or is expected at `ready_s`. Returns its index."""
        d = self.topology.add(spec)
        self.health.add(spec, ready_s=ready_s)
        self.gpu.occupancy.add(spec.nodes, spec.spares if self.policy.spares == "fixed" else 0)
        self.cpu.occupancy.add(spec.nodes, 0)
        self.gpu.tenants.add_domain()
        self.cpu.tenants.add_domain()
        self.horizon.grow()
        if ready_s is not None:
            self.refresh(d)
        if spec.expires_s is not None:
            self._expire(d, spec.expires_s)
        return d

    def _expire(self, d: int, at_s: float) -> None:
        window = Window(start_s=at_s, end_s=inf, d=d, mask=self.health.full[d], whole=True, name=EXPIRED)
        self.calendar.add(window)

    def extend(self, d: int, expires_s: float | None) -> None:
        """The capacity goes back at another time."""
        spec = self.topology.domains[d]
        self.topology.domains[d] = replace(spec, expires_s=expires_s)
        self.calendar.forget(EXPIRED, d)
        self.health.open(d, self.health.full[d], EXPIRED)
        if expires_s is not None:
            self._expire(d, expires_s)
        self.refresh(d)

    def plan(self, maintenance: Maintenance) -> None:
        d = self.topology.index[maintenance.domain]
        mask = self.mask(d, maintenance.nodes)
        window = Window(
            start_s=maintenance.start_s, end_s=maintenance.end_s, d=d, mask=mask, whole=mask == self.health.full[d],
            name=maintenance.name,
        )  # fmt: skip
        self.calendar.maintenance[maintenance.name] = maintenance
        self.calendar.add(window)

    def unplan(self, name: str) -> None:
        maintenance = self.calendar.maintenance.pop(name, None)
        if maintenance is None:
            return
        d = self.topology.index[maintenance.domain]
        self.calendar.forget(name, d)
        self.health.open(d, self.health.full[d], name)
        self.refresh(d)

    def mask(self, d: int, nodes: tuple[int, ...] | None) -> int:
        return self.health.full[d] if nodes is None else mask_of(nodes)

    def refresh(self, d: int) -> None:
        """The health of domain d changed."""
        up = self.health.up(d)
        self.gpu.occupancy.set_up(d, up)
        self.cpu.occupancy.set_up(d, up)
        self.horizon.touch(d)

    # -- gangs -------------------------------------------------------------------------------------------------------

    def masks(self, binding: Binding) -> tuple[tuple[int, int], ...]:
        """(domain index, mask of all nodes held), by segment."""
        index = self.topology.index
        return tuple([(index[s.domain], mask_of(s.nodes + s.spares)) for s in binding])

    def gpus(self, binding: Binding) -> int:
        """GPUs of the nodes that work."""
        index, domains = self.topology.index, self.topology.domains
        return sum([len(s.nodes) * domains[index[s.domain]].gpus_per_node for s in binding])

    def charge(self, binding: Binding) -> Charge:
        """What the binding costs a queue."""
        topology = self.topology
        gpus = domains = 0
        for segment in binding:
            spec = topology.domains[topology.index[segment.domain]]
            nodes, usable = len(segment.nodes) + len(segment.spares), spec.nodes - spec.spares
            gpus += nodes * spec.gpus_per_node
            domains += segment_charge(nodes, usable)
        return Charge(gpus, domains)

    def hold(self, gang: Gang, job: Job, level: int | None) -> None:
        occupancy, tenants = self.books(job)
        for d, mask in self.masks(gang.binding):
            occupancy.hold(d, mask)
            tenants.add(d, gang.name, mask, level)
            self.horizon.touch(d)
            self.keep_spares(d)

    def release(self, gang: Gang, job: Job) -> None:
        occupancy, tenants = self.books(job)
        for d, mask in self.masks(gang.binding):
            occupancy.release(d, mask)
            tenants.remove(d, gang.name)
            self.horizon.touch(d)
            self.keep_spares(d)
        tenants.forget(gang.name)

    def touch(self, gang: Gang) -> None:
        """The gang is expected to end at another time."""
        index, touch = self.topology.index, self.horizon.touch
        for segment in gang.binding:
            touch(index[segment.domain])

    def keep_spares(self, d: int) -> None:
        """Adaptive spares: kept under gangs that are worth them."""
        spec = self.topology.domains[d]
        if self.policy.spares != "adaptive" or not spec.spares:
            return
        gangs = (self._gangs[name] for name in self.gpu.tenants.on[d])
        worth = any(spares_worth(self.policy, spec, gang.gpus) for gang in gangs)
        self.gpu.occupancy.set_spares(d, spec.spares if worth else 0)

    def configure(self, policy: Policy) -> None:
        self.policy = policy
        for d, spec in enumerate(self.topology.domains):
            self.gpu.occupancy.set_spares(d, spec.spares if policy.spares == "fixed" else 0)
            self.keep_spares(d)
            self.horizon.touch(d)

    # -- horizon.Source ----------------------------------------------------------------------------------------------

    def area(self, d: int) -> int:
        return self.topology.group_of[d].number

    def spare(self, d: int) -> int:
        return self.gpu.occupancy.spares[d]

    def changes(self, d: int) -> Iterator[tuple[float, int]]:
        """(expected time, nodes that come free then) of domain d."""
        occupancy, now_s = self.gpu.occupancy, self.now_s
        yield NOW, occupancy.free[d].bit_count()
        yield from self.given.get(d, ())
        claimed, failed = occupancy.claimed[d], self.health.failed[d]
        usable = self.health.full[d] & ~(self.health.drained[d] | self.health.closed[d] | claimed)
        for name, mask in self.gpu.tenants.on[d].items():
            nodes = (mask & usable & ~failed).bit_count()
            if nodes:
                yield self.expected_end_s(self._gangs[name], now_s), nodes
        held = occupancy.held[d]
        for at_s, mask in self.health.comebacks(d):
            nodes = (mask & ~(claimed | held)).bit_count()
            if nodes:
                yield overrun(at_s, at_s, now_s), nodes
        yield from self._reopened(d)

    def _reopened(self, d: int) -> Iterator[tuple[float, int]]:
        """(when, nodes) of domain d that maintenance or bookings give back."""
        health, calendar, occupancy = self.health, self.calendar, self.gpu.occupancy
        if health.closed[d] and calendar.open:
            ends = [(w.end_s, w.mask) for (_, other), w in calendar.open.items() if other == d]
            ever = sum(
                mask for (other, why), mask in health.closures.items() if other == d and why in FOR_GOOD
            )
            for node in members(health.closed[d] & ~(ever | health.drained[d] | health.absent[d])):
                bit = 1 << node
                if not bit & (occupancy.held[d] | occupancy.claimed[d]):
                    back_s = health.back_s.get((d, node), NOW) if health.failed[d] & bit else NOW
                    end_s = max([back_s, *(end_s for end_s, mask in ends if mask & bit)])
                    yield overrun(end_s, end_s, self.now_s), 1
        for name, binding in calendar.holding.items():
            end_s = calendar.bookings[name].end_s
            for other, mask in self.masks(binding):
                if other == d:
                    up = (mask & health.up(d)).bit_count()
                    yield overrun(end_s, end_s, self.now_s), up

    def expected_end_s(self, gang: Gang, now_s: float) -> float:
        """When the nodes of a gang that holds some are expected to be free."""
        if gang.status is Status.LEAVING:
            grace_s = self._jobs[gang.job].durability.grace_s
            return overrun(gang.since_s + grace_s, gang.since_s, now_s)
        return overrun(gang.end_s, gang.started_s or 0.0, now_s)


def domains_of(bits: Iterable[int]) -> int:
    """The set of these domain indices."""
    found = 0
    for d in bits:
        found |= 1 << d
    return found
