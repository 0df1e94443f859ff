"""What keeps a waiting gang from starting, asked of the code that places: one obstacle after the other is ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Literal

from msgspec.structs import replace

from rackscale.events import Start
from rackscale.fleet.gangs import Gang, WaitClass, remaining_s
from rackscale.fleet.health import EXPIRED
from rackscale.fleet.occupancy import members
from rackscale.fleet.queues import MICRO, Charge, Node
from rackscale.fleet.topology import Group, Rooms
from rackscale.scheduler.answers import Obstacle
from rackscale.scheduler.cycle import Cycle
from rackscale.scheduler.fit import Books, Placement, Search, bind, ever_fits, place, place_in, wishes
from rackscale.scheduler.order import Key
from rackscale.scheduler.place import admitted, closed, least_charge, refused
from rackscale.workload import Job, Offer

Unit = Literal["gpus", "domains", "gangs"]


class Judge:
    """Judges one waiting gang in what is left after those ahead of it had their turn (`decide.fill`)."""

    def __init__(self, cycle: Cycle, gang: Gang, key: Key, cls: WaitClass) -> None:
        self.cycle, self.gang, self.key, self.cls = cycle, gang, key, cls
        self.state = cycle.state
        self.job = self.state.jobs[gang.job]

    def judge(self, choice: int) -> Obstacle:
        """What keeps the gang waiting in this choice."""
        offer = self.job.choices[choice]
        if self.job.booking is not None:
            found = self._booking(offer)
        else:
            found = self._limit(choice, offer) or self._place(offer)
        return self._sized(found, offer)

    # -- limits ------------------------------------------------------------------------------------------------------

    def _limit(self, choice: int, offer: Offer) -> Obstacle | None:
        """The limit in the way, before or after it is known where the gang would go."""
        code = admitted(self.cycle, self.gang, self.job, choice)
        if code is not None:
            return self._limited(code, least_charge(self.cycle, self.job, choice))
        placement = self.fits(offer)
        if placement is None or self.job.cpu_only:
            return None
        charge = self.state.machines.charge(bind(self.state, placement, offer.shape))
        code = refused(self.cycle, self.gang, self.job, charge)
        return None if code is None else self._limited(code, charge)

    def _limited(self, code: str, charge: Charge) -> Obstacle:
        """The limit with its numbers, in its own unit."""
        node = self.state.tree.node(self.gang.queue)
        if code == "user-limit":
            return self._user(node, charge)
        if code == "borrows":
            gpus = node.spec.quota_gpus
            unit: Unit = "gpus" if gpus is not None and node.gpus + charge.gpus > gpus else "domains"
            quota = float(gpus or 0) if unit == "gpus" else node.spec.quota_domains or 0.0
            return _in_unit(code, node, unit, charge, quota)
        for above in node.path:
            spec = above.spec
            if code == "queue-gangs":
                if spec.max_gangs is not None and above.used.gangs + above.trial_gangs >= spec.max_gangs:
                    return _in_unit(code, above, "gangs", charge, spec.max_gangs)
            elif not above.admits(charge):
                most = (spec.quota_gpus or 0) + (spec.borrow_gpus or 0)
                if spec.borrow_gpus is not None and above.gpus + charge.gpus > most:
                    return _in_unit(code, above, "gpus", charge, most)
                domains = (spec.quota_domains or 0.0) + (spec.borrow_domains or 0.0)
                return _in_unit(code, above, "domains", charge, domains)
        raise AssertionError(f"no queue has the limit {code}")

    def _user(self, node: Node, charge: Charge) -> Obstacle:
        spec, used = node.spec, node.users.get(self.job.user)
        gpus, gangs = node.trial_users.get(self.job.user, (0, 0))
        gpus, gangs = gpus + (used.gpus if used else 0), gangs + (used.gangs if used else 0)
        unit: Unit
        if spec.max_gangs_per_user is not None and gangs >= spec.max_gangs_per_user:
            unit, now, asks, limit = "gangs", gangs, 1, spec.max_gangs_per_user
        else:
            unit, now, asks, limit = "gpus", gpus, charge.gpus, spec.max_gpus_per_user or 0
        return Obstacle(
            code="user-limit", subject=self.job.user, detail=node.spec.name, unit=unit, used=now, asks=asks, limit=limit
        )  # fmt: skip

    def _booking(self, offer: Offer) -> Obstacle:
        """Inside a booking nobody else is in the way: it has not begun, is too short, or is full."""
        name, now_s = self.job.booking or "", self.cycle.now_s
        if any(isinstance(a, Start) and a.gang == self.gang.name for a in self.cycle.actions):
            return Obstacle(code="next-cycle")
        calendar = self.state.machines.calendar
        booking = calendar.bookings.get(name)
        if booking is None:
            return Obstacle(code="booking", subject=name, detail="unknown")
        left_s = remaining_s(self.gang, self.job)
        takes_s = self.job.durability.restart_s + (0.0 if left_s == inf else left_s / offer.throughput)
        begins_s = max(now_s, booking.start_s)
        if begins_s >= booking.end_s or begins_s + takes_s > booking.end_s:
            return Obstacle(
                code="booking", subject=name, detail="outlives", at_s=booking.end_s, takes_s=takes_s,
                lasts_s=max(0.0, booking.end_s - begins_s),
            )  # fmt: skip
        if name not in calendar.holding:
            return Obstacle(code="booking", subject=name, detail="not-begun", at_s=booking.start_s)
        choice = self.job.choices.index(offer)
        code = admitted(self.cycle, self.gang, self.job, choice)
        if code is not None:
            return self._limited(code, least_charge(self.cycle, self.job, choice))
        return Obstacle(code="booking", subject=name, detail="full", at_s=booking.end_s)

    # -- room --------------------------------------------------------------------------------------------------------

    def fits(self, offer: Offer, ignoring: str = "", books: Books | None = None) -> Placement | None:
        """Where the gang fits with some obstacles ignored: any of `promises windows apart within spread`."""
        job = self.job
        shut, promised, siblings = closed(self.cycle, self.key, self.cls, job, offer)
        avoid = 0 if "windows" in ignoring else shut
        avoid |= 0 if "promises" in ignoring else promised
        if job.nearness.apart_required and "apart" not in ignoring:
            avoid |= siblings
        near = job.nearness
        if "within" in ignoring:
            near = replace(near, within=None)
        if "spread" in ignoring:
            near = replace(near, spread=None)
        if near != job.nearness:
            job = replace(job, nearness=near)
        if books is None:
            return place(self.state, offer, job, books=self.state.machines.books(job).occupancy, avoid=avoid)
        return _anywhere(self, books, job, offer, avoid)

    def _place(self, offer: Offer) -> Obstacle:
        """The obstacle between the gang and free nodes."""
        found = self.fits(offer)
        if found is not None:
            if self.state.policy.backfill or not self.cycle.blocked:
                return Obstacle(code="next-cycle", domains=self._names(found.domains))
            first = self.cycle.blocked[0]
            return Obstacle(code="policy", subject=first.cls.entries[first.at][2])
        if not ever_fits(
            self.state, replace(self.job, shape=offer.shape, offers=(), system=self._system(offer))
        ):
            return Obstacle(code="never-fits")
        return self._undelivered(offer) or self._closed(offer) or self._near(offer) or self._room(offer)

    def _undelivered(self, offer: Offer) -> Obstacle | None:
        """Nothing that is delivered could hold it."""
        health = self.state.machines.health
        if not health.ready_s or self.fits(
            offer, "promises windows apart", self.empty(offer, lambda d: not health.absent[d])
        ):
            return None
        for at_s in sorted(set(health.ready_s.values())):
            books = self.empty(offer, lambda d, by_s=at_s: health.ready_s.get(d, 0.0) <= by_s)  # type: ignore[misc]
            found = self.fits(offer, "promises windows apart", books)
            if found is not None:
                awaited = [d for d in found.domains if health.absent[d]]
                return Obstacle(code="announced", at_s=at_s, domains=self._names(awaited))
        return None

    def _closed(self, offer: Offer) -> Obstacle | None:
        """Domains that have the room, but may not be used."""
        promises = self.cycle.promises
        found = self.fits(offer, "promises")
        if found is not None:
            theirs = closed(self.cycle, self.key, self.cls, self.job, offer).promised
            holders = promises.holders(self.key, theirs & sum(1 << d for d in set(found.domains)))
            first = next((p for p in promises.all() if p.name in holders), None)
            return Obstacle(
                code="reserved", subject=first.name if first else None, at_s=first.start_s if first else None,
                domains=self._names(found.domains),
            )  # fmt: skip
        found = self.fits(offer, "promises windows")
        if found is None:
            return None
        on = self.state.machines.calendar.on
        windows = sorted(w for d in set(found.domains) for w in on.get(d, ()))
        window = next((w for w in windows if w.name != EXPIRED), windows[0])
        code = EXPIRY if window.name == EXPIRED else "maintenance"
        return Obstacle(
            code=code, subject=window.name, at_s=window.start_s, domains=self._names(found.domains)
        )

    def _near(self, offer: Offer) -> Obstacle | None:
        """Domains have the room, but lie too far apart, or too close together; or only their spares are free."""
        near, so_far = self.job.nearness, "promises windows"
        for rule, level in (("apart", near.apart), ("within", near.within), ("spread", near.spread)):
            so_far += f" {rule}"
            if level is not None and (found := self.fits(offer, so_far)) is not None:
                return Obstacle(code="fabric", subject=f"{rule} {level}", domains=self._names(found.domains))
        occupancy = self.state.machines.books(self.job).occupancy
        if not any(occupancy.spares):
            return None
        books = Rooms()
        for group in self._groups(offer):
            for d in members(group.domains):
                books.add(d, occupancy.free[d].bit_count())
        found = self.fits(offer, ALL, books)
        return None if found is None else Obstacle(code="spares", domains=self._names(found.domains))

    def _room(self, offer: Offer) -> Obstacle:
        up = self.state.machines.books(self.job).occupancy.up
        if self.fits(offer, ALL, self.empty(offer, up=up)) is None:
            return Obstacle(code="health")
        needs, free, _ = self.counted(offer)
        return Obstacle(code="topology" if free >= needs else "capacity")

    def counted(self, offer: Offer) -> tuple[int, int, int]:
        """(GPUs that it needs, that are free, domains with room for a segment), of the cluster with the most free."""
        occupancy, shape = self.state.machines.books(self.job).occupancy, offer.shape
        best = (shape.nodes_held, 0, 0)
        for group in self._groups(offer):
            free = roomy = 0
            for room, bits in enumerate(occupancy.buckets):
                count = (bits & group.domains).bit_count() if room else 0
                free += room * count
                roomy += count if room >= shape.nodes_held_per_segment else 0
            found = (shape.nodes_held * group.gpus_per_node, free * group.gpus_per_node, roomy)
            if found[1] >= best[1]:
                best = found
        return best

    def empty(
        self, offer: Offer, wanted: Callable[[int], bool] | None = None, up: list[int] | None = None
    ) -> Rooms:
        """Room of the wanted domains (None: all) if nobody were on them; with `up`, on the nodes that are up."""
        books, full = Rooms(), self.state.machines.health.full
        kept = self.state.policy.spares == "fixed" and not self.job.cpu_only
        for group in self._groups(offer):
            for d in members(group.domains):
                if wanted is None or wanted(d):
                    nodes = (full if up is None else up)[d].bit_count()
                    books.add(d, max(0, nodes - (self.state.domains[d].spares if kept else 0)))
        return books

    def _system(self, offer: Offer) -> str | None:
        return offer.system or self.job.system

    def _groups(self, offer: Offer) -> tuple[Group, ...]:
        return self.state.topology.groups(self._system(offer), self.job.cluster)

    def _names(self, domains: Iterable[int]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.state.domains[d].name for d in sorted(domains)))

    def _sized(self, obstacle: Obstacle, offer: Offer) -> Obstacle:
        needs, free, roomy = self.counted(offer)
        return replace(
            obstacle, needs_gpus=needs, free_gpus=free, segments=offer.shape.segments,
            nodes_per_segment=offer.shape.nodes_held_per_segment, roomy_domains=roomy,
        )  # fmt: skip


EXPIRY = "expiry"
ALL = "promises windows apart within spread"


def _anywhere(judge: Judge, books: Books, job: Job, offer: Offer, avoid: int) -> Placement | None:
    groups = judge.state.topology.groups(offer.system or job.system, job.cluster)
    for wish in wishes(job.nearness, offer.shape)[-1:]:
        for group in groups:
            found = place_in(Search(judge.state.topology, books, offer.shape, wish), group, avoid)
            if found is not None:
                return found
    return None


def _in_unit(code: str, node: Node, unit: Unit, charge: Charge, limit: float) -> Obstacle:
    used, asks = {
        "gpus": (float(node.gpus), float(charge.gpus)),
        "domains": (node.micro_domains / MICRO, charge.domains / MICRO),
        "gangs": (float(node.used.gangs + node.trial_gangs), 1.0),
    }[unit]
    return Obstacle(code=code, subject=node.spec.name, unit=unit, used=used, asks=asks, limit=limit)
