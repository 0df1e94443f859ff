"""The fleet's state: the fold of events, and nothing else.

The same events in the same order give the same state, byte for byte (`snapshot`). Events that speak of an attempt
that is over are ignored, so an executor may report a thing twice. Everything that `decide` looks at is here.

What happens to gangs is folded here, what people say of nodes in `fleet/departures.py`, what is decided in
`fleet/decided.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from rackscale import events as ev
from rackscale.fleet.gangs import Ended, Gang, Status, Waiting, remaining_s
from rackscale.fleet.machines import Machines
from rackscale.fleet.occupancy import Occupancy, mask_of
from rackscale.fleet.queues import NOTHING, QueueTree
from rackscale.fleet.tenants import Tenants
from rackscale.fleet.topology import Topology
from rackscale.workload import Job, Policy, Queue

HELD = (Status.STARTING, Status.RUNNING, Status.BROKEN, Status.LEAVING)
NEVER_YET = -inf


class FleetState:
    """Occupancy and health by NVLink domain, gangs and their lives, policy and queues."""

    def __init__(self) -> None:  # noqa: PLR0915 - a state has as many fields as it has
        from rackscale.fleet.decided import Decisions  # the folds know each other
        from rackscale.fleet.departures import Departures

        self.now_s = 0.0
        self.wake_at_s: float | None = None
        """When time alone makes a new decision due."""
        self.retry_at_s: float | None = None
        """When gangs that still wait have room cleared and reserved for them again."""
        self.decided_s = NEVER_YET
        """When the last decision was."""
        self.dirty = False
        """Whether something happened since the last decision that a decision could answer."""
        self.fresh: set[str] = set()
        """Gangs that began to wait since the last decision."""
        self.eased: set[str] = set()
        """Queues that hold less than at the last decision."""
        self.policy = Policy()
        self.queues: dict[str, Queue] = {}
        self.tree = QueueTree(half_life_s=self.policy.fair_share_half_life_s)
        self.queue_evictions: dict[str, tuple[int, int]] = {}
        """Queue -> (day, gangs evicted on that day)."""
        self.jobs: dict[str, Job] = {}
        self.gangs: dict[str, Gang] = {}
        self.ended: dict[str, Ended] = {}
        self.machines = Machines(self.gangs, self.jobs)
        self.waiting = Waiting()
        self.paused: dict[str, None] = {}
        """Gangs whose program failed and that join the line again later."""
        self.resume_s = inf
        """When the first of those does."""
        self.claimants: dict[str, tuple[tuple[int, int], ...]] = {}
        """Gang that nodes are kept for -> (domain index, mask) of those nodes."""
        self.reserved: dict[str, ev.Reserve] = {}
        """Waiting gang (or `@booking`) -> what it was promised."""
        self.broken: dict[str, None] = {}
        self.stopping: dict[str, None] = {}
        """Cancelled gangs that have not been told yet."""
        self.evacuating: dict[str, tuple[float, str]] = {}
        """Gangs that must leave their nodes and have not been told yet -> (when to tell them, why)."""
        self.tell_s = inf
        """When the first of those must be told who joined them since the last decision began to be folded."""
        self.leaving: dict[str, None] = {}
        self.elastic: dict[str, None] = {}
        """Elastic gangs that hold nodes."""
        self.next_seq = 0
        self.departures = Departures(self)
        self._fold: dict[type, Callable[..., None]] = {
            ev.Announced: self._announced, ev.Delivered: self._delivered, ev.Configured: self._configured,
            ev.Submitted: self._submitted, ev.Cancelled: self._cancelled,
            ev.NodeFailed: self._node_failed, ev.NodeRepaired: self._node_repaired,
            ev.GangRunning: self._gang_running, ev.Checkpointed: self._checkpointed,
            ev.Progressed: self._progressed, ev.GangEnded: self._gang_ended, ev.Ticked: self._noted,
            ev.Decided: Decisions(self), ev.Forecast: self._noted, **self.departures.folds(),
        }  # fmt: skip

    @property
    def topology(self) -> Topology:
        return self.machines.topology

    @property
    def domains(self) -> list[ev.DomainSpec]:
        return self.machines.topology.domains

    @property
    def index(self) -> dict[str, int]:
        return self.machines.topology.index

    @property
    def occupancy(self) -> Occupancy:
        """Of the nodes' GPUs."""
        return self.machines.gpu.occupancy

    @property
    def tenants(self) -> Tenants:
        """Of the nodes' GPUs."""
        return self.machines.gpu.tenants

    @property
    def failed(self) -> list[int]:
        return self.machines.health.failed

    @property
    def drained(self) -> list[int]:
        return self.machines.health.drained

    def fold(self, event: ev.Event) -> None:
        """Take one event in. Time never runs backwards: an older event counts as happening now."""
        if event.at_s > self.now_s:
            self.now_s = self.machines.now_s = event.at_s
        self._fold[type(event)](event)
        if self.now_s >= self.resume_s:
            self._resume()

    def due_s(self) -> float | None:
        """When a decision is due; None: not before something happens."""
        wake_s = self.wake_at_s
        if self.resume_s < inf:
            wake_s = self.resume_s if wake_s is None else min(wake_s, self.resume_s)
        if not self.dirty:
            return wake_s
        soon_s = self.decided_s + self.policy.decision_interval_s
        return soon_s if wake_s is None else min(soon_s, wake_s)

    def gpus(self, gang: Gang) -> int:
        """GPUs that the gang holds, or would hold."""
        if gang.binding:
            return gang.gpus
        job = self.jobs[gang.job]
        if job.cpu_only:
            return 0
        groups = self.topology.groups(job.system, job.cluster)
        return job.shape.nodes * (groups[0].gpus_per_node if groups else 0)

    # -- people: capacity --------------------------------------------------------------------------------------------

    def _noted(self, event: ev.Ticked | ev.Forecast) -> None:
        pass

    def _announced(self, event: ev.Announced) -> None:
        health = self.machines.health
        for spec in event.domains:
            d = self.index.get(spec.name)
            if d is None:
                self.machines.add(spec, ready_s=event.ready_s)
            elif health.absent[d]:
                health.ready_s[d] = event.ready_s
                self.machines.horizon.touch(d)
        self.dirty = True

    def _delivered(self, event: ev.Delivered) -> None:
        for spec in event.domains:
            d = self.index.get(spec.name)
            if d is None:
                self.machines.add(spec)
            else:
                self.machines.health.deliver(d)
                if spec.expires_s != self.domains[d].expires_s:
                    self.machines.extend(d, spec.expires_s)
                self.machines.refresh(d)
        self.dirty = True

    def _configured(self, event: ev.Configured) -> None:
        self.policy = event.policy
        self.queues = {queue.name: queue for queue in event.queues}
        self.machines.configure(event.policy)
        self.regroup()
        self.fresh.update(self.waiting)
        self.occupancy.grown = self.machines.cpu.occupancy.grown = (1 << len(self.domains)) - 1
        self.dirty = True

    def regroup(self) -> None:
        """Work out anew what follows from policy and queues: ranks, classes of waiting gangs, quotas, evictability."""
        before, self.tree = self.tree, QueueTree(self.queues.values(), self.policy.fair_share_half_life_s)
        for name, node in before.nodes.items():
            self.tree.node(name).adopt(node)
        self.waiting = Waiting()
        for books in (self.machines.gpu, self.machines.cpu):
            books.tenants.clear()
        for gang in self.gangs.values():
            self._rank(gang)
            job = self.jobs[gang.job]
            if gang.binding:
                tenants, level = self.machines.books(job).tenants, self.level(gang)
                for d, mask in self.machines.masks(gang.binding):
                    tenants.add(d, gang.name, mask, level)
            elif not gang.claim and gang.paused_until_s is None:
                self.waiting.add(gang, job)
            if gang.charged:
                self.tree.change(gang.queue, job.user, gang.charge, 1, self.now_s)

    def _rank(self, gang: Gang) -> None:
        job = self.jobs[gang.job]
        gang.priority = self.policy.priorities.get(job.priority, 0)
        gang.queue = job.queue
        queue = self.queues.get(job.queue)
        gang.rank = queue.rank if queue else 0

    # -- people: jobs ------------------------------------------------------------------------------------------------

    def _submitted(self, event: ev.Submitted) -> None:
        job = event.job
        if job.name in self.jobs:
            return
        self.jobs[job.name] = job
        for name in job.gangs():
            gang = Gang(
                name=name, job=job.name, seq=self.next_seq, priority=0, rank=0, submitted_s=self.now_s,
                since_s=self.now_s,
            )  # fmt: skip
            earlier = self.ended.pop(name, None)
            if earlier is not None:
                gang.attempt = earlier.attempts
            self.next_seq += 1
            self._rank(gang)
            self.gangs[name] = gang
            self.wait(gang, front=False, cause="")

    def _cancelled(self, event: ev.Cancelled) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        for name in job.gangs():
            gang = self.gangs.get(name)
            if gang is None or gang.cancelled:
                continue
            gang.cancelled = True
            if gang.status is Status.WAITING:
                self.end(gang, "cancelled")
            elif gang.status is not Status.LEAVING:
                self.stopping[name] = None
        self.dirty = True

    # -- executors ---------------------------------------------------------------------------------------------------

    def health(self, d: int) -> None:
        self.machines.refresh(d)
        self.dirty = True

    def _node_failed(self, event: ev.NodeFailed) -> None:
        d, policy = self.index[event.domain], self.policy
        mask = self.machines.mask(d, event.nodes)
        usual_s = policy.domain_repair_s if event.nodes is None else policy.node_repair_s
        back_s = self.now_s + (usual_s if event.repair_s is None else event.repair_s)
        self.machines.health.fail(d, mask, self.now_s, back_s, policy, count=event.nodes is not None)
        self.health(d)
        for books in (self.machines.gpu, self.machines.cpu):
            for name, held in books.tenants.on[d].items():
                gang = self.gangs[name]
                if (
                    held & mask
                    and gang.status in (Status.STARTING, Status.RUNNING)
                    and _works_on(gang, event, mask)
                ):
                    self.become(gang, Status.BROKEN)
                    gang.cause = "node-failure"
                    self.broken[name] = None
                    self.evacuating.pop(name, None)

    def _node_repaired(self, event: ev.NodeRepaired) -> None:
        d = self.index[event.domain]
        self.machines.health.repair(d, self.machines.mask(d, event.nodes))
        self.health(d)

    def _current(self, name: str, attempt: int) -> Gang | None:
        gang = self.gangs.get(name)
        return gang if gang is not None and gang.attempt == attempt and gang.status in HELD else None

    def _gang_running(self, event: ev.GangRunning) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is None or gang.status is not Status.STARTING:
            return
        self.become(gang, Status.RUNNING)
        gang.running_s, gang.saves_every_s = self.now_s, event.saves_every_s
        self.expect_end(gang, self.now_s)
        gang.url = event.url
        if event.step is not None:
            gang.step = event.step

    def _checkpointed(self, event: ev.Checkpointed) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is not None:
            gang.keep(self.now_s, everything=True)
            gang.checkpoint_s = self.now_s
            gang.step = event.step
            self.dirty |= self.policy.growth and gang.name in self.elastic  # it may grow now

    def _progressed(self, event: ev.Progressed) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is not None:
            gang.step = event.step

    def _gang_ended(self, event: ev.GangEnded) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is None:
            return
        self.release(gang, checkpointed=event.checkpointed)
        job = self.jobs[gang.job]
        if event.outcome == "finished" and job.kind != "service":
            self.end(gang, "finished", event.detail)
        elif gang.cancelled:
            self.end(gang, "cancelled", event.detail)
        elif gang.status is Status.LEAVING or gang.status is Status.BROKEN:
            self.wait(gang, front=True, cause=gang.cause)
        elif gang.restarts >= job.durability.max_restarts:
            self.end(gang, "failed", event.detail)
        else:
            gang.restarts += 1
            self.wait(gang, front=True, cause="program-failed", pause_s=job.durability.pause_s(gang.restarts))
        self.dirty = True

    # -- parts, also of `Decisions` ----------------------------------------------------------------------------------

    def become(self, gang: Gang, status: Status) -> None:
        gang.status, gang.since_s = status, self.now_s

    def wait(self, gang: Gang, *, front: bool, cause: str, pause_s: float = 0.0) -> None:
        """In line again, after a pause; a gang that moves waits for its claim instead."""
        self.become(gang, Status.WAITING)
        gang.front, gang.cause = front, cause
        gang.running_s = gang.started_s = gang.url = gang.saves_every_s = None
        if gang.claim:
            self.charge(gang, gang.claim)
        elif pause_s > 0.0:
            gang.paused_until_s = self.now_s + pause_s
            self.pause(gang)
        else:
            self.waiting.add(gang, self.jobs[gang.job])
            self.fresh.add(gang.name)
        self.dirty = True

    def pause(self, gang: Gang) -> None:
        """Out of line until `paused_until_s`."""
        assert gang.paused_until_s is not None
        self.paused[gang.name] = None
        self.resume_s = min(self.resume_s, gang.paused_until_s)

    def _resume(self) -> None:
        """Gangs whose pause is over join the line."""
        for name in sorted(self.paused):
            gang = self.gangs[name]
            assert gang.paused_until_s is not None
            if gang.paused_until_s <= self.now_s:
                self._unpause(gang)
                self.waiting.add(gang, self.jobs[gang.job])
                self.fresh.add(name)
                self.dirty = True

    def _unpause(self, gang: Gang) -> None:
        del self.paused[gang.name]
        gang.paused_until_s = None
        left = (self.gangs[name].paused_until_s for name in self.paused)
        self.resume_s = min((at_s for at_s in left if at_s is not None), default=inf)

    def charge(self, gang: Gang, binding: ev.Binding) -> None:
        """Its queue holds what the gang holds, or what is kept for it, from now on."""
        job = self.jobs[gang.job]
        assert not gang.charged, "a gang is charged twice"
        gang.charge, gang.charged = NOTHING if job.cpu_only else self.machines.charge(binding), True
        self.tree.change(gang.queue, job.user, gang.charge, 1, self.now_s)

    def uncharge(self, gang: Gang) -> None:
        if not gang.charged:
            return
        gang.charged = False
        self.tree.change(gang.queue, self.jobs[gang.job].user, gang.charge, -1, self.now_s)
        if self.tree.limited or self.tree.guaranteed:
            self.eased.update(node.spec.name for node in self.tree.node(gang.queue).path)

    def expect_end(self, gang: Gang, works_from_s: float) -> None:
        """The gang is expected to end when what remains of its work is done."""
        left_s = remaining_s(gang, self.jobs[gang.job])
        end_s = None if left_s == inf else works_from_s + left_s / gang.throughput
        if end_s != gang.expected_end_s:
            gang.expected_end_s = end_s
            self.machines.touch(gang)

    def level(self, gang: Gang) -> int | None:
        return gang.priority if self.jobs[gang.job].preemptible else None

    def hold(self, gang: Gang) -> None:
        """The gang has its binding from now on."""
        job = self.jobs[gang.job]
        self.machines.hold(gang, job, self.level(gang))
        self.uncharge(gang)
        self.charge(gang, gang.binding)
        if job.elastic and job.offers:
            self.elastic[gang.name] = None
        if self.machines.calendar.on or job.booking is not None:
            self.departures.expect(gang)

    def release(self, gang: Gang, *, checkpointed: bool = False) -> None:
        """The attempt is over, and its nodes are free."""
        job = self.jobs[gang.job]
        gang.keep(self.now_s, everything=checkpointed)
        self.machines.release(gang, job)
        self.uncharge(gang)
        gang.binding, gang.gpus, gang.expected_end_s = (), 0, None
        for index in (self.stopping, self.evacuating, self.broken, self.leaving, self.elastic):
            index.pop(gang.name, None)

    def unclaim(self, gang: Gang) -> None:
        for d, mask in self.claimants.pop(gang.name, ()):
            self.occupancy.unclaim(d, mask)
            self.machines.horizon.touch(d)
        gang.claim = ()
        if not gang.binding:
            self.uncharge(gang)

    def stop_waiting(self, gang: Gang) -> None:
        """Out of the line or out of its claim: a waiting gang is in one of the two."""
        promise = self.reserved.pop(gang.name, None)
        if promise is not None:  # others may have what it did not take
            for name in promise.domains:
                self.occupancy.grown |= 1 << self.index[name]
        if gang.claim:
            self.unclaim(gang)
        else:
            self.waiting.remove(gang)

    def end(self, gang: Gang, outcome: str, detail: str = "") -> None:
        """The gang has ended for good."""
        if gang.claim:
            self.unclaim(gang)
        if gang.name in self.paused:
            self._unpause(gang)
        if self.waiting.of(gang.name) is not None:
            self.waiting.remove(gang)
        if self.reserved.pop(gang.name, None) is not None:
            self.retry_at_s = None  # others may have what was promised it: all are looked at again
        self.fresh.discard(gang.name)
        del self.gangs[gang.name]
        self.ended[gang.name] = Ended(
            job=gang.job, outcome=outcome, at_s=self.now_s, submitted_s=gang.submitted_s, attempts=gang.attempt,
            detail=detail,
        )  # fmt: skip
        job = self.jobs[gang.job]
        if job.kind != "service" or not any(name in self.gangs for name in job.gangs()):
            del self.jobs[gang.job]

    # -- as a value --------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """The whole state as JSON. Equal states give equal bytes."""
        from rackscale.fleet.snapshot import write

        return write(self)

    @classmethod
    def restore(cls, data: bytes) -> FleetState:
        """The state that `snapshot` wrote. Raises msgspec.ValidationError on anything else."""
        from rackscale.fleet.snapshot import read

        return read(cls(), data)

    def fork(self) -> FleetState:
        """An independent copy, for what-if questions and for a twin that starts from here."""
        return FleetState.restore(self.snapshot())


def _works_on(gang: Gang, event: ev.NodeFailed, mask: int) -> bool:
    """Whether ranks of the gang run on one of these nodes; its own spares don't count."""
    return any(s.domain == event.domain and mask_of(s.nodes) & mask for s in gang.binding)
