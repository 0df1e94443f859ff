"""Clearing room for a gang that topology or others' borrowing keeps waiting: which domains, and whom to send away.

A victim's price, in GPU-seconds, is the work that stopping it loses (since its last checkpoint, or the time for one
more where the program saves on request), plus its restart, plus what its owner says an eviction costs. An elastic gang
is shrunk before it is evicted. Per domain the cheapest set of victims is exact; over domains, the
`policy.candidate_domains` with the fewest nodes to clear are priced, and all of them where those don't suffice. Ties go
to the lower priority, then to the younger gang.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from math import inf

from msgspec.structs import replace

from rackscale.events import Segment
from rackscale.fleet.gangs import Gang
from rackscale.fleet.occupancy import lowest_nodes, mask_of, members
from rackscale.fleet.queues import NOTHING, Charge
from rackscale.fleet.state import FleetState
from rackscale.fleet.topology import Group
from rackscale.scheduler.elastic import Shrunk, shrinkings
from rackscale.scheduler.exact import MOST, cheapest_set, smallest_set
from rackscale.scheduler.known import Known
from rackscale.scheduler.price import Rules, Taker, at_rest, cost, evictions_left, price
from rackscale.scheduler.victims import Ask, Clearing, Guest, Victim

GIVE_UP = 4
"""Domains without a lawful set of victims that are looked at per wanted candidate (but at least `ALL`), before the
search ends."""
ALL = 256
"""Domains that are looked at in the end where the first candidates don't suffice."""
FEW_GANGS = 64
"""On a fleet with no more gangs, every set of victims is tried in the end."""
LEAST = 8
"""Candidates priced per cluster, however many clusters share the policy's number."""
NO_QUOTAS = frozenset(("",))
LEAST_CHARGE = Charge(1, 1)
ANYBODY = 1 << 62
"""A priority above all others: reclaiming looks at everybody."""


class Clearer:
    """Searches victims for one gang. Claims what it picks in the occupancy's what-if and takes it back."""

    def __init__(
        self,
        state: FleetState,
        now_s: float,
        leaving: set[str],
        evicted: Mapping[str, int],
        known: Known | None = None,
    ) -> None:
        self.state, self.now_s = state, now_s
        self.leaving = leaving
        """Gangs already told to leave in this cycle."""
        self.budgets = {
            queue.name: evictions_left(state, queue, now_s) - evicted.get(queue.name, 0)
            for queue in state.queues.values()
            if queue.max_evictions_per_day is not None
        }
        """Gangs that may be preempted, by queue; `evicted` in this cycle are off already."""
        self.picked: dict[str, Victim] = {}
        self.queues: frozenset[str] | None = NO_QUOTAS
        self._below: dict[str, float] = {}
        """Queue -> the priority below which its gangs may be taken."""
        self._known = known or Known()
        self.refused: dict[int, int] = {}
        """Nodes wanted -> domains in which so many could not be freed for such a taker."""
        self.rules: Rules
        self.enough: list[int] = []
        """enough[k]: domains where gangs that could be taken hold at least k nodes, or somebody leaves anyway."""
        self.shrinks = True
        self.reclaims = False
        self.limit = 0

    def clear(self, ask: Ask) -> Clearing | None:
        """The cheapest clearing over all clusters the job may use, or None.

        Gangs are shrunk rather than evicted, and nobody's queue falls below its quota, as long as that is possible.
        """
        found = None
        self.reclaims = self._reclaims(ask.taker)
        for straddle in (False, True) if self.reclaims else (False,):
            self.rules = Rules(self.state, ask.taker, self.now_s, straddle=straddle)
            self.queues = self._generous(ask.taker, straddle=straddle)
            self._below.clear()
            if not self.queues:
                continue
            found = self._search(ask)
            if found is None and self.state.elastic:
                self.shrinks = False
                found = self._search(ask)
                self.shrinks = True
            if found is None and len(self.state.gangs) <= FEW_GANGS:
                found = self._every_set(ask)
            if found is not None:
                break
        return found

    def _reclaims(self, taker: Taker) -> bool:
        """Whether the taker's queue stays within a quota of its own somewhere on its path."""
        tree = self.state.tree
        return (
            tree.guaranteed
            and self.state.policy.reclaim
            and any(node.within_quota(taker.charge) for node in tree.node(taker.queue).path)
        )

    def _generous(self, taker: Taker, *, straddle: bool) -> frozenset[str] | None:
        """Queues that could lose anything at all to the taker; one empty name where there are no quotas."""
        tree = self.state.tree
        if not tree.guaranteed:
            return NO_QUOTAS
        return frozenset(
            name
            for name, node in tree.nodes.items()
            if node.used.gangs and tree.can_lose(name, taker.queue, LEAST_CHARGE, straddle=straddle)
        )

    def _every_set(self, ask: Ask) -> Clearing | None:
        """What going from domain to domain misses where budgets, quotas or victims over several domains are in the
        way; tried only while few gangs could be taken at all."""
        state = self.state
        found = smallest_set(state, ask, self._lone(), self.pick)
        for victim in list(self.picked.values()):
            self._trial(victim, -1)
        self.picked = {}
        if found is None:
            return None
        binding, victims = found
        return Clearing(binding, tuple(v.name for v in victims), sum(v.price for v in victims), {})

    def _lone(self) -> list[Victim]:
        """Every gang that may be taken, whole."""
        state, found = self.state, list[Victim]()
        for name, gang in state.gangs.items():
            if not gang.binding or name in self.leaving or state.jobs[gang.job].cpu_only:
                continue
            if self.rules.interruptible(gang) is None:
                age_s = self.now_s - (gang.started_s or 0.0)
                found.append(Victim(name, price(state, gang, self.now_s), gang.priority, age_s, 0))
                if len(found) > MOST:
                    return []
        return found

    def _search(self, ask: Ask) -> Clearing | None:
        job, shape, topology = ask.job, ask.offer.shape, self.state.topology
        groups = [
            group
            for group in topology.groups(ask.offer.system or job.system, job.cluster)
            if group.largest >= shape.nodes_held_per_segment
        ]
        few = max(LEAST, self.state.policy.candidate_domains // max(1, len(groups)), shape.segments)
        self.enough = self._enough(ask)
        taker = ask.taker
        about = (
            taker.priority,
            taker.queue,
            taker.charge if self.reclaims else None,
            self.rules.straddle,
            self.shrinks,
        )
        self.refused = self._known.refused.setdefault(about, {})
        best: Clearing | None = None
        for limit in (few, max(few, ALL)):
            self.limit, self.truncated = limit, False
            for group in groups:
                for within in self._areas(group, ask):
                    found = self._clear_in(within, ask, best.price if best else inf)
                    best = found or best
            if best is not None or not self.truncated:
                break
        return best

    def _enough(self, ask: Ask) -> list[int]:
        state = self.state
        found = [*state.tenants.below(ANYBODY if self.reclaims else ask.taker.priority).buckets, 0]
        so_far = self._known.leave(state, self.leaving)
        for nodes in range(len(found) - 1, -1, -1):
            so_far |= found[nodes]
            found[nodes] = so_far
        return found

    def _areas(self, group: Group, ask: Ask) -> Iterable[int]:
        """Sets of domains that the whole gang may lie in, one or the other."""
        level = ask.job.nearness.within
        if level is None:
            return (group.domains & ~ask.closed,)
        units = self.state.topology.units(level, group)
        return (unit & ~ask.closed for unit in units if unit.bit_count() >= 1)

    def _clear_in(self, within: int, ask: Ask, worst: float) -> Clearing | None:
        """Segment by segment: the cheapest domain first; what one victim frees elsewhere is free for the next.

        Gives up once the price reaches `worst`.
        """
        occupancy = self.state.occupancy
        mark = occupancy.mark()
        self.picked = {}
        search = _Search(self, within, ask)
        found = search.run(worst)
        occupancy.rollback(mark)
        for victim in self.picked.values():
            self._trial(victim, -1)
        self.picked = {}
        return found

    def _gives(self, victim: Victim) -> Charge:
        """What the victim's queue no longer holds."""
        charge = self.state.gangs[victim.name].charge
        if victim.shrunk is None:
            return charge
        after = self.state.machines.charge(victim.shrunk.binding)
        return Charge(charge.gpus - after.gpus, charge.domains - after.domains)

    def _trial(self, victim: Victim, gangs: int) -> None:
        gang = self.state.gangs[victim.name]
        gives = self._gives(victim)
        self.state.tree.trial(gang.queue, self.state.jobs[gang.job].user, gives, -gangs)
        self.rules.gave(gang.queue, gives, gangs)

    def pick(self, victims: Iterable[Victim]) -> str | None:
        """Take these victims; or the name of one that budgets or quotas protect now that others are taken."""
        done: list[tuple[Victim, Victim | None]] = []
        for victim in victims:
            before = self._drop(victim.name)
            if not self._affords(victim):
                for other, its_before in [(victim, before), *reversed(done)]:
                    self._drop(other.name)
                    if its_before is not None:
                        self._take(its_before)
                return victim.name
            self._take(victim)
            done.append((victim, before))
        return None

    def _take(self, victim: Victim) -> None:
        self.picked[victim.name] = victim
        self._trial(victim, 1)

    def _drop(self, name: str) -> Victim | None:
        """Take a pick back: that it shrinks is not enough, or not lawful."""
        before = self.picked.pop(name, None)
        if before is not None:
            self._trial(before, -1)
        return before

    def _affords(self, victim: Victim) -> bool:
        gang = self.state.gangs[victim.name]
        left = self.budgets.get(gang.queue, inf)
        if left < inf and 1 + sum(self.state.gangs[name].queue == gang.queue for name in self.picked) > left:
            return False
        return self.rules.of(gang.queue).can_lose(self._gives(victim))

    def survey(self, d: int, barred: set[str]) -> tuple[int, list[Guest]]:
        """Of domain d: the nodes of those who leave anyway, and who could be taken with which nodes."""
        state, picked, below = self.state, self.picked, self._below
        soon, guests = self._known.guests(state, d, self.leaving)
        found = list[Guest]()
        for guest in guests:
            name = guest.name
            if name in picked:
                shrunk = picked[name].shrunk
                gone = guest.mask if shrunk is None else shrunk.mask(d, guest.mask, state.index)
                soon |= gone
                if guest.mask & ~gone and name not in barred:  # it could shrink further, or leave
                    found.append(Guest(guest.gang, name, guest.priority, guest.queue, guest.mask & ~gone))
                continue
            limit = below.get(guest.queue)
            if limit is None:
                limit = below[guest.queue] = self._reach(guest.queue)
            if guest.priority >= limit or name in barred:
                continue
            if guest.may is None:
                gang = guest.gang
                guest.may = at_rest(gang, state.jobs[gang.job], state.policy, self.now_s) is None
            if guest.may:
                found.append(guest)
        occupancy = state.occupancy
        return soon & occupancy.up[d] & ~occupancy.claimed[d], found

    def _reach(self, queue: str) -> float:
        """The priority below which gangs of the queue may be taken, as long as it can lose them."""
        if self.queues is not NO_QUOTAS and self.queues is not None and queue not in self.queues:
            return -inf
        return self.rules.reach(queue)

    def offers(self, d: int, short: int, guests: list[Guest], usable: int) -> list[Victim]:
        """Ways to free nodes of domain d, one or two per gang that may be taken."""
        found = list[Victim]()
        elastic = self.state.elastic if self.shrinks else ()
        rules = self.rules
        for guest in guests:
            gives = (guest.mask & usable).bit_count()
            if not gives:
                continue
            gang, rule, enough = guest.gang, rules.of(guest.queue), False
            before = self.picked.get(guest.name)
            if elastic and guest.name in elastic:
                smaller = self._smaller(gang, d, short, usable, None if before is None else before.shrunk)
                enough = max((v.gives for v in smaller), default=0) >= min(short, gives)
                had = NOTHING if before is None else self._gives(before)
                found += [victim for victim in smaller if rule.can_lose(self._gives(victim).less(had))]
            if enough:
                continue
            if before is not None:
                if rule.can_lose(gang.charge.less(self._gives(before))):
                    whole = self._whole(gang, gives)
                    found.append(replace(whole, price=max(0.0, whole.price - before.price)))
                continue
            charge = gang.charge
            if charge.gpus <= rule.gpus and charge.domains <= rule.micro_domains:
                victim = guest.whole
                if victim is None or victim.gives != gives:
                    victim = guest.whole = self._whole(gang, gives)
                found.append(victim)
        return found

    def _whole(self, gang: Gang, gives: int) -> Victim:
        """The gang, evicted."""
        prices, name = self._known.prices, gang.name
        costs = prices.get(name)
        if costs is None:
            costs = prices[name] = price(self.state, gang, self.now_s)
        return Victim(name, costs, gang.priority, self.now_s - (gang.started_s or 0.0), gives)

    def _smaller(
        self, gang: Gang, d: int, short: int, usable: int, already: Shrunk | None = None
    ) -> list[Victim]:
        """The elastic gang with fewer nodes in domain d; `already`: that it shrinks for another is paid."""
        state = self.state
        age_s, lost_gpu_s = self.now_s - (gang.started_s or 0.0), cost(state, gang, self.now_s).lost_gpu_s
        restart_s = state.jobs[gang.job].durability.restart_s
        return [
            Victim(
                gang.name, 0.0 if already else lost_gpu_s + restart_s * state.machines.gpus(shrunk.binding),
                gang.priority, age_s, shrunk.freed, shrunk,
            )
            for shrunk in shrinkings(state, gang, d, short, usable, already=already)
        ]  # fmt: skip


class _Search:
    """One pass over the domains of one area."""

    def __init__(self, clearer: Clearer, within: int, ask: Ask) -> None:
        self.clearer, self.within, self.ask = clearer, within, ask
        self.state = clearer.state
        self.nodes = ask.offer.shape.nodes_held_per_segment
        self.heap: list[tuple[float, int, int, tuple[Victim, ...] | None]] = []
        """(price, domain, version, victims); without victims the price is a lower bound."""
        self.version: dict[int, int] = {}
        self.barred: set[str] = set()
        self.options: dict[int, tuple[int, list[Victim]]] = {}

    def run(self, worst: float) -> Clearing | None:
        shape = self.ask.offer.shape
        self._collect()
        heapify(self.heap)
        segments: list[Segment] = []
        total = 0.0
        closed = 0
        while len(segments) < shape.segments:
            taken = self._cheapest(closed)
            if taken is None:
                return None
            price, d, victims = taken
            protected = self.clearer.pick(victims)
            if protected is not None:  # priced before the victims of earlier segments were picked
                self.barred.add(protected)
                self._look(d)
                continue
            total += price
            if total >= worst:
                return None
            segments.append(self._segment(d))
            if not shape.may_share_domain or self.ask.job.nearness.spread is not None:
                closed |= self._neighbours(d)
            for other in {d, *self._domains(victims)}:
                if self.within >> other & 1 and not closed >> other & 1:
                    self._look(other)
        segments.sort(key=lambda s: self.state.index[s.domain])
        picked = self.clearer.picked
        shrunk = {name: victim.shrunk for name, victim in picked.items() if victim.shrunk is not None}
        return Clearing(tuple(segments), tuple(picked), total, shrunk)

    def _neighbours(self, d: int) -> int:
        """Domains that no other segment may use."""
        spread = self.ask.job.nearness.spread
        return 1 << d if spread in (None, "domain") else self.state.topology.unit(spread, d)

    def _domains(self, victims: Iterable[Victim]) -> set[int]:
        state = self.state
        return {state.index[s.domain] for v in victims for s in state.gangs[v.name].binding}

    def _segment(self, d: int) -> Segment:
        state = self.state
        nodes = preferring_free(state, d, self.clearer.survey(d, self.barred)[0], self.nodes)
        state.occupancy.claim(d, mask_of(nodes))
        work = self.ask.offer.shape.nodes_per_segment
        return Segment(domain=state.domains[d].name, nodes=nodes[:work], spares=nodes[work:])

    def _cheapest(self, closed: int) -> tuple[float, int, tuple[Victim, ...]] | None:
        """The domain with the least price. Lower bounds become prices only when they come to the top."""
        heap = self.heap
        while heap:
            price, d, version, victims = heappop(heap)
            if version != self.version[d] or closed >> d & 1:
                continue
            if victims is not None:
                return price, d, victims
            exact = cheapest_set(*self.options[d])
            if exact is not None:
                heappush(heap, (exact[0], d, version, exact[1]))
        return None

    def _collect(self) -> None:
        """Domains with the most room, so the fewest nodes to clear, first."""
        clearer, state = self.clearer, self.state
        occupancy, nodes = state.occupancy, self.nodes
        enough, within = clearer.enough, self.within
        for wanted, domains in clearer.refused.items():
            if wanted <= nodes:
                within &= ~domains
        refused = 0
        for room in range(len(occupancy.buckets) - 1, -1, -1):
            short = min(max(0, nodes - room), len(enough) - 1)
            for d in members(occupancy.buckets[room] & within & enough[short]):
                if len(self.heap) >= clearer.limit or refused > max(GIVE_UP * clearer.limit, ALL):
                    clearer.truncated = True
                    return
                if not self._look(d):
                    refused += 1
                    clearer.refused[nodes] = clearer.refused.get(nodes, 0) | 1 << d

    def _look(self, d: int) -> bool:
        """Bound the price of clearing domain d from below; False if it can't be cleared."""
        version = self.version[d] = self.version.get(d, 0) + 1
        state, clearer = self.state, self.clearer
        occupancy = state.occupancy
        usable = occupancy.up[d] & ~occupancy.claimed[d]
        soon, guests = clearer.survey(d, self.barred)
        short = self.nodes + occupancy.spares[d] - (occupancy.free[d] | soon).bit_count()
        if short <= 0:
            heappush(self.heap, (0.0, d, version, ()))
            return True
        options = clearer.offers(d, short, guests, usable & ~soon)
        if sum(victim.gives for victim in options) < short:
            return False
        if len(options) == 1:
            heappush(self.heap, (options[0].price, d, version, (options[0],)))
            return True
        options.sort(key=_by_unit_price)
        self.options[d] = (short, options)
        bound, left = 0.0, short
        for at, victim in enumerate(options):
            if victim.gives >= left:
                if victim.gives == left and not clearer.shrinks:
                    heappush(self.heap, (bound + victim.price, d, version, tuple(options[: at + 1])))
                    return True
                heappush(self.heap, (bound + victim.price * left / victim.gives, d, version, None))
                return True
            bound += victim.price
            left -= victim.gives
        return False


def _by_unit_price(victim: Victim) -> tuple[float, int, float, str]:
    return (victim.price / victim.gives, victim.priority, victim.age_s, victim.name)


def preferring_free(state: FleetState, d: int, soon: int, count: int) -> tuple[int, ...]:
    """`count` nodes of the domain: free ones beyond its spares first, then those that will be free soon."""
    free = state.occupancy.free[d]
    now = min(count, state.occupancy.room[d])
    extra = count - now
    later = min(extra, soon.bit_count())
    # Nodes that leave may exceed the need; when they fall short the spares' nodes are swapped in: the domain keeps
    # as many free nodes afterwards.
    nodes = lowest_nodes(free, now + extra - later) + lowest_nodes(soon, later)
    return tuple(sorted(nodes))
