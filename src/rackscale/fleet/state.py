"""The fleet's state: the fold of events, and nothing else.

The same events in the same order give the same state, byte for byte (`snapshot`). Events that speak of an attempt
that is over are ignored, so an executor may report a thing twice. Everything that `decide` looks at is here.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from rackscale import events as ev
from rackscale.fleet.gangs import DAY_S, Ended, Gang, Status, Waiting
from rackscale.fleet.occupancy import Occupancy, mask_of, members
from rackscale.fleet.tenants import Tenants
from rackscale.fleet.topology import Topology
from rackscale.workload import Job, Policy, Queue

HELD = (Status.STARTING, Status.RUNNING, Status.BROKEN, Status.LEAVING)


class Snapshot(Struct, frozen=True, kw_only=True):
    """The whole state as a value; masks are per domain."""

    now_s: float
    wake_at_s: float | None
    decided_s: float | None
    dirty: bool
    fresh: list[str]
    grown: list[int]
    next_seq: int
    domains: list[ev.DomainSpec]
    failed: list[int]
    drained: list[int]
    policy: Policy
    queues: list[Queue]
    queue_evictions: dict[str, tuple[int, int]]
    jobs: list[Job]
    gangs: list[Gang]
    ended: dict[str, Ended]


class FleetState:
    """Occupancy and health by NVLink domain, gangs and their lives, policy and queues."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.wake_at_s: float | None = None
        """When time alone makes a new decision due."""
        self.decided_s: float | None = None
        """When the last decision was made."""
        self.dirty = False
        """Whether something happened since the last decision that a decision could answer."""
        self.fresh: set[str] = set()
        """Gangs that began to wait since the last decision."""
        self.topology = Topology()
        self.occupancy = Occupancy()
        self.failed: list[int] = []
        self.drained: list[int] = []
        self.policy = Policy()
        self.queues: dict[str, Queue] = {}
        self.queue_evictions: dict[str, tuple[int, int]] = {}
        """Queue -> (day, gangs evicted on that day)."""
        self.jobs: dict[str, Job] = {}
        self.gangs: dict[str, Gang] = {}
        self.ended: dict[str, Ended] = {}
        self.tenants = Tenants()
        self.waiting = Waiting()
        self.claimants: dict[str, tuple[tuple[int, int], ...]] = {}
        """Waiting gang that nodes are kept for -> (domain index, mask) of those nodes."""
        self.broken: dict[str, None] = {}
        self.stopping: dict[str, None] = {}
        """Cancelled gangs that have not been told yet."""
        self.evacuating: dict[str, None] = {}
        """Gangs that hold drained nodes and have not been told to leave."""
        self.leaving: dict[str, None] = {}
        self._next_seq = 0
        self._fold: dict[type, Callable[..., None]] = {
            ev.Delivered: self._delivered, ev.Configured: self._configured, ev.Submitted: self._submitted,
            ev.Cancelled: self._cancelled, ev.Drained: self._drained, ev.Undrained: self._undrained,
            ev.NodeFailed: self._node_failed, ev.NodeRepaired: self._node_repaired,
            ev.GangRunning: self._gang_running, ev.Checkpointed: self._checkpointed,
            ev.Progressed: self._progressed, ev.GangEnded: self._gang_ended, ev.Ticked: self._noted,
            ev.Decided: self._decided, ev.Forecast: self._noted,
            ev.Start: self._start, ev.Restart: self._start, ev.Preempt: self._preempt, ev.Stop: self._leave,
            ev.Requeue: self._leave, ev.Claim: self._claim, ev.Unclaim: self._unclaim, ev.Refuse: self._refuse,
        }  # fmt: skip

    @property
    def domains(self) -> list[ev.DomainSpec]:
        return self.topology.domains

    @property
    def index(self) -> dict[str, int]:
        return self.topology.index

    def fold(self, event: ev.Event) -> None:
        """Take one event in. Time never runs backwards: an older event counts as happening now."""
        self.now_s = max(self.now_s, event.at_s)
        self._fold[type(event)](event)

    @property
    def next_decision_s(self) -> float:
        """Before this time no decision is due, whatever happens; only the timer may be earlier."""
        return 0.0 if self.decided_s is None else self.decided_s + self.policy.decision_interval_s

    @property
    def due_s(self) -> float | None:
        """When a decision is due if nothing more happens; None: never."""
        if not self.dirty:
            return self.wake_at_s
        due_s = max(self.now_s, self.next_decision_s)
        return due_s if self.wake_at_s is None else min(due_s, self.wake_at_s)

    def is_due(self, at_s: float) -> bool:
        """Whether a decision is due at this time, by what is known now."""
        if self.dirty and at_s >= self.next_decision_s:
            return True
        return self.wake_at_s is not None and at_s >= self.wake_at_s

    def gpus(self, gang: Gang) -> int:
        """GPUs that the gang holds, or would hold."""
        if gang.binding:
            return gang.gpus
        job = self.jobs[gang.job]
        groups = self.topology.groups(job.system, job.cluster)
        return job.shape.nodes * (groups[0].gpus_per_node if groups else 0)

    # -- people ------------------------------------------------------------------------------------------------------

    def _noted(self, event: ev.Ticked | ev.Forecast) -> None:
        pass

    def _delivered(self, event: ev.Delivered) -> None:
        for spec in event.domains:
            self.topology.add(spec)
            self.occupancy.add(spec.nodes, spec.spares)
            self.failed.append(0)
            self.drained.append(0)
            self.tenants.add_domain()
        self.dirty = True

    def _configured(self, event: ev.Configured) -> None:
        self.policy = event.policy
        self.queues = {queue.name: queue for queue in event.queues}
        gangs, self.gangs = self.gangs, {}
        for index in (self.claimants, self.broken, self.stopping, self.evacuating, self.leaving):
            index.clear()
        self._empty()
        for gang in gangs.values():
            self._rank(gang)
            self._reinstate(gang)
        self.dirty = True

    def _empty(self) -> None:
        """Occupancy as if no gang existed; health stays."""
        occupancy, self.occupancy = self.occupancy, Occupancy()
        self.tenants, self.waiting = Tenants(), Waiting()
        for d, spec in enumerate(self.domains):
            self.occupancy.add(spec.nodes, spec.spares)
            self.occupancy.set_up(d, occupancy.up[d])
            self.tenants.add_domain()

    def _rank(self, gang: Gang) -> None:
        job = self.jobs[gang.job]
        gang.priority = self.policy.priorities.get(job.priority, 0)
        queue = self.queues.get(job.queue)
        gang.rank = queue.rank if queue else 0

    def _submitted(self, event: ev.Submitted) -> None:
        job = event.job
        if job.name in self.jobs:
            return
        self.jobs[job.name] = job
        for name in job.gangs():
            gang = Gang(
                name=name, job=job.name, seq=self._next_seq, priority=0, rank=0, submitted_s=self.now_s,
                since_s=self.now_s,
            )  # fmt: skip
            earlier = self.ended.pop(name, None)
            if earlier is not None:
                gang.attempt = earlier.attempts
            self._next_seq += 1
            self._rank(gang)
            self.gangs[name] = gang
            self._wait(gang, front=False, cause="")

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
                self._end(gang, "cancelled")
            elif gang.status is not Status.LEAVING:
                self.stopping[name] = None
        self.dirty = True

    def _mask(self, d: int, nodes: tuple[int, ...] | None) -> int:
        return self.occupancy.full[d] if nodes is None else mask_of(nodes)

    def _drained(self, event: ev.Drained) -> None:
        d = self.index[event.domain]
        mask = self._mask(d, event.nodes)
        self.drained[d] |= mask
        self._health(d)
        for name, held in self.tenants.on[d].items():
            if held & mask and self.gangs[name].status in (Status.STARTING, Status.RUNNING):
                self.evacuating[name] = None

    def _undrained(self, event: ev.Undrained) -> None:
        d = self.index[event.domain]
        self.drained[d] &= ~self._mask(d, event.nodes)
        self._health(d)
        for name in self.tenants.on[d]:
            if name in self.evacuating and not self._on_drained(self.gangs[name]):
                del self.evacuating[name]

    def _on_drained(self, gang: Gang) -> bool:
        return any(self.drained[self.index[s.domain]] & mask_of(s.nodes) for s in gang.binding)

    # -- executors ---------------------------------------------------------------------------------------------------

    def _health(self, d: int) -> None:
        self.occupancy.set_up(d, self.occupancy.full[d] & ~(self.failed[d] | self.drained[d]))
        self.dirty = True

    def _node_failed(self, event: ev.NodeFailed) -> None:
        d = self.index[event.domain]
        mask = self._mask(d, event.nodes)
        self.failed[d] |= mask
        self._health(d)
        for name, held in self.tenants.on[d].items():
            gang = self.gangs[name]
            if held & mask and gang.status in (Status.STARTING, Status.RUNNING):
                self._become(gang, Status.BROKEN)
                gang.cause = "node-failure"
                self.broken[name] = None
                self.evacuating.pop(name, None)

    def _node_repaired(self, event: ev.NodeRepaired) -> None:
        d = self.index[event.domain]
        self.failed[d] &= ~self._mask(d, event.nodes)
        self._health(d)

    def _current(self, name: str, attempt: int) -> Gang | None:
        gang = self.gangs.get(name)
        return gang if gang is not None and gang.attempt == attempt and gang.status in HELD else None

    def _gang_running(self, event: ev.GangRunning) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is None or gang.status is not Status.STARTING:
            return
        self._become(gang, Status.RUNNING)
        gang.running_s, gang.saves_every_s = self.now_s, event.saves_every_s
        gang.url = event.url
        if event.step is not None:
            gang.step = event.step

    def _checkpointed(self, event: ev.Checkpointed) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is not None:
            gang.kept_s += gang.at_risk_s(self.now_s)
            gang.checkpoint_s = self.now_s
            gang.step = event.step

    def _progressed(self, event: ev.Progressed) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is not None:
            gang.step = event.step

    def _gang_ended(self, event: ev.GangEnded) -> None:
        gang = self._current(event.gang, event.attempt)
        if gang is None:
            return
        gang.settle(self.now_s)
        if event.checkpointed:
            gang.kept_s += gang.at_risk_s(self.now_s)
        self._release(gang)
        job = self.jobs[gang.job]
        if event.outcome == "finished" and job.kind != "service":
            self._end(gang, "finished", event.detail)
        elif gang.cancelled:
            self._end(gang, "cancelled", event.detail)
        elif gang.status is Status.LEAVING or gang.status is Status.BROKEN:
            self._wait(gang, front=True, cause=gang.cause)
        elif gang.restarts >= job.durability.max_restarts:
            self._end(gang, "failed", event.detail)
        else:
            gang.restarts += 1
            self._wait(gang, front=True, cause="program-failed")
        self.dirty = True

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _decided(self, event: ev.Decided) -> None:
        self.occupancy.grown = 0
        self.fresh.clear()
        for action in event.plan.actions:
            self._fold[type(action)](action)
        # A plan that itself frees nodes (a claim given up, a segment moved) asks to be woken at once.
        self.dirty = False
        self.wake_at_s, self.decided_s = event.plan.wake_at_s, event.at_s

    def _start(self, action: ev.Start | ev.Restart) -> None:
        gang = self.gangs[action.gang]
        waiting = gang.status is Status.WAITING
        if not waiting:
            self._release(gang)
        gang.settle(self.now_s)
        gang.attempt, gang.binding, gang.choice = action.attempt, action.binding, action.choice
        gang.gpus = sum(len(s.nodes) * self.domains[self.index[s.domain]].gpus_per_node for s in gang.binding)
        self._hold(gang)
        if waiting:  # after the nodes are held, so that a claim that becomes a start frees nothing on the way
            self._stop_waiting(gang)
        self._become(gang, Status.STARTING)
        gang.started_s, gang.running_s, gang.url, gang.cause = self.now_s, None, None, action.reason.code
        if gang.first_started_s is None:
            gang.first_started_s = self.now_s

    def _preempt(self, action: ev.Preempt) -> None:
        gang = self.gangs[action.gang]
        if action.reason.code == "preempted-for":
            day = int(self.now_s // DAY_S)
            gang.evictions += 1
            gang.evictions_today = gang.evicted_today(self.now_s) + 1
            gang.evictions_day = day
            queue = self.jobs[gang.job].queue
            before, count = self.queue_evictions.get(queue, (day, 0))
            self.queue_evictions[queue] = (day, count + 1 if before == day else 1)
        self._leave(action)

    def _leave(self, action: ev.Preempt | ev.Stop | ev.Requeue) -> None:
        gang = self.gangs[action.gang]
        self._become(gang, Status.LEAVING)
        gang.cause = action.reason.code
        for index in (self.stopping, self.evacuating, self.broken):
            index.pop(gang.name, None)
        self.leaving[gang.name] = None

    def _claim(self, action: ev.Claim) -> None:
        gang = self.gangs[action.gang]
        assert not gang.claim, "a gang claims twice"
        self._stop_waiting(gang)
        gang.claim = action.binding
        self._hold_claim(gang)

    def _unclaim(self, action: ev.Unclaim) -> None:
        gang = self.gangs[action.gang]
        self._stop_waiting(gang)
        self.waiting.add(gang, self.jobs[gang.job])

    def _refuse(self, action: ev.Refuse) -> None:
        for name in self.jobs[action.job].gangs():
            self._end(self.gangs[name], "refused", action.reason.code)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _become(self, gang: Gang, status: Status) -> None:
        gang.settle(self.now_s)
        gang.status, gang.since_s = status, self.now_s

    def _wait(self, gang: Gang, *, front: bool, cause: str) -> None:
        self._become(gang, Status.WAITING)
        gang.front, gang.cause = front, cause
        gang.running_s = gang.started_s = gang.url = None
        self.waiting.add(gang, self.jobs[gang.job])
        self.fresh.add(gang.name)
        self.dirty = True

    def _hold(self, gang: Gang) -> None:
        level = self._level(gang)
        for segment in gang.binding:
            d = self.index[segment.domain]
            mask = mask_of(segment.nodes)
            self.occupancy.hold(d, mask)
            self.tenants.add(d, gang.name, mask, level)

    def _level(self, gang: Gang) -> int | None:
        return gang.priority if self.jobs[gang.job].preemptible else None

    def _release(self, gang: Gang) -> None:
        for segment in gang.binding:
            d = self.index[segment.domain]
            self.occupancy.release(d, mask_of(segment.nodes))
            self.tenants.remove(d, gang.name)
        self.tenants.forget(gang.name)
        gang.binding, gang.gpus = (), 0
        for index in (self.stopping, self.evacuating, self.broken, self.leaving):
            index.pop(gang.name, None)

    def _hold_claim(self, gang: Gang) -> None:
        masks = tuple((self.index[segment.domain], mask_of(segment.nodes)) for segment in gang.claim)
        self.claimants[gang.name] = masks
        for d, mask in masks:
            self.occupancy.claim(d, mask)

    def _stop_waiting(self, gang: Gang) -> None:
        """Out of the line or out of its claim: a waiting gang is in one of the two."""
        if not gang.claim:
            self.waiting.remove(gang, self.jobs[gang.job])
            return
        for d, mask in self.claimants.pop(gang.name):
            self.occupancy.unclaim(d, mask)
        gang.claim = ()

    def _end(self, gang: Gang, outcome: str, detail: str = "") -> None:
        if gang.status is Status.WAITING:
            self._stop_waiting(gang)
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
        value = Snapshot(
            now_s=self.now_s, wake_at_s=self.wake_at_s, decided_s=self.decided_s, dirty=self.dirty,
            fresh=sorted(self.fresh),
            grown=list(members(self.occupancy.grown)),
            next_seq=self._next_seq, domains=self.domains, failed=self.failed, drained=self.drained,
            policy=self.policy, queues=list(self.queues.values()), queue_evictions=self.queue_evictions,
            jobs=list(self.jobs.values()), gangs=list(self.gangs.values()), ended=self.ended,
        )  # fmt: skip
        return msgspec.json.encode(value)

    @classmethod
    def restore(cls, data: bytes) -> FleetState:
        """The state that `snapshot` wrote. Raises msgspec.ValidationError on anything else."""
        value = msgspec.json.decode(data, type=Snapshot)
        state = cls()
        state._delivered(ev.Delivered(at_s=value.now_s, domains=tuple(value.domains)))
        state.failed, state.drained = value.failed, value.drained
        for d in range(len(value.domains)):
            state._health(d)
        state.policy = value.policy
        state.queues = {queue.name: queue for queue in value.queues}
        state.queue_evictions, state.ended = value.queue_evictions, value.ended
        state.jobs = {job.name: job for job in value.jobs}
        for gang in value.gangs:
            state._reinstate(gang)
        state.now_s, state.wake_at_s, state.dirty = value.now_s, value.wake_at_s, value.dirty
        state.decided_s = value.decided_s
        state.fresh, state._next_seq = set(value.fresh), value.next_seq
        state.occupancy.grown = mask_of(tuple(value.grown))
        return state

    def _reinstate(self, gang: Gang) -> None:
        """Put a gang record back, with every index that follows from it."""
        self.gangs[gang.name] = gang
        self._hold(gang)
        if gang.claim:
            self._hold_claim(gang)
        elif gang.status is Status.WAITING:
            self.waiting.add(gang, self.jobs[gang.job])
        elif gang.status is Status.BROKEN:
            self.broken[gang.name] = None
        elif gang.status is Status.LEAVING:
            self.leaving[gang.name] = None
        elif self._on_drained(gang):
            self.evacuating[gang.name] = None
        if gang.cancelled and gang.status not in (Status.WAITING, Status.LEAVING):
            self.stopping[gang.name] = None

    def fork(self) -> FleetState:
        """An independent copy, for what-if questions and for a twin that starts from here."""
        return FleetState.restore(self.snapshot())
