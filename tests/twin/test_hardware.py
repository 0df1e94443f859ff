"""Failures: how many, of what, for how long; and that streams of chance do not disturb each other."""

from __future__ import annotations

import pytest
from msgspec import structs

from rackscale.events import (
    Announced,
    Delivered,
    DomainSpec,
    Extended,
    Input,
    NodeFailed,
    NodeRepaired,
)
from rackscale.spec import Duration, Failures
from rackscale.twin import TwinExecutor
from rackscale.twin.agenda import Agenda
from rackscale.twin.hardware import Hardware

HOUR_S = 3600.0
FAILURES = Failures(per_gpu_hour=1e-3, domain_share=0.1)


def domains(count: int, *, first: int = 0) -> tuple[DomainSpec, ...]:
    return tuple(
        DomainSpec(name=f"us-{first + i:03}", system="s", nodes=18, gpus_per_node=4, cluster="c")
        for i in range(count)
    )


def events(
    failures: Failures = FAILURES, *deliveries: Input, seed: int = 1, hours: float = 1000.0
) -> list[NodeFailed | NodeRepaired]:
    twin = TwinExecutor(
        seed=seed, failures=failures, inputs=deliveries or [Delivered(at_s=0.0, domains=domains(20))]
    )
    found: list[Input] = []
    while twin.now_s < hours * HOUR_S:
        found += twin.poll(hours * HOUR_S)
    return [event for event in found if isinstance(event, NodeFailed | NodeRepaired)]


def failed(found: list[NodeFailed | NodeRepaired], cause: str) -> list[NodeFailed]:
    return [event for event in found if isinstance(event, NodeFailed) and event.cause == cause]


def times(found: list[NodeFailed]) -> list[float]:
    return [event.at_s for event in found]


def test_failures_come_at_the_rate_of_all_gpus() -> None:
    found = events(hours=4000.0)
    # 1,440 GPUs x 4,000 h x 1e-3 = 5,760, a tenth of them domains; 4 standard deviations each.
    assert abs(len(failed(found, "node")) - 5184) < 4 * 5184**0.5 + 5184 * down_share()
    assert abs(len(failed(found, "domain")) - 576) < 4 * 576**0.5


def down_share() -> float:
    """Failures of a node that is down come to nothing: about this share."""
    node_h, domain_h = FAILURES.node_repair.mean_s / HOUR_S, FAILURES.domain_repair.mean_s / HOUR_S
    return 1e-3 * (0.9 * 4 * node_h + 0.1 * 72 * domain_h)


def test_a_growing_fleet_fails_in_proportion_to_what_was_delivered() -> None:
    grown = (
        Delivered(at_s=0.0, domains=domains(5)),
        Delivered(at_s=500.0 * HOUR_S, domains=domains(15, first=5)),
    )
    found = failed(events(FAILURES, *grown, hours=1000.0), "node")
    early = sum(event.at_s < 500 * HOUR_S for event in found)
    assert abs(early - 162) < 4 * 162**0.5
    assert abs(len(found) - early - 648) < 4 * 648**0.5 + 648 * down_share()


def test_the_first_failure_of_a_delivery_is_not_drawn_anew_by_the_next() -> None:
    """The hazard counts on: ten deliveries of two domains at once fail like one of twenty."""
    at_once = events()
    split = [Delivered(at_s=0.0, domains=domains(2, first=2 * i)) for i in range(10)]
    assert events(FAILURES, *split) == at_once


def test_a_delivery_of_nothing_changes_nothing() -> None:
    empty = [Delivered(at_s=hours * HOUR_S, domains=()) for hours in (1.0, 2.0, 77.0)]
    found = events(FAILURES, Delivered(at_s=0.0, domains=domains(20)), *empty)
    assert [event.at_s for event in found] == pytest.approx([event.at_s for event in events()])


def test_a_short_repair_of_the_domain_does_not_mend_a_node_that_takes_longer() -> None:
    agenda = Agenda()
    hardware = Hardware(agenda, FAILURES, seed=1)
    (spec,) = domains(1)
    assert hardware.fail(0.0, spec, [3], 10 * HOUR_S)
    assert hardware.fail(HOUR_S, spec, range(18), 2 * HOUR_S)
    assert not hardware.fail(2 * HOUR_S, spec, [5], 99 * HOUR_S)
    assert hardware.due(3 * HOUR_S, spec) == tuple(node for node in range(18) if node != 3)
    assert hardware.due(10 * HOUR_S, spec) == tuple(range(18))


def test_causes_have_streams_of_their_own() -> None:
    longer = structs.replace(FAILURES, domain_repair=Duration(median_s=9 * HOUR_S, p90_s=20 * HOUR_S))
    nodes, domains_ = times(failed(events(), "node")), times(failed(events(), "domain"))
    # What is down can't fail again, so that longer repairs hide a few failures; but none is moved.
    for cause, expected in (("node", nodes), ("domain", domains_)):
        found = times(failed(events(longer), cause))
        assert len(set(found) & set(expected)) > 0.8 * len(expected)
        assert len(set(found) - set(expected)) < 0.01 * len(expected)
    alone = structs.replace(FAILURES, per_gpu_hour=1e-4, domain_share=1.0)
    assert times(failed(events(alone), "domain")) == pytest.approx(domains_)
    assert not set(times(failed(events(seed=2), "domain"))) & set(domains_)


def test_repairs_take_as_long_as_stated() -> None:
    found = events(structs.replace(FAILURES, domain_share=0.0), hours=4000.0)
    began: dict[tuple[str, int], float] = {}
    took: list[float] = []
    for event in found:
        assert event.nodes is not None
        key = (event.domain, event.nodes[0])
        if isinstance(event, NodeFailed):
            began[key] = event.at_s
        else:
            took.append(event.at_s - began.pop(key))
    took.sort()
    assert 0.9 * 2 * HOUR_S < took[len(took) // 2] < 1.1 * 2 * HOUR_S
    assert 0.9 * 4 * HOUR_S < took[len(took) * 9 // 10] < 1.1 * 4 * HOUR_S


def test_a_node_is_up_again_only_when_every_repair_is_done() -> None:
    """Failures overlap heavily here; nothing is repaired twice, and nothing fails that is down."""
    often = structs.replace(FAILURES, per_gpu_hour=0.01, domain_share=0.1)
    down: set[tuple[str, int]] = set()
    found = events(often, hours=400.0)
    for event in found:
        nodes = {(event.domain, node) for node in (range(18) if event.nodes is None else event.nodes)}
        if isinstance(event, NodeFailed):
            assert not nodes <= down
            down |= nodes
        else:
            assert nodes <= down
            down -= nodes
    assert len(found) > 1000


def test_without_failures_nothing_fails() -> None:
    assert events(structs.replace(FAILURES, per_gpu_hour=0.0)) == []


def test_a_failure_says_what_a_repair_usually_takes() -> None:
    said = {(event.cause, event.repair_s) for event in events() if isinstance(event, NodeFailed)}
    assert said == {("node", FAILURES.node_repair.median_s), ("domain", FAILURES.domain_repair.median_s)}


def test_lemons_fail_so_many_times_as_often() -> None:
    often = structs.replace(
        FAILURES, domain_share=0.0, lemon_share=0.05, lemon_factor=20.0, per_gpu_hour=1e-4
    )
    hours = 40_000.0
    found = failed(events(often, hours=hours), "node")
    by_node: dict[tuple[str, int], int] = {}
    for event in found:
        assert event.nodes is not None
        key = (event.domain, event.nodes[0])
        by_node[key] = by_node.get(key, 0) + 1
    # A node has 4 GPUs: 16 failures are expected of an ordinary one, 320 of a lemon; 360 nodes, 18 lemons expected.
    lemons = [count for count in by_node.values() if count > 100]
    others = [count for count in by_node.values() if count <= 100]
    assert 5 <= len(lemons) <= 35
    assert len(lemons) + len(others) == 360
    assert sum(lemons) / len(lemons) == pytest.approx(320, rel=0.1)
    assert sum(others) / len(others) == pytest.approx(16, rel=0.1)


def test_lemons_are_the_same_however_much_was_delivered() -> None:
    often = structs.replace(FAILURES, lemon_share=0.1)
    for count in (3, 20):
        hardware = Hardware(Agenda(), often, seed=5)
        hardware.deliver(0.0, domains(count))
        if count == 3:
            few = {hardware.lemons.pick(share / 1000) for share in range(1000)}
    many = {hardware.lemons.pick(share / 1000) for share in range(1000)}
    assert few
    assert few == {(spec, node) for spec, node in many if spec.name < "us-003"}


def test_without_lemons_the_same_fails_as_ever() -> None:
    assert events(structs.replace(FAILURES, lemon_share=0.0, lemon_factor=3.0)) == events()


def test_what_has_expired_fails_no_more() -> None:
    short = tuple(structs.replace(spec, expires_s=400 * HOUR_S) for spec in domains(20))
    found, all_ = events(FAILURES, Delivered(at_s=0.0, domains=short)), events()
    assert times(failed(found, "node")) == [t for t in times(failed(all_, "node")) if t < 400 * HOUR_S]
    longer = Extended(at_s=HOUR_S, domains=tuple(spec.name for spec in short), expires_s=None)
    assert failed(events(FAILURES, Delivered(at_s=0.0, domains=short), longer), "node") == failed(
        all_, "node"
    )


def test_what_is_announced_comes_when_it_is_expected_and_fails_from_then_on() -> None:
    fleet = domains(20)
    late = [
        Announced(at_s=0.0, ready_s=100 * HOUR_S, domains=fleet),
        Announced(at_s=HOUR_S, ready_s=300 * HOUR_S, domains=fleet),
    ]
    twin = TwinExecutor(failures=FAILURES, inputs=late)
    seen: list[Input] = []
    while twin.now_s < 1000 * HOUR_S:
        seen += twin.poll(1000 * HOUR_S)
    came = [(event.at_s, spec) for event in seen if isinstance(event, Delivered) for spec in event.domains]
    assert came == [(300 * HOUR_S, spec) for spec in fleet]
    broke = [event.at_s for event in seen if isinstance(event, NodeFailed)]
    assert len(broke) > 100
    assert min(broke) > 300 * HOUR_S


def test_a_delivery_that_is_told_is_not_told_again() -> None:
    fleet = domains(2)
    inputs: list[Input] = [
        Announced(at_s=0.0, ready_s=100.0, domains=fleet),
        Delivered(at_s=100.0, domains=fleet),
    ]
    twin = TwinExecutor(inputs=inputs)
    seen: list[Input] = []
    while not twin.done:
        seen += twin.poll(None)
    assert seen == inputs
