"""What keeps nodes out of use, when they are expected back, and which of them fail too often.

A node is up unless it failed, is drained by people, closed by a decision (maintenance, expiry, a lemon) or not yet
delivered. Each is a mask per domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from rackscale.events import DomainSpec
from rackscale.fleet.occupancy import members
from rackscale.workload import Policy

LEMON, EXPIRED = "lemon", "expired"


class Health:
    """Masks by domain index."""

    def __init__(self) -> None:
        self.full: list[int] = []
        self.failed: list[int] = []
        self.drained: list[int] = []
        self.deadline_s: dict[tuple[int, int], float] = {}
        """(domain, drained node) -> when what runs there must have left; those that are not here: at once."""
        self.closed: list[int] = []
        """Closed by decisions, for whatever reason."""
        self.absent: list[int] = []
        """Announced and not delivered."""
        self.ready_s: dict[int, float] = {}
        """Announced domain -> when it is expected."""
        self.closures: dict[tuple[int, str], int] = {}
        """(domain, code or maintenance) -> mask that it closes."""
        self.back_s: dict[tuple[int, int], float] = {}
        """(domain, node) -> when a failed node is expected back."""
        self.history: dict[tuple[int, int], tuple[float, ...]] = {}
        """(domain, node) -> its last failures, those within the policy's window."""
        self.suspects: dict[tuple[int, int], None] = {}
        """Nodes that failed too often, and are not closed yet."""

    def add(self, spec: DomainSpec, *, ready_s: float | None) -> None:
        d, full = len(self.full), (1 << spec.nodes) - 1
        self.full.append(full)
        for masks in (self.failed, self.drained, self.closed):
            masks.append(0)
        self.absent.append(0 if ready_s is None else full)
        if ready_s is not None:
            self.ready_s[d] = ready_s

    def deliver(self, d: int) -> None:
        """An announced domain is there."""
        self.absent[d] = 0
        self.ready_s.pop(d, None)

    def up(self, d: int) -> int:
        return self.full[d] & ~(self.failed[d] | self.drained[d] | self.closed[d] | self.absent[d])

    def fail(self, d: int, mask: int, now_s: float, back_s: float, policy: Policy, *, count: bool) -> None:
        """These nodes fail; `count`: towards being a lemon."""
        for node in members(mask):
            key = (d, node)
            fresh = not self.failed[d] >> node & 1
            self.back_s[key] = back_s if fresh else max(back_s, self.back_s.get(key, back_s))
            if count and fresh and policy.lemon_failures is not None:
                since_s = now_s - policy.lemon_window_s
                times = (*(at_s for at_s in self.history.get(key, ()) if at_s > since_s), now_s)
                self.history[key] = times[-policy.lemon_failures :]
                if len(times) >= policy.lemon_failures and not self.closed[d] >> node & 1:
                    self.suspects[key] = None
        self.failed[d] |= mask

    def repair(self, d: int, mask: int) -> None:
        self.failed[d] &= ~mask
        for node in members(mask):
            self.back_s.pop((d, node), None)

    def drain(self, d: int, mask: int, deadline_s: float | None) -> None:
        """These nodes are drained; of two deadlines the earlier one counts."""
        for node in members(mask):
            fresh = not self.drained[d] >> node & 1
            before_s = inf if fresh else self.deadline_s.pop((d, node), -inf)
            by_s = -inf if deadline_s is None else min(deadline_s, before_s)
            if by_s > -inf:
                self.deadline_s[d, node] = by_s
        self.drained[d] |= mask

    def drains(self, d: int) -> dict[float | None, int]:
        """When gangs must have left drained nodes of domain d -> mask of those nodes; None: at once."""
        found: dict[float | None, int] = {}
        for node in members(self.drained[d]):
            by_s = self.deadline_s.get((d, node))
            found[by_s] = found.get(by_s, 0) | 1 << node
        return found

    def leave_by_s(self, d: int, mask: int) -> float:
        """When a gang on these nodes must have left since some of them are drained; infinite: none is."""
        return min((self.deadline_s.get((d, n), -inf) for n in members(mask & self.drained[d])), default=inf)

    def undrain(self, d: int, mask: int) -> None:
        """People want these nodes used: also those that were taken for lemons."""
        self.drained[d] &= ~mask
        self.open(d, mask, LEMON)
        for node in members(mask):
            self.deadline_s.pop((d, node), None)
            self.history.pop((d, node), None)
            self.suspects.pop((d, node), None)

    def close(self, d: int, mask: int, why: str) -> None:
        self.closures[d, why] = self.closures.get((d, why), 0) | mask
        self.closed[d] |= mask
        for node in members(mask):
            self.suspects.pop((d, node), None)

    def open(self, d: int, mask: int, why: str) -> None:
        if not self.closures.get((d, why), 0) & mask:
            return
        left = self.closures.pop((d, why)) & ~mask
        if left:
            self.closures[d, why] = left
        self.closed[d] = 0
        for (other, _), closed in self.closures.items():
            if other == d:
                self.closed[d] |= closed

    def comebacks(self, d: int) -> Iterator[tuple[float, int]]:
        """(when, mask) of nodes of domain d that are expected back."""
        if self.absent[d]:
            yield self.ready_s[d], self.absent[d] & ~(self.closed[d] | self.drained[d])
        failed = self.failed[d] & ~(self.closed[d] | self.drained[d] | self.absent[d])
        for node in members(failed):
            yield self.back_s.get((d, node), 0.0), 1 << node


def spares_worth(policy: Policy, spec: DomainSpec, gang_gpus: int) -> bool:
    """Whether a domain under a segment of a gang of so many GPUs keeps its spares.

    Fixed: always; none: never. Adaptive: where waiting for a repair without a spare would cost more GPU-hours per hour
    (failures of the domain's nodes x GPUs of the whole gang x repair time) than the spares' own GPUs.
    """
    if policy.spares != "adaptive":
        return policy.spares == "fixed"
    failures_per_h = policy.failures_per_gpu_hour * (spec.nodes - spec.spares) * spec.gpus_per_node
    return failures_per_h * gang_gpus * policy.node_repair_s / 3600.0 > spec.spares * spec.gpus_per_node
