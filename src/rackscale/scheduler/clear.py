"""Clear domains for gangs that still wait: the cheapest victims, in the order of those who wait."""

from __future__ import annotations

from collections import Counter

from rackscale.events import Reason
from rackscale.fleet.gangs import Gang
from rackscale.fleet.queues import Charge
from rackscale.scheduler.choices import ranked
from rackscale.scheduler.cycle import Blocked, Cycle
from rackscale.scheduler.known import Known
from rackscale.scheduler.order import Key
from rackscale.scheduler.place import in_use, least_charge, refused, siblings, stays_until
from rackscale.scheduler.preempt import Clearer
from rackscale.scheduler.price import Taker
from rackscale.scheduler.victims import Ask, Clearing

SEARCHES = 32
"""Searches for victims in one decision, at most; those who are not reached have their turn at the next retry."""


def clear_room(cycle: Cycle) -> None:
    """Clear domains for blocked gangs: new ones at once, all of them when it is due."""
    state = cycle.state
    if not state.policy.preemption:
        return
    hopeless: set[tuple[object, ...]] = set()
    known = Known()
    new = Counter(cls.about for name in state.fresh if (cls := state.waiting.of(name)) is not None)
    left = SEARCHES
    for blocked in cycle.blocked:
        cls = blocked.cls
        if cls.about in hopeless or not could_take(cycle, blocked):
            continue
        if not cycle.due and state.waiting.about[cls.about] > new[cls.about]:
            continue  # somebody like it waits already, and has his turn when it is due
        for at in range(blocked.at, len(cls.entries)):
            gang = state.gangs[cls.entries[at][2]]
            if not (cycle.due or gang.name in state.fresh):
                break
            left -= 1
            if not _clear_for(cycle, cycle.order.of_entry(cls, at), blocked, gang, known):
                hopeless.add(cls.about)
                break
        if left <= 0:
            return


def could_take(cycle: Cycle, blocked: Blocked) -> bool:
    """Whether there is anybody at all to evict for gangs of this class."""
    state = cycle.state
    if blocked.cls.job.cpu_only or blocked.cls.job.booking is not None:
        return False
    if state.tenants.any_below(blocked.cls.priority):
        return True
    tree = state.tree
    return (
        tree.guaranteed
        and state.policy.reclaim
        and any(n.spec.guaranteed for n in tree.node(blocked.cls.queue).path)
    )


def clearing_for(
    cycle: Cycle, clearer: Clearer, key: Key, blocked: Blocked, gang: Gang
) -> tuple[Clearing, int] | None:
    """The best clearing for the gang and the choice that it is for, over the job's choices by value."""
    state = cycle.state
    job, calendar = state.jobs[gang.job], state.machines.calendar
    for choice in ranked(state.topology, state.policy, job):
        offer = job.choices[choice]
        charge = least_charge(cycle, job, choice)
        if refused(cycle, gang, job, charge) is not None:
            continue
        closed = 0
        if calendar.coming or state.reserved:
            until_s, assumed_s = stays_until(cycle, blocked.cls, job, offer)
            closed = calendar.shut(*in_use(cycle, job, until_s, assumed_s), 1 << 30, state.occupancy)
            closed |= cycle.promises.closed(key, until_s, 1 << 30)
        if job.nearness.apart is not None and job.nearness.apart_required and job.kind == "service":
            closed |= siblings(cycle, job)
        found = affordable(clearer, Ask(job, offer, Taker(gang.priority, gang.queue, charge), closed))
        if found is not None:
            return found, choice
    return None


def affordable(clearer: Clearer, ask: Ask) -> Clearing | None:
    """The best clearing; where somebody is reclaimed from, one that the taker's queue is owed at what it really costs.

    The ask's charge is the least that the gang could cost. On other systems it costs more: then that is asked for, and
    if nothing is owed that, the system is left out.
    """
    found = clearer.clear(ask)
    if found is None or not clearer.reclaims:
        return found
    state, least = clearer.state, ask.taker.charge
    costs = state.machines.charge(found.binding)
    if costs.gpus <= least.gpus and costs.domains <= least.domains:
        return found
    most = Charge(max(costs.gpus, least.gpus), max(costs.domains, least.domains))
    there = state.topology.group_of[state.index[found.binding[0].domain]].domains
    return affordable(clearer, ask._replace(taker=ask.taker._replace(charge=most))) or affordable(
        clearer, ask._replace(closed=ask.closed | there)
    )


def _clear_for(cycle: Cycle, key: Key, blocked: Blocked, gang: Gang, known: Known) -> bool:
    state = cycle.state
    clearer = Clearer(state, cycle.now_s, cycle.leaving, cycle.evicted, known)
    answer = clearing_for(cycle, clearer, key, blocked, gang)
    if answer is None:
        return False
    found, choice = answer
    job = state.jobs[gang.job]
    charge = state.machines.charge(found.binding)
    if refused(cycle, gang, job, charge) is not None:
        return False
    cycle.give(gang, charge)
    if not any(mask & state.occupancy.held[d] for d, mask in state.machines.masks(found.binding)):
        cycle.start(gang, found.binding, Reason(code="fits"), choice)
        return True
    cycle.claim(gang, found.binding, Reason(code="cleared-domain", domain=found.binding[0].domain), choice)
    evict(cycle, found, gang.name, gang.priority)
    return True


def _keeps_quota(cycle: Cycle, victim: Gang, for_gang: str) -> bool:
    """Whether the victim's queues hold what they are guaranteed without it; else it can only be reclaimed."""
    state = cycle.state
    if not state.tree.guaranteed:
        return True
    booking = state.machines.calendar.bookings.get(for_gang[1:]) if for_gang.startswith("@") else None
    taker = state.gangs[for_gang].queue if booking is None else booking.queue
    return state.tree.can_lose(victim.queue, taker, victim.charge, straddle=False)


def evict(cycle: Cycle, found: Clearing, for_gang: str, priority: int) -> None:
    """Send the victims of a clearing away, or let them go on smaller."""
    state = cycle.state
    for name in found.victims:
        victim = state.gangs[name]
        shrunk = found.shrunk.get(name)
        if shrunk is not None:
            cycle.move(victim, shrunk.binding, Reason(code="shrunk-for", for_gang=for_gang), shrunk.choice)
            cycle.depart(victim, shrunk.binding)
        else:
            lower = victim.priority < priority and _keeps_quota(cycle, victim, for_gang)
            code = "preempted-for" if lower else "reclaimed-for"
            cycle.send_away(victim, code, for_gang)
            cycle.depart(victim, ())  # its nodes count against limits until it has left
        cycle.evicted[victim.queue] += 1
