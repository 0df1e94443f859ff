"""Gangs' lives on Ray: four emulated nodes on this machine, under the real control loop.

The tests share one cluster, and the last ones take it over, join it and end it: they run in the order of this file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("ray")

from rackscale import events as ev
from rackscale.control import Controller
from rackscale.errors import ExecutorError
from rackscale.fleet.state import FleetState
from rackscale.programs import processes
from rackscale.runtime.launcher import NodeRef
from rackscale.runtime.ray.cluster import labels
from rackscale.runtime.ray.executor import RayExecutor
from rackscale.runtime.ray.marks import HEAD, end, kill_node, of_node, of_site, stop, temp_of
from rackscale.workload import Policy
from tests.runtime.world import QUICK, STEPS, World
from tests.runtime.world import of_site as mentioning

pytestmark = pytest.mark.ray
COUNT = f"python {STEPS} 100000 0.02"
DOMAIN = ev.DomainSpec(
    name="r/us-000", system="local", nodes=4, gpus_per_node=1, cluster="r", region="here", spares=1
)
TIMEOUT_S = 60.0


class RayWorld(World):
    """Four nodes of one domain, one of them spare. `state`: what a controller before this one left."""

    def __init__(
        self,
        site: Path,
        *,
        state: FleetState | None = None,
        address: str | None = None,
        repair_s: float = 2.0,
        domain: ev.DomainSpec = DOMAIN,
    ) -> None:
        self.site, self.events = site, list[ev.Event]()
        self.state = state or FleetState()
        self.executor = RayExecutor(site, address=address, repair_s=repair_s, settings=QUICK)  # type: ignore[assignment]
        self.executor.recover(self.state)
        self.controller = Controller(self.state, self.executor, listeners=[self.events.append])
        if state is None:
            policy = Policy(min_runtime_s=0.0, preemption_retry_s=0.5)
            now_s = time.time()
            self.tell(ev.Delivered(at_s=now_s, domains=(domain,)), ev.Configured(at_s=now_s, policy=policy))

    def until(self, holds: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
        return super().until(holds, timeout_s)

    def nodes(self, name: str) -> list[NodeRef]:
        binding = self.state.gangs[name].binding
        return [NodeRef(segment.domain, node) for segment in binding for node in segment.nodes]

    def until_up(self, name: str, number: int = 1) -> None:
        """These ranks don't wait for each other: until all of them run."""
        self.until_running(name, number)
        self.until(
            lambda: all(
                self.instance(rank, name, number).up.exists() for rank in range(len(self.nodes(name)))
            )
        )

    def cancel(self, name: str) -> None:
        self.tell(ev.Cancelled(at_s=time.time(), job=name))
        self.until_ended(name)

    def quiet(self) -> None:
        """No gang is left and every node is well, whatever a test has done."""
        for name in list(self.state.jobs):
            if name in self.state.gangs:
                self.cancel(name)
        self.until(lambda: not any(self.state.failed))


Another = Callable[..., RayWorld]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ray")
    yield folder
    stop(folder)


@pytest.fixture(scope="module")
def shared(site: Path) -> Iterator[RayWorld]:
    world = RayWorld(site)
    yield world
    world.executor.close()


@pytest.fixture
def world(shared: RayWorld) -> Iterator[RayWorld]:
    shared.events.clear()
    yield shared
    shared.quiet()


@pytest.fixture
def another(shared: RayWorld) -> Iterator[Another]:
    """Worlds after the shared one: a process can be connected to one cluster only."""
    shared.executor.close()
    made: list[RayWorld] = []

    def make(site: Path, **options: Any) -> RayWorld:
        made.append(RayWorld(site, **options))
        return made[-1]

    yield make
    for world in made:
        world.executor.close()


def test_who_is_cancelled_before_the_nodes_are_up_need_not_wait_for_them(world: RayWorld) -> None:
    began_s = time.time()
    world.submit(COUNT, name="early", nodes=2)
    world.cancel("early")
    assert time.time() - began_s < 1
    assert world.all(ev.NodeFailed) == []


def test_a_gang_runs_and_finishes_on_exactly_the_nodes_of_its_binding(world: RayWorld, site: Path) -> None:
    world.submit(f"python {STEPS} 100 0.02", name="exact", nodes=2)
    world.until_up("exact")
    for rank, ref in enumerate(world.nodes("exact")):
        here = of_node(site, ref)
        assert world.pid(rank, "exact") in here
        told = next(
            entry for pid in here for entry in processes.environ(pid) if entry.startswith(b"RACKSCALE_NODE=")
        )
        assert told == f"RACKSCALE_NODE={ref.domain}/n{ref.node:02d}".encode()
    assert world.until_ended("exact") == "finished"
    assert world.all(ev.Checkpointed)[-1].step == 100
    assert world.all(ev.NodeFailed) == []


def test_programs_do_not_see_ray_nor_its_token(world: RayWorld) -> None:
    world.submit("env > env.txt; ! env | grep -e '^RAY_' -e jemalloc", name="env")
    assert world.until_ended("env") == "finished"
    told = (world.site / "env.txt").read_text()
    assert "OMP_NUM_THREADS=1" in told
    assert "token" not in told


def test_a_victim_checkpoints_within_its_grace_period_and_goes_on(world: RayWorld) -> None:
    world.submit(f"python {STEPS} 60 0.05", name="victim", nodes=3)
    world.until(lambda: (world.state.gangs["victim"].step or 0) >= 8)
    world.submit("sleep 0.5", name="urgent", nodes=2, priority="production")
    world.until_ended("urgent")
    assert world.until_ended("victim") == "finished"
    left, finished = (event for event in world.all(ev.GangEnded) if event.gang == "victim")
    assert (left.outcome, left.checkpointed, finished.outcome) == ("left", True, "finished")
    resumed = world.all(ev.GangRunning)[-1].step
    assert resumed is not None
    assert resumed >= 8


def test_a_failing_program_is_not_blamed_on_its_node(world: RayWorld) -> None:
    world.submit("sleep 0.2; exit 3", name="failing", nodes=2)
    assert world.until_ended("failing") == "failed"
    assert "exited with 3" in world.state.ended["failing"].detail
    assert world.all(ev.NodeFailed) == []


def test_a_killed_node_is_seen_at_once_and_the_spare_takes_over(world: RayWorld, site: Path) -> None:
    world.submit(COUNT, name="train", nodes=2)
    world.until_up("train")
    world.until(lambda: world.all(ev.Checkpointed))
    world.until(
        lambda: all(of_node(site, NodeRef(DOMAIN.name, node)) for node in range(3))
    )  # the spare is warm
    keeps, lost = world.nodes("train")
    survivor = world.pid(0, "train")
    began_s = time.time()
    kill_node(site, *lost)
    gang = world.until_running("train", number=2)
    world.until_up("train", number=2)
    (failed,) = world.all(ev.NodeFailed)
    assert (failed.domain, failed.nodes) == (lost.domain, (lost.node,))
    assert failed.at_s - began_s < 5
    assert world.nodes("train") == [keeps, NodeRef(lost.domain, 2)]
    assert gang.step is not None
    assert gang.step >= 5
    assert processes.find(survivor) is None or world.pid(0, "train", number=2) != survivor
    world.until(lambda: world.all(ev.NodeRepaired))
    assert of_node(site, lost)


def test_a_hung_node_is_seen_in_seconds_and_ended(world: RayWorld, site: Path) -> None:
    world.submit(COUNT, name="train2", nodes=2)
    world.until_up("train2")
    lost = world.nodes("train2")[0]
    ranks = [world.pid(0, "train2"), *of_node(site, lost)]
    began_s = time.time()
    kill_node(site, *lost, signal.SIGSTOP)
    world.until_running("train2", number=2)
    (failed,) = world.all(ev.NodeFailed)
    assert failed.nodes == (lost.node,)
    assert failed.at_s - began_s < 12
    assert not any(alive(pid) for pid in ranks)


def test_a_node_that_dies_idle_is_seen_and_repaired(world: RayWorld, site: Path) -> None:
    world.submit("true", name="short")
    world.until_ended("short")
    ref = NodeRef(DOMAIN.name, 0)
    kill_node(site, *ref)
    world.until(lambda: world.all(ev.NodeFailed))
    world.until(lambda: world.all(ev.NodeRepaired))
    world.submit(COUNT, name="again")
    world.until_running("again")


CONTROLLER = """
import sys, time
from pathlib import Path
from rackscale.fleet.state import FleetState
from tests.runtime.test_ray import RayWorld, COUNT

site, state = map(Path, sys.argv[1:])
world = RayWorld(site, state=FleetState.restore(state.read_bytes()))
world.submit(COUNT, name="orphan", nodes=2)
world.until_up("orphan")
draft = state.with_suffix(".draft")
draft.write_bytes(world.state.snapshot())
draft.rename(state.with_name("running"))
world.until(lambda: False, 1000)
"""


def test_a_killed_controller_is_replaced_and_its_gang_never_notices(
    shared: RayWorld, another: Another, site: Path
) -> None:
    state = site / "state"
    state.write_bytes(shared.state.snapshot())
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    }
    first = subprocess.Popen([sys.executable, "-c", CONTROLLER, str(site), str(state)], env=env)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (site / "running").exists():
        assert first.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    first.kill()
    first.wait()
    second = another(site, state=FleetState.restore((site / "running").read_bytes()))
    pids = [second.pid(rank, "orphan") for rank in (0, 1)]
    now_s = time.time()
    second.until(lambda: any(event.at_s > now_s + 2 for event in second.all(ev.Progressed)))
    assert all(map(alive, pids))
    assert [event.attempt for event in second.all(ev.GangRunning)] in ([], [1])
    assert second.log(0, "orphan").count("goes on at") == 1
    second.cancel("orphan")
    assert second.all(ev.GangEnded)[0].checkpointed


def test_an_existing_cluster_is_joined_by_its_labels_and_left_as_it_was(
    another: Another, site: Path, tmp_path: Path
) -> None:
    raylets = set(of_site(site))
    address = (temp_of(site) / "head" / "ray_current_cluster").read_text()
    guest = another(tmp_path, address=address)
    guest.submit(f"python {STEPS} 20 0.02", name="guest", nodes=2)
    assert guest.until_ended("guest") == "finished"
    guest.submit(COUNT, name="endless", nodes=1)
    guest.until_running("endless")
    pid = guest.pid(0, "endless")
    assert pid in of_node(tmp_path, guest.nodes("endless")[0])
    guest.executor.shutdown()  # type: ignore[attr-defined]
    deadline_s = time.monotonic() + 10
    while of_site(tmp_path):
        assert time.monotonic() < deadline_s, "the agent of the guest is still there"
        time.sleep(0.05)
    assert not alive(pid)
    assert raylets <= set(of_site(site))


def test_a_cluster_without_labels_is_refused_with_the_labels_it_needs(
    another: Another, site: Path, tmp_path: Path
) -> None:
    address = (temp_of(site) / "head" / "ray_current_cluster").read_text()
    guest = another(tmp_path, address=address, domain=msgspec.structs.replace(DOMAIN, name="r/us-777"))
    with pytest.raises(ExecutorError, match="labelled as a node of r/us-777") as caught:
        guest.until(lambda: False, 10)
    assert "rackscale/cluster=r,rackscale/domain=us-777,rackscale/node=0,rackscale/region=here" in (
        caught.value.hint or ""
    )


def test_nothing_answers_at_a_wrong_address(another: Another, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="can't join the Ray cluster at"):
        another(tmp_path, address="127.0.0.9:1")


def test_a_dead_head_ends_the_controller_and_the_next_one_starts_over(another: Another, site: Path) -> None:
    world = another(site)
    world.submit(COUNT, name="headless")
    world.until_up("headless")
    world.until(lambda: world.all(ev.Checkpointed))
    hosts = world.executor._launcher._hosts  # type: ignore[attr-defined]
    world.until(
        lambda: len(hosts) == 2 and all(host.agent for host in hosts.values())
    )  # none is in Ray's hands
    end(lambda: of_node(site, HEAD))
    with pytest.raises(ExecutorError, match="the Ray head of this site has died"):
        world.until(lambda: False, 10)
    world.executor.close()
    pid = world.pid(0, "headless")
    assert alive(pid)
    after = another(site, state=world.state)
    after.until(lambda: after.state.gangs["headless"].attempt == 2)
    assert [event.nodes for event in after.all(ev.NodeFailed)] == [(0,)]
    assert not alive(pid)


def test_shutdown_leaves_nothing(another: Another, site: Path) -> None:
    temp = temp_of(site)
    assert temp.exists()
    assert of_site(site)
    world = another(site, state=FleetState())
    world.executor.shutdown()  # type: ignore[attr-defined]
    assert of_site(site) == []
    assert mentioning(site) == []
    assert not temp.exists()
    assert not (site / ".rackscale" / "ray").exists()


def test_labels_say_where_a_node_is() -> None:
    assert labels(DOMAIN, 3) == {
        "rackscale/cluster": "r",
        "rackscale/domain": "us-000",
        "rackscale/node": "3",
        "rackscale/region": "here",
    }


def up(site: Path, nodes: int) -> bool:
    """Whether the first nodes of the domain run a raylet, two helpers of Ray and our agent, the warm spare too."""
    return all(len(of_node(site, NodeRef(DOMAIN.name, node))) >= 4 for node in range(nodes))


def alive(pid: int) -> bool:
    found = processes.find(pid)
    return found is not None and not found.zombie
