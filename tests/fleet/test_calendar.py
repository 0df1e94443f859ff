"""What is known to come to domains, and which of them are shut for a gang that stays so long."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from rackscale.fleet.calendar import Calendar, Window
from rackscale.fleet.health import EXPIRED
from rackscale.fleet.occupancy import Occupancy

NODES, DOMAINS = 4, 3
FULL = (1 << NODES) - 1


def window(
    start_s: float, *, d: int = 0, mask: int = FULL, name: str = "m", end_s: float | None = None
) -> Window:
    return Window(
        start_s=start_s, end_s=start_s + 50 if end_s is None else end_s, d=d, mask=mask, whole=mask == FULL,
        name=name,
    )  # fmt: skip


def occupancy(spares: int = 0) -> Occupancy:
    found = Occupancy()
    for _ in range(DOMAINS):
        found.add(NODES, spares)
    return found


def test_a_whole_domain_is_shut_for_what_stays_past_the_start() -> None:
    calendar = Calendar()
    calendar.add(window(100.0, d=1))
    assert calendar.shut(100.0, 100.0, 1, occupancy()) == 0
    assert calendar.shut(101.0, 101.0, 1, occupancy()) == 0b010


def test_of_a_gang_of_unknown_length_only_a_return_of_capacity_is_certain_to_be_in_the_way() -> None:
    calendar = Calendar()
    calendar.add(window(1000.0, d=0))
    calendar.add(window(1000.0, d=1, name=EXPIRED, end_s=inf))
    assert calendar.shut(inf, 500.0, 1, occupancy()) == 0b010
    assert calendar.shut(inf, 1500.0, 1, occupancy()) == 0b011


def test_a_domain_with_some_nodes_in_maintenance_is_open_for_what_fits_beside_them() -> None:
    calendar, books = Calendar(), occupancy(spares=1)
    calendar.add(window(100.0, d=2, mask=0b0001))
    assert calendar.shut(200.0, 200.0, 2, books) == 0
    assert calendar.shut(200.0, 200.0, 3, books) == 0b100
    assert calendar.shut(100.0, 100.0, 3, books) == 0
    books.hold(2, 0b1000)
    assert calendar.shut(200.0, 200.0, 2, books) == 0b100
    assert calendar.busy(2, 200.0) == 0b0001
    assert calendar.busy(2, 100.0) == 0


def test_a_window_that_begins_is_in_force_until_it_is_forgotten() -> None:
    calendar = Calendar()
    calendar.add(window(100.0))
    calendar.begin("m", 0)
    assert (calendar.coming, calendar.on, list(calendar.open)) == ([], {}, [("m", 0)])
    assert calendar.shut(inf, inf, 1, occupancy()) == 0
    calendar.forget("m", 0)
    assert not calendar.open


def test_capacity_that_went_back_never_opens_by_itself() -> None:
    calendar = Calendar()
    calendar.add(window(100.0, name=EXPIRED, end_s=inf))
    calendar.begin(EXPIRED, 0)
    assert not calendar.open


def test_windows_that_start_at_the_same_time_are_told_apart() -> None:
    calendar = Calendar()
    calendar.add(window(100.0, name="whole"))
    calendar.add(window(100.0, name="again"))
    calendar.add(window(100.0, name="part", mask=0b1))
    calendar.add(window(100.0, name=EXPIRED, end_s=inf))
    calendar.forget("part", 0)
    calendar.forget("again", 0)
    assert calendar.shut(100.0, 200.0, 1, occupancy()) == 0b1
    calendar.forget("whole", 0)
    assert calendar.shut(100.0, 200.0, 1, occupancy()) == 0
    assert calendar.shut(200.0, 100.0, 1, occupancy()) == 0b1


steps = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", EXPIRED]), st.integers(0, DOMAINS - 1), st.sampled_from([0, 10, 20]),
        st.sampled_from([FULL, FULL, 0b0001, 0b0110]), st.sampled_from(["add", "add", "begin", "forget"]),
    ),
    max_size=25,
)  # fmt: skip


@given(
    steps, st.sampled_from([5.0, 10.0, 15.0, inf]), st.sampled_from([5.0, 15.0, 25.0]), st.integers(1, NODES)
)
def test_what_is_shut_is_what_looking_at_every_window_says(
    changes: list[tuple[str, int, int, int, str]], until_s: float, assumed_s: float, nodes: int
) -> None:
    calendar, books = Calendar(), occupancy(spares=1)
    coming: dict[tuple[str, int], Window] = {}
    for name, d, start_s, drawn, what in changes:
        mask = FULL if name == EXPIRED else drawn
        if what == "add":
            if (name, d) in coming:
                continue
            new = window(start_s, d=d, mask=mask, name=name, end_s=inf if name == EXPIRED else 99.0)
            coming[name, d] = new
            calendar.add(new)
        else:
            coming.pop((name, d), None)
            (calendar.begin if what == "begin" else calendar.forget)(name, d)
    expected = 0
    for d in range(DOMAINS):
        here = [w for w in coming.values() if w.d == d]
        lost = 0
        for w in here:
            last_s = until_s if w.name == EXPIRED else assumed_s
            if w.start_s < last_s and w.whole:
                expected |= 1 << d
            if w.start_s < assumed_s:
                lost |= w.mask
        if lost and any(not w.whole for w in here) and (FULL & ~lost).bit_count() - 1 < nodes:
            expected |= 1 << d
    assert calendar.shut(until_s, assumed_s, nodes, books) == expected
    assert calendar.coming == sorted(coming.values())
