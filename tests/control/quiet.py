"""A real controller process on an executor without processes: gangs run until they are told to leave.

`python -m tests.control.quiet SITE [FAULT] [NAME]`, where FAULT is one of `FAULTS` and NAME the executor's name.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rackscale import daemon
from rackscale.commands import Command, Configure, Deliver
from rackscale.errors import ExecutorError, RackscaleError
from rackscale.events import (
    DomainSpec,
    GangEnded,
    GangRunning,
    Input,
    Plan,
    Preempt,
    Requeue,
    Restart,
    Start,
    Stop,
    Ticked,
)
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import FleetState
from rackscale.workload import Policy, Queue

FAULTS = ("none", "no-executor", "crash-in-poll", "error-in-apply", "disk-full", "bad-documents")
DOMAIN = DomainSpec(name="c/us-000", system="s", nodes=8, gpus_per_node=1, cluster="c")


class Quiet:
    """Implements `control.Executor`."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._news: list[Input] = []

    def recover(self, state: FleetState) -> None:
        for gang in state.gangs.values():
            if gang.status is Status.LEAVING:
                self._end(gang.name, gang.attempt)

    def apply(self, plan: Plan) -> None:
        if self._fault == "error-in-apply":
            raise ExecutorError("the engine is missing")
        for action in plan.actions:
            match action:
                case Start() | Restart():
                    now_s = time.time()
                    self._news.append(GangRunning(at_s=now_s, gang=action.gang, attempt=action.attempt))
                case Preempt() | Stop() | Requeue():
                    self._end(action.gang, action.attempt)

    def _end(self, gang: str, attempt: int) -> None:
        self._news.append(GangEnded(at_s=time.time(), gang=gang, attempt=attempt, outcome="left"))

    def poll(self, deadline_s: float | None, _quiet_until_s: float | None = None) -> Sequence[Input]:
        if self._fault == "crash-in-poll":
            raise ZeroDivisionError("a mistake of ours")
        if not self._news:
            now_s = time.time()
            time.sleep(max(0.0, min(0.1, 0.1 if deadline_s is None else deadline_s - now_s)))
        news, self._news = self._news, []
        return news or [Ticked(at_s=time.time())]

    def close(self) -> None:
        print("closed", flush=True)


def main(site: Path, fault: str = "none", name: str = "quiet") -> None:
    assert fault in FAULTS

    def make() -> Quiet:
        if fault == "no-executor":
            raise ExecutorError("the port is taken")
        if fault == "disk-full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        return Quiet(fault)

    policy = Policy(priorities={} if fault == "bad-documents" else {"normal": 1})
    first: list[Command] = [Deliver(domains=(DOMAIN,)), Configure(policy=policy, queues=(Queue(name="q"),))]
    try:
        daemon.run(site, make, executor_name=name, initially=first)
    except RackscaleError as error:
        sys.exit(f"quiet: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
