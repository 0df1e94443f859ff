"""When domains are expected to have room: against a simulation, and the index against a fresh one."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rackscale.fleet.horizon import IDLE, LEAST_S, NOW, OVERRUN, Horizon, overrun

NODES = 8


class Hall:
    """Domains whose tenants are (expected end, nodes), and what is free already."""

    def __init__(self, domains: int, spares: list[int] | None = None) -> None:
        self.tenants: list[list[tuple[float, int]]] = [[] for _ in range(domains)]
        self.spares = spares or [0] * domains
        self.now_s = 0.0

    def free(self, d: int) -> int:
        return NODES - sum(nodes for _, nodes in self.tenants[d])

    def changes(self, d: int) -> list[tuple[float, int]]:
        later = [
            (overrun(end_s, 0.0, self.now_s) if end_s < inf else inf, nodes)
            for end_s, nodes in self.tenants[d]
        ]
        return [(NOW, self.free(d)), *later]

    def area(self, _: int) -> int:
        return 0

    def spare(self, d: int) -> int:
        return self.spares[d]


def horizon(hall: Hall) -> Horizon:
    found = Horizon(hall)
    for _ in hall.tenants:
        found.grow()
    return found


def room_by_hand(hall: Hall, d: int, at_s: float) -> int:
    """Free nodes at a time: those of every tenant that has ended by then."""
    gone = sum(nodes for end_s, nodes in hall.tenants[d] if overrun(end_s, 0.0, hall.now_s) <= at_s)
    return hall.free(d) + gone - hall.spares[d]


ends = st.one_of(st.integers(1, 20).map(float), st.just(inf))
tenants = st.lists(st.tuples(ends, st.integers(1, 3)), max_size=3).filter(
    lambda found: sum(nodes for _, nodes in found) <= NODES
)
halls = st.lists(tenants, min_size=1, max_size=5)


@given(halls, st.lists(st.integers(0, 2), min_size=5, max_size=5), st.integers(1, NODES))
def test_the_soonest_domains_are_those_that_a_walk_through_time_finds(
    found: list[list[tuple[float, int]]], spares: list[int], nodes: int
) -> None:
    hall = Hall(len(found), spares)
    hall.tenants = found
    view = horizon(hall)
    expected = []
    for d in range(len(found)):
        times = [NOW, *range(200)]
        ready = next((t for t in times if room_by_hand(hall, d, t) >= nodes), None)
        if ready is not None:
            expected.append((float(ready), d))
    assert list(view.soonest(nodes, 0.0)) == sorted(expected)
    for at_s, d in expected:
        assert view.when(d, nodes, 0.0) == at_s
    for d in range(len(found)):
        for at_s in (0.0, 3.0, 10.5, 100.0):
            assert view.room(d, at_s, 0.0) == room_by_hand(hall, d, at_s)


def test_a_profile_rises_and_names_each_time_once() -> None:
    hall = Hall(1)
    hall.tenants[0] = [(5.0, 1), (5.0, 2), (9.0, 1), (inf, 2)]
    assert horizon(hall).profile(0, 0.0) == ((NOW, 2), (5.0, 5), (9.0, 6))


@pytest.mark.parametrize(
    ("end_s", "began_s", "now_s", "expected"),
    [
        (100.0, 0.0, 50.0, 100.0),
        (inf, 0.0, 50.0, inf),
        (100.0, 0.0, 100.0, 100.0),
        (100.0, 0.0, 170.0, 100.0 + 2 * LEAST_S),
        (10_000.0, 0.0, 10_001.0, 10_000.0 + OVERRUN * 10_000.0),
        (10_000.0, 0.0, 11_500.0, 10_000.0 + 2 * OVERRUN * 10_000.0),
    ],
)
def test_a_gang_that_overruns_is_given_a_tenth_more_again_and_again(
    end_s: float, began_s: float, now_s: float, expected: float
) -> None:
    assert overrun(end_s, began_s, now_s) == pytest.approx(expected)


def test_domains_whose_gangs_overran_are_never_promised_for_the_past() -> None:
    hall = Hall(3)
    hall.tenants = [[(10.0, NODES)], [(20.0, NODES)], [(500.0, NODES)]]
    view = horizon(hall)
    assert [d for _, d in view.soonest(NODES, 0.0)] == [0, 1, 2]
    hall.now_s = 15.0
    found = list(view.soonest(NODES, 15.0))
    assert found == [(20.0, 1), (70.0, 0), (500.0, 2)]
    hall.now_s = 75.0
    found = list(view.soonest(NODES, 75.0))
    assert found == [(80.0, 1), (130.0, 0), (500.0, 2)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 3), tenants),
        st.tuples(st.just("pass"), st.integers(1, 30), st.none()),
        st.tuples(st.just("ask"), st.integers(1, NODES), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=200)
@given(steps)
def test_an_index_that_is_kept_up_to_date_is_a_fresh_one(
    changes: list[tuple[str, int, list[tuple[float, int]] | None]],
) -> None:
    hall = Hall(4, [0, 1, 0, 2])
    view = horizon(hall)
    for what, number, found in changes:
        if what == "set":
            hall.tenants[number] = [(hall.now_s + end_s, nodes) for end_s, nodes in found or []]
            view.touch(number)
        elif what == "pass":
            hall.now_s += number
        else:
            now_s = hall.now_s
            answer = list(view.soonest(number, now_s))
            fresh = list(horizon(hall).soonest(number, now_s))
            assert answer == fresh
            assert all(at_s == NOW or at_s >= now_s for at_s, _ in answer)


def test_indices_for_sizes_that_nobody_asks_about_are_dropped_and_made_anew() -> None:
    hall = Hall(2)
    hall.tenants[1] = [(30.0, 4)]
    view = horizon(hall)
    assert list(view.soonest(8, 0.0)) == [(NOW, 0), (30.0, 1)]
    for _ in range(IDLE + 1):
        list(view.soonest(2, 0.0))
    assert set(view._indices) == {2}
    hall.tenants[0] = [(7.0, 1)]
    view.touch(0)
    assert list(view.soonest(8, 0.0)) == [(7.0, 0), (30.0, 1)]


def test_two_sizes_may_be_asked_about_at_once() -> None:
    hall = Hall(3)
    hall.tenants = [[(5.0, 8)], [(3.0, 4), (9.0, 4)], []]
    view = horizon(hall)
    small, large = view.soonest(4, 0.0), view.soonest(8, 0.0)
    assert next(small) == (NOW, 2)
    assert next(large) == (NOW, 2)
    assert list(small) == [(3.0, 1), (5.0, 0)]
    assert list(large) == [(5.0, 0), (9.0, 1)]
