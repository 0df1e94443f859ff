"""The laws of a plan and of a state, checked from bindings alone: nothing here trusts the scheduler's own books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rackscale.events import (
    Binding,
    Claim,
    Decided,
    Event,
    Plan,
    Preempt,
    Refuse,
    Requeue,
    Reserve,
    Restart,
    Start,
    Stop,
    Unclaim,
)
from rackscale.fleet.gangs import DAY_S, Gang, Status
from rackscale.fleet.state import HELD, FleetState
from rackscale.scheduler.fit import place
from rackscale.workload import Job

Node = tuple[str, int]


def nodes(binding: Binding) -> list[Node]:
    return [(segment.domain, node) for segment in binding for node in segment.nodes]


def up(state: FleetState, node: Node) -> bool:
    d = state.index[node[0]]
    return not (state.failed[d] | state.drained[d]) >> node[1] & 1


def check_shape(state: FleetState, job: Job, binding: Binding) -> None:
    """A gang is whole, a segment lies inside one domain, and all of it where the job may run."""
    assert len(binding) == job.shape.segments
    assert all(len(s.nodes) == len(set(s.nodes)) == job.shape.nodes_per_segment for s in binding)
    used = nodes(binding)
    assert len(used) == len(set(used))
    specs = [state.domains[state.index[s.domain]] for s in binding]
    assert all(0 <= n < spec.nodes for s, spec in zip(binding, specs, strict=True) for n in s.nodes)
    assert len({(spec.cluster, spec.system) for spec in specs}) == 1
    assert job.cluster in (None, specs[0].cluster)
    assert job.system in (None, specs[0].system)
    if not job.shape.may_share_domain:
        assert len({s.domain for s in binding}) == len(binding)


class Lawyer:
    """Listens to a controller. When a decision passes, the state is still the one that it was made from."""

    def __init__(self) -> None:
        self.evictions: Counter[tuple[str, int]] = Counter()
        """(gang, day) and (queue, day) -> preemptions."""
        self.promised: Mapping[str, Reserve] = {}
        """What was promised when the last decision was made."""

    def hear(self, state: FleetState, event: Event) -> None:
        if isinstance(event, Decided):
            self.promised = dict(state.reserved)
            _Case(self, state, event.plan).judge()


class _Case:
    """One plan, action by action."""

    def __init__(self, lawyer: Lawyer, state: FleetState, plan: Plan) -> None:
        self.lawyer, self.state, self.plan = lawyer, state, plan
        gangs = state.gangs.values()
        self.held = {node: gang.name for gang in gangs for node in nodes(gang.binding)}
        self.claimed = {node: gang.name for gang in gangs for node in nodes(gang.claim)}
        self.leaving = {gang.name for gang in gangs if gang.status is Status.LEAVING}
        self.leaving |= {a.gang for a in plan.actions if isinstance(a, Preempt | Stop | Requeue)}

    def judge(self) -> None:
        assert self.plan.at_s == self.state.now_s
        for action in self.plan.actions:
            match action:
                case Start():
                    self.start(action)
                case Restart():
                    self.restart(action)
                case Claim():
                    self.claim(action)
                case Unclaim():
                    self.unclaim(action)
                case Preempt():
                    self.preempt(action)
                case Stop() | Requeue():
                    gang = self.state.gangs[action.gang]
                    assert gang.attempt == action.attempt
                    assert gang.status in HELD
                    assert gang.status is not Status.LEAVING
                    assert gang.cancelled or not isinstance(action, Stop)
                case Refuse():
                    assert all(gang not in self.held.values() for gang in self.state.jobs[action.job].gangs())
        told = Counter(a.gang for a in self.plan.actions if isinstance(a, Preempt | Stop | Requeue | Restart))
        assert all(count == 1 for count in told.values()), "one gang, two orders"

    def bind(self, gang: Gang, binding: Binding) -> None:
        check_shape(self.state, self.state.jobs[gang.job], binding)
        for node in nodes(binding):
            assert up(self.state, node), f"{gang.name} placed on {node}, which is failed or drained"
            assert self.held.get(node, gang.name) == gang.name, f"{node} held twice"
            assert self.claimed.get(node, gang.name) == gang.name, f"{node} is claimed by somebody else"
            self.held[node] = gang.name

    def start(self, action: Start) -> None:
        gang = self.state.gangs[action.gang]
        assert gang.status is Status.WAITING
        assert action.attempt == gang.attempt + 1
        assert not gang.cancelled
        if gang.claim:
            assert action.binding == gang.claim
            assert not set(nodes(gang.claim)) & set(self.held)
        self.bind(gang, action.binding)
        for node in nodes(gang.claim):
            del self.claimed[node]
        if action.reason.code == "fits":
            for segment in action.binding:
                self.keeps_spares(segment.domain, held=set(self.held))

    def restart(self, action: Restart) -> None:
        gang = self.state.gangs[action.gang]
        assert gang.status is Status.BROKEN
        assert action.attempt == gang.attempt + 1
        assert not gang.cancelled
        before = nodes(gang.binding)
        for node in before:
            del self.held[node]
        self.bind(gang, action.binding)
        # What it left is free after this decision, not within it.
        self.held.update({node: gang.name for node in before if node not in self.held})

    def claim(self, action: Claim) -> None:
        gang = self.state.gangs[action.gang]
        assert gang.status is Status.WAITING
        assert not gang.claim
        check_shape(self.state, self.state.jobs[gang.job], action.binding)
        for node in nodes(action.binding):
            assert up(self.state, node)
            assert node not in self.claimed, f"{node} claimed twice"
            holder = self.held.get(node)
            assert holder is None or holder in self.leaving, f"{node} is claimed, but {holder} stays"
            self.claimed[node] = gang.name
        staying = {node for node, holder in self.held.items() if holder not in self.leaving}
        for segment in action.binding:
            self.keeps_spares(segment.domain, held=staying)

    def unclaim(self, action: Unclaim) -> None:
        claim = nodes(self.state.gangs[action.gang].claim)
        assert claim
        for node in claim:
            del self.claimed[node]

    def keeps_spares(self, domain: str, *, held: set[Node]) -> None:
        spec = self.state.domains[self.state.index[domain]]
        free = [
            n
            for n in range(spec.nodes)
            if up(self.state, (domain, n)) and (domain, n) not in held and (domain, n) not in self.claimed
        ]
        assert len(free) >= spec.spares, f"{domain} was left without its spares"

    def preempt(self, action: Preempt) -> None:
        state, gang = self.state, self.state.gangs[action.gang]
        job = state.jobs[gang.job]
        assert gang.attempt == action.attempt
        if action.reason.code == "drain":
            assert any(state.drained[state.index[d]] >> n & 1 for d, n in nodes(gang.binding))
            return
        assert action.reason.code == "preempted-for"
        assert action.reason.for_gang is not None
        winner, policy = state.gangs[action.reason.for_gang], state.policy
        (claim,) = [a for a in self.plan.actions if isinstance(a, Claim) and a.gang == winner.name]
        assert {s.domain for s in claim.binding} & {s.domain for s in gang.binding}, "a victim for nothing"
        assert policy.preemption
        assert job.preemptible
        assert gang.status is Status.RUNNING
        assert policy.priorities[job.priority] < policy.priorities[state.jobs[winner.job].priority]
        assert gang.started_s is not None
        assert state.now_s - gang.started_s >= policy.min_runtime_s
        assert state.now_s - gang.started_s >= job.durability.restart_s
        day = int(state.now_s // DAY_S)
        evictions = self.lawyer.evictions
        evictions["gang " + gang.name, day] += 1
        evictions["queue " + job.queue, day] += 1
        assert evictions["gang " + gang.name, day] <= policy.max_evictions_per_day, "gang's budget"
        queue = state.queues.get(job.queue)
        if queue is not None and queue.max_evictions_per_day is not None:
            assert evictions["queue " + job.queue, day] <= queue.max_evictions_per_day, "queue's budget"


def check_state(state: FleetState, lawyer: Lawyer) -> None:
    """Between two cycles."""
    holders: dict[Node, str] = {}
    claims: dict[Node, str] = {}
    for gang in state.gangs.values():
        job = state.jobs[gang.job]
        assert gang.name in job.gangs()
        assert bool(gang.binding) == (gang.status in HELD)
        assert not gang.claim or gang.status is Status.WAITING
        for binding, taken in ((gang.binding, holders), (gang.claim, claims)):
            if binding:
                check_shape(state, job, binding)
            for node in nodes(binding):
                assert node not in taken, f"{node} is held or claimed twice"
                taken[node] = gang.name
    for d, spec in enumerate(state.domains):
        mask = {"held": holders, "claimed": claims}
        for name, taken in mask.items():
            bits = sum(1 << n for n in range(spec.nodes) if (spec.name, n) in taken)
            assert getattr(state.occupancy, name)[d] == bits
    waiting = [g.name for g in state.gangs.values() if g.status is Status.WAITING and not g.claim]
    waiting = [name for name in waiting if name not in state.paused]
    assert sorted(waiting) == sorted(state.waiting)
    assert state.waiting.size == len(waiting)
    check_nobody_waits_for_nothing(state, waiting, lawyer.promised)
    check_restored(state)


def check_nobody_waits_for_nothing(
    state: FleetState, waiting: list[str], before: Mapping[str, Reserve]
) -> None:
    """What fits beside all that others were promised was started, unless the next decision is due already.

    `before`: what was promised when the last decision was made. Whom one of those kept waiting is looked at again at
    the next retry.
    """
    if state.dirty or (state.wake_at_s is not None and state.wake_at_s <= state.now_s):
        return
    for name in waiting:
        job = state.jobs[state.gangs[name].job]
        if place(state, job.choices[0], job, avoid=_promised(state, name, state.reserved)) is None:
            continue
        told = f"{name} fits and was not started"
        assert place(state, job.choices[0], job, avoid=_promised(state, name, before)) is None, told
        assert state.wake_at_s is not None, told
        assert state.retry_at_s is not None, told
        assert state.wake_at_s <= state.retry_at_s, told


def _promised(state: FleetState, name: str, reserved: Mapping[str, Reserve]) -> int:
    """Domains that have no room for the gang beside what others were promised, but for those surely behind it.

    Nobody knows how long these gangs run: whoever starts stays beyond every promise.
    """
    gang, index = state.gangs[name], state.index
    shape = state.jobs[gang.job].shape
    need = shape.nodes_per_segment * (shape.segments if shape.may_share_domain else 1)
    promised = Counter[int]()
    for other, promise in reserved.items():
        holder = state.gangs.get(other)
        if other != name and holder is not None and holder.order()[:3] <= gang.order()[:3]:
            for domain in promise.domains:
                promised[index[domain]] += state.jobs[holder.job].shape.nodes_per_segment
    return sum(1 << d for d, nodes in promised.items() if state.occupancy.room[d] - nodes < need)


def check_restored(state: FleetState) -> None:
    """A restored state is the state, indexes and all."""
    data = state.snapshot()
    other = FleetState.restore(data)
    assert other.snapshot() == data
    for name in ("full", "up", "held", "claimed", "free", "spares", "room"):
        assert getattr(other.occupancy, name) == getattr(state.occupancy, name), name
    size = max(len(state.occupancy.buckets), len(other.occupancy.buckets))
    for r in range(size):
        assert state.occupancy.buckets[r] == other.occupancy.buckets[r]
    assert other.tenants.on == state.tenants.on
    for priority in {*state.policy.priorities.values(), 1}:
        assert other.tenants.below(priority).nodes == state.tenants.below(priority).nodes
    assert other.occupancy.grown == state.occupancy.grown
    classes = [{key: cls.entries for key, cls in s.waiting.classes.items()} for s in (other, state)]
    assert classes[0] == classes[1]
    for name in ("claimants", "broken", "stopping", "evacuating", "leaving"):
        assert set(getattr(other, name)) == set(getattr(state, name)), name
