"""The ledger conserves GPU-time, whatever happens, and agrees with a slow fold of the same events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from rackscale.capacity.estate import microseconds
from rackscale.capacity.ledger import FREE, Ledger
from rackscale.events import (
    Action,
    Announced,
    Booked,
    Cancelled,
    Checkpointed,
    Claim,
    Close,
    Configured,
    Decided,
    Delivered,
    DomainSpec,
    Event,
    Extended,
    Free,
    GangEnded,
    GangRunning,
    Hold,
    Input,
    NodeFailed,
    Open,
    Plan,
    Preempt,
    Reason,
    Requeue,
    Restart,
    Segment,
    Start,
    Submitted,
)
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.workload import Booking, Durability, Job, Policy, Shape
from tests.twin.story import END_S, Run, Story, stories


class Slow:
    """Looks at every node after every event."""

    def __init__(self) -> None:
        self.state, self.now_us = FleetState(), 0
        self.spent: Counter[str] = Counter()
        self.delivered_gpu_us = 0

    def __call__(self, event: Event) -> None:
        self.pass_time(microseconds(event.at_s))
        self.state.fold(event)

    def pass_time(self, until_us: int) -> None:
        passed_us = max(0, until_us - self.now_us)
        self.now_us += passed_us
        for d, spec in enumerate(self.state.domains):
            self.delivered_gpu_us += spec.nodes * spec.gpus_per_node * passed_us
            free = 0
            in_use = self.state.occupancy.held[d] or self.state.occupancy.claimed[d]
            for node in range(spec.nodes):
                state = self._state(d, 1 << node)
                if state == "idle" and free < spec.spares:
                    free, state = free + 1, "spare"
                elif state == "idle" and in_use:
                    state = "stranded"
                self.spent[state] += spec.gpus_per_node * passed_us

    def _state(self, d: int, node: int) -> str:
        state = self.state
        if state.failed[d] & node:
            return "unhealthy"
        for gang, held in state.tenants.on[d].items():
            if held & node:
                return "starting" if state.gangs[gang].status is Status.STARTING else "in use"
        if (state.drained[d] | state.machines.health.closed[d]) & node:
            return "drained"
        return "claimed" if state.occupancy.claimed[d] & node else "idle"


def by_state(ledger: Ledger, at_s: float | None = None) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in ledger.rows(at_s):
        found[row.state] += row.gpu_us
    return found


@given(story=stories())
def test_the_states_sum_to_what_was_delivered_at_every_instant(story: Story) -> None:
    ledger = Ledger(by_job=True)
    for event in Run(story).play().events:
        ledger(event)
        assert sum(by_state(ledger).values()) == ledger.delivered_gpu_us()
    expected = sum(
        spec.nodes * spec.gpus_per_node * microseconds(END_S - at_s)
        for at_s, specs in [
            (0.0, story.fleet),
            *((e.at_s, e.domains) for e in story.inputs if isinstance(e, Delivered)),
        ]
        for spec in specs
    )
    assert sum(by_state(ledger, END_S).values()) == expected


@given(story=stories())
def test_it_agrees_with_looking_at_every_node(story: Story) -> None:
    ledger, slow = Ledger(), Slow()
    for event in Run(story).play().events:
        ledger(event)
        slow(event)
    slow.pass_time(microseconds(END_S))
    found = by_state(ledger, END_S)
    for state in (*FREE, "starting"):
        assert found[state] == slow.spent[state], state
    in_use = ("productive", "lost", "checkpointing", "leaving")
    assert sum(found[state] for state in in_use) == slow.spent["in use"]


@given(story=stories())
def test_a_finished_job_is_credited_with_exactly_its_work(story: Story) -> None:
    """However often it was preempted or lost a node: what was redone is in other states."""
    story = replace(story, fleet=lone(story.fleet), inputs=tuple(map(lone_delivery, story.inputs)))
    run, ledger = Run(story).play(), Ledger(by_job=True)
    for event in run.events:
        ledger(event)
    productive: Counter[str] = Counter()
    for row in ledger.rows(END_S):
        if row.state == "productive":
            productive[row.job] += row.gpu_us
    for submission in story.submissions:
        job, ended = submission.job, run.state.ended.get(submission.job.name)
        if ended is not None and ended.outcome == "finished":
            assert job.duration_s is not None
            work_us = microseconds(job.duration_s) * job.shape.nodes
            assert abs(productive[job.name] - work_us) <= 2 * job.shape.nodes * ended.attempts


def lone(fleet: tuple[DomainSpec, ...]) -> tuple[DomainSpec, ...]:
    """The same nodes with one GPU each, so that work is the same wherever it is done."""
    return tuple(structs.replace(spec, gpus_per_node=1) for spec in fleet)


def lone_delivery(event: Input) -> Input:
    return Delivered(at_s=event.at_s, domains=lone(event.domains)) if isinstance(event, Delivered) else event


def start(
    ledger: Ledger,
    *,
    usd: float | None = None,
    saves_every_s: float | None = None,
    spares: tuple[int, ...] = (),
) -> None:
    """One domain of four nodes with two GPUs; a gang of two nodes works from second 10 on."""
    spec = DomainSpec(
        name="d", system="s", nodes=4, gpus_per_node=2, cluster="c", spares=1, usd_per_gpu_hour=usd
    )
    job = Job(
        name="j", kind="training", shape=Shape(nodes_per_segment=2), queue="q", priority="high",
        durability=Durability(checkpoint_interval_s=100.0),
    )  # fmt: skip
    ledger(Delivered(at_s=0.0, domains=(spec,)))
    ledger(Submitted(at_s=0.0, job=job))
    binding = (Segment(domain="d", nodes=(0, 1), spares=spares),)
    decide(ledger, 0.0, Start(gang="j", attempt=1, binding=binding, reason=Reason(code="fits")))
    ledger(GangRunning(at_s=10.0, gang="j", attempt=1, saves_every_s=saves_every_s))


def decision(at_s: float, *actions: Action) -> Decided:
    return Decided(at_s=at_s, plan=Plan(at_s=at_s, actions=actions))


def decide(ledger: Ledger, at_s: float, *actions: Action) -> None:
    ledger(decision(at_s, *actions))


def charged(ledger: Ledger, at_s: float) -> dict[tuple[str, str], float]:
    """(state, cause) -> GPU-seconds."""
    return {(row.state, row.cause): row.gpu_us / 1e6 for row in ledger.rows(at_s)}


def test_work_since_the_last_checkpoint_becomes_lost_when_the_attempt_dies() -> None:
    ledger = Ledger()
    start(ledger)
    ledger(Checkpointed(at_s=110.0, gang="j", attempt=1))
    assert charged(ledger, 150.0)["productive", ""] == 140 * 4
    ledger(NodeFailed(at_s=150.0, domain="d", nodes=(1,)))
    binding = (Segment(domain="d", nodes=(0, 2)),)
    decide(ledger, 150.0, Restart(gang="j", attempt=2, binding=binding, reason=Reason(code="spare")))
    ledger(GangRunning(at_s=160.0, gang="j", attempt=2))
    assert charged(ledger, 200.0) == {
        ("productive", ""): (100 + 40) * 4,
        ("lost", "node-failure"): 40 * 4,
        ("starting", "first-start"): 10 * 4,
        ("starting", "node-failure"): 10 * 4,
        ("stranded", ""): 150 * 2,
        ("spare", ""): 200 * 2,
        ("unhealthy", ""): 50 * 2,
    }


def test_leaving_with_a_checkpoint_loses_nothing() -> None:
    ledger = Ledger()
    start(ledger)
    decide(ledger, 60.0, Preempt(gang="j", attempt=1, grace_s=30.0, reason=Reason(code="preempted-for")))
    assert charged(ledger, 65.0)["leaving", "preempted"] == 5 * 4
    ledger(GangEnded(at_s=70.0, gang="j", attempt=1, outcome="left", checkpointed=True))
    found = charged(ledger, 70.0)
    assert found["productive", ""] == 50 * 4
    assert found["checkpointing", "preempted"] == 10 * 4
    assert ("lost", "preempted") not in found


def test_leaving_without_a_checkpoint_loses_the_work_since_the_last() -> None:
    ledger = Ledger()
    start(ledger)
    decide(ledger, 60.0, Preempt(gang="j", attempt=1, grace_s=30.0, reason=Reason(code="drain")))
    ledger(GangEnded(at_s=90.0, gang="j", attempt=1, outcome="left"))
    found = charged(ledger, 90.0)
    assert found["lost", "drained"] == 50 * 4
    assert found["leaving", "drained"] == 30 * 4


def test_a_node_that_fails_under_a_leaving_gang_is_unhealthy_and_no_longer_leaving() -> None:
    ledger = Ledger()
    start(ledger)
    decide(ledger, 60.0, Preempt(gang="j", attempt=1, grace_s=30.0, reason=Reason(code="drain")))
    ledger(NodeFailed(at_s=70.0, domain="d", nodes=(1,)))
    ledger(GangEnded(at_s=90.0, gang="j", attempt=1, outcome="left"))
    found = charged(ledger, 90.0)
    assert found["leaving", "drained"] == 10 * 4 + 20 * 2
    assert found["unhealthy", ""] == 20 * 2
    assert sum(found.values()) == 90 * 8


def test_nodes_claimed_for_a_gang_that_is_cancelled_are_idle_again() -> None:
    ledger = Ledger()
    start(ledger)
    ledger(Submitted(at_s=20.0, job=Job(name="vip", kind="training", shape=Shape(nodes_per_segment=3))))
    binding = (Segment(domain="d", nodes=(1, 2, 3)),)
    decide(ledger, 20.0, Claim(gang="vip", binding=binding, reason=Reason(code="cleared-domain")))
    ledger(Cancelled(at_s=50.0, job="vip"))
    found = charged(ledger, 100.0)
    assert found["claimed", ""] == 30 * 2 * 2
    assert found["stranded", ""] == found["spare", ""] == (20 + 50) * 2


def test_events_of_an_attempt_that_is_over_count_for_nothing() -> None:
    ledger = Ledger()
    start(ledger)
    ledger(GangEnded(at_s=50.0, gang="j", attempt=1, outcome="failed"))
    before = charged(ledger, 60.0)
    ledger(Checkpointed(at_s=60.0, gang="j", attempt=1))
    ledger(GangEnded(at_s=60.0, gang="j", attempt=1, outcome="finished"))
    assert charged(ledger, 60.0) == before
    assert before["lost", "program-failed"] == 40 * 4


def test_work_that_saves_itself_loses_what_is_beyond_the_last_whole_interval() -> None:
    ledger = Ledger()
    start(ledger, saves_every_s=30.0)
    ledger(NodeFailed(at_s=110.0, domain="d", nodes=(0,)))
    decide(ledger, 110.0, Requeue(gang="j", attempt=1, reason=Reason(code="no-replacement")))
    ledger(GangEnded(at_s=110.0, gang="j", attempt=1, outcome="failed"))
    found = charged(ledger, 110.0)
    assert (found["productive", ""], found["lost", "node-failure"]) == (90 * 4, 10 * 4)


def test_a_spare_of_the_gang_s_own_is_held_charged_to_it_and_may_fail() -> None:
    ledger = Ledger()
    start(ledger, spares=(3,))
    assert ledger.held_gpus() == 6
    ledger(NodeFailed(at_s=60.0, domain="d", nodes=(3,)))
    own = {row.queue: row.gpu_us / 1e6 for row in ledger.rows(100.0) if row.state == "spare"}
    assert own == {"q": 60 * 2, "": 100 * 2}
    assert charged(ledger, 100.0)["productive", ""] == 90 * 4


def test_expired_capacity_counts_no_longer_and_loses_what_runs_there() -> None:
    ledger = Ledger()
    start(ledger)
    expired = Reason(code="expired")
    decide(ledger, 60.0, Close(domain="d", nodes=None, reason=expired))
    ledger(GangEnded(at_s=80.0, gang="j", attempt=1, outcome="failed"))
    assert ledger.delivered_gpus() == 0
    assert ledger.delivered_gpu_us(100.0) == 60 * 8e6
    assert charged(ledger, 100.0)["lost", "expired"] == 50 * 4
    ledger(Extended(at_s=100.0, domains=("d",), expires_s=None))
    assert ledger.delivered_gpu_us(110.0) == 70 * 8e6


def test_closed_and_booked_nodes_have_states_of_their_own() -> None:
    ledger = Ledger()
    start(ledger)
    week = Reason(code="maintenance", window="week 7")
    decide(
        ledger, 20.0,
        Hold(booking="b", binding=(Segment(domain="d", nodes=(2,)),), reason=Reason(code="booked")),
        Close(domain="d", nodes=(3,), reason=week),
    )  # fmt: skip
    decide(ledger, 50.0, Close(domain="d", nodes=(3,), reason=Reason(code="lemon")))
    decide(ledger, 60.0, Free(booking="b", reason=Reason(code="booking-over")))
    decide(ledger, 70.0, Open(domain="d", nodes=None, reason=week))
    found = charged(ledger, 100.0)
    assert found["booked", ""] == 40 * 2
    assert (found["drained", "maintenance"], found["drained", "lemon"]) == (50 * 2, 30 * 2)


def test_what_was_promised_is_missing_from_the_first_date_on_and_is_no_part_of_the_rest() -> None:
    ledger = Ledger()
    late = DomainSpec(name="late", system="s", nodes=2, gpus_per_node=4, cluster="c")
    ledger(Announced(at_s=0.0, ready_s=50.0, domains=(late,)))
    ledger(Announced(at_s=40.0, ready_s=90.0, domains=(late,)))
    ledger(Delivered(at_s=100.0, domains=(late,)))
    (row,) = ledger.undelivered(120.0)
    assert (row.state, row.gpu_us) == ("undelivered", 50 * 8e6)
    assert ledger.delivered_gpu_us(120.0) == 20 * 8e6


def test_adaptive_spares_are_idle_nodes_where_no_gang_is_large_enough() -> None:
    ledger = Ledger()
    # A failure an hour per GPU, repaired in an hour: 6 x 1 GPU-hours are worth more than the two of the spare.
    policy = Policy(spares="adaptive", failures_per_gpu_hour=1.0, node_repair_s=3600.0)
    ledger(Configured(at_s=0.0, policy=policy))
    start(ledger)
    ledger(Configured(at_s=100.0, policy=structs.replace(policy, failures_per_gpu_hour=0.01)))
    ledger(Configured(at_s=150.0, policy=structs.replace(policy, spares="none")))
    ledger(Configured(at_s=175.0, policy=structs.replace(policy, spares="fixed")))
    found = charged(ledger, 200.0)
    assert (found["spare", ""], found["stranded", ""]) == (125 * 2, 275 * 2)


def test_a_live_fleet_is_adopted_with_its_closures_bookings_and_promises() -> None:
    week = Reason(code="maintenance", window="week 7")
    here, late = (
        DomainSpec(name=name, system="s", nodes=6, gpus_per_node=2, cluster="c") for name in ("d", "late")
    )
    history: list[Event] = [
        Delivered(at_s=0.0, domains=(here,)),
        Announced(at_s=0.0, ready_s=50.0, domains=(late,)),
        Booked(at_s=0.0, booking=Booking(name="b", shape=Shape(), start_s=0.0, end_s=900.0)),
        decision(
            10.0,
            Hold(booking="b", binding=(Segment(domain="d", nodes=(2,)),), reason=Reason(code="booked")),
            Close(domain="d", nodes=(3,), reason=week),
            Close(domain="d", nodes=(4,), reason=Reason(code="lemon")),
            Close(domain="d", nodes=(5,), reason=Reason(code="expired")),
        ),
    ]
    state, ledger = FleetState(), Ledger()
    for event in history:
        state.fold(event)
    ledger.adopt(state, 20.0)
    assert charged(ledger, 120.0) == {
        ("booked", ""): 100 * 2, ("drained", "maintenance"): 100 * 2, ("drained", "lemon"): 100 * 2,
        ("stranded", ""): 100 * 4,
    }  # fmt: skip
    assert ledger.delivered_gpus() == 10
    assert sum(row.gpu_us for row in ledger.undelivered()) == 70 * 12e6
    decide(ledger, 130.0, Open(domain="d", nodes=None, reason=week))
    assert charged(ledger, 140.0)["drained", "maintenance"] == 110 * 2


def test_a_gang_without_gpus_leaves_them_to_others() -> None:
    ledger = Ledger()
    start(ledger)
    ledger(Submitted(at_s=20.0, job=Job(name="cpu", kind="batch", shape=Shape(), cpu_only=True)))
    binding = (Segment(domain="d", nodes=(0,)),)
    decide(ledger, 20.0, Start(gang="cpu", attempt=1, binding=binding, reason=Reason(code="fits")))
    assert ledger.held_gpus() == 4
    ledger(GangEnded(at_s=30.0, gang="cpu", attempt=1, outcome="finished"))
    assert ledger.held_gpus() == 4


def test_time_is_priced_where_domains_have_a_price() -> None:
    priced, unpriced = Ledger(), Ledger()
    start(priced, usd=10.582)
    start(unpriced)
    (starting,) = (row for row in priced.rows(3600.0) if row.state == "starting")
    assert starting.usd == Decimal("10.582") * 40 / 3600
    assert sum(row.usd or 0 for row in priced.rows()) == Decimal("10.582") * 8
    assert {row.usd for row in unpriced.rows(3600.0)} == {None}


def test_rows_name_the_queue_the_priority_and_on_request_the_job() -> None:
    plain, by_job = Ledger(), Ledger(by_job=True)
    start(plain)
    start(by_job)
    row = next(row for row in by_job.rows(20.0) if row.state == "productive")
    assert (row.queue, row.priority, row.kind, row.job) == ("q", "high", "training", "j")
    assert {row.job for row in plain.rows(20.0)} == {""}


@given(story=stories(), at_s=st.floats(0.0, END_S))
def test_it_can_begin_with_a_live_fleet(story: Story, at_s: float) -> None:
    run = Run(story).play(at_s)
    whole, late = Ledger(), Ledger()
    for event in run.events:
        whole(event)
    now_s = run.state.now_s
    late.adopt(run.state, now_s)
    assert late.held_gpus() == whole.held_gpus()
    before, seen = by_state(whole, now_s), len(run.events)
    for event in run.play().events[seen:]:
        whole(event)
        late(event)
    assert sum(by_state(late, END_S).values()) == late.delivered_gpu_us()
    for state in FREE:
        assert by_state(late)[state] == by_state(whole, END_S)[state] - before[state], state
