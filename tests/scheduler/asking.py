"""Asking `why`, for every test of it."""

from __future__ import annotations

from msgspec.structs import replace

from rackscale.events import (
    Event,
)
from rackscale.report import because
from rackscale.scheduler.answers import OBSTACLES, Why
from rackscale.scheduler.explain import why
from rackscale.workload import Job, Policy
from tests.scheduler.world import World, domain, job

NEVER_MOVE = Policy(preemption=False)
SMALL = (domain(0, nodes=4, spares=0), domain(1, nodes=4, spares=0))


def asked(world: World, name: str, history: tuple[Event, ...] = ()) -> Why:
    """The answer about one gang. Asking changes nothing, and people get a sentence."""
    before = world.state.snapshot()
    (answer,) = why(world.state, name, history)
    assert world.state.snapshot() == before
    assert because.sentence(answer)
    for unblock in answer.unblocks:
        assert because.unblock(unblock, answer.now_s)
    if answer.reservation is not None:
        assert because.reservation(answer.reservation, answer.now_s)
    if answer.placed is not None:
        assert all(because.placed(answer))
    if answer.status == "waiting":
        assert answer.constraint in OBSTACLES
    assert sum(u.cheapest for u in answer.unblocks) == bool(answer.unblocks)
    return answer


def lasting(name: str, nodes: int = 1, segments: int = 1, *, s: float, **more: object) -> Job:
    """A job that is expected to take `s` seconds."""
    return replace(job(name, nodes, segments, restart_s=0.0, **more), duration_s=s)  # type: ignore[arg-type]
