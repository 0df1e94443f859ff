"""A restored state is the state: it folds on and decides as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from rackscale.events import (
    Announced,
    Booked,
    Cancelled,
    Checkpointed,
    Decided,
    Delivered,
    Drained,
    Extended,
    Input,
    NodeFailed,
    NodeRepaired,
    Planned,
    Submitted,
    Ticked,
    Unbooked,
    Undrained,
    Unplanned,
)
from rackscale.fleet.state import FleetState
from rackscale.scheduler import decide
from rackscale.workload import Booking, Job, Maintenance, Offer, Policy, Queue, Shape
from tests.scheduler.world import World, domain, job

A, B, C = "c/us-000", "c/us-001", "c/us-002"


def world(**policy: object) -> World:
    return World(
        domain(0), domain(1), domain(2),
        policy=Policy(min_runtime_s=10.0, **policy),  # type: ignore[arg-type]
        queues=(
            Queue(name="org", quota_gpus=100), Queue(name="a", parent="org", quota_gpus=72, weight=2.0),
            Queue(name="b", parent="org", max_gangs_per_user=4), Queue(name="default"),
        ),
    )  # fmt: skip


def timed(name: str, nodes: int, lasts_s: float = 5000.0, **more: object) -> Job:
    return replace(job(name, nodes), duration_s=lasts_s, **more)


def busy(**policy: object) -> World:
    found = world(**policy)
    found.submit(timed("j0", 16, queue="a"), timed("j1", 16, user="ann"), timed("j2", 8), timed("j3", 8))
    return found


def booked() -> World:
    found = world()
    booking = Booking(name="trip", shape=Shape(nodes_per_segment=16), start_s=100.0, end_s=3000.0)
    later = replace(booking, name="later", start_s=4000.0, end_s=5000.0)
    found.cycle(Booked(at_s=0.0, booking=booking), Booked(at_s=1.0, booking=later))
    found.tick(100.0)
    found.submit(timed("inside", 4, 500.0, booking="trip"))
    assert found.state.machines.calendar.holding
    assert found.state.reserved
    return found


def maintained() -> World:
    found = busy()
    begun = Maintenance(name="begun", domain=C, nodes=(0, 1), start_s=50.0, end_s=900.0)
    coming = Maintenance(name="coming", domain=A, start_s=2000.0, end_s=3000.0)
    found.cycle(Planned(at_s=1.0, maintenance=begun), Planned(at_s=1.0, maintenance=coming))
    found.tick(50.0)
    found.tick(60.0)
    assert found.state.machines.calendar.open
    assert found.state.machines.calendar.coming
    assert found.state.evacuating
    return found


def expiring() -> World:
    found = World(
        replace(domain(0), expires_s=500.0), replace(domain(1), expires_s=4000.0), domain(2), policy=Policy()
    )
    found.submit(timed("short", 4, 100.0), timed("long", 16))
    found.tick(500.0)
    found.tick(501.0)
    assert found.state.machines.health.closed[0]
    return found


def announced() -> World:
    found = busy()
    found.cycle(Announced(at_s=2.0, ready_s=700.0, domains=(domain(7), domain(8))))
    found.submit(timed("waits", 16))
    assert found.state.reserved["waits"].start_s == 700.0
    return found


def draining() -> World:
    found = busy()
    found.cycle(
        Drained(at_s=5.0, domain=A, nodes=(0, 1), deadline_s=1000.0), Drained(at_s=5.0, domain=C, nodes=(2,))
    )
    assert found.state.evacuating
    assert found.state.leaving
    return found


def failing() -> World:
    found = busy(lemon_failures=2)
    for at_s in (10.0, 20.0):
        found.state.fold(NodeFailed(at_s=at_s, domain=B, nodes=(3,), repair_s=400.0))
        found.state.fold(NodeRepaired(at_s=at_s + 1, domain=B, nodes=(3,)))
    found.state.fold(NodeFailed(at_s=30.0, domain=A, nodes=(3,), repair_s=400.0))
    assert found.state.broken
    assert found.state.machines.health.suspects
    return found


def lemons() -> World:
    found = failing()
    found.tick(31.0)
    found.tick(31.0)
    assert found.state.machines.health.closures
    return found


def clearing() -> World:
    found = busy()
    found.submit(timed("vip", 16, priority="production"), at_s=100.0)
    found.submit(timed("next", 16, priority="production"), at_s=101.0)
    assert found.state.claimants
    assert found.state.leaving
    return found


def moving() -> World:
    found = world()
    wide = timed("wide", 12, elastic=True, offers=(Offer(shape=Shape(nodes_per_segment=4), throughput=0.5),))
    found.submit(wide)
    found.submit(timed("f1", 16), timed("f2", 16))
    found.submit(timed("vip", 12, priority="high"), at_s=200.0)
    moved = found.gang("wide")
    assert moved.claim
    assert moved.binding
    return found


def cancelled() -> World:
    found = busy()
    found.state.fold(Checkpointed(at_s=50.0, gang="j0", attempt=1, step=5))
    found.state.fold(Cancelled(at_s=60.0, job="j0"))
    assert found.state.stopping
    return found


def adaptive() -> World:
    found = World(
        domain(0),
        domain(1),
        domain(2),
        policy=Policy(spares="adaptive", failures_per_gpu_hour=1.0, node_repair_s=3600.0),
    )
    found.submit(timed("big", 12), replace(timed("aside", 3), cpu_only=True))
    assert found.state.occupancy.spares == [1, 0, 0]
    return found


MAKERS = [
    world, busy, booked, maintained, expiring, announced, draining, failing, lemons, clearing, moving, cancelled,
    adaptive,
]  # fmt: skip

LATER: list[tuple[Input, ...]] = [
    (Submitted(at_s=0.0, job=job("new", 9, priority="high")), Submitted(at_s=0.0, job=job("two", 4, 2))),
    (NodeFailed(at_s=0.0, domain=A, nodes=(2, 3)),),
    (Extended(at_s=0.0, domains=(A, B), expires_s=6000.0),),
    (Unplanned(at_s=0.0, maintenance="begun"), Unplanned(at_s=0.0, maintenance="coming")),
    (Unbooked(at_s=0.0, booking="trip"),),
    (Undrained(at_s=0.0, domain=A), Undrained(at_s=0.0, domain=C)),
    (Drained(at_s=0.0, domain=B),),
    (Delivered(at_s=0.0, domains=(domain(7), domain(9))),),
    (Cancelled(at_s=0.0, job="vip"), Cancelled(at_s=0.0, job="j1")),
]


def drive(state: FleetState, at_s: float, *events: Input) -> bytes:
    for event in events:
        state.fold(replace(event, at_s=at_s))
    plan = decide(state, state.now_s)
    state.fold(Decided(at_s=state.now_s, plan=plan))
    return repr(plan).encode()


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_restored_state_is_the_state_and_goes_on_like_it(make: Callable[[], World]) -> None:
    state = make().state
    data = state.snapshot()
    other = FleetState.restore(data)
    assert other.snapshot() == data
    for later in LATER:
        at_s = state.now_s + 40.0
        assert drive(other, at_s, *later) == drive(state, at_s, *later), later
        assert other.snapshot() == state.snapshot(), later
    for at_s in (700.0, 1001.0, 2000.0, 3000.0, 4100.0, 9000.0):
        assert drive(other, at_s, Ticked(at_s=at_s)) == drive(state, at_s, Ticked(at_s=at_s)), at_s
        assert other.snapshot() == state.snapshot(), at_s


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_everything_that_follows_from_the_record_is_worked_out_again(make: Callable[[], World]) -> None:
    state = make().state
    other = state.fork()
    for name in ("full", "up", "held", "claimed", "free", "spares", "room", "grown"):
        for books in ("gpu", "cpu"):
            theirs, ours = getattr(other.machines, books).occupancy, getattr(state.machines, books).occupancy
            assert getattr(theirs, name) == getattr(ours, name), (books, name)
    assert other.tenants.on == state.tenants.on
    assert list(other.waiting) == list(state.waiting)
    for name in ("claimants", "broken", "stopping", "evacuating", "leaving", "elastic", "reserved"):
        assert set(getattr(other, name)) == set(getattr(state, name)), name
    for name in (
        "failed",
        "drained",
        "closed",
        "absent",
        "ready_s",
        "closures",
        "back_s",
        "history",
        "suspects",
    ):
        assert getattr(other.machines.health, name) == getattr(state.machines.health, name), name
    calendar, ours = other.machines.calendar, state.machines.calendar
    assert (calendar.coming, calendar.open, calendar.holding) == (ours.coming, ours.open, ours.holding)
    for name, node in state.tree.nodes.items():
        same = other.tree.node(name)
        assert (same.used, same.domains, same.users) == (node.used, node.domains, node.users)
    for d in range(len(state.domains)):
        now_s = state.now_s
        assert other.machines.horizon.profile(d, now_s) == state.machines.horizon.profile(d, now_s)


def test_a_fork_and_its_origin_go_separate_ways() -> None:
    state = busy().state
    other = state.fork()
    before = state.snapshot()
    drive(other, 50.0, Submitted(at_s=0.0, job=job("new", 4)), Cancelled(at_s=0.0, job="j0"))
    assert state.snapshot() == before
