"""Units of one fabric level (leaf, spine, building, region) as sets of domains, and questions about all of them.

A set of domains is an integer. Where units don't interleave in fabric order each is a *field* of that integer, and one
addition or subtraction works on every field together: so the leaf switches with four domains to give are found in a few
operations, however many leaf switches there are. Units that interleave are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rackscale.fleet.occupancy import members

Stage = tuple[int, int]
"""A set of domains that holds every earlier stage's, and how much more those that only later stages hold cost."""
FEW = 64
"""So many units are compared one by one; it is cheaper than doing it for all at once."""


class Units:
    """The units of one level among the domains of one group. A unit is named by its *head*: its last domain."""

    __slots__ = ("_below", "_covered", "_heads", "_local", "_loose", "_lows", "_tops", "masks")

    def __init__(self, masks: Iterable[int]) -> None:
        self.masks = tuple(masks)
        """The domains of each unit."""
        self._heads = {mask.bit_length() - 1: mask for mask in self.masks}
        self._local: dict[int, tuple[int, int]] = {}
        """First domain of each unit and its domains counted from there: a small integer, where the unit is small."""
        self._tops = self._lows = self._covered = 0
        """Of the units that are fields: last domains, first domains, all domains."""
        self._loose: list[int] = []
        """Units that interleave with fields."""
        end = -1
        for head, mask in sorted(self._heads.items()):
            low = mask & -mask
            first = low.bit_length() - 1
            self._local[head] = first, mask >> first
            if first > end:
                self._tops |= 1 << head
                self._lows |= low
                self._covered |= mask
                end = head
            else:
                self._loose.append(mask)
        self._below = self._tops - self._lows
        """Every place of every field but the last."""

    def mask(self, head: int) -> int:
        """The domains of the unit with this head."""
        return self._heads[head]

    def occupied(self, domains: int) -> int:
        """Heads of the units that have a domain in the set."""
        heads = self._present(domains & self._covered)
        for mask in self._loose:
            if domains & mask:
                heads |= 1 << (mask.bit_length() - 1)
        return heads

    def first(self, domains: int) -> int:
        """The first domain of every unit that has one in the set."""
        rest = domains & self._covered
        firsts = rest ^ self._without_first(rest)
        for mask in self._loose:
            firsts |= domains & mask & -(domains & mask)
        return firsts

    def holding(self, domains: int, count: int) -> int:
        """Heads of the units that have at least `count` (1 or more) domains in the set."""
        if len(self.masks) <= count:
            return sum(1 << head for head in self._heads if self._count(domains, head) >= count)
        rest = domains & self._covered
        for _ in range(count - 1):
            if not rest:
                break
            rest = self._without_first(rest)
        heads = self._present(rest)
        for mask in self._loose:
            if (domains & mask).bit_count() >= count:
                heads |= 1 << (mask.bit_length() - 1)
        return heads

    def scarcest(self, heads: int, domains: int) -> int:
        """Of the units with these heads, the one with the fewest domains in the set; of equals, the first."""
        fields = heads & self._tops
        if heads.bit_count() > FEW and fields == heads:
            rest = domains & self._covered
            while heads & (present := self._present(rest)) == heads and present:
                rest = self._without_first(rest)
            heads &= ~present
            return self._heads[(heads & -heads).bit_length() - 1]
        return self._heads[min(members(heads), key=lambda head: self._count(domains, head))]

    def best(self, stages: Sequence[Stage], count: int) -> tuple[int, int] | None:
        """(cost, domains) of the unit in which `count` domains cost least, or None if no unit has so many.

        The domains of the first stage cost nothing. Of units that cost the same, the one with the fewest domains in the
        last stage is taken, so that units with many are kept whole.
        """
        heads = self.holding(stages[-1][0], count)
        if not heads:
            return None
        fields = heads & self._tops
        if fields.bit_count() <= 4 * count:
            cost, winners = self._compare(stages, count, heads)
        else:
            cost, winners = self._sift(stages, count, fields)
            if heads != fields:
                other, loose = self._compare(stages, count, heads ^ fields)
                if other <= cost:
                    winners = winners | loose if other == cost else loose
                cost = min(cost, other)
        return cost, self.scarcest(winners, stages[-1][0])

    def _compare(self, stages: Sequence[Stage], count: int, heads: int) -> tuple[int, int]:
        """(least cost, heads of the units that have it), unit by unit."""
        costs: dict[int, int] = {}
        for head in members(heads):
            cost = 0
            for domains, step in stages:
                short = count - self._count(domains, head)
                if short <= 0:
                    break
                cost += short * step  # so many of the `count` domains are of later stages
            costs[cost] = costs.get(cost, 0) | 1 << head
        return min(costs.items())

    def _sift(self, stages: Sequence[Stage], count: int, fields: int) -> tuple[int, int]:
        """The same, for many fields at once: their costs are summed bit by bit, in one integer per binary digit."""
        digits: list[int] = []
        for at, (domains, step) in enumerate(stages):
            rest = domains & self._covered
            complete = 0
            for _ in range(count):
                complete = self._present(rest)
                _add(digits, fields & ~complete, step)
                rest = self._without_first(rest)
            least = fields
            for digit in reversed(digits):
                least = (least & ~digit) or least
            if (
                least & complete
            ):  # from here on they cost no more; others do, unless the next stage completes them
                winners = least
                if least & ~complete:
                    winners &= self.holding(stages[at + 1][0], count)
                one = winners & -winners
                return sum(1 << i for i, digit in enumerate(digits) if digit & one), winners
        raise AssertionError("a unit that holds enough domains in the last stage is complete there")

    def _count(self, domains: int, head: int) -> int:
        first, local = self._local[head]
        return (domains >> first & local).bit_count()

    def _present(self, domains: int) -> int:
        """Heads of the fields that are not empty. No carry leaves a field."""
        return (((domains & ~self._tops) + self._below) | domains) & self._tops

    def _without_first(self, domains: int) -> int:
        """The set without the first domain of every field. No borrow leaves a field."""
        return domains & ((domains | self._tops) - self._lows)


def _add(digits: list[int], heads: int, amount: int) -> None:
    """Add `amount` to the number of every field with one of these heads."""
    for low in members(amount) if heads else ():
        at, carry = low, heads
        while carry:
            digits.extend([0] * (at + 1 - len(digits)))
            digits[at], carry = digits[at] ^ carry, digits[at] & carry
            at += 1
