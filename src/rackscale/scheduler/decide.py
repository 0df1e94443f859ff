"""`decide(state, now_s) -> Plan`: the one place where anything is decided.

    1  settle    claims whose nodes are free become starts; broken claims are given up
    2  repair    gangs that lost a node get a spare, move a segment, or wait again
    3  withdraw  cancelled gangs stop; gangs on drained nodes leave
    4  place     waiting gangs in order, by best fit, without moving anybody
    5  clear     for those that still wait: the cheapest victims that open the domains they need

Pure: the state is read, and the occupancy's what-if is always rolled back.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection

from rackscale.events import (
    Action,
    Binding,
    Claim,
    Plan,
    Preempt,
    Reason,
    Refuse,
    Requeue,
    Restart,
    Segment,
    Start,
    Stop,
    Unclaim,
)  # fmt: skip
from rackscale.fleet.gangs import Gang, WaitKey, shift
from rackscale.fleet.occupancy import lowest_nodes, mask_of
from rackscale.fleet.state import FleetState
from rackscale.scheduler.fit import bind, ever_fits, place, place_one
from rackscale.scheduler.preempt import Clearer, cost
from rackscale.workload import Shape


def decide(state: FleetState, now_s: float) -> Plan:
    """What to do now. The same state and time always give the same plan, byte for byte."""
    timer = state.wake_at_s is not None and now_s >= state.wake_at_s
    if not state.dirty and not timer:
        return Plan(at_s=now_s, wake_at_s=state.wake_at_s)
    cycle = Cycle(state, now_s, timer=timer)
    state.occupancy.begin()
    try:
        cycle.settle()
        cycle.repair()
        cycle.withdraw()
        cycle.place()
        cycle.clear()
    finally:
        state.occupancy.end()
    wake_at_s = now_s if cycle.retry else cycle.wake_at_s
    return Plan(at_s=now_s, actions=tuple(cycle.actions), wake_at_s=wake_at_s)


class Cycle:
    """The working memory of one decision."""

    def __init__(self, state: FleetState, now_s: float, *, timer: bool) -> None:
        self.state, self.now_s, self.timer = state, now_s, timer
        self.due = state.policy.preemption and (timer or (state.wake_at_s is None and self._evictable()))
        """Whether all that wait may have domains cleared for them, not only new gangs."""
        self.actions: list[Action] = []
        self.wake_at_s: float | None = None
        self.leaving: set[str] = set()
        """Gangs told to leave in this cycle."""
        self.evicted: Counter[str] = Counter()
        """Gangs preempted in this cycle, by queue."""
        self.retry = False
        """Whether this plan itself frees nodes (a claim broke, a segment moved): decide again at once."""
        self.blocked: list[tuple[WaitKey, int]] = []
        """Classes whose gangs still wait, best first, with the position of the first gang that does."""

    def _evictable(self) -> bool:
        """Whether somebody waits who could evict anybody."""
        classes = self.state.waiting.classes
        return bool(classes) and self.state.tenants.any_below(-min(key[0] for key in classes))

    def _by_order(self, names: Collection[str]) -> list[Gang]:
        if not names:
            return []
        return sorted((self.state.gangs[name] for name in names), key=Gang.order)

    def _hold(self, binding: Binding) -> None:
        for segment in binding:
            self.state.occupancy.hold(self.state.index[segment.domain], mask_of(segment.nodes))

    def _start(self, gang: Gang, binding: Binding, reason: Reason) -> None:
        self._hold(binding)
        self.actions.append(Start(gang=gang.name, attempt=gang.attempt + 1, binding=binding, reason=reason))

    # -- 1 settle ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        state, occupancy = self.state, self.state.occupancy
        for gang in self._by_order(state.claimants):
            masks = state.claimants[gang.name]
            if any(mask & ~occupancy.up[d] for d, mask in masks):
                self.actions.append(Unclaim(gang=gang.name, reason=Reason(code="claim-broken")))
                for d, mask in masks:
                    occupancy.unclaim(d, mask)
                self.retry = True
            elif not any(mask & occupancy.held[d] for d, mask in masks):
                for d, mask in masks:
                    occupancy.unclaim(d, mask)
                self._start(gang, gang.claim, Reason(code="claim-complete"))

    # -- 2 repair ----------------------------------------------------------------------------------------------------

    def repair(self) -> None:
        for gang in self._by_order(self.state.broken):
            if gang.name in self.state.stopping:
                continue
            lost = cost(self.state, gang, self.now_s)
            binding, code, where = self._mend(gang)
            reason = Reason(
                code=code, domain=where[0], node=where[1],
                lost_gpu_s=lost.lost_gpu_s, restart_gpu_s=lost.restart_gpu_s,
            )  # fmt: skip
            if binding is None:
                self.actions.append(Requeue(gang=gang.name, attempt=gang.attempt, reason=reason))
                self.leaving.add(gang.name)
            else:
                attempt = gang.attempt + 1
                self.retry |= code == "moved-segment"
                self.actions.append(Restart(gang=gang.name, attempt=attempt, binding=binding, reason=reason))

    def _mend(self, gang: Gang) -> tuple[Binding | None, str, tuple[str, int]]:
        """The gang's binding with every failed node replaced, holding the new nodes; (None, ...) if there is none."""
        state, occupancy = self.state, self.state.occupancy
        binding, code, where = gang.binding, "spare", ("", 0)
        mark = occupancy.mark()
        for at, segment in enumerate(gang.binding):
            d = state.index[segment.domain]
            dead = [node for node in segment.nodes if not occupancy.up[d] >> node & 1]
            if not dead:
                continue
            where = where if where[0] else (segment.domain, dead[0])
            if occupancy.free[d].bit_count() >= len(dead):
                spares = lowest_nodes(occupancy.free[d], len(dead))
                occupancy.hold(d, mask_of(spares))
                for node, spare in zip(dead, spares, strict=True):
                    binding = shift(binding, (segment.domain, node), spare)
                continue
            moved = self._move(gang, segment)
            if moved is None:
                occupancy.rollback(mark)
                return None, "no-replacement", where
            binding, code = (*binding[:at], moved, *binding[at + 1 :]), "moved-segment"
        return binding, code, where

    def _move(self, gang: Gang, segment: Segment) -> Segment | None:
        """Another domain of the same cluster and system for one segment, held."""
        state = self.state
        job, home = state.jobs[gang.job], state.domains[state.index[segment.domain]]
        avoid = 0
        for other in gang.binding:
            avoid |= 1 << state.index[other.domain]
        shape = Shape(nodes_per_segment=len(segment.nodes))
        (group,) = state.topology.groups(home.system, home.cluster)
        found = place_one(state.occupancy, group.domains & ~avoid, shape.nodes_per_segment)
        if found is None:
            return None
        assert job.cluster in (None, home.cluster)
        (moved,) = bind(state, found, shape)
        self._hold((moved,))
        return moved

    # -- 3 withdraw --------------------------------------------------------------------------------------------------

    def withdraw(self) -> None:
        state = self.state
        for gang in self._by_order(state.stopping):
            grace_s = state.jobs[gang.job].durability.grace_s
            reason = Reason(code="cancelled")
            self.actions.append(Stop(gang=gang.name, attempt=gang.attempt, grace_s=grace_s, reason=reason))
            self.leaving.add(gang.name)
        for gang in self._by_order(state.evacuating):
            if gang.name not in self.leaving:
                self._send_away(gang, "drain", None)

    def _send_away(self, gang: Gang, code: str, for_gang: str | None) -> None:
        price = cost(self.state, gang, self.now_s)
        reason = Reason(
            code=code, for_gang=for_gang, lost_gpu_s=price.lost_gpu_s, restart_gpu_s=price.restart_gpu_s,
            penalty_gpu_s=price.penalty_gpu_s,
        )  # fmt: skip
        grace_s = self.state.jobs[gang.job].durability.grace_s
        self.actions.append(Preempt(gang=gang.name, attempt=gang.attempt, grace_s=grace_s, reason=reason))
        self.leaving.add(gang.name)

    # -- 4 place -----------------------------------------------------------------------------------------------------

    def place(self) -> None:
        """Try the head of every class of interchangeable gangs, best first, until each class is blocked or empty.

        A class that waited already is passed over unless some domain that gained room could take one of its segments:
        it did not fit when it was tried last, and room elsewhere has only shrunk since.
        """
        gangs, fresh, classes = self.state.gangs, self.state.fresh, self.state.waiting.classes
        gained = self._gained()
        heads = [
            (entries[0][0], key, 0, key[3] <= gained or entries[0][1] in fresh)
            for key, entries in classes.items()
            if self.due or key[3] <= gained or entries[0][1] in fresh
        ]
        heapq.heapify(heads)
        while heads:
            _, key, at, hopeful = heapq.heappop(heads)
            entries = classes[key]
            if not hopeful or not self._place(gangs[entries[at][1]]):
                self.blocked.append((key, at))
            elif at + 1 < len(entries):
                heapq.heappush(heads, (entries[at + 1][0], key, at + 1, True))

    def _gained(self) -> int:
        """The most room in a domain whose room grew since the last decision, nodes."""
        occupancy = self.state.occupancy
        if not occupancy.grown:
            return 0
        rooms = range(len(occupancy.buckets) - 1, 0, -1)
        return next((room for room in rooms if occupancy.buckets[room] & occupancy.grown), 0)

    def _place(self, gang: Gang) -> bool:
        """Start or refuse the gang; False if it has to wait."""
        state = self.state
        job = state.jobs[gang.job]
        found = place(state, job.choices[0], job)
        if found is not None:
            reason = Reason(code="fits", free_nodes_left=found.free_nodes_left)
            self._start(gang, bind(state, found, job.shape), reason)
            return True
        if gang.name in state.fresh and not ever_fits(state, job):
            # A service's gangs are alike: the first refuses for all of them.
            if job.gangs()[0] == gang.name:
                self.actions.append(Refuse(job=job.name, reason=Reason(code="never-fits")))
            return True
        return False

    # -- 5 clear -----------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Clear domains for blocked gangs of higher priority: new ones at once, all of them when it is due."""
        state = self.state
        if not state.policy.preemption:
            return
        if not self.due:
            self.wake_at_s = state.wake_at_s
        for key, at in self.blocked:
            if not state.tenants.any_below(-key[0]):
                continue
            for _, name in state.waiting.classes[key][at:]:
                gang = state.gangs[name]
                if not (self.due or name in state.fresh) or not self._clear_for(gang):
                    break
            else:
                continue
            self.wake_at_s = self._next_try()

    def _next_try(self) -> float:
        if self.state.wake_at_s is not None and not self.timer:
            return self.state.wake_at_s
        return self.now_s + self.state.policy.preemption_retry_s

    def _clear_for(self, gang: Gang) -> bool:
        state = self.state
        clearer = Clearer(state, gang.priority, self.now_s, self.leaving, self.evicted)
        found = clearer.clear(state.jobs[gang.job])
        if found is None:
            return False
        reason = Reason(code="cleared-domain", domain=found.binding[0].domain)
        self.actions.append(Claim(gang=gang.name, binding=found.binding, reason=reason))
        for segment in found.binding:
            state.occupancy.claim(state.index[segment.domain], mask_of(segment.nodes))
        for name in found.victims:
            self._send_away(state.gangs[name], "preempted-for", gang.name)
            self.evicted[state.jobs[state.gangs[name].job].queue] += 1
        return True
