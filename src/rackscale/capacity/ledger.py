"""The ledger: at any instant every delivered GPU is in exactly one state. A fold over events, exact in integers.

    productive      does work that a checkpoint keeps, that finished, or that may still be kept; a service that answers
    checkpointing   leaves on request and writes the checkpoint that keeps its work
    lost            did work that no checkpoint kept when the attempt died: it is redone
    starting        held, and not working yet
    leaving         told to leave or broken, without a checkpoint in the end
    claimed         free, and held for a gang while victims leave the rest
    booked          free, and kept for the jobs of a booking
    idle            up and free, in a domain of which nothing is in use: a gang of a whole domain fits
    stranded        up and free, but other nodes of its domain are in use (held, claimed or booked)
    spare           up, free, and kept for repairs: by the policy, or by a gang that asked for spares of its own
    drained         taken out of use: by people, for maintenance, as a lemon
    unhealthy       failed, whoever holds it

What is lost is known only afterwards: when an attempt dies, its work since the last checkpoint moves from productive
to lost. Every second is charged to a cause (the decision or event behind it) and to the job's queue and priority.
Time is integer microseconds, so that the states sum to delivered GPUs x time exactly.

Announced capacity counts once it is delivered, and no longer once it has expired. What was promised and is not there
stands apart, as `undelivered`. A gang that needs no GPUs holds none.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from msgspec import Struct

from rackscale import events as ev
from rackscale.capacity.attempts import Account, Attempt, Phase
from rackscale.capacity.estate import Estate, Masks, microseconds
from rackscale.capacity.lots import EXPIRED, SLOTS, Domain
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import mask_of
from rackscale.fleet.state import FleetState
from rackscale.workload import Job

STATES = (
    "productive", "checkpointing", "lost", "starting", "leaving",
    "claimed", "booked", "idle", "stranded", "spare", "drained", "unhealthy",
)  # fmt: skip
FREE = STATES[5:]
"""States of nodes that no gang works on."""
FAILED = "program-failed"
"""Cause of stopping where nobody and nothing else made it."""
FIRST = "first-start"
"""Cause of starting where nothing went before."""
CAUSES = {
    "preempted-for": "preempted", "reclaimed-for": "reclaimed", "shrunk-for": "shrunk", "moved-for": "moved",
    "drain": "drained", "no-replacement": "node-failure",
}  # fmt: skip
"""Reasons for leaving, as causes; any other reason is its own cause."""
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


class Ledger:
    """Listens to events (`ledger(event)`) and answers for any instant not before the last of them.

    `by_job` keeps jobs apart in the rows; without it a ledger's size does not grow with the number of jobs.
    """

    def __init__(self, *, by_job: bool = False) -> None:
        self.estate = Estate()
        self._by_job = by_job
        self._payers: dict[str, Account] = {}
        """Gang that has not ended for good -> who is charged for it."""
        self._services: dict[str, tuple[str, ...]] = {}
        """Service -> its gangs; every other job is one gang of its own name."""
        self._attempts: dict[str, Attempt] = {}
        self._claims: dict[str, Masks] = {}
        self._without_gpus: set[str] = set()
        """Gangs that need no GPUs."""
        self._retries: dict[str, int] = {}
        """Gang -> failures of its program that are still retried."""
        self._why: dict[str, tuple[str, int]] = {}
        """Gang that was started before -> (cause of its waiting, when it was interrupted)."""
        self.recoveries: dict[str, array[float]] = {}
        """Cause of an interruption -> seconds until the gang worked again."""
        self._accounts: dict[tuple[str, str, str, str], Account] = {}
        self._fold: dict[type, Callable[[Any], None]] = {
            ev.Announced: self.estate.announce, ev.Delivered: self.estate.delivered, ev.Extended: self._extended,
            ev.Configured: self.estate.configure, ev.Submitted: self._submitted, ev.Cancelled: self._cancelled,
            ev.Drained: self._drained, ev.Undrained: self._undrained, ev.Unplanned: self.estate.unplan,
            ev.Unbooked: self._free, ev.NodeFailed: self._node_failed, ev.NodeRepaired: self._node_repaired,
            ev.GangRunning: self._gang_running, ev.Checkpointed: self._checkpointed,
            ev.GangEnded: self._gang_ended, ev.Decided: self._decided, ev.Start: self._start,
            ev.Restart: self._restart, ev.Preempt: self._leave, ev.Move: self._move, ev.Stop: self._leave,
            ev.Requeue: self._leave, ev.Claim: self._claim, ev.Unclaim: self._unclaim, ev.Refuse: self._refuse,
            ev.Hold: self._hold, ev.Free: self._free, ev.Close: self._closed, ev.Open: self._opened,
        }  # fmt: skip

    def __call__(self, event: ev.Event) -> None:
        """Take one event in. Time never runs backwards: an older event counts as happening now."""
        now_us = round(event.at_s * 1e6)
        self.estate.now_us = max(self.estate.now_us, now_us)
        fold = self._fold.get(type(event))
        if fold is not None:
            fold(event)

    def adopt(self, state: FleetState, at_s: float) -> None:
        """Begin with a live fleet: what its gangs hold counts from `at_s` on, and earlier work as kept."""
        self(ev.Configured(at_s=at_s, policy=state.policy))
        self.estate.adopt(state.machines)
        for job in state.jobs.values():
            self._submitted(ev.Submitted(at_s=at_s, job=job))
        for gang in state.gangs.values():
            self._retries[gang.name] -= gang.restarts
            if gang.binding:
                self._adopt(gang)
            if gang.claim:
                self._claim(ev.Claim(gang=gang.name, binding=gang.claim, reason=ADOPTED))
            if gang.status is Status.WAITING and gang.first_started_s is not None:
                self._why[gang.name] = (CAUSES.get(gang.cause, gang.cause), microseconds(gang.since_s))

    def begin(self, at_s: float) -> None:
        """Time counts from `at_s` on, and earlier work as kept."""
        now_us = self._until_us(at_s)
        for account in self._accounts.values():
            account.spent.clear()
        for attempt in self._attempts.values():
            attempt.begin(now_us)
        for lot in self.estate.lots:
            lot.begin(now_us)
        self.estate.promises.begin(now_us)
        self.recoveries.clear()

    def _adopt(self, gang: Gang) -> None:
        self._start(ev.Start(gang=gang.name, attempt=gang.attempt, binding=gang.binding, reason=ADOPTED))
        attempt = self._attempts[gang.name]
        if gang.running_s is not None:
            every_us = 0 if gang.saves_every_s is None else max(1, microseconds(gang.saves_every_s))
            attempt.work(self.estate.now_us, every_us, microseconds(gang.running_s))
        if gang.status in (Status.BROKEN, Status.LEAVING):
            attempt.stop(self.estate.now_us, CAUSES.get(gang.cause, gang.cause))

    # -- answers -----------------------------------------------------------------------------------------------------

    def delivered_gpus(self) -> int:
        return self.estate.totals.gpus

    def held_gpus(self) -> int:
        """GPUs on healthy nodes that gangs hold now, spares of their own among them."""
        return self.estate.totals.gpus - self.estate.totals.unheld

    def delivered_gpu_us(self, at_s: float | None = None) -> int:
        """Delivered GPUs x time until `at_s` (None: until now), which the rows sum to."""
        now_us = self._until_us(at_s)
        return sum(lot.delivered_us(now_us) for lot in self.estate.lots)

    def rows(self, at_s: float | None = None) -> tuple[Row, ...]:
        """All GPU-time until `at_s` (None: until now), in a fixed order. Rows without time are left out."""
        now_us = self._until_us(at_s)
        spent = {account: account.spent.copy() for account in self._accounts.values()}
        for attempt in self._attempts.values():
            attempt.charge(spent[attempt.account], now_us)
        nobody = {
            (at, state, cause): lot.spent_us(slot, now_us)
            for at, lot in enumerate(self.estate.lots)
            for slot, (state, cause) in enumerate(SLOTS)
        }
        rows = [
            self._row(*key, account, gpu_us)
            for account, cells in [*spent.items(), (Account(), nobody)]
            for key, gpu_us in cells.items()
            if gpu_us
        ]
        return tuple(sorted(rows, key=_order))

    def undelivered(self, at_s: float | None = None) -> tuple[Row, ...]:
        """GPU-time that was promised and was not there, until `at_s`. No part of `rows`: it was never delivered."""
        now_us = self._until_us(at_s)
        return tuple(
            Row(
                cluster=cluster, system=system, state="undelivered", cause="", queue="", priority="", kind="", job="",
                gpu_us=gpu_us, usd=None if usd is None else Decimal(str(usd)) * gpu_us / US_PER_H,
            )
            for (cluster, system, usd), gpu_us in self.estate.promises.missed(now_us)
            if gpu_us
        )  # fmt: skip

    def recovering(self) -> dict[str, list[float]]:
        """Cause of an interruption -> seconds since then, of gangs that do not work again yet."""
        since = [*self._why.values()]
        since += [
            (a.start_cause, a.interrupted_us)
            for a in self._attempts.values()
            if a.phase is Phase.STARTING and a.interrupted_us is not None
        ]
        found: dict[str, list[float]] = {}
        for cause, interrupted_us in since:
            found.setdefault(cause, []).append((self.estate.now_us - interrupted_us) / 1e6)
        return found

    def _row(self, at: int, state: str, cause: str, account: Account, gpu_us: int) -> Row:
        lot = self.estate.lots[at]
        price = lot.usd_per_gpu_hour
        return Row(
            cluster=lot.cluster, system=lot.system, state=state, cause=cause, queue=account.queue,
            priority=account.priority, kind=account.kind, job=account.job, gpu_us=gpu_us,
            usd=None if price is None else price * gpu_us / US_PER_H,
        )  # fmt: skip

    def _until_us(self, at_s: float | None) -> int:
        if at_s is not None:
            assert microseconds(at_s) >= self.estate.now_us, "the ledger only answers for now and later"
            self.estate.now_us = microseconds(at_s)
        return self.estate.now_us

    # -- jobs --------------------------------------------------------------------------------------------------------

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
            self._retries.setdefault(gang, job.durability.max_restarts)
            if job.cpu_only:
                self._without_gpus.add(gang)

    def _gangs(self, job: str) -> tuple[str, ...]:
        return self._services.get(job, (job,))

    def _cancelled(self, event: ev.Cancelled) -> None:
        for gang in self._gangs(event.job):
            if gang not in self._attempts:
                self._forget(gang)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _extended(self, event: ev.Extended) -> None:
        for name in event.domains:
            domain, _ = self.estate.part(name, None)
            self.estate.stay(domain)
            self._health(domain)

    def _closed(self, action: ev.Close) -> None:
        domain, mask = self.estate.part(action.domain, action.nodes)
        if action.reason.code == EXPIRED:
            self._stop(action.domain, mask, EXPIRED)
        self.estate.close(domain, mask, action.reason)
        self._health(domain)

    def _opened(self, action: ev.Open) -> None:
        domain, mask = self.estate.part(action.domain, action.nodes)
        self.estate.open(domain, mask, action.reason)
        self._health(domain)

    def _drained(self, event: ev.Drained) -> None:
        domain, mask = self.estate.part(event.domain, event.nodes)
        domain.drained |= mask
        self.estate.recount(domain)

    def _undrained(self, event: ev.Undrained) -> None:
        self.estate.undrain(*self.estate.part(event.domain, event.nodes))

    def _node_failed(self, event: ev.NodeFailed) -> None:
        domain, mask = self.estate.part(event.domain, event.nodes)
        domain.failed |= mask
        self._stop(event.domain, mask, "node-failure")
        self._health(domain)

    def _node_repaired(self, event: ev.NodeRepaired) -> None:
        domain, mask = self.estate.part(event.domain, event.nodes)
        domain.failed &= ~mask
        self._health(domain)

    def _stop(self, name: str, mask: int, cause: str) -> None:
        """These nodes of a domain are lost to whoever works on them."""
        d = self.estate.index[name]
        for gang in self.estate.domains[d].tenants:
            attempt = self._attempts[gang]
            if attempt.phase is not Phase.STOPPED and any(
                at == d and works & mask for at, works in attempt.on
            ):
                attempt.stop(self.estate.now_us, cause)

    def _health(self, domain: Domain) -> None:
        for gang in domain.tenants:
            attempt = self._attempts[gang]
            gpus, spare_gpus = self.estate.gpus(attempt.on), self.estate.gpus(attempt.spares)
            if (gpus, spare_gpus) != (attempt.gpus, attempt.spare_gpus):
                attempt.resize(self.estate.now_us, gpus, spare_gpus)
        self.estate.recount(domain)

    # -- gangs -------------------------------------------------------------------------------------------------------

    def _gang_running(self, event: ev.GangRunning) -> None:
        attempt = self._attempts.get(event.gang)
        if attempt is not None and attempt.number == event.attempt and attempt.phase is Phase.STARTING:
            if attempt.interrupted_us is not None:
                took_s = (self.estate.now_us - attempt.interrupted_us) / 1e6
                self.recoveries.setdefault(attempt.start_cause, array("d")).append(took_s)
            every_s = event.saves_every_s
            attempt.work(self.estate.now_us, 0 if every_s is None else max(1, microseconds(every_s)))

    def _checkpointed(self, event: ev.Checkpointed) -> None:
        attempt = self._attempts.get(event.gang)
        if attempt is not None and attempt.number == event.attempt:
            attempt.save(self.estate.now_us)

    def _gang_ended(self, event: ev.GangEnded) -> None:
        attempt = self._attempts.get(event.gang)
        if attempt is None or attempt.number != event.attempt:
            return
        self._close(event.gang, attempt, event)
        cause = attempt.stop_cause or FAILED
        finished = event.outcome == "finished" and attempt.account.kind != "service"
        if cause == "cancelled" or finished or (cause == FAILED and not self._retries[event.gang]):
            self._forget(event.gang)
        else:
            self._retries[event.gang] -= cause == FAILED
            assert attempt.interrupted_us is not None, "it has ended"
            self._why[event.gang] = (cause, attempt.interrupted_us)

    def _decided(self, event: ev.Decided) -> None:
        for action in event.plan.actions:
            fold = self._fold.get(type(action))
            if fold is not None:
                fold(action)

    def _start(self, action: ev.Start | ev.Restart) -> None:
        gang = action.gang
        self._drop_claim(gang)
        cause, interrupted_us = self._why.pop(gang, (FIRST, None))
        binding = () if gang in self._without_gpus else action.binding
        index = self.estate.index
        on = [(index[segment.domain], mask_of(segment.nodes)) for segment in binding]
        spares = [(index[s.domain], mask_of(s.spares)) for s in binding if s.spares]
        gpus = self.estate.gpus(on)
        self._attempts[gang] = Attempt(
            self.estate.now_us, number=action.attempt, cause=cause, on=on, gpus=gpus, spares=spares,
            spare_gpus=self.estate.gpus(spares) if spares else {},
            account=self._payers[gang], interrupted_us=interrupted_us,
        )  # fmt: skip
        self.estate.hold(on, gang, sum(gpus.values()))
        if spares:
            self.estate.hold(spares, gang, sum(gpus.values()))

    def _restart(self, action: ev.Restart) -> None:
        attempt = self._attempts[action.gang]
        if attempt.phase is not Phase.STOPPED:
            attempt.stop(self.estate.now_us, "node-failure")
        self._close(action.gang, attempt, None)
        assert attempt.interrupted_us is not None, "it was stopped"
        self._why[action.gang] = (attempt.stop_cause, attempt.interrupted_us)
        self._start(action)

    def _leave(self, action: ev.Preempt | ev.Move | ev.Stop | ev.Requeue) -> None:
        self._attempts[action.gang].stop(
            self.estate.now_us, CAUSES.get(action.reason.code, action.reason.code)
        )

    def _move(self, action: ev.Move) -> None:
        self._leave(action)
        self._claim(action)

    def _claim(self, action: ev.Claim | ev.Move) -> None:
        self._drop_claim(action.gang)
        binding = () if action.gang in self._without_gpus else action.binding
        claim = self._claims[action.gang] = self.estate.masks(binding)
        self.estate.claim(claim)

    def _unclaim(self, action: ev.Unclaim) -> None:
        self._drop_claim(action.gang)

    def _refuse(self, action: ev.Refuse) -> None:
        for gang in self._gangs(action.job):
            self._forget(gang)

    def _hold(self, action: ev.Hold) -> None:
        self.estate.book(action.booking, action.binding)

    def _free(self, action: ev.Free | ev.Unbooked) -> None:
        self.estate.unbook(action.booking)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _account(self, job: Job) -> Account:
        key = (job.queue, job.priority, job.kind, job.name if self._by_job else "")
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(queue=key[0], priority=key[1], kind=key[2], job=key[3])
        return account

    def _close(self, gang: str, attempt: Attempt, ended: ev.GangEnded | None) -> None:
        """The attempt is over: charge its time and free its nodes."""
        attempt.charge(attempt.account.spent, self.estate.now_us, ended)
        del self._attempts[gang]
        self.estate.release(attempt.on, gang)
        if attempt.spares:
            self.estate.release(attempt.spares, gang)

    def _drop_claim(self, gang: str) -> None:
        claim = self._claims.pop(gang, None)
        if claim is not None:
            self.estate.unclaim(claim)

    def _forget(self, gang: str) -> None:
        """The gang has ended for good."""
        self._drop_claim(gang)
        self._why.pop(gang, None)
        self._payers.pop(gang, None)
        self._retries.pop(gang, None)
        self._without_gpus.discard(gang)


def _order(row: Row) -> tuple[object, ...]:
    return (
        row.cluster, row.system, STATES.index(row.state), row.cause, row.queue, row.priority, row.kind, row.job,
        row.usd is None,
    )  # fmt: skip
