"""The ledger: at any instant every delivered GPU is in exactly one state. A fold over events, exact in integers.

    productive      does work that a checkpoint keeps, that finished, or that may still be kept; a service that answers
    checkpointing   leaves on request and writes the checkpoint that keeps its work
    lost            did work that no checkpoint kept when the attempt died: it is redone
    starting        held, and not working yet
    leaving         told to leave or broken, without a checkpoint in the end
    claimed         free, and held for a gang while victims leave the rest
    idle            up and free
    spare           up, free, and kept for repairs
    drained         taken out of use by people
    unhealthy       failed, whoever holds it

What is lost is known only afterwards: when an attempt dies, its work since the last checkpoint moves from productive
to lost. Every second is charged to a cause (the decision or event behind it) and to the job's queue and priority.
Time is integer microseconds, so that the states sum to delivered GPUs x time exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from msgspec import Struct

from rackscale import events as ev
from rackscale.capacity.attempts import Account, Attempt, Phase
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import mask_of
from rackscale.fleet.state import FleetState
from rackscale.workload import Job

STATES = (
    "productive", "checkpointing", "lost", "starting", "leaving",
    "claimed", "idle", "spare", "drained", "unhealthy",
)  # fmt: skip
FREE = STATES[5:]
"""States of nodes that no gang uses."""
FIRST = "first-start"
"""Cause of starting where nothing went before."""
CAUSES = {
    "preempted-for": "preempted",
    "drain": "drained",
    "no-replacement": "node-failure",
    "cancelled": "cancelled",
}
"""Reasons for leaving, as causes."""
US_PER_H = 3_600_000_000
ADOPTED = ev.Reason(code="fits")


class Row(Struct, frozen=True, kw_only=True):
    """GPU-time in one state, of one cluster and system, for one cause and account."""

    cluster: str
    system: str
    state: str
    cause: str
    queue: str
    priority: str
    kind: str
    job: str
    gpu_us: int
    usd: Decimal | None
    """None where the domains have no price."""

    @property
    def gpu_h(self) -> float:
        return self.gpu_us / US_PER_H


class Lot:
    """Domains of one cluster, system and price, with the GPUs that no gang uses, by state.

    The time that `n` GPUs spend in a state is summed without looking at the clock: who enters at `t` owes n x t, who
    leaves gets it back, and what a state has spent at `T` is its GPUs x T less what they owe.
    """

    __slots__ = ("_delivered_owe", "_owe", "cluster", "free", "gpus", "system", "usd_per_gpu_hour")

    def __init__(self, spec: ev.DomainSpec) -> None:
        self.cluster, self.system = spec.cluster, spec.system
        price = spec.usd_per_gpu_hour
        self.usd_per_gpu_hour = None if price is None else Decimal(str(price))
        self.gpus = self._delivered_owe = 0
        self.free = [0] * len(FREE)
        """GPUs now, by state of `FREE`."""
        self._owe = [0] * len(FREE)

    def deliver(self, gpus: int, now_us: int) -> None:
        self.gpus += gpus
        self._delivered_owe += gpus * now_us

    def change(self, state: int, gpus: int, now_us: int) -> None:
        """More (or fewer) GPUs are in the state of this number from now on."""
        self.free[state] += gpus
        self._owe[state] += gpus * now_us

    def delivered_us(self, now_us: int) -> int:
        """GPU-microseconds delivered until now."""
        return self.gpus * now_us - self._delivered_owe

    def spent_us(self, state: int, now_us: int) -> int:
        """GPU-microseconds in the state of this number until now."""
        return self.free[state] * now_us - self._owe[state]


class Domain:
    """One NVLink domain's nodes, as masks."""

    __slots__ = (
        "_counts", "claimed", "drained", "failed", "full", "gpus_per_node", "held", "lot", "spares", "tenants"
    )  # fmt: skip

    def __init__(self, spec: ev.DomainSpec, lot: int) -> None:
        self.full = (1 << spec.nodes) - 1
        self.failed = self.drained = self.held = self.claimed = 0
        self.spares, self.gpus_per_node, self.lot = spec.spares, spec.gpus_per_node, lot
        self.tenants: dict[str, None] = {}
        self._counts = (0,) * len(FREE)

    def recount(self, lot: Lot, now_us: int) -> None:
        """Take the masks as they are into the lot, from now on."""
        rest = self.full & ~(self.failed | self.held)
        usable = rest & ~self.drained
        claimed = usable & self.claimed
        free = (usable ^ claimed).bit_count()
        spare = min(free, self.spares)
        counts = (
            claimed.bit_count(),
            free - spare,
            spare,
            (rest ^ usable).bit_count(),
            self.failed.bit_count(),
        )
        for state, (before, after) in enumerate(zip(self._counts, counts, strict=True)):
            if before != after:
                lot.change(state, (after - before) * self.gpus_per_node, now_us)
        self._counts = counts


class Ledger:
    """Listens to events (`ledger(event)`) and answers for any instant not before the last of them.

    `by_job` keeps jobs apart in the rows; without it a ledger's size does not grow with the number of jobs.
    """

    def __init__(self, *, by_job: bool = False) -> None:
        self.now_us = 0
        self.lots: list[Lot] = []
        self._by_job = by_job
        self._lot_of: dict[tuple[str, str, float | None], int] = {}
        self._domains: list[Domain] = []
        self._index: dict[str, int] = {}
        self._payers: dict[str, Account] = {}
        """Gang that has not ended for good -> who is charged for it."""
        self._services: dict[str, tuple[str, ...]] = {}
        """Service -> its gangs; every other job is one gang of its own name."""
        self._attempts: dict[str, Attempt] = {}
        self._claims: dict[str, list[tuple[int, int]]] = {}
        self._why: dict[str, str] = {}
        """Gang that ran before -> the cause of its waiting."""
        self._accounts: dict[tuple[str, str, str, str], Account] = {}
        self._fold: dict[type, Callable[[Any], None]] = {
            ev.Delivered: self._delivered, ev.Submitted: self._submitted, ev.Cancelled: self._cancelled,
            ev.Drained: self._drained, ev.Undrained: self._undrained, ev.NodeFailed: self._node_failed,
            ev.NodeRepaired: self._node_repaired, ev.GangRunning: self._gang_running,
            ev.Checkpointed: self._checkpointed, ev.GangEnded: self._gang_ended, ev.Decided: self._decided,
            ev.Start: self._start, ev.Restart: self._restart, ev.Preempt: self._leave, ev.Stop: self._leave,
            ev.Requeue: self._leave, ev.Claim: self._claim, ev.Unclaim: self._unclaim, ev.Refuse: self._refuse,
        }  # fmt: skip

    def __call__(self, event: ev.Event) -> None:
        """Take one event in. Time never runs backwards: an older event counts as happening now."""
        now_us = microseconds(event.at_s)
        self.now_us = max(self.now_us, now_us)
        fold = self._fold.get(type(event))
        if fold is not None:
            fold(event)

    def adopt(self, state: FleetState, at_s: float) -> None:
        """Begin with a live fleet: what its gangs hold counts from `at_s` on, and earlier work as kept."""
        self(ev.Delivered(at_s=at_s, domains=tuple(state.domains)))
        for domain, failed, drained in zip(self._domains, state.failed, state.drained, strict=True):
            domain.failed, domain.drained = failed, drained
            domain.recount(self.lots[domain.lot], self.now_us)
        for job in state.jobs.values():
            self._submitted(ev.Submitted(at_s=at_s, job=job))
        for gang in state.gangs.values():
            if gang.claim:
                self._claim(ev.Claim(gang=gang.name, binding=gang.claim, reason=ADOPTED))
            if gang.binding:
                self._adopt(gang)

    def _adopt(self, gang: Gang) -> None:
        self._start(ev.Start(gang=gang.name, attempt=gang.attempt, binding=gang.binding, reason=ADOPTED))
        attempt = self._attempts[gang.name]
        if gang.running_s is not None:
            attempt.work(self.now_us, gang.saves_every_s)
        if gang.status in (Status.BROKEN, Status.LEAVING):
            attempt.stop(self.now_us, CAUSES.get(gang.cause, gang.cause))

    # -- answers -----------------------------------------------------------------------------------------------------

    def delivered_gpus(self) -> int:
        return sum(lot.gpus for lot in self.lots)

    def held_gpus(self) -> int:
        """GPUs on healthy nodes that gangs hold now."""
        return sum(lot.gpus - sum(lot.free) for lot in self.lots)

    def delivered_gpu_us(self, at_s: float | None = None) -> int:
        """Delivered GPUs x time until `at_s` (None: until now), which the rows sum to."""
        now_us = self._until_us(at_s)
        return sum(lot.delivered_us(now_us) for lot in self.lots)

    def rows(self, at_s: float | None = None) -> tuple[Row, ...]:
        """All GPU-time until `at_s` (None: until now), in a fixed order. Rows without time are left out."""
        now_us = self._until_us(at_s)
        spent = {account: account.spent.copy() for account in self._accounts.values()}
        for attempt in self._attempts.values():
            attempt.charge(spent[attempt.account], now_us)
        nobody = {
            (at, state, ""): lot.spent_us(number, now_us)
            for at, lot in enumerate(self.lots)
            for number, state in enumerate(FREE)
        }
        rows = [
            self._row(*key, account, gpu_us)
            for account, cells in [*spent.items(), (Account(), nobody)]
            for key, gpu_us in cells.items()
            if gpu_us
        ]
        return tuple(sorted(rows, key=_order))

    def _row(self, at: int, state: str, cause: str, account: Account, gpu_us: int) -> Row:
        lot = self.lots[at]
        price = lot.usd_per_gpu_hour
        return Row(
            cluster=lot.cluster, system=lot.system, state=state, cause=cause, queue=account.queue,
            priority=account.priority, kind=account.kind, job=account.job, gpu_us=gpu_us,
            usd=None if price is None else price * gpu_us / US_PER_H,
        )  # fmt: skip

    def _until_us(self, at_s: float | None) -> int:
        if at_s is not None:
            assert microseconds(at_s) >= self.now_us, "the ledger only answers for now and later"
            self.now_us = microseconds(at_s)
        return self.now_us

    # -- people and hardware -----------------------------------------------------------------------------------------

    def _delivered(self, event: ev.Delivered) -> None:
        for spec in event.domains:
            key = (spec.cluster, spec.system, spec.usd_per_gpu_hour)
            at = self._lot_of.setdefault(key, len(self.lots))
            if at == len(self.lots):
                self.lots.append(Lot(spec))
            lot, domain = self.lots[at], Domain(spec, at)
            lot.deliver(spec.nodes * spec.gpus_per_node, self.now_us)
            self._index[spec.name] = len(self._domains)
            self._domains.append(domain)
            domain.recount(lot, self.now_us)

    def _submitted(self, event: ev.Submitted) -> None:
        job = event.job
        gangs = job.gangs()
        for gang in gangs:
            if gang in self._attempts:
                return
        if job.kind == "service":
            self._services[job.name] = gangs
        account = self._account(job)
        for gang in gangs:
            self._payers[gang] = account

    def _gangs(self, job: str) -> tuple[str, ...]:
        return self._services.get(job, (job,))

    def _cancelled(self, event: ev.Cancelled) -> None:
        for gang in self._gangs(event.job):
            if gang not in self._attempts:
                self._forget(gang)

    def _drained(self, event: ev.Drained) -> None:
        domain, mask = self._part(event.domain, event.nodes)
        domain.drained |= mask
        domain.recount(self.lots[domain.lot], self.now_us)

    def _undrained(self, event: ev.Undrained) -> None:
        domain, mask = self._part(event.domain, event.nodes)
        domain.drained &= ~mask
        domain.recount(self.lots[domain.lot], self.now_us)

    def _node_failed(self, event: ev.NodeFailed) -> None:
        domain, mask = self._part(event.domain, event.nodes)
        domain.failed |= mask
        d = self._index[event.domain]
        for gang in domain.tenants:
            attempt = self._attempts[gang]
            if attempt.phase is not Phase.STOPPED and any(at == d and held & mask for at, held in attempt.on):
                attempt.stop(self.now_us, "node-failure")
        self._health(domain)

    def _node_repaired(self, event: ev.NodeRepaired) -> None:
        domain, mask = self._part(event.domain, event.nodes)
        domain.failed &= ~mask
        self._health(domain)

    def _health(self, domain: Domain) -> None:
        for gang in domain.tenants:
            attempt = self._attempts[gang]
            gpus = self._gpus(attempt.on)
            if gpus != attempt.gpus:
                attempt.resize(self.now_us, gpus)
        domain.recount(self.lots[domain.lot], self.now_us)

    def _part(self, name: str, nodes: tuple[int, ...] | None) -> tuple[Domain, int]:
        domain = self._domains[self._index[name]]
        return domain, domain.full if nodes is None else mask_of(nodes)

    # -- gangs -------------------------------------------------------------------------------------------------------

    def _gang_running(self, event: ev.GangRunning) -> None:
        attempt = self._attempts.get(event.gang)
        if attempt is not None and attempt.number == event.attempt and attempt.phase is Phase.STARTING:
            attempt.work(self.now_us, event.saves_every_s)

    def _checkpointed(self, event: ev.Checkpointed) -> None:
        attempt = self._attempts.get(event.gang)
        if attempt is not None and attempt.number == event.attempt:
            attempt.save(self.now_us)

    def _gang_ended(self, event: ev.GangEnded) -> None:
        attempt = self._attempts.get(event.gang)
        if attempt is None or attempt.number != event.attempt:
            return
        self._close(event.gang, attempt, event)
        cause = attempt.stop_cause or "program-failed"
        if cause == "cancelled" or (event.outcome == "finished" and attempt.account.kind != "service"):
            self._forget(event.gang)
        else:
            self._why[event.gang] = cause

    def _decided(self, event: ev.Decided) -> None:
        for action in event.plan.actions:
            self._fold[type(action)](action)

    def _start(self, action: ev.Start | ev.Restart) -> None:
        gang = action.gang
        self._drop_claim(gang)
        on = self._masks(action.binding)
        attempt = self._attempts[gang] = Attempt(
            self.now_us, number=action.attempt, cause=self._why.pop(gang, FIRST), on=on, gpus=self._gpus(on),
            account=self._payers[gang],
        )  # fmt: skip
        for d, mask in attempt.on:
            domain = self._domains[d]
            domain.held |= mask
            domain.tenants[gang] = None
            domain.recount(self.lots[domain.lot], self.now_us)

    def _restart(self, action: ev.Restart) -> None:
        self._close(action.gang, self._attempts[action.gang], None)
        self._why[action.gang] = "node-failure"
        self._start(action)

    def _leave(self, action: ev.Preempt | ev.Stop | ev.Requeue) -> None:
        self._attempts[action.gang].stop(self.now_us, CAUSES[action.reason.code])

    def _claim(self, action: ev.Claim) -> None:
        claim = self._claims[action.gang] = self._masks(action.binding)
        for d, mask in claim:
            domain = self._domains[d]
            domain.claimed |= mask
            domain.recount(self.lots[domain.lot], self.now_us)

    def _unclaim(self, action: ev.Unclaim) -> None:
        self._drop_claim(action.gang)

    def _refuse(self, action: ev.Refuse) -> None:
        for gang in self._gangs(action.job):
            self._forget(gang)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _account(self, job: Job) -> Account:
        key = (job.queue, job.priority, job.kind, job.name if self._by_job else "")
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(queue=key[0], priority=key[1], kind=key[2], job=key[3])
        return account

    def _masks(self, binding: ev.Binding) -> list[tuple[int, int]]:
        return [(self._index[segment.domain], mask_of(segment.nodes)) for segment in binding]

    def _gpus(self, on: Iterable[tuple[int, int]]) -> dict[int, int]:
        gpus: dict[int, int] = {}
        for d, mask in on:
            domain = self._domains[d]
            healthy = (mask & ~domain.failed).bit_count() * domain.gpus_per_node
            gpus[domain.lot] = gpus.get(domain.lot, 0) + healthy
        return gpus

    def _close(self, gang: str, attempt: Attempt, ended: ev.GangEnded | None) -> None:
        """The attempt is over: charge its time and free its nodes."""
        attempt.charge(attempt.account.spent, self.now_us, ended)
        del self._attempts[gang]
        for d, mask in attempt.on:
            domain = self._domains[d]
            domain.held &= ~mask
            domain.tenants.pop(gang, None)
            domain.recount(self.lots[domain.lot], self.now_us)

    def _drop_claim(self, gang: str) -> None:
        for d, mask in self._claims.pop(gang, ()):
            domain = self._domains[d]
            domain.claimed &= ~mask
            domain.recount(self.lots[domain.lot], self.now_us)

    def _forget(self, gang: str) -> None:
        """The gang has ended for good."""
        self._drop_claim(gang)
        self._why.pop(gang, None)
        self._payers.pop(gang, None)


def microseconds(at_s: float) -> int:
    return round(at_s * 1e6)


def _order(row: Row) -> tuple[object, ...]:
    return (
        row.cluster, row.system, STATES.index(row.state), row.cause, row.queue, row.priority, row.kind, row.job,
        row.usd is None,
    )  # fmt: skip
