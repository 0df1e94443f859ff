"""Which of its shapes a job runs in: value against a table worked out by hand."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.scheduler.choices import ranked
from rackscale.workload import Job, Offer, Policy, Shape
from tests.scheduler.world import World, domain, job

POLICY = Policy(preemption=False)


def offers(*found: tuple[int, float], system: str | None = None) -> tuple[Offer, ...]:
    return tuple(
        Offer(shape=Shape(nodes_per_segment=nodes), throughput=rate, system=system) for nodes, rate in found
    )


def order(world: World, one: Job) -> list[int]:
    """Nodes of the choices, the most valuable first."""
    return [one.choices[n].shape.nodes_held for n in ranked(world.state.topology, world.state.policy, one)]


@pytest.mark.parametrize(
    ("larger", "first"),
    [
        # 4 nodes give 1.0: 0.25 per node. At 0.5, each further node must bring more than 0.125.
        ((8, 1.6), 8),  # 0.15 per further node
        ((8, 1.4), 4),  # 0.1
        ((16, 2.6), 16),  # 0.133
        ((16, 2.4), 4),  # 0.117
    ],
)
def test_a_larger_shape_is_taken_if_its_extra_nodes_bring_enough(
    larger: tuple[int, float], first: int
) -> None:
    world = World(domain(0))
    assert order(world, replace(job("x", 4), offers=offers(larger)))[0] == first


def test_three_shapes_are_ranked_by_worth_less_cost() -> None:
    """Worth per unit of throughput: 4 nodes x 4 GPUs / 1.0 / 0.5 = 32. Values: 16, 24, 8."""
    world = World(domain(0))
    assert order(world, replace(job("x", 4), offers=offers((8, 1.75), (16, 2.25)))) == [8, 4, 16]


def test_an_owner_who_says_what_work_is_worth_decides_himself() -> None:
    """At 2 dollars per GPU-hour 4 nodes cost 32 and 8 cost 64 an hour; the larger one does 0.2 more work."""
    world = World(domain(0, usd=2.0))
    one = replace(job("x", 4), offers=offers((8, 1.2)))
    assert order(world, replace(one, usd_per_hour=100.0))[0] == 4
    assert order(world, replace(one, usd_per_hour=200.0))[0] == 8


def test_a_dear_system_has_to_be_faster_by_as_much() -> None:
    cheap = replace(domain(0, usd=1.0), system="old")
    dear = replace(domain(1, usd=3.0), system="new")
    world = World(cheap, dear)
    for rate, first in ((1.5, "old"), (2.5, "new"), (3.5, "new")):
        one = replace(job("x", 4), system="old", offers=offers((4, rate), system="new"))
        choice = ranked(world.state.topology, POLICY, one)[0]
        assert (one.choices[choice].system or one.system) == first, rate


def test_systems_that_the_fleet_does_not_have_are_left_out() -> None:
    world = World(domain(0))
    one = replace(job("x", 4), offers=offers((4, 9.0), system="dream"))
    assert ranked(world.state.topology, POLICY, one) == (0,)


def test_where_some_prices_are_unknown_gpus_are_counted() -> None:
    cheap, unknown = replace(domain(0, usd=0.1), system="old"), replace(domain(1), system="new")
    world = World(cheap, unknown)
    one = replace(job("x", 4), system="old", offers=offers((4, 1.1), system="new"))
    assert ranked(world.state.topology, POLICY, one)[0] == 1


def test_own_spares_cost_too() -> None:
    spared = Offer(shape=Shape(nodes_per_segment=4, spares_per_segment=4), throughput=1.2)
    assert order(World(domain(0)), replace(job("x", 4), offers=(spared,))) == [4, 8]


def test_the_best_shape_that_fits_now_is_started() -> None:
    world = World(domain(0), policy=POLICY)
    world.submit(job("fills", 10))
    world.submit(replace(job("x", 4), offers=offers((16, 4.0), (6, 1.5))))
    gang = world.gang("x")
    assert (len(gang.binding[0].nodes), gang.choice, gang.throughput) == (6, 2, 1.5)


def test_a_faster_shape_is_expected_to_end_sooner() -> None:
    world = World(domain(0), policy=POLICY)
    world.submit(replace(job("x", 4, restart_s=0.0), offers=offers((8, 2.0)), duration_s=1000.0))
    assert world.gang("x").expected_end_s == 500.0
