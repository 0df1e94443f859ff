"""Reservations and backfill: when and where the first who wait will start, and that nobody behind delays them."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.events import (
    Cancelled,
    GangEnded,
    Input,
    NodeFailed,
    Planned,
    Start,
    Submitted,
    Ticked,
    Unreserve,
)
from rackscale.workload import Durability, Job, Maintenance, Nearness, Offer, Policy, Shape
from tests.scheduler.test_windows import plays
from tests.scheduler.world import World, domain, job

A, B, C = "c/us-000", "c/us-001", "c/us-002"
CALM = Policy(preemption=False)
"""Expected times that are powers of 1.25 are not rounded up."""
TIMES = [round(1.25**n, 9) for n in range(24, 33)]


def exact(n: int) -> float:
    return float(1.25**n)


def timed(name: str, nodes: int, lasts_s: float | None = 500.0, segments: int = 1, **more: object) -> Job:
    durability = Durability(restart_s=0.0, grace_s=30.0)
    return replace(job(name, nodes, segments), duration_s=lasts_s, durability=durability, **more)


def world(count: int = 2, *, nodes: int = 4, **policy: object) -> World:
    return World(*(domain(i, nodes=nodes, spares=0) for i in range(count)), policy=replace(CALM, **policy))


def start_s(found: World, name: str) -> float:
    return found.state.reserved[name].start_s


def where(found: World, name: str) -> list[str]:
    return list(found.state.reserved[name].domains)


# -- what is promised --------------------------------------------------------------------------------------------------


def test_a_waiting_gang_is_promised_the_expected_end_of_those_in_its_way() -> None:
    found = world()
    found.submit(timed("a", 4, 300.0), timed("b", 4, 200.0), timed("c", 1, 50.0))
    found.submit(timed("pair", 4, 500.0, 2), at_s=10.0)
    assert (start_s(found, "pair"), where(found, "pair")) == (300.0, [A, B])
    found.submit(timed("single", 4, 500.0), at_s=20.0)
    assert start_s(found, "single") > 300.0, "both domains are promised to the pair"


def test_a_gang_is_promised_the_first_domain_that_will_do() -> None:
    found = world(3)
    found.submit(timed("a", 4, 300.0), timed("b", 4, 100.0), timed("c", 4, 200.0))
    found.submit(timed("waits", 4), at_s=1.0)
    assert (start_s(found, "waits"), where(found, "waits")) == (100.0, [B])
    found.submit(timed("next", 4), at_s=2.0)
    assert (start_s(found, "next"), where(found, "next")) == (200.0, [C])


def test_nothing_is_promised_that_nobody_knows() -> None:
    found = world(1)
    found.submit(timed("unknown", 4, None), timed("waits", 4))
    assert not found.state.reserved


def test_a_node_under_repair_is_counted_on_when_it_is_expected_back() -> None:
    found = world(1)
    found.cycle(NodeFailed(at_s=0.0, domain=A, nodes=(0,), repair_s=700.0))
    found.submit(timed("waits", 4), at_s=1.0)
    assert start_s(found, "waits") == 700.0
    usual = world(1)
    usual.cycle(NodeFailed(at_s=0.0, domain=A, nodes=(0,)))
    usual.submit(timed("waits", 4), at_s=1.0)
    assert start_s(usual, "waits") == CALM.node_repair_s


def test_the_end_of_maintenance_is_counted_on() -> None:
    found = world(1)
    plan = Maintenance(name="m", domain=A, start_s=100.0, end_s=900.0)
    found.cycle(Planned(at_s=0.0, maintenance=plan))
    plays(found, 100.0)
    found.submit(timed("waits", 4), at_s=200.0)
    assert start_s(found, "waits") == 900.0


def test_nodes_in_two_windows_or_failed_come_back_when_the_last_is_over() -> None:
    found = world(1)
    for name, end_s, nodes in (("m", 900.0, None), ("n", 1200.0, (1,))):
        plan = Maintenance(name=name, domain=A, start_s=100.0, end_s=end_s, nodes=nodes)
        found.cycle(Planned(at_s=0.0, maintenance=plan))
    plays(found, 100.0)
    found.cycle(NodeFailed(at_s=150.0, domain=A, nodes=(2,), repair_s=2000.0))
    found.submit(timed("two", 2), timed("three", 3), timed("four", 4), at_s=200.0)
    horizon = found.state.machines.horizon
    assert [horizon.when(0, n, 200.0) for n in (1, 2, 3, 4)] == [900.0, 900.0, 1200.0, 2150.0]


def test_a_gang_is_promised_the_end_of_maintenance_that_it_would_not_finish_before() -> None:
    found = world(1)
    plan = Maintenance(name="m", domain=A, start_s=100.0, end_s=900.0)
    found.cycle(Planned(at_s=0.0, maintenance=plan))
    found.submit(timed("waits", 4, 500.0))
    assert start_s(found, "waits") == 900.0


def test_segments_are_promised_together_for_as_long_as_the_gang_lasts() -> None:
    """B is free at once but goes into maintenance: a pair that starts when A is free would outlive that."""
    found = world(3)
    found.submit(timed("a", 4, 300.0), timed("b", 4, 20.0), timed("c", 4, 400.0))
    plan = Maintenance(name="m", domain=B, start_s=700.0, end_s=9000.0)
    found.cycle(Planned(at_s=1.0, maintenance=plan))
    found.submit(timed("pair", 4, exact(28), 2), at_s=2.0)  # 517 s
    assert (start_s(found, "pair"), where(found, "pair")) == (400.0, [A, C])


def test_the_end_of_a_booking_is_counted_on() -> None:
    from rackscale.events import Booked
    from rackscale.workload import Booking

    found = world(1)
    booking = Booking(name="trip", shape=Shape(nodes_per_segment=4), start_s=0.0, end_s=800.0)
    found.cycle(Booked(at_s=0.0, booking=booking))
    plays(found, 0.0)
    found.submit(timed("waits", 4), at_s=10.0)
    assert start_s(found, "waits") == 800.0


def test_promises_heed_nearness() -> None:
    specs = [replace(domain(i, nodes=4, spares=0), leaf=f"l{i // 2}") for i in range(4)]
    found = World(*specs, policy=CALM)
    found.submit(*(timed(f"f{i}", 4, lasts_s) for i, lasts_s in enumerate((100.0, 400.0, 200.0, 300.0))))
    near = Nearness(within="leaf")
    found.submit(timed("near", 4, 500.0, 2, nearness=near), at_s=1.0)
    assert (start_s(found, "near"), where(found, "near")) == (300.0, ["c/us-002", "c/us-003"])
    spread = World(*specs, policy=CALM)
    spread.submit(*(timed(f"f{i}", 4, lasts_s) for i, lasts_s in enumerate((100.0, 200.0, 300.0, 400.0))))
    spread.submit(timed("wide", 4, 500.0, 2, nearness=Nearness(spread="leaf")), at_s=1.0)
    assert (start_s(spread, "wide"), where(spread, "wide")) == (300.0, ["c/us-000", "c/us-002"])


def test_the_shape_that_is_done_first_is_promised() -> None:
    found = world(2)
    found.submit(timed("a", 4, 100.0), timed("b", 4, 5000.0))
    half = Offer(shape=Shape(nodes_per_segment=4), throughput=0.5)
    found.submit(timed("either", 4, 1000.0, 2, offers=(half,)), at_s=1.0)
    promise = found.state.reserved["either"]
    assert (promise.choice, promise.start_s) == (1, 100.0)


def test_a_promise_ends_when_its_gang_starts_is_cancelled_or_falls_behind() -> None:
    found = world(1, reservations=1)
    found.submit(timed("runs", 4, 300.0))
    found.submit(timed("waits", 4), at_s=1.0)
    found.submit(timed("urgent", 4, priority="high"), at_s=70.0)
    assert set(found.state.reserved) == {"urgent"}
    assert any(isinstance(a, Unreserve) for a in found.plan.actions)
    found.cycle(Cancelled(at_s=71.0, job="urgent"))
    assert set(found.state.reserved) == {"waits"}
    found.end("runs")
    assert not found.state.reserved


# -- backfill ----------------------------------------------------------------------------------------------------------


def test_what_is_gone_in_time_goes_first_and_what_is_not_waits() -> None:
    found = world(2)
    found.submit(timed("a", 4, 1000.0))
    found.submit(timed("pair", 4, 500.0, 2), at_s=1.0)
    assert start_s(found, "pair") == 1000.0
    found.submit(timed("short", 4, 700.0), at_s=2.0)
    assert found.where("short") == [B]
    found.end("short")
    found.submit(timed("long", 4, 1100.0), timed("unknown", 4, None), at_s=3.0)
    assert found.gang("long").status == found.gang("unknown").status == "waiting"


def test_what_fits_beside_a_promised_segment_is_not_kept_out() -> None:
    found = World(domain(0, nodes=6, spares=0), domain(1, nodes=6, spares=0), policy=CALM)
    found.submit(timed("a", 6, 1000.0))
    found.submit(timed("pair", 4, 500.0, 2), at_s=1.0)
    found.submit(timed("beside", 2, None), at_s=2.0)
    assert found.where("beside") == [B]
    found.submit(timed("more", 1, None), at_s=3.0)
    assert found.gang("more").status == "waiting"


def test_what_is_ahead_in_the_order_is_not_held_up_by_a_promise() -> None:
    found = world(2)
    found.submit(timed("a", 4, 1000.0))
    found.submit(timed("pair", 4, 500.0, 2), at_s=1.0)
    found.submit(timed("urgent", 4, None, priority="high"), at_s=2.0)
    assert found.where("urgent") == [B]


def test_only_the_first_in_line_are_promised_anything() -> None:
    found = world(4, reservations=2)
    found.submit(*(timed(f"f{i}", 4, 1000.0) for i in range(3)))
    found.submit(*(timed(f"p{i}", 4, 500.0, 2) for i in range(4)), at_s=1.0)
    assert sorted(found.state.reserved) == ["p0", "p1"]


def test_promises_of_the_first_in_line_don_t_overlap() -> None:
    found = world(4)
    found.submit(*(timed(f"f{i}", 4, 100.0 * (i + 1)) for i in range(4)))
    found.submit(*(timed(f"w{i}", 4) for i in range(4)), at_s=1.0)
    assert [start_s(found, f"w{i}") for i in range(4)] == [100.0, 200.0, 300.0, 400.0]
    assert len({where(found, f"w{i}")[0] for i in range(4)}) == 4


def test_without_backfill_nobody_overtakes() -> None:
    found = world(2, backfill=False)
    found.submit(timed("a", 4, 1000.0))
    found.submit(timed("pair", 4, 500.0, 2), at_s=1.0)
    found.submit(timed("short", 1, 1.0), at_s=2.0)
    assert found.gang("short").status == "waiting"


def test_domains_are_free_for_others_when_the_one_who_was_promised_them_is_cancelled() -> None:
    found = world(2)
    found.submit(timed("a", 4, 1000.0))
    found.submit(timed("pair", 4, 500.0, 2), at_s=1.0)
    found.submit(timed("long", 4, None), at_s=2.0)
    assert found.gang("long").status == "waiting"
    found.run(found.cycle(Cancelled(at_s=3.0, job="pair")))
    assert found.where("long") == [B]


def test_domains_are_free_for_others_when_the_one_who_was_promised_them_starts_elsewhere() -> None:
    """C is empty, the pair needs two domains, and both others open at once: it takes those, by best fit."""
    found = world(3)
    found.submit(*(timed(f"t{i}", 2, 1000.0 if i == 0 else None) for i in range(4)))
    found.submit(timed("pair", 2, 500.0, 2), at_s=1.0)
    assert (start_s(found, "pair"), where(found, "pair")) == (1000.0, [A, C])
    found.submit(timed("long", 4, None), at_s=2.0)
    assert found.gang("long").status == "waiting"
    ends = [GangEnded(at_s=3.0, gang=name, attempt=1, outcome="finished") for name in ("t0", "t2")]
    found.run(found.cycle(*ends))
    assert sorted(found.where("pair")) == [A, B]
    plays(found, 3.0)
    assert found.where("long") == [C]


# -- starvation --------------------------------------------------------------------------------------------------------


def stream(reservations: int, until_s: float = 6000.0) -> tuple[World, float | None]:
    """Four domains under a stream of small jobs that keeps them half full; one gang wants all four domains."""
    rng = random.Random(7)
    found = world(4, reservations=reservations)
    ends: list[tuple[float, str]] = []
    count, at_s = 0, 0.0
    while at_s < until_s:
        events: list[Input] = []
        if at_s == 200.0:
            events.append(Submitted(at_s=at_s, job=timed("whole", 4, 100.0, 4)))
        for _ in range(2):
            count += 1
            lasts_s = exact(rng.randrange(22, 26))
            events.append(Submitted(at_s=at_s, job=timed(f"s{count}", 1, lasts_s)))
        actions = found.cycle(*events)
        for _ in range(2):
            found.run(actions)
            for action in actions:
                if isinstance(action, Start):
                    if action.gang == "whole":
                        return found, at_s
                    duration_s = found.state.jobs[action.gang].duration_s
                    assert duration_s is not None
                    ends.append((at_s + duration_s, action.gang))
            actions = ()
        at_s += 50.0
        for end in sorted(e for e in ends if e[0] <= at_s):
            ends.remove(end)
            found.state.now_s = max(found.state.now_s, end[0])
            for action in found.end(end[1]):
                if isinstance(action, Start):
                    if action.gang == "whole":
                        return found, end[0]
                    duration_s = found.state.jobs[action.gang].duration_s
                    assert duration_s is not None
                    ends.append((end[0] + duration_s, action.gang))
    return found, None


def test_a_large_gang_starts_although_small_ones_keep_coming() -> None:
    found, at_s = stream(8)
    assert at_s is not None
    assert at_s <= 200.0 + exact(25) + 50.0, "those that ran when it came have ended, and nobody slipped in"
    assert len(found.gang("whole").binding) == 4


def test_without_reservations_it_starves() -> None:
    found, at_s = stream(0)
    assert at_s is None
    assert found.gang("whole").status == "waiting"


# -- the law -----------------------------------------------------------------------------------------------------------

arrivals = st.lists(
    st.tuples(
        st.integers(0, 40),  # arrives, in tens of seconds
        st.integers(1, 4),  # nodes per segment
        st.integers(1, 3),  # segments
        st.integers(15, 29),  # duration as a power of 1.25
        st.sampled_from([1.0, 1.0, 0.5]),  # of which it really takes
    ),
    min_size=2, max_size=14,
)  # fmt: skip


# Somebody starts elsewhere than he was promised, and the next in line at once in what he left.
EARLY = [(1, 1, 2, 21, 1.0), (1, 2, 2, 17, 1.0), (1, 2, 2, 17, 1.0), (1, 3, 1, 15, 1.0), (1, 4, 1, 22, 1.0),
          (2, 4, 1, 27, 0.5), (7, 2, 1, 18, 1.0)]  # fmt: skip
LATE = [*[(0, 1, 1, 15, 1.0)] * 6, (0, 4, 2, 27, 0.5), (1, 2, 2, 15, 1.0), (1, 2, 2, 19, 1.0), (2, 1, 2, 15, 1.0),
         (24, 4, 1, 15, 1.0)]  # fmt: skip


@pytest.mark.parametrize("reservations", [1, 3, 8])
@settings(max_examples=60, deadline=None)
@given(jobs=arrivals)
@example(jobs=EARLY)
@example(jobs=LATE)
def test_nobody_starts_later_than_he_was_promised_once_he_was_first_in_line(
    reservations: int, jobs: list[tuple[int, int, int, int, float]]
) -> None:
    """Nothing fails, nobody comes who goes ahead, everybody takes as long as expected or less, and it is decided again
    whenever a plan asks for it."""
    found = world(3, reservations=reservations, fair_share_half_life_s=None)
    agenda: list[tuple[float, int, str, Job | None]] = []
    takes: dict[str, float] = {}
    for n, (tens, nodes, segments, power, share) in enumerate(sorted(jobs)):
        one = timed(f"j{n}", nodes, exact(power), segments)
        takes[one.name] = exact(power) * share
        agenda.append((10.0 * tens, n, "submit", one))
    promised: dict[str, float] = {}
    started: dict[str, float] = {}
    order, decided = len(agenda), 0
    while agenda:
        decided += 1
        assert decided < 1000, "decides again and again"
        at_s = min(entry[0] for entry in agenda)
        if found.state.wake_at_s is not None:
            at_s = max(found.state.now_s, min(at_s, found.state.wake_at_s))
        agenda.sort(key=lambda entry: entry[:2])
        due = [entry for entry in agenda if entry[0] == at_s]
        agenda = [entry for entry in agenda if entry[0] > at_s]
        events: list[Input] = [Ticked(at_s=at_s)]
        for _, _, what, coming in due:
            if coming is not None:
                events.append(Submitted(at_s=at_s, job=coming))
            else:
                events.append(GangEnded(at_s=at_s, gang=what, attempt=1, outcome="finished"))
        actions = found.cycle(*events)
        found.run(actions)
        first = next(iter(found.state.waiting), "")
        if first in found.state.reserved:
            promised.setdefault(first, start_s(found, first))
        for action in actions:
            if isinstance(action, Start):
                started[action.gang] = at_s
                order += 1
                agenda.append((at_s + takes[action.gang], order, action.gang, None))
    for name, at_s in promised.items():
        assert name in started, f"{name} was promised {at_s} and never started"
        assert started[name] <= at_s + 1e-6, (name, started[name], at_s)
