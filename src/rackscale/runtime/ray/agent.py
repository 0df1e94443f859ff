"""What stands for one instance on its Ray node: a detached actor that starts and ends what runs there.

It is the local launcher with a longer arm. What it starts dies with it: a node that the cluster gave up, but that goes
on somewhere, must not train beside its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rackscale.programs import attempt, processes
from rackscale.programs.attempt import InstanceSpec
from rackscale.runtime.local import LocalLauncher
from rackscale.runtime.ray.marks import MARK

LOOK_S = 0.05
IDLE_LOOK_S = 0.25


class Agent:
    """The methods that launchers call over Ray. An asyncio actor: nothing here may block for long."""

    def __init__(self, host: str, mark: str) -> None:
        """`host`: the address under which other instances reach this one. `mark`: whose processes these are."""
        self._host = host
        environ = plain_environ(os.environ, _parents_environ()) | {MARK: mark}
        _end_leftovers(f"{MARK}={mark}".encode())
        self._launcher = LocalLauncher(environ=environ)
        self._there: dict[str, InstanceSpec] = {}
        self._gone: list[str] = []

    async def start(self, path: str) -> None:
        """Start the instance whose spec lies at `path`, unless this was asked before. What has left a claim there is
        adopted if it still lives."""
        if path in self._there or path in self._gone:
            return
        spec = replace(attempt.read_spec(Path(path)), host=self._host, die_with_parent=True)
        attempt.write(Path(path), spec)
        self._launcher.start(spec)
        self._there[path] = spec

    async def terminate(self, path: str) -> None:
        self._launcher.terminate(attempt.read_spec(Path(path)))

    async def kill(self, paths: list[str]) -> None:
        self._launcher.kill([attempt.read_spec(Path(path)) for path in paths])

    async def gone(self, known: int) -> list[str]:
        """Specs of instances that have ended, without the first `known` of them. Waits until there is one."""
        while len(self._gone) <= known:
            for path, spec in list(self._there.items()):
                if not self._launcher.alive(spec):
                    del self._there[path]
                    self._gone.append(path)
            await asyncio.sleep(LOOK_S if self._there else IDLE_LOOK_S)
        return self._gone[known:]

    async def ping(self) -> None:
        """Answering is the answer."""


def plain_environ(mine: Mapping[str, str], nodes: Mapping[str, str]) -> dict[str, str]:
    """What the node was started with and Ray has not touched: users' programs must not find themselves in a Ray
    worker (its CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS, LD_PRELOAD), nor see the cluster's token."""
    same = (name for name, value in nodes.items() if mine.get(name) == value)
    return {name: nodes[name] for name in same if not name.startswith("RAY_")}


def _parents_environ() -> dict[str, str]:
    """That of the raylet, which is every worker's parent."""
    entries = (os.fsdecode(entry).partition("=") for entry in processes.environ(os.getppid()))
    return {name: value for name, _, value in entries if name}


def _end_leftovers(marked: bytes) -> None:
    """An agent before this one may have died without its raylet; what it started must not hold on to the GPUs."""
    keep = {os.getpid(), os.getppid()}
    for process in processes.every():
        if process.pid in keep or process.parent in keep or process.zombie:
            continue
        if marked in processes.environ(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
