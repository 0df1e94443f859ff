"""Random histories of a fleet, well-formed but from no scheduler: everything that the ledger can hear.

A scheduler would use a small part of what is possible here; times are multiples of half a second.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import strategies as st

from rackscale import events as ev
from rackscale.workload import Durability, Job, JobKind, Policy, Shape

KINDS: tuple[JobKind, ...] = ("training", "batch")
WHY_LEAVE = ("preempted-for", "reclaimed-for", "drain", "maintenance", "expired", "booking-over")
WHY_MOVE = ("shrunk-for", "grown", "moved-for")
WINDOWS = ("m0", "m1")
BOOKINGS = ("b0", "b1")


def spec(name: str, nodes: int, *, spares: int = 0, gpus: int = 2, leaf: str = "") -> ev.DomainSpec:
    return ev.DomainSpec(
        name=name, system="s", nodes=nodes, gpus_per_node=gpus, cluster=name[0], spares=spares, leaf=leaf,
        usd_per_gpu_hour=1.5 if name[0] == "a" else None,
    )  # fmt: skip


class Teller:
    """Tells one history. What it keeps is what makes the next event well-formed."""

    def __init__(self, random: Random) -> None:
        self.random, self.now_s = random, 0.0
        self.events: list[ev.Event] = []
        self.specs: dict[str, ev.DomainSpec] = {}
        self.promised: dict[str, ev.DomainSpec] = {}
        self.waiting: dict[str, Job] = {}
        self.attempts: dict[str, tuple[Job, int, str, ev.Binding]] = {}
        """Gang -> (job, attempt, phase, binding)."""
        self.tries: dict[str, int] = {}
        self.claims: dict[str, ev.Binding] = {}
        self.booked: dict[str, ev.Binding] = {}
        self.failed: set[tuple[str, int]] = set()
        self.expired: set[tuple[str, int]] = set()
        self.jobs = 0

    def tell(self, steps: int) -> list[ev.Event]:
        fleet = [spec(f"a{i}", self.random.randint(1, 4), spares=self.random.randint(0, 1)) for i in range(3)]
        self._deliver(fleet)
        deeds: list[Callable[[], None]] = [
            *[self.submit] * 3, *[self.start] * 6, *[self.run] * 6, *[self.save] * 3,
            self.leave, self.leave, self.move, self.move, *[self.end] * 4, self.fail, self.repair, self.drain,
            self.close, self.open, self.claim, self.book, self.unbook, self.restart, self.configure, self.capacity,
            self.withdraw, self.call_off,
        ]  # fmt: skip
        for _ in range(steps):
            if self.random.random() < 0.7:
                self.now_s += self.random.randint(1, 8) / 2
            self.random.choice(deeds)()
        return self.events

    def happen(self, kind: type, **fields: object) -> None:
        self.events.append(kind(at_s=self.now_s, **fields))

    def decide(self, *actions: ev.Action) -> None:
        self.happen(ev.Decided, plan=ev.Plan(at_s=self.now_s, actions=actions))

    def _deliver(self, fleet: list[ev.DomainSpec]) -> None:
        self.specs |= {it.name: it for it in fleet}
        self.happen(ev.Delivered, domains=tuple(fleet))

    # -- people ------------------------------------------------------------------------------------------------------

    def submit(self) -> None:
        job = Job(
            name=f"j{self.jobs}", kind=self.random.choice(KINDS), cpu_only=self.random.random() < 0.1,
            queue=self.random.choice("qr"), priority=self.random.choice(("high", "low")),
            shape=Shape(segments=self.random.randint(1, 2), nodes_per_segment=self.random.randint(1, 2)),
            durability=Durability(max_restarts=1000),
        )  # fmt: skip
        self.jobs += 1
        self.waiting[job.name] = job
        self.happen(ev.Submitted, job=job)

    def withdraw(self) -> None:
        if self.waiting:
            name = self.random.choice(list(self.waiting))
            del self.waiting[name]
            self.claims.pop(name, None)
            if self.random.random() < 0.5:
                self.happen(ev.Cancelled, job=name)
            else:
                self.decide(ev.Refuse(job=name, reason=ev.Reason(code="never-fits")))

    def configure(self) -> None:
        policy = Policy(spares="none") if self.random.random() < 0.5 else Policy(spares="fixed")
        self.happen(ev.Configured, policy=policy)

    def capacity(self) -> None:
        if self.promised and self.random.random() < 0.5:
            self._deliver([self.promised.pop(self.random.choice(list(self.promised)))])
        elif len(self.specs) < 6:
            late = spec(f"b{len(self.specs) + len(self.promised)}", 2, gpus=4)
            late = self.promised.setdefault(late.name, late)
            ready_s = self.now_s + self.random.randint(0, 20)
            self.happen(ev.Announced, ready_s=ready_s, domains=(late,))

    # -- nodes -------------------------------------------------------------------------------------------------------

    def part(self) -> dict[str, Any]:
        name = self.random.choice(list(self.specs))
        nodes = self.specs[name].nodes
        some = tuple(sorted(self.random.sample(range(nodes), self.random.randint(1, nodes))))
        return {"domain": name, "nodes": self.random.choice((None, some))}

    def fail(self) -> None:
        part = self.part()
        self.failed |= self._nodes(part)
        self.happen(ev.NodeFailed, **part)

    def repair(self) -> None:
        part = self.part()
        self.failed -= self._nodes(part)
        self.happen(ev.NodeRepaired, **part)

    def _nodes(self, part: dict[str, Any]) -> set[tuple[str, int]]:
        name, nodes = part["domain"], part["nodes"]
        return {(name, n) for n in (range(self.specs[name].nodes) if nodes is None else nodes)}

    def drain(self) -> None:
        self.happen(self.random.choice((ev.Drained, ev.Undrained)), **self.part())

    def why(self) -> ev.Reason:
        code = self.random.choice(("maintenance", "lemon", "expired"))
        return ev.Reason(code=code, window=self.random.choice(WINDOWS) if code == "maintenance" else None)

    def close(self) -> None:
        part, reason = self.part(), self.why()
        if reason.code == "expired":
            self.expired |= self._nodes(part)
        self.decide(ev.Close(**part, reason=reason))

    def open(self) -> None:
        part, reason = self.part(), self.why()
        if reason.code == "expired":
            self.expired -= self._nodes(part)
        self.decide(ev.Open(**part, reason=reason))

    def call_off(self) -> None:
        if self.random.random() < 0.5:
            self.happen(ev.Unplanned, maintenance=self.random.choice(WINDOWS))
        else:
            domain = self.random.choice(list(self.specs))
            self.expired -= self._nodes({"domain": domain, "nodes": None})
            self.happen(ev.Extended, domains=(domain,), expires_s=None)

    # -- gangs -------------------------------------------------------------------------------------------------------

    def place(self, job: Job, *, but: str = "") -> ev.Binding | None:
        """Nodes that are up and that nobody holds but `but`."""
        taken = {
            (s.domain, n)
            for gang, (_, _, _, binding) in self.attempts.items()
            if gang != but
            for s in binding
            for n in s.held
        }
        segments = []
        for _ in range(job.shape.segments):
            domain = self.random.choice(list(self.specs))
            free = [
                n
                for n in range(self.specs[domain].nodes)
                if (domain, n) not in taken | self.failed | self.expired
            ]
            count = job.shape.nodes_per_segment + self.random.randint(0, 1)
            if len(free) < count:
                return None
            chosen = tuple(self.random.sample(free, count))
            work = job.shape.nodes_per_segment
            segments.append(ev.Segment(domain=domain, nodes=chosen[:work], spares=chosen[work:]))
            taken |= {(domain, n) for n in chosen}
        return tuple(segments)

    def start(self) -> None:
        if not self.waiting:
            return
        name = self.random.choice(list(self.waiting))
        job = self.waiting[name]
        binding = self.place(job)
        if binding is not None:
            del self.waiting[name]
            self.claims.pop(name, None)
            self._begin(job, binding, ev.Start)

    def _begin(self, job: Job, binding: ev.Binding, kind: type[ev.Start | ev.Restart]) -> None:
        number = self.tries[job.name] = self.tries.get(job.name, 0) + 1
        self.attempts[job.name] = (job, number, "starting", binding)
        self.decide(kind(gang=job.name, attempt=number, binding=binding, reason=ev.Reason(code="fits")))

    def _some(self, *phases: str) -> tuple[Job, int, str, ev.Binding] | None:
        fit = [attempt for attempt in self.attempts.values() if attempt[2] in phases]
        return self.random.choice(fit) if fit else None

    def _set(self, attempt: tuple[Job, int, str, ev.Binding], phase: str) -> None:
        self.attempts[attempt[0].name] = (*attempt[:2], phase, attempt[3])

    def run(self) -> None:
        if attempt := self._some("starting"):
            self._set(attempt, "working")
            every_s = self.random.choice((None, 0.5, 3.0, 7.5))
            self.happen(ev.GangRunning, gang=attempt[0].name, attempt=attempt[1], saves_every_s=every_s)

    def save(self) -> None:
        if attempt := self._some("working"):
            self.happen(ev.Checkpointed, gang=attempt[0].name, attempt=attempt[1])

    def leave(self) -> None:
        if attempt := self._some("starting", "working"):
            self._set(attempt, "leaving")
            reason = ev.Reason(code=self.random.choice(WHY_LEAVE))
            self.decide(ev.Preempt(gang=attempt[0].name, attempt=attempt[1], grace_s=5.0, reason=reason))

    def move(self) -> None:
        attempt = self._some("starting", "working")
        if attempt is None or (binding := self._unkept(attempt[0])) is None:
            return
        self._set(attempt, "leaving")
        self.claims[attempt[0].name] = binding
        reason = ev.Reason(code=self.random.choice(WHY_MOVE))
        self.decide(
            ev.Move(gang=attempt[0].name, attempt=attempt[1], grace_s=5.0, binding=binding, reason=reason)
        )

    def end(self) -> None:
        attempt = self._some("starting", "working", "leaving")
        if attempt is None:
            return
        job, number = attempt[:2]
        del self.attempts[job.name]
        outcome = self.random.choice(("finished", "left", "failed"))
        self.happen(
            ev.GangEnded,
            gang=job.name,
            attempt=number,
            outcome=outcome,
            checkpointed=self.random.random() < 0.5,
        )
        if outcome == "finished":
            self.claims.pop(job.name, None)
        else:
            self.waiting[job.name] = job

    def restart(self) -> None:
        attempt = self._some("starting", "working")
        if attempt is not None and (binding := self.place(attempt[0], but=attempt[0].name)) is not None:
            self._begin(attempt[0], binding, ev.Restart)

    # -- what is kept ------------------------------------------------------------------------------------------------

    def claim(self) -> None:
        if not self.waiting:
            return
        name = self.random.choice(list(self.waiting))
        if name in self.claims:
            del self.claims[name]
            self.decide(ev.Unclaim(gang=name, reason=ev.Reason(code="claim-broken")))
        elif binding := self._unkept(self.waiting[name]):
            self.claims[name] = binding
            self.decide(ev.Claim(gang=name, binding=binding, reason=ev.Reason(code="cleared-domain")))

    def _unkept(self, job: Job) -> ev.Binding | None:
        """Nodes that nobody claims or books, and nobody else holds."""
        binding = self.place(job, but=job.name)
        kept = {
            (s.domain, n) for b in (*self.claims.values(), *self.booked.values()) for s in b for n in s.held
        }
        if binding is None or kept & {(s.domain, n) for s in binding for n in s.held}:
            return None
        return binding

    def book(self) -> None:
        name = self.random.choice(BOOKINGS)
        job = Job(name=name, kind="batch", shape=Shape(nodes_per_segment=self.random.randint(1, 2)))
        if name not in self.booked and (binding := self._unkept(job)):
            self.booked[name] = binding
            self.decide(ev.Hold(booking=name, binding=binding, reason=ev.Reason(code="booked")))

    def unbook(self) -> None:
        if self.booked:
            name = self.random.choice(list(self.booked))
            del self.booked[name]
            if self.random.random() < 0.5:
                self.happen(ev.Unbooked, booking=name)
            else:
                self.decide(ev.Free(booking=name, reason=ev.Reason(code="booking-over")))


@st.composite
def histories(draw: st.DrawFn) -> list[ev.Event]:
    random = draw(st.randoms(use_true_random=False))
    return Teller(random).tell(draw(st.integers(1, 60)))
