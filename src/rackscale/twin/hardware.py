"""What fails and what is repaired, from seeded streams: one per cause, so that changing one cause changes no other.

Failures of one cause are a Poisson process over all GPUs delivered so far. A failure picks its GPU uniformly, lemons
so many times as often as their number; where the node is down already, or the capacity has gone back, nothing happens.
Rates, lemons and repair times are `spec.Failures`; its defaults are assumed, since no field data for NVL72 racks was
found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import inf
from random import Random

from rackscale.events import Announced, Delivered, DomainSpec, Extended, Input, NodeFailed, NodeRepaired
from rackscale.spec import Duration, Failures
from rackscale.twin.agenda import Agenda

NEVER = -1
THERE = -1.0
"""Stands for the time at which a domain that was delivered is expected."""


class Pool:
    """GPUs to choose from: some nodes of some domains."""

    def __init__(self) -> None:
        self.gpus = 0
        self._parts: list[tuple[DomainSpec, Sequence[int]]] = []
        self._before: list[int] = []
        """GPUs of all parts before each one."""

    def add(self, spec: DomainSpec, nodes: Sequence[int]) -> None:
        self._parts.append((spec, nodes))
        self._before.append(self.gpus)
        self.gpus += len(nodes) * spec.gpus_per_node

    def pick(self, share: float) -> tuple[DomainSpec, int]:
        """The domain and node of the GPU at this share (0 to 1) of all."""
        gpu = int(share * self.gpus)
        at = bisect_right(self._before, gpu) - 1
        spec, nodes = self._parts[at]
        return spec, nodes[(gpu - self._before[at]) // spec.gpus_per_node]


class Hardware:
    """Every delivered domain, and until when which of its nodes are down."""

    def __init__(self, agenda: Agenda, failures: Failures | None, seed: int) -> None:
        self.all, self.lemons = Pool(), Pool()
        self._agenda, self._failures = agenda, failures
        self._ready_s: dict[str, float] = {}
        """Domain -> when it was last expected, or `THERE`."""
        self._expires_s: dict[str, float] = {}
        """Domain -> when its capacity goes back, where it does."""
        self._down: dict[str, dict[int, float]] = {}
        """Domain -> node -> when it is repaired."""
        self._repairs = Random(f"{seed}/failures/found-down")
        self._seed = seed
        self._causes: tuple[Cause, ...] = ()
        if failures is not None:
            all_s, domain = failures.per_gpu_hour / 3600.0, failures.domain_share
            kinds = (
                ("node", (1.0 - domain) * all_s, failures.node_repair),
                ("domain", domain * all_s, failures.domain_repair),
            )
            self._causes = tuple(
                Cause(
                    self,
                    agenda,
                    Random(f"{seed}/failures/{name}"),
                    name=name,
                    per_gpu_s=per_gpu_s,
                    repair=repair,
                )
                for name, per_gpu_s, repair in kinds
            )

    def deliver(self, at_s: float, domains: Iterable[DomainSpec]) -> None:
        """More GPUs that may fail from now on."""
        for cause in self._causes:
            cause.age(at_s)
        for spec in domains:
            if (
                self._ready_s.get(spec.name) == THERE
            ):  # it came when it was expected, and somebody says so too
                continue
            self._ready_s[spec.name] = THERE
            self.all.add(spec, range(spec.nodes))
            self._expire(spec.name, spec.expires_s)
            lemons = self._lemons_of(spec)
            if lemons:
                self.lemons.add(spec, lemons)
        for cause in self._causes:
            cause.expect(at_s)

    def expect(self, ready_s: float, domains: Iterable[DomainSpec]) -> None:
        """Domains come when they are expected, unless they come otherwise or are announced anew before."""
        for spec in domains:
            if self._ready_s.get(spec.name) != THERE:
                self._ready_s[spec.name] = ready_s
                self._agenda.put(ready_s, Arrival(self, spec))

    def arrives(self, at_s: float, spec: DomainSpec) -> bool:
        """Whether a domain that was expected now is due by what was said last."""
        return self._ready_s[spec.name] == at_s

    def announced(self, event: Announced) -> None:
        self.expect(max(event.at_s, event.ready_s), event.domains)

    def delivered(self, event: Delivered) -> None:
        self.deliver(event.at_s, event.domains)

    def extended(self, event: Extended) -> None:
        """The capacity goes back at another time."""
        for name in event.domains:
            self._expire(name, event.expires_s)

    def _expire(self, domain: str, expires_s: float | None) -> None:
        if expires_s is not None:
            self._expires_s[domain] = expires_s
        else:
            self._expires_s.pop(domain, None)

    def _lemons_of(self, spec: DomainSpec) -> list[int]:
        """Which nodes fail more often than others. They are the same whatever else was delivered."""
        share = self._failures.lemon_share if self._failures is not None else 0.0
        if share == 0.0:
            return []
        stream = Random(f"{self._seed}/lemons/{spec.name}")
        return [node for node in range(spec.nodes) if stream.random() < share]

    @property
    def lemon_excess(self) -> float:
        """GPUs that lemons count for beyond their number."""
        return self.lemons.gpus * (self._failures.lemon_factor - 1.0) if self._failures is not None else 0.0

    def fail(self, at_s: float, spec: DomainSpec, nodes: Sequence[int], repair_s: float) -> bool:
        """Take nodes down until they are repaired. False where all are down already or gone: then nothing happens."""
        down = self._down.setdefault(spec.name, {})
        if self._expires_s.get(spec.name, inf) <= at_s or all(node in down for node in nodes):
            return False
        for node in nodes:
            down[node] = max(down.get(node, 0.0), at_s + repair_s)
        self._agenda.put(at_s + repair_s, Repair(self, spec))
        return True

    def found_down(self, at_s: float, spec: DomainSpec, nodes: Sequence[int]) -> None:
        """Nodes that were down before the twin began; their repair takes as long as a fresh one."""
        if self._failures is not None:
            self.fail(at_s, spec, nodes, self._failures.node_repair.sample_s(self._repairs))

    def repaired(self, event: NodeRepaired) -> None:
        """These nodes (None: all) are up, whoever repaired them."""
        if event.nodes is None:
            self._down.pop(event.domain, None)
        for node in event.nodes or ():
            self._down.get(event.domain, {}).pop(node, None)

    def due(self, at_s: float, spec: DomainSpec) -> tuple[int, ...]:
        """Nodes of the domain whose repair is done by now."""
        down = self._down.get(spec.name, {})
        return tuple(sorted(node for node, until_s in down.items() if until_s <= at_s))


class Arrival:
    """The time at which a domain is expected."""

    __slots__ = ("_hardware", "_spec")

    def __init__(self, hardware: Hardware, spec: DomainSpec) -> None:
        self._hardware, self._spec = hardware, spec

    def happen(self, at_s: float, ticket: int) -> Input | None:  # noqa: ARG002 - what is announced anew comes anew
        if not self._hardware.arrives(at_s, self._spec):
            return None
        return Delivered(at_s=at_s, domains=(self._spec,))


class Repair:
    """The end of one repair. What failed again meanwhile stays down."""

    __slots__ = ("_hardware", "_spec")

    def __init__(self, hardware: Hardware, spec: DomainSpec) -> None:
        self._hardware, self._spec = hardware, spec

    def happen(self, at_s: float, ticket: int) -> Input | None:  # noqa: ARG002 - a repair is never taken back
        nodes = self._hardware.due(at_s, self._spec)
        return NodeRepaired(at_s=at_s, domain=self._spec.name, nodes=nodes) if nodes else None


class Cause:
    """One cause of failure: when it strikes next, what it takes, and how long the repair is."""

    def __init__(
        self,
        hardware: Hardware,
        agenda: Agenda,
        stream: Random,
        *,
        name: str,
        per_gpu_s: float,
        repair: Duration,
    ) -> None:
        self.name, self.per_gpu_s, self.repair = name, per_gpu_s, repair
        self._hardware, self._agenda, self._stream = hardware, agenda, stream
        self._left = self._stream.expovariate(1.0)
        """What remains of a unit-exponential hazard until the next failure."""
        self._since_s = 0.0
        self._ticket = NEVER

    @property
    def _excess(self) -> float:
        """Only single nodes are lemons: a fault of a whole domain is not theirs."""
        return self._hardware.lemon_excess if self.name == "node" else 0.0

    @property
    def _rate(self) -> float:
        return self.per_gpu_s * (self._hardware.all.gpus + self._excess)

    def age(self, now_s: float) -> None:
        """Account for the hazard since the last failure or delivery."""
        self._left -= (now_s - self._since_s) * self._rate
        self._since_s = now_s

    def expect(self, now_s: float) -> None:
        """Put the next failure on the agenda."""
        self._since_s = now_s
        if self._rate > 0.0:
            self._ticket = self._agenda.put(now_s + max(0.0, self._left) / self._rate, self)

    def happen(self, at_s: float, ticket: int) -> Input | None:
        if ticket != self._ticket:
            return None
        stream = self._stream
        spec, node = self._pick(stream.random())
        repair_s = self.repair.sample_s(stream)
        self._left = stream.expovariate(1.0)
        self.expect(at_s)
        nodes = (node,) if self.name == "node" else None
        if not self._hardware.fail(at_s, spec, nodes or range(spec.nodes), repair_s):
            return None
        return NodeFailed(
            at_s=at_s, domain=spec.name, nodes=nodes, cause=self.name, repair_s=self.repair.median_s
        )

    def _pick(self, share: float) -> tuple[DomainSpec, int]:
        """The node at this share of all hazard: that of all GPUs, then what lemons have beyond it."""
        hardware, excess = self._hardware, self._excess
        if not excess:
            return hardware.all.pick(share)
        at = share * (hardware.all.gpus + excess)
        if at < hardware.all.gpus:
            return hardware.all.pick(at / hardware.all.gpus)
        return hardware.lemons.pick((at - hardware.all.gpus) / excess)
