"""The parts of the Ray executor that need no Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rackscale.errors import ExecutorError
from rackscale.programs import processes
from rackscale.runtime.launcher import NodeRef
from rackscale.runtime.ray.agent import plain_environ
from rackscale.runtime.ray.marks import MARK, end, kill_node, mark, of_node, of_site, site_id
from tests.conftest import Eventually

N3, N4 = NodeRef("a/us-001", 3), NodeRef("a/us-001", 4)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs on node 3: a shell, a child that left its session, and one with an empty environment."""
    script = "setsid sleep 1000 & env -i sleep 1000 & sleep 1000"
    shell = subprocess.Popen(["bash", "-c", script], env=os.environ | {MARK: mark(tmp_path, N3)})
    deadline_s = time.monotonic() + 5
    while len(of_node(tmp_path, N3)) < 4:
        assert time.monotonic() < deadline_s
    yield shell
    end(lambda: of_site(tmp_path))
    shell.wait()


def alive(pid: int) -> bool:
    found = processes.find(pid)
    return found is not None and not found.zombie


def test_a_node_is_killed_with_all_that_it_runs(node: subprocess.Popen[bytes], tmp_path: Path) -> None:
    there = of_node(tmp_path, N3)
    assert node.pid in there
    assert kill_node(tmp_path, *N3) == 4
    assert not any(map(alive, there))


def test_another_node_and_another_site_are_left_alone(node: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert of_node(tmp_path, N4) == []
    assert of_node(tmp_path.parent, N3) == []
    assert of_site(tmp_path) == of_node(tmp_path, N3)
    with pytest.raises(ExecutorError, match=r"a/us-001/n04 has no Ray node"):
        kill_node(tmp_path, *N4)
    assert alive(node.pid)


def test_a_node_can_be_made_to_hang(node: subprocess.Popen[bytes], tmp_path: Path) -> None:
    kill_node(tmp_path, *N3, signal.SIGSTOP)
    deadline_s = time.monotonic() + 5
    while {found.state for pid in of_node(tmp_path, N3) if (found := processes.find(pid))} != {"T"}:
        assert time.monotonic() < deadline_s


def test_node_1_is_not_taken_for_node_10(tmp_path: Path, eventually: Eventually) -> None:
    one, ten = NodeRef("a/us-001", 1), NodeRef("a/us-001", 10)
    sleep = subprocess.Popen(["sleep", "1000"], env=os.environ | {MARK: mark(tmp_path, ten)})
    try:
        # For a moment after its start the kernel shows a process without an environment.
        eventually(lambda: of_node(tmp_path, ten) == [sleep.pid])
        assert of_node(tmp_path, one) == []
    finally:
        sleep.kill()
        sleep.wait()


def test_a_site_has_one_short_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert site_id(tmp_path / "link") == site_id(tmp_path)
    assert len(site_id(tmp_path)) == 12


def test_users_programs_do_not_see_that_they_run_in_ray() -> None:
    node = {
        "HOME": "/root",
        "LD_PRELOAD": "libjemalloc.so",
        "RAY_AUTH_TOKEN_PATH": "/secret",
        "OMP_NUM_THREADS": "4",
    }
    worker = {
        "HOME": "/root", "RAY_AUTH_TOKEN_PATH": "/secret", "RAY_JOB_ID": "1", "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "", "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace",
    }  # fmt: skip
    assert plain_environ(worker, node) == {"HOME": "/root", "OMP_NUM_THREADS": "4"}
