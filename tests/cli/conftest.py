"""The command line as a process, and small sites for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rackscale.journal import location, writer
from tests.runtime.world import of_site

SCRIPT = Path(sys.executable).with_name("rackscale")
PATIENCE_S = 120.0
FLEET = """\
kind: Fleet
name: little
clusters:
  - {name: c, system: local, domains: 2, nodes: 2, gpus_per_node: 1}
---
kind: Queue
name: research
---
kind: Policy
min_runtime: 0s
preemption_retry: 500ms
"""
LOOP = """\
kind: Batch
name: NAME
queue: research
nodes: NODES
run: |
  for turn in $(seq TURNS); do echo "turn $turn of $RACKSCALE_JOB"; sleep 0.1; done
duration: 1m
grace: 2s
restart_time: 0s
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


def rackscale(
    *arguments: object, code: int | None = 0, cwd: Path | None = None, columns: int | None = None
) -> Answer:
    """Run the command line in a pipe. It ends with `code`, never with a traceback, and never paints a pipe."""
    env = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "FORCE_COLOR", "RACKSCALE_SITE"):
        env.pop(name, None)
    if columns is not None:
        env["COLUMNS"] = str(columns)
    done = subprocess.run(
        [str(SCRIPT), *map(str, arguments)], env=env, cwd=cwd, capture_output=True, text=True, check=False,
        timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    answer = Answer(done.returncode, done.stdout, done.stderr)
    said = answer.out + answer.err
    assert "Traceback" not in said, said
    assert "\x1b" not in said, said
    assert code is None or answer.code == code, f"{arguments} ended with {answer.code}: {said}"
    return answer


def loop(folder: Path, name: str, *, nodes: int = 1, turns: int = 6000) -> Path:
    """A document of a job that counts to `turns`, ten a second."""
    path = folder / f"{name}.yaml"
    text = LOOP.replace("NAME", name).replace("NODES", str(nodes)).replace("TURNS", str(turns))
    path.write_text(text)
    return path


def make_site(folder: Path) -> Path:
    site = folder / "site"
    site.mkdir()
    (site / "site.yaml").write_text(FLEET)
    return site


def end(site: Path) -> None:
    """Whatever a test left running: the controller first, so that it starts nothing more."""
    pid = writer(location(site)) if location(site).exists() else None
    for process in [*([] if pid is None else [pid]), *of_site(site)]:
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder with a fleet of two domains, two nodes each; nothing runs."""
    folder = make_site(tmp_path)
    yield folder
    end(folder)
