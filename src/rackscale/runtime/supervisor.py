"""One attempt of one gang, from the start of its instances until none of its processes is left.

A supervisor never waits: `step` looks at files and at which instances live, and answers with events. It keeps nothing
that it could not find again, so that a controller that was killed and started anew goes on where it was: what is
there is adopted, what is missing is started, and what was told may be told twice.

    UP       -> all instances exit 0: finished
             -> a rank fails, or heartbeats stop: FAILING (the rest is killed), then failed
             -> an instance dies without an exit: NodeFailed, BROKEN (the rest is killed at once)
             -> leave(): LEAVING
    BROKEN   -> waits for the decision: a successor takes over, or dismiss() -> LEAVING
    LEAVING  -> none is left: left, or finished after all
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path

from msgspec import Struct

from rackscale.events import GangEnded, Input, NodeFailed, Outcome
from rackscale.programs import attempt
from rackscale.programs.attempt import Exit, InstanceSpec, Killed, Leave
from rackscale.runtime.launcher import Launcher
from rackscale.runtime.pulse import Pulse


class Settings(Struct, frozen=True, kw_only=True):
    """Times of supervision, seconds. All assumed."""

    progress_s: float = 5.0
    """Between two `Progressed` of one gang."""
    quiet_s: float = 5.0
    """A program that writes no heartbeats counts as running when all its ranks have been up this long."""
    hang_s: float | None = 1800.0
    """A gang whose heartbeats stop for this long is killed as failed. None: never. Programs that never sent a
    heartbeat, and services, are not judged."""
    late_s: float = 5.0
    """After the grace period, before the controller kills what its instance should have killed."""


class Phase(Enum):
    UP = auto()
    FAILING = auto()
    BROKEN = auto()
    LEAVING = auto()
    OVER = auto()


class Supervisor:
    """Owns all instances of one attempt. `begin` or `adopt` comes first, then `step` again and again."""

    def __init__(
        self,
        launcher: Launcher,
        specs: Sequence[InstanceSpec],
        settings: Settings,
        *,
        known_s: float = 0.0,
        after: Sequence[Supervisor] = (),
    ) -> None:
        """`known_s`: checkpoints up to then are in the journal. `after`: attempts that must be gone first."""
        first = specs[0]
        self.gang, self.attempt, self._service = first.gang, first.attempt, first.service
        self._folder = Path(first.folder)
        self._launcher, self._settings, self._after = launcher, settings, tuple(after)
        self._specs = tuple(specs)
        self._there = {spec.node_rank: spec for spec in specs}
        """Instances that are not known to be gone."""
        self._exits: list[Exit] = []
        self._killed = attempt.read_killed(self._folder) or Killed(nodes=[])
        self._phase = Phase.UP
        self._pulse = Pulse(
            attempt.heartbeat_file(self._folder, 0), self.gang, self.attempt, progress_s=settings.progress_s,
            known_s=known_s,
        )  # fmt: skip
        self._told_running = False
        self._quiet_since_s: float | None = None
        self._failed_since_s: float | None = None
        self._deadline_s = float("inf")

    @property
    def over(self) -> bool:
        """Nothing of the attempt is left, and there is nothing more to tell."""
        return self._phase is Phase.OVER

    @property
    def gone(self) -> bool:
        """Nothing of the attempt is left."""
        return not self._there

    # -- what the executor asks --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start every instance that was not started yet, and adopt the others."""
        for spec in self._specs:
            attempt.write(spec.file("spec"), spec)
        if not self._after:
            self._start()

    def adopt(self) -> None:
        """Take over what was started and let nothing new start."""
        for spec in self._specs:
            attempt.revoke(spec)
        self._start()

    def _start(self) -> None:
        for spec in self._specs:
            self._launcher.start(spec)

    def leave(self, grace_s: float, now_s: float) -> None:
        """Ask all ranks to checkpoint and leave; a request that was made before counts from then."""
        leave = attempt.read_leave(self._folder)
        if leave is None:
            leave = Leave(at_s=now_s, grace_s=grace_s)
            attempt.write(self._folder / "leave.json", leave)
        self._deadline_s = leave.at_s + leave.grace_s + self._settings.late_s
        self._phase = Phase.LEAVING
        for spec in self._there.values():
            if not attempt.revoke(spec):
                self._launcher.terminate(spec)

    def dismiss(self) -> None:
        """Kill what is left and say that the gang left."""
        self.kill("dismissed")
        self._phase = Phase.LEAVING

    def abandon(self) -> None:
        """Kill what is left and say nothing more: a node failed and the journal knows, or a successor takes over."""
        if self._phase is not Phase.BROKEN:
            self.kill("a node failed")
        self._phase = Phase.BROKEN

    def kill(self, why: str) -> None:
        """SIGKILL to all instances. Written down first: dead without an exit must not look like a dead node."""
        self._killed = Killed(nodes=sorted({*self._killed.nodes, *self._there}), why=self._killed.why or why)
        attempt.write(self._folder / "killed.json", self._killed)
        for spec in self._there.values():
            attempt.revoke(spec)
        self._launcher.kill(self._specs)

    # -- what happened -----------------------------------------------------------------------------------------------

    def step(self, now_s: float) -> list[Input]:
        """Everything new, in order. Never blocks."""
        if self._after and not self._succeed(now_s):
            return []
        died = self._survey()
        # Heartbeats after the survey, so that what was said before an exit is told before the end.
        events = self._pulse.read(now_s)
        if self._phase in (Phase.UP, Phase.LEAVING):
            events += self._running(now_s)
        if died:
            events += self._lose(died, now_s)
        elif self._phase is Phase.UP:
            self._judge(now_s)
        elif self._phase is Phase.LEAVING and now_s > self._deadline_s and self._there:
            self._deadline_s = float("inf")
            self.kill("killed after the grace period")
        if self.gone:
            events += self._end(now_s)
        return events

    def _succeed(self, now_s: float) -> bool:
        """Whether the attempts before this one are gone; if so, start."""
        for before in self._after:
            before.step(now_s)
        if not all(before.gone for before in self._after):
            return False
        self._after = ()
        self._start()
        return True

    def _survey(self) -> list[InstanceSpec]:
        """Notice who is gone; answers those that went without an exit and were not killed by us."""
        died = []
        for spec in list(self._there.values()):
            if self._launcher.alive(spec):
                continue
            del self._there[spec.node_rank]
            found = attempt.read_exit(spec)
            if found is not None:
                self._exits.append(found)
            elif spec.node_rank not in self._killed.nodes and not attempt.revoked(spec):
                died.append(spec)
        return died

    def _lose(self, died: list[InstanceSpec], now_s: float) -> list[Input]:
        """Nodes died: the rest can't go on without them, and the sooner it is gone the sooner it is back."""
        if self._phase is Phase.UP:
            self._phase = Phase.BROKEN
        self.kill("a node failed")
        return [
            NodeFailed(
                at_s=now_s, domain=spec.domain, nodes=(spec.node,),
                cause=": ".join(["instance died", *last_lines(spec.log, lines=1)]),
            )
            for spec in died
        ]  # fmt: skip

    def _judge(self, now_s: float) -> None:
        """Whether the program failed or hangs."""
        if any(found.code for found in self._exits):
            if self._failed_since_s is None:
                self._failed_since_s = now_s
            # Ranks also fail because a peer's node died, and that may be seen later than their failure.
            if self.gone or now_s - self._failed_since_s >= self._launcher.detection_s:
                self._phase = Phase.FAILING
                self.kill("another rank failed")
        elif self._hangs(now_s):
            self._phase = Phase.FAILING
            self.kill(f"no heartbeat for {self._settings.hang_s:g} s")

    def _hangs(self, now_s: float) -> bool:
        hang_s, last_s = self._settings.hang_s, self._pulse.last_s
        return hang_s is not None and last_s is not None and not self._service and now_s - last_s > hang_s

    # -- running -----------------------------------------------------------------------------------------------------

    def _running(self, now_s: float) -> list[Input]:
        """GangRunning, once."""
        if self._told_running:
            return []
        beat = self._pulse.productive
        if beat is None and not self._seems_running(now_s):
            return []
        self._told_running = True
        return [self._pulse.running(now_s if beat is None else min(beat.at_s, now_s), self._url())]

    def _seems_running(self, now_s: float) -> bool:
        """For programs that don't say: a service answers on its port, others are up and quiet for a moment."""
        if self._pulse.speaks or not all(spec.up.exists() for spec in self._specs):
            return False
        if self._quiet_since_s is None:
            self._quiet_since_s = now_s
        if not self._service:
            return now_s - self._quiet_since_s >= self._settings.quiet_s
        there = attempt.read_rendezvous(self._folder)
        return there is not None and there.port is not None and answers(there.host, there.port)

    def _url(self) -> str | None:
        there = attempt.read_rendezvous(self._folder) if self._service else None
        return None if there is None else f"http://{there.host}:{there.port}"

    # -- end ---------------------------------------------------------------------------------------------------------

    def _end(self, now_s: float) -> list[Input]:
        """All instances are gone."""
        if self._phase in (Phase.BROKEN, Phase.OVER):
            return []
        outcome = self._outcome()
        self._phase = Phase.OVER
        events = self._pulse.flush(now_s)
        if outcome == "finished" and not self._told_running and not self._service:
            events.append(self._pulse.running(now_s, None))  # it ran, if only between two looks
        ended = GangEnded(
            at_s=now_s, gang=self.gang, attempt=self.attempt, outcome=outcome, detail=self._detail(outcome),
            checkpointed=self._pulse.left,
        )  # fmt: skip
        return [*events, ended]

    def _outcome(self) -> Outcome:
        complete = len(self._exits) == len(self._specs) and not any(found.code for found in self._exits)
        asked = any(found.asked for found in self._exits)
        if complete and (self._pulse.finished or not asked):
            return "finished"
        return "left" if self._phase is Phase.LEAVING else "failed"

    def _detail(self, outcome: Outcome) -> str:
        if outcome == "finished":
            return ""
        if outcome == "left":
            late = any(found.late for found in self._exits)
            return "killed after the grace period" if late else self._killed.why
        failures = [found for found in self._exits if found.code]
        if not failures:
            return self._killed.why or "stopped by a signal that did not come from the controller"
        return describe(min(failures, key=lambda found: found.at_s))


def describe(found: Exit) -> str:
    """A failure in one line: who, how, where the log is, and how the log ends."""
    who = "setup" if found.rank is None else f"rank {found.rank}"
    how = f"exited with {found.code}" if found.code <= 128 else f"was killed by signal {found.code - 128}"
    tail = " | ".join(last_lines(Path(found.log)))
    return f"{who} {how}; log {found.log}" + (f": {tail}" if tail else "")


def last_lines(log: Path, lines: int = 5, limit_bytes: int = 1000) -> list[str]:
    """The last lines of a log that say something."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - limit_bytes))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-lines:]


def answers(host: str, port: int) -> bool:
    """Whether anything listens there."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, port)) == 0
