"""The time of one attempt of a gang, until it is known what became of its work."""

from __future__ import annotations

from enum import Enum

from rackscale.events import GangEnded

Spent = dict[tuple[int, str, str], int]
"""(lot, state, cause) -> GPU-microseconds. A lot is an index into the ledger's lots."""


NOTHING: dict[int, int] = {}
"""Never written."""


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
        "_saved_us", "_saves_every_us", "_saves_from_us", "_since_us", "_spare_us", "_starting",
        "_stopped", "_until_us", "_worked_from_us", "_worked_on",
        "account", "gpus", "interrupted_us", "number", "on", "phase", "spare_gpus", "spares", "start_cause",
        "stop_cause",
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
        spares: list[tuple[int, int]],
        spare_gpus: dict[int, int],
        interrupted_us: int | None = None,
    ) -> None:
        self.number, self.account = number, account
        self.on, self.spares = on, spares
        """(domain, mask) where it works, and of nodes that it holds beside them."""
        self.gpus, self.spare_gpus = gpus, spare_gpus
        """Lot -> GPUs on nodes that are there and have not failed."""
        self.interrupted_us = interrupted_us
        """When the work that it goes on with was interrupted; None: it is the first, or works again."""
        self.phase = Phase.STARTING
        self.stop_cause = ""
        """Why it stopped working; empty: it did not, or by itself."""
        self.start_cause = cause
        self._since_us = now_us
        self._starting = self._stopped = self._spare_us = self._worked_on = NOTHING
        self._saves_from_us, self._saves_every_us = now_us, 0
        # Work from the first to the second time is kept by a checkpoint; from there to the third it is at risk.
        self._worked_from_us = self._saved_us = self._until_us = now_us

    def begin(self, now_us: int) -> None:
        """Time counts from now on, and earlier work as kept."""
        self._settle(now_us)
        self._starting = self._stopped = self._spare_us = NOTHING
        if self.phase is not Phase.WORKING:
            self._worked_on = NOTHING
        self._worked_from_us = self._saved_us = self._until_us = now_us

    def work(self, now_us: int, saves_every_us: int = 0, saves_from_us: int | None = None) -> None:
        """All ranks do productive work from now on, and keep it so often by themselves (0: `save` tells).

        `saves_from_us`: since when they do, if not from now on.
        """
        self._settle(now_us)
        self.interrupted_us = None
        self._saves_from_us = now_us if saves_from_us is None else saves_from_us
        self._saves_every_us = saves_every_us
        self.phase, self._worked_on = Phase.WORKING, self.gpus
        self._worked_from_us = self._saved_us = self._until_us = now_us

    def save(self, now_us: int) -> None:
        """A checkpoint is whole: it keeps all work so far."""
        self._saved_us = now_us if self.phase is Phase.WORKING else self._until_us

    def stop(self, now_us: int, cause: str) -> None:
        """No productive work from now on."""
        self._settle(now_us)
        self._interrupt(now_us)
        self.phase, self.stop_cause = Phase.STOPPED, cause

    def _interrupt(self, now_us: int) -> None:
        if self.interrupted_us is None:
            self.interrupted_us = now_us

    def resize(self, now_us: int, gpus: dict[int, int], spare_gpus: dict[int, int]) -> None:
        """Nodes under it failed or were repaired. An attempt that worked on them has been stopped before."""
        self._settle(now_us)
        self.gpus, self.spare_gpus = gpus, spare_gpus

    def charge(self, spent: Spent, now_us: int, ended: GangEnded | None = None) -> None:
        """Add all of its time until now, by state. `ended` tells what became of it; None: it is not known yet.

        While it is not known, work at risk counts as productive. A service's work is done when it is done.
        """
        self._settle(now_us)
        if ended is not None:
            self._interrupt(now_us)
        if ended is None:
            finished = saved = False
            kept = self.stop_cause != "node-failure"
        else:
            finished, saved = ended.outcome == "finished", ended.checkpointed
            kept = finished or saved
        cause = self.stop_cause or "program-failed"
        last_us = max(self._saved_us, self._saved_by_itself_us()) if self._saves_every_us else self._saved_us
        saved_us, risk_us = last_us - self._worked_from_us, self._until_us - last_us
        if kept or self.account.kind == "service":
            saved_us, risk_us = saved_us + risk_us, 0
        for lot, gpu_us in self._starting.items():
            _add(spent, (lot, "starting", self.start_cause), gpu_us)
        for lot, gpus in self._worked_on.items():
            _add(spent, (lot, "productive", ""), gpus * saved_us)
            _add(spent, (lot, "lost", cause), gpus * risk_us)
        for lot, gpu_us in self._stopped.items():
            if finished:
                _add(spent, (lot, "productive", ""), gpu_us)
            else:
                _add(spent, (lot, "checkpointing" if saved else "leaving", cause), gpu_us)
        for lot, gpu_us in self._spare_us.items():
            _add(spent, (lot, "spare", ""), gpu_us)

    def _saved_by_itself_us(self) -> int:
        """When the last checkpoint was whole that no event told of; only where it saves by itself."""
        worked_us = self._until_us - self._saves_from_us
        return max(self._worked_from_us, self._until_us - worked_us % self._saves_every_us)

    def _settle(self, now_us: int) -> None:
        passed_us = now_us - self._since_us
        if not passed_us:
            return
        self._since_us = now_us
        if self.spare_gpus:
            self._spare_us = _longer(self._spare_us, self.spare_gpus, passed_us)
        if self.phase is Phase.WORKING:
            self._until_us = now_us
        elif self.phase is Phase.STARTING:
            self._starting = _longer(self._starting, self.gpus, passed_us)
        else:
            self._stopped = _longer(self._stopped, self.gpus, passed_us)


def _longer(spent: dict[int, int], gpus: dict[int, int], passed_us: int) -> dict[int, int]:
    """Lot -> GPU-microseconds, with so much more time on these GPUs."""
    if not spent:
        return {lot: count * passed_us for lot, count in gpus.items()}
    for lot, count in gpus.items():
        spent[lot] = spent.get(lot, 0) + count * passed_us
    return spent


def _add(spent: Spent, key: tuple[int, str, str], gpu_us: int) -> None:
    if gpu_us:
        spent[key] = spent.get(key, 0) + gpu_us
