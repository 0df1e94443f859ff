"""What must never get past the controller's inbox."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from rackscale.commands import Command, Submit, answer
from rackscale.workload import Job
from tests.scheduler.world import World, domain, job


@pytest.mark.parametrize("name", ["../../etc", "/etc/x", "a/../b", "a/b", ".", "..", "", "a" * 101, "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    world = World(domain(0))
    events, reply = answer(world.state, Submit(jobs=(replace(job("x"), name=name),)), 1.0)
    assert (events, reply.outcome) == ((), "refused")


@pytest.mark.parametrize("field", ["segments", "nodes_per_segment"])
def test_a_shape_of_nothing_does_not_decode(field: str) -> None:
    data = msgspec.to_builtins(Submit(jobs=(job("x"),)))
    data["jobs"][0]["shape"][field] = 0
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(data), type=Command)


def test_a_command_that_trips_over_a_mistake_of_ours_is_refused_and_changes_nothing() -> None:
    world = World(domain(0))
    before = world.state.snapshot()
    broken = Job(name="x", kind="batch", shape=None)  # type: ignore[arg-type]  # only code can make it, not JSON
    events, reply = answer(world.state, Submit(jobs=(broken,)), 1.0)
    assert (events, reply.outcome) == ((), "refused")
    assert world.state.snapshot() == before
