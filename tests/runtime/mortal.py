"""A controller process that dies at a chosen moment, as by kill -9. Run by test_recovery.py.

Usage: python mortal.py SITE [N]; N: die at the N-th moment at which it touches the world (absent: live to the end)

Prints the number of moments it lived through. The journal is a file of JSON lines, synced.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rackscale.control import Controller
from rackscale.events import Event, decode, encode
from rackscale.fleet.state import FleetState
from rackscale.programs import attempt
from rackscale.runtime.local import LocalExecutor, LocalLauncher
from tests.runtime.world import QUICK

site = Path(sys.argv[1])
last = int(sys.argv[2]) if len(sys.argv) > 2 else None
moments = itertools.count(1)
lived = 0


def moment() -> None:
    globals()["lived"] = next(moments)
    if lived == last:
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(do: Callable[..., Any]) -> Callable[..., Any]:
    """With a chance to die just before it and just after it."""

    def done(*args: Any) -> Any:
        moment()
        result = do(*args)
        moment()
        return result

    return done


class Log:
    def __init__(self, file: Path) -> None:
        self.file = file

    @mortal
    def append(self, events: Sequence[Event], _replies: object = ()) -> None:
        with self.file.open("ab") as stream:
            stream.write(b"".join(encode(event) + b"\n" for event in events))
            stream.flush()
            os.fsync(stream.fileno())


for name in ("start", "terminate", "kill"):
    setattr(LocalLauncher, name, mortal(getattr(LocalLauncher, name)))
for name in ("write", "revoke"):
    setattr(attempt, name, mortal(getattr(attempt, name)))

state, log = FleetState(), Log(site / "journal")
for line in log.file.read_bytes().splitlines():
    state.fold(decode(line))
executor = LocalExecutor(site, repair_s=60.0, settings=QUICK)
executor.recover(state)
controller = Controller(state, executor, log)
end_s = time.time() + 30
while state.gangs and time.time() < end_s:
    controller.step(time.time() + 0.1)
executor.close()
print(lived)
