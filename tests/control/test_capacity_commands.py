"""Bookings, maintenance, deliveries, queues and drains with a deadline: what is answered, and that it folds."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from rackscale.commands import (
    Announce,
    Book,
    Command,
    Configure,
    Deliver,
    Drain,
    Extend,
    Maintain,
    Reply,
    Submit,
    Unbook,
    Undrain,
    Unmaintain,
    answer,
)
from rackscale.events import (
    Announced,
    Booked,
    Close,
    Decided,
    Delivered,
    Drained,
    Event,
    Extended,
    Plan,
    Planned,
    Reason,
    Ticked,
    Unbooked,
    Undrained,
    Unplanned,
)
from rackscale.workload import Booking, Job, Maintenance, Nearness, Offer, Policy, Queue, Shape
from tests.scheduler.world import World, domain, job

NOW_S = 10.0
ORG = Queue(name="org", quota_gpus=72, borrow_gpus=0)
QUEUES = (
    ORG,
    Queue(name="research", parent="org", quota_gpus=36, borrow_gpus=36, max_gpus_per_user=48),
    Queue(name="idle", max_gangs=0),
    Queue(name="racks", quota_domains=1.0, borrow_domains=0.5),
)


@pytest.fixture
def world() -> World:
    return World(domain(0), domain(1), domain(0, cluster="other"), queues=QUEUES)


def ask(world: World, command: Command) -> tuple[tuple[Event, ...], Reply]:
    """The answer; and folded if it is one to fold, as the control loop does."""
    events, reply = answer(world.state, command, NOW_S)
    assert bool(events) <= (reply.outcome == "done")
    for event in events:
        world.state.fold(event)
    return events, reply


def booking(name: str = "k", **changes: Any) -> Booking:
    plain = Booking(name=name, shape=Shape(nodes_per_segment=4), start_s=100.0, end_s=200.0)
    return replace(plain, **changes)


def maintenance(name: str = "m", **changes: Any) -> Maintenance:
    return replace(Maintenance(name=name, domain="us-001", start_s=100.0, end_s=200.0), **changes)


# -- bookings --------------------------------------------------------------------------------------------------------


def test_a_booking_is_made_once_and_called_off(world: World) -> None:
    events, reply = ask(world, Book(booking=booking()))
    assert events == (Booked(at_s=NOW_S, booking=booking()),)
    assert reply.message == "booked k, which begins in 90 s and lasts 100 s"
    assert ask(world, Book(booking=booking()))[1].outcome == "unchanged"
    assert ask(world, Unbook(booking="k"))[0] == (Unbooked(at_s=NOW_S, booking="k"),)
    _, reply = ask(world, Unbook(booking="k"))
    assert reply.message == "there is no booking 'k'"
    ask(world, Book(booking=booking("kept")))
    assert ask(world, Unbook(booking="kpet"))[1].hint == "did you mean 'kept'?"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "a b"}, "a name is letters"),
        ({"end_s": 100.0}, "it must end after it begins"),
        ({"start_s": 0.0, "end_s": 10.0}, "it is over already"),
        ({"queue": "reserch"}, "no queue 'reserch'; did you mean 'research'?"),
        ({"priority": "nomal"}, "no priority class 'nomal'; did you mean 'normal'?"),
        ({"cluster": "othr"}, "no cluster 'othr'; did you mean 'other'?"),
        ({"shape": Shape(nodes_per_segment=19)}, "no cluster could ever hold 1 x 19 nodes"),
        (
            {"shape": Shape(segments=2, nodes_per_segment=2), "nearness": Nearness(spread="leaf")},
            "no cluster could ever hold 2 x 2 nodes",
        ),
    ],
)
def test_a_booking_that_can_not_be_is_refused(world: World, changes: dict[str, Any], says: str) -> None:
    _, reply = ask(world, Book(booking=booking(**changes)))
    assert reply.outcome == "refused"
    assert says in reply.message


def test_a_booking_of_the_same_name_must_be_the_same(world: World) -> None:
    ask(world, Book(booking=booking()))
    _, reply = ask(world, Book(booking=booking(end_s=300.0)))
    assert reply.message == (
        "k: a different booking of this name exists, which begins in 90 s and lasts 100 s;"
        " call it off first: rackscale unbook k"
    )


def test_the_same_asked_a_little_later_with_times_from_now_is_no_news(world: World) -> None:
    ask(world, Book(booking=booking()))
    later = booking(start_s=160.0, end_s=260.0)
    assert ask(world, Book(booking=later))[1].outcome == "refused"
    _, reply = ask(world, Book(booking=later, from_now=True))
    assert (reply.outcome, reply.message) == (
        "unchanged",
        "k is booked already, which begins in 90 s and lasts 100 s",
    )
    for changes in ({"end_s": 300.0}, {"queue": "idle"}, {"shape": Shape(nodes_per_segment=5)}):
        assert ask(world, Book(booking=replace(later, **changes), from_now=True))[1].outcome == "refused"
    ask(world, Maintain(maintenance=maintenance(domain="us-001/n03")))
    again = maintenance(domain="us-001/n03", start_s=130.0)
    assert ask(world, Maintain(maintenance=again, from_now=True))[1].outcome == "unchanged", "the same end"
    other = maintenance(domain="us-001/n04")
    assert "rackscale unmaintain m" in ask(world, Maintain(maintenance=other, from_now=True))[1].message


def test_a_job_runs_in_a_booking_that_exists_and_is_large_enough(world: World) -> None:
    inside = replace(job("a", 4), booking="k")
    assert "no booking 'k'" in ask(world, Submit(jobs=(inside,)))[1].message
    ask(world, Book(booking=booking()))
    assert (
        "no booking 'kk'; did you mean 'k'?"
        in ask(world, Submit(jobs=(replace(job("b"), booking="kk"),)))[1].message
    )
    large = replace(inside, shape=Shape(nodes_per_segment=5))
    _, reply = ask(world, Submit(jobs=(large,)))
    assert reply.message == "a: the booking 'k' keeps only 1 x 4 nodes"
    assert ask(world, Submit(jobs=(inside,)))[1].outcome == "done"


def test_a_job_that_its_booking_has_no_time_for_is_refused(world: World) -> None:
    """100 s are booked, and 60 s go for the start; a shape that is faster, and has room, counts."""
    ask(world, Book(booking=booking()))
    slow = replace(job("slow", 4), booking="k", duration_s=41.0)
    _, reply = ask(world, Submit(jobs=(slow,)))
    assert reply.outcome == "refused"
    assert reply.message == (
        "slow: can never start: it takes 101 s with its start, and 100 s of the booking 'k' are to come"
    )
    assert ask(world, Submit(jobs=(replace(slow, name="fits", duration_s=40.0),)))[1].outcome == "done"
    assert ask(world, Submit(jobs=(replace(slow, name="unknown", duration_s=None),)))[1].outcome == "done"
    fast = Offer(shape=Shape(nodes_per_segment=3), throughput=1.1)
    assert ask(world, Submit(jobs=(replace(slow, name="fast", offers=(fast,)),)))[1].outcome == "done"
    too_wide = Offer(shape=Shape(nodes_per_segment=5), throughput=2.0)
    assert ask(world, Submit(jobs=(replace(slow, name="wide", offers=(too_wide,)),)))[1].outcome == "refused"
    world.state.fold(Ticked(at_s=150.0))
    late, reply = answer(world.state, Submit(jobs=(replace(slow, name="late", duration_s=1.0),)), 150.0)
    assert not late
    assert "50 s of the booking 'k' are to come" in reply.message


def test_a_booking_that_others_leave_no_room_for_is_refused_with_a_time_that_fits() -> None:
    """Two of three domains are booked: there is none for a pair until the first booking is over."""
    world = World(*(domain(i) for i in range(3)))
    for name, end_s in (("a", 200.0), ("b", 300.0)):
        asked = booking(name, shape=Shape(nodes_per_segment=16), end_s=end_s)
        assert ask(world, Book(booking=asked))[1].outcome == "done"
    pair = booking("pair", shape=Shape(segments=2, nodes_per_segment=16), start_s=150.0, end_s=250.0)
    _, reply = ask(world, Book(booking=pair))
    assert reply.outcome == "refused"
    assert reply.message == (
        "pair: there is no room for 2 x 16 nodes at that time beside a and b:"
        " only 1 domain has 16 nodes free for all of it"
    )
    assert reply.hint == (
        "the next time that fits begins in 3 min: --from 1970-01-01T00:03:20Z --until 1970-01-01T00:05Z"
    )
    later = replace(pair, start_s=200.0, end_s=300.0)
    assert ask(world, Book(booking=later))[1].outcome == "done"
    beside = booking("beside", shape=Shape(nodes_per_segment=1), start_s=100.0, end_s=300.0)
    assert ask(world, Book(booking=beside))[1].outcome == "done"


def test_maintenance_and_bookings_on_one_domain_are_counted_together() -> None:
    """17 usable nodes less 6 in maintenance and 7 booked leave 4."""
    world = World(domain(0))
    ask(world, Maintain(maintenance=maintenance(domain="us-000", nodes=(0, 1, 2, 3, 4, 5))))
    assert ask(world, Book(booking=booking("a", shape=Shape(nodes_per_segment=7))))[1].outcome == "done"
    _, reply = ask(world, Book(booking=booking("b", shape=Shape(nodes_per_segment=5))))
    assert "beside a and m: no domain has 5 nodes free" in reply.message
    assert ask(world, Book(booking=booking("c", shape=Shape(nodes_per_segment=4))))[1].outcome == "done"


def test_what_runs_and_what_comes_later_are_in_no_booking_s_way(world: World) -> None:
    world.submit(*(job(f"j{i}", 17) for i in range(3)))
    assert ask(world, Book(booking=booking(shape=Shape(nodes_per_segment=17))))[1].outcome == "done"
    ask(world, Announce(domains=(domain(9, cluster="new"),), ready_s=5000.0))
    early = booking("early", cluster="new", shape=Shape(nodes_per_segment=17))
    _, reply = ask(world, Book(booking=early))
    assert reply.outcome == "refused"
    assert reply.hint is not None
    assert "begins in 83 min" in reply.hint


def test_maintenance_says_which_booking_it_leaves_no_room_for() -> None:
    world = World(domain(0), domain(1))
    ask(world, Book(booking=booking(shape=Shape(segments=2, nodes_per_segment=16))))
    _, reply = ask(world, Maintain(maintenance=maintenance("m", nodes=(3,))))
    assert reply.message == "planned m on c/us-001/n03, which begins in 90 s and lasts 100 s"
    _, reply = ask(world, Maintain(maintenance=maintenance("n", nodes=(4,))))
    assert reply.outcome == "done"
    assert reply.message.endswith(
        "; booking k no longer fits: there is no room for 2 x 16 nodes at that time beside m and n:"
        " only 1 domain has 16 nodes free for all of it"
    )


# -- maintenance -----------------------------------------------------------------------------------------------------


def test_a_maintenance_is_planned_once_and_called_off(world: World) -> None:
    events, reply = ask(world, Maintain(maintenance=maintenance(domain="c/us-001/n03")))
    planned = maintenance(domain="c/us-001", nodes=(3,))
    assert events == (Planned(at_s=NOW_S, maintenance=planned),)
    assert reply.message == "planned m on c/us-001/n03, which begins in 90 s and lasts 100 s"
    assert ask(world, Maintain(maintenance=planned))[1].outcome == "unchanged"
    assert ask(world, Unmaintain(maintenance="m"))[0] == (Unplanned(at_s=NOW_S, maintenance="m"),)
    assert ask(world, Unmaintain(maintenance="m"))[1].outcome == "refused"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "lemon"}, "the scheduler calls other closures so"),
        ({"end_s": 50.0}, "it must end after it begins"),
        ({"start_s": 1.0, "end_s": 9.0}, "it is over already"),
        ({"domain": "c/us-011"}, "there is no NVLink domain or node 'c/us-011'"),
        ({"domain": "us-000"}, "'us-000' is in several clusters"),
        ({"nodes": (3, 18)}, "c/us-001 has nodes 0 to 17"),
    ],
)
def test_a_maintenance_that_can_not_be_is_refused(world: World, changes: dict[str, Any], says: str) -> None:
    _, reply = ask(world, Maintain(maintenance=maintenance(**changes)))
    assert reply.outcome == "refused"
    assert says in reply.message


# -- capacity --------------------------------------------------------------------------------------------------------


def test_domains_are_announced_moved_and_delivered(world: World) -> None:
    new = domain(2)
    events, reply = ask(world, Announce(domains=(new,), ready_s=3610.0))
    assert events == (Announced(at_s=NOW_S, ready_s=3610.0, domains=(new,)),)
    assert reply.message == "expecting 1 NVLink domain in 60 min"
    assert ask(world, Announce(domains=(new,), ready_s=3610.0))[1].outcome == "unchanged"
    assert ask(world, Announce(domains=(new,), ready_s=7210.0))[1].outcome == "done"
    assert ask(world, Announce(domains=(new,), ready_s=5.0))[1].outcome == "refused"
    assert ask(world, Announce(domains=(replace(new, nodes=9),), ready_s=7210.0))[1].outcome == "refused"
    assert "in the fleet already" in ask(world, Announce(domains=(domain(0),), ready_s=7210.0))[1].message
    events, _ = ask(world, Deliver(domains=(domain(0), new)))
    assert events == (Delivered(at_s=NOW_S, domains=(new,)),)
    assert ask(world, Deliver(domains=(new,)))[1].outcome == "unchanged"


def test_a_document_may_say_that_capacity_goes_back_at_another_time(world: World) -> None:
    ends = replace(domain(2), expires_s=500.0)
    ask(world, Deliver(domains=(ends,)))
    assert ask(world, Deliver(domains=(ends,)))[1].outcome == "unchanged"
    events, reply = ask(world, Deliver(domains=(domain(0), replace(ends, expires_s=900.0))))
    assert events == (Extended(at_s=NOW_S, domains=("c/us-002",), expires_s=900.0),)
    assert reply.message == "changed when 1 NVLink domain goes back"
    past = replace(domain(3), expires_s=5.0)
    assert "has gone back already" in ask(world, Deliver(domains=(past,)))[1].message


def test_capacity_is_kept_longer_or_for_good(world: World) -> None:
    ask(world, Deliver(domains=(replace(domain(2), expires_s=500.0),)))
    events, _ = ask(world, Extend(domains=("us-002", "us-001"), expires_s=700.0))
    assert events == (Extended(at_s=NOW_S, domains=("c/us-002", "c/us-001"), expires_s=700.0),)
    assert ask(world, Extend(domains=("us-002",), expires_s=700.0))[1].outcome == "unchanged"
    assert ask(world, Extend(domains=("us-002",), expires_s=1.0))[1].outcome == "refused"
    assert ask(world, Extend(domains=("us-002/n03",), expires_s=800.0))[1].outcome == "refused"
    assert ask(world, Extend(domains=("us-002",), expires_s=None))[1].message.endswith("stays")


# -- drains ----------------------------------------------------------------------------------------------------------


def test_a_drain_may_let_gangs_go_on_for_a_while(world: World) -> None:
    world.submit(job("a", 17, cluster="other"))
    _, reply = ask(world, Drain(target="other/us-000", deadline_s=NOW_S))
    assert reply.outcome == "refused"
    events, reply = ask(world, Drain(target="other/us-000", deadline_s=7210.0))
    assert events == (Drained(at_s=NOW_S, domain="other/us-000", deadline_s=7210.0),)
    assert reply.message == (
        "other/us-000 is drained; 1 gang must leave within 2 h 00, by 1970-01-01T02:00:10Z"
    )
    for deadline_s, outcome in (
        (8000.0, "unchanged"),
        (7210.0, "unchanged"),
        (3610.0, "done"),
        (None, "done"),
    ):
        assert ask(world, Drain(target="other/us-000", deadline_s=deadline_s))[1].outcome == outcome
    assert ask(world, Drain(target="other/us-000"))[1].outcome == "unchanged"


def test_undraining_uses_a_lemon_again(world: World) -> None:
    assert ask(world, Undrain(target="us-001/n03"))[1].outcome == "unchanged"
    close = Close(domain="c/us-001", nodes=(3,), reason=Reason(code="lemon"))
    world.state.fold(Decided(at_s=NOW_S, plan=Plan(at_s=NOW_S, actions=(close,))))
    events, _ = ask(world, Undrain(target="us-001/n03"))
    assert events == (Undrained(at_s=NOW_S, domain="c/us-001", nodes=(3,)),)


# -- queues ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (job("a", preemptible=False), "not preemptible and the queue 'default' has no quota"),
        (job("a", queue="idle"), "the queue 'idle' may hold no gang at all"),
        (job("a", 13, queue="research"), "a user of the queue 'research' at most 48"),
        (job("a", 10, queue="research", preemptible=False), "at most 36 without borrowing"),
        (job("a", 10, 2, queue="racks"), "its gang holds 2 NVLink domains, the queue 'racks' at most 1.5"),
        (job("a", 8, 3, queue="org", cluster=None), "no cluster could ever hold 3 x 8 nodes"),
    ],
)
def test_what_its_queue_can_never_hold_is_refused(world: World, asked: Job, says: str) -> None:
    _, reply = ask(world, Submit(jobs=(asked,)))
    assert reply.outcome == "refused"
    assert says in reply.message


def test_one_shape_that_fits_is_enough(world: World) -> None:
    large = job("a", 13, queue="research")
    fits = replace(large, offers=(Offer(shape=Shape(nodes_per_segment=12), throughput=0.9),))
    assert ask(world, Submit(jobs=(fits,)))[1].outcome == "done"


@pytest.mark.parametrize(
    ("queues", "says"),
    [
        ((Queue(name="a", parent="b"),), "queue 'a' parent: unknown queue"),
        ((Queue(name="a", parent="b"), Queue(name="b", parent="a")), "in a circle"),
        (
            (Queue(name="a", quota_gpus=8), Queue(name="b", parent="a", quota_gpus=9)),
            "queue 'a' quota.gpus: less than the 9 GPUs that 'b' below it have",
        ),
        ((Queue(name="a", quota_domains=4.0),), "the fleet has 3 NVLink domains"),
        ((Queue(name="a"), Queue(name="a", rank=1)), "queue 'a' is given 2 times"),
    ],
)
def test_a_tree_that_can_not_be_is_refused(world: World, queues: tuple[Queue, ...], says: str) -> None:
    _, reply = ask(world, Configure(policy=Policy(), queues=queues))
    assert reply.outcome == "refused"
    assert says in reply.message


def test_quotas_that_only_the_spares_could_fill_are_said_to_be_so(world: World) -> None:
    queues = (Queue(name="a", quota_gpus=200), Queue(name="b", quota_gpus=8))
    _, reply = ask(world, Configure(policy=Policy(), queues=queues))
    assert reply.outcome == "done"
    assert reply.message == (
        "policy and 2 queues in force; but 'a' and 'b' are guaranteed 208 GPUs, and 12 of the fleet's 216 are spares:"
        " 204 GPUs are left"
    )


def test_what_a_booking_needs_can_not_be_taken_away(world: World) -> None:
    ask(world, Book(booking=booking(queue="idle", priority="high")))
    queues = tuple(q for q in QUEUES if q.name != "idle")
    _, reply = ask(world, Configure(policy=Policy(priorities={"normal": 1}), queues=queues))
    assert reply.message == "queue 'idle' still has 1 booking\npriority class 'high' still has 1 booking"
