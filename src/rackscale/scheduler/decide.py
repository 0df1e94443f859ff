"""`decide(state, now_s) -> Plan`: the one place where anything is decided.

    0  calendar    maintenance, returns of capacity, lemons and ends of bookings that are due; nothing else beside them
    1  settle      claims whose nodes are free become starts; broken claims are given up
    2  repair      bookings that lost a node get another; gangs that lost one get a spare, move a segment, go on
                   smaller, or wait again
    3  withdraw    cancelled gangs stop; gangs leave nodes that are drained or go out of use
    4  book        bookings whose time has come hold their nodes
    5  place       waiting gangs in order, by best fit, without moving anybody and without delaying a reservation
    6  clear       for those that still wait: the cheapest victims that open the domains they need
    7  reserve     for the first of those that wait: when and where they will start
    8  defragment  gangs move so that a domain opens, where that is worth it
    9  grow        elastic gangs take room that nobody waits for

Pure: the state is read, and what is tried in the occupancy and in the queues is always taken back.
"""

from __future__ import annotations

from math import inf

from rackscale.events import Plan, Reserve, Unreserve
from rackscale.fleet.state import FleetState
from rackscale.scheduler.calendar import begin_bookings, mend_bookings, next_s, overdue
from rackscale.scheduler.clear import clear_room, could_take
from rackscale.scheduler.cycle import Cycle, what_if
from rackscale.scheduler.defragment import defragment
from rackscale.scheduler.elastic import grow
from rackscale.scheduler.place import place_waiting
from rackscale.scheduler.repair import repair, settle, withdraw
from rackscale.scheduler.reserve import reserve


def decide(state: FleetState, now_s: float) -> Plan:
    """What to do now. The same state and time always give the same plan, byte for byte."""
    timer = state.wake_at_s is not None and now_s >= state.wake_at_s
    if not state.dirty and not timer:
        return Plan(at_s=now_s, wake_at_s=state.wake_at_s, retry_at_s=state.retry_at_s)
    urgent = overdue(state, now_s)
    if urgent:
        return Plan(at_s=now_s, actions=tuple(urgent), wake_at_s=now_s, retry_at_s=now_s)
    due = state.retry_at_s is None or now_s >= state.retry_at_s
    with what_if(state, now_s, due=due) as cycle:
        fill(cycle)
        make_room(cycle)
    wake_at_s, retry_at_s = _later(cycle)
    return Plan(at_s=now_s, actions=tuple(cycle.actions), wake_at_s=wake_at_s, retry_at_s=retry_at_s)


def fill(cycle: Cycle) -> None:
    """Steps 1 to 5: all that moves nobody for those who wait."""
    settle(cycle)
    mend_bookings(cycle)
    repair(cycle)
    withdraw(cycle)
    begin_bookings(cycle)
    place_waiting(cycle)


def make_room(cycle: Cycle) -> None:
    """Steps 6 to 9: what is done for those who still wait, and with the room that nobody waits for."""
    clear_room(cycle)
    if cycle.blocked or cycle.state.reserved or cycle.state.machines.calendar.bookings:
        reserve(cycle)
    defragment(cycle)
    grow(cycle)


def _later(cycle: Cycle) -> tuple[float | None, float | None]:
    """When to decide again even if nothing happens, and when all that wait are looked at again."""
    state, now_s = cycle.state, cycle.now_s
    retry_at_s = state.retry_at_s
    if cycle.due:
        retry_at_s = now_s + state.policy.preemption_retry_s if cycle.blocked else None
    elif cycle.blocked and retry_at_s is None:
        retry_at_s = now_s + state.policy.preemption_retry_s
    wake_s = min([next_s(state, now_s), *cycle.wakes])
    wake_s = min(wake_s, _promises_due_s(cycle, retry_at_s))
    if cycle.retry:
        wake_s = now_s
    elif retry_at_s is not None and _time_helps(cycle):
        wake_s = min(wake_s, max(retry_at_s, now_s))
    return (None if wake_s == inf else wake_s), retry_at_s


def _promises_due_s(cycle: Cycle, retry_at_s: float | None) -> float:
    """When to look again at those whom promises keep waiting: some changed now, or are due and may not be kept."""
    if retry_at_s is None:
        return inf
    news = [a for a in cycle.actions if isinstance(a, Reserve | Unreserve)]
    before = cycle.state.reserved
    if any(a.gang in before for a in news):
        return max(retry_at_s, cycle.now_s)
    starts = [r.start_s for r in (*before.values(), *(a for a in news if isinstance(a, Reserve)))]
    return max(retry_at_s, min((at_s for at_s in starts if at_s > cycle.now_s), default=inf))


def _time_helps(cycle: Cycle) -> bool:
    """Whether time alone may let somebody be evicted for one that waits."""
    state = cycle.state
    if not cycle.due:  # whether anybody could be evicted was found when it was due
        return state.wake_at_s is not None or any(could_take(cycle, blocked) for blocked in cycle.blocked)
    return state.policy.preemption and any(could_take(cycle, blocked) for blocked in cycle.blocked)
