"""Forecasts from a live state."""

from __future__ import annotations

from msgspec.structs import replace

from rackscale.events import Submitted
from rackscale.forecast import forecast
from tests.scheduler.world import World, domain, job


def test_a_quiet_journal_does_not_stop_the_clock() -> None:
    """What was heard of last an hour ago has worked since, and the forecast counts from the present."""
    world = World(domain(0))
    world.submit(replace(job("runs", 16), duration_s=7200.0), at_s=1.0)
    waits = replace(job("waits", 16), duration_s=60.0)
    (found,) = forecast(world.state, [Submitted(at_s=3601.0, job=waits)], names=["waits"], now_s=3601.0)
    assert found.at_s == 3601.0
    assert found.start_s == 7201.0
    assert found.end_s == 7201.0 + waits.durability.restart_s + 60.0


def test_a_service_starts_when_its_last_replica_does() -> None:
    world = World(domain(0))
    world.submit(replace(job("runs", 10), duration_s=100.0), at_s=1.0)
    service = job("chat", 5, kind="service", replicas=2)
    (found,) = forecast(world.state, [Submitted(at_s=1.0, job=service)], names=["chat"])
    assert found.start_s == 101.0
    assert found.end_s is None


def test_those_who_move_are_told_when_they_are_back() -> None:
    world = World(domain(0))
    world.submit(replace(job("victim", 16), duration_s=500.0), at_s=1.0)
    production = replace(job("prod", 16, priority="production"), duration_s=50.0)
    promised, moved = forecast(
        world.state, [Submitted(at_s=400.0, job=production)], names=["prod"], moved=["victim"], now_s=400.0
    )
    assert promised.victims == ("victim",)
    assert promised.end_s is not None
    assert moved.start_s == promised.end_s


def test_the_state_is_not_touched() -> None:
    world = World(domain(0))
    world.submit(job("a", 4))
    before = world.state.snapshot()
    forecast(world.state, [Submitted(at_s=5.0, job=job("b", 4))], names=["b"], now_s=10.0)
    assert world.state.snapshot() == before
