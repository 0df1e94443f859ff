"""The program that runs on one instance (node) for one attempt of one gang: what torchrun is to a node.

    python -P -m rackscale.programs.instance SPEC.json

It leads a session and process group of its own: to everything else that group is the instance, and `kill -9 -PGID`
is how an instance dies. It survives the controller that started it. What it is told and what it says lies in the
attempt's folder (`attempt.py`).

    start     take the claim, or leave if another process has it; run `setup`; start the ranks: `bash -c RUN`
    failure   one rank fails: the others are killed
    SIGTERM   the whole group gets it. A shell may die of it at once while its child writes a checkpoint: the instance
              waits for every process that descends from it, and kills what is left after the grace period
    end       nothing outlives the instance: leftovers are killed, then exit-N.json is written
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from rackscale.programs import attempt, processes
from rackscale.programs.attempt import Claim, Exit, InstanceSpec, Rendezvous

POLL_S = 0.01
"""How often a node rank looks for the rendezvous."""
PORTS = range(20_000, 32_768)
"""Where free ports are looked for: below the range that Linux gives to outgoing connections."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIGNALS = (signal.SIGTERM, signal.SIGCHLD)


class Instance:
    """Runs one spec to its end. Signals stay blocked and are taken one by one in `_wait`: there are no handlers."""

    def __init__(self, spec: InstanceSpec) -> None:
        self._spec = spec
        self._folder = Path(spec.folder)
        self._deadline_s: float | None = None
        """When (monotonic) to kill what is left; None: nobody asked to leave."""
        self._childless = True

    @property
    def _asked(self) -> bool:
        return self._deadline_s is not None

    def run(self) -> Exit:
        rendezvous = self._rendezvous()
        code, rank, log = self._setup(rendezvous) if self._spec.setup else (0, None, "")
        if code == 0 and not self._asked:
            code, rank, log = self._ranks(rendezvous)
        late = self._asked and not self._childless
        self._end_all()
        return Exit(at_s=time.time(), code=code, rank=rank, log=log, asked=self._asked, late=late)

    # -- phases ------------------------------------------------------------------------------------------------------

    def _rendezvous(self) -> Rendezvous:
        if self._spec.node_rank == 0:
            taken: set[int] = set()
            master_port = free_port(taken)
            port = free_port(taken) if self._spec.service else None
            found = Rendezvous(host=self._spec.host, master_port=master_port, port=port)
            attempt.write(self._folder / "rendezvous.json", found)
            return found
        while (there := attempt.read_rendezvous(self._folder)) is None:
            if self._asked:
                return Rendezvous(host=self._spec.host, master_port=0, port=None)
            self._wait(POLL_S)
        return there

    def _setup(self, rendezvous: Rendezvous) -> tuple[int, None, str]:
        log = self._folder / f"setup-{self._spec.node_rank}.log"
        env = self._environ(self._spec.ranks.start, rendezvous)
        code, _ = self._watch({self._spawn(self._spec.setup, env, log): 0})
        return code, None, str(log)

    def _ranks(self, rendezvous: Rendezvous) -> tuple[int, int | None, str]:
        ranks = {
            self._spawn(self._spec.run, self._environ(rank, rendezvous), self._log(rank)): rank
            for rank in self._spec.ranks
        }
        self._spec.up.touch()
        code, rank = self._watch(ranks)
        return code, rank, "" if rank is None else str(self._log(rank))

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"

    def _environ(self, rank: int, rendezvous: Rendezvous) -> dict[str, str]:
        """The controller's environment, the user's over it, the contract over both."""
        python = str(Path(sys.executable).parent)
        path = os.pathsep.join(filter(None, (python, os.environ.get("PATH", os.defpath))))
        # Output must not sit in a buffer while somebody follows the log, nor be lost with a killed rank.
        ours = {"PYTHONUNBUFFERED": "1", **os.environ, "PATH": path}
        return ours | self._spec.envs | self._spec.worker(rank, rendezvous).environ()

    # -- processes ---------------------------------------------------------------------------------------------------

    def _spawn(self, script: str, env: dict[str, str], log: Path) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._childless = False
            return pid
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
            os.dup2(1, 2)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(128 + signal.SIGKILL)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and programs inherit that
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.chdir(self._spec.workdir)
            os.execvpe("bash", ["bash", "-c", script], env)  # noqa: S606  # the shell is the program
        except OSError as error:
            os.write(2, f"rackscale: can't start: {error}\n".encode())
        finally:
            os._exit(126)

    def _watch(self, ranks: dict[int, int]) -> tuple[int, int | None]:
        """Until all have ended well, or the first fails (its code and rank); when asked to leave, until none is left
        or the grace period is over."""
        failed: tuple[int, int | None] = (0, None)
        while True:
            for pid, code in self._reap():
                rank = ranks.pop(pid, None)  # None: an orphan that one of them left behind
                if rank is not None and code != 0 and failed[0] == 0:
                    failed = code, rank
            if self._deadline_s is None:
                if failed[0] != 0 or not ranks:
                    return failed
                self._wait(None)
            else:
                left_s = self._deadline_s - time.monotonic()
                if self._childless or left_s <= 0:
                    return failed
                self._wait(left_s)

    def _reap(self) -> list[tuple[int, int]]:
        ended: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                return ended
            if pid == 0:
                self._childless = False
                return ended
            code = os.waitstatus_to_exitcode(status)
            ended.append((pid, code if code >= 0 else 128 - code))

    def _wait(self, timeout_s: float | None) -> None:
        """Sleep until a child ends, somebody asks to leave, or time is up."""
        taken: signal.struct_siginfo | None
        if timeout_s is None:
            taken = signal.sigwaitinfo(SIGNALS)
        else:
            taken = signal.sigtimedwait(SIGNALS, timeout_s)
        if taken is not None and taken.si_signo == signal.SIGTERM and not self._asked:
            self._ask()

    def _ask(self) -> None:
        leave = attempt.read_leave(self._folder)
        grace_s = self._spec.grace_s if leave is None else leave.grace_s
        self._deadline_s = time.monotonic() + grace_s
        os.killpg(os.getpgrp(), signal.SIGTERM)  # reaches us too, where it is pending and then nothing new

    def _end_all(self) -> None:
        """Kill all that descends from us. Orphans become our children, so this ends when there are none."""
        myself = os.getpid()
        while not self._childless:
            for child in processes.every():
                if child.parent == myself and not child.zombie:
                    os.kill(child.pid, signal.SIGKILL)
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            self._reap()


def free_port(taken: set[int]) -> int:
    """A port that nobody listens on now."""
    while True:
        port = PORTS[int.from_bytes(os.urandom(4), "big") % len(PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in taken:
            taken.add(port)
            return port


def prctl(option: int, value: int) -> None:
    import ctypes  # only where it is used: a millisecond that restarts need not wait for

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def main(spec_path: str) -> None:
    """Run the spec; return without doing anything if another process has claimed it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    spec = attempt.read_spec(Path(spec_path))
    if os.getpgrp() != os.getpid():
        os.setsid()
    if spec.die_with_parent:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    me = processes.find(os.getpid())
    assert me is not None
    host, boot = socket.gethostname(), processes.boot_id()
    if attempt.claim(spec, Claim(pid=me.pid, started_ticks=me.started_ticks, boot=boot, host=host)):
        attempt.write(spec.file("exit"), Instance(spec).run())


if __name__ == "__main__":
    main(sys.argv[1])
