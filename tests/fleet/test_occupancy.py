"""The bucket index always agrees with a count made from scratch."""

from __future__ import annotations

import random

import pytest

from rackscale.fleet.occupancy import Occupancy, lowest_nodes, mask_of, members


def recount(occupancy: Occupancy) -> list[int]:
    buckets = [0] * len(occupancy.buckets)
    for d in range(len(occupancy.full)):
        free = occupancy.up[d] & ~occupancy.held[d] & ~occupancy.claimed[d]
        buckets[max(0, free.bit_count() - occupancy.spares[d])] |= 1 << d
    return buckets


def build() -> Occupancy:
    occupancy = Occupancy()
    for _ in range(5):
        occupancy.add(18, 1)
    return occupancy


@pytest.mark.parametrize("seed", range(20))
def test_buckets_follow_every_change(seed: int) -> None:
    rng = random.Random(seed)
    occupancy = build()
    for _ in range(300):
        d = rng.randrange(5)
        mask = rng.getrandbits(18)
        match rng.randrange(5):
            case 0:
                occupancy.hold(d, mask & ~occupancy.held[d])
            case 1:
                occupancy.release(d, mask & occupancy.held[d])
            case 2:
                occupancy.claim(d, mask & ~occupancy.claimed[d])
            case 3:
                occupancy.unclaim(d, mask & occupancy.claimed[d])
            case 4:
                occupancy.set_up(d, mask)
        assert occupancy.buckets == recount(occupancy)


def test_a_what_if_leaves_no_trace() -> None:
    occupancy = build()
    occupancy.hold(0, 0b1011)
    before = (list(occupancy.held), list(occupancy.free), list(occupancy.buckets))
    occupancy.begin()
    occupancy.hold(1, 0xFF)
    mark = occupancy.mark()
    occupancy.claim(1, 0xFF00)
    occupancy.release(0, 0b10)
    occupancy.rollback(mark)
    assert occupancy.held[1] == 0xFF
    occupancy.end()
    assert (occupancy.held, occupancy.free, occupancy.buckets) == before


def test_holding_twice_is_a_broken_invariant() -> None:
    occupancy = build()
    occupancy.hold(0, 1)
    with pytest.raises(AssertionError):
        occupancy.hold(0, 1)


def test_masks_and_nodes_are_inverse() -> None:
    assert mask_of(lowest_nodes(0b1011010, 3)) == 0b11010
    assert list(members(0b1011010)) == [1, 3, 4, 6]
