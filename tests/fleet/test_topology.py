"""Fabric levels as sets of domains, against looking at one unit after the other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale.events import DomainSpec
from rackscale.fleet.fabric import Units
from rackscale.fleet.occupancy import mask_of, members
from rackscale.fleet.topology import Topology
from rackscale.workload import LEVELS


def spec(name: str, path: str = "", *, cluster: str = "c", system: str = "s") -> DomainSpec:
    region, building, spine, leaf = path.split("/") if path else ("", "", "", "")
    return DomainSpec(
        name=name, system=system, nodes=18, gpus_per_node=4, cluster=cluster, spares=2, region=region,
        building=building, spine=spine, leaf=leaf,
    )  # fmt: skip


def built(*specs: DomainSpec) -> Topology:
    topology = Topology()
    for one in specs:
        topology.add(one)
    return topology


# -- the fleet's shape -------------------------------------------------------------------------------------------------


def test_a_unit_is_named_by_the_whole_path_of_labels() -> None:
    topology = built(
        spec("a", "r/b1/s1/l1"), spec("b", "r/b1/s1/l2"), spec("c", "r/b1/s2/l1"), spec("d", "r/b2/s1/l1")
    )
    (group,) = topology.groups(None, None)
    assert topology.units("leaf", group) == (0b1, 0b10, 0b100, 0b1000)
    assert topology.units("spine", group) == (0b11, 0b100, 0b1000)
    assert topology.units("building", group) == (0b111, 0b1000)
    assert topology.units("region", group) == (0b1111,)
    assert topology.units("domain", group) == (0b1, 0b10, 0b100, 0b1000)


def test_what_is_not_known_counts_as_the_same_for_the_cluster() -> None:
    topology = built(spec("a"), spec("b"), spec("c", cluster="other"))
    assert [topology.unit(level, 0) for level in LEVELS] == [0b1, 0b11, 0b11, 0b11, 0b11]
    assert topology.unit("region", 2) == 0b100


def test_units_are_of_one_group_but_a_unit_has_every_system_of_its_cluster() -> None:
    topology = built(spec("a", "r/b/s/l"), spec("b", "r/b/s/l", system="t"), spec("c", "r/b/s/l"))
    first, second = topology.groups(None, "c")
    assert topology.units("leaf", first) == (0b101,)
    assert topology.units("leaf", second) == (0b10,)
    assert topology.unit("leaf", 0) == 0b111


def test_units_grow_with_the_fleet() -> None:
    topology = built(spec("a", "r/b/s/l1"))
    (group,) = topology.groups(None, None)
    assert topology.units("leaf", group) == (0b1,)
    topology.add(spec("b", "r/b/s/l2"))
    topology.add(spec("c", "r/b/s/l1"))
    assert topology.units("leaf", group) == (0b101, 0b10)
    assert topology.unit("leaf", 0) == 0b101


@pytest.mark.parametrize(
    ("domains", "reach"),
    [([0], 0), ([0, 0], 0), ([0, 1], 1), ([0, 2], 2), ([1, 3], 3), ([4, 0], 4), ([5, 0], 5)],
)
def test_reach_is_the_smallest_level_around_domains(domains: list[int], reach: int) -> None:
    paths = ["r/b/s/l", "r/b/s/l", "r/b/s/m", "r/b/t/l", "r/c/s/l", "q/b/s/l"]
    topology = built(*(spec(str(i), path) for i, path in enumerate(paths)))
    assert topology.reach(domains) == reach


# -- questions about all units at once ---------------------------------------------------------------------------------


@st.composite
def partitions(draw: st.DrawFn) -> tuple[list[int], random.Random]:
    """Up to 150 units over up to 600 domains: in fabric order, interleaved, or some of each; gaps between them."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    units, size = draw(st.sampled_from([1, 3, 20, 100, 150])), draw(st.integers(1, 4))
    labels = [unit for unit in range(units) for _ in range(chance.randint(1, size))]
    for _ in range(draw(st.sampled_from([0, 0, 1, 5, 300]))):
        i, j = chance.randrange(len(labels)), chance.randrange(len(labels))
        labels[i], labels[j] = labels[j], labels[i]
    masks: dict[int, int] = {}
    d = 0
    for label in labels:
        d += chance.randint(0, 1) + 1  # a gap: a domain of another system
        masks[label] = masks.get(label, 0) | 1 << d
    return list(masks.values()), chance


def head(mask: int) -> int:
    return mask.bit_length() - 1


@given(partition=partitions(), count=st.integers(1, 4), share=st.floats(0, 1))
def test_counting_in_every_unit_at_once(
    partition: tuple[list[int], random.Random], count: int, share: float
) -> None:
    masks, chance = partition
    units = Units(masks)
    domains = mask_of(tuple(d for mask in masks for d in members(mask) if chance.random() < share))
    assert units.occupied(domains) == sum(1 << head(m) for m in masks if m & domains)
    assert units.first(domains) == sum((m & domains) & -(m & domains) for m in masks)
    holding = [m for m in masks if (m & domains).bit_count() >= count]
    heads = units.holding(domains, count)
    assert heads == sum(1 << head(m) for m in holding)
    if holding:
        assert units.scarcest(heads, domains) == min(
            holding, key=lambda m: ((m & domains).bit_count(), head(m))
        )


@given(
    partition=partitions(), count=st.integers(1, 4), top=st.integers(0, 5), skew=st.sampled_from([0.2, 1, 4])
)
def test_the_cheapest_unit_against_every_unit(
    partition: tuple[list[int], random.Random], count: int, top: int, skew: float
) -> None:
    masks, chance = partition
    price = {d: int((top + 1) * chance.random() ** skew) for mask in masks for d in members(mask)}
    price = {d: p for d, p in price.items() if chance.random() < 0.8}
    stages = [mask_of(tuple(d for d, p in price.items() if p <= most)) for most in range(top + 1)]
    ways = []
    for mask in masks:
        prices = sorted(price[d] for d in members(mask & stages[-1]))
        if len(prices) >= count:
            ways.append((sum(prices[:count]), len(prices), head(mask), mask))
    different = sorted({*price.values(), 0})
    steps = [(stages[p], up - p) for p, up in zip(different, [*different[1:], top + 1], strict=True)]
    for way in (steps, [(stage, 1) for stage in stages]):
        assert Units(masks).best(way, count) == ((min(ways)[0], min(ways)[3]) if ways else None)
