"""Closeness and distance asked for, wherever gangs are put: on start, when room is cleared, and for replicas."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.events import Action, Claim, Preempt
from rackscale.workload import Job, Level, Nearness, Policy
from tests.scheduler.world import World, domain, job


def world(count: int = 8, *, leaf: int = 2, spine: int = 2, **policy: object) -> World:
    """`leaf` domains under each leaf switch, `spine` leaf switches under each spine."""
    specs = [
        replace(domain(i, nodes=4, spares=0), leaf=f"l{i // leaf}", spine=f"s{i // (leaf * spine)}")
        for i in range(count)
    ]
    return World(*specs, policy=Policy(min_runtime_s=0.0, **policy))  # type: ignore[arg-type]


def near(name: str, segments: int, *, priority: str = "normal", **more: Level) -> Job:
    return replace(job(name, 4, segments, priority=priority), nearness=Nearness(**more))  # type: ignore[arg-type]


def service(replicas: int, level: Level, *, required: bool, nodes: int = 2, priority: str = "normal") -> Job:
    found = job("s", nodes, kind="service", replicas=replicas, priority=priority)
    return replace(found, nearness=Nearness(apart=level, apart_required=required))


def units(found: World, name: str, level: str) -> list[str]:
    return [getattr(found.state.domains[found.state.index[d]], level) for d in found.where(name)]


def claim(actions: tuple[Action, ...]) -> list[str]:
    (found,) = [a for a in actions if isinstance(a, Claim)]
    return [s.domain for s in found.binding]


@pytest.mark.parametrize(("level", "segments"), [("leaf", 2), ("spine", 4)])
def test_segments_lie_in_one_unit_or_wait(level: Level, segments: int) -> None:
    found = world()
    found.submit(job("f", 4))
    found.submit(near("x", segments, within=level))
    assert len(set(units(found, "x", level))) == 1
    found.submit(*(near(f"y{i}", segments, within=level) for i in range(4)))
    waiting = [g for g in found.state.gangs.values() if not g.binding]
    assert waiting
    free = found.state.occupancy.buckets[4].bit_count()
    assert free in (1, 3), "room is left, but in no one unit"


def test_room_is_cleared_inside_one_unit() -> None:
    found = world(preemption_retry_s=1.0)
    found.submit(*(job(f"f{i}", 4, priority="low", penalty_gpu_h=float(i % 3)) for i in range(8)))
    actions = found.submit(near("x", 2, within="leaf", priority="high"), at_s=100.0)
    assert len({found.state.domains[found.state.index[d]].leaf for d in claim(actions)}) == 1


def test_room_is_cleared_in_different_units() -> None:
    found = world()
    found.submit(*(job(f"f{i}", 4, priority="low", penalty_gpu_h=float(i)) for i in range(8)))
    actions = found.submit(near("x", 3, spread="leaf", priority="high"), at_s=100.0)
    assert claim(actions) == ["c/us-000", "c/us-002", "c/us-004"], (
        "the cheapest under each of three leaf switches"
    )


def test_replicas_lie_apart_as_far_as_that_is_possible() -> None:
    found = world(4)
    found.submit(service(3, "leaf", required=False))
    leaves = [units(found, f"s/{i}", "leaf")[0] for i in range(3)]
    assert len(set(leaves)) == 2
    assert found.gang("s/2").binding


def test_replicas_that_must_be_apart_wait_rather_than_share_a_unit() -> None:
    found = world(4)
    found.submit(service(3, "leaf", required=True))
    assert len({units(found, f"s/{i}", "leaf")[0] for i in range(2)}) == 2
    assert found.gang("s/2").status == "waiting"
    found.end("s/0", "failed")
    placed = [units(found, f"s/{i}", "leaf") for i in range(3) if found.gang(f"s/{i}").binding]
    assert sorted(placed) == [["l0"], ["l1"]]


def test_replicas_of_different_services_don_t_avoid_each_other() -> None:
    found = world(2, leaf=2)
    one = service(1, "leaf", required=True)
    found.submit(one, replace(one, name="t"))
    assert found.gang("s/0").binding
    assert found.gang("t/0").binding


def test_room_is_cleared_apart_from_other_replicas() -> None:
    found = world(4)
    found.submit(service(2, "leaf", required=True, nodes=4, priority="high"))
    first = units(found, "s/0", "leaf")
    other = units(found, "s/1", "leaf")
    assert first != other
    found.end("s/1", "failed")
    # Fill all that is free with gangs that can be evicted, then let the replica come back.
    found = world(4)
    found.submit(service(1, "leaf", required=True, nodes=4, priority="high"))
    found.submit(*(job(f"f{i}", 4, priority="low", penalty_gpu_h=float(9 - i)) for i in range(3)))
    more = replace(service(2, "leaf", required=True, nodes=4, priority="high"), name="t")
    actions = found.submit(more, at_s=100.0)
    claims = [a.binding[0].domain for a in actions if isinstance(a, Claim)]
    leaves = {found.state.domains[found.state.index[d]].leaf for d in claims}
    assert len(claims) == len(leaves) == 2


def test_a_gang_for_which_no_unit_can_be_cleared_evicts_nobody() -> None:
    found = world(4)
    for i in range(4):
        found.submit(job(f"f{i}", 4, priority="low" if i % 2 else "production"))
    actions = found.submit(near("x", 2, within="leaf", priority="high"), at_s=100.0)
    assert not any(isinstance(a, Preempt) for a in actions)
