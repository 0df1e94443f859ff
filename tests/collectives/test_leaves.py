"""Laws of collectives between leaves, whatever the network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.collectives import KINDS, Kind, Network, network, seconds
from tests.collectives.networks import NAMES, WITHIN_ROUNDING, networks

kinds = st.sampled_from(KINDS)
messages = st.floats(0.0, 1e11)
factors = st.floats(1.0, 100.0)
groups = st.tuples(st.integers(1, 4096), st.integers(1, 72), st.integers(1, 4096))
"""Ranks, how many of them a domain holds, and how many a leaf."""


def time(kind: Kind, nbytes: float, group: tuple[float, float, float | None], on: Network) -> float:
    ranks, local, leaf = group
    return float(seconds(kind, nbytes=nbytes, ranks=ranks, local=local, leaf=leaf, network=on))


@given(kinds, messages, groups, networks())
def test_under_one_leaf_there_are_two_tiers(
    kind: Kind, nbytes: float, group: tuple[int, int, int], on: Network
) -> None:
    ranks, local, _ = group
    two = time(kind, nbytes, (ranks, local, None), on)
    assert two == time(kind, nbytes, (ranks, local, ranks), on)
    assert two == time(kind, nbytes, (ranks, local, np.inf), on)


@given(kinds, messages, groups, networks())
def test_a_non_blocking_fabric_costs_hops_alone(
    kind: Kind, nbytes: float, group: tuple[int, int, int], on: Network
) -> None:
    ranks, local, leaf = group
    two = time(kind, nbytes, (ranks, local, None), on)
    three = time(kind, nbytes, (ranks, local, leaf), replace(on, oversubscription=1.0))
    leaves = max(ranks / max(leaf, min(local, ranks)), 1.0)
    assert two <= three <= (two + 2.0 * leaves * on.hop_s) * WITHIN_ROUNDING


@given(kinds, messages, groups, st.integers(0, 4096), networks())
def test_fewer_leaves_are_never_slower(
    kind: Kind, nbytes: float, group: tuple[int, int, int], added: int, on: Network
) -> None:
    ranks, local, leaf = group
    few, many = time(kind, nbytes, (ranks, local, leaf + added), on), time(kind, nbytes, group, on)
    assert few <= many * WITHIN_ROUNDING


@given(kinds, messages, st.tuples(st.integers(1, 32), st.integers(0, 32)), st.integers(1, 72), networks())
def test_more_leaves_of_the_same_size_are_never_faster(
    kind: Kind, nbytes: float, leaves: tuple[int, int], local: int, on: Network
) -> None:
    leaf = 2 * local
    few = time(kind, nbytes, (leaves[0] * leaf, local, leaf), on)
    assert few <= time(kind, nbytes, (sum(leaves) * leaf, local, leaf), on) * WITHIN_ROUNDING


@given(kinds, messages, groups, st.floats(0.0, 8.0), networks())
def test_less_oversubscription_is_never_slower(
    kind: Kind, nbytes: float, group: tuple[int, int, int], added: float, on: Network
) -> None:
    tighter = replace(on, oversubscription=on.oversubscription + added)
    assert time(kind, nbytes, group, on) <= time(kind, nbytes, group, tighter) * WITHIN_ROUNDING


@given(kinds, messages, factors, groups, networks())
def test_twice_the_message_never_takes_less(
    kind: Kind, nbytes: float, factor: float, group: tuple[int, int, int], on: Network
) -> None:
    assert time(kind, nbytes, group, on) <= time(kind, nbytes * factor, group, on)


@given(kinds, messages, st.tuples(factors, factors), groups, networks())
def test_more_bandwidth_and_shorter_hops_are_never_slower(
    kind: Kind, nbytes: float, by: tuple[float, float], group: tuple[int, int, int], on: Network
) -> None:
    out = replace(on.out, bytes_per_s=on.out.bytes_per_s * by[0])
    better = replace(on, out=out, hop_s=on.hop_s / by[1])
    assert time(kind, nbytes, group, better) <= time(kind, nbytes, group, on) * WITHIN_ROUNDING


@given(messages, groups, networks())
def test_switches_that_add_up_are_never_slower(
    nbytes: float, group: tuple[int, int, int], on: Network
) -> None:
    plain = replace(on, sharp_bytes_per_s=0.0)
    assert time("all_reduce", nbytes, group, on) <= time("all_reduce", nbytes, group, plain)


def test_a_ring_leaves_four_domains_once_and_feels_a_tight_fabric_only_where_each_leaf_is_one() -> None:
    on = replace(network("gb200-nvl72"), oversubscription=2.0, hop_s=0.0)
    free = time("all_gather", 1e9, (256, 8, None), on)
    assert time("all_gather", 1e9, (256, 8, 32), on) == free
    assert time("all_gather", 1e9, (256, 8, 8), on) > 1.5 * free


def test_an_all_to_all_feels_a_tight_fabric_wherever_it_leaves_a_leaf() -> None:
    on = replace(network("gb200-nvl72"), oversubscription=2.0, hop_s=0.0)
    free = time("all_to_all", 1e10, (256, 8, None), on)
    assert time("all_to_all", 1e10, (256, 8, 32), on) == pytest.approx(free * 2.0 * 224 / 248, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_broadcast_to_what_scalars_give(kind: Kind) -> None:
    on = replace(network("gb200-nvl72"), oversubscription=3.0)
    nbytes, ranks, leaf = (
        np.array([[[1e3]], [[1e10]]]),
        np.array([[8.0], [1440.0]]),
        np.array([72.0, 288.0, 5e3]),
    )
    found = seconds(kind, nbytes=nbytes, ranks=ranks, local=72.0, leaf=leaf, network=on)
    assert found.shape == (2, 2, 3)
    expected = [
        [[time(kind, b, (r, 72.0, w), on) for w in leaf.tolist()] for r in ranks[:, 0].tolist()]
        for b in nbytes[:, 0, 0].tolist()
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_fabric_says_how_tight_it_is_and_who_says_so(name: str) -> None:
    on = network(name)
    assert on.oversubscription == 1.0
    assert 0.0 < on.hop_s < on.out.step_s
    assert on.oversubscription_origin is not None
    assert on.oversubscription_origin.provenance == "vendor"
