"""The fold of decisions: what each action of a plan does to the state."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from rackscale import events as ev
from rackscale.fleet.gangs import DAY_S, Status
from rackscale.fleet.health import EXPIRED

if TYPE_CHECKING:
    from rackscale.fleet.state import FleetState

EVICTIONS = ("preempted-for", "reclaimed-for", "shrunk-for", "moved-for")
"""Departures that count against the budgets of gangs and queues."""


class Decisions:
    """Folds `Decided` into a state, action by action."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._fold: dict[type, Callable[..., None]] = {
            ev.Start: self._start, ev.Restart: self._start, ev.Preempt: self._leave, ev.Move: self._move,
            ev.Stop: self._leave, ev.Requeue: self._leave, ev.Claim: self._claim, ev.Unclaim: self._unclaim,
            ev.Refuse: self._refuse, ev.Reserve: self._reserve, ev.Unreserve: self._unreserve,
            ev.Hold: self._hold, ev.Free: self._free, ev.Close: self._close, ev.Open: self._open,
        }  # fmt: skip

    def __call__(self, event: ev.Decided) -> None:
        state = self._state
        actions = event.plan.actions
        # A plan of the calendar decides about nobody: who is new is still new to the next one.
        if not actions or not all(isinstance(action, ev.Close | ev.Open | ev.Free) for action in actions):
            state.occupancy.grown = state.machines.cpu.occupancy.grown = 0
            state.fresh.clear()
            state.eased.clear()
        state.tell_s = inf
        for action in actions:
            self._fold[type(action)](action)
        # A plan that itself frees nodes (a claim given up, a segment moved) asks to be woken at once.
        state.dirty = False
        state.decided_s = state.now_s
        state.wake_at_s, state.retry_at_s = event.plan.wake_at_s, event.plan.retry_at_s
        if state.tell_s < inf:  # what starts on nodes that go out of use is told in time
            tell_s = max(state.tell_s, state.now_s)
            state.wake_at_s = tell_s if state.wake_at_s is None else min(state.wake_at_s, tell_s)

    def _start(self, action: ev.Start | ev.Restart) -> None:
        state = self._state
        gang = state.gangs[action.gang]
        job = state.jobs[gang.job]
        waiting = gang.status is Status.WAITING
        if not waiting:
            state.release(gang)
        gang.attempt, gang.binding, gang.choice = action.attempt, action.binding, action.choice
        gang.throughput = job.choices[action.choice].throughput if job.offers else 1.0
        gang.gpus = 0 if job.cpu_only else state.machines.gpus(gang.binding)
        gang.started_s, gang.running_s, gang.url, gang.cause = state.now_s, None, None, action.reason.code
        gang.saves_every_s = None
        state.expect_end(gang, state.now_s + job.durability.restart_s)
        state.become(gang, Status.STARTING)
        state.hold(gang)
        if waiting:  # after the nodes are held, so that a claim that becomes a start frees nothing on the way
            state.stop_waiting(gang)
        if gang.first_started_s is None:
            gang.first_started_s = state.now_s

    def _leave(self, action: ev.Preempt | ev.Move | ev.Stop | ev.Requeue) -> None:
        state = self._state
        gang = state.gangs[action.gang]
        if action.reason.code in EVICTIONS:
            day = int(state.now_s // DAY_S)
            gang.evictions += 1
            gang.evictions_today = gang.evicted_today(state.now_s) + 1
            gang.evictions_day = day
            before, count = state.queue_evictions.get(gang.queue, (day, 0))
            state.queue_evictions[gang.queue] = (day, count + 1 if before == day else 1)
        state.become(gang, Status.LEAVING)
        state.machines.touch(gang)
        gang.cause = action.reason.code
        for index in (state.stopping, state.evacuating, state.broken):
            index.pop(gang.name, None)
        state.leaving[gang.name] = None

    def _move(self, action: ev.Move) -> None:
        state = self._state
        self._leave(action)
        self._keep(action)
        gang = state.gangs[action.gang]
        if gang.charged and state.machines.charge(gang.claim).gpus > gang.charge.gpus:
            state.uncharge(gang)  # it grows: its queue holds the larger binding from now on
            state.charge(gang, gang.claim)

    def _claim(self, action: ev.Claim) -> None:
        state = self._state
        gang = state.gangs[action.gang]
        assert not gang.claim, "a gang claims twice"
        state.stop_waiting(gang)
        self._keep(action)
        state.charge(gang, gang.claim)

    def _keep(self, action: ev.Claim | ev.Move) -> None:
        """Hold nodes for the gang while they are still in use."""
        state = self._state
        gang = state.gangs[action.gang]
        gang.claim, gang.claim_choice = action.binding, action.choice
        masks = state.claimants[gang.name] = state.machines.masks(action.binding)
        for d, mask in masks:
            state.occupancy.claim(d, mask)
            state.machines.horizon.touch(d)

    def _unclaim(self, action: ev.Unclaim) -> None:
        state = self._state
        gang = state.gangs[action.gang]
        state.unclaim(gang)
        if gang.status is Status.WAITING:
            state.waiting.add(gang, state.jobs[gang.job])
            state.fresh.add(gang.name)

    def _refuse(self, action: ev.Refuse) -> None:
        state = self._state
        for name in state.jobs[action.job].gangs():
            state.end(state.gangs[name], "refused", action.reason.code)

    def _reserve(self, action: ev.Reserve) -> None:
        self._state.reserved[action.gang] = action

    def _unreserve(self, action: ev.Unreserve) -> None:
        self._state.reserved.pop(action.gang, None)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _hold(self, action: ev.Hold) -> None:
        state, holding = self._state, self._state.machines.calendar.holding
        for d, mask in state.machines.masks(holding.get(action.booking, ())):  # some of them are replaced
            state.occupancy.unclaim(d, mask)
            state.machines.horizon.touch(d)
        holding[action.booking] = action.binding
        state.reserved.pop(f"@{action.booking}", None)
        for d, mask in state.machines.masks(action.binding):
            state.occupancy.claim(d, mask)
            state.machines.horizon.touch(d)

    def _free(self, action: ev.Free) -> None:
        if action.booking in self._state.machines.calendar.bookings:
            self._state.departures.forget_booking(action.booking)

    def _close(self, action: ev.Close) -> None:
        machines = self._state.machines
        d = machines.topology.index[action.domain]
        why = _closure(action.reason)
        if why == EXPIRED or action.reason.code == "maintenance":
            machines.calendar.begin(why, d)
        machines.health.close(d, machines.mask(d, action.nodes), why)
        machines.refresh(d)

    def _open(self, action: ev.Open) -> None:
        machines = self._state.machines
        d = machines.topology.index[action.domain]
        why = _closure(action.reason)
        machines.calendar.forget(why, d)
        machines.calendar.maintenance.pop(why, None)
        machines.health.open(d, machines.mask(d, action.nodes), why)
        machines.refresh(d)
        self._state.departures.look_again(d)


def _closure(reason: ev.Reason) -> str:
    """Under which name nodes are closed: that of the maintenance, or the code."""
    return reason.window if reason.window is not None else reason.code
