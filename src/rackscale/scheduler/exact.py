"""Victims exactly: of one domain by a knapsack over nodes; of all by trying every set, while few could be taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from math import inf

from rackscale.events import Binding
from rackscale.fleet.state import FleetState
from rackscale.scheduler.fit import bind, place
from rackscale.scheduler.victims import Ask, Victim

MOST = 8
"""Gangs of which every set is tried, at most: 255 sets."""

Chain = tuple[Victim, "Chain"] | None
"""Victims, the last first."""
Pick = Callable[[Iterable[Victim]], str | None]


def smallest_set(
    state: FleetState, ask: Ask, lone: Sequence[Victim], pick: Pick
) -> tuple[Binding, tuple[Victim, ...]] | None:
    """The cheapest of the smallest sets of victims after which the gang fits, and where; None: there is none.

    `pick` takes the victims if budgets and quotas allow it; the caller takes them back. Nodes of gangs that leave
    already are not counted.
    """
    occupancy, machines = state.occupancy, state.machines
    for count in range(1, len(lone) + 1):
        sets = itertools.combinations(lone, count)
        for victims in sorted(sets, key=lambda s: (sum(v.price for v in s), [v.name for v in s])):
            mark = occupancy.mark()
            for victim in victims:
                for d, mask in machines.masks(state.gangs[victim.name].binding):
                    occupancy.release(d, mask)
            found = place(state, ask.offer, ask.job, avoid=ask.closed)
            binding = None if found is None else bind(state, found, ask.offer.shape)
            occupancy.rollback(mark)
            if binding is not None and _all_there(state, binding, victims) and pick(victims) is None:
                return binding, victims
    return None


def _all_there(state: FleetState, binding: Binding, victims: Sequence[Victim]) -> bool:
    """Whether each victim is in a domain of the binding: nobody leaves only so that quotas allow the others."""
    domains = {segment.domain for segment in binding}
    return all(any(s.domain in domains for s in state.gangs[v.name].binding) for v in victims)


def cheapest_set(short: int, options: Sequence[Victim]) -> tuple[float, tuple[Victim, ...]] | None:
    """The cheapest victims that free `short` nodes of one domain, one option per gang; None: there are none.

    Ties go to the lower priorities, then to the younger gangs.
    """
    prices = [0.0, *[inf] * short]
    ties: list[tuple[int, float]] = [(0, 0.0)] * (short + 1)
    """By nodes freed: (sum of priorities, sum of ages) of the cheapest set."""
    chains: list[Chain] = [None] * (short + 1)
    reach = 0  # no set frees more so far
    for _, ways in itertools.groupby(sorted(options, key=_by_name), key=_name):
        same = tuple(ways)
        for have in range(min(reach, short - 1), -1, -1):
            if prices[have] == inf:
                continue
            for victim in same:
                total = min(short, have + victim.gives)
                price = prices[have] + victim.price
                if price > prices[total]:
                    continue
                tie = (ties[have][0] + victim.priority, ties[have][1] + victim.age_s)
                if price < prices[total] or tie < ties[total]:
                    prices[total], ties[total], chains[total] = price, tie, (victim, chains[have])
        reach += max(victim.gives for victim in same)
    if prices[short] == inf:
        return None
    victims, chain = list[Victim](), chains[short]
    while chain is not None:
        victims.append(chain[0])
        chain = chain[1]
    return prices[short], tuple(reversed(victims))


def _by_name(victim: Victim) -> tuple[str, int]:
    return (victim.name, victim.gives)


def _name(victim: Victim) -> str:
    return victim.name
