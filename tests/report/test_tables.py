"""Tables for people: what `status` counts and says of drains, and how a plan is told."""

from __future__ import annotations

import re

from msgspec.structs import replace
from rich.console import Console, RenderableType

from rackscale.events import Drained, NodeFailed
from rackscale.report.tables import actions, status
from rackscale.workload import Policy
from tests.scheduler.world import World, domain, job

A = "c/us-000"


def shown(world: World, now_s: float = 0.0) -> list[str]:
    return printed(status(world.state, now_s))


def printed(picture: RenderableType) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(picture)
    return [line.rstrip() for line in capture.get().splitlines()]


def counted(headline: str) -> dict[str, int]:
    """GPUs by what they do; what is part of something else is left out."""
    total = re.search(r"(\d+) GPUs: (.*);", headline)
    assert total is not None
    parts = re.findall(
        r"(\d+) (held|free|kept|out of use)(?![a-z])", re.sub(r"\d+ of them[^,;]*", "", total[2])
    )
    found = {name: int(number) for number, name in parts}
    assert sum(found.values()) == int(total[1])
    return found


def test_every_gpu_is_counted_once_also_under_gangs_that_are_drained() -> None:
    world = World(domain(0), policy=Policy(min_runtime_s=0.0))
    world.submit(job("a", 2), job("b", 3, priority="low"))
    world.cycle(
        Drained(at_s=0.0, domain=A, nodes=(0, 17), deadline_s=3600.0),
        NodeFailed(at_s=0.0, domain=A, nodes=(16,)),
    )
    assert counted(shown(world)[0]) == {"held": 20, "free": 44, "out of use": 8}
    assert "20 held (28%), 4 of them on nodes that are out of use" in shown(world)[0]
    world.submit(job("prod", 11, priority="production"), at_s=500.0)
    assert counted(shown(world)[0]) == {"held": 20, "free": 4, "kept": 40, "out of use": 8}


def test_a_drain_is_shown_with_its_deadline_until_that_has_passed() -> None:
    world = World(domain(0), domain(1))
    world.submit(job("a", 2))
    world.cycle(
        Drained(at_s=0.0, domain=A, deadline_s=7200.0), Drained(at_s=0.0, domain="c/us-001", nodes=(3,))
    )
    rows = shown(world)
    assert next(row for row in rows if row.startswith(A)).endswith("drained, gangs leave within 2 h 00")
    assert next(row for row in rows if row.startswith("c/us-001")).endswith("n03 drained")
    assert next(row for row in rows if row.startswith("a ")).endswith("told to leave in 2 h 00 (drain)")
    late = shown(world, 8000.0)
    assert next(row for row in late if row.startswith(A)).endswith("  drained")


def test_promises_of_a_plan_are_one_line_unless_asked() -> None:
    world = World(domain(0))
    waiting = [replace(job(f"w{i}", 17), duration_s=50.0) for i in range(6)]
    world.submit(replace(job("runs", 10), duration_s=50.0), *waiting)
    kinds = [line.split()[0] for line in printed(actions(world.plan.actions, verbose=True))[1:]]
    assert kinds == ["START", *["RESERVE"] * 6]
    _, start, reserve = printed(actions(world.plan.actions))
    assert start.startswith("START")
    assert " ".join(reserve.split()) == (
        "RESERVE 6 of them nobody behind them may delay their start: w0, w1, w2, w3 and 2 more (--verbose says where)"
    )
    assert "w0" in printed(actions(world.plan.actions[:2]))[2]
