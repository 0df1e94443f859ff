"""The part of every real executor that is the same: plans become supervised attempts, attempts become events.

On disk, under SITE/.rackscale (private to its owner, shared by all nodes):

    gangs/GANG/ATTEMPT/     one attempt (`programs/attempt.py`)
    live/                   one file per attempt that may still have processes: what to kill when nobody knows it
    checkpoints/JOB/        shared by all attempts of a job
    outputs/JOB/            results
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from urllib.parse import quote, unquote

from rackscale import events as ev
from rackscale.errors import ExecutorError
from rackscale.fleet.gangs import Gang, Status
from rackscale.fleet.occupancy import members
from rackscale.fleet.state import HELD, FleetState
from rackscale.programs import attempt
from rackscale.programs.attempt import InstanceSpec
from rackscale.runtime.launcher import Launcher, NodeChange, NodeRef
from rackscale.runtime.supervisor import Settings, Supervisor
from rackscale.workload import Job, Program

WAKE_S = 0.1
"""The longest that `poll` sleeps: heartbeats are files, which nobody can wait for on shared storage."""


class GangExecutor:
    """Implements `control.Executor` over a launcher."""

    def __init__(self, launcher: Launcher, site: Path, *, settings: Settings | None = None) -> None:
        """`site`: the folder of the documents; programs without a workdir run there."""
        self._launcher, self._settings = launcher, settings or Settings()
        self._site = site.resolve()
        self._root = self._site / ".rackscale"
        self._state = FleetState()
        self._met: set[int] = set()
        """Domains that the launcher knows."""
        self._gangs: dict[str, Supervisor] = {}
        self._strays: list[Supervisor] = []
        self._pending: list[ev.Input] = []
        for folder in (self._root, self._root / "gangs", self._root / "live"):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)

    # -- control.Executor --------------------------------------------------------------------------------------------

    def recover(self, state: FleetState) -> None:
        self._state = state
        now_s = time.time()
        self._meet()
        for spec, failed in zip(state.domains, state.failed, strict=True):
            for node in members(failed):
                self._launcher.repair(NodeRef(spec.name, node), now_s)
        held = [gang for gang in state.gangs.values() if gang.status in HELD]
        self._end_strangers({_live_name(gang.name, gang.attempt) for gang in held})
        for gang in held:
            self._resume(gang, now_s)

    def apply(self, plan: ev.Plan) -> None:
        now_s = time.time()
        self._meet()
        for action in plan.actions:
            match action:
                case ev.Start() | ev.Restart():
                    self._begin(self._state.gangs[action.gang])
                case ev.Preempt() | ev.Move() | ev.Stop():
                    if (supervisor := self._gangs.get(action.gang)) is not None:
                        supervisor.leave(action.grace_s, now_s)
                case ev.Requeue():
                    if (supervisor := self._gangs.get(action.gang)) is not None:
                        supervisor.dismiss()

    def poll(
        self,
        deadline_s: float | None,
        quiet_until_s: float | None = None,  # noqa: ARG002 - real events are few
    ) -> Sequence[ev.Input]:
        self._meet()
        events = self._collect()
        if not events:
            left_s = WAKE_S if deadline_s is None else deadline_s - time.time()
            self._launcher.wait(max(0.0, min(WAKE_S, left_s)))
            events = self._collect()
        return sorted(events, key=lambda event: event.at_s) or [ev.Ticked(at_s=time.time())]

    def close(self) -> None:
        self._launcher.close()

    def kill(self, patience_s: float = 10.0) -> None:
        """End every process of every gang now, without asking and without a word in the journal: to take a site
        down, or to clean up. Raises ExecutorError if something is left after `patience_s`."""
        for supervisor in self._gangs.values():
            self._abandon(supervisor)
        self._gangs.clear()
        end_s = time.time() + patience_s
        while self._strays:
            self._bury(time.time())
            if self._strays and time.time() > end_s:
                raise ExecutorError(f"{self._strays[0].gang} can't be killed")
            self._launcher.wait(0.02)

    # -- attempts ----------------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Tell the launcher of domains that were delivered since."""
        absent = self._state.machines.health.absent
        found = [d for d in range(len(absent)) if d not in self._met and not absent[d]]
        if new := [self._state.domains[d] for d in found]:
            self._launcher.add_domains(new)
            self._met.update(found)

    def _begin(self, gang: Gang) -> None:
        """Start the present attempt of a gang, once the attempt before it is gone."""
        if (before := self._gangs.pop(gang.name, None)) is not None:
            self._abandon(before)
        if (supervisor := self._supervise(gang)) is not None:
            supervisor.begin()

    def _resume(self, gang: Gang, now_s: float) -> None:
        """Go on with an attempt that another controller may have started."""
        supervisor = self._supervise(gang)
        if supervisor is None:
            return
        if gang.status in (Status.STARTING, Status.RUNNING):
            supervisor.begin()
            return
        supervisor.adopt()
        if gang.status is Status.BROKEN:
            supervisor.abandon()
        elif gang.cause == "no-replacement":
            supervisor.dismiss()
        else:
            supervisor.leave(self._state.jobs[gang.job].durability.grace_s, now_s)

    def _supervise(self, gang: Gang) -> Supervisor | None:
        job = self._state.jobs[gang.job]
        if job.program is None:
            why, now_s = "the job has no program: only a twin can run it", time.time()
            self._pending.append(
                ev.GangEnded(at_s=now_s, gang=gang.name, attempt=gang.attempt, outcome="failed", detail=why)
            )
            return None
        folder = self._folder(gang)
        (self._root / "live" / _live_name(gang.name, gang.attempt)).touch()
        supervisor = self._gangs[gang.name] = Supervisor(
            self._launcher,
            self._specs(gang, job, job.program, folder),
            self._settings,
            known_s=gang.checkpoint_s or 0.0,
            after=[stray for stray in self._strays if stray.gang == gang.name],
        )
        return supervisor

    def _specs(self, gang: Gang, job: Job, program: Program, folder: Path) -> list[InstanceSpec]:
        assert gang.started_s is not None
        nodes = [NodeRef(segment.domain, node) for segment in gang.binding for node in segment.nodes]
        gpus = self._state.domains[self._state.index[nodes[0].domain]].gpus_per_node
        ranks = program.ranks_per_node or (1 if job.cpu_only else gpus)
        shared = {kind: self._root / kind / job.name for kind in ("checkpoints", "outputs")}
        for path in shared.values():
            path.mkdir(parents=True, exist_ok=True)
        return [
            InstanceSpec(
                gang=gang.name, job=job.name, attempt=gang.attempt, started_s=gang.started_s, node_rank=rank,
                nodes=len(nodes), ranks_per_node=ranks, domain=node.domain, node=node.node,
                run=program.run, setup=program.setup, envs=program.envs, grace_s=job.durability.grace_s,
                workdir=str(self._site / (program.workdir or "")), folder=str(folder),
                checkpoint_dir=str(shared["checkpoints"]), output_dir=str(shared["outputs"]),
                service=job.kind == "service",
            )
            for rank, node in enumerate(nodes)
        ]  # fmt: skip

    def _folder(self, gang: Gang) -> Path:
        """The attempt's folder. One of an earlier journal, whose attempts had the same numbers, is put aside."""
        folder = self._root / "gangs" / gang.name / str(gang.attempt)
        spec = folder / "spec-0.json"
        if spec.exists() and attempt.read_spec(spec).started_s != gang.started_s:
            names = (folder.with_name(f"{folder.name}~{n}") for n in count(1))
            folder.rename(next(name for name in names if not name.exists()))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    # -- what nobody wants any more ----------------------------------------------------------------------------------

    def _end_strangers(self, known: set[str]) -> None:
        """Kill attempts that may have processes and that the journal does not know, or no longer."""
        for entry in (self._root / "live").iterdir():
            if entry.name in known:
                continue
            gang, _, number = entry.name.rpartition(".")
            folder = self._root / "gangs" / unquote(gang) / number
            specs = [attempt.read_spec(path) for path in folder.glob("spec-*.json")]
            if specs:
                stranger = Supervisor(self._launcher, specs, self._settings)
                stranger.adopt()
                self._abandon(stranger)
            else:
                entry.unlink()

    def _abandon(self, supervisor: Supervisor) -> None:
        supervisor.abandon()
        self._strays.append(supervisor)

    def _bury(self, now_s: float) -> None:
        for stray in self._strays:
            stray.step(now_s)
            if stray.gone:
                self._unlist(stray)
        self._strays = [stray for stray in self._strays if not stray.gone]

    def _unlist(self, supervisor: Supervisor) -> None:
        (self._root / "live" / _live_name(supervisor.gang, supervisor.attempt)).unlink(missing_ok=True)

    # -- events ------------------------------------------------------------------------------------------------------

    def _collect(self) -> list[ev.Input]:
        now_s = time.time()
        events, self._pending = self._pending, []
        self._bury(now_s)
        for name, supervisor in list(self._gangs.items()):
            events += supervisor.step(now_s)
            if supervisor.over:
                del self._gangs[name]
                self._unlist(supervisor)
        for change in self._launcher.node_changes(now_s):
            events.append(_as_event(change, now_s))
        for event in events:
            if isinstance(event, ev.NodeFailed):
                for node in event.nodes or ():
                    self._launcher.repair(NodeRef(event.domain, node), now_s)
        return events


def _as_event(change: NodeChange, now_s: float) -> ev.NodeFailed | ev.NodeRepaired:
    domain, node = change.node
    if change.usable:
        return ev.NodeRepaired(at_s=now_s, domain=domain, nodes=(node,))
    return ev.NodeFailed(at_s=now_s, domain=domain, nodes=(node,), cause=change.cause)


def _live_name(gang: str, number: int) -> str:
    return f"{quote(gang, safe='')}.{number}"
