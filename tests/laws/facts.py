"""What events alone say about a fleet: who is where, what is out of use, and what has been promised.

Laws are judged from these facts and from nothing that the scheduler keeps. Slow and plain on purpose: a node is a pair
of names, and nothing is indexed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import floor, inf
from typing import Any

from rackscale import events as ev
from rackscale.workload import Booking, Job, Maintenance, Offer, Policy, Queue

DAY_S = 86_400.0
Node = tuple[str, int]
EVICTIONS = ("preempted-for", "reclaimed-for", "shrunk-for")
"""Codes of departures that count against budgets."""


def held(binding: ev.Binding) -> list[Node]:
    """Every node that the binding takes, its own spares included."""
    return [(segment.domain, node) for segment in binding for node in segment.held]


@dataclass
class Life:
    """One gang."""

    name: str
    job: Job
    seq: int
    status: str = "waiting"
    front: bool = False
    attempt: int = 0
    binding: ev.Binding = ()
    choice: int = 0
    claim: ev.Binding = ()
    claim_choice: int = 0
    claimed_s: float = 0.0
    cancelled: bool = False
    restarts: int = 0
    started_s: float = 0.0
    running_s: float | None = None
    saved_s: float = 0.0
    """Until when its work is kept, as far as that was reported."""
    every_s: float | None = None
    kept_s: float = 0.0
    end_s: float = inf
    """When the attempt is expected to end."""
    since_s: float = 0.0
    not_before_s: float = 0.0
    """It pauses until then, since its program failed."""

    @property
    def offer(self) -> Offer:
        return self.job.choices[self.choice]

    def remaining_s(self) -> float:
        return inf if self.job.duration_s is None else max(0.0, self.job.duration_s - self.kept_s)

    def lasts_s(self, choice: int) -> float:
        """Expected seconds from a start to the end."""
        return self.job.durability.restart_s + self.remaining_s() / self.job.choices[choice].throughput

    def keep(self, now_s: float, *, everything: bool) -> None:
        if self.running_s is None:
            return
        until_s = now_s if self.status == "running" else self.since_s
        upto_s = self.saved_s
        if everything:
            upto_s = until_s
        elif self.every_s is not None:
            saves = floor(max(0.0, until_s - self.running_s) / self.every_s)
            upto_s = max(upto_s, self.running_s + saves * self.every_s)
        self.kept_s += max(0.0, upto_s - self.saved_s) * self.offer.throughput
        self.saved_s = max(self.saved_s, upto_s)


@dataclass
class Facts:
    """The fleet at `now_s`."""

    now_s: float = 0.0
    policy: Policy = field(default_factory=Policy)
    queues: dict[str, Queue] = field(default_factory=dict)
    specs: dict[str, ev.DomainSpec] = field(default_factory=dict)
    absent: dict[str, float] = field(default_factory=dict)
    """Announced and not delivered: when expected."""
    failed: set[Node] = field(default_factory=set)
    drained: set[Node] = field(default_factory=set)
    closed: dict[tuple[str, str], set[Node]] = field(default_factory=dict)
    """(domain, maintenance or code) -> nodes."""
    maintenance: dict[str, Maintenance] = field(default_factory=dict)
    bookings: dict[str, Booking] = field(default_factory=dict)
    holding: dict[str, ev.Binding] = field(default_factory=dict)
    reserved: dict[str, ev.Reserve] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    """Gang that ended -> its attempts."""
    outcomes: Counter[str] = field(default_factory=Counter)
    evictions: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(gang or @queue, day) -> departures that count."""
    seq: int = 0
    configured_s: float = 0.0
    """When policy and queues were last changed."""

    def __post_init__(self) -> None:
        self._fold: dict[type, Callable[..., None]] = {
            ev.Announced: self._announced, ev.Delivered: self._delivered, ev.Extended: self._extended,
            ev.Configured: self._configured, ev.Submitted: self._submitted, ev.Cancelled: self._cancelled,
            ev.Drained: self._drained, ev.Undrained: self._undrained, ev.Planned: self._planned,
            ev.Unplanned: self._unplanned, ev.Booked: self._booked, ev.Unbooked: self._unbooked,
            ev.NodeFailed: self._failed, ev.NodeRepaired: self._repaired, ev.GangRunning: self._running,
            ev.Checkpointed: self._checkpointed, ev.GangEnded: self._ended, ev.Decided: self._decided,
            ev.Start: self._start, ev.Restart: self._start, ev.Preempt: self._leave, ev.Move: self._move,
            ev.Stop: self._leave, ev.Requeue: self._leave, ev.Claim: self._claim, ev.Unclaim: self._unclaim,
            ev.Refuse: self._refuse, ev.Reserve: self._reserve, ev.Unreserve: self._unreserve,
            ev.Hold: self._hold, ev.Free: self._free, ev.Close: self._close, ev.Open: self._open,
        }  # fmt: skip

    def fold(self, event: Any) -> None:
        if hasattr(event, "at_s"):
            self.now_s = max(self.now_s, event.at_s)
        fold = self._fold.get(type(event))
        if fold is not None:
            fold(event)

    # -- questions ---------------------------------------------------------------------------------------------------

    def up(self, node: Node) -> bool:
        out = self.absent.keys() & {node[0]} or node in self.failed or node in self.drained
        return not out and not any(node in nodes for nodes in self.closed.values())

    def holders(self, *, cpu: bool = False) -> dict[Node, str]:
        """Node -> gang on it, of those that need GPUs or of those that don't."""
        found: dict[Node, str] = {}
        for life in self.lives.values():
            for node in held(life.binding) if life.job.cpu_only == cpu else ():
                assert node not in found, f"{node} is held by {found[node]} and {life.name}"
                found[node] = life.name
        return found

    def claims(self) -> dict[Node, str]:
        found: dict[Node, str] = {}
        for life in self.lives.values():
            for node in held(life.claim):
                assert node not in found, f"{node} is claimed by {found[node]} and {life.name}"
                found[node] = life.name
        return found

    def booked(self) -> dict[Node, str]:
        return {node: name for name, binding in self.holding.items() for node in held(binding)}

    def path(self, queue: str) -> list[Queue]:
        """The queue and those above it; a queue that nobody configured has no limits."""
        found: list[Queue] = []
        name: str | None = queue
        while name is not None and name in self.queues and self.queues[name] not in found:
            found.append(self.queues[name])
            name = self.queues[name].parent
        return found

    def priority(self, job: Job) -> int:
        return self.policy.priorities.get(job.priority, 0)

    def nodes(self, domain: str, nodes: tuple[int, ...] | None) -> Iterator[Node]:
        return ((domain, n) for n in (range(self.specs[domain].nodes) if nodes is None else nodes))

    # -- people ------------------------------------------------------------------------------------------------------

    def _announced(self, event: ev.Announced) -> None:
        for spec in event.domains:
            if spec.name not in self.specs or spec.name in self.absent:
                self.specs.setdefault(spec.name, spec)
                self.absent[spec.name] = event.ready_s

    def _delivered(self, event: ev.Delivered) -> None:
        for spec in event.domains:
            self.specs.setdefault(spec.name, spec)
            self.absent.pop(spec.name, None)

    def _extended(self, event: ev.Extended) -> None:
        for name in event.domains:
            spec = self.specs[name]
            values = {f: getattr(spec, f) for f in spec.__struct_fields__} | {"expires_s": event.expires_s}
            self.specs[name] = ev.DomainSpec(**values)
            self.closed.pop((name, "expired"), None)

    def _configured(self, event: ev.Configured) -> None:
        self.policy, self.queues = event.policy, {queue.name: queue for queue in event.queues}
        self.configured_s = self.now_s

    def _submitted(self, event: ev.Submitted) -> None:
        if any(life.job.name == event.job.name for life in self.lives.values()):
            return
        for name in event.job.gangs():
            self.lives[name] = Life(
                name, event.job, self.seq, attempt=self.attempts.pop(name, 0), since_s=self.now_s
            )
            self.seq += 1

    def _cancelled(self, event: ev.Cancelled) -> None:
        for life in [life for life in self.lives.values() if life.job.name == event.job]:
            life.cancelled = True
            if life.status == "waiting":
                self._end(life, "cancelled")

    def _drained(self, event: ev.Drained) -> None:
        self.drained.update(self.nodes(event.domain, event.nodes))

    def _undrained(self, event: ev.Undrained) -> None:
        nodes = set(self.nodes(event.domain, event.nodes))
        self.drained -= nodes
        self._reopen(event.domain, "lemon", nodes)

    def _reopen(self, domain: str, why: str, nodes: Iterable[Node]) -> None:
        left = self.closed.pop((domain, why), set()) - set(nodes)
        if left:
            self.closed[domain, why] = left

    def _planned(self, event: ev.Planned) -> None:
        self.maintenance.setdefault(event.maintenance.name, event.maintenance)

    def _unplanned(self, event: ev.Unplanned) -> None:
        self.maintenance.pop(event.maintenance, None)
        for key in [key for key in self.closed if key[1] == event.maintenance]:
            del self.closed[key]

    def _booked(self, event: ev.Booked) -> None:
        self.bookings.setdefault(event.booking.name, event.booking)

    def _unbooked(self, event: ev.Unbooked) -> None:
        self._drop_booking(event.booking)

    def _drop_booking(self, name: str) -> None:
        self.bookings.pop(name, None)
        self.holding.pop(name, None)
        self.reserved.pop(f"@{name}", None)

    # -- executors ---------------------------------------------------------------------------------------------------

    def _failed(self, event: ev.NodeFailed) -> None:
        nodes = set(self.nodes(event.domain, event.nodes))
        self.failed |= nodes
        for life in self.lives.values():
            works_on = {(s.domain, n) for s in life.binding for n in s.nodes}
            if works_on & nodes and life.status in ("starting", "running"):
                life.status, life.since_s = "broken", self.now_s

    def _repaired(self, event: ev.NodeRepaired) -> None:
        self.failed -= set(self.nodes(event.domain, event.nodes))

    def _current(self, event: Any) -> Life | None:
        life = self.lives.get(event.gang)
        return life if life and life.binding and life.attempt == event.attempt else None

    def _running(self, event: ev.GangRunning) -> None:
        life = self._current(event)
        if life is not None and life.status == "starting":
            life.status, life.since_s = "running", self.now_s
            life.running_s = life.saved_s = self.now_s
            life.every_s = event.saves_every_s
            life.end_s = self.now_s + life.remaining_s() / life.offer.throughput

    def _checkpointed(self, event: ev.Checkpointed) -> None:
        life = self._current(event)
        if life is not None:
            life.keep(self.now_s, everything=True)

    def _ended(self, event: ev.GangEnded) -> None:
        life = self._current(event)
        if life is None:
            return
        life.keep(self.now_s, everything=event.checkpointed)
        told = life.status in ("leaving", "broken")
        life.binding, life.running_s, life.every_s, life.end_s = (), None, None, inf
        if event.outcome == "finished" and life.job.kind != "service":
            self._end(life, "finished")
        elif life.cancelled:
            self._end(life, "cancelled")
        elif not told and life.restarts >= life.job.durability.max_restarts:
            self._end(life, "failed")
        else:
            life.restarts += not told
            if not told:
                pause_s = life.job.durability.retry_delay_s * 2 ** (life.restarts - 1)
                life.not_before_s = self.now_s + min(300.0, pause_s)
            life.status, life.front, life.since_s = "waiting", True, self.now_s

    def _end(self, life: Life, outcome: str) -> None:
        del self.lives[life.name]
        self.attempts[life.name] = life.attempt
        self.outcomes[outcome] += 1
        self.reserved.pop(life.name, None)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _decided(self, event: ev.Decided) -> None:
        for action in event.plan.actions:
            self._fold[type(action)](action)

    def _start(self, action: ev.Start | ev.Restart) -> None:
        life = self.lives[action.gang]
        if life.binding:
            life.keep(self.now_s, everything=False)
        life.claim = ()
        life.status, life.since_s, life.started_s = "starting", self.now_s, self.now_s
        life.attempt, life.binding, life.choice = action.attempt, action.binding, action.choice
        life.running_s = life.every_s = None
        life.end_s = self.now_s + life.lasts_s(action.choice)
        self.reserved.pop(action.gang, None)

    def _leave(self, action: ev.Preempt | ev.Move | ev.Stop | ev.Requeue) -> None:
        life = self.lives[action.gang]
        life.status, life.since_s = "leaving", self.now_s
        if action.reason.code in EVICTIONS:
            day = int(self.now_s // DAY_S)
            self.evictions[life.name, day] += 1
            self.evictions["@" + life.job.queue, day] += 1

    def _move(self, action: ev.Move) -> None:
        self._leave(action)
        self._claim(action)

    def _claim(self, action: ev.Claim | ev.Move) -> None:
        life = self.lives[action.gang]
        life.claim, life.claim_choice, life.claimed_s = action.binding, action.choice, self.now_s
        self.reserved.pop(action.gang, None)

    def _unclaim(self, action: ev.Unclaim) -> None:
        self.lives[action.gang].claim = ()

    def _refuse(self, action: ev.Refuse) -> None:
        for life in [life for life in self.lives.values() if life.job.name == action.job]:
            self._end(life, "refused")

    def _reserve(self, action: ev.Reserve) -> None:
        self.reserved[action.gang] = action

    def _unreserve(self, action: ev.Unreserve) -> None:
        self.reserved.pop(action.gang, None)

    def _hold(self, action: ev.Hold) -> None:
        self.holding[action.booking] = action.binding
        self.reserved.pop(f"@{action.booking}", None)

    def _free(self, action: ev.Free) -> None:
        self._drop_booking(action.booking)

    def _close(self, action: ev.Close) -> None:
        why = action.reason.window or action.reason.code
        nodes = self.closed.setdefault((action.domain, why), set())
        nodes.update(self.nodes(action.domain, action.nodes))

    def _open(self, action: ev.Open) -> None:
        why = action.reason.window or action.reason.code
        self.maintenance.pop(why, None)
        self._reopen(action.domain, why, self.nodes(action.domain, action.nodes))
