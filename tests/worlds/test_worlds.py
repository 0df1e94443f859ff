"""One suite of worlds, told on the twin, on `local` and on Ray: the same things are decided everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rackscale.control import replay, same
from rackscale.events import Checkpointed, Decided, Event, GangRunning, Preempt, decode, encode
from rackscale.fleet.state import FleetState
from tests.worlds.rerun import rerun
from tests.worlds.stages import Local, Ray, Stage, Twin
from tests.worlds.story import Telling, World
from tests.worlds.tales import WORLDS

Build = Callable[[], Stage]


@pytest.fixture(scope="module")
def ray_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The one Ray cluster of all worlds."""
    pytest.importorskip("ray")
    from rackscale.runtime.ray.marks import stop

    site = tmp_path_factory.mktemp("worlds")
    yield site
    stop(site)


@pytest.fixture(params=["twin", "local", pytest.param("ray", marks=pytest.mark.ray)])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    build: dict[str, Build] = {
        "twin": Twin,
        "local": lambda: Local(tmp_path),
        "ray": lambda: Ray(request.getfixturevalue("ray_site")),
    }
    built = build[request.param]()
    yield built
    if isinstance(built, Local):
        built.executor.kill()  # type: ignore[attr-defined]
    built.executor.close()


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name.replace(" ", "-"))
def test_everywhere_the_same_is_decided(world: World, stage: Stage) -> None:
    telling = Telling(world, stage)
    telling.tell()
    assert telling.decisions == world.decisions
    assert telling.outcomes == world.outcomes
    check_who_left_saved(telling)
    if stage.real:
        check_work_went_on(telling.events)
        check_replay(telling)


def check_who_left_saved(telling: Telling) -> None:
    """Who was asked to make room has lost nothing."""
    left = telling.left()
    plans = [event.plan for event in telling.events if isinstance(event, Decided)]
    for action in (action for plan in plans for action in plan.actions):
        if isinstance(action, Preempt):
            assert left[action.gang, action.attempt].checkpointed


def check_work_went_on(events: list[Event]) -> None:
    """An attempt begins where the checkpoints of those before it end."""
    kept: dict[str, int] = {}
    for event in events:
        if isinstance(event, Checkpointed) and event.step is not None:
            kept[event.gang] = event.step
        elif isinstance(event, GangRunning) and event.attempt > 1 and event.gang in kept:
            assert event.step is not None
            assert event.step >= kept[event.gang] > 0


def check_replay(telling: Telling) -> None:
    """What reality said, fed into the same loop again, gives the same plans and the same state, byte for byte."""
    recorded = [decode(encode(event)) for event in telling.events]
    again = FleetState()
    decisions = 0
    for was, plan, _ in replay(recorded, state=again):
        assert same(was, plan)
        decisions += 1
    assert decisions == sum(isinstance(event, Decided) for event in telling.events) > 0
    assert again.snapshot() == telling.state.snapshot()
    assert [encode(event) for event in rerun(recorded)] == [encode(event) for event in telling.events]
