"""The controller as a process: it owns a site's journal, drives its executor and answers its inbox until it is told to
end. `run` is that process; the other functions are for those who start it, ask it and stop it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal, Self

import msgspec
from msgspec import Struct

from rackscale.commands import Command, Reply, Request, Shutdown
from rackscale.control import Controller, Executor
from rackscale.errors import ControllerError, JournalError, RackscaleError
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer

TURN_S = 0.1
"""The longest that a command waits for the executor's poll."""
BEAT_S = 1.0
"""Between two signs of life."""
WAIT_S = 0.02
"""Between two looks of those who wait for a controller."""
LOG_LINES = 15
"""How much of its log a controller that failed to start is quoted with."""

Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]


class Standing(Struct, frozen=True, kw_only=True):
    """How the controller of a site fares, as it says itself."""

    phase: Phase
    executor: str
    pid: int
    host: str
    since_s: float
    """When it started, seconds since the epoch."""
    detail: str = ""
    """Why it failed."""
    alive: bool = False
    """Whether the process exists. A `ready` one that does not was killed."""
    beat_s: float | None = None
    """Its last sign of life, seconds since the epoch; one every second."""


def standing(site: Path) -> Standing | None:
    """How the site's controller fares; None if there never was one. Creates nothing."""
    path = location(site)
    if not path.exists():
        return None
    try:
        with Journal.open(path) as journal:
            text = journal.get("controller")
            beat_s = journal.beaten_s()
    except JournalError:
        if writer(path) is not None:  # it is just being made
            return None
        raise
    if text is None:
        return None
    said = msgspec.json.decode(text, type=Standing)
    return msgspec.structs.replace(said, alive=writer(path) == said.pid, beat_s=beat_s)


# -- the process itself ----------------------------------------------------------------------------------------------


def run(
    site: Path,
    executor_factory: Callable[[], Executor],
    *,
    executor_name: str,
    initially: Sequence[Command] = (),
    snapshot_bytes: int | None = None,
) -> None:
    """Be the site's controller until SIGTERM, SIGINT or `Shutdown`. Gangs go on without it. Main thread only.

    `initially`: commands that must be answered well before it is ready (the site's documents). `snapshot_bytes`:
    least bytes of events between two snapshots of the state.

    Raises ControllerError if another one runs, or if gangs of another executor are still alive here; JournalError,
    ExecutorError if it can't go on. Nothing is half-written then.
    """
    with Journal.open(location(site), writer=True) as journal, _Stop() as stop:
        if snapshot_bytes is not None:
            journal.snapshot_bytes = snapshot_bytes
        process = _Process(journal, executor_name, stop)
        process.say("starting")
        outcome: Phase = "failed"
        detail = "an unexpected error; see controller.log"
        try:
            process.live(executor_factory, initially)
            outcome, detail = "stopped", ""
        except RackscaleError as error:
            detail = str(error)
            raise
        finally:
            process.leave(outcome, detail)


class _Stop:
    """SIGTERM and SIGINT as a flag that the loop looks at."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


class _Inbox:
    """Implements `control.Inbox`: looks at the rows only when somebody else wrote; takes nothing after `Shutdown`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._more = True
        """Whether rows may be waiting, so that we must look even if nobody wrote since."""
        self.shutdown: Shutdown | None = None
        for number, command in journal.pending():
            if isinstance(command, Shutdown):  # it was meant for the one before
                journal.append((), {number: Reply(outcome="unchanged", message="the controller had ended")})

    def requests(self) -> Iterable[Request]:
        self._more |= self._journal.changed()
        if not self._more or self.shutdown:
            return
        for number, command in self._journal.pending():
            if isinstance(command, Shutdown):
                self.shutdown = command
            yield Request(id=number, at_s=time.time(), command=command)
            if self.shutdown:
                return
        self._more = False


class _Process:
    """One life of a controller."""

    def __init__(self, journal: Journal, executor: str, stop: _Stop) -> None:
        self._journal, self._stop = journal, stop
        self._inbox = _Inbox(journal)
        self._standing = Standing(
            phase="starting",
            executor=executor,
            pid=os.getpid(),
            host=socket.gethostname(),
            since_s=time.time(),
        )

    def say(self, phase: Phase, detail: str = "") -> None:
        self._standing = msgspec.structs.replace(self._standing, phase=phase, detail=detail)
        self._journal.put("controller", msgspec.json.encode(self._standing).decode())

    def leave(self, phase: Phase, detail: str) -> None:
        """The last words; a journal that can't take them has said why already."""
        try:
            self.say(phase, detail)
        except JournalError:
            if phase == "stopped":
                raise

    def live(self, executor_factory: Callable[[], Executor], initially: Sequence[Command]) -> None:
        journal = self._journal
        state = journal.load()
        self._own(state)
        executor = executor_factory()
        try:
            executor.recover(state)
            controller = Controller(state, executor, journal, inbox=self._inbox)
            self._begin(controller, initially)
            self.say("ready")
            self._loop(controller)
            self.say("stopping")
        finally:
            executor.close()

    def _own(self, state: FleetState) -> None:
        """Gangs of one executor are out of another one's reach."""
        before, now = self._journal.get("executor"), self._standing.executor
        live = sum(bool(gang.binding) for gang in state.gangs.values())
        if before not in (None, now) and live:
            raise ControllerError(
                f"{live} gangs of this site run on {before!r}, which {now!r} can't reach",
                hint=f"start the controller on {before!r}, or stop them there first",
            )
        if before != now:
            self._journal.put("executor", now)

    def _begin(self, controller: Controller, initially: Sequence[Command]) -> None:
        """The first cycle, in which the site's documents take effect."""
        numbers = [self._journal.post(command) for command in initially]
        controller.cycle(())
        while any(self._journal.reply(n) is None for n in numbers) and not self._inbox.shutdown:
            controller.cycle(())
        replies = [self._journal.reply(number) for number in numbers]
        refused = [reply for reply in replies if reply is not None and reply.outcome == "refused"]
        if refused:
            message = "\n".join(reply.message for reply in refused)
            raise ControllerError(message, hint=refused[0].hint)

    def _loop(self, controller: Controller) -> None:
        journal, inbox, state = self._journal, self._inbox, controller.state
        beat_s = 0.0
        while not self._stop.asked:
            controller.step(deadline_s=time.time() + TURN_S)
            journal.snapshot(state)
            if inbox.shutdown and not (inbox.shutdown.stop_gangs and state.gangs):
                return
            if time.monotonic() - beat_s >= BEAT_S:
                journal.beat()
                beat_s = time.monotonic()


# -- for those who start, ask and stop it ----------------------------------------------------------------------------


def start(site: Path, argv: Sequence[str], *, timeout_s: float = 60.0) -> Standing:
    """Start `argv`, which must call `run`, detached from this terminal, and wait until it is ready.

    Its output goes to SITE/.rackscale/controller.log. Raises ControllerError, with the end of the log, if it does not
    become ready, and then ends it.
    """
    path = location(site)
    pid = writer(path)
    if pid is not None:
        raise ControllerError(
            f"a controller runs here already (pid {pid})", hint="stop it first: rackscale down"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = path.with_name("controller.log")
    begin = log.stat().st_size if log.exists() else 0
    pid = os.posix_spawnp(
        argv[0], list(argv), os.environ, setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if ended:
                raise ControllerError("the controller did not start:\n" + _tail(log, begin))
            with suppress(JournalError):  # the new process opens it too, and ends with the reason in its log
                found = standing(site)
                if found is not None and found.alive and found.phase == "ready":
                    return found
            time.sleep(WAIT_S)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)  # it has a session of its own, so Ctrl-C did not reach it
        os.waitpid(pid, 0)
        raise
    os.kill(pid, signal.SIGKILL)  # which a controller survives well: that is what the journal is for
    os.waitpid(pid, 0)
    raise ControllerError(f"the controller was not ready within {timeout_s:g} s:\n" + _tail(log, begin))


def _tail(log: Path, begin: int) -> str:
    """The last lines that were written after `begin`."""
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode(errors="replace").splitlines()
    return "\n".join([*lines[-LOG_LINES:], f"(all of it: {log})"])


def ask(site: Path, command: Command, *, timeout_s: float = 30.0) -> Reply:
    """Give a command to the running controller and wait for what becomes of it.

    Raises ControllerError if none runs, or if there is no answer in time: then the command is taken back, and nothing
    comes of it later.
    """
    path = location(site)
    if writer(path) is None:
        raise ControllerError(f"no controller runs for {site}", hint="start one: rackscale up")
    with Journal.open(path) as journal:
        number = journal.post(command)
        try:
            return journal.wait_reply(number, timeout_s)
        except ControllerError:
            if journal.withdraw(number):
                raise
            return journal.wait_reply(number, timeout_s)  # it came at the last moment
        except KeyboardInterrupt:
            journal.withdraw(number)
            raise


def stop(site: Path, *, stop_gangs: bool = False, timeout_s: float = 60.0) -> None:
    """End the controller and wait until it has. `stop_gangs`: cancel every job first.

    Raises ControllerError if none runs or if it has not ended in time.
    """
    ask(site, Shutdown(stop_gangs=stop_gangs), timeout_s=timeout_s).check()
    deadline_s = time.monotonic() + timeout_s
    while writer(location(site)) is not None:
        if time.monotonic() > deadline_s:
            raise ControllerError(f"the controller has not ended within {timeout_s:g} s")
        time.sleep(WAIT_S)
