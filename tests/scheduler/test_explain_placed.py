"""`why` about gangs that run or are gone, and about domains."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from rackscale.errors import UnknownNameError
from rackscale.events import (
    Checkpointed,
    Decided,
    Event,
    GangEnded,
    Planned,
)
from rackscale.report import because
from rackscale.scheduler.explain import why
from rackscale.scheduler.rooms import why_domain
from rackscale.workload import Maintenance, Offer, Policy, Queue, Shape
from tests.scheduler.asking import asked
from tests.scheduler.world import World, domain, job


def test_placed_gangs_say_what_stopping_costs_and_who_may_stop_them() -> None:
    world = World(domain(0))
    world.submit(replace(job("a", 2), duration_s=5000.0))
    placed = asked(world, "a").placed
    assert placed is not None
    assert (placed.protected_by, placed.protected_until_s) == ("minimum-run-time", 300.0)
    assert placed.taken_by == ("high", "production")
    world.state.now_s = 1000.0
    answer = asked(world, "a")
    assert answer.constraint == "fits"
    assert answer.placed is not None
    assert (answer.placed.protected_by, answer.placed.lost_gpu_h) == (None, 8 * 1000 / 3600)
    assert answer.placed.expected_end_s == 5000.0
    assert answer.placed.spans["domain"] == 1
    world.end("a")
    assert asked(world, "a").constraint == "finished"


def test_past_departures_are_told_from_the_journal() -> None:
    world = World(domain(0, nodes=4, spares=0), policy=Policy(min_runtime_s=0.0))
    world.submit(job("low", 4, priority="low", restart_s=0.0))
    history: list[Event] = []
    world.submit(job("prod", 4, priority="production"), at_s=100.0)
    history.append(Decided(at_s=100.0, plan=world.plan))
    leaving = asked(world, "low", tuple(history))
    assert (leaving.status, leaving.constraint) == ("leaving", "preempted-for")
    assert [(h.action, h.for_gang, h.lost_gpu_h) for h in leaving.history] == [
        ("preempt", "prod", 1600 / 3600)
    ]
    world.cycle(GangEnded(at_s=110.0, gang="low", attempt=1, outcome="left"))
    waiting = asked(world, "low", tuple(history))
    assert waiting.ran_before == "preempted-for"
    said = because.interruptions(waiting)
    assert said is not None
    assert said.startswith("interrupted once: 10 s ago preempt of attempt 1 for prod")


def test_an_elastic_gang_says_why_it_does_not_grow() -> None:
    offers = (Offer(shape=Shape(nodes_per_segment=4), throughput=4.0),)
    world = World(domain(0, nodes=4, spares=0))
    world.submit(job("a", 2))
    world.submit(replace(job("flex", 1, restart_s=1.0), offers=offers, elastic=True))
    world.state.now_s = 1000.0
    placed = asked(world, "flex").placed
    assert placed is not None
    assert placed.growth == "not-yet"
    world.cycle(Checkpointed(at_s=1000.0, gang="flex", attempt=1))
    placed = asked(world, "flex").placed
    assert placed is not None
    assert placed.growth == "no-room"
    world.submit(job("wide", 4))
    placed = asked(world, "flex").placed
    assert placed is not None
    assert placed.growth == "others-wait"


def test_domains_say_who_holds_them_what_is_out_and_what_comes() -> None:
    world = World(domain(0, nodes=4, spares=1))
    world.submit(job("a", 2))
    world.fail("c/us-000", 3)
    world.cycle(
        Planned(at_s=0.0, maintenance=Maintenance(name="m", domain="c/us-000", start_s=9e3, end_s=1e4))
    )
    answer = why_domain(world.state, "c/us-000")
    assert (answer.status, answer.room.room, answer.room.out) == ("partly-held", 0, 1)
    assert [h.gang for h in answer.room.held_by] == ["a"]
    assert [(out.nodes, out.why, out.back_s) for out in answer.out] == [((3,), "failed", 7200.0)]
    assert [(w.name, w.start_s) for w in answer.windows] == [("m", 9e3)]
    assert why_domain(world.state, "c/us-000", (3,)).status == "out"
    assert len(list(because.domain(answer))) == 4


def test_a_misspelt_name_gets_a_hint() -> None:
    world = World(domain(0))
    world.submit(job("training-7", 2))
    with pytest.raises(UnknownNameError) as caught:
        why(world.state, "trainin-7")
    assert caught.value.hint == "did you mean 'training-7'?"


def test_who_may_preempt_it_depends_on_its_queue_s_quota() -> None:
    queues = (Queue(name="a", quota_gpus=8), Queue(name="b"))
    world = World(domain(0), policy=Policy(min_runtime_s=0.0), queues=queues)
    world.submit(job("kept", 2, queue="a"))
    placed = asked(world, "kept").placed
    assert placed is not None
    assert placed.taken_within == "a"
    assert "by high, production of queue a" in " ".join(because.placed(asked(world, "kept")))
    world.submit(job("more", 2, queue="a"))
    placed = asked(world, "kept").placed
    assert placed is not None
    assert placed.taken_within is None
