"""What the searches for victims of one decision find out once."""

from __future__ import annotations

from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.scheduler.victims import Guest


class Known:
    """What searches of one decision need not find out again. Room in domains only becomes less in a decision."""

    def __init__(self) -> None:
        self.prices: dict[str, float] = {}
        """Gang -> GPU-seconds."""
        self._guests: dict[int, tuple[int, list[Guest]]] = {}
        """Domain -> the nodes of those who leave anyway, and who else is there."""
        self.refused: dict[object, dict[int, int]] = {}
        """What takers are alike in -> nodes wanted -> domains in which so many could not be freed."""
        self._leave = 0
        self._seen: set[str] = set()

    def leave(self, state: FleetState, leaving: set[str]) -> int:
        """Domains of gangs that leave anyway."""
        new = [name for name in (*state.leaving, *leaving) if name not in self._seen]
        self._seen.update(new)
        index, found = state.index, self._leave
        for name in new:
            for segment in state.gangs[name].binding:
                d = index[segment.domain]
                found |= 1 << d
                self._guests.pop(d, None)
        self._leave = found
        return found

    def guests(self, state: FleetState, d: int, leaving: set[str]) -> tuple[int, list[Guest]]:
        """Of domain d: the nodes of those who leave anyway, and who else is there. `leave` was asked before."""
        found = self._guests.get(d)
        if found is None:
            soon, guests, gangs = 0, list[Guest](), state.gangs
            for name, mask in state.tenants.on[d].items():
                gang = gangs[name]
                if gang.status is Status.LEAVING or name in leaving:
                    soon |= mask
                else:
                    guests.append(Guest(gang, name, gang.priority, gang.queue, mask))
            found = self._guests[d] = (soon, guests)
        return found
