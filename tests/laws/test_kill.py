"""The controller process is killed 200 times while it schedules: no job is lost, duplicated, or started twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rackscale import daemon
from rackscale.commands import Cancel, Configure, Deliver, Drain, Submit, Undrain
from rackscale.control import replay, same
from rackscale.events import Decided, DomainSpec, Drained, Event, NodeFailed, Submitted
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer
from rackscale.workload import Durability, Job, Policy, Shape

KILLS = 200
SEED = 20261123
"""Of the work, the failures and when the kills come. What a kill interrupts is up to the machine."""
WITNESSED = 10
"""Kills between two looks at the journal. After the others the next controller finds it as the kill left it."""
ROOT = Path(__file__).parents[2]
DOMAINS = tuple(
    DomainSpec(name=f"c/us-{i:03}", system="local", nodes=8, gpus_per_node=1, cluster="c", spares=1)
    for i in range(4)
)
POLICY = Policy(min_runtime_s=0.0, max_evictions_per_day=10**6, preemption_retry_s=0.05)
QUICK = Durability(grace_s=0.05, restart_s=0.0, max_restarts=2, retry_delay_s=0.1)


def test_200_kills_lose_duplicate_and_restart_nothing(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    rng, people, witness = random.Random(SEED), People(tmp_path, SEED), Witness(tmp_path)
    for kill in range(KILLS):
        process = start(tmp_path, seed=SEED + kill)
        wait_for_writer(tmp_path, process)
        people.ask()
        wait_for_a_moment(tmp_path, rng)
        assert process.poll() is None, (tmp_path / "stderr").read_text()[-2000:]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if kill % WITNESSED == 0:
            witness.look()
    finish(tmp_path, people)
    witness.look()
    assert witness.state.snapshot() == (tmp_path / "live.json").read_bytes()
    check_world(tmp_path / "world")
    check_promises(people, witness)
    check_it_was_hard(witness)


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


def wait_for_a_moment(site: Path, rng: random.Random) -> None:
    """Any moment, or the one in which something is written: to the journal, or by the executor that acts."""
    time.sleep(rng.uniform(0.0, 0.12))
    files = (site / "world", location(site).with_name("journal.db-wal"))
    aim = rng.choice((None, *files))
    if aim is None:
        return
    before, deadline_s = sizes(aim), time.monotonic() + 0.1
    while sizes(aim) == before and time.monotonic() < deadline_s:
        pass  # to sleep is to miss it


def sizes(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


class People:
    """Post to the inbox, whether a controller looks or not, and remember what they were promised."""

    def __init__(self, site: Path, seed: int) -> None:
        self._site, self._random = site, random.Random(seed)
        self.jobs: list[str] = []
        self.posted: dict[int, str] = {}
        """Number of a submission -> its job."""
        with Journal.open(location(site), writer=True) as journal:
            journal.post(Configure(policy=POLICY))
            journal.post(Deliver(domains=DOMAINS))

    def ask(self) -> None:
        rng = self._random
        with Journal.open(location(self._site)) as journal:
            for _ in range(rng.randrange(6)):
                job = self._job()
                self.posted[journal.post(Submit(jobs=(job,)))] = job.name
                if rng.random() < 0.1:  # somebody presses the key twice
                    self.posted[journal.post(Submit(jobs=(job,)))] = job.name
            if self.jobs and rng.random() < 0.5:
                journal.post(Cancel(job=rng.choice(self.jobs[-4:])))
            if rng.random() < 0.4:
                journal.post(rng.choice((Drain, Undrain, Undrain))(target=rng.choice(DOMAINS).name))

    def _job(self) -> Job:
        rng, name = self._random, f"job-{len(self.jobs)}"
        self.jobs.append(name)
        segments, nodes = rng.choice([(1, 1), (1, 1), (1, 2), (1, 4), (1, 7), (2, 3), (3, 6)])
        priority = rng.choice(["low", "low", "normal", "normal", "production"])
        shape = Shape(segments=segments, nodes_per_segment=nodes)
        return Job(name=name, kind="batch", shape=shape, priority=priority, durability=QUICK)

    def go_home(self) -> None:
        with Journal.open(location(self._site)) as journal:
            for domain in DOMAINS:
                journal.post(Undrain(target=domain.name))


class Witness:
    """Folds every event from the very first on, decides again, and compares."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self.state = FleetState()
        self.events: list[Event] = []

    def look(self) -> None:
        with Journal.open(location(self._site)) as journal:
            news = list(journal.events(len(self.events)))
            self.events += news
            for recorded, plan, _ in replay(news, state=self.state):
                assert same(recorded, plan)
            assert journal.load().snapshot() == self.state.snapshot()


def finish(site: Path, people: People) -> None:
    """Let a last controller bring everything to its end."""
    people.go_home()
    process = start(site, seed=SEED + KILLS)
    wait_for_writer(site, process)
    deadline_s = time.monotonic() + 120
    while True:
        with Journal.open(location(site)) as journal:
            state, waiting = journal.load(), [n for n in people.posted if journal.reply(n) is None]
        if not waiting and not state.gangs:
            break
        assert process.poll() is None, (site / "stderr").read_text()[-2000:]
        assert time.monotonic() < deadline_s, f"{len(state.gangs)} gangs live, {len(state.ended)} ended"
        time.sleep(0.1)
    daemon.stop(site)
    assert process.wait(30) == 0


def check_world(world: Path) -> None:
    """What really ran: every attempt once, one attempt of a gang at a time, one gang on a node at a time."""
    started: set[tuple[str, str]] = set()
    alive: dict[str, tuple[str, list[str]]] = {}
    held: dict[str, str] = {}
    for line in world.read_text().splitlines():
        assert line[0] != "X", line
        kind, gang, attempt, *rest = line.split()
        if kind == "S":
            assert (gang, attempt) not in started, f"{gang} attempt {attempt} started twice"
            assert gang not in alive, f"two attempts of {gang} at once"
            started.add((gang, attempt))
            alive[gang] = (attempt, rest[1:])
            for node in rest[1:]:
                assert node not in held, f"{node} held by {held[node]} and {gang}"
                held[node] = gang
        else:
            assert alive[gang][0] == attempt
            for node in alive.pop(gang)[1]:
                del held[node]
    assert not alive


def check_promises(people: People, witness: Witness) -> None:
    """Every job posted has lived and ended; one that was accepted once was submitted once."""
    submitted = Counter(event.job.name for event in witness.events if isinstance(event, Submitted))
    accepted: Counter[str] = Counter()
    with Journal.open(location(people._site)) as journal:
        for number, name in people.posted.items():
            reply = journal.reply(number)
            assert reply is not None
            assert reply.outcome in ("done", "unchanged") or "being cancelled" in reply.message
            accepted[name] += reply.outcome == "done"
    assert submitted == accepted
    assert set(submitted) == set(people.jobs) == set(witness.state.ended)
    assert all(ended.outcome in ("finished", "failed", "cancelled") for ended in witness.state.ended.values())


def check_it_was_hard(witness: Witness) -> None:
    """That there was something to get wrong."""
    kinds = Counter(type(event) for event in witness.events)
    actions = Counter(
        f"{type(action).__name__} {action.reason.code}"
        for event in witness.events
        if isinstance(event, Decided)
        for action in event.plan.actions
    )
    print(f"{len(witness.events)} events, {dict(actions)}")
    assert kinds[NodeFailed] > 20
    assert kinds[Drained] > 5
    assert actions["Start fits"] > KILLS
    rare = (
        "Start claim-complete",
        "Restart spare",
        "Preempt preempted-for",
        "Preempt drain",
        "Stop cancelled",
    )
    assert all(actions[kind] for kind in rare)
