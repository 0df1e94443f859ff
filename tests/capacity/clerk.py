"""An oracle for the ledger and its meter: it looks at each node every half second and writes down what it sees.

It shares no code with them, knows no masks and keeps lists of single half seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rackscale import events as ev
from rackscale.workload import Job

TICK_S = 0.5
CAUSES = {
    "preempted-for": "preempted", "reclaimed-for": "reclaimed", "shrunk-for": "shrunk", "moved-for": "moved",
    "drain": "drained", "no-replacement": "node-failure",
}  # fmt: skip
Node = tuple[str, int]
Cell = tuple[str, str]
"""(state, cause)"""


@dataclass
class Attempt:
    gang: str
    number: int
    kind: str
    cause: str
    works: set[Node]
    spares: set[Node]
    interrupted: int | None
    phase: str = "starting"
    stopped_by: str = ""
    saves_every: int = 0
    saved: int = 0
    """Half seconds of work that a reported checkpoint keeps."""
    seen: Counter[str] = field(default_factory=Counter)
    work: list[int] = field(default_factory=list)
    """GPUs that worked in each half second."""
    before: int = 0
    """Half seconds of work before the clerk began anew."""


class Clerk:
    def __init__(self) -> None:
        self.tick = 0
        self.specs: dict[str, ev.DomainSpec] = {}
        self.promised: dict[str, tuple[int, ev.DomainSpec]] = {}
        self.failed: set[Node] = set()
        self.drained: set[Node] = set()
        self.closed: set[tuple[Node, str, str]] = set()
        self.claims: dict[str, set[Node]] = {}
        self.bookings: dict[str, set[Node]] = {}
        self.kinds: dict[str, str] = {}
        self.classes: dict[str, tuple[str, str]] = {}
        self.without_gpus: set[str] = set()
        self.submitted: dict[str, int] = {}
        self.attempts: dict[str, Attempt] = {}
        self.holders: dict[Node, Attempt] = {}
        self.again: dict[str, tuple[str, int]] = {}
        self.keeps_spares = True
        self.cells: Counter[Cell] = Counter()
        self.delivered = self.missing = 0
        self.gar: list[float] = []
        self.gfr: list[float] = []
        self.waits: list[tuple[str, str, float]] = []
        """(priority, size class, seconds)"""
        self.recoveries: list[tuple[str, float]] = []

    # -- looking -----------------------------------------------------------------------------------------------------

    def look(self, until_s: float) -> None:
        while self.tick < round(until_s / TICK_S):
            self._look_once()
            self.tick += 1

    def begin(self, at_s: float) -> None:
        """Only what happens from now on counts, and earlier work is kept."""
        self.look(at_s)
        self.delivered = self.missing = 0
        for seen in (self.cells, self.gar, self.gfr, self.waits, self.recoveries):
            seen.clear()
        for attempt in self.attempts.values():
            attempt.seen.clear()
            attempt.before = len(attempt.work)

    def _look_once(self) -> None:
        self.holders = {node: a for a in self.attempts.values() for node in a.works | a.spares}
        held = in_service = fragmented = domains = 0
        for attempt in self.attempts.values():
            if attempt.phase == "working":
                attempt.work.append(0)
        for name, spec in self.specs.items():
            nodes = [(name, n) for n in range(spec.nodes) if not self._is_closed((name, n), "expired")]
            seen = {node: self._state(node) for node in nodes}
            kept = set().union(*self.claims.values(), *self.bookings.values())
            in_use = any(node in kept or node in self.holders for node in nodes)
            free = [node for node in nodes if seen[node][0] == "free"]
            spares = min(len(free), spec.spares if self.keeps_spares else 0)
            for i, node in enumerate(free):
                seen[node] = ("spare", "") if i < spares else ("stranded" if in_use else "idle", "")
            gpus = spec.gpus_per_node
            for node in nodes:
                self.delivered += gpus
                if seen[node][0] == "held":
                    held += gpus
                    self._held(node, gpus)
                else:
                    self.cells[seen[node]] += gpus
                in_service += gpus * (seen[node][0] not in ("drained", "unhealthy"))
            domains += bool(nodes)
            fragmented += any(state == "stranded" for state, _ in seen.values())
        if in_service:
            self.gar.append(held / in_service)
        if domains:
            self.gfr.append(fragmented / domains)
        self.missing += sum(
            spec.nodes * spec.gpus_per_node for ready, spec in self.promised.values() if ready <= self.tick
        )

    def _is_closed(self, node: Node, code: str) -> bool:
        return any(n == node and c == code for n, c, _ in self.closed)

    def _state(self, node: Node) -> Cell:
        if node in self.failed:
            return ("unhealthy", "")
        if node in self.holders:
            return ("held", "")
        if node in self.drained:
            return ("drained", "")
        for code in ("maintenance", "lemon"):
            if self._is_closed(node, code):
                return ("drained", code)
        if any(node in claim for claim in self.claims.values()):
            return ("claimed", "")
        return ("booked", "") if any(node in b for b in self.bookings.values()) else ("free", "")

    def _held(self, node: Node, gpus: int) -> None:
        attempt = self.holders[node]
        if node in attempt.spares:
            attempt.seen["spare"] += gpus
        elif attempt.phase == "working":
            attempt.work[-1] += gpus
        else:
            attempt.seen[attempt.phase] += gpus

    # -- hearing -----------------------------------------------------------------------------------------------------

    def __call__(self, event: ev.Event) -> None:
        self.look(event.at_s)
        match event:
            case ev.Configured():
                self.keeps_spares = event.policy.spares != "none"
            case ev.Announced():
                for spec in event.domains:
                    if spec.name not in self.specs:
                        self.promised.setdefault(spec.name, (round(event.ready_s / TICK_S), spec))
            case ev.Delivered():
                for spec in event.domains:
                    self.promised.pop(spec.name, None)
                    self.specs[spec.name] = spec
            case ev.Submitted():
                self._submitted(event.job)
            case ev.Cancelled() if event.job not in self.attempts:
                self._forget(event.job)
            case ev.Decided():
                for action in event.plan.actions:
                    self._act(action)
            case _:
                self._happen(event)

    def _submitted(self, job: Job) -> None:
        self.kinds[job.name], self.submitted[job.name] = job.kind, self.tick
        size = "1 node" if job.shape.nodes == 1 else "2-4 nodes"
        if job.cpu_only:
            self.without_gpus.add(job.name)
            size = "no GPUs"
        self.classes[job.name] = (job.priority, size)

    def _happen(self, event: ev.Event) -> None:
        match event:
            case ev.NodeFailed():
                lost = self._nodes(event.domain, event.nodes)
                self.failed |= lost
                self._lose(lost, "node-failure")
            case ev.NodeRepaired():
                self.failed -= self._nodes(event.domain, event.nodes)
            case ev.Drained():
                self.drained |= self._nodes(event.domain, event.nodes)
            case ev.Undrained():
                nodes = self._nodes(event.domain, event.nodes)
                self.drained -= nodes
                self.closed = {c for c in self.closed if not (c[0] in nodes and c[1] == "lemon")}
            case ev.GangRunning():
                self._running(event)
            case ev.Checkpointed():
                attempt = self._attempt(event.gang, event.attempt)
                if attempt:
                    attempt.saved = len(attempt.work)
            case ev.GangEnded():
                self._ended(event)
            case _:
                self._call_off(event)

    def _call_off(self, event: ev.Event) -> None:
        match event:
            case ev.Extended():
                self.closed = {c for c in self.closed if c[0][0] not in event.domains or c[1] != "expired"}
            case ev.Unplanned():
                self.closed = {c for c in self.closed if c[1:] != ("maintenance", event.maintenance)}
            case ev.Unbooked():
                self.bookings.pop(event.booking, None)

    def _running(self, event: ev.GangRunning) -> None:
        attempt = self._attempt(event.gang, event.attempt)
        if attempt and attempt.phase == "starting":
            attempt.phase = "working"
            attempt.saves_every = round((event.saves_every_s or 0) / TICK_S)
            if attempt.interrupted is not None:
                self.recoveries.append((attempt.cause, (self.tick - attempt.interrupted) * TICK_S))
                attempt.interrupted = None

    def _attempt(self, gang: str, number: int) -> Attempt | None:
        attempt = self.attempts.get(gang)
        return attempt if attempt and attempt.number == number else None

    def _ended(self, event: ev.GangEnded) -> None:
        attempt = self._attempt(event.gang, event.attempt)
        if not attempt:
            return
        finished, saved = event.outcome == "finished", event.checkpointed
        self._charge(attempt, kept=finished or saved, finished=finished, saved=saved)
        del self.attempts[event.gang]
        cause = attempt.stopped_by or "program-failed"
        if cause == "cancelled" or (finished and attempt.kind != "service"):
            self._forget(event.gang)
        else:
            since = self.tick if attempt.interrupted is None else attempt.interrupted
            self.again[event.gang] = (cause, since)

    def _charge(self, attempt: Attempt, *, kept: bool, finished: bool = False, saved: bool = False) -> None:
        safe = attempt.saved
        if attempt.saves_every:
            safe = max(safe, len(attempt.work) // attempt.saves_every * attempt.saves_every)
        if kept or attempt.kind == "service":
            safe = len(attempt.work)
        cause = attempt.stopped_by or "program-failed"
        safe = max(safe, attempt.before)
        self.cells["productive", ""] += sum(attempt.work[attempt.before : safe])
        self.cells["lost", cause] += sum(attempt.work[safe:])
        self.cells["starting", attempt.cause] += attempt.seen["starting"]
        self.cells["spare", ""] += attempt.seen["spare"]
        stopped = ("productive", "") if finished else ("checkpointing" if saved else "leaving", cause)
        self.cells[stopped] += attempt.seen["stopped"]

    def _forget(self, gang: str) -> None:
        for kept in (self.claims, self.again, self.submitted):
            kept.pop(gang, None)

    # -- acting ------------------------------------------------------------------------------------------------------

    def _act(self, action: ev.Action) -> None:
        match action:
            case ev.Restart():
                attempt = self.attempts[action.gang]
                self._stop(attempt, attempt.stopped_by or "node-failure")
                self._charge(attempt, kept=attempt.stopped_by != "node-failure")
                assert attempt.interrupted is not None
                self.again[action.gang] = (attempt.stopped_by, attempt.interrupted)
                self._start(action)
            case ev.Start():
                self._start(action)
            case ev.Preempt() | ev.Stop() | ev.Requeue() | ev.Move():
                self._stop(self.attempts[action.gang], CAUSES.get(action.reason.code, action.reason.code))
                if isinstance(action, ev.Move):
                    self.claims[action.gang] = self._held_nodes(action.gang, action.binding)
            case ev.Claim():
                self.claims[action.gang] = self._held_nodes(action.gang, action.binding)
            case ev.Unclaim():
                self.claims.pop(action.gang, None)
            case ev.Refuse():
                self._forget(action.job)
            case ev.Hold():
                self.bookings[action.booking] = self._held_nodes("", action.binding)
            case ev.Free():
                self.bookings.pop(action.booking, None)
            case ev.Close() | ev.Open():
                self._close_or_open(action)

    def _close_or_open(self, action: ev.Close | ev.Open) -> None:
        nodes = self._nodes(action.domain, action.nodes)
        code, window = action.reason.code, action.reason.window or ""
        if isinstance(action, ev.Open):
            self.closed -= {(node, code, window) for node in nodes}
            return
        if code == "expired":
            self._lose(nodes, "expired")
        self.closed |= {(node, code, window) for node in nodes}

    def _start(self, action: ev.Start | ev.Restart) -> None:
        gang = action.gang
        self.claims.pop(gang, None)
        cause, since = self.again.pop(gang, ("first-start", None))
        submitted = self.submitted.pop(gang, None)
        if submitted is not None:
            self.waits.append((*self.classes[gang], (self.tick - submitted) * TICK_S))
        binding = () if gang in self.without_gpus else action.binding
        self.attempts[gang] = Attempt(
            gang, action.attempt, self.kinds[gang], cause, {(s.domain, n) for s in binding for n in s.nodes},
            {(s.domain, n) for s in binding for n in s.spares}, since,
        )  # fmt: skip

    def _held_nodes(self, gang: str, binding: ev.Binding) -> set[Node]:
        if gang in self.without_gpus:
            return set()
        return {(s.domain, n) for s in binding for n in (*s.nodes, *s.spares)}

    def _stop(self, attempt: Attempt, cause: str) -> None:
        if attempt.interrupted is None:
            attempt.interrupted = self.tick
        attempt.phase, attempt.stopped_by = "stopped", cause

    def _lose(self, nodes: set[Node], cause: str) -> None:
        for attempt in self.attempts.values():
            if attempt.phase != "stopped" and attempt.works & nodes:
                self._stop(attempt, cause)

    def _nodes(self, domain: str, nodes: tuple[int, ...] | None) -> set[Node]:
        return {(domain, n) for n in (range(self.specs[domain].nodes) if nodes is None else nodes)}

    # -- answers -----------------------------------------------------------------------------------------------------

    def account(self, until_s: float) -> dict[Cell, int]:
        """(state, cause) -> GPU-microseconds; call it once, at the end."""
        self.look(until_s)
        for attempt in self.attempts.values():
            self._charge(attempt, kept=attempt.stopped_by != "node-failure")
        return {cell: gpus * round(TICK_S * 1e6) for cell, gpus in self.cells.items() if gpus}
