"""The laws of a plan, judged action by action against `Facts`: whole gangs, free nodes, lawful victims, kept spares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from msgspec.structs import replace

from rackscale import events as ev
from rackscale.workload import LEVELS, Job, Level, Offer
from tests.laws import promises, shares
from tests.laws.facts import DAY_S, EVICTIONS, Facts, Life, Node, held

TOLD = ev.Preempt | ev.Move | ev.Stop | ev.Requeue
OUT_OF_USE = ("drain", "maintenance", "expired", "booking-over", "lemon")
"""Why a gang may be sent away without anybody taking its place."""


def unit(spec: ev.DomainSpec, level: Level) -> tuple[str, ...]:
    """The unit of this level that the domain lies in."""
    if level == "domain":
        return (spec.name,)
    fabric = (spec.region, spec.building, spec.spine, spec.leaf)
    return (spec.cluster, *fabric[: len(fabric) + 1 - LEVELS.index(level)])


def check_shape(facts: Facts, job: Job, offer: Offer, binding: ev.Binding) -> None:
    """A gang is whole, a segment lies inside one domain, and all of it where the job may run."""
    shape = offer.shape
    assert len(binding) == shape.segments, "a gang is not whole"
    for segment in binding:
        assert len(segment.nodes) == shape.nodes_per_segment, "a segment is not whole"
        assert all(0 <= node < facts.specs[segment.domain].nodes for node in segment.held)
    used = held(binding)
    assert len(used) == len(set(used)), "a gang takes a node twice"
    specs = [facts.specs[segment.domain] for segment in binding]
    assert len({(spec.cluster, spec.system) for spec in specs}) == 1, "a gang spans clusters or systems"
    assert job.cluster in (None, specs[0].cluster), f"{job.name} is in the wrong cluster"
    assert job.system in (None, specs[0].system), f"{job.name} is on the wrong system"
    assert offer.system in (None, specs[0].system), f"{job.name} is on the wrong system"
    if not shape.may_share_domain:
        assert len({spec.name for spec in specs}) == len(specs), "segments share a domain"


def check_nearness(job: Job, specs: Iterable[ev.DomainSpec]) -> None:
    nearness, specs = job.nearness, list(specs)
    if nearness.within is not None:
        assert len({unit(spec, nearness.within) for spec in specs}) == 1, "not within"
    if nearness.spread is not None:
        assert len({unit(spec, nearness.spread) for spec in specs}) == len(specs), "not spread"


class Judge:
    """One plan. `facts` are those that it was decided on; they are folded by the caller afterwards."""

    def __init__(self, facts: Facts, plan: ev.Plan) -> None:
        self.facts, self.plan = facts, plan
        self.held = {False: facts.holders(), True: facts.holders(cpu=True)}
        self.claimed, self.booked = facts.claims(), facts.booked()
        told = {action.gang for action in plan.actions if isinstance(action, TOLD)}
        self.leaving = told | {life.name for life in facts.lives.values() if life.status == "leaving"}
        self.evictions: Counter[tuple[str, int]] = Counter(facts.evictions)
        self.usage = shares.Usage(facts)
        self.given = shares.Usage(facts)
        """The same, but who is told to leave in this plan holds nothing any more."""
        self.laws: dict[type, Callable[..., None]] = {
            ev.Start: self.start, ev.Restart: self.restart, ev.Claim: self.claim, ev.Unclaim: self.unclaim,
            ev.Preempt: self.send_away, ev.Move: self.send_away, ev.Stop: self.stop, ev.Requeue: self.stop,
            ev.Refuse: self.refuse, ev.Hold: self.hold, ev.Free: self.free, ev.Close: self.close,
        }  # fmt: skip

    def judge(self) -> None:
        self.one_order_each()
        promises.check_claims_resolve(self.facts, self.plan)
        for action in self.plan.actions:
            law = self.laws.get(type(action))
            if law is not None:
                law(action)
            self.given.follow(action)
        shares.check_quotas_kept(self.facts, self.plan)
        promises.check_reservations(self.facts, self.plan)

    def one_order_each(self) -> None:
        orders = TOLD | ev.Restart | ev.Start
        count = Counter(a.gang for a in self.plan.actions if isinstance(a, orders))
        assert all(n == 1 for n in count.values()), f"one gang, two orders: {count}"

    # -- who gets nodes ----------------------------------------------------------------------------------------------

    def take(
        self,
        life: Life,
        binding: ev.Binding,
        choice: int,
        *,
        leaving_too: bool = False,
        mine: Collection[Node] = (),
    ) -> None:
        """Nodes that are up, free, and not kept for anybody else. A gang may stay on those that it has (`mine`)."""
        job = life.job
        check_shape(self.facts, job, job.choices[choice], binding)
        holders = self.held[job.cpu_only]
        for node in held(binding):
            assert node in mine or self.facts.up(node), f"{life.name} placed on {node}, which is out of use"
            holder = holders.get(node, life.name)
            stays = holder != life.name and not (leaving_too and holder in self.leaving)
            assert not stays, f"{node} is given to {life.name}, but {holder} is on it"
            if not job.cpu_only:
                kept_for = self.claimed.get(node, life.name)
                assert kept_for == life.name, f"{node} is kept for {kept_for}"
                assert self.booked.get(node, job.booking) == job.booking, f"{node} is booked"
                assert job.booking is None or node in self.booked, f"{life.name} runs outside its booking"

    def start(self, action: ev.Start) -> None:
        life = self.facts.lives[action.gang]
        assert life.status == "waiting"
        assert self.facts.now_s >= life.not_before_s, f"{life.name} starts while it pauses after a failure"
        assert not life.cancelled
        assert action.attempt == life.attempt + 1
        if life.claim and action.reason.code == "claim-complete":
            assert action.binding == life.claim
            assert action.choice == life.claim_choice
        self.take(life, action.binding, action.choice)
        check_nearness(life.job, (self.facts.specs[s.domain] for s in action.binding))
        self.check_apart(life, action.binding)
        for node in held(life.claim):
            self.claimed.pop(node, None)
        self.held[life.job.cpu_only].update(dict.fromkeys(held(action.binding), life.name))
        if action.reason.code == "fits" and not life.job.cpu_only and life.job.booking is None:
            self.check_spares(action.binding, staying=set(self.held[False]))
        if life.claim:
            self.usage.add(life, life.claim, -1)
        if not life.claim or life.claimed_s > self.facts.configured_s:
            self.usage.check_start(life, action.binding)
        self.usage.add(life, action.binding)
        promises.check_outlives(self.facts, life, action.binding, action.choice, action.reason.code)

    def restart(self, action: ev.Restart) -> None:
        life = self.facts.lives[action.gang]
        assert life.status == "broken", f"{life.name} is {life.status}"
        assert action.attempt == life.attempt + 1
        assert not life.cancelled
        holders, before = self.held[life.job.cpu_only], held(life.binding)
        for node in before:
            del holders[node]
        self.take(life, action.binding, action.choice, mine=before)
        work = {(segment.domain, node) for segment in action.binding for node in segment.nodes}
        assert not work & self.facts.failed, f"{life.name} goes on with a failed node"
        check_nearness(life.job, (self.facts.specs[s.domain] for s in action.binding))
        new = held(action.binding)
        assert len(new) <= len(before), "a repair makes a gang larger"
        # What it left is free after this decision, not within it.
        holders.update(dict.fromkeys((*before, *new), life.name))
        kept = [s.domain for s in life.binding]
        moved = tuple(s for s in action.binding if s.domain not in kept)
        promises.check_outlives(self.facts, life, moved, action.choice, action.reason.code)

    def claim(self, action: ev.Claim) -> None:
        life = self.facts.lives[action.gang]
        assert life.status == "waiting"
        assert self.facts.now_s >= life.not_before_s, f"room is cleared for {life.name} while it pauses"
        assert not life.claim
        assert not life.job.cpu_only
        self.take(life, action.binding, action.choice, leaving_too=True)
        check_nearness(life.job, (self.facts.specs[s.domain] for s in action.binding))
        self.check_apart(life, action.binding)
        self.usage.check_start(life, action.binding)
        self.usage.add(life, action.binding)
        self.claimed.update(dict.fromkeys(held(action.binding), life.name))
        staying = {node for node, holder in self.held[False].items() if holder not in self.leaving}
        if life.job.booking is None:
            self.check_spares(action.binding, staying=staying)
        promises.check_outlives(self.facts, life, action.binding, action.choice, action.reason.code)

    def unclaim(self, action: ev.Unclaim) -> None:
        life = self.facts.lives[action.gang]
        assert life.claim
        for node in held(life.claim):
            self.claimed.pop(node, None)
        if not life.binding:
            self.usage.add(life, life.claim, -1)

    def check_spares(self, binding: ev.Binding, *, staying: set[Node]) -> None:
        """Domains that gangs are placed in keep the spares of a fixed policy."""
        if self.facts.policy.spares != "fixed":
            return
        for domain in {segment.domain for segment in binding}:
            spec = self.facts.specs[domain]
            free = [
                node
                for node in self.facts.nodes(domain, None)
                if self.facts.up(node) and node not in staying and node not in self.claimed
                and node not in self.booked
            ]  # fmt: skip
            assert len(free) >= spec.spares, f"{domain} was left without its spares"

    def check_apart(self, life: Life, binding: ev.Binding) -> None:
        """Replicas that must be apart from each other are."""
        level = life.job.nearness.apart
        if level is None or not life.job.nearness.apart_required:
            return
        mine = {unit(self.facts.specs[s.domain], level) for s in binding}
        for other, holder in self.held[life.job.cpu_only].items():
            if holder != life.name and self.facts.lives[holder].job.name == life.job.name:
                assert unit(self.facts.specs[other[0]], level) not in mine, "replicas are not apart"

    # -- who leaves --------------------------------------------------------------------------------------------------

    def send_away(self, action: ev.Preempt | ev.Move) -> None:
        life, code = self.facts.lives[action.gang], action.reason.code
        assert life.attempt == action.attempt
        assert life.status in ("starting", "running"), f"{life.name} is {life.status}"
        if isinstance(action, ev.Move):
            assert not life.claim
            self.take(life, action.binding, action.choice, leaving_too=True)
            check_nearness(life.job, (self.facts.specs[s.domain] for s in action.binding))
            self.claimed.update(dict.fromkeys(held(action.binding), life.name))
            if code != "shrunk-for":  # it stays on nodes that it has, and may take longer for it
                promises.check_outlives(self.facts, life, action.binding, action.choice, action.reason.code)
        if code in EVICTIONS:
            self.evict(life, action)
        elif code == "grown":
            assert self.facts.policy.growth
            assert life.job.elastic
            self.usage.check_move(life, action)
        elif code == "moved-for":
            self.check_gain(action)
        else:
            assert code in OUT_OF_USE, code
            promises.check_has_to_leave(self.facts, life, action)

    def evict(self, life: Life, action: ev.Preempt | ev.Move) -> None:
        facts, job, now_s = self.facts, life.job, self.facts.now_s
        policy = facts.policy
        assert policy.preemption, "preemption is off"
        assert job.preemptible, f"{life.name} is not preemptible"
        assert life.status == "running", f"{life.name} is {life.status}"
        assert now_s - life.started_s >= policy.min_runtime_s, "minimum run time"
        assert now_s - life.started_s >= job.durability.restart_s, "evicted within its restart time"
        if action.reason.code == "shrunk-for":
            assert job.elastic, f"{life.name} is not elastic"
            assert isinstance(action, ev.Move)
            assert len(held(action.binding)) < len(held(life.binding))
            assert set(held(action.binding)) <= set(held(life.binding))
        day = int(now_s // DAY_S)
        self.evictions[life.name, day] += 1
        self.evictions["@" + job.queue, day] += 1
        assert self.evictions[life.name, day] <= policy.max_evictions_per_day, "gang's budget"
        queue = facts.queues.get(job.queue)
        if queue is not None and queue.max_evictions_per_day is not None:
            assert self.evictions["@" + job.queue, day] <= queue.max_evictions_per_day, "queue's budget"
        self.for_somebody(life, action)

    def for_somebody(self, life: Life, action: ev.Preempt | ev.Move) -> None:
        """A victim makes room for a gang (or booking) that may take it and does."""
        name = action.reason.for_gang
        assert name is not None
        if name.startswith("@"):
            booking = self.facts.bookings[name[1:]]
            (binding,) = [
                a.binding for a in self.plan.actions if isinstance(a, ev.Hold) and a.booking == name[1:]
            ]
            if self.facts.priority(life.job) >= self.facts.policy.priorities.get(booking.priority, 0):
                assert action.reason.code == "reclaimed-for", "evicted for a booking of no higher priority"
                job = Job(name=name, kind="batch", shape=booking.shape, queue=booking.queue)
                shares.check_may_reclaim(self.given, life, job, binding)
            return
        taken = [a.binding for a in self.plan.actions if isinstance(a, ev.Claim) and a.gang == name]
        assert taken, f"{life.name} leaves for {name}, which claims nothing"
        domains = {segment.domain for segment in taken[0]}
        assert domains & {segment.domain for segment in life.binding}, "a victim for nothing"
        winner = self.facts.lives[name].job
        lower = self.facts.priority(life.job) < self.facts.priority(winner)
        if life.job.queue == winner.queue:
            assert lower, "evicted for a gang of its own queue with no higher priority"
        if action.reason.code == "preempted-for":
            assert lower, "evicted for a gang of no higher priority"
        elif not lower:
            taker = self.facts.lives[name]
            self.given.add(taker, taken[0], -1)
            shares.check_may_reclaim(self.given, life, winner, taken[0])
            self.given.add(taker, taken[0])

    def check_gain(self, action: ev.Preempt | ev.Move) -> None:
        policy, reason = self.facts.policy, action.reason
        assert policy.defragment == "on", "defragmentation is off"
        assert isinstance(action, ev.Move)
        costs = reason.lost_gpu_s + reason.restart_gpu_s + reason.penalty_gpu_s
        assert reason.gain_gpu_s >= policy.defragment_gain * costs - 1e-6, "a move that is not worth it"

    def stop(self, action: ev.Stop | ev.Requeue) -> None:
        life = self.facts.lives[action.gang]
        assert life.attempt == action.attempt
        assert life.binding
        assert life.status != "leaving"
        assert life.cancelled if isinstance(action, ev.Stop) else life.status == "broken"

    # -- the rest ----------------------------------------------------------------------------------------------------

    def refuse(self, action: ev.Refuse) -> None:
        mine = [life for life in self.facts.lives.values() if life.job.name == action.job]
        assert mine
        assert not any(life.binding or life.claim for life in mine)
        if action.reason.code == "never-fits":
            assert not promises.ever_fits(self.facts, mine[0].job), f"{action.job} could run"

    def hold(self, action: ev.Hold) -> None:
        booking, facts = self.facts.bookings[action.booking], self.facts
        assert booking.start_s <= facts.now_s < booking.end_s
        before = held(facts.holding.get(action.booking, ()))
        assert bool(before) == (action.reason.code == "booking-mended")
        for node in before:
            del self.booked[node]
        offer = Offer(shape=booking.shape)
        job = Job(name="-", kind="batch", shape=booking.shape, cluster=booking.cluster, system=booking.system)
        check_shape(facts, job, offer, action.binding)
        after = held(action.binding)
        check_nearness(
            replace(job, nearness=booking.nearness), (facts.specs[s.domain] for s in action.binding)
        )
        lost = {
            facts.lives[self.held[False][n]].status for n in set(before) - set(after) if n in self.held[False]
        }
        assert not lost & {"starting", "running"}, "nodes in use are taken from a booking"
        assert not before or any(not facts.up(node) for node in set(before) - set(after)), (
            "replaced for nothing"
        )
        for node in after:
            assert node not in self.claimed
            assert node not in self.booked
            if node not in before:
                assert facts.up(node)
                assert self.held[False].get(node) is None or self.held[False][node] in self.leaving
            self.booked[node] = action.booking

    def free(self, action: ev.Free) -> None:
        booking = self.facts.bookings[action.booking]
        assert booking.end_s <= self.facts.now_s, "a booking ends before its time"
        for node in [node for node, name in self.booked.items() if name == action.booking]:
            del self.booked[node]

    def close(self, action: ev.Close) -> None:
        facts, reason = self.facts, action.reason
        if reason.code == "maintenance":
            assert reason.window is not None
            assert facts.maintenance[reason.window].start_s <= facts.now_s
        elif reason.code == "expired":
            expires_s = facts.specs[action.domain].expires_s
            assert expires_s is not None
            assert expires_s <= facts.now_s
        else:
            assert reason.code == "lemon"
            assert facts.policy.lemon_failures is not None
