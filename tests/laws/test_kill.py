"""The controller process is killed 200 times while it schedules: no job is lost, duplicated, or started twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from rackscale import daemon
from rackscale.commands import Cancel, Command, Configure, Deliver, Submit
from rackscale.control import replay, same
from rackscale.events import DomainSpec, Submitted
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer
from rackscale.workload import Durability, Job, Policy, Shape

KILLS = 200
SEED = 20261123
ROOT = Path(__file__).parents[2]
DOMAINS = tuple(
    DomainSpec(name=f"c/us-{i:03}", system="local", nodes=8, gpus_per_node=1, cluster="c", spares=1)
    for i in range(4)
)
QUICK = Durability(grace_s=0.05, restart_s=0.0, max_restarts=2)


def start(site: Path, seed: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.laws.mayfly", str(site), str(seed)]
    with (site / "stderr").open("ab") as log:
        return subprocess.Popen(argv, cwd=ROOT, stderr=log)


def wait_for_writer(site: Path, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 60
    while writer(location(site)) != process.pid:
        assert process.poll() is None, (site / "stderr").read_text()[-2000:]
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def some_job(rng: random.Random, number: int) -> Job:
    segments, nodes = rng.choice([(1, 1), (1, 1), (1, 2), (1, 4), (1, 7), (2, 3), (3, 6)])
    priority = rng.choice(["low", "low", "normal", "normal", "production"])
    shape = Shape(segments=segments, nodes_per_segment=nodes)
    return Job(name=f"job-{number}", kind="batch", shape=shape, priority=priority, durability=QUICK)


def test_200_kills_lose_duplicate_and_restart_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    policy = Policy(min_runtime_s=0.0, max_evictions_per_day=10**6, preemption_retry_s=0.05)
    first: list[Command] = [Configure(policy=policy), Deliver(domains=DOMAINS)]
    with Journal.open(location(tmp_path), writer=True) as journal:
        for command in first:
            journal.post(command)
    posted: list[str] = []
    for kill in range(KILLS):
        process = start(tmp_path, seed=kill)
        wait_for_writer(tmp_path, process)
        with Journal.open(location(tmp_path)) as journal:
            for _ in range(rng.randrange(4)):
                job = some_job(rng, len(posted))
                journal.post(Submit(jobs=(job,)))
                posted.append(job.name)
            if posted and rng.random() < 0.2:
                journal.post(Cancel(job=rng.choice(posted)))
        time.sleep(rng.uniform(0.0, 0.15))  # the kill comes at a random point of whatever is going on
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finish(tmp_path, posted)
    check_world(tmp_path / "world")
    check_journal(tmp_path, posted)


def finish(site: Path, posted: list[str]) -> None:
    """Let a last controller bring everything to its end."""
    process = start(site, seed=KILLS)
    wait_for_writer(site, process)
    deadline_s = time.monotonic() + 120
    while True:
        with Journal.open(location(site)) as journal:
            state = journal.load()
        if {gang.job for gang in state.ended.values()} == set(posted) and not state.gangs:
            break
        assert process.poll() is None, (site / "stderr").read_text()[-2000:]
        assert time.monotonic() < deadline_s, (
            f"{len(state.gangs)} gangs live, {len(state.ended)}/{len(posted)} ended"
        )
        time.sleep(0.1)
    daemon.stop(site)
    assert process.wait(30) == 0


def check_world(world: Path) -> None:
    """What really ran: every attempt once, one attempt of a gang at a time, one gang on a node at a time."""
    started: set[tuple[str, str]] = set()
    alive: dict[str, tuple[str, list[str]]] = {}
    held: dict[str, str] = {}
    for line in world.read_text().splitlines():
        kind, gang, attempt, *rest = line.split()
        if kind == "S":
            assert (gang, attempt) not in started, f"{gang} attempt {attempt} started twice"
            assert gang not in alive, f"two attempts of {gang} at once"
            started.add((gang, attempt))
            alive[gang] = (attempt, rest[1:])
            for node in rest[1:]:
                assert node not in held, f"{node} held by {held[node]} and {gang}"
                held[node] = gang
        elif gang in alive and alive[gang][0] == attempt:
            for node in alive.pop(gang)[1]:
                del held[node]
    assert not alive


def check_journal(site: Path, posted: list[str]) -> None:
    """Every submission once; the state is the fold of all events; the same inputs give the same decisions."""
    with Journal.open(location(site)) as journal:
        loaded = journal.load().snapshot()
        events = list(journal.events())
    submitted = [event.job.name for event in events if isinstance(event, Submitted)]
    assert sorted(submitted) == sorted(posted)
    state = FleetState()
    for recorded, plan, _ in replay(events, state=state):
        assert same(recorded, plan)
    assert state.snapshot() == loaded
