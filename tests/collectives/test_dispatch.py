"""Laws of tokens on their way to experts, whatever the network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.collectives import Network, dispatch, network
from tests.collectives.networks import WITHIN_ROUNDING, networks

messages = st.floats(0.0, 1e11)
factors = st.floats(1.0, 100.0)
groups = st.tuples(st.integers(1, 4096), st.integers(1, 72))
"""Ranks, and how many of them a domain holds."""


def time(
    across: float, inside: float, group: tuple[float, float], on: Network, leaf: float | None = None
) -> float:
    ranks, local = group
    return float(
        dispatch(across_bytes=across, inside_bytes=inside, ranks=ranks, local=local, leaf=leaf, network=on)
    )


@given(messages, messages, groups, networks())
def test_it_takes_time_unless_a_rank_is_alone(
    across: float, inside: float, group: tuple[int, int], on: Network
) -> None:
    found = time(across, inside, group, on)
    assert np.isfinite(found)
    assert found >= 0.0
    assert time(across, inside, (1, 1), on) == 0.0


@given(messages, messages, st.tuples(factors, factors), groups, networks())
def test_more_bytes_are_never_faster(
    across: float, inside: float, by: tuple[float, float], group: tuple[int, int], on: Network
) -> None:
    assert time(across, inside, group, on) <= time(across * by[0], inside * by[1], group, on)


@given(messages, messages, st.tuples(factors, factors), groups, networks())
def test_more_bandwidth_and_less_latency_are_never_slower(
    across: float, inside: float, by: tuple[float, float], group: tuple[int, int], on: Network
) -> None:
    up = replace(on.up, bytes_per_s=on.up.bytes_per_s * by[0], latency_s=on.up.latency_s / by[1])
    out = replace(on.out, bytes_per_s=on.out.bytes_per_s * by[1], step_s=on.out.step_s / by[0])
    assert time(across, inside, group, replace(on, up=up, out=out)) <= time(across, inside, group, on)


@given(messages, messages, st.integers(2, 72), st.integers(1, 64), networks())
def test_a_domain_of_its_own_is_never_slower(
    across: float, inside: float, local: int, domains: int, on: Network
) -> None:
    alone = time(0.0, inside, (local, local), on)
    assert alone <= time(across, inside, (local * domains, local), on)


@given(messages, messages, groups, networks())
def test_both_tiers_work_at_once(across: float, inside: float, group: tuple[int, int], on: Network) -> None:
    only_across, only_inside = time(across, 0.0, group, on), time(0.0, inside, group, on)
    assert time(across, inside, group, on) == max(only_across, only_inside)


@given(messages, messages, groups, st.tuples(st.integers(1, 4096), st.integers(0, 4096)), networks())
def test_fewer_leaves_and_less_oversubscription_are_never_slower(
    across: float, inside: float, group: tuple[int, int], leaf: tuple[int, int], on: Network
) -> None:
    one = time(across, inside, group, on)
    few = time(across, inside, group, on, sum(leaf))
    many = time(across, inside, group, on, leaf[0])
    assert one <= few <= many
    open_ = replace(on, oversubscription=1.0)
    assert time(across, inside, group, open_, leaf[0]) <= min(many, one + on.hop_s) * WITHIN_ROUNDING
    assert time(across, inside, group, on, max(group)) == one


def test_half_the_uplinks_halve_what_leaves_the_leaf() -> None:
    on = replace(network("dgx-h100"), oversubscription=2.0, hop_s=0.0)
    whole, halves = time(1e9, 0.0, (64, 8), on), time(1e9, 0.0, (64, 8), on, 32)
    assert halves == pytest.approx(whole * 2.0 * 32 / 56, rel=1e-3)
    assert time(1e9, 0.0, (64, 8), on, 8) == pytest.approx(whole * 2.0, rel=1e-3)


def test_a_token_sent_once_per_domain_beats_one_sent_to_every_rank() -> None:
    on, token = network("dgx-h100"), 8192 * 7168 * 2.0
    once = time(3.0 * token, 20.0 * token, (32, 8), on)
    assert once < time(12.0 * token, 3.0 * token, (32, 8), on) / 2.0


def test_arrays_broadcast_to_what_scalars_give() -> None:
    on = network("gb200-nvl72")
    across, ranks, local = np.array([[0.0], [1e6], [1e9]]), np.array([1.0, 8.0, 64.0, 256.0]), 64.0
    found = dispatch(across_bytes=across, inside_bytes=3e8, ranks=ranks, local=local, network=on)
    assert found.shape == (3, 4)
    assert found.dtype == np.float64
    expected = [[time(float(a), 3e8, (float(r), local), on) for r in ranks] for a in across[:, 0]]
    assert found.tolist() == pytest.approx(np.array(expected), rel=1e-12)
