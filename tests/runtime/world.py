"""Real processes under the real control loop, on a small fleet."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rackscale import events as ev
from rackscale.control import Controller
from rackscale.fleet.gangs import Gang
from rackscale.fleet.state import FleetState
from rackscale.programs import attempt, processes
from rackscale.programs.attempt import InstanceSpec
from rackscale.runtime.local import LocalExecutor
from rackscale.runtime.supervisor import Settings
from rackscale.workload import Durability, Job, Policy, Program, Shape

STEPS = Path(__file__).with_name("steps.py")
E = TypeVar("E", bound=ev.Event)
QUICK = Settings(progress_s=0.0, quiet_s=0.3, late_s=2.0)


class World:
    """One domain of four nodes with one GPU each, and a controller in this process."""

    def __init__(
        self,
        site: Path,
        *,
        repair_s: float = 60.0,
        settings: Settings = QUICK,
        state: FleetState | None = None,
    ) -> None:
        """`state`: what an earlier controller of the same site knew."""
        self.site, self.events = site, list[ev.Event]()
        self.state = state or FleetState()
        self.executor = LocalExecutor(site, repair_s=repair_s, settings=settings)
        self.executor.recover(self.state)
        self.controller = Controller(self.state, self.executor, listeners=[self.events.append])
        if state is None:
            now_s = time.time()
            spec = ev.DomainSpec(name="r/us-000", system="local", nodes=4, gpus_per_node=1, cluster="r")
            policy = Policy(min_runtime_s=0.0, preemption_retry_s=0.5)
            self.tell(ev.Delivered(at_s=now_s, domains=(spec,)), ev.Configured(at_s=now_s, policy=policy))

    def tell(self, *inputs: ev.Event) -> None:
        self.controller.cycle(inputs)

    def submit(self, run: str, *, name: str = "a", nodes: int = 1, **more: Any) -> None:
        fields = {key: more.pop(key) for key in ("setup", "envs", "workdir", "ranks_per_node") if key in more}
        given = {
            "kind": "training",
            "durability": Durability(grace_s=5.0, restart_s=0.0, max_restarts=0),
            **more,
        }
        shape = Shape(nodes_per_segment=nodes)
        job = Job(name=name, shape=shape, program=Program(run=run, **fields), **given)
        self.tell(ev.Submitted(at_s=time.time(), job=job))

    def until(self, holds: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        """Run the controller until `holds` answers something true; that."""
        end_s = time.time() + timeout_s
        while not (answer := holds()):
            assert time.time() < end_s, f"it did not happen; events: {self.events}"
            self.controller.step(time.time() + 0.1)
        return answer

    def until_ended(self, name: str = "a", timeout_s: float = 20.0) -> str:
        self.until(lambda: name in self.state.ended, timeout_s)
        return self.state.ended[name].outcome

    def until_running(self, name: str = "a", number: int = 1) -> Gang:
        def runs() -> bool:
            gang = self.state.gangs.get(name)
            return gang is not None and gang.attempt == number and gang.running_s is not None

        self.until(runs)
        return self.state.gangs[name]

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def folder(self, name: str = "a", number: int = 1) -> Path:
        return self.site / ".rackscale" / "gangs" / name / str(number)

    def instance(self, node_rank: int, name: str = "a", number: int = 1) -> InstanceSpec:
        return attempt.read_spec(self.folder(name, number) / f"spec-{node_rank}.json")

    def pid(self, node_rank: int, name: str = "a", number: int = 1) -> int:
        """Of an instance program. A gang runs when its first rank does; another instance may not be there yet."""
        spec, end_s = self.instance(node_rank, name, number), time.time() + 20.0
        while (found := attempt.read_claim(spec)) is None:
            assert time.time() < end_s, f"instance {node_rank} was never there"
        return found.pid

    def log(self, rank: int = 0, name: str = "a", number: int = 1) -> str:
        return (self.folder(name, number) / f"rank-{rank}.log").read_text()

    def processes(self) -> list[int]:
        return of_site(self.site)


def of_site(site: Path) -> list[int]:
    """Every process that was started for a gang of this site, instance programs included."""
    mark = str(site / ".rackscale").encode()
    found = []
    for process in processes.every():
        told = any(mark in entry for entry in processes.environ(process.pid))
        if not process.zombie and (told or mark in _command(process.pid)):
            found.append(process.pid)
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
