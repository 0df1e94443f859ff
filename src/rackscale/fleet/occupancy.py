"""Which nodes are usable, held and claimed, by NVLink domain, in small integer masks.

A domain's nodes are the bits of an integer; the set of domains with `r` free nodes to give is one integer too, with
bit `d` for domain `d`. There is no object per node or GPU: a million GPUs are 13,889 masks. Looking for room costs a
handful of integer operations however many nodes there are.
"""

from __future__ import annotations

from collections.abc import Iterator

CHUNK = 960
"""So many bits of a large set are looked at as a smaller integer: 32 of CPython's digits."""
CHUNK_MASK = (1 << CHUNK) - 1


class Occupancy:
    """Masks by domain index, and an index of domains by room.

    `room[d]` is what normal placement may use: free nodes less the domain's spares, never negative. Spares are a
    number, not named nodes: any free node can replace a dead one.
    """

    __slots__ = (
        "_grown_before",
        "_log",
        "buckets",
        "claimed",
        "free",
        "full",
        "grown",
        "held",
        "room",
        "spares",
        "up",
    )

    def __init__(self) -> None:
        self.full: list[int] = []
        """Every node of the domain."""
        self.up: list[int] = []
        """Healthy and not drained."""
        self.held: list[int] = []
        """Bound to a gang that starts, runs or leaves."""
        self.claimed: list[int] = []
        """Kept for a waiting gang while victims leave."""
        self.free: list[int] = []
        """Up, not held, not claimed."""
        self.spares: list[int] = []
        self.room: list[int] = []
        self.buckets: list[int] = [0]
        """buckets[r]: the set of domains with room r."""
        self.grown = 0
        """Set of domains whose room grew since the last decision; what is taken back in a what-if does not count."""
        self._log: list[tuple[int, int, int]] | None = None
        self._grown_before = 0

    def add(self, nodes: int, spares: int) -> int:
        """A new domain, all nodes up and free. Returns its index."""
        d = len(self.full)
        mask = (1 << nodes) - 1
        room = max(0, nodes - spares)
        for masks, value in (
            (self.full, mask),
            (self.up, mask),
            (self.held, 0),
            (self.claimed, 0),
            (self.free, mask),
        ):
            masks.append(value)
        self.spares.append(spares)
        self.room.append(room)
        while len(self.buckets) <= nodes:
            self.buckets.append(0)
        self.buckets[room] |= 1 << d
        self.grown |= 1 << d
        return d

    def _refresh(self, d: int) -> None:
        free = self.free[d] = self.up[d] & ~(self.held[d] | self.claimed[d])
        room = free.bit_count() - self.spares[d]
        room = max(room, 0)
        before = self.room[d]
        if room != before:
            bit = 1 << d
            self.buckets[before] ^= bit
            self.buckets[room] |= bit
            self.room[d] = room
            if room > before:
                self.grown |= bit

    def _remember(self, d: int) -> None:
        if self._log is not None:
            self._log.append((d, self.held[d], self.claimed[d]))

    def set_up(self, d: int, mask: int) -> None:
        assert self._log is None, "health does not change inside a what-if"
        self.up[d] = mask
        self._refresh(d)

    def set_spares(self, d: int, spares: int) -> None:
        if self.spares[d] != spares:
            self.spares[d] = spares
            self._refresh(d)

    def hold(self, d: int, mask: int) -> None:
        assert not self.held[d] & mask, "a node is held twice"
        self._remember(d)
        self.held[d] |= mask
        self._refresh(d)

    def release(self, d: int, mask: int) -> None:
        assert self.held[d] & mask == mask, "released what was not held"
        self._remember(d)
        self.held[d] &= ~mask
        self._refresh(d)

    def claim(self, d: int, mask: int) -> None:
        assert not self.claimed[d] & mask, "a node is claimed twice"
        self._remember(d)
        self.claimed[d] |= mask
        self._refresh(d)

    def unclaim(self, d: int, mask: int) -> None:
        assert self.claimed[d] & mask == mask, "unclaimed what was not claimed"
        self._remember(d)
        self.claimed[d] &= ~mask
        self._refresh(d)

    # -- what-if: everything after `begin` is taken back by `end` ----------------------------------------------------

    def begin(self) -> None:
        """Start a what-if. They do not nest; inside one, `mark` and `rollback` take back parts."""
        assert self._log is None, "a what-if is open"
        self._log, self._grown_before = [], self.grown

    def mark(self) -> int:
        """A point inside the what-if that `rollback` returns to."""
        assert self._log is not None, "no what-if is open"
        return len(self._log)

    def rollback(self, mark: int) -> None:
        """Undo every hold, release, claim and unclaim since `mark`."""
        log = self._log
        assert log is not None, "no what-if is open"
        grown = self.grown
        while len(log) > mark:
            d, self.held[d], self.claimed[d] = log.pop()
            self._refresh(d)
        self.grown = grown

    def end(self) -> None:
        """End the what-if; the occupancy is as it was at `begin`."""
        self.rollback(0)
        self._log, self.grown = None, self._grown_before


def lowest_nodes(mask: int, count: int) -> tuple[int, ...]:
    """The `count` lowest node numbers in `mask`. Fewer are an error."""
    nodes = []
    for _ in range(count):
        assert mask, "not enough nodes in the mask"
        low = mask & -mask
        nodes.append(low.bit_length() - 1)
        mask ^= low
    return tuple(nodes)


def mask_of(nodes: tuple[int, ...]) -> int:
    """The mask with these bits set."""
    mask = 0
    for node in nodes:
        mask |= 1 << node
    return mask


def members(bits: int) -> Iterator[int]:
    """Indices of the set bits, ascending. Costs a few big-integer operations per `CHUNK` of bits that has any."""
    base = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        base += skip
        chunk = bits & CHUNK_MASK
        while chunk:
            low = chunk & -chunk
            yield base + low.bit_length() - 1
            chunk ^= low
        bits >>= CHUNK
        base += CHUNK
