"""What people may ask, and what they are answered. The state is real; nothing is folded unless it is `done`."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.commands import (
    Cancel,
    Command,
    Configure,
    Deliver,
    Drain,
    Repair,
    Reply,
    Request,
    Shutdown,
    Submit,
    Undrain,
    answer,
    preview,
    resolve,
)
from rackscale.control import Controller
from rackscale.errors import DriftError, RackscaleError, UnknownNameError
from rackscale.events import (
    Action,
    Cancelled,
    Checkpointed,
    Configured,
    Decided,
    Delivered,
    Drained,
    Event,
    Forecast,
    Input,
    NodeRepaired,
    Preempt,
    Start,
    Submitted,
    Undrained,
)
from rackscale.fleet.state import FleetState
from rackscale.workload import Job, Policy, Queue
from tests.scheduler.world import World, domain, job


@pytest.fixture
def world() -> World:
    return World(domain(0), domain(1), domain(0, cluster="other"), queues=(Queue(name="research"),))


def ask(world: World, command: Command) -> tuple[tuple[Event, ...], Reply]:
    """The answer; and folded if it is one to fold, as the control loop does."""
    events, reply = answer(world.state, command, 10.0)
    assert bool(events) <= (reply.outcome == "done")
    for event in events:
        world.state.fold(event)
    return events, reply


def submit(*jobs: Job, expected: tuple[Action, ...] | None = None) -> Submit:
    return Submit(jobs=jobs, expected=expected)


# -- submit ----------------------------------------------------------------------------------------------------------


def test_jobs_are_submitted_with_what_was_promised_about_them(world: World) -> None:
    promise = Forecast(at_s=99.0, job="a", start_s=11.0, running_s=12.0, end_s=None)
    unasked = replace(promise, job="somebody-else")
    events, reply = ask(world, Submit(jobs=(job("a"), job("b")), forecasts=(promise, unasked)))
    assert reply.outcome == "done"
    assert events == (
        Submitted(at_s=10.0, job=job("a")),
        Submitted(at_s=10.0, job=job("b")),
        replace(promise, at_s=10.0),
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"queue": "reserch"}, "no queue 'reserch'; did you mean 'research'"),
        ({"priority": "nomal"}, "no priority class 'nomal'; did you mean 'normal'"),
        ({"cluster": "othr"}, "no cluster 'othr'; did you mean 'other'"),
        ({"system": "zzz"}, "no system 'zzz'"),
        ({"shape": job("x", 18).shape}, "no cluster could ever hold 1 x 18 nodes"),
        ({"shape": job("x", 9, 3).shape}, "no cluster could ever hold 3 x 9 nodes"),
    ],
)
def test_what_can_not_be_is_refused_with_the_reason(
    world: World, changes: dict[str, object], says: str
) -> None:
    _, reply = ask(world, submit(replace(job("a"), **changes)))
    assert reply.outcome == "refused"
    assert says in reply.message


def test_all_jobs_are_accepted_or_none_and_all_problems_are_told(world: World) -> None:
    bad = [job("bad-1", queue="nowhere", priority="strange"), job("bad-2", 99)]
    events, reply = ask(world, submit(job("good"), *bad, job("twice"), job("twice")))
    assert (events, reply.outcome) == ((), "refused")
    assert len(reply.message.splitlines()) == 4


def test_a_live_job_of_the_same_name_must_be_the_same(world: World) -> None:
    world.submit(job("a"))
    assert ask(world, submit(job("a")))[1].outcome == "unchanged"
    _, reply = ask(world, submit(job("a", 2), job("b")))
    assert reply.outcome == "refused"
    assert "a different job of this name is live" in reply.message
    events, reply = ask(world, submit(job("a"), job("b")))
    assert [e.job.name for e in events if isinstance(e, Submitted)] == ["b"]
    assert reply.message == "submitted 1 job, 1 unchanged"


def test_a_job_that_is_being_cancelled_can_not_be_had_back_yet(world: World) -> None:
    world.submit(job("a"))
    ask(world, Cancel(job="a"))
    _, reply = ask(world, submit(job("a")))
    assert reply.outcome == "refused"
    assert "being cancelled" in reply.message
    world.cycle()
    world.end("a", "left")
    assert ask(world, submit(job("a")))[1].outcome == "done"


# -- drift -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full() -> World:
    """One domain of two nodes, one on each of which a low-priority gang runs, long enough to be evicted."""
    world = World(domain(0, nodes=2, spares=0), policy=Policy(min_runtime_s=0.0))
    world.submit(job("cheap", priority="low", restart_s=1.0), job("dear", priority="low", restart_s=9.0))
    world.tick(100.0)
    return world


def planned(world: World, *jobs: Job) -> tuple[Action, ...]:
    events, _ = answer(world.state, submit(*jobs), world.state.now_s)
    return preview(world.state, events)


def test_a_plan_that_holds_is_carried_out(full: World) -> None:
    expected = planned(full, job("urgent"))
    assert [a.gang for a in expected if isinstance(a, Preempt)] == ["cheap"]
    full.tick(150.0)  # time passes, costs change, actions don't
    _, reply = ask(full, submit(job("urgent"), expected=expected))
    assert reply.check().outcome == "done"


def test_a_plan_that_drifted_is_refused_and_both_are_shown(full: World) -> None:
    expected = planned(full, job("urgent"))
    full.end("cheap")
    before = full.state.snapshot()
    events, reply = ask(full, submit(job("urgent"), expected=expected))
    assert (events, reply.outcome) == ((), "drifted")
    assert {type(a) for a in reply.expected} > {Preempt}
    assert [type(a) for a in reply.actual] == [Start]
    assert full.state.snapshot() == before
    with pytest.raises(DriftError):
        reply.check()


def test_another_victim_is_drift(full: World) -> None:
    expected = planned(full, job("urgent"))
    full.cycle(Checkpointed(at_s=100.0, gang="dear", attempt=1))
    _, reply = ask(full, submit(job("urgent"), expected=expected))
    assert reply.outcome == "drifted"
    assert [a.gang for a in reply.expected if isinstance(a, Preempt)] == ["cheap"]
    assert [a.gang for a in reply.actual if isinstance(a, Preempt)] == ["dear"]


def test_what_happens_to_others_meanwhile_is_not_drift() -> None:
    world = World(domain(0, nodes=4, spares=0))
    world.submit(job("a", 3), job("waits", 3), at_s=10.0)
    expected = planned(world, job("mine", 1))
    world.state.fold(Cancelled(at_s=10.0, job="waits"))
    world.state.fold(Submitted(at_s=10.0, job=job("later", 4)))
    _, reply = ask(world, submit(job("mine", 1), expected=expected))
    assert reply.outcome == "done"


class _Desk:
    """Requests that wait together, and the replies they got."""

    def __init__(self, *commands: Command) -> None:
        self.waiting = {i: Request(id=i, at_s=100.0, command=c) for i, c in enumerate(commands)}
        self.cycles: list[tuple[list[Event], dict[int, Reply]]] = []

    def requests(self) -> list[Request]:
        return list(self.waiting.values())

    def append(self, events: list[Event], replies: dict[int, Reply]) -> None:
        self.cycles.append((events, replies))
        for number in replies:
            del self.waiting[number]


class _Nothing:
    def recover(self, state: FleetState) -> None: ...
    def apply(self, plan: object) -> None: ...
    def poll(self, _deadline_s: float | None, _quiet_until_s: float | None = None) -> list[Input]:
        return []

    def close(self) -> None: ...


def test_a_command_that_expects_something_is_decided_before_the_next_is_heard(full: World) -> None:
    urgent = submit(job("urgent"), expected=planned(full, job("urgent")))
    desk = _Desk(
        submit(job("before", 2, priority="low")), urgent, submit(job("rival", priority="production"))
    )
    controller = Controller(full.state, _Nothing(), log=desk, inbox=desk)  # type: ignore[arg-type]
    controller.cycle([])
    (events, replies), *_ = desk.cycles
    assert [replies[n].outcome for n in replies] == ["done", "done"]
    decided = events[-1]
    assert isinstance(decided, Decided)
    assert [a.gang for a in decided.plan.actions if isinstance(a, Preempt)] == ["cheap"]
    controller.cycle([])
    assert list(desk.cycles[1][1]) == [2]


# -- cancel ----------------------------------------------------------------------------------------------------------


def test_cancelling_says_what_it_stops_and_only_once(world: World) -> None:
    world.submit(job("chat", kind="service", replicas=2))
    events, reply = ask(world, Cancel(job="chat"))
    assert events == (Cancelled(at_s=10.0, job="chat"),)
    assert reply.message == "cancelled chat; 2 gangs told to stop"
    assert ask(world, Cancel(job="chat"))[1].outcome == "unchanged"
    world.cycle()
    for name in ("chat/0", "chat/1"):
        world.end(name, "left")
    _, reply = ask(world, Cancel(job="chat"))
    assert (reply.outcome, reply.message) == ("unchanged", "chat has ended (cancelled)")


def test_cancelling_what_does_not_exist_proposes_what_does(world: World) -> None:
    world.submit(job("exp-812"))
    _, reply = ask(world, Cancel(job="exp-821"))
    assert (reply.outcome, reply.hint) == ("refused", "did you mean 'exp-812'?")
    with pytest.raises(RackscaleError, match="exp-821"):
        reply.check()


# -- nodes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("c/us-001", ("c/us-001", None)),
        ("us-001", ("c/us-001", None)),
        ("us-001/n03", ("c/us-001", (3,))),
        ("other/us-000/n17", ("other/us-000", (17,))),
    ],
)
def test_names_of_nodes_and_domains(
    world: World, name: str, means: tuple[str, tuple[int, ...] | None]
) -> None:
    assert resolve(world.state, name) == means


@pytest.mark.parametrize("name", ["us-009", "c/us-001/n18", "c/us-001/x", "n03", "", "c"])
def test_names_of_nothing(world: World, name: str) -> None:
    with pytest.raises(UnknownNameError):
        resolve(world.state, name)


def test_a_short_name_must_mean_one_thing(world: World) -> None:
    _, reply = ask(world, Drain(target="us-000"))
    assert reply.hint == "say c/us-000 or other/us-000"


def test_draining_and_undraining(world: World) -> None:
    world.submit(job("a", 17, cluster="other"))
    events, reply = ask(world, Drain(target="other/us-000"))
    assert events == (Drained(at_s=10.0, domain="other/us-000"),)
    assert reply.message == "other/us-000 is drained; 1 gang must leave"
    assert ask(world, Drain(target="other/us-000/n03"))[1].outcome == "unchanged"
    events, _ = ask(world, Undrain(target="other/us-000/n03"))
    assert events == (Undrained(at_s=10.0, domain="other/us-000", nodes=(3,)),)
    assert ask(world, Undrain(target="other/us-000/n03"))[1].outcome == "unchanged"


def test_repairing_what_failed(world: World) -> None:
    world.fail("c/us-001", 4)
    assert ask(world, Repair(target="us-001/n05"))[1].outcome == "unchanged"
    events, reply = ask(world, Repair(target="us-001/n04"))
    assert events == (NodeRepaired(at_s=10.0, domain="c/us-001", nodes=(4,)),)
    assert reply.outcome == "done"


# -- the site --------------------------------------------------------------------------------------------------------


def test_policy_and_queues_come_into_force_once(world: World) -> None:
    command = Configure(policy=Policy(min_runtime_s=1.0), queues=(Queue(name="q"),))
    events, _ = ask(world, command)
    assert events == (Configured(at_s=10.0, policy=command.policy, queues=command.queues),)
    assert ask(world, command)[1].outcome == "unchanged"


def test_what_live_jobs_need_can_not_be_taken_away(world: World) -> None:
    world.submit(job("a", queue="research", priority="high"))
    _, reply = ask(world, Configure(policy=Policy(priorities={"normal": 1}), queues=()))
    assert reply.outcome == "refused"
    assert (
        reply.message == "queue 'research' still has 1 live job\npriority class 'high' still has 1 live job"
    )


def test_domains_are_delivered_once_and_stay_as_they_are(world: World) -> None:
    events, _ = ask(world, Deliver(domains=(domain(0), domain(2))))
    assert events == (Delivered(at_s=10.0, domains=(domain(2),)),)
    assert ask(world, Deliver(domains=(domain(0), domain(2))))[1].outcome == "unchanged"
    for wrong in ((domain(3), domain(0, nodes=9)), (domain(3), domain(3))):
        assert ask(world, Deliver(domains=wrong))[1].outcome == "refused"


def test_shutting_down_leaves_gangs_alone_or_cancels_them(world: World) -> None:
    world.submit(job("a"), job("b"))
    events, reply = answer(world.state, Shutdown(), 10.0)
    assert (events, reply.message) == ((), "the controller ends; 2 gangs left running")
    events, _ = answer(world.state, Shutdown(stop_gangs=True), 10.0)
    assert events == (Cancelled(at_s=10.0, job="a"), Cancelled(at_s=10.0, job="b"))


def test_a_job_that_has_ended_is_said_to_run_again(world: World) -> None:
    world.submit(job("done"), job("lives"))
    world.end("done")
    world.state.now_s = 4.0
    _, reply = ask(world, submit(job("done"), job("lives"), job("new")))
    assert reply.message == "submitted 2 jobs, 1 unchanged (again: done, finished 10 s ago)"
