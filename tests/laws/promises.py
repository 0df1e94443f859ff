"""The laws of time: claims that resolve, reservations that nobody behind delays, and ends before what is planned."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from rackscale import events as ev
from rackscale.workload import Job
from tests.laws.facts import Facts, Life, Node, held

SLACK_S = 1e-6


def check_claims_resolve(facts: Facts, plan: ev.Plan) -> None:
    """Once the nodes that a waiting gang claims are free, it starts or gives the claim up."""
    if plan.actions and all(isinstance(a, ev.Close | ev.Open | ev.Free) for a in plan.actions):
        return  # the calendar comes first, and the next decision follows at once
    holders = facts.holders()
    answered = {a.gang for a in plan.actions if isinstance(a, ev.Start | ev.Unclaim)}
    for life in facts.lives.values():
        if life.status != "waiting" or not life.claim or life.name in answered:
            continue
        nodes = held(life.claim)
        assert any(node in holders for node in nodes), f"{life.name}'s claim stays though its nodes are free"
        assert all(facts.up(node) for node in nodes), f"{life.name} keeps a claim that is broken"


def windows(facts: Facts, node: Node) -> Iterator[tuple[float, float, str]]:
    """(start, end, code) of what will take the node out of use."""
    for maintenance in facts.maintenance.values():
        if node in facts.nodes(maintenance.domain, maintenance.nodes):
            yield maintenance.start_s, maintenance.end_s, "maintenance"
    expires_s = facts.specs[node[0]].expires_s
    if expires_s is not None:
        yield expires_s, inf, "expired"


def check_outlives(facts: Facts, life: Life, binding: ev.Binding, choice: int, why: str = "") -> None:
    """Nothing is started where it is expected to be when the nodes go out of use."""
    for node in held(binding):
        for start_s, end_s, code in windows(facts, node):
            if end_s <= facts.now_s:
                continue
            lasts_s = life.lasts_s(choice)
            if life.job.booking in facts.bookings:  # it leaves when the booking is over
                lasts_s = min(lasts_s, facts.bookings[life.job.booking].end_s - facts.now_s)
            if lasts_s == inf and code == "maintenance":
                lasts_s = facts.policy.assumed_duration_s
            told = f"{life.name} would outlive {code} of {node} {why}{' (CPU only)' * life.job.cpu_only}"
            assert facts.now_s + lasts_s <= start_s + SLACK_S, told


def check_has_to_leave(facts: Facts, life: Life, action: ev.Preempt | ev.Move) -> None:
    """Who is sent away for the sake of nodes is on such nodes, and not told much too early."""
    nodes, code = held(life.binding), action.reason.code
    if code == "drain":
        assert any(node in facts.drained for node in nodes)
    elif code == "lemon":
        assert any(node in facts.closed.get((node[0], "lemon"), ()) for node in nodes)
    elif code == "booking-over":
        booking = facts.bookings.get(life.job.booking or "")
        assert life.job.booking is not None
        assert booking is None or booking.end_s - facts.now_s <= action.grace_s + SLACK_S
    else:
        soon = facts.now_s + action.grace_s + SLACK_S
        assert any(c == code and s <= soon for node in nodes for s, _, c in windows(facts, node)) or any(
            node in closed for node in nodes for closed in facts.closed.values()
        ), f"{life.name} is sent away for {code} that is not there"


# -- reservations ------------------------------------------------------------------------------------------------------


def behind(facts: Facts, life: Life, reserved: Life) -> bool:
    """Whether a gang is surely behind one with a reservation; fair share may say otherwise where ranks are equal."""
    mine, theirs = _order(facts, life), _order(facts, reserved)
    if mine[:3] != theirs[:3]:
        return mine > theirs
    return facts.policy.fair_share_half_life_s is None and mine > theirs


def _order(facts: Facts, life: Life) -> tuple[int, bool, int, int]:
    queue = facts.queues.get(life.job.queue)
    return (-facts.priority(life.job), not life.front, queue.rank if queue else 0, life.seq)


def check_reservations(facts: Facts, plan: ev.Plan) -> None:
    """What starts now leaves each gang before it as early a start as it was promised."""
    starts = [a for a in plan.actions if isinstance(a, ev.Start | ev.Claim) and not _own(facts, a)]
    renewed = {a.gang: a for a in plan.actions if isinstance(a, ev.Reserve)}
    started = {a.gang for a in starts}
    kept = {a.gang: a.choice for a in plan.actions if isinstance(a, ev.Start) and facts.lives[a.gang].claim}
    for name, promise in facts.reserved.items():
        reserved = facts.lives.get(name)
        if reserved is None or name in started or promise.start_s <= facts.now_s:
            continue
        again = renewed.get(name)
        if again is not None and again.start_s <= promise.start_s + SLACK_S:
            continue
        intruders = [a for a in starts if behind(facts, facts.lives[a.gang], reserved)]
        if not intruders or not can_start(facts, reserved, promise, [], {}, hopeful=False):
            continue
        assert can_start(facts, reserved, promise, intruders, kept, hopeful=True), (
            f"{name}, promised {promise.start_s:g} in {promise.domains}, is delayed by "
            f"{[a.gang for a in intruders]}"
        )


def _own(facts: Facts, action: ev.Start | ev.Claim) -> bool:
    """Starts on nodes that were kept for the gang before do not count, nor do gangs that need no GPUs."""
    life = facts.lives[action.gang]
    return bool(life.claim) or life.job.cpu_only or life.job.booking is not None


def can_start(
    facts: Facts, reserved: Life, promise: ev.Reserve, starts: list[ev.Start | ev.Claim], kept: dict[str, int], *,
    hopeful: bool,
) -> bool:  # fmt: skip
    """Whether the promise can be kept if these start too, as far as expected ends tell.

    `kept`: gangs that start on what was claimed for them, and their choices.

    `hopeful`: failed nodes and those in maintenance until then are back, who should have ended has, and nothing else
    goes out of use.
    """
    shape = reserved.job.choices[promise.choice].shape
    for domain in set(promise.domains):
        need = promise.domains.count(domain) * shape.nodes_held_per_segment
        gone = _gone(facts, promise.start_s, starts, kept, hopeful=hopeful)
        free = [node for node in facts.nodes(domain, None) if node not in gone]
        spares = facts.specs[domain].spares if facts.policy.spares == "fixed" else 0
        if len(free) - spares < need:
            return False
    return True


def _gone(
    facts: Facts, at_s: float, starts: list[ev.Start | ev.Claim], kept: dict[str, int], *, hopeful: bool
) -> set[Node]:
    """Nodes that are expected not to be free at a time."""
    gone = set(facts.drained) | set(facts.booked())
    for (_, why), nodes in facts.closed.items():
        maintenance = facts.maintenance.get(why)
        if not (hopeful and maintenance is not None and maintenance.end_s <= at_s):
            gone |= nodes
    for life in facts.lives.values():
        over = life.end_s <= at_s and (hopeful or life.end_s > facts.now_s)
        if not life.job.cpu_only and not over and not (hopeful and life.status == "leaving"):
            gone.update(held(life.binding))
        ends_s = facts.now_s + life.lasts_s(kept[life.name]) if life.name in kept else inf
        if ends_s > at_s + SLACK_S:
            gone.update(held(life.claim))
    for action in starts:
        if facts.now_s + facts.lives[action.gang].lasts_s(action.choice) > at_s + SLACK_S:
            gone.update(held(action.binding))
    if not hopeful:
        gone |= facts.failed
        for domain in facts.specs:
            for node in facts.nodes(domain, None):
                if any(start_s < inf for start_s, _, _ in windows(facts, node)) or domain in facts.absent:
                    gone.add(node)
    return gone


# -- what could ever run -----------------------------------------------------------------------------------------------


def ever_fits(facts: Facts, job: Job) -> bool:
    """Whether some choice fits on the whole fleet if it were healthy, empty and delivered; nearness aside."""
    groups: dict[tuple[str, str], list[ev.DomainSpec]] = {}
    for spec in facts.specs.values():
        groups.setdefault((spec.cluster, spec.system), []).append(spec)
    for offer in job.choices:
        for (cluster, system), specs in groups.items():
            right = job.cluster in (None, cluster) and {job.system, offer.system} <= {None, system}
            if right and _segments(
                offer.shape.nodes_held_per_segment, offer.shape.may_share_domain, specs
            ) >= (offer.shape.segments):
                return not job.nearness.within and not job.nearness.spread and not job.cpu_only
    return False


def _segments(nodes: int, share: bool, specs: list[ev.DomainSpec]) -> int:
    """Segments that the empty domains could take, spares kept."""
    fit = [(spec.nodes - spec.spares) // nodes for spec in specs]
    return sum(fit) if share else sum(1 for count in fit if count)
