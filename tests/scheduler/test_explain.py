"""`why` says what decided."""

from __future__ import annotations

import pytest

from rackscale.errors import UnknownNameError
from rackscale.events import Claim, Preempt
from rackscale.scheduler.explain import why
from rackscale.workload import Policy
from tests.scheduler.world import World, domain, job


def test_topology_is_named_when_gpus_are_free_but_no_domain_is() -> None:
    world = World(domain(0), domain(1), policy=Policy(preemption=False))
    world.submit(job("a", 9), job("b", 9))
    world.submit(job("wide", 16))
    (answer,) = why(world.state, "wide")
    assert answer.constraint == "topology"
    assert answer.domains[0].lacks == 8
    assert "64 GPUs are free" in answer.text


def test_the_cheapest_unblock_is_what_the_scheduler_then_does() -> None:
    world = World(domain(0), domain(1), policy=Policy(min_runtime_s=500.0))
    world.submit(job("a", 9), job("b", 16))
    world.submit(job("prod", 16, priority="production"), at_s=400.0)
    (answer,) = why(world.state, "prod")
    assert answer.unblock is None
    assert answer.guards == {"minimum-run-time": 2}
    world.state.now_s = 600.0
    (answer,) = why(world.state, "prod")
    assert answer.unblock is not None
    assert answer.unblock.allowed
    actions = world.tick(600.0)
    assert tuple(a.gang for a in actions if isinstance(a, Preempt)) == answer.unblock.victims
    claim = next(a for a in actions if isinstance(a, Claim))
    assert tuple(s.domain for s in claim.binding) == answer.unblock.domains


def test_running_and_ended_gangs_are_explained_too() -> None:
    world = World(domain(0))
    world.submit(job("a", 2))
    assert why(world.state, "a")[0].constraint == "fits"
    world.end("a")
    assert why(world.state, "a")[0].constraint == "finished"


def test_a_misspelt_name_gets_a_hint() -> None:
    world = World(domain(0))
    world.submit(job("training-7", 2))
    with pytest.raises(UnknownNameError) as caught:
        why(world.state, "trainin-7")
    assert caught.value.hint == "did you mean 'training-7'?"
