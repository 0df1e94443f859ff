"""Emulated instances on this machine: the embedded executor. Nothing else to install than what the gangs need.

An instance is a process group; the nodes and the "GPUs" of a domain are only names. Instances are children of the
controller that started them, or strangers that a controller before it left running: a pidfd watches both alike.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rackscale.events import DomainSpec
from rackscale.programs import attempt, processes
from rackscale.programs.attempt import Claim, InstanceSpec
from rackscale.programs.contract import HEARTBEAT_FILE
from rackscale.runtime.gangs import GangExecutor
from rackscale.runtime.launcher import NodeChange, NodeRef, command
from rackscale.runtime.supervisor import Settings

REPAIR_S = 30.0
"""Assumed: long enough to see the spare take over, short enough to wait for."""
SMALL = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
"""Where many small worlds share one machine: one thread per rank, and gloo on the loopback interface."""


class LocalExecutor(GangExecutor):
    """Runs gangs as processes of this machine. Implements `control.Executor`."""

    def __init__(self, site: Path, *, repair_s: float = REPAIR_S, settings: Settings | None = None) -> None:
        """`repair_s`: seconds until the node of a killed instance can be used again."""
        super().__init__(LocalLauncher(repair_s=repair_s), site, settings=settings)


class _Handle(NamedTuple):
    pid: int
    fd: int


class LocalLauncher:
    """Implements `launcher.Launcher` with processes of this machine. Linux only (pidfd, /proc)."""

    detection_s = 0.3

    def __init__(self, *, repair_s: float = REPAIR_S, environ: Mapping[str, str] | None = None) -> None:
        """`environ`: what instances are started with; None: this process's own, fit for many small worlds."""
        self._repair_s = repair_s
        self._repairs: dict[NodeRef, float] = {}
        self._handles: dict[tuple[str, int], _Handle] = {}
        self._watched = select.poll()
        self._env = SMALL | os.environ if environ is None else environ

    def add_domains(self, domains: Sequence[DomainSpec]) -> None:
        """Nothing to do: a node is started when a gang is."""

    # -- instances ---------------------------------------------------------------------------------------------------

    def start(self, spec: InstanceSpec) -> None:
        found = attempt.read_claim(spec)
        if found is None:
            self._watch(spec, self._spawn(spec))
        else:
            self._adopt(spec, found)

    def _spawn(self, spec: InstanceSpec) -> int:
        argv = command(spec)
        return os.posix_spawn(
            argv[0], argv, self._env, setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(spec.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )  # fmt: skip

    def _adopt(self, spec: InstanceSpec, found: Claim) -> bool:
        """Watch the process that claimed the spec, if it is still there."""
        if not lives(found):
            return False
        self._watch(spec, found.pid)
        if lives(found):  # still, now that the pidfd holds on to whoever has that pid
            return True
        self._forget(spec)
        return False

    def _watch(self, spec: InstanceSpec, pid: int) -> None:
        try:
            handle = _Handle(pid, os.pidfd_open(pid))
        except ProcessLookupError:
            return
        self._handles[_key(spec)] = handle
        self._watched.register(handle.fd, select.POLLIN)

    def _forget(self, spec: InstanceSpec) -> None:
        handle = self._handles.pop(_key(spec))
        self._watched.unregister(handle.fd)
        os.close(handle.fd)

    def alive(self, spec: InstanceSpec) -> bool:
        handle = self._handles.get(_key(spec))
        if handle is None:
            return False
        if not _readable(handle.fd):
            return True
        self._forget(spec)
        _reap(handle.pid)
        # The process that we started may have left because one of an earlier controller has the claim.
        found = attempt.read_claim(spec)
        return found is not None and found.pid not in (0, handle.pid) and self._adopt(spec, found)

    def terminate(self, spec: InstanceSpec) -> None:
        found = attempt.read_claim(spec)
        if found is not None and lives(found):
            _send(os.kill, found.pid, signal.SIGTERM)

    def kill(self, specs: Sequence[InstanceSpec]) -> None:
        for spec in specs:
            found = attempt.read_claim(spec)
            if found is not None and lives(found):
                _send(os.killpg, found.pid, signal.SIGKILL)
        # What a dead leader left in its group, and what left the group, is known by the environment it was born with.
        marks = frozenset(mark for spec in specs for mark in _marks(spec))
        for _ in range(3):  # again, for children that were born while we looked
            if not _sweep(marks):
                break

    # -- nodes -------------------------------------------------------------------------------------------------------

    def repair(self, node: NodeRef, now_s: float) -> None:
        self._repairs.setdefault(node, now_s + self._repair_s)

    def node_changes(self, now_s: float) -> Sequence[NodeChange]:
        due = [node for node, at_s in self._repairs.items() if at_s <= now_s]
        for node in due:
            del self._repairs[node]
        return [NodeChange(node=node, usable=True) for node in due]

    def wait(self, timeout_s: float) -> None:
        self._watched.poll(timeout_s * 1000)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle.fd)
        self._handles.clear()
        self._watched = select.poll()


def lives(found: Claim) -> bool:
    """Whether the very process that made the claim is running on this machine."""
    there = processes.find(found.pid)
    same = there is not None and not there.zombie and there.started_ticks == found.started_ticks
    return same and found.boot == processes.boot_id()


def _key(spec: InstanceSpec) -> tuple[str, int]:
    return spec.folder, spec.node_rank


def _marks(spec: InstanceSpec) -> list[bytes]:
    """What the environment of every process of the instance contains."""
    files = (attempt.heartbeat_file(Path(spec.folder), rank) for rank in spec.ranks)
    return [f"{HEARTBEAT_FILE}={file}".encode() for file in files]


def _sweep(marks: frozenset[bytes]) -> int:
    """SIGKILL to every process that was born with one of these environment entries; how many."""
    found = [p.pid for p in processes.every() if not p.zombie and marks & processes.environ(p.pid)]
    for pid in found:
        _send(os.kill, pid, signal.SIGKILL)
    return len(found)


def _send(send: Callable[[int, int], None], pid: int, number: int) -> None:
    """To a process or group that may go away by itself at this very moment."""
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)


def _readable(fd: int) -> bool:
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    return bool(ready.poll(0))


def _reap(pid: int) -> None:
    """Take the exit status of a child; strangers have parents of their own."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
