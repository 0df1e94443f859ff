"""The controller is killed and comes back: nothing runs twice, nothing is lost, nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rackscale import events as ev
from rackscale.fleet.state import FleetState
from rackscale.workload import Durability, Job, Policy, Program, Shape
from tests.conftest import Eventually
from tests.runtime.test_gangs import steps
from tests.runtime.world import STEPS, World, of_site

Make = Callable[..., World]
MORTAL = Path(__file__).with_name("mortal.py")
ROOT = Path(__file__).parents[2]


def reborn(world: World) -> World:
    """A second controller over the same site, from the state as the journal has it."""
    world.executor.close()
    return World(world.site, state=FleetState.restore(world.state.snapshot()))


def test_running_gangs_go_on_and_are_found_again(world: World) -> None:
    world.submit(steps(40), nodes=2)
    world.until_running()
    pids = [world.pid(rank) for rank in (0, 1)]
    after = reborn(world)
    assert after.until_ended() == "finished"
    assert [after.pid(rank) for rank in (0, 1)] == pids
    assert after.all(ev.GangEnded)[0].attempt == 1


def test_what_happened_meanwhile_is_told(world: World, eventually: Eventually) -> None:
    world.submit(steps(20), nodes=2)
    world.until_running()
    eventually(lambda: not of_site(world.site))
    after = reborn(world)
    assert after.until_ended() == "finished"
    assert after.all(ev.Checkpointed)[-1].step == 20
    assert after.all(ev.Progressed)[-1].step == 20


def test_a_checkpoint_that_is_known_is_not_told_again_as_new(world: World) -> None:
    """Told again it would count as written now, and work since then would seem safe."""
    world.submit(steps(6, 0.05))
    world.until(lambda: world.all(ev.Checkpointed))
    after = reborn(world)
    after.until_ended()
    assert after.all(ev.Checkpointed) == []


def test_a_node_that_died_meanwhile_is_told(world: World) -> None:
    world.submit(steps(10_000), nodes=2)
    world.until_running()
    os.killpg(world.pid(1), signal.SIGKILL)
    after = reborn(world)
    assert [s.nodes for s in after.until_running(number=2).binding] == [(0, 2)]


def test_a_program_that_failed_meanwhile_is_told(world: World, eventually: Eventually) -> None:
    world.submit("sleep 0.5; exit 9", nodes=2)
    world.until_running()
    eventually(lambda: not of_site(world.site))
    after = reborn(world)
    assert after.until_ended() == "failed"
    assert "exited with 9" in after.state.ended["a"].detail


def test_a_gang_that_was_decided_and_not_started_is_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.executor, "apply", lambda _: None)  # it dies before it can act
    world.submit(steps(5), nodes=2)
    after = reborn(world)
    assert after.until_ended() == "finished"


def test_a_request_to_leave_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.submit(steps(10_000), nodes=2)
    world.until_running()
    monkeypatch.setattr(world.executor, "apply", lambda _: None)  # it dies before it can act
    world.tell(ev.Cancelled(at_s=time.time(), job="a"))
    after = reborn(world)
    assert after.until_ended() == "cancelled"
    assert after.all(ev.GangEnded)[0].checkpointed


def test_a_grace_period_counts_from_the_first_request(world: World) -> None:
    world.submit(steps(10_000, 0.02, "--deaf"), durability=Durability(grace_s=3.0))
    world.until_running()
    began_s = time.time()
    world.tell(ev.Cancelled(at_s=began_s, job="a"))
    while time.time() < began_s + 2.0:
        world.controller.step(time.time() + 0.1)
    after = reborn(world)
    assert after.until_ended() == "cancelled"
    assert time.time() - began_s < 4.9


def test_a_decision_to_requeue_is_carried_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.submit(steps(10_000), nodes=4)
    world.until_running()
    os.killpg(world.pid(3), signal.SIGKILL)
    monkeypatch.setattr(world.executor, "apply", lambda _: None)  # it dies before it can act
    world.until(lambda: world.state.gangs["a"].cause == "no-replacement")
    after = reborn(world)
    after.until(lambda: after.all(ev.GangEnded))
    assert after.processes() == []


def test_attempts_that_the_journal_does_not_know_are_killed(world: World) -> None:
    world.submit("setsid sleep 1000 & sleep 1000", nodes=2)
    world.until_running()
    empty = World(world.site)
    empty.until(lambda: not empty.processes())


def test_failed_nodes_are_repaired_by_the_next_controller(world: World) -> None:
    world.submit(steps(10_000), nodes=2)
    world.until_running()
    os.killpg(world.pid(1), signal.SIGKILL)
    world.until_running(number=2)
    after = World(world.site, state=FleetState.restore(world.state.snapshot()), repair_s=0.2)
    after.until(lambda: after.all(ev.NodeRepaired))
    assert after.state.failed == [0]


# -- kill -9 at every moment that matters ----------------------------------------------------------------------------

FIRST = {
    "its instance is killed": "kill -9 -- -$(cut -d' ' -f5 /proc/$$/stat)",
    "it fails": "exit 3",
}
"""What happens to node rank 1 in the first attempt; the second one finishes."""


def story(first: str) -> str:
    return f"""
echo "$RACKSCALE_ATTEMPT $RANK" >> ran
if [ $RACKSCALE_ATTEMPT = 1 ] && [ $RANK = 1 ]; then sleep 0.3; {FIRST[first]}; fi
exec python {STEPS} 10 0.04
"""


def begin(site: Path, run: str) -> None:
    now_s = time.time()
    domain = ev.DomainSpec(name="r/us-000", system="local", nodes=3, gpus_per_node=1, cluster="r")
    job = Job(
        name="a", kind="training", shape=Shape(nodes_per_segment=2), program=Program(run=run),
        durability=Durability(max_restarts=1, retry_delay_s=0.1),
    )  # fmt: skip
    inputs: list[ev.Event] = [
        ev.Delivered(at_s=now_s, domains=(domain,)), ev.Configured(at_s=now_s, policy=Policy()),
        ev.Submitted(at_s=now_s, job=job),
    ]  # fmt: skip
    site.mkdir()
    (site / "journal").write_bytes(b"".join(ev.encode(event) + b"\n" for event in inputs))


def controller(site: Path, *death: int) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(MORTAL), str(site), *map(str, death)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, check=False, cwd=ROOT, env=env, capture_output=True, text=True)


def state_of(site: Path) -> FleetState:
    state = FleetState()
    for line in (site / "journal").read_bytes().splitlines():
        state.fold(ev.decode(line))
    return state


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_killed_at_any_moment_it_loses_nothing_and_starts_nothing_twice(first: str, tmp_path: Path) -> None:
    begin(tmp_path / "whole", story(first))
    whole = controller(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    moments = int(whole.stdout)
    assert moments > 20
    for death in range(1, moments + 1, int(os.environ.get("RACKSCALE_STRIDE", "5"))):
        site = tmp_path / str(death)
        begin(site, story(first))
        died = controller(site, death).returncode == -signal.SIGKILL
        after = controller(site)
        assert after.returncode == 0, after.stderr
        assert died or death > moments // 2
        where = f"killed at moment {death}"
        state = state_of(site)
        assert (state.ended["a"].outcome, state.ended["a"].attempts) == ("finished", 2), where
        assert state.failed == [0b010 if first == "its instance is killed" else 0], where
        assert Counter((site / "ran").read_text().split("\n")) == Counter(["1 0", "1 1", "2 0", "2 1", ""]), (
            where
        )
        assert of_site(site) == [], where
