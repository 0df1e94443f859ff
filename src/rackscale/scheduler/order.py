"""Who goes first: priority, gangs that ran before, queue rank, fair share, submission."""

from __future__ import annotations

from rackscale.fleet.gangs import Gang, WaitClass
from rackscale.fleet.queues import Past
from rackscale.fleet.state import FleetState

Key = tuple[int, bool, int, tuple[float, ...], int]


class Order:
    """Sort keys of waiting gangs at one moment. Fair share moves as nodes are given away in the same decision."""

    def __init__(self, state: FleetState, now_s: float) -> None:
        self._state, self._now_s = state, now_s
        self.version = 0
        """Grows with whatever moves shares."""
        self._shares: dict[tuple[str, str], tuple[float, ...]] = {}
        self._past: dict[tuple[str, str], Past] = {}
        """By queue and user, without what this decision gives."""

    def share(self, queue: str, user: str) -> tuple[float, ...]:
        found = self._shares.get((queue, user))
        if found is None:
            found = self._shares[queue, user] = self._state.tree.share(queue, user, self._now_s, self._past)
        return found

    def given(self) -> None:
        """Nodes were given away: shares are worked out again."""
        self._shares.clear()
        self.version += 1

    def of_entry(self, cls: WaitClass, at: int) -> Key:
        """The key of the gang at a position of its class."""
        late, seq, _ = cls.entries[at]
        return (-cls.priority, late, cls.rank, self.share(cls.queue, cls.user), seq)

    def of(self, gang: Gang) -> Key:
        user = self._state.jobs[gang.job].user
        return (-gang.priority, not gang.front, gang.rank, self.share(gang.queue, user), gang.seq)


FIRST: Key = (-(1 << 62), False, -(1 << 62), (), -1)
"""Before everybody: bookings."""
