"""The working memory of one decision, shared by its steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from msgspec.structs import replace

from rackscale.events import Action, Binding, Claim, Move, Preempt, Reason, Start
from rackscale.fleet.gangs import Gang, WaitClass, remaining_s
from rackscale.fleet.queues import Charge
from rackscale.fleet.state import FleetState
from rackscale.scheduler.order import Key, Order
from rackscale.scheduler.price import cost
from rackscale.scheduler.promises import Promises


@contextmanager
def what_if(state: FleetState, now_s: float, *, due: bool) -> Iterator[Cycle]:
    """A decision that is tried: at the end all that it held, claimed, gave and took is taken back. They do not nest."""
    machines = state.machines
    before_s, machines.now_s = machines.now_s, now_s
    machines.horizon.worked_out.clear()
    cycle = Cycle(state, now_s, due=due)
    machines.gpu.occupancy.begin()
    machines.cpu.occupancy.begin()
    if state.tree.guaranteed:
        for name in state.leaving:
            gang = state.gangs[name]
            cycle.depart(gang, gang.claim)
    try:
        yield cycle
    finally:
        machines.gpu.occupancy.end()
        machines.cpu.occupancy.end()
        state.tree.end_trial()
        for d in cycle.touched:
            machines.horizon.touch(d)
        machines.given.clear()
        if before_s != now_s:  # what was expected of domains at another time is worked out again
            machines.now_s = before_s
            for d in machines.horizon.worked_out:
                machines.horizon.touch(d)


class Blocked(NamedTuple):
    """A gang that has to wait, with those behind it in its class."""

    key: Key
    cls: WaitClass
    at: int


class Cycle:
    """What was decided so far. Holds and claims are in the occupancies' what-if, charges in the queues' trial."""

    def __init__(self, state: FleetState, now_s: float, *, due: bool) -> None:
        self.state, self.now_s = state, now_s
        self.due = due
        """Whether all that wait may have domains cleared and reserved for them, not only new gangs."""
        self.actions: list[Action] = []
        self.order = Order(state, now_s)
        self.promises = Promises(state, self.order, now_s)
        self.disturbed: set[int] = set()
        """Those of them where a promise may be broken by it."""
        self.touched: set[int] = set()
        """Domains whose nodes were given away in this decision."""
        self.leaving: set[str] = set()
        """Gangs told to leave in this cycle."""
        self.evicted: Counter[str] = Counter()
        """Gangs preempted in this cycle, by queue."""
        self.blocked: list[Blocked] = []
        """Gangs for which there is no room, best first."""
        self.retry = False
        """Whether this plan itself frees nodes (a claim broke, a segment moved): decide again at once."""
        self.claimed: set[str] = set()
        """Waiting gangs for which room is cleared in this cycle."""
        self.booked: dict[str, Binding] = {}
        """Bookings of which nodes were replaced in this cycle, and what they hold now."""
        self.wakes: list[float] = []
        """Times at which something else becomes due."""

    def by_order(self, names: Collection[str]) -> list[Gang]:
        if not names:
            return []
        gangs = self.state.gangs
        return sorted((gangs[name] for name in names), key=Gang.order)

    def hold(self, gang: Gang, binding: Binding, choice: int) -> None:
        machines, job = self.state.machines, self.state.jobs[gang.job]
        occupancy, until_s = machines.books(job).occupancy, self.ends_s(gang, choice)
        behind = self.disturbed.copy()
        for d, mask in machines.masks(binding):
            occupancy.hold(d, mask)
            if not job.cpu_only:
                self.gave(d, mask, until_s)
        if self.state.reserved and not job.cpu_only:
            # Who is behind a promise was kept from taking of it.
            key, index = self.order.of(gang), self.state.index
            self.disturbed = behind | {
                d for d in (index[s.domain] for s in binding) if self.promises.has_after(key, d)
            }

    def keep(self, binding: Binding, until_s: float) -> None:
        """Claim nodes in the what-if, for somebody who is expected to be gone by then."""
        for d, mask in self.state.machines.masks(binding):
            self.state.occupancy.claim(d, mask)
            self.gave(d, mask, until_s)

    def ends_s(self, gang: Gang, choice: int) -> float:
        """When the gang is expected to end if it starts now; infinite: nobody knows."""
        job = self.state.jobs[gang.job]
        throughput = job.choices[choice].throughput if job.offers else 1.0
        return self.now_s + job.durability.restart_s + remaining_s(gang, job) / throughput

    def gave(self, d: int, mask: int, until_s: float) -> None:
        """These nodes were given away until then."""
        self.state.machines.given.setdefault(d, []).append((until_s, mask.bit_count()))
        self.changed(d)

    def changed(self, d: int) -> None:
        """Nodes of domain d were given away: what is expected of it is another thing now, until the decision ends."""
        self.state.machines.horizon.touch(d)
        self.promises.changed(1 << d)
        self.touched.add(d)
        self.disturbed.add(d)

    def depart(self, gang: Gang, binding: Binding) -> None:
        """The gang will soon hold no more than `binding`: its queue's guarantee counts that already."""
        if not binding:
            self.state.tree.depart(gang.queue, gang.charge)
            return
        after = self.state.machines.charge(binding)
        gpus, domains = gang.charge.gpus - after.gpus, gang.charge.domains - after.domains
        self.state.tree.depart(gang.queue, Charge(max(0, gpus), max(0, domains)))

    def give(self, gang: Gang, charge: Charge) -> None:
        self.state.tree.trial(gang.queue, self.state.jobs[gang.job].user, charge, 1)
        self.order.given()

    def take(self, gang: Gang) -> None:
        self.state.tree.trial(gang.queue, self.state.jobs[gang.job].user, gang.charge, -1)
        self.order.given()

    def start(self, gang: Gang, binding: Binding, reason: Reason, choice: int = 0) -> None:
        self.promises.keep(gang.name)
        promise = self.state.reserved.get(gang.name)
        if promise is not None and not {s.domain for s in binding}.issuperset(promise.domains):
            self.retry = True  # others may have what it was promised
        self.hold(gang, binding, choice)
        self.actions.append(
            Start(gang=gang.name, attempt=gang.attempt + 1, binding=binding, reason=reason, choice=choice)
        )

    def claim(self, gang: Gang, binding: Binding, reason: Reason, choice: int = 0) -> None:
        self.promises.keep(gang.name)
        self.keep(binding, self.ends_s(gang, choice))
        self.actions.append(Claim(gang=gang.name, binding=binding, reason=reason, choice=choice))
        self.claimed.add(gang.name)

    def send_away(
        self, gang: Gang, code: str, for_gang: str | None = None, window: str | None = None
    ) -> None:
        """Ask the gang to checkpoint and leave."""
        price = cost(self.state, gang, self.now_s)
        reason = Reason(
            code=code, for_gang=for_gang, window=window, lost_gpu_s=price.lost_gpu_s,
            restart_gpu_s=price.restart_gpu_s, penalty_gpu_s=price.penalty_gpu_s,
        )  # fmt: skip
        grace_s = self.state.jobs[gang.job].durability.grace_s
        self.actions.append(Preempt(gang=gang.name, attempt=gang.attempt, grace_s=grace_s, reason=reason))
        self.leaving.add(gang.name)

    def move(self, gang: Gang, binding: Binding, reason: Reason, choice: int) -> None:
        """Ask the gang to checkpoint and go on elsewhere, or with other nodes. Its costs are filled in."""
        price = cost(self.state, gang, self.now_s)
        restart_gpu_s = self.state.jobs[gang.job].durability.restart_s * self.state.machines.gpus(binding)
        reason = replace(reason, lost_gpu_s=price.lost_gpu_s, restart_gpu_s=restart_gpu_s)
        grace_s = self.state.jobs[gang.job].durability.grace_s
        self.keep(binding, gang.end_s)
        self.actions.append(
            Move(
                gang=gang.name, attempt=gang.attempt, grace_s=grace_s, binding=binding, reason=reason, choice=choice
            )
        )  # fmt: skip
        self.leaving.add(gang.name)
