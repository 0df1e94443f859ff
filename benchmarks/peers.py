"""Other ways to decide, which drive the same twin: what rackscale is compared with on recorded jobs.

Each peer answers `(state, now_s) -> Plan` and remembers only the line of waiting gangs between decisions. All of them
start what was claimed, mend what broke and clear drained nodes with rackscale's own steps, so that what is compared is
order, backfill, placement and preemption. Spares, quotas and what the scheduler is told of durations are the same.

    Fifo      strict order, the head of the line blocks. Slurm's sched/builtin; Kueue's StrictFIFO.
    Easy      the head is promised a start, others go ahead if they don't delay it; preemption by quota.
    Racks     Easy, but what the head is promised is domains, not a number of nodes.
    Scatter   Easy, but a segment goes to any domain with room: no best fit by domain.

What they stand for, as documented in November 2026:

- Slurm, sched/builtin: jobs in strict priority order; one that stays pending holds up all behind it
  (slurm.schedmd.com/sched_config.html). sched/backfill starts others where that does not delay expected starts.
- Kueue: admission by quota. A workload whose queue stays within its nominal quota takes back what other queues of the
  cohort borrow, whoever runs there (`reclaimWithinCohort: Any`), and preempts lower priorities of its own queue
  (`withinClusterQueue: LowerPriority`). Candidates: other queues first, lower priority first, admitted last first;
  taken until the workload fits its quota, and put back in reverse as far as it still fits (pkg/scheduler/preemption).
- That this knows no racks is an open issue there: a 16-node gang of one NVLink clique waits while what is preempted
  scatters over cliques (kubernetes-sigs/kueue#10815, #5243). Newer versions look at topology; `Easy` does not.

What they don't stand for: Slurm tests preemption against the nodes that it would select, so a site with topology/block
may do better than `Easy`; Volcano's gang-aware reclaim of 1.15 and Kueue's fair sharing are not modelled.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from zlib import crc32

from rackscale.events import Action, Binding, Plan, Preempt, Reason, Segment, Start
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import Occupancy, lowest_nodes, mask_of, members
from rackscale.fleet.state import FleetState
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.price import cost
from rackscale.scheduler.repair import repair, settle, withdraw
from rackscale.workload import Job, Shape

DEPTH = 500
"""Waiting gangs behind the head that are tried in one decision: Slurm's default for bf_max_job_test."""
HEADS = 8
"""Waiting gangs, the first in order, that may preempt in one decision; rackscale reserves for as many."""
OVERRUN = 0.1
"""A gang that runs longer than was said is expected to take this share of the estimate more, as in the twin."""

Place = Callable[[Occupancy, Gang, Shape, int], list[int] | None]
"""Domains for the segments of a gang, one each, or None. The number is a set of domains not to use."""
LineKey = tuple[int, bool, int, int]


def best_fit(occupancy: Occupancy, gang: Gang, shape: Shape, avoid: int) -> list[int] | None:  # noqa: ARG001 - a `Place`
    """The domains with the least room that is enough, in fabric order."""
    chosen: list[int] = []
    for room in range(shape.nodes_per_segment, len(occupancy.buckets)):
        for d in members(occupancy.buckets[room] & ~avoid):
            chosen.append(d)
            if len(chosen) == shape.segments:
                return sorted(chosen)
    return None


def scatter(occupancy: Occupancy, gang: Gang, shape: Shape, avoid: int) -> list[int] | None:
    """Any domains with room: the first in fabric order from a place that the gang's name decides.

    What a scheduler does that scores nodes one by one: whole free nodes all score the same.
    """
    fitting = 0
    for room in range(shape.nodes_per_segment, len(occupancy.buckets)):
        fitting |= occupancy.buckets[room] & ~avoid
    if fitting.bit_count() < shape.segments:
        return None
    at = crc32(f"{gang.name}/{gang.attempt}".encode()) % len(occupancy.room)
    chosen: list[int] = []
    for part in (fitting >> at << at, fitting & ((1 << at) - 1)):
        for d in members(part):
            chosen.append(d)
            if len(chosen) == shape.segments:
                return sorted(chosen)
    raise AssertionError("fewer domains than were counted")


class Fifo:
    """Priority, then those that ran before, then submission; nobody passes a gang that does not fit."""

    def __init__(self, place: Place = best_fit) -> None:
        self._place = place
        self._line: list[tuple[LineKey, str]] | None = None
        """Waiting gangs in order. Those that have ended meanwhile are dropped when they are met."""
        self._begun: list[tuple[float, int, int]] = []
        """Segments started in this decision: when they are expected to end, their domain and their nodes."""

    def __call__(self, state: FleetState, now_s: float) -> Plan:
        timer = state.wake_at_s is not None and now_s >= state.wake_at_s
        if not state.dirty and not timer:
            return Plan(at_s=now_s, wake_at_s=state.wake_at_s)
        self._join(state)
        self._begun = []
        machines = state.machines
        machines.now_s = now_s
        cycle = Cycle(state, now_s, due=False)
        machines.gpu.occupancy.begin()
        machines.cpu.occupancy.begin()
        try:
            settle(cycle)
            repair(cycle)
            withdraw(cycle)
            if self._start(state, now_s, cycle.actions):
                self._wait(state, now_s, cycle.actions, cycle.leaving)
        finally:
            machines.gpu.occupancy.end()
            machines.cpu.occupancy.end()
            state.tree.end_trial()
            for d in cycle.touched:
                machines.horizon.touch(d)
        return Plan(at_s=now_s, actions=tuple(cycle.actions), wake_at_s=now_s if cycle.retry else None)

    def _join(self, state: FleetState) -> None:
        if self._line is None:
            self._line = []
            fresh = list(state.gangs)
        else:
            fresh = list(state.fresh)
        for name in fresh:
            gang = state.gangs[name]
            if gang.status is Status.WAITING and not gang.claim:
                bisect.insort(self._line, ((-gang.priority, not gang.front, gang.rank, gang.seq), name))

    def _waiting(self, state: FleetState) -> Iterator[Gang]:
        """Gangs in order, while the line is changed only by `_go`."""
        assert self._line is not None
        at = 0
        while at < len(self._line):
            gang = state.gangs.get(self._line[at][1])
            if gang is None or gang.status is not Status.WAITING:
                del self._line[at]
                continue
            before = len(self._line)
            yield gang
            at += len(self._line) == before

    def _go(self, state: FleetState, gang: Gang, actions: list[Action], avoid: int = 0) -> bool:
        """Start the gang if it fits now."""
        job, occupancy = state.jobs[gang.job], state.occupancy
        shape = job.shape
        domains = self._place(occupancy, gang, shape, avoid)
        if domains is None:
            return False
        binding: Binding = ()
        for d in domains:
            nodes = lowest_nodes(occupancy.free[d], shape.nodes_per_segment)
            occupancy.hold(d, mask_of(nodes))
            binding = (*binding, Segment(domain=state.domains[d].name, nodes=nodes))
        actions.append(
            Start(gang=gang.name, attempt=gang.attempt + 1, binding=binding, reason=Reason(code="fits"))
        )
        end_s = _end_s(state, gang, state.now_s)
        self._begun += [(end_s, d, shape.nodes_per_segment) for d in domains]
        assert self._line is not None
        key = (-gang.priority, not gang.front, gang.rank, gang.seq)
        del self._line[bisect.bisect_left(self._line, (key, gang.name))]
        return True

    def _start(self, state: FleetState, now_s: float, actions: list[Action]) -> bool:  # noqa: ARG002
        """Start the head as often as it fits; whether somebody waits then."""
        return any(not self._go(state, gang, actions) for gang in self._waiting(state))

    def _wait(self, state: FleetState, now_s: float, actions: list[Action], leaving: set[str]) -> None:
        """What else is done about the gangs that wait: nothing."""


class Easy(Fifo):
    """The head of the line has a reservation, by count of nodes; gangs behind it may not delay it.

    Preemption is triggered by quota, not by topology: a gang whose queue stays within its quota takes back what other
    queues hold beyond theirs, until as many nodes are free *in number* as it needs. They may lie anywhere. A gang of a
    queue without quota preempts only lower priorities of its own queue.
    """

    def __init__(self, place: Place = best_fit) -> None:
        super().__init__(place)
        self._owed: set[str] = set()
        """Gangs that others were sent away for, and that still wait."""

    def _start(self, state: FleetState, now_s: float, actions: list[Action]) -> bool:
        self._owed = {name for name in self._owed if name in state.gangs and not state.gangs[name].binding}
        waiting = self._waiting(state)
        head = next((gang for gang in waiting if not self._go(state, gang, actions)), None)
        if head is None:
            return False
        rooms = state.occupancy.buckets
        if not any(rooms[1:]):
            return True
        shadow_s, extra, kept = self._reserve(state, head, now_s)
        failed: set[Shape] = set()
        for gang in list(islice(waiting, DEPTH)):
            job = state.jobs[gang.job]
            shape = job.shape
            if shape in failed:
                continue
            passing = self._passes(gang, job, now_s, shadow_s)
            if not (passing or shape.nodes <= extra or gang.name in self._owed):
                continue
            owed = gang.name in self._owed
            if not self._go(state, gang, actions, 0 if passing else kept):
                failed.add(shape)
                if shape.nodes == 1:
                    break
            elif not (passing or owed):
                extra -= shape.nodes
        return True

    def _passes(self, gang: Gang, job: Job, now_s: float, shadow_s: float) -> bool:
        """Whether the gang is expected to end before the reservation begins."""
        if job.duration_s is None:
            return shadow_s == inf
        return now_s + job.durability.restart_s + job.duration_s - gang.kept_s <= shadow_s

    def _go(self, state: FleetState, gang: Gang, actions: list[Action], avoid: int = 0) -> bool:
        started = super()._go(state, gang, actions, avoid)
        if started:
            self._owed.discard(gang.name)
        return started

    def _reserve(self, state: FleetState, head: Gang, now_s: float) -> tuple[float, int, int]:
        """When enough nodes are expected to be free for the head, how many more will be then, and where it starts.

        A count knows no place: the set of domains is empty. Those that others were sent away for have their nodes
        reserved with the head's.
        """
        need = sum(state.jobs[state.gangs[name].job].shape.nodes for name in self._owed | {head.name})
        free = _free(state)
        if free >= need:
            return now_s, free - need, 0
        ends = [
            (_end_s(state, gang, now_s), sum(len(segment.nodes) for segment in gang.binding))
            for gang in _holders(state)
        ]
        for end_s, nodes in sorted(ends + [(end_s, nodes) for end_s, _, nodes in self._begun]):
            free += nodes
            if free >= need:
                return end_s, free - need, 0
        return inf, 0, 0

    def _wait(self, state: FleetState, now_s: float, actions: list[Action], leaving: set[str]) -> None:
        """Preempt for the first in the line, by quota."""
        free = _free(state)
        quota = Quotas(state, leaving)
        for tried, gang in enumerate(self._waiting(state)):
            if tried == HEADS or not state.policy.preemption:
                break
            job = state.jobs[gang.job]
            need = job.shape.nodes * quota.gpus_per_node
            victims = quota.victims(gang, need, free * quota.gpus_per_node)
            if victims:
                self._owed.add(gang.name)
            for victim in victims:
                price = cost(state, victim, now_s)
                reason = Reason(
                    code="preempted-for", for_gang=gang.name, lost_gpu_s=price.lost_gpu_s,
                    restart_gpu_s=price.restart_gpu_s, penalty_gpu_s=price.penalty_gpu_s,
                )  # fmt: skip
                grace_s = state.jobs[victim.job].durability.grace_s
                actions.append(
                    Preempt(gang=victim.name, attempt=victim.attempt, grace_s=grace_s, reason=reason)
                )
                leaving.add(victim.name)
            if victims or tried == 0 or quota.short(need, free * quota.gpus_per_node) <= 0:
                quota.promise(job.queue, need)


class Quotas:
    """What queues hold against their quotas, GPUs, and whom a gang may send away for it."""

    def __init__(self, state: FleetState, leaving: set[str]) -> None:
        self.state = state
        self.gpus_per_node = state.domains[0].gpus_per_node if state.domains else 0
        self.used: Counter[str] = Counter()
        self.coming = 0
        """GPUs that gangs hold that leave."""
        self.running: list[Gang] = []
        """Those that may be preempted; the lowest priority, then the latest start first."""
        for gang in _holders(state):
            if gang.status is Status.LEAVING or gang.name in leaving:
                self.coming += gang.gpus
                continue
            job = state.jobs[gang.job]
            self.used[job.queue] += gang.gpus
            if gang.status is Status.RUNNING and job.preemptible:
                self.running.append(gang)
        self._ranked = False

    def quota(self, queue: str) -> float:
        found = self.state.queues.get(queue)
        return 0 if found is None or found.quota_gpus is None else found.quota_gpus

    def promise(self, queue: str, gpus: int) -> None:
        """These GPUs are spoken for by a gang that waits."""
        self.used[queue] += gpus
        self.coming -= gpus

    def short(self, need: int, free: int) -> int:
        """GPUs that are missing in number, with what is free and what comes."""
        return need - free - self.coming

    def victims(self, gang: Gang, need: int, free: int) -> list[Gang]:
        """Whom to send away so that `need` GPUs are free in number; nobody if that can't be reached."""
        jobs = self.state.jobs
        queue = jobs[gang.job].queue
        within = self.used[queue] + need <= self.quota(queue)
        short = self.short(need, free)
        if short <= 0:
            return []
        taken: list[Gang] = []
        used = self.used.copy()
        gained = 0
        for other in self._candidates(gang, queue, within):
            theirs = jobs[other.job].queue
            if theirs != queue and used[theirs] <= self.quota(theirs):
                continue
            taken.append(other)
            used[theirs] -= other.gpus
            gained += other.gpus
            if gained >= short:
                break
        else:
            return []
        kept = []
        for other in reversed(taken):
            if gained - other.gpus >= short:
                gained -= other.gpus
            else:
                kept.append(other)
        for other in kept:
            self._take(other)
        return kept

    def _candidates(self, gang: Gang, queue: str, within: bool) -> list[Gang]:
        """Other queues' gangs first, then lower priorities of its own queue."""
        jobs = self.state.jobs
        over = (
            {name for name, used in self.used.items() if name != queue and used > self.quota(name)}
            if within
            else ()
        )
        if not over and not self.state.tenants.any_below(gang.priority):
            return []
        if not self._ranked:
            self.running.sort(key=lambda g: (g.priority, -(g.started_s or 0.0), g.name))
            self._ranked = True
        own = [g for g in self.running if g.priority < gang.priority and jobs[g.job].queue == queue]
        return [g for g in self.running if jobs[g.job].queue in over] + own

    def _take(self, gang: Gang) -> None:
        self.used[self.state.jobs[gang.job].queue] -= gang.gpus
        self.coming += gang.gpus
        self.running.remove(gang)


class Racks(Easy):
    """`Easy` with a reservation of real domains: those where the head's segments are expected to fit first.

    Closer to Slurm's backfill with topology/block, which plans with the nodes that it would select. What preempts is
    still the quota, by count.
    """

    def _reserve(self, state: FleetState, head: Gang, now_s: float) -> tuple[float, int, int]:
        shape, occupancy = state.jobs[head.job].shape, state.occupancy
        begun: dict[int, list[tuple[float, int]]] = {}
        for end_s, d, nodes in self._begun:
            begun.setdefault(d, []).append((end_s, nodes))
        fits: list[tuple[float, int, int]] = []
        for d, on in enumerate(state.tenants.on):
            at_s, room = now_s, occupancy.room[d]
            if room < shape.nodes_per_segment:
                ends = [
                    (_end_s(state, state.gangs[name], now_s), mask.bit_count()) for name, mask in on.items()
                ]
                for end_s, nodes in sorted(ends + begun.get(d, [])):
                    at_s, room = end_s, room + nodes
                    if room >= shape.nodes_per_segment:
                        break
            if room >= shape.nodes_per_segment:
                fits.append((at_s, occupancy.room[d], d))
        chosen = sorted(fits)[: shape.segments]
        if len(chosen) < shape.segments:
            return inf, _free(state), 0
        others = self._owed - {head.name}
        owed = sum(state.jobs[state.gangs[name].job].shape.nodes for name in others)
        shadow_s = (
            now_s if others else chosen[-1][0]
        )  # what passes the head must not take what others are owed
        return shadow_s, max(0, _free(state) - owed), sum(1 << d for _, _, d in chosen)


class Scatter(Easy):
    """`Easy` without best fit by domain: what the placement alone brings."""

    def __init__(self) -> None:
        super().__init__(scatter)


def _holders(state: FleetState) -> list[Gang]:
    """Gangs that hold nodes."""
    return [state.gangs[name] for name in sorted({name for on in state.tenants.on for name in on})]


def _free(state: FleetState) -> int:
    """Nodes that normal placement may use, over the fleet."""
    return sum(room * domains.bit_count() for room, domains in enumerate(state.occupancy.buckets))


def _end_s(state: FleetState, gang: Gang, now_s: float) -> float:
    """When the gang is expected to free its nodes."""
    job = state.jobs[gang.job]
    if gang.status is Status.LEAVING:
        return max(now_s, gang.since_s + job.durability.grace_s)
    if gang.binding:
        end_s = inf if gang.expected_end_s is None else gang.expected_end_s
    else:
        end_s = (
            now_s
            + job.durability.restart_s
            + (inf if job.duration_s is None else job.duration_s - gang.kept_s)
        )
    return end_s if end_s > now_s else now_s + OVERRUN * (job.duration_s or 0.0)
