"""What keeps nodes out of use, when they are expected back, and lemons."""

from __future__ import annotations

import pytest

from rackscale.events import DomainSpec
from rackscale.fleet.health import EXPIRED, LEMON, Health, spares_worth
from rackscale.workload import Policy

DAY_S = 86_400.0
POLICY = Policy(lemon_failures=3, lemon_window_s=7 * DAY_S)
SPEC = DomainSpec(name="d", system="s", nodes=4, gpus_per_node=4, cluster="c", spares=1)


def health(*, ready_s: float | None = None) -> Health:
    found = Health()
    found.add(SPEC, ready_s=ready_s)
    return found


def fail(found: Health, mask: int, at_s: float, *, policy: Policy = POLICY, count: bool = True) -> None:
    found.fail(0, mask, at_s, at_s + 100.0, policy, count=count)


def test_a_node_is_up_only_if_nothing_at_all_keeps_it_down() -> None:
    found = health()
    fail(found, 0b0001, 0.0)
    found.drained[0] = 0b0011
    found.close(0, 0b0111, "m")
    assert found.up(0) == 0b1000
    found.repair(0, 0b0001)
    found.undrain(0, 0b0011)
    assert found.up(0) == 0b1000
    found.open(0, 0b1111, "m")
    assert found.up(0) == 0b1111


def test_a_node_closed_for_two_reasons_opens_when_both_are_over() -> None:
    found = health()
    found.close(0, 0b0011, "m1")
    found.close(0, 0b0110, "m2")
    found.close(0, 0b1000, EXPIRED)
    found.open(0, 0b1111, "m1")
    assert found.up(0) == 0b0001
    found.open(0, 0b0010, "m2")
    assert found.up(0) == 0b0011
    found.open(0, 0b1111, "m2")
    assert found.up(0) == 0b0111


def test_what_is_announced_is_not_up_before_it_is_delivered() -> None:
    found = health(ready_s=500.0)
    assert found.up(0) == 0
    assert list(found.comebacks(0)) == [(500.0, 0b1111)]
    found.deliver(0)
    assert found.up(0) == 0b1111
    assert not list(found.comebacks(0))


def test_failed_nodes_are_expected_back_unless_something_else_keeps_them() -> None:
    found = health()
    fail(found, 0b0011, 0.0)
    fail(found, 0b0100, 50.0)
    assert sorted(found.comebacks(0)) == [(100.0, 0b0001), (100.0, 0b0010), (150.0, 0b0100)]
    found.drained[0] = 0b0001
    found.close(0, 0b0010, LEMON)
    assert list(found.comebacks(0)) == [(150.0, 0b0100)]
    found.repair(0, 0b0100)
    assert not list(found.comebacks(0))


def test_a_domain_fault_on_top_of_a_node_fault_lasts_as_long_as_the_longer_repair() -> None:
    found = health()
    found.fail(0, 0b0001, 0.0, 900.0, POLICY, count=True)
    found.fail(0, 0b1111, 10.0, 300.0, POLICY, count=False)
    assert {mask: at_s for at_s, mask in found.comebacks(0)} == {1: 900.0, 2: 300.0, 4: 300.0, 8: 300.0}


def test_a_node_that_fails_too_often_within_the_window_is_suspected() -> None:
    found = health()
    for at_s in (0.0, DAY_S, 2 * DAY_S):
        assert not found.suspects
        fail(found, 0b0010, at_s)
        found.repair(0, 0b0010)
    assert list(found.suspects) == [(0, 1)]
    found.close(0, 0b0010, LEMON)
    assert not found.suspects
    assert found.up(0) == 0b1101


def test_failures_outside_of_the_window_are_forgotten() -> None:
    found = health()
    for at_s in (0.0, 6 * DAY_S, 7.5 * DAY_S, 14 * DAY_S):
        fail(found, 0b0001, at_s)
        found.repair(0, 0b0001)
        assert not found.suspects
    fail(found, 0b0001, 14.2 * DAY_S)
    assert list(found.suspects) == [(0, 0)]


def test_one_failure_reported_twice_and_faults_of_domains_don_t_make_lemons() -> None:
    found = health()
    for at_s in (0.0, 1.0, 2.0, 3.0):
        fail(found, 0b0001, at_s)
    assert not found.suspects
    found.repair(0, 0b1111)
    for at_s in (10.0, 20.0, 30.0, 40.0):
        fail(found, 0b1111, at_s, count=False)
        found.repair(0, 0b1111)
    assert not found.suspects


def test_no_node_is_a_lemon_where_the_policy_doesn_t_want_it() -> None:
    found = health()
    for at_s in range(20):
        fail(found, 0b0001, float(at_s), policy=Policy(lemon_failures=None))
        found.repair(0, 0b0001)
    assert not found.suspects


def test_people_who_undrain_a_lemon_give_it_another_chance() -> None:
    found = health()
    for at_s in (0.0, 1.0, 2.0):
        fail(found, 0b0001, at_s)
        found.repair(0, 0b0001)
    found.close(0, 0b0001, LEMON)
    found.undrain(0, 0b1111)
    assert found.up(0) == 0b1111
    fail(found, 0b0001, 3.0)
    assert not found.suspects


@pytest.mark.parametrize(("policy", "worth"), [("none", False), ("fixed", True)])
def test_spares_are_kept_or_not_as_the_policy_says(policy: str, worth: bool) -> None:
    assert spares_worth(Policy(spares=policy), SPEC, 4) is worth  # type: ignore[arg-type]


def test_adaptive_spares_are_kept_under_gangs_for_which_a_wait_would_cost_more() -> None:
    """12 GPUs x 2e-5 failures/h x 2 h repair x GPUs of the gang > 4 GPUs held back: beyond 8,333 GPUs."""
    policy = Policy(spares="adaptive", failures_per_gpu_hour=2e-5, node_repair_s=7200.0)
    assert not spares_worth(policy, SPEC, 8332)
    assert spares_worth(policy, SPEC, 8340)
