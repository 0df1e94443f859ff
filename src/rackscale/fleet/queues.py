"""The tree of queues: what each holds, may hold and is owed, and how much it used lately.

Usage is charged to a gang's queue and to every queue above it, in GPUs and in millionths of an NVLink domain: a
segment that leaves no room for another of its size counts as a whole domain, a smaller one as its share.

Decayed use follows U' = held - U ln 2 / half_life, so that GPU-seconds of one half-life ago count half. It is shown as
the mean number of GPUs: U ln 2 / half_life, which is what a queue that always held so many would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import exp, inf, log

from msgspec import Struct

from rackscale.workload import Queue

MICRO = 1_000_000
"""Millionths of a domain."""
LN2 = log(2.0)


class Charge(Struct, frozen=True, gc=False):
    """What a gang costs its queue: GPUs, and millionths of NVLink domains."""

    gpus: int = 0
    domains: int = 0

    def plus(self, other: Charge) -> Charge:
        return Charge(self.gpus + other.gpus, self.domains + other.domains)

    def less(self, other: Charge) -> Charge:
        return Charge(self.gpus - other.gpus, self.domains - other.domains)


NOTHING = Charge()


@lru_cache
def segment_charge(nodes: int, usable: int) -> int:
    """Millionths of a domain that a segment of `nodes` counts as, where an empty domain gives `usable` to gangs."""
    return MICRO if 2 * nodes > usable else round(MICRO * nodes / usable)


class Used(Struct, kw_only=True):
    """Decayed use of GPUs, and what is held now."""

    gpus: int = 0
    gangs: int = 0
    gpu_s: float = 0.0
    """Decayed GPU-seconds at `at_s`."""
    at_s: float = 0.0

    def now(self, now_s: float, half_life_s: float) -> float:
        """Decayed GPU-seconds at `now_s`."""
        rate = LN2 / half_life_s
        fade = exp(-rate * (now_s - self.at_s))
        return self.gpu_s * fade + self.gpus * (1.0 - fade) / rate

    def change(self, gpus: int, gangs: int, now_s: float, half_life_s: float | None) -> None:
        if half_life_s is not None and now_s != self.at_s:
            self.gpu_s, self.at_s = self.now(now_s, half_life_s), now_s
        self.gpus += gpus
        self.gangs += gangs


class Node:
    """One queue with what its subtree holds.

    What a decision gives and takes before it is folded is counted apart (`trial`), and taken back at its end.
    """

    __slots__ = (
        "domains", "going_domains", "going_gpus", "path", "spec", "trial_domains", "trial_gangs", "trial_gpus",
        "trial_users", "used", "users",
    )  # fmt: skip

    def __init__(self, spec: Queue) -> None:
        self.spec = spec
        self.used = Used()
        self.domains = 0
        """Millionths of domains held by the subtree."""
        self.users: dict[str, Used] = {}
        """By user, what is held in this very queue."""
        self.path: tuple[Node, ...] = ()
        """From this queue to its root."""
        self.trial_gpus = self.trial_domains = self.trial_gangs = 0
        self.going_gpus = self.going_domains = 0
        """Of what is held, what gangs that leave will give up."""
        self.trial_users: dict[str, tuple[int, int]] = {}
        """User -> (GPUs, gangs)."""

    def adopt(self, before: Node) -> None:
        """Take over the past use of a queue of this name; what is held is charged anew."""
        self.used = Used(gpu_s=before.used.gpu_s, at_s=before.used.at_s)
        self.users = {user: Used(gpu_s=used.gpu_s, at_s=used.at_s) for user, used in before.users.items()}

    @property
    def gpus(self) -> int:
        return self.used.gpus + self.trial_gpus

    @property
    def micro_domains(self) -> int:
        return self.domains + self.trial_domains

    def admits(self, charge: Charge) -> bool:
        """Whether quota and borrowing limit allow so much more."""
        spec = self.spec
        if (
            spec.borrow_gpus is not None
            and self.gpus + charge.gpus > (spec.quota_gpus or 0) + spec.borrow_gpus
        ):
            return False
        if spec.borrow_domains is None:
            return True
        return self.micro_domains + charge.domains <= micro((spec.quota_domains or 0.0) + spec.borrow_domains)

    def within_quota(self, more: Charge) -> bool:
        """Whether it states a quota and stays within it with so much more."""
        spec = self.spec
        if not spec.guaranteed:
            return False
        if spec.quota_gpus is not None and self.gpus + more.gpus > spec.quota_gpus:
            return False
        return spec.quota_domains is None or self.micro_domains + more.domains <= micro(spec.quota_domains)

    def can_spare(self) -> tuple[float, float]:
        """GPUs and millionths of domains that it could lose and still hold its quota; negative below its quota."""
        spec, gpus, domains = self.spec, inf, inf
        if spec.quota_gpus is not None:
            gpus = self.used.gpus + self.trial_gpus - self.going_gpus - spec.quota_gpus
        if spec.quota_domains is not None:
            domains = self.domains + self.trial_domains - self.going_domains - micro(spec.quota_domains)
        return gpus, domains


Past = tuple[Node, list[tuple[Node, float, float]], float]
"""A queue; it and those above it from the root down, each with its decayed use and weight; the use of one user."""


def micro(domains: float) -> int:
    return round(domains * MICRO)


class QueueTree:
    """All queues by name. A queue that nobody configured is a root without quota or limits."""

    def __init__(self, queues: Iterable[Queue] = (), half_life_s: float | None = None) -> None:
        self.half_life_s = half_life_s
        self.nodes: dict[str, Node] = {}
        specs = {queue.name: queue for queue in queues}
        for spec in specs.values():
            self.nodes[spec.name] = Node(spec)
        for node in self.nodes.values():
            node.path = tuple(self._path(node, specs))
        self.guaranteed = any(spec.guaranteed for spec in specs.values())
        """Whether any queue states a quota."""
        self.limited = any(_limits(spec) for spec in specs.values())
        """Whether any queue or user is limited at all."""
        self._tried: dict[str, None] = {}
        self._apart: dict[tuple[str, str], tuple[tuple[Node, ...], Node]] = {}

    def _path(self, node: Node, specs: Mapping[str, Queue]) -> Iterable[Node]:
        seen: set[str] = set()
        while node.spec.name not in seen:  # a cycle is refused by the gate; it must not hang a replay either
            seen.add(node.spec.name)
            yield node
            parent = node.spec.parent
            if parent is None or parent not in specs:
                return
            node = self.nodes[parent]

    def node(self, name: str) -> Node:
        found = self.nodes.get(name)
        if found is None:
            found = self.nodes[name] = Node(Queue(name=name))
            found.path = (found,)
        return found

    def change(self, name: str, user: str, charge: Charge, gangs: int, now_s: float) -> None:
        """The queue's gangs hold so much more (`gangs` = 1) or less (-1)."""
        half_life_s, gpus, domains = self.half_life_s, charge.gpus * gangs, charge.domains * gangs
        node = self.node(name)
        for above in node.path:
            above.used.change(gpus, gangs, now_s, half_life_s)
            above.domains += domains
        used = node.users.get(user)
        if used is None:
            used = node.users[user] = Used(at_s=now_s)
        used.change(gpus, gangs, now_s, half_life_s)

    def trial(self, name: str, user: str, charge: Charge, gangs: int) -> None:
        """Count what this decision gives (`gangs` = 1) or takes (-1), until `end_trial`."""
        node = self.node(name)
        for above in node.path:
            above.trial_gpus += charge.gpus * gangs
            above.trial_domains += charge.domains * gangs
            above.trial_gangs += gangs
            self._tried[above.spec.name] = None
        gpus, count = node.trial_users.get(user, (0, 0))
        node.trial_users[user] = (gpus + charge.gpus * gangs, count + gangs)

    def depart(self, name: str, charge: Charge) -> None:
        """So much of what the queue holds is about to be given up, until `end_trial`."""
        for above in self.node(name).path:
            above.going_gpus += charge.gpus
            above.going_domains += charge.domains
            self._tried[above.spec.name] = None

    def end_trial(self) -> None:
        for name in self._tried:
            node = self.nodes[name]
            node.going_gpus = node.going_domains = 0
            node.trial_gpus = node.trial_domains = node.trial_gangs = 0
            node.trial_users.clear()
        self._tried.clear()

    def share(
        self, name: str, user: str, now_s: float, known: dict[tuple[str, str], Past]
    ) -> tuple[float, ...]:
        """The order of fair share: decayed use per weight, from the root down to the user; less goes first.

        What is given in this very decision counts at once. `known`: the use without that, as far as it was worked out
        in this decision.
        """
        half_life_s = self.half_life_s
        if half_life_s is None:
            return ()
        found = known.get((name, user))
        if found is None:
            found = known[name, user] = self._past(name, user, now_s, half_life_s)
        node, above, own = found
        gpus = node.trial_users[user][0] if user in node.trial_users else 0
        return (*[(use + one.trial_gpus) / weight for one, use, weight in above], own + gpus)

    def _past(self, name: str, user: str, now_s: float, half_life_s: float) -> Past:
        node, rate = self.node(name), LN2 / half_life_s
        above = [
            (one, one.used.now(now_s, half_life_s) * rate, one.spec.weight) for one in reversed(node.path)
        ]
        used = node.users.get(user)
        return node, above, 0.0 if used is None else used.now(now_s, half_life_s) * rate

    def refuses(self, name: str, user: str, charge: Charge) -> str | None:
        """Which limit keeps so much more from being held, or None: `queue-limit`, `queue-gangs`, `user-limit`."""
        if not self.limited:
            return None
        node = self.node(name)
        for above in node.path:
            if not above.admits(charge):
                return "queue-limit"
            most = above.spec.max_gangs
            if most is not None and above.used.gangs + above.trial_gangs >= most:
                return "queue-gangs"
        spec = node.spec
        if spec.max_gangs_per_user is None and spec.max_gpus_per_user is None:
            return None
        used, (gpus, gangs) = node.users.get(user) or Used(), node.trial_users.get(user, (0, 0))
        if spec.max_gangs_per_user is not None and used.gangs + gangs >= spec.max_gangs_per_user:
            return "user-limit"
        if spec.max_gpus_per_user is not None and used.gpus + gpus + charge.gpus > spec.max_gpus_per_user:
            return "user-limit"
        return None

    def borrows(self, name: str, charge: Charge) -> bool:
        """Whether the queue would hold more than it is guaranteed; never where no quota is in force."""
        return self.guaranteed and not self.node(name).within_quota(charge)

    def between(self, victim: str, taker: str) -> tuple[tuple[Node, ...], Node]:
        """The victim's queues below the common one, and the taker's topmost queue below it."""
        key = (victim, taker)
        found = self._apart.get(key)
        if found is None:
            theirs, ours = self.node(victim).path, self.node(taker).path
            below = tuple(node for node in theirs if node not in ours)
            mine = [node for node in ours if node not in theirs]
            found = self._apart[key] = (below, mine[-1] if mine else ours[0])
        return found

    def owed(self, victim: str, taker: str, charge: Charge) -> bool:
        """Whether the taker's side may reclaim from the victim's: it stays within its own quota with `charge`."""
        below, mine = self.between(victim, taker)
        return bool(below) and mine.within_quota(charge)

    def can_spare(self, victim: str, taker: str, *, straddle: bool) -> tuple[float, float]:
        """GPUs and millionths of domains that the victim's queues can lose to the taker and still hold their quotas.

        `straddle`: it is enough that each holds more than its quota before, so that a gang that lies across the quota
        can be taken too.
        """
        below, _ = self.between(victim, taker)
        gpus, domains = inf, inf
        for node in below:
            if node.spec.guaranteed:
                of_gpus, of_domains = node.can_spare()
                gpus, domains = min(gpus, of_gpus), min(domains, of_domains)
        if straddle:
            return (inf, inf) if gpus >= 1 and domains >= 1 else (-1, -1)
        return gpus, domains

    def can_lose(self, victim: str, taker: str, charge: Charge, *, straddle: bool) -> bool:
        """Whether the victim's queues can lose `charge` to the taker without falling below what they are guaranteed."""
        gpus, domains = self.can_spare(victim, taker, straddle=straddle)
        return charge.gpus <= gpus and charge.domains <= domains


def _limits(spec: Queue) -> bool:
    return any(
        limit is not None
        for limit in (
            spec.borrow_gpus, spec.borrow_domains, spec.max_gangs, spec.max_gangs_per_user, spec.max_gpus_per_user
        )
    )  # fmt: skip
