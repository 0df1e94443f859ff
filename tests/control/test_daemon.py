"""The controller as a process: started, asked, stopped, killed, and failing."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import statistics
import string
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rackscale import daemon
from rackscale.commands import Cancel, Deliver, Reply, Shutdown, Submit
from rackscale.errors import ControllerError, JournalError
from rackscale.events import Submitted
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer
from rackscale.programs import processes
from tests.conftest import Eventually
from tests.control.quiet import DOMAIN
from tests.scheduler.world import job


def argv(site: Path, fault: str = "none", name: str = "quiet") -> list[str]:
    return [sys.executable, "-m", "tests.control.quiet", str(site), fault, name]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A site whose controllers are killed at the end, also one that came late and has not given up yet."""
    yield tmp_path
    mine = [found.pid for found in processes.every() if found.parent == os.getpid() and not found.zombie]
    for pid in mine:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if str(tmp_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def load(site: Path) -> FleetState:
    with Journal.open(location(site)) as journal:
        return journal.load()


def end(site: Path, pid: int, number: signal.Signals) -> int:
    """Send a signal and wait; the exit code as the shell would see it."""
    os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    assert writer(location(site)) is None
    return os.waitstatus_to_exitcode(status)


# -- a day in its life -----------------------------------------------------------------------------------------------


def test_it_runs_detached_and_says_how_it_fares(site: Path, eventually: Eventually) -> None:
    assert daemon.standing(site) is None
    found = daemon.start(site, argv(site))
    assert (found.phase, found.executor, found.alive) == ("ready", "quiet", True)
    assert os.getsid(found.pid) == found.pid != os.getsid(0)
    for fd in (0, 1, 2):
        assert not Path(f"/proc/{found.pid}/fd/{fd}").readlink().is_relative_to("/dev/pts")
    log = site / ".rackscale" / "controller.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert list(load(site).index) == ["c/us-000"], "the site's documents are in force"

    def beaten_since() -> bool:
        now = daemon.standing(site)
        return now is not None and now.beat_s is not None and now.beat_s > (found.beat_s or 0.0)

    eventually(beaten_since)
    daemon.stop(site)
    os.waitpid(found.pid, 0)
    after = daemon.standing(site)
    assert after is not None
    assert (after.phase, after.alive) == ("stopped", False)


def test_commands_are_answered_quickly_and_waiting_costs_little(site: Path) -> None:
    found = daemon.start(site, argv(site))
    took_s = []
    for i in range(20):
        begin_s = time.monotonic()
        assert daemon.ask(site, Submit(jobs=(job(f"job-{i}"),))).outcome == "done"
        took_s.append(time.monotonic() - begin_s)
    assert statistics.median(took_s) < 0.3, took_s
    before_s, begin_s = cpu_s(found.pid), time.monotonic()
    time.sleep(1.5)  # that nothing happens is what is measured
    assert (cpu_s(found.pid) - before_s) / (time.monotonic() - begin_s) < 0.1


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_gangs_go_on(site: Path, number: signal.Signals) -> None:
    found = daemon.start(site, argv(site))
    daemon.ask(site, Submit(jobs=(job("a"),)))
    assert end(site, found.pid, number) == 0
    assert (site / ".rackscale" / "controller.log").read_text() == "closed\n"
    before = load(site)
    assert before.gangs["a"].binding
    found = daemon.start(site, argv(site))
    assert load(site).snapshot() == before.snapshot()
    daemon.stop(site, stop_gangs=True)
    os.waitpid(found.pid, 0)
    state = load(site)
    assert not state.gangs
    assert state.ended["a"].outcome == "cancelled"


def test_after_a_kill_it_is_not_alive_and_the_next_goes_on(site: Path) -> None:
    found = daemon.start(site, argv(site))
    daemon.ask(site, Submit(jobs=(job("a"),)))
    end(site, found.pid, signal.SIGKILL)
    now = daemon.standing(site)
    assert now is not None
    assert (now.phase, now.alive) == ("ready", False)
    with pytest.raises(ControllerError, match="no controller runs"):
        daemon.ask(site, Cancel(job="a"))
    with Journal.open(location(site)) as journal:
        number = journal.post(Submit(jobs=(job("b"),)))
        daemon.start(site, argv(site))
        assert journal.wait_reply(number, 10.0).outcome == "done", "posted while it was down"
    assert list(load(site).gangs) == ["a", "b"]


def test_a_shutdown_that_came_too_late_does_not_end_the_next_one(site: Path) -> None:
    found = daemon.start(site, argv(site))
    end(site, found.pid, signal.SIGKILL)
    with Journal.open(location(site)) as journal:
        number = journal.post(Shutdown(stop_gangs=True))
        daemon.start(site, argv(site))
        reply = journal.reply(number)
    assert reply is not None
    assert reply.outcome == "unchanged"
    assert daemon.ask(site, Submit(jobs=(job("a"),))).outcome == "done"


def test_what_comes_after_a_shutdown_waits_for_the_next(site: Path) -> None:
    found = daemon.start(site, argv(site))
    os.kill(found.pid, signal.SIGSTOP)
    with Journal.open(location(site)) as journal:
        journal.post(Shutdown())
        number = journal.post(Submit(jobs=(job("a"),)))
        os.kill(found.pid, signal.SIGCONT)
        os.waitpid(found.pid, 0)
        assert journal.reply(number) is None
        daemon.start(site, argv(site))
        assert journal.wait_reply(number, 10.0).outcome == "done"


def test_a_command_without_an_answer_is_taken_back(site: Path) -> None:
    found = daemon.start(site, argv(site))
    os.kill(found.pid, signal.SIGSTOP)
    with pytest.raises(ControllerError, match="no answer"):
        daemon.ask(site, Submit(jobs=(job("a"),)), timeout_s=0.2)
    os.kill(found.pid, signal.SIGCONT)
    assert daemon.ask(site, Submit(jobs=(job("b"),))).outcome == "done"
    assert list(load(site).gangs) == ["b"]


def test_commands_of_one_cycle_are_judged_one_after_the_other(site: Path) -> None:
    found = daemon.start(site, argv(site))
    os.kill(found.pid, signal.SIGSTOP)
    with Journal.open(location(site)) as journal:
        commands = (
            Submit(jobs=(job("a"),)),
            Submit(jobs=(job("a", 2),)),
            Cancel(job="a"),
            Deliver(domains=(DOMAIN,)),
        )
        numbers = [journal.post(command) for command in commands]
        os.kill(found.pid, signal.SIGCONT)
        outcomes = [journal.wait_reply(number, 10.0).outcome for number in numbers]
    assert outcomes == ["done", "refused", "done", "unchanged"]


# -- one at a time ---------------------------------------------------------------------------------------------------


def test_of_many_started_at_once_one_wins(site: Path) -> None:
    results: list[daemon.Standing | ControllerError] = []

    def attempt() -> None:
        try:
            results.append(daemon.start(site, argv(site)))
        except ControllerError as error:
            results.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pid = writer(location(site))
    assert pid is not None
    # Who lost sees either that its own process gave up, or that somebody else is ready first.
    for found in results:
        assert f"pid {pid}" in str(found) if isinstance(found, ControllerError) else found.pid == pid
    with pytest.raises(ControllerError, match=f"pid {pid}"):
        daemon.start(site, argv(site))


def test_another_executor_can_not_take_over_gangs(site: Path) -> None:
    found = daemon.start(site, argv(site))
    daemon.ask(site, Submit(jobs=(job("a"),)))
    end(site, found.pid, signal.SIGTERM)
    with pytest.raises(ControllerError, match="1 gangs of this site run on 'quiet', which 'other'"):
        daemon.start(site, argv(site, name="other"))
    found = daemon.start(site, argv(site))
    daemon.stop(site, stop_gangs=True)
    os.waitpid(found.pid, 0)
    assert daemon.start(site, argv(site, name="other")).executor == "other"


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("no-executor", "quiet: the port is taken"),
        ("bad-documents", "priority class 'normal' still has 1 live job"),
    ],
)
def test_what_prevents_it_from_starting_is_said(site: Path, fault: str, says: str) -> None:
    found = daemon.start(site, argv(site))
    daemon.ask(site, Submit(jobs=(job("a"),)))
    end(site, found.pid, signal.SIGTERM)
    with pytest.raises(ControllerError, match=says):
        daemon.start(site, argv(site, fault))
    now = daemon.standing(site)
    assert now is not None
    assert (now.phase, now.alive) == ("failed", False)
    assert says.removeprefix("quiet: ") in now.detail


def test_a_damaged_journal_prevents_it_from_starting(site: Path) -> None:
    location(site).parent.mkdir()
    location(site).write_bytes(b"garbage " * 1000)
    with pytest.raises(ControllerError, match=r"journal\.db is damaged"):
        daemon.start(site, argv(site))
    with pytest.raises(JournalError, match="damaged"):
        daemon.standing(site)


def test_a_mistake_of_ours_ends_it_with_a_trace_in_the_log(site: Path) -> None:
    with contextlib.suppress(ControllerError):  # it may be ready for a moment before its first poll
        os.waitpid(daemon.start(site, argv(site, "crash-in-poll")).pid, 0)
    assert "ZeroDivisionError: a mistake of ours" in (site / ".rackscale" / "controller.log").read_text()
    now = daemon.standing(site)
    assert now is not None
    assert (now.phase, now.alive) == ("failed", False)


def test_an_executor_that_can_not_act_ends_it_and_the_plan_is_not_lost(site: Path) -> None:
    found = daemon.start(site, argv(site, "error-in-apply"))
    with Journal.open(location(site)) as journal:
        number = journal.post(Submit(jobs=(job("a"),)))
        _, status = os.waitpid(found.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 1
        assert journal.reply(number) == Reply(outcome="done", message="submitted 1 job")
    now = daemon.standing(site)
    assert now is not None
    assert (now.phase, now.detail) == ("failed", "the engine is missing")
    assert load(site).gangs["a"].attempt == 1, "decided and written, for the next one to recover"


def test_a_full_disk_ends_it_with_nothing_half_written(site: Path) -> None:
    found = daemon.start(site, argv(site, "disk-full"))
    with Journal.open(location(site)) as journal:
        numbers = [
            journal.post(Submit(jobs=tuple(job(f"{n}-{i}") for i in range(40))))
            for n in string.ascii_lowercase
        ]
        _, status = os.waitpid(found.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 1
        done = [number for number in numbers if journal.reply(number) is not None]
        submitted = [e for e in journal.events() if isinstance(e, Submitted)]
        assert len(submitted) == 40 * len(done) < 40 * len(numbers), (
            "whole commands, with their replies, or nothing"
        )
        assert "quiet: " in (site / ".rackscale" / "controller.log").read_text()
        daemon.start(site, argv(site))
        assert all(journal.wait_reply(number, 10.0).outcome == "done" for number in numbers)
    state = load(site)
    assert len(state.jobs) == 40 * len(numbers)
