"""One gang in simulated time: how much work it has, what checkpoints keep of it, and what happens to it next.

    waiting -> start -> starting -(restart_s)-> running -(work done)-> finished
                                       |  checkpoint every interval: the work so far is kept
                                       |  leave: checkpoints within the grace period, or is killed at its end
                                       |  break: the work since the last checkpoint is lost

Periodic checkpoints take no time from the work (they are asynchronous); a checkpoint on request takes `checkpoint_s`.
"""

from __future__ import annotations

from math import inf

from rackscale.events import Binding, Checkpointed, GangEnded, GangRunning, Input, Outcome
from rackscale.fleet.gangs import Gang, Status
from rackscale.twin.agenda import Agenda
from rackscale.workload import Durability

OVERRUN = 0.1
"""A gang seen to work longer than its owner's estimate is taken to need this share of the estimate more (assumed)."""
NEVER = -1


class Run:
    """The truth about one gang, from its submission until it has ended."""

    __slots__ = (
        "_agenda", "_finish_s", "_interval_s", "_mark_s", "_saves", "_stopped_s", "_ticket", "attempt", "binding",
        "cancelled", "durability", "gang", "job", "kept_s", "status", "true_s",
    )  # fmt: skip

    def __init__(
        self,
        agenda: Agenda,
        *,
        gang: str,
        job: str,
        durability: Durability,
        true_s: float | None,
    ) -> None:
        self.gang, self.job, self.durability = gang, job, durability
        self.true_s = inf if true_s is None else true_s
        """Productive seconds it needs in all; infinite: it works until it is stopped."""
        self.kept_s = 0.0
        """Productive seconds that its last checkpoint keeps."""
        self.status = Status.WAITING
        self.attempt = 0
        self.binding: Binding = ()
        self.cancelled = False
        interval_s = durability.checkpoint_interval_s
        self._interval_s = inf if interval_s is None else interval_s
        self._mark_s = 0.0
        """When the work began that no checkpoint keeps yet."""
        self._finish_s = inf
        self._stopped_s = 0.0
        """When it stopped working to leave."""
        self._saves = False
        """Whether it leaves with a checkpoint."""
        self._agenda = agenda
        self._ticket = NEVER
        """The one happening that counts; others of this gang are stale."""

    def start(self, at_s: float, attempt: int, binding: Binding) -> None:
        self.status, self.attempt, self.binding = Status.STARTING, attempt, binding
        self._finish_s, self._saves = inf, False
        self._next(at_s + self.durability.restart_s)

    def leave(self, at_s: float, grace_s: float) -> None:
        """Asked to checkpoint and leave. A program that never checkpoints works on until it is killed."""
        running, self.status = self.status is Status.RUNNING, Status.LEAVING
        self._stopped_s = at_s
        if not running:
            self._next(at_s)
        elif self._interval_s == inf:
            self._next(min(self._finish_s, at_s + grace_s))
        else:
            self._finish_s = inf
            self._saves = self.durability.checkpoint_s <= grace_s
            self._next(at_s + (self.durability.checkpoint_s if self._saves else grace_s))

    def kill(self, at_s: float) -> None:
        """Whatever is left of it is gone at once, with nothing saved."""
        self.status, self._finish_s, self._saves = Status.LEAVING, inf, False
        self._next(at_s)

    def lose_node(self, at_s: float) -> None:
        """A node under it died: all ranks stop, also the writing of a checkpoint."""
        if self.status is Status.LEAVING:
            self.kill(at_s)
        else:
            self.status, self._ticket = Status.BROKEN, NEVER

    def resume(self, gang: Gang, now_s: float) -> None:
        """Be where a live gang is now."""
        self.attempt, self.binding, self.status = gang.attempt, gang.binding, gang.status
        self.kept_s = gang.kept_s
        durability = self.durability
        if gang.status is Status.STARTING:
            assert gang.started_s is not None
            self._next(max(now_s, gang.started_s + durability.restart_s))
        elif gang.status is Status.RUNNING:
            self._mark_s = now_s - gang.at_risk_s(now_s)
            self._finish_s = self._mark_s + self.true_s - self.kept_s
            if self._finish_s <= now_s:
                self._finish_s = now_s + OVERRUN * self.true_s
            self._next(min(self._finish_s, max(now_s, self._mark_s + self._interval_s)))
        elif gang.status is Status.LEAVING:
            self.cancelled, self._stopped_s = gang.cancelled, gang.since_s
            self._mark_s = gang.since_s - gang.at_risk_s(now_s)
            checkpoints = gang.running_s is not None and self._interval_s < inf
            self._saves = checkpoints and durability.checkpoint_s <= durability.grace_s
            takes_s = durability.checkpoint_s if self._saves else durability.grace_s
            self._next(max(now_s, gang.since_s + takes_s))

    def happen(self, at_s: float, ticket: int) -> Input | None:
        if ticket != self._ticket:
            return None
        if self.status is Status.RUNNING:
            if at_s >= self._finish_s:
                return self._end(at_s, "finished")
            self.kept_s += at_s - self._mark_s
            self._mark_s = at_s
            self._next(min(self._finish_s, at_s + self._interval_s))
            return Checkpointed(at_s=at_s, gang=self.gang, attempt=self.attempt)
        if self.status is Status.STARTING:
            self.status, self._mark_s = Status.RUNNING, at_s
            self._finish_s = at_s + self.true_s - self.kept_s
            self._next(min(self._finish_s, at_s + self._interval_s))
            return GangRunning(at_s=at_s, gang=self.gang, attempt=self.attempt)
        assert self.status is Status.LEAVING, "only what starts, runs or leaves has a next thing"
        return self._end(at_s, "finished" if at_s >= self._finish_s else "left")

    def _next(self, at_s: float) -> None:
        self._ticket = self._agenda.put(at_s, self) if at_s < inf else NEVER

    def _end(self, at_s: float, outcome: Outcome) -> GangEnded:
        if self._saves:
            self.kept_s += self._stopped_s - self._mark_s
        self.status, self._ticket = Status.WAITING, NEVER
        return GangEnded(
            at_s=at_s, gang=self.gang, attempt=self.attempt, outcome=outcome, checkpointed=self._saves
        )
