"""An executor whose gangs live for milliseconds, in a world that survives its controller: one append-only file.

    S gang attempt end_s domain:node ...    started; it ends by itself at end_s
    E gang attempt outcome                  ended
    X reason                                a law was broken

The file, not the journal, is what a test believes. When the controller ends in peace, its state is left beside it.
Run as a program it is the real controller process on this executor: `python -m tests.laws.mayfly SITE SEED`.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rackscale import daemon
from rackscale.control import Executor
from rackscale.events import (
    Binding,
    GangEnded,
    GangRunning,
    Input,
    NodeFailed,
    NodeRepaired,
    Plan,
    Preempt,
    Requeue,
    Restart,
    Start,
    Stop,
    Ticked,
)
from rackscale.fleet.gangs import Status
from rackscale.fleet.state import HELD, FleetState

POLL_S = 0.004
LIFE_S = (0.01, 0.3)
FAILURES_PER_POLL = 0.01
REPAIR_S = 0.2


class Mayfly:
    """Implements `control.Executor`."""

    def __init__(self, world: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._world = world
        self._file = os.open(world, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._alive: dict[tuple[str, int], float] = {}
        """(gang, attempt) -> when it ends by itself."""
        self._started: set[tuple[str, int]] = set()
        self._ended: dict[tuple[str, int], str] = {}
        self._tell: list[tuple[str, int]] = []
        """Started, and not said to run yet."""
        self._repairs: dict[tuple[str, int], float] = {}
        self._again: list[Input] = []
        self._state = FleetState()
        self._mend()
        for line in world.read_text().splitlines():
            kind, gang, attempt, *rest = line.split()
            key = (gang, int(attempt))
            if kind == "S":
                self._started.add(key)
                self._alive[key] = float(rest[0])
            else:
                self._alive.pop(key, None)
                self._ended[key] = rest[0]

    def _mend(self) -> None:
        """Drop a line that a kill cut short: what it says did not happen."""
        text = self._world.read_bytes()
        os.ftruncate(self._file, text.rfind(b"\n") + 1)

    def _say(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def _start(self, gang: str, attempt: int, binding: Binding) -> None:
        if (gang, attempt) in self._started:
            self._say("X", f"{gang} attempt {attempt} started twice")
        for key in [key for key in self._alive if key[0] == gang]:  # what a restart leaves behind
            self._end(key, "superseded")
        end_s = time.time() + self._random.uniform(*LIFE_S)
        nodes = [f"{segment.domain}:{node}" for segment in binding for node in segment.nodes]
        self._say("S", gang, attempt, end_s, *nodes)
        self._started.add((gang, attempt))
        self._alive[gang, attempt] = end_s
        self._tell.append((gang, attempt))

    def _end(self, key: tuple[str, int], outcome: str) -> None:
        self._say("E", *key, outcome)
        self._alive.pop(key, None)
        self._ended[key] = outcome

    # -- control.Executor --------------------------------------------------------------------------------------------

    def recover(self, state: FleetState) -> None:
        self._state = state
        known = set()
        for gang in state.gangs.values():
            key = (gang.name, gang.attempt)
            if gang.status not in HELD:
                continue
            known.add(key)
            if key in self._ended:  # it ended, and nobody wrote it down
                self._again += self._events(key, self._ended[key])
            elif key not in self._started:
                self._start(*key, gang.binding)
            elif gang.status is Status.LEAVING:
                self._alive[key] = 0.0
            else:
                self._tell.append(key)
        for key in [key for key in self._alive if key not in known]:
            gang_now = state.gangs.get(key[0])
            if gang_now is None or gang_now.attempt <= key[1]:
                self._say("X", f"{key[0]} attempt {key[1]} runs and the journal does not know")
            self._end(key, "superseded")
        for d, spec in enumerate(state.domains):
            for node in range(spec.nodes):
                if state.failed[d] >> node & 1:
                    self._repairs[spec.name, node] = time.time() + REPAIR_S

    def apply(self, plan: Plan) -> None:
        for action in plan.actions:
            match action:
                case Start() | Restart():
                    self._start(action.gang, action.attempt, action.binding)
                case Preempt() | Stop() | Requeue():
                    key = (action.gang, action.attempt)
                    if key in self._alive:
                        self._alive[key] = 0.0

    def poll(self, *_: float | None) -> Sequence[Input]:  # it is never quiet for long
        time.sleep(POLL_S)
        now_s = time.time()
        events, self._again = self._again, []
        events += [GangRunning(at_s=now_s, gang=gang, attempt=attempt) for gang, attempt in self._tell]
        self._tell = []
        for key in [key for key, end_s in self._alive.items() if end_s <= now_s]:
            asked = self._alive[key] == 0.0
            outcome = "left" if asked else self._random.choice(("finished", "finished", "finished", "failed"))
            self._end(key, outcome)
            events += self._events(key, outcome)
        events += self._hardware(now_s)
        return events or [Ticked(at_s=now_s)]

    def close(self) -> None:
        self._world.with_name("live.json").write_bytes(self._state.snapshot())
        os.close(self._file)

    def _events(self, key: tuple[str, int], outcome: str) -> Iterator[Input]:
        if outcome != "superseded":
            at_s = time.time()
            yield GangEnded(at_s=at_s, gang=key[0], attempt=key[1], outcome=outcome)  # type: ignore[arg-type]

    def _hardware(self, now_s: float) -> Iterator[Input]:
        for ref in [ref for ref, at_s in self._repairs.items() if at_s <= now_s]:
            del self._repairs[ref]
            yield NodeRepaired(at_s=now_s, domain=ref[0], nodes=(ref[1],))
        if self._state.domains and self._random.random() < FAILURES_PER_POLL:
            spec = self._random.choice(self._state.domains)
            node = self._random.randrange(spec.nodes)
            if (spec.name, node) not in self._repairs:
                self._repairs[spec.name, node] = now_s + REPAIR_S
                yield NodeFailed(at_s=now_s, domain=spec.name, nodes=(node,))


def main(site: Path, seed: int) -> None:
    def make() -> Executor:
        return Mayfly(site / "world", seed)

    daemon.run(site, make, executor_name="mayfly", snapshot_bytes=50_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
