"""Forecasts from a live state."""

from __future__ import annotations

from msgspec.structs import replace
from rich.console import Console, RenderableType

from rackscale.events import Drained, Submitted
from rackscale.forecast import forecast
from rackscale.report.tables import moved
from tests.scheduler.world import World, domain, job


def printed(picture: RenderableType) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


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


def test_who_ends_before_a_drain_s_deadline_is_not_touched() -> None:
    world = World(domain(0), domain(1))
    world.submit(replace(job("short", 16), duration_s=600.0), replace(job("long", 16), duration_s=9000.0))
    homes = {name: world.where(name)[0] for name in ("short", "long")}
    drains = [Drained(at_s=10.0, domain=home, deadline_s=3600.0) for home in homes.values()]
    short, long = forecast(world.state, drains, names=(), moved=["short", "long"], now_s=10.0)
    assert (short.job, short.start_s, short.end_s) == ("short", None, 600.0)
    assert (long.job, long.end_s) == ("long", None)
    shown = printed(moved((short, long), 10.0))
    assert [" ".join(line.split()) for line in shown.splitlines()[1:]] == [
        "short ends before, in 10 min -",
        "long not within the horizon not within the horizon",
    ]


def test_one_replica_of_a_service_moves_by_itself() -> None:
    world = World(domain(0), domain(1), domain(2))
    world.submit(job("chat", 16, kind="service", replicas=2))
    drained = Drained(at_s=10.0, domain=world.where("chat/0")[0])
    (found,) = forecast(world.state, [drained], names=(), moved=["chat/0"], now_s=10.0)
    assert found.job == "chat/0"
    assert found.start_s is not None
    assert found.running_s == found.start_s + 60.0
