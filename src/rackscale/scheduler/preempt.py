"""Clearing room for a gang that topology keeps waiting: which domains, and whom to send away.

The price of a victim is the work since its last checkpoint plus its restart, in GPU-seconds, plus what its owner says
an eviction costs. Per domain the cheapest set of victims is exact; over domains, the `policy.candidate_domains` with
the fewest nodes to clear are priced. Ties go to the lower priority, then to the younger gang.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from rackscale.events import Binding, Segment
from rackscale.fleet.gangs import DAY_S, Gang, Status
from rackscale.fleet.occupancy import lowest_nodes, mask_of, members
from rackscale.fleet.state import FleetState
from rackscale.fleet.topology import Group
from rackscale.workload import Job, Queue

GIVE_UP = 4
"""Domains without a lawful set of victims that are looked at per wanted candidate, before the search ends."""

LEAST = 8
"""Candidates priced per cluster, however many clusters share the policy's number."""

Price = tuple[float, int, float]
"""GPU-seconds lost, sum of victims' priorities, sum of their ages in seconds: smaller is better."""
Offer = tuple[Price, tuple[str, ...]]
"""The price of clearing one domain, and the victims."""
FREE: Price = (0.0, 0, 0.0)


class Clearing(NamedTuple):
    """Nodes to claim and the gangs that must leave them."""

    binding: Binding
    victims: tuple[str, ...]
    price: Price


class Cost(NamedTuple):
    """What evicting one gang costs now, GPU-seconds by part."""

    lost_gpu_s: float
    restart_gpu_s: float
    penalty_gpu_s: float

    @property
    def total(self) -> float:
        return self.lost_gpu_s + self.restart_gpu_s + self.penalty_gpu_s


def cost(state: FleetState, gang: Gang, now_s: float) -> Cost:
    """Price of stopping the gang now."""
    job = state.jobs[gang.job]
    gpus = state.gpus(gang)
    return Cost(
        lost_gpu_s=gang.at_risk_s(now_s) * gpus,
        restart_gpu_s=job.durability.restart_s * gpus,
        penalty_gpu_s=job.eviction_penalty_gpu_h * 3600.0,
    )


def guard(state: FleetState, gang: Gang, priority: int, now_s: float) -> str | None:
    """Why the gang may not be evicted for somebody of `priority`, or None if it may."""
    job, policy = state.jobs[gang.job], state.policy
    if gang.status is not Status.RUNNING:
        return "not-running"
    if not job.preemptible or gang.priority >= priority:
        return "priority"
    assert gang.started_s is not None
    if now_s - gang.started_s < max(policy.min_runtime_s, job.durability.restart_s):
        return "minimum-run-time"
    if gang.evicted_today(now_s) >= policy.max_evictions_per_day:
        return "gang-budget"
    queue = state.queues.get(job.queue)
    if queue is not None and evictions_left(state, queue, now_s) <= 0:
        return "queue-budget"
    return None


def evictions_left(state: FleetState, queue: Queue, now_s: float) -> float:
    """Gangs of the queue that may still be preempted today."""
    if queue.max_evictions_per_day is None:
        return inf
    day, count = state.queue_evictions.get(queue.name, (-1, 0))
    return queue.max_evictions_per_day - (count if day == int(now_s // DAY_S) else 0)


class Clearer:
    """Searches victims for one gang. Claims what it picks in the occupancy's what-if and takes it back."""

    def __init__(
        self,
        state: FleetState,
        priority: int,
        now_s: float,
        leaving: set[str],
        evicted: Mapping[str, int],
    ) -> None:
        self.state, self.priority, self.now_s = state, priority, now_s
        self.leaving = leaving
        """Gangs already told to leave in this cycle."""
        self.budgets = {
            queue.name: evictions_left(state, queue, now_s) - evicted.get(queue.name, 0)
            for queue in state.queues.values()
            if queue.max_evictions_per_day is not None
        }
        """Gangs that may be preempted, by queue; `evicted` in this cycle are off already."""
        self.victims: dict[str, None] = {}
        self._prices: dict[str, Price | None] = {}

    def clear(self, job: Job) -> Clearing | None:
        """The cheapest clearing over all clusters the job may use, or None."""
        best: Clearing | None = None
        occupancy = self.state.occupancy
        groups = [
            group
            for group in self.state.topology.groups(job.system, job.cluster)
            if group.largest >= job.shape.nodes_per_segment
        ]
        self.limit = max(
            LEAST, self.state.policy.candidate_domains // max(1, len(groups)), job.shape.segments
        )
        for group in groups:
            mark = occupancy.mark()
            self.victims = {}
            found = self._clear_in(group, job, best.price if best else None)
            occupancy.rollback(mark)
            best = found or best
        return best

    def _clear_in(self, group: Group, job: Job, worst: Price | None) -> Clearing | None:
        """Segment by segment: the cheapest domain first; what one victim frees elsewhere is free for the next.

        Gives up once the price reaches `worst`.
        """
        state, shape = self.state, job.shape
        priced = self._candidates(group.domains, shape.nodes_per_segment)
        segments: list[Segment] = []
        total = FREE
        used: set[int] = set()
        while len(segments) < shape.segments:
            if not priced:
                return None
            d = min(priced, key=lambda c: (priced[c][0], c))
            price, victims = priced.pop(d)
            if not self._afford(victims):  # priced before the victims of earlier segments were picked
                self._reprice(priced, {d}, group, shape.nodes_per_segment)
                continue
            total = _add(total, price)
            if worst is not None and total >= worst:
                return None
            self.victims.update(dict.fromkeys(victims))
            nodes = lowest_nodes_preferring_free(state, d, self._soon(d), shape.nodes_per_segment)
            state.occupancy.claim(d, mask_of(nodes))
            segments.append(Segment(domain=state.domains[d].name, nodes=nodes))
            if not shape.may_share_domain:
                used.add(d)
            self._reprice(priced, {d, *self._domains(victims)} - used, group, shape.nodes_per_segment)
        segments.sort(key=lambda s: state.index[s.domain])
        return Clearing(tuple(segments), tuple(self.victims), total)

    def _domains(self, names: Iterable[str]) -> set[int]:
        state = self.state
        return {state.index[segment.domain] for name in names for segment in state.gangs[name].binding}

    def _reprice(self, priced: dict[int, Offer], domains: set[int], group: Group, nodes: int) -> None:
        for d in domains:
            priced.pop(d, None)
            offer = self._price(d, nodes) if group.domains >> d & 1 else None
            if offer is not None:
                priced[d] = offer

    def _candidates(self, within: int, nodes: int) -> dict[int, Offer]:
        """Domains that can give `nodes`, priced; those with the most room, so the fewest nodes to clear, first."""
        occupancy = self.state.occupancy
        # enough[k]: domains where gangs of lower priority hold at least k nodes, or somebody leaves anyway.
        leave = sum(1 << d for d in self._domains((*self.state.leaving, *self.leaving)))
        enough = [*self.state.tenants.below(self.priority).buckets, 0]
        for k in range(len(enough) - 2, -1, -1):
            enough[k] |= enough[k + 1]
        found: dict[int, Offer] = {}
        refused = 0
        for room in range(len(occupancy.buckets) - 1, -1, -1):
            short = min(max(0, nodes - room), len(enough) - 1)
            for d in members(occupancy.buckets[room] & within & (enough[short] | leave)):
                offer = self._price(d, nodes)
                if offer is not None:
                    found[d] = offer
                else:
                    refused += 1
                if len(found) >= self.limit or refused > GIVE_UP * self.limit:
                    return found
        return found

    def _soon(self, d: int) -> int:
        """Nodes of the domain that are usable and will be free once those who leave have left."""
        state = self.state
        soon = 0
        for name, mask in state.tenants.on[d].items():
            if name in self.victims or name in self.leaving or state.gangs[name].status is Status.LEAVING:
                soon |= mask
        return soon & state.occupancy.up[d] & ~state.occupancy.claimed[d]

    def _price(self, d: int, nodes: int) -> Offer | None:
        """The cheapest set of victims that leaves `nodes` usable nodes in domain d, spares kept."""
        state = self.state
        usable = state.occupancy.up[d] & ~state.occupancy.claimed[d]
        short = nodes + state.occupancy.spares[d] - (state.occupancy.free[d] | self._soon(d)).bit_count()
        if short <= 0:
            return FREE, ()
        reach: dict[int, Offer] = {0: (FREE, ())}
        for name, mask in sorted(state.tenants.on[d].items()):
            gives = (mask & usable).bit_count()
            own = self._own_price(name)
            if own is None or not gives:
                continue
            for have, (price, victims) in list(reach.items()):
                if have < short and self._afford((*victims, name)):
                    total = min(short, have + gives)
                    answer = (_add(price, own), (*victims, name))
                    if total not in reach or answer < reach[total]:
                        reach[total] = answer
        return reach.get(short)

    def _afford(self, victims: tuple[str, ...]) -> bool:
        """Whether the queues' budgets allow these victims on top of those picked."""
        if not self.budgets:
            return True
        jobs, gangs = self.state.jobs, self.state.gangs
        counts = Counter(jobs[gangs[name].job].queue for name in (*self.victims, *victims))
        return all(count <= self.budgets.get(queue, inf) for queue, count in counts.items())

    def _own_price(self, name: str) -> Price | None:
        """What evicting this gang costs, or None when it leaves anyway or a guard protects it."""
        if name in self.victims or name in self.leaving:
            return None
        if name not in self._prices:
            gang = self.state.gangs[name]
            price = None
            if guard(self.state, gang, self.priority, self.now_s) is None:
                age_s = self.now_s - (gang.started_s or 0.0)
                price = (cost(self.state, gang, self.now_s).total, gang.priority, age_s)
            self._prices[name] = price
        return self._prices[name]


def lowest_nodes_preferring_free(state: FleetState, d: int, soon: int, count: int) -> tuple[int, ...]:
    """`count` nodes of the domain: free ones beyond its spares first, then those that will be free soon."""
    free = state.occupancy.free[d]
    now = min(count, state.occupancy.room[d])
    extra = count - now
    later = min(extra, soon.bit_count())
    # Nodes that leave may exceed the need; when they fall short the spares' nodes are swapped in: the domain keeps
    # as many free nodes afterwards.
    nodes = lowest_nodes(free, now + extra - later) + lowest_nodes(soon, later)
    return tuple(sorted(nodes))


def _add(a: Price, b: Price) -> Price:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])
