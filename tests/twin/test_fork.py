"""A twin that takes over a live fleet: what runs goes on with what is known of its remaining work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale.control import Controller
from rackscale.events import Announced, NodeFailed
from rackscale.fleet.state import FleetState
from rackscale.spec import Failures, Submission
from rackscale.twin import TwinExecutor, play
from rackscale.workload import Offer, Shape
from tests.twin.story import END_S, Run, Story, stories
from tests.twin.test_executor import RACK, job


def ends(state: FleetState) -> dict[str, float]:
    return {name: ended.at_s for name, ended in state.ended.items()}


def continued(state: FleetState, *later: Submission, at_s: float = 0.0) -> FleetState:
    """The state's fork, with what is going to arrive, played to the end by a new twin, from `at_s` if that is later."""
    fork = state.fork()
    twin = TwinExecutor(submissions=later, start_s=at_s)
    twin.recover(fork)
    controller = Controller(fork, twin)
    while twin.now_s < END_S and not twin.done:
        controller.step(END_S)
    return fork


@given(story=stories(trouble=False), at_s=st.floats(1.0, END_S))
def test_it_goes_on_as_the_fleet_itself_does(story: Story, at_s: float) -> None:
    """Where estimates are right and nothing fails, a forecast from any moment is what then happens."""
    run = Run(story).play(at_s)
    before = run.state.snapshot()
    forecast = continued(run.state, *(s for s in story.submissions if s.at_s > at_s))
    assert run.state.snapshot() == before
    actual = run.play().state
    assert ends(forecast) == pytest.approx(ends(actual))
    assert forecast.gangs.keys() == actual.gangs.keys()


def test_work_that_takes_longer_than_its_estimate_is_not_over_yet() -> None:
    """It is taken to need a tenth of the estimate more."""
    late = Submission(at_s=0.0, job=job("late", duration_s=1000.0), duration_s=4000.0)
    run = Run(Story(fleet=(RACK,), submissions=(late,))).play(3000.0)
    assert ends(continued(run.state, at_s=3000.0)) == {"late": 3100.0}


def test_what_checkpoints_kept_in_earlier_attempts_is_not_redone() -> None:
    fail = NodeFailed(at_s=500.0, domain=RACK.name, nodes=(1,))
    work = Submission(at_s=0.0, job=job("a"), duration_s=1000.0)
    run = Run(Story(fleet=(RACK,), submissions=(work,), inputs=(fail,))).play(900.0)
    assert run.state.gangs["a"].attempt == 2
    assert ends(continued(run.state)) == {"a": 1250.0} == ends(run.play().state)


def test_what_is_announced_comes_to_a_fork_when_it_is_expected() -> None:
    later = Announced(at_s=10.0, ready_s=800.0, domains=(replace(RACK, name="c/us-001"),))
    work = Submission(at_s=20.0, job=job("big", nodes=3), duration_s=1000.0)
    other = Submission(at_s=30.0, job=job("second", nodes=3), duration_s=1000.0)
    story = Story(fleet=(RACK,), submissions=(work, other), inputs=(later,))
    forecast = continued(Run(story).play(100.0).state)
    # The second one starts on the new rack.
    assert ends(forecast) == {"big": 20.0 + 50.0 + 1000.0, "second": 800.0 + 50.0 + 1000.0}


def test_a_fork_goes_on_in_the_shape_that_was_chosen_and_with_what_was_kept() -> None:
    half = Offer(shape=Shape(nodes_per_segment=2), throughput=0.5)
    wide = replace(job("a", nodes=3), offers=(half,))
    story = Story(
        fleet=(replace(RACK, nodes=3),), submissions=(Submission(at_s=0.0, job=wide, duration_s=1000.0),)
    )
    run = Run(story).play(900.0)
    assert run.state.gangs["a"].throughput == 0.5
    assert ends(continued(run.state, at_s=900.0)) == {"a": 2050.0} == ends(run.play().state)


def test_nodes_found_down_are_repaired_only_where_hardware_fails_and_is_repaired() -> None:
    down = NodeFailed(at_s=10.0, domain=RACK.name)
    state = Run(Story(fleet=(RACK,), inputs=(down,))).play(20.0).state
    for failures, nodes in ((None, 0), (Failures(per_gpu_hour=0.0), 4)):
        fork = state.fork()
        twin = TwinExecutor(failures=failures)
        twin.recover(fork)
        play(fork, twin, until_s=200_000.0)
        assert fork.occupancy.up[0].bit_count() == nodes


def test_a_rehearsal_of_a_fork_counts_from_the_fork_on() -> None:
    work = Submission(at_s=0.0, job=job("a"), duration_s=1000.0)
    state = Run(Story(fleet=(RACK,), submissions=(work,))).play(500.0).state
    twin = TwinExecutor(start_s=350.0)
    twin.recover(state)
    found = play(state, twin, until_s=2000.0)
    assert found.jobs["finished"] == 1
    assert found.start_s == 350.0
    # It works until 1,050 s on 12 of 16 GPUs.
    productive = next(total for total in found.totals if total.state == "productive")
    assert productive.gpu_h == pytest.approx(12 * 700.0 / 3600.0)
    assert sum(total.share for total in found.totals) == pytest.approx(1.0)
