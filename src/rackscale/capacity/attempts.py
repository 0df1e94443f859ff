"""The time of one attempt of a gang, until it is known what became of its work."""

from __future__ import annotations

from enum import Enum

from rackscale.events import GangEnded

Spent = dict[tuple[int, str, str], int]
"""(lot, state, cause) -> GPU-microseconds. A lot is an index into the ledger's lots."""


class Account:
    """Who is charged, and what of attempts that are over. `job` is empty where the ledger does not tell jobs apart."""

    __slots__ = ("job", "kind", "priority", "queue", "spent")

    def __init__(self, *, queue: str = "", priority: str = "", kind: str = "", job: str = "") -> None:
        self.queue, self.priority, self.kind, self.job = queue, priority, kind, job
        self.spent: Spent = {}


class Phase(Enum):
    STARTING = 1
    WORKING = 2
    STOPPED = 3
    """Broken, or told to leave; its nodes are still held."""


class Attempt:
    """Accumulates GPU-time by phase. A node that failed is the fleet's loss from then on, not the attempt's."""

    __slots__ = (
        "_saved_us", "_saves_every_us", "_since_us", "_start_cause", "_starting", "_stopped", "_until_us",
        "_worked_from_us", "_worked_on", "account", "gpus", "number", "on", "phase", "stop_cause",
    )  # fmt: skip

    def __init__(
        self,
        now_us: int,
        *,
        number: int,
        account: Account,
        cause: str,
        on: list[tuple[int, int]],
        gpus: dict[int, int],
    ) -> None:
        self.number, self.account = number, account
        self.on = on
        """(domain, mask) that it holds."""
        self.gpus = gpus
        """Lot -> GPUs on nodes that have not failed."""
        self.phase = Phase.STARTING
        self.stop_cause = ""
        """Why it stopped working; empty: it did not, or by itself."""
        self._start_cause = cause
        self._since_us = now_us
        self._starting: dict[int, int] = {}
        self._stopped: dict[int, int] = {}
        self._worked_on: dict[int, int] = {}
        # Work from the first to the second time is kept by a checkpoint; from there to the third it is at risk.
        self._worked_from_us = self._saved_us = self._until_us = now_us
        self._saves_every_us = 0

    def work(self, now_us: int, saves_every_s: float | None) -> None:
        """All ranks do productive work from now on, and checkpoint so often where no event reports it."""
        self._settle(now_us)
        self._saves_every_us = 0 if saves_every_s is None else max(1, round(saves_every_s * 1e6))
        self.phase, self._worked_on = Phase.WORKING, self.gpus
        self._worked_from_us = self._saved_us = self._until_us = now_us

    def save(self, now_us: int) -> None:
        """A checkpoint is whole: it keeps all work so far."""
        self._saved_us = now_us if self.phase is Phase.WORKING else self._until_us

    def stop(self, now_us: int, cause: str) -> None:
        """No productive work from now on."""
        self._settle(now_us)
        self.phase, self.stop_cause = Phase.STOPPED, cause

    def resize(self, now_us: int, gpus: dict[int, int]) -> None:
        """Nodes under it failed or were repaired. A working attempt has been stopped before."""
        self._settle(now_us)
        self.gpus = gpus

    def charge(self, spent: Spent, now_us: int, ended: GangEnded | None = None) -> None:
        """Add all of its time until now, by state. `ended` tells what became of it; None: it is not known yet.

        While it is not known, work at risk counts as productive. A service's work is done when it is done.
        """
        self._settle(now_us)
        if ended is None:
            finished = saved = False
            kept = self.stop_cause != "node-failure"
        else:
            finished, saved = ended.outcome == "finished", ended.checkpointed
            kept = finished or saved
        cause = self.stop_cause or "program-failed"
        saved_us, risk_us = self._saved_us - self._worked_from_us, self._until_us - self._saved_us
        if kept or self.account.kind == "service":
            saved_us, risk_us = saved_us + risk_us, 0
        for lot, gpu_us in self._starting.items():
            _add(spent, (lot, "starting", self._start_cause), gpu_us)
        for lot, gpus in self._worked_on.items():
            _add(spent, (lot, "productive", ""), gpus * saved_us)
            _add(spent, (lot, "lost", cause), gpus * risk_us)
        for lot, gpu_us in self._stopped.items():
            if finished:
                _add(spent, (lot, "productive", ""), gpu_us)
            else:
                _add(spent, (lot, "checkpointing" if saved else "leaving", cause), gpu_us)

    def _settle(self, now_us: int) -> None:
        if self.phase is Phase.WORKING:
            self._until_us = now_us
            if self._saves_every_us:
                self._saved_us = now_us - (now_us - self._worked_from_us) % self._saves_every_us
        else:
            spent = self._starting if self.phase is Phase.STARTING else self._stopped
            for lot, gpus in self.gpus.items():
                spent[lot] = spent.get(lot, 0) + gpus * (now_us - self._since_us)
        self._since_us = now_us


def _add(spent: Spent, key: tuple[int, str, str], gpu_us: int) -> None:
    if gpu_us:
        spent[key] = spent.get(key, 0) + gpu_us
