"""Victims by trying every set of them: exact, and only for when few gangs could be taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from rackscale.events import Binding
from rackscale.fleet.state import FleetState
from rackscale.scheduler.fit import bind, place
from rackscale.scheduler.victims import Ask, Victim

MOST = 8
"""Gangs of which every set is tried, at most: 255 sets."""

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
            if binding is not None and pick(victims) is None:
                return binding, victims
    return None
