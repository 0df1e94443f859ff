"""The instance program by itself: one process group that runs a spec and accounts for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rackscale.programs import attempt
from rackscale.programs.attempt import Exit, InstanceSpec
from rackscale.runtime.launcher import command
from tests.conftest import Eventually
from tests.runtime.world import of_site

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def spec(tmp_path: Path) -> InstanceSpec:
    folder = tmp_path / ".rackscale" / "attempt"
    folder.mkdir(parents=True)
    return InstanceSpec(
        gang="g/0", job="g", attempt=2, started_s=1.0, node_rank=0, nodes=1, ranks_per_node=1, domain="r/us-003",
        node=7, run="true", workdir=str(tmp_path), folder=str(folder), checkpoint_dir=str(tmp_path / "ckpt"),
        output_dir=str(tmp_path / "out"), grace_s=10.0,
    )  # fmt: skip


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(spec: InstanceSpec, **env: str) -> subprocess.Popen[bytes]:
        attempt.write(spec.file("spec"), spec)
        started.append(subprocess.Popen(command(spec), start_new_session=True, env=os.environ | env))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
    for pid in of_site(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def end(start: Start) -> Callable[..., Exit]:
    def run(spec: InstanceSpec, **env: str) -> Exit:
        assert start(spec, **env).wait(20) == 0
        found = attempt.read_exit(spec)
        assert found is not None
        return found

    return run


def text(spec: InstanceSpec, rank: int = 0) -> str:
    log = Path(spec.folder, f"rank-{rank}.log")
    return log.read_text() if log.exists() else ""


DUMP = 'python -c "import json, os; print(json.dumps(dict(os.environ)))"'


def environ(spec: InstanceSpec, rank: int = 0) -> dict[str, str]:
    found: dict[str, Any] = json.loads(text(spec, rank))
    return found


def test_every_rank_gets_torchruns_environment_and_the_contract(
    spec: InstanceSpec, end: Callable[..., Exit]
) -> None:
    end(replace(spec, run=DUMP, ranks_per_node=2))
    first, second = environ(spec, 0), environ(spec, 1)
    assert [first[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == list("0022")
    assert [second[name] for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE")] == list("1101")
    assert (first["TORCHELASTIC_RESTART_COUNT"], first["RACKSCALE_ATTEMPT"]) == ("1", "2")
    assert (first["RACKSCALE_JOB"], first["RACKSCALE_GANG"]) == ("g", "g/0")
    assert (first["RACKSCALE_DOMAIN"], first["RACKSCALE_NODE"]) == ("r/us-003", "r/us-003/n07")
    assert first["RACKSCALE_CHECKPOINT_DIR"] == spec.checkpoint_dir
    assert first["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert first["RACKSCALE_HEARTBEAT_FILE"] != second["RACKSCALE_HEARTBEAT_FILE"]
    assert "RACKSCALE_PORT" not in first


def test_the_users_variables_win_over_inherited_ones_and_the_contract_over_both(
    spec: InstanceSpec, end: Callable[..., Exit]
) -> None:
    end(replace(spec, run=DUMP, envs={"COLOUR": "red", "RANK": "9"}), COLOUR="blue", SHAPE="round")
    found = environ(spec)
    assert (found["COLOUR"], found["SHAPE"], found["RANK"]) == ("red", "round", "0")


def test_python_is_the_one_that_runs_rackscale(spec: InstanceSpec, end: Callable[..., Exit]) -> None:
    end(replace(spec, run='python -c "import sys; print(sys.prefix)"'), PATH="/usr/bin:/bin")
    assert text(spec).strip() == sys.prefix


def test_programs_run_in_their_workdir(spec: InstanceSpec, end: Callable[..., Exit], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    end(replace(spec, run="pwd", workdir=str(tmp_path / "deep")))
    assert text(spec).strip() == str(tmp_path / "deep")


def test_a_missing_workdir_is_a_failure_that_says_so(spec: InstanceSpec, end: Callable[..., Exit]) -> None:
    assert end(replace(spec, workdir="/nowhere")).code == 126
    assert "/nowhere" in text(spec)


def test_a_service_gets_a_port_of_its_own(spec: InstanceSpec, end: Callable[..., Exit]) -> None:
    end(replace(spec, run=DUMP, service=True))
    found = environ(spec)
    assert found["RACKSCALE_PORT"] != found["MASTER_PORT"]


def test_node_ranks_meet_where_node_rank_0_says(
    spec: InstanceSpec, start: Start, eventually: Eventually
) -> None:
    specs = [replace(spec, node_rank=rank, nodes=2, run=DUMP) for rank in (0, 1)]
    late = start(specs[1])
    eventually(specs[1].file("claim").exists)
    start(specs[0]).wait(10)
    late.wait(10)
    assert environ(spec, 0)["MASTER_PORT"] == environ(spec, 1)["MASTER_PORT"]


def test_setup_runs_once_per_node_before_the_ranks(spec: InstanceSpec, end: Callable[..., Exit]) -> None:
    assert end(replace(spec, setup="echo made >> made", run="cat made", ranks_per_node=2)).code == 0
    assert text(spec, 0) == text(spec, 1) == "made\n"


def test_a_failing_setup_is_a_failure_and_no_rank_starts(
    spec: InstanceSpec, end: Callable[..., Exit]
) -> None:
    found = end(replace(spec, setup="echo no such thing; exit 3"))
    assert (found.code, found.rank) == (3, None)
    assert Path(found.log).read_text() == "no such thing\n"
    assert not Path(spec.folder, "rank-0.log").exists()


def test_a_failing_rank_takes_the_others_with_it(
    spec: InstanceSpec, end: Callable[..., Exit], tmp_path: Path
) -> None:
    found = end(replace(spec, run="[ $RANK = 1 ] && exit 7; sleep 1000", ranks_per_node=3))
    assert (found.code, found.rank, found.asked) == (7, 1, False)
    assert of_site(tmp_path) == []


def test_a_rank_that_is_killed_by_a_signal_is_a_failure(spec: InstanceSpec, end: Callable[..., Exit]) -> None:
    assert end(replace(spec, run="kill -9 $$")).code == 128 + signal.SIGKILL


def test_what_a_program_leaves_behind_is_killed_before_the_exit_is_written(
    spec: InstanceSpec, end: Callable[..., Exit], tmp_path: Path
) -> None:
    assert end(replace(spec, run="sleep 1000 & setsid sleep 1000 & exit 0")).code == 0
    assert of_site(tmp_path) == []


def test_a_second_process_leaves_the_spec_to_the_first(
    spec: InstanceSpec, start: Start, tmp_path: Path
) -> None:
    slow = replace(spec, run="echo once >> count; sleep 0.5")
    for process in [start(slow) for _ in range(4)]:
        process.wait(10)
    assert (tmp_path / "count").read_text() == "once\n"


def test_a_revoked_spec_never_starts(spec: InstanceSpec, start: Start) -> None:
    assert attempt.revoke(spec)
    start(spec).wait(10)
    assert not Path(spec.folder, "rank-0.log").exists()
    assert not attempt.claim(spec, attempt.Claim(pid=1))


CHILD_SAVES = """
python -c "
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print('saved'), exit(75)))
print('up', flush=True)
time.sleep(1000)"
echo never
"""


def test_a_shells_child_may_finish_its_checkpoint_after_the_shell_died(
    spec: InstanceSpec, start: Start, eventually: Eventually
) -> None:
    """Bash dies of SIGTERM at once; the program that it runs is what matters."""
    process = start(replace(spec, run=CHILD_SAVES))
    eventually(lambda: "up" in text(spec))
    process.terminate()
    assert process.wait(10) == 0
    assert text(spec) == "up\nsaved\n"
    found = attempt.read_exit(spec)
    assert found is not None
    assert (found.asked, found.late) == (True, False)


def test_who_does_not_leave_is_killed_after_the_grace_period(
    spec: InstanceSpec, start: Start, eventually: Eventually, tmp_path: Path
) -> None:
    attempt.write(Path(spec.folder, "leave.json"), attempt.Leave(at_s=time.time(), grace_s=0.3))
    process = start(replace(spec, run="trap '' TERM; echo deaf; sleep 1000"))
    eventually(lambda: text(spec))
    began_s = time.monotonic()
    process.terminate()
    process.wait(10)
    assert 0.3 <= time.monotonic() - began_s < 5
    found = attempt.read_exit(spec)
    assert found is not None
    assert (found.asked, found.late) == (True, True)
    assert of_site(tmp_path) == []


@pytest.mark.parametrize("phase", ["setup", "rendezvous"])
def test_leaving_before_the_ranks_are_up(
    phase: str, spec: InstanceSpec, start: Start, eventually: Eventually
) -> None:
    spec = replace(spec, setup="sleep 1000") if phase == "setup" else replace(spec, node_rank=1, nodes=2)
    process = start(spec)
    eventually(Path(spec.folder, "setup-0.log").exists if phase == "setup" else spec.file("claim").exists)
    process.terminate()
    process.wait(10)
    found = attempt.read_exit(spec)
    assert found is not None
    assert found.asked
    assert not spec.up.exists()


@pytest.mark.parametrize("whom", ["group", "leader"])
def test_a_killed_instance_takes_its_ranks_with_it_and_writes_nothing(
    whom: str, spec: InstanceSpec, start: Start, eventually: Eventually, tmp_path: Path
) -> None:
    process = start(replace(spec, run="exec sleep 1000", ranks_per_node=2))
    eventually(spec.up.exists)
    if whom == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait(10)
    eventually(lambda: not of_site(tmp_path))
    assert attempt.read_exit(spec) is None


def test_an_instance_may_die_with_the_agent_that_started_it(
    spec: InstanceSpec, eventually: Eventually, tmp_path: Path
) -> None:
    spec = replace(spec, run="exec sleep 1000", die_with_parent=True)
    attempt.write(spec.file("spec"), spec)
    start = f"import subprocess, time; subprocess.Popen({command(spec)!r}, start_new_session=True); time.sleep(1000)"
    agent = subprocess.Popen([sys.executable, "-c", start])
    eventually(spec.up.exists)
    agent.kill()
    agent.wait()
    eventually(lambda: not of_site(tmp_path))


def test_files_with_the_users_words_are_private_and_reprs_do_not_show_them(
    spec: InstanceSpec, end: Callable[..., Exit]
) -> None:
    spec = replace(spec, run="echo $TOKEN", envs={"TOKEN": "hush"})
    end(spec)
    assert "hush" in text(spec)
    for path in (spec.file("spec"), Path(spec.folder, "rank-0.log")):
        assert path.stat().st_mode & 0o077 == 0
    assert "hush" not in repr(spec)


def test_starting_an_instance_imports_little() -> None:
    """Every restart waits for it."""
    script = "import sys; import rackscale.programs.instance; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "msgspec", "subprocess", "asyncio", "ssl", "rackscale.events", "tempfile"}
