"""What happens to gangs in simulated time, to the second."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from rackscale.events import (
    Cancelled,
    Checkpointed,
    Decided,
    DomainSpec,
    GangEnded,
    GangRunning,
    Input,
    NodeFailed,
    NodeRepaired,
    Preempt,
    Requeue,
    Restart,
    Stop,
)
from rackscale.spec import Submission
from rackscale.workload import Durability, Job, JobKind, Policy, Shape
from tests.twin.story import Run, Story

RACK = DomainSpec(name="c/us-000", system="s", nodes=4, gpus_per_node=4, cluster="c", spares=1)


def job(
    name: str,
    *,
    nodes: int = 3,
    priority: str = "normal",
    kind: JobKind = "training",
    duration_s: float | None = 1000.0,
    interval_s: float | None = 300.0,
    checkpoint_s: float = 20.0,
    grace_s: float = 60.0,
) -> Job:
    durability = Durability(
        checkpoint_interval_s=interval_s, checkpoint_s=checkpoint_s, grace_s=grace_s, restart_s=50.0
    )
    return Job(
        name=name, kind=kind, shape=Shape(nodes_per_segment=nodes), priority=priority, duration_s=duration_s,
        durability=durability,
    )  # fmt: skip


def play(*jobs: tuple[float, Job], inputs: Iterable[Input] = (), until_s: float = 5000.0) -> Run:
    submissions = tuple(Submission(at_s=at_s, job=j, duration_s=j.duration_s) for at_s, j in jobs)
    story = Story(
        fleet=(RACK,), policy=Policy(min_runtime_s=0.0), submissions=submissions, inputs=tuple(inputs)
    )
    return Run(story).play(until_s)


def seen(run: Run, gang: str) -> list[tuple[float, str, int]]:
    """(time, what, attempt) of one gang."""
    found = []
    for event in run.events:
        match event:
            case GangRunning(gang=name) if name == gang:
                found.append((event.at_s, "running", event.attempt))
            case GangEnded(gang=name) if name == gang:
                found.append((event.at_s, str(event.outcome), event.attempt))
    return found


def actions(run: Run, kind: type) -> list[tuple[float, str]]:
    decided = [event for event in run.events if isinstance(event, Decided)]
    return [(e.at_s, action.gang) for e in decided for action in e.plan.actions if isinstance(action, kind)]  # type: ignore[union-attr]


def test_a_gang_starts_works_checkpoints_and_finishes() -> None:
    run = play((10.0, job("a")))
    assert seen(run, "a") == [
        (60.0, "running", 1),
        (1060.0, "finished", 1),
    ]
    assert [event.saves_every_s for event in run.events if isinstance(event, GangRunning)] == [300.0]
    assert not any(isinstance(event, Checkpointed) for event in run.events)
    assert run.state.ended["a"].outcome == "finished"


def test_a_victim_that_checkpoints_in_time_loses_nothing() -> None:
    run = play((0.0, job("a")), (500.0, job("vip", priority="high", duration_s=100.0)))
    assert actions(run, Preempt) == [(500.0, "a")]
    assert seen(run, "vip") == [(570.0, "running", 1), (670.0, "finished", 1)]
    # 450 s of work are kept; 550 s remain after a restart of 50 s.
    assert seen(run, "a")[-1] == (670.0 + 50.0 + 550.0, "finished", 2)


def test_a_victim_whose_checkpoint_takes_longer_than_the_grace_is_killed_and_redoes_its_work() -> None:
    run = play((0.0, job("a", checkpoint_s=90.0)), (500.0, job("vip", priority="high", duration_s=100.0)))
    assert (560.0, "left", 1) in seen(run, "a")
    # Only the 300 s until its last checkpoint are kept.
    assert seen(run, "a")[-1] == (710.0 + 50.0 + 700.0, "finished", 2)


def test_a_program_that_never_checkpoints_begins_again() -> None:
    run = play((0.0, job("a", interval_s=None)), (500.0, job("vip", priority="high", duration_s=100.0)))
    assert seen(run, "a") == [
        (50.0, "running", 1),
        (560.0, "left", 1),
        (760.0, "running", 2),
        (1760.0, "finished", 2),
    ]


def test_a_program_that_never_checkpoints_may_finish_before_it_is_killed() -> None:
    run = play((0.0, job("a", interval_s=None)), (1000.0, job("vip", priority="high", duration_s=100.0)))
    assert seen(run, "a")[-1] == (1050.0, "finished", 1)
    assert seen(run, "vip")[0] == (1100.0, "running", 1)


def test_a_dead_node_is_replaced_by_the_spare_and_work_since_the_checkpoint_is_redone() -> None:
    run = play((0.0, job("a")), inputs=[NodeFailed(at_s=500.0, domain=RACK.name, nodes=(1,))])
    assert actions(run, Restart) == [(500.0, "a")]
    assert seen(run, "a")[1:] == [
        (550.0, "running", 2),
        (1250.0, "finished", 2),
    ]


def test_a_gang_without_replacement_waits_for_the_repair() -> None:
    inputs: list[Input] = [
        NodeFailed(at_s=500.0, domain=RACK.name),
        NodeRepaired(at_s=800.0, domain=RACK.name),
    ]
    run = play((0.0, job("a")), inputs=inputs)
    assert actions(run, Requeue) == [(500.0, "a")]
    assert (500.0, "left", 1) in seen(run, "a")
    assert seen(run, "a")[-1] == (800.0 + 50.0 + 700.0, "finished", 2)


def test_a_node_that_dies_while_its_gang_writes_the_last_checkpoint_spoils_it() -> None:
    inputs: list[Input] = [
        NodeFailed(at_s=510.0, domain=RACK.name, nodes=(0,)),
        NodeRepaired(at_s=600.0, domain=RACK.name, nodes=(0,)),
    ]
    run = play((0.0, job("a")), (500.0, job("vip", priority="high", duration_s=100.0)), inputs=inputs)
    assert (510.0, "left", 1) in seen(run, "a")
    assert seen(run, "vip")[-1] == (750.0, "finished", 1)
    # 300 s were kept by the checkpoint at 350.
    assert seen(run, "a")[-1] == (750.0 + 50.0 + 700.0, "finished", 2)


def test_a_service_answers_until_it_is_cancelled() -> None:
    service = job("chat", kind="service", duration_s=None, interval_s=None, nodes=1)
    run = play((0.0, service), inputs=[Cancelled(at_s=3000.0, job="chat")])
    assert actions(run, Stop) == [(3000.0, "chat/0")]
    assert seen(run, "chat/0") == [(50.0, "running", 1), (3060.0, "left", 1)]
    assert run.state.ended["chat/0"].outcome == "cancelled"
    assert not run.state.gangs


def test_a_gang_that_is_told_to_leave_before_it_works_is_gone_at_once() -> None:
    run = play((0.0, job("a")), inputs=[Cancelled(at_s=20.0, job="a")])
    assert seen(run, "a") == [(20.0, "left", 1)]
    assert not run.state.gangs


def test_a_job_may_be_submitted_again_after_it_ended() -> None:
    run = play((0.0, job("a")), (2000.0, job("a", duration_s=10.0)))
    ends = [entry for entry in seen(run, "a") if entry[1] == "finished"]
    assert ends == [(1050.0, "finished", 1), (2060.0, "finished", 2)]


def test_asking_twice_starts_nothing_twice() -> None:
    once, twice = play((0.0, job("a")), until_s=400.0), play((0.0, job("a")), until_s=100.0)
    for event in list(twice.events):
        if isinstance(event, Decided):
            twice.twin.apply(event.plan)
    twice.play(400.0)
    assert twice.events == once.events


def test_without_a_deadline_it_says_when_nothing_can_happen_any_more() -> None:
    run = play((0.0, job("a")))
    assert run.state.wake_at_s is None
    assert run.twin.poll(None) == []
    assert run.twin.done


def test_a_longer_truth_than_the_estimate_is_known_to_the_twin_alone() -> None:
    estimate = job("a", duration_s=10.0)
    story = Story(fleet=(RACK,), submissions=(Submission(at_s=0.0, job=estimate, duration_s=700.0),))
    run = Run(story).play()
    assert seen(run, "a")[-1] == (750.0, "finished", 1)


@pytest.mark.parametrize("at_s", [20.0, 500.0], ids=["starting", "running"])
def test_two_gangs_on_one_domain_are_hit_only_by_their_own_nodes(at_s: float) -> None:
    jobs = (0.0, job("a", nodes=1)), (0.0, job("b", nodes=1))
    run = play(*jobs, inputs=[NodeFailed(at_s=at_s, domain=RACK.name, nodes=(1,))])
    assert actions(run, Restart) == [(at_s, "b")]
    assert seen(run, "a")[-1] == (1050.0, "finished", 1)
    assert seen(run, "b")[-1][0] > 1050.0


@pytest.mark.parametrize("at_s", [400.0, 510.0], ids=["running", "leaving"])
def test_a_cancelled_job_that_is_submitted_again_begins_again(at_s: float) -> None:
    """What its checkpoints kept went with it, also when it was on its way out for somebody else."""
    vip = job("vip", priority="high", duration_s=100.0)
    again = (2000.0, job("a"))
    run = play((0.0, job("a")), (500.0, vip), again, inputs=[Cancelled(at_s=at_s, job="a")])
    assert seen(run, "a")[-1][0] == 2000.0 + 50.0 + 1000.0
