"""Laws of collectives inside domains and between them, whatever the network; between leaves: test_leaves.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.catalog import systems
from rackscale.collectives import KINDS, Kind, Network, network, seconds
from rackscale.errors import UnknownNameError
from tests.collectives.networks import WITHIN_ROUNDING, networks

LINKED = [s.name for s in systems() if s.accelerator.maker == "NVIDIA"]

kinds = st.sampled_from(KINDS)
messages = st.floats(0.0, 1e11)
counts = st.integers(1, 4096)
factors = st.floats(1.0, 100.0)
groups = st.tuples(counts, st.integers(1, 72))
"""Ranks, and how many of them a domain holds."""


def time(kind: Kind, nbytes: float, ranks: float, local: float, on: Network) -> float:
    return float(seconds(kind, nbytes=nbytes, ranks=ranks, local=local, network=on))


def bare(on: Network) -> Network:
    """Bandwidth alone."""
    free = dict.fromkeys(("latency_s", "step_s", "ramp_s", "fill_s"), 0.0)
    return replace(on, up=replace(on.up, **free), out=replace(on.out, **free))


@given(kinds, messages, counts, st.integers(1, 72), networks())
def test_it_takes_time_unless_a_rank_is_alone(
    kind: Kind, nbytes: float, ranks: int, local: int, on: Network
) -> None:
    found = time(kind, nbytes, ranks, local, on)
    assert np.isfinite(found)
    assert found >= 0.0
    assert time(kind, nbytes, 1, local, on) == 0.0
    assert time(kind, nbytes, 0, local, on) == 0.0


@given(kinds, messages, factors, groups, networks())
def test_more_bytes_are_never_faster(
    kind: Kind, nbytes: float, factor: float, group: tuple[int, int], on: Network
) -> None:
    assert time(kind, nbytes, *group, on) <= time(kind, nbytes * factor, *group, on)


@given(kinds, messages, st.tuples(st.integers(1, 64), st.integers(0, 64)), st.integers(1, 72), networks())
def test_more_domains_are_never_faster(
    kind: Kind, nbytes: float, domains: tuple[int, int], local: int, on: Network
) -> None:
    few, many = domains[0] * local, sum(domains) * local
    assert time(kind, nbytes, few, local, on) <= time(kind, nbytes, many, local, on) * WITHIN_ROUNDING


@given(kinds, messages, st.integers(1, 72), st.integers(0, 72), networks())
def test_more_ranks_of_one_domain_are_never_faster(
    kind: Kind, nbytes: float, ranks: int, added: int, on: Network
) -> None:
    many = ranks + added
    assert time(kind, nbytes, ranks, ranks, on) <= time(kind, nbytes, many, many, on) * WITHIN_ROUNDING


@given(kinds, messages, st.integers(0, 6), st.tuples(st.integers(0, 6), st.integers(0, 6)), networks())
def test_spreading_over_more_domains_is_never_faster(
    kind: Kind, nbytes: float, spread: int, logs: tuple[int, int], on: Network
) -> None:
    local, ranks = 2 ** logs[0], 2 ** sum(logs)
    packed = time(kind, nbytes, ranks, local, on)
    assert packed <= time(kind, nbytes, ranks, local / 2**spread, on) * WITHIN_ROUNDING


@given(kinds, messages, st.tuples(factors, factors), groups, networks())
def test_more_bandwidth_is_never_slower(
    kind: Kind, nbytes: float, by: tuple[float, float], group: tuple[int, int], on: Network
) -> None:
    up = replace(on.up, bytes_per_s=on.up.bytes_per_s * by[0])
    out = replace(on.out, bytes_per_s=on.out.bytes_per_s * by[1])
    assert time(kind, nbytes, *group, replace(on, up=up, out=out)) <= time(kind, nbytes, *group, on)


@given(kinds, messages, st.tuples(factors, factors), groups, networks())
def test_less_latency_is_never_slower(
    kind: Kind, nbytes: float, by: tuple[float, float], group: tuple[int, int], on: Network
) -> None:
    up = replace(on.up, latency_s=on.up.latency_s / by[0], step_s=on.up.step_s / by[1])
    out = replace(on.out, fill_s=on.out.fill_s / by[0], ramp_s=on.out.ramp_s / by[1])
    assert time(kind, nbytes, *group, replace(on, up=up, out=out)) <= time(kind, nbytes, *group, on)


@given(kinds, messages, st.floats(0.0, 64.0), groups, networks())
def test_more_rails_are_never_slower(
    kind: Kind, nbytes: float, added: float, group: tuple[int, int], on: Network
) -> None:
    more = replace(on, rails=on.rails + added)
    assert time(kind, nbytes, *group, more) <= time(kind, nbytes, *group, on)


@given(messages, groups, networks())
def test_switches_that_add_up_are_never_slower(nbytes: float, group: tuple[int, int], on: Network) -> None:
    plain = replace(on, sharp_bytes_per_s=0.0)
    assert time("all_reduce", nbytes, *group, on) <= time("all_reduce", nbytes, *group, plain)
    assert time("all_gather", nbytes, *group, on) == time("all_gather", nbytes, *group, plain)


@given(kinds, messages, st.lists(st.integers(1, 72), min_size=2, max_size=20), networks())
def test_unequal_domains_are_no_faster_than_equal_ones(
    kind: Kind, nbytes: float, parts: list[int], on: Network
) -> None:
    ranks = sum(parts)
    equal = time(kind, nbytes, ranks, ranks / len(parts), on)
    assert equal <= time(kind, nbytes, ranks, min(parts), on) * WITHIN_ROUNDING


@given(st.floats(1e6, 1e11), st.lists(st.integers(1, 72), min_size=2, max_size=20))
def test_an_all_to_all_over_unequal_domains_waits_for_the_emptiest(nbytes: float, parts: list[int]) -> None:
    on, ranks = network("gb200-nvl72"), sum(parts)
    slow = replace(bare(on), out=replace(bare(on).out, bytes_per_s=1e6))
    sent = [nbytes / ranks * (ranks - own) for own in parts]  # by a GPU of each, through its own NIC
    found = time("all_to_all", nbytes, ranks, min(parts), slow)
    assert found == pytest.approx(max(sent) / 1e6, rel=1e-9)


@pytest.mark.parametrize(("domains", "times"), [(2, 1.0), (3, 1.5), (4, 2.0), (64, 2.0)])
def test_trees_send_a_message_out_of_a_domain_twice_from_four_domains_on(domains: int, times: float) -> None:
    on = bare(network("dgx-h100"))
    found = time("all_reduce", 1e9, 64 * domains, 64, replace(on, rails=2.0))
    assert found == pytest.approx(times * 1e9 / (2.0 * on.out.bytes_per_s), rel=0.01)


@given(messages, st.integers(2, 512), st.integers(1, 72), networks())
def test_an_all_reduce_is_no_cheaper_than_its_two_halves_overlapped(
    nbytes: float, ranks: int, local: int, on: Network
) -> None:
    plain = replace(on, sharp_bytes_per_s=0.0)
    whole = time("all_reduce", nbytes, ranks, local, plain)
    assert whole >= 0.5 * time("reduce_scatter", nbytes, ranks, local, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_broadcast_to_what_scalars_give(kind: Kind) -> None:
    on = network("gb200-nvl72")
    nbytes, ranks, local = np.array([[1e3], [1e6], [1e10]]), np.array([1.0, 8.0, 72.0, 1440.0]), 72.0
    found = seconds(kind, nbytes=nbytes, ranks=ranks, local=local, network=on)
    assert found.shape == (3, 4)
    assert found.dtype == np.float64
    expected = [[time(kind, float(b), float(r), local, on) for r in ranks] for b in nbytes[:, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", LINKED)
def test_every_nvidia_system_has_a_network(name: str) -> None:
    on = network(name)
    assert on.up.bytes_per_s > on.out.bytes_per_s > 0.0
    assert on.sharp is ("a100" not in name)
    assert on.up.origin is not None
    assert on.out.origin is not None


def test_what_nobody_measured_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="there is no accelerator with measured links 'Trainium2'"):
        network("trn2-ultraserver")
    with pytest.raises(UnknownNameError, match="there is no system 'dgx-h10'") as caught:
        network("dgx-h10")
    assert caught.value.hint == "did you mean 'dgx-h100'?"
