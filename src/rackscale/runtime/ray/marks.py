"""Which processes of this machine belong to which emulated node.

Everything that an emulated Ray node runs, down to the ranks of its instances, inherits a mark in its environment. So
a node can be killed, and a site cleaned up, by any process, also when whoever started them is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rackscale.errors import ExecutorError
from rackscale.programs import processes
from rackscale.runtime.launcher import NodeRef

MARK = "RACKSCALE_RAY_NODE"
HEAD = "head"
PATIENCE_S = 10.0


def site_id(site: Path) -> str:
    """Short, the same every time, and different for another user: it names a folder under /tmp."""
    return hashlib.sha256(f"{os.getuid()}:{site.resolve()}".encode()).hexdigest()[:12]


def mark(site: Path, part: NodeRef | str) -> str:
    """The value of `MARK`; `part`: a node, or the head."""
    name = part if isinstance(part, str) else f"{part.domain}:{part.node}"
    return f"{site_id(site)}/{name}"


def of_node(site: Path, part: NodeRef | str) -> list[int]:
    """Processes of one emulated node (or of the head)."""
    exactly = f"{MARK}={mark(site, part)}".encode()
    return _marked(lambda entry: entry == exactly)


def of_site(site: Path) -> list[int]:
    """Processes of all emulated nodes of a site, and of its head."""
    start = f"{MARK}={site_id(site)}/".encode()
    return _marked(lambda entry: entry.startswith(start))


def _marked(belongs: Callable[[bytes], bool]) -> list[int]:
    """Those marked so, and all that descends from them: a program may have emptied its environment."""
    there = [process for process in processes.every() if not process.zombie]
    found = {process.pid for process in there if any(map(belongs, processes.environ(process.pid)))}
    while children := {p.pid for p in there if p.parent in found and p.pid not in found}:
        found |= children
    found.discard(os.getpid())
    return sorted(found)


def kill_node(site: Path, domain: str, node: int, number: signal.Signals = signal.SIGKILL) -> int:
    """Kill an emulated instance as a power cut would: its Ray node and all that runs there; how many processes.

    SIGSTOP makes it hang instead. Raises ExecutorError where nothing of it runs.
    """
    ref = NodeRef(domain, node)
    if number == signal.SIGKILL:
        killed = end(lambda: of_node(site, ref))
    else:
        found = of_node(site, ref)
        _signal(found, number)
        killed = len(found)
    if not killed:
        raise ExecutorError(f"{domain}/n{node:02d} has no Ray node on this machine")
    return killed


def end(look: Callable[[], list[int]], patience_s: float = PATIENCE_S) -> int:
    """SIGKILL to all that `look` finds, until it finds nothing more; how many processes.

    Raises ExecutorError if something is left after `patience_s`.
    """
    ended = set[int]()
    until_s = time.monotonic() + patience_s
    while found := look():
        if time.monotonic() > until_s:
            raise ExecutorError(f"processes {found} can't be killed")
        _signal(found, signal.SIGKILL)
        ended |= set(found)
        time.sleep(0.01)
    return len(ended)


def temp_of(site: Path) -> Path:
    """Where a site's emulated cluster keeps its sockets and logs."""
    return Path(f"/tmp/rackscale-{site_id(site)}")  # noqa: S108  # made private, or refused (`emulated.py`)


def stop(site: Path) -> None:
    """End a site's emulated cluster, whoever started it, and remove what it left. Nothing happens if there is none.

    Its controller must not run. Raises ExecutorError if something can't be killed.
    """
    end(lambda: of_site(site))
    shutil.rmtree(temp_of(site), ignore_errors=True)
    shutil.rmtree(site / ".rackscale" / "ray", ignore_errors=True)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
