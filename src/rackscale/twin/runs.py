"""One gang in simulated time: how much work it has, what checkpoints keep of it, and what happens to it next.

    waiting -> start -> starting -(restart_s)-> running -(work done)-> finished
                                       |  checkpoint every interval: the work so far is kept
                                       |  leave: checkpoints within the grace period, or is killed at its end
                                       |  break: the work since the last checkpoint is lost

Work is counted in seconds at throughput 1. Periodic checkpoints take no time from it (they are asynchronous) and no
event reports them: `GangRunning` says how often they come. A checkpoint on request takes `checkpoint_s`.
"""

from __future__ import annotations

from math import inf

from rackscale.events import Binding, Checkpointed, GangEnded, GangRunning, Input, Outcome
from rackscale.fleet.gangs import Gang, Status
from rackscale.twin.agenda import Agenda
from rackscale.workload import Job

OVERRUN = 0.1
"""A gang seen to work longer than its owner's estimate is taken to need this share of the estimate more (assumed)."""
NEVER = -1


class Run:
    """The truth about one gang, from its submission until it has ended."""

    __slots__ = (
        "_agenda", "_finish_s", "_interval_s", "_mark_s", "_reports", "_saves", "_stopped_s", "_throughput", "_ticket",
        "attempt", "binding", "cancelled", "gang", "job", "kept_s", "status", "true_s",
    )  # fmt: skip

    def __init__(self, agenda: Agenda, *, gang: str, job: Job, true_s: float | None) -> None:
        self.gang, self.job = gang, job
        self.true_s = inf if true_s is None else true_s
        """Work that it needs in all; infinite: it works until it is stopped."""
        self.kept_s = 0.0
        """Work that its last checkpoint keeps, up to the last change of its status."""
        self.status = Status.WAITING
        self.attempt = 0
        self.binding: Binding = ()
        self.cancelled = False
        self._interval_s = job.durability.checkpoint_interval_s
        self._throughput = 1.0
        self._mark_s = 0.0
        """When the work began that `kept_s` does not count."""
        self._finish_s = inf
        self._stopped_s = 0.0
        """When it stopped working to leave."""
        self._saves = False
        """Whether it leaves with a checkpoint."""
        self._reports = False
        """Whether each checkpoint is an event, since the fold was not told how often they come."""
        self._agenda = agenda
        self._ticket = NEVER
        """The one happening that counts; others of this gang are stale."""

    def start(self, at_s: float, attempt: int, binding: Binding, choice: int = 0) -> None:
        """Begin an attempt on these nodes, in this of the job's choices."""
        self.status, self.attempt, self.binding = Status.STARTING, attempt, binding
        self._throughput = self.job.offers[choice - 1].throughput if choice else 1.0
        self._finish_s, self._saves, self._reports = inf, False, False
        self._ticket = self._agenda.put(at_s + self.job.durability.restart_s, self)

    def leave(self, at_s: float, grace_s: float) -> None:
        """Asked to checkpoint and leave. A program that never checkpoints works on until it is killed."""
        running = self.status is Status.RUNNING
        self._keep(at_s)
        self.status, self._stopped_s = Status.LEAVING, at_s
        if not running:
            self._next(at_s)
        elif self._interval_s is None:
            self._next(min(self._finish_s, at_s + grace_s))
        else:
            checkpoint_s = self.job.durability.checkpoint_s
            self._finish_s = inf
            self._saves = checkpoint_s <= grace_s
            self._next(at_s + (checkpoint_s if self._saves else grace_s))

    def kill(self, at_s: float) -> None:
        """Whatever is left of it is gone at once, with nothing saved."""
        self.status, self._finish_s, self._saves = Status.LEAVING, inf, False
        self._next(at_s)

    def lose_node(self, at_s: float) -> None:
        """A node under it died: all ranks stop, also the writing of a checkpoint."""
        if self.status is Status.LEAVING:
            self.kill(at_s)
        else:
            self._keep(at_s)
            self.status, self._ticket = Status.BROKEN, NEVER

    def resume(self, gang: Gang, now_s: float) -> None:
        """Be where a live gang is now."""
        self.attempt, self.binding, self.status = gang.attempt, gang.binding, gang.status
        self.kept_s, self._throughput = gang.kept_now_s(now_s), gang.throughput
        durability = self.job.durability
        if gang.status is Status.STARTING:
            assert gang.started_s is not None
            self._next(max(now_s, gang.started_s + durability.restart_s))
        elif gang.status is Status.RUNNING:
            self._mark_s = now_s - gang.at_risk_s(now_s)
            self._finish_s = self._mark_s + (self.true_s - self.kept_s) / self._throughput
            if self._finish_s <= now_s:
                self._finish_s = now_s + OVERRUN * self.true_s / self._throughput
            self._reports = gang.saves_every_s is None and self._interval_s is not None
            self._work_on(now_s)
        elif gang.status is Status.LEAVING:
            self.cancelled, self._stopped_s = gang.cancelled, gang.since_s
            self._mark_s = gang.since_s - gang.at_risk_s(now_s)
            checkpoints = gang.running_s is not None and self._interval_s is not None
            self._saves = checkpoints and durability.checkpoint_s <= durability.grace_s
            takes_s = durability.checkpoint_s if self._saves else durability.grace_s
            self._next(max(now_s, gang.since_s + takes_s))

    def happen(self, at_s: float, ticket: int) -> Input | None:
        if ticket != self._ticket:
            return None
        if self.status is Status.STARTING:
            self.status, self._mark_s = Status.RUNNING, at_s
            self._finish_s = at_s + (self.true_s - self.kept_s) / self._throughput
            self._next(self._finish_s)
            return GangRunning(
                at_s=at_s, gang=self.gang, attempt=self.attempt, saves_every_s=self._interval_s
            )
        if self.status is Status.RUNNING:
            if at_s >= self._finish_s:
                return self._end(at_s, "finished")
            self.kept_s += (at_s - self._mark_s) * self._throughput
            self._mark_s = at_s
            self._work_on(at_s)
            return Checkpointed(at_s=at_s, gang=self.gang, attempt=self.attempt)
        assert self.status is Status.LEAVING, "only what starts, runs or leaves has a next thing"
        return self._end(at_s, "finished" if at_s >= self._finish_s else "left")

    def _keep(self, at_s: float) -> None:
        """Count what the periodic checkpoints until now keep, unless events report them."""
        if self.status is Status.RUNNING and self._interval_s is not None and not self._reports:
            saved_s = (at_s - self._mark_s) // self._interval_s * self._interval_s
            self.kept_s += saved_s * self._throughput
            self._mark_s += saved_s

    def _work_on(self, now_s: float) -> None:
        """The next thing of a gang at work."""
        next_s = self._finish_s
        if self._reports and self._interval_s is not None:
            next_s = min(next_s, max(now_s, self._mark_s + self._interval_s))
        self._next(next_s)

    def _next(self, at_s: float) -> None:
        self._ticket = self._agenda.put(at_s, self) if at_s < inf else NEVER

    def _end(self, at_s: float, outcome: Outcome) -> GangEnded:
        if self._saves:
            self.kept_s += (self._stopped_s - self._mark_s) * self._throughput
        self.status, self._ticket = Status.WAITING, NEVER
        return GangEnded(
            at_s=at_s, gang=self.gang, attempt=self.attempt, outcome=outcome, checkpointed=self._saves
        )
