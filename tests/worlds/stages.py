"""Where a world can happen: in simulated time, in processes of this machine, on Ray nodes.

All that differs is how somebody outside the control loop makes something happen: `tell`, `kill`, `crash`.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from rackscale.control import Controller, Executor
from rackscale.events import GangEnded, Input, NodeFailed
from rackscale.fleet.state import FleetState
from rackscale.programs import attempt
from rackscale.runtime.local import LocalExecutor
from rackscale.runtime.supervisor import Settings
from rackscale.twin import TwinExecutor

NEVER_S = 1e6
"""Nodes come back when the world says so."""
SETTINGS = Settings(progress_s=0.5, quiet_s=0.3, late_s=5.0)


class Stage(Protocol):
    """One executor, and hands that reach behind it."""

    real: bool
    executor: Executor
    patience_s: float
    """How long one moment of a world may take, seconds on this stage's clock."""

    def now_s(self) -> float: ...

    def tell(self, controller: Controller, event: Input) -> None:
        """What people do. It is in the state when this returns."""

    def kill(self, controller: Controller, domain: str, node: int) -> None:
        """The node dies, with all that runs on it."""

    def crash(self, controller: Controller, gang: str) -> None:
        """The gang's program fails."""


class Twin:
    """Simulated time. One event a poll, so that a world can look at the state after each."""

    real, patience_s = False, 1000.0

    def __init__(self) -> None:
        self.twin = TwinExecutor(batch=1)
        self.executor: Executor = self.twin

    def now_s(self) -> float:
        return self.twin.now_s

    def tell(self, controller: Controller, event: Input) -> None:
        told = _Told(event)
        self.twin._agenda.put(event.at_s, told)
        while not told.happened:
            controller.step(event.at_s)

    def kill(self, controller: Controller, domain: str, node: int) -> None:
        self.tell(controller, NodeFailed(at_s=self.now_s(), domain=domain, nodes=(node,), cause="killed"))

    def crash(self, controller: Controller, gang: str) -> None:
        number = controller.state.gangs[gang].attempt
        failed = GangEnded(at_s=self.now_s(), gang=gang, attempt=number, outcome="failed", detail="crashed")
        self.tell(controller, failed)


class _Told:
    """An entry of the twin's agenda."""

    def __init__(self, event: Input) -> None:
        self.event, self.happened = event, False

    def happen(self, at_s: float, ticket: int) -> Input:  # noqa: ARG002
        self.happened = True
        return self.event


class Local:
    """Real processes, each node a group of them."""

    real, patience_s = True, 30.0

    def __init__(self, site: Path) -> None:
        self.folder = site / ".rackscale"
        self.executor: Executor = LocalExecutor(site, repair_s=NEVER_S, settings=SETTINGS)

    def now_s(self) -> float:
        return time.time()

    def tell(self, controller: Controller, event: Input) -> None:
        controller.cycle([event])

    def kill(self, controller: Controller, domain: str, node: int) -> None:
        for found in self._claims(controller.state, domain, node):
            os.killpg(found.pid, signal.SIGKILL)
            return
        raise AssertionError(f"nothing runs on {domain}/n{node:02d}")

    def _claims(self, state: FleetState, domain: str, node: int) -> Iterable[attempt.Claim]:
        for gang in state.gangs.values():
            for path in (self.folder / "gangs" / gang.name / str(gang.attempt)).glob("spec-*.json"):
                spec = attempt.read_spec(path)
                claim = attempt.read_claim(spec)
                if (spec.domain, spec.node) == (domain, node) and claim is not None:
                    yield claim

    def crash(self, controller: Controller, gang: str) -> None:
        (self.folder / "checkpoints" / controller.state.gangs[gang].job / "crash").touch()


class Ray(Local):
    """Ray nodes, emulated on this machine. All worlds share one cluster: a site, that starts empty each time."""

    patience_s = 90.0

    def __init__(self, site: Path) -> None:
        from rackscale.runtime.ray.executor import RayExecutor

        self.site, self.folder = site, site / ".rackscale"
        for name in ("checkpoints", "gangs", "outputs"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.executor = RayExecutor(site, repair_s=NEVER_S, settings=SETTINGS)

    def kill(self, controller: Controller, domain: str, node: int) -> None:  # noqa: ARG002
        from rackscale.runtime.ray.marks import kill_node

        kill_node(self.site, domain, node)
