"""Sentences for what `why` answers. Times are said as durations from the time of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rackscale import events as ev
from rackscale.report.words import duration, gpu_hours, named
from rackscale.scheduler.answers import (
    OBSTACLES,
    ChoiceJudged,
    DomainRoom,
    Happened,
    Holder,
    Largest,
    NodeOut,
    Obstacle,
    Placed,
    Reservation,
    Unblock,
    Why,
    WhyBooking,
    WhyDomain,
    WhyMaintenance,
)

FEW = 4
GUARDS = {
    "not-running": "not running yet, or leaving", "not-preemptible": "not preemptible",
    "priority": "of no lower priority", "minimum-run-time": "started too recently",
    "gang-budget": "evicted too often today",
    "queue-budget": "in queues that were evicted from too often today", "quota": "within their queue's quota",
    "allowed": "may be preempted",
}  # fmt: skip
GROWTH = {
    "grows": "it grows with the next decision", "policy": "the policy lets nobody grow",
    "others-wait": "others wait for room", "best-shape": "no larger shape is worth more",
    "not-yet": "it must run longer, or write a checkpoint, first",
    "does-not-pay": "a restart would cost more time than it saves", "no-room": "there is no room for a larger shape",
    "none": "nobody could",
}  # fmt: skip


def listed(names: Sequence[str], most: int = FEW) -> str:
    """`a, b and 3 more`."""
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def when(at_s: float | None, now_s: float) -> str:
    """`in 2 h 10`, `now`, `at a time that nobody knows`."""
    if at_s is None:
        return "at a time that nobody knows"
    return f"in {duration(at_s - now_s)}" if at_s > now_s else "now"


def sentence(answer: Why) -> str:
    """Why the gang waits, runs where it does, leaves, or has ended."""
    if answer.obstacle is not None:
        text = obstacle(answer.obstacle, answer)
        return text if not answer.ran_before else f"{text} (it ran before: {_cause(answer.ran_before)})"
    if answer.placed is not None:
        return _placed(answer, answer.placed)
    detail = f": {ev.REASONS.get(answer.detail, answer.detail)}" if answer.detail else ""
    return f"{answer.outcome} after {answer.attempts} attempt(s){detail}"


def _cause(code: str) -> str:
    return ev.REASONS.get(code, code.replace("-", " "))


def _placed(answer: Why, placed: Placed) -> str:
    where = listed([f"{d.domain} ({_of(d, answer.gang)} nodes)" for d in answer.domains])
    if len(placed.domains) > len(answer.domains):
        where += f", {len(placed.domains)} domains in all"
    cause = _cause(answer.constraint)
    return {
        "starting": f"attempt {placed.attempt} starts on {where} ({cause})",
        "running": f"attempt {placed.attempt} runs on {where} ({cause})",
        "broken": f"a node under it failed on {where}",
        "leaving": f"it was told to leave {where} ({cause})",
    }[answer.status]


def _of(room: DomainRoom, gang: str) -> int:
    return sum(holder.nodes for holder in room.held_by if holder.gang == gang)


def obstacle(it: Obstacle, answer: Why) -> str:
    """One sentence about what keeps a gang waiting."""
    if it.code in ("queue-limit", "queue-gangs", "user-limit", "borrows"):
        return _limit(it)
    if it.code == "booking":
        return _booking(it, answer.now_s)
    if it.code == "never-fits":
        return f"no cluster could ever hold {_size(it)}; {largest(answer.largest)}"
    return _in_time(it, answer.now_s) or _in_space(it) or f"{OBSTACLES[it.code]} ({_size(it)})"


def _size(it: Obstacle) -> str:
    return f"{it.segments} x {it.nodes_per_segment} nodes"


def _in_space(it: Obstacle) -> str | None:
    where = listed(it.domains)
    return {
        "next-cycle": "it fits now and starts with the next decision",
        "topology": f"{it.free_gpus} GPUs are free where it needs {it.needs_gpus}, but {it.roomy_domains} of the"
        f" {it.segments} domain(s) it needs have {it.nodes_per_segment} free nodes",
        "capacity": f"it needs {it.needs_gpus} GPUs, and {it.free_gpus} are free",
        "fabric": f"{it.roomy_domains} domains have room for a segment, but not {_rule(it.subject or '')}",
        "spares": f"it would fit on {where}, but only on nodes that are kept free for repairs",
        "policy": f"it would fit, but {it.subject} is ahead and the policy lets nobody overtake (backfill is off)",
    }.get(it.code)


def _in_time(it: Obstacle, now_s: float) -> str | None:
    where, at = listed(it.domains), when(it.at_s, now_s)
    clears = f"{where} is being cleared for it; it starts when {it.subject} left, expected {at}"
    if it.detail == "broken":
        clears = f"a node kept for it on {where} is no longer usable: it tries again"
    return {
        "claimed": clears,
        "paused": f"its program failed for the {_ordinal(int(it.used))} time of {it.limit:g} that are retried;"
        f" it joins the line again {at}",
        "reserved": f"it would fit on {where}, but would delay {it.subject}, which is promised to start {at}",
        "maintenance": f"it would fit on {where}, but not end before maintenance {it.subject} begins {at}",
        "expiry": f"it would fit on {where}, but not end before that capacity goes back {at}",
        "announced": f"only capacity that is not delivered could hold {_size(it)}: {where}, expected {at}",
    }.get(it.code)


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _rule(subject: str) -> str:
    rule, _, level = subject.partition(" ")
    return {
        "within": f"within one {level}", "spread": f"each in another {level}",
        "apart": f"in another {level} than the other replicas",
    }.get(rule, subject)  # fmt: skip


def _limit(it: Obstacle) -> str:
    unit = {"gpus": "GPUs", "domains": "domains", "gangs": "gangs"}[it.unit or "gpus"]
    numbers = f"{it.used:g} of {it.limit:g} {unit} are used, and it asks for {it.asks:g}"
    match it.code:
        case "user-limit":
            return f"user {it.subject or '(none)'} may hold no more in queue {it.detail}: {numbers}"
        case "borrows":
            return f"it is not preemptible, and queue {it.subject} would have to borrow for it: {numbers}"
        case "queue-gangs":
            return f"queue {it.subject} may run no more gangs: {numbers}"
    return f"queue {it.subject} may hold no more: {numbers}"


def _booking(it: Obstacle, now_s: float) -> str:
    at = when(it.at_s, now_s)
    return {
        "unknown": f"booking {it.subject} does not exist, or is over",
        "not-begun": f"booking {it.subject} has not begun: it begins {at}"
        if it.at_s is not None and it.at_s > now_s
        else f"booking {it.subject} is due, but has no nodes yet",
        "outlives": f"it can never start in booking {it.subject}, which ends {at}: it takes {duration(it.takes_s)},"
        f" and {duration(it.lasts_s)} of the booking are to come",
        "full": f"the nodes of booking {it.subject}, which ends {at}, are in use",
    }[it.detail or "unknown"]


def largest(found: Sequence[Largest]) -> str:
    """What would fit instead."""
    if not found:
        return "no cluster has the system that it asks for"
    each = [f"{f.cluster}: {f.domains} x {f.nodes_per_segment} nodes" for f in found]
    return f"the largest that fit, a segment per domain, are {listed(each)}"


def line(answer: Why) -> str | None:
    """Its place in the order, and the shares that decide it."""
    it = answer.line
    if it is None:
        return None
    ahead = f"{it.ahead} ahead of it, the next is {it.next_ahead}" if it.ahead else "nobody is ahead of it"
    shares = [
        f"{s.queue} used {s.used_gpus:.3g} GPUs / weight {s.weight:g}"
        for s in it.shares
        if s.used_gpus is not None
    ]
    return f"in line: {ahead}" + (f"; fair share: {' > '.join(shares)}" if shares else "")


def reservation(it: Reservation, now_s: float) -> str:
    """When it starts, and what has to happen first."""
    verb = "it is promised to start" if it.promised else "it is expected to start (no promise)"
    verbs = {
        "ends": "{} ends", "leaves": "{} leaves", "repair": "{} is repaired", "delivery": "{} is delivered",
        "booking-over": "{} is over",
    }  # fmt: skip
    steps = [f"{verbs[s.kind].format(s.subject)} {when(s.at_s, now_s)}" for s in it.steps]
    first = f", when {listed(list(dict.fromkeys(steps)))}" if steps else ""
    return f"{verb} {when(it.start_s, now_s)} on {listed(list(dict.fromkeys(it.domains)))}{first}"


def unblock(it: Unblock, now_s: float) -> str:
    """One way out."""
    gangs, where = listed(it.gangs) or "nobody", listed(list(dict.fromkeys(it.domains)))
    unit = {"gpus": "GPUs", "domains": "domains", "gangs": "gangs", None: ""}[it.unit]
    price = f"at {gpu_hours(it.cost_gpu_h * 3600)} of lost work and restarts"
    would = f"the scheduler clears {where}" if it.allowed else f"it could start if {where} were cleared"
    text = {
        "preempt": f"{would}: {gangs} would leave, {price}",
        "reclaim": f"{would}: {gangs} would leave what their queues borrow, {price}",
        "shrink": f"{would}: {gangs} would shrink, {price}",
        "defragment": f"moving {gangs} opens {where} {price}; it saves {gpu_hours(it.saves_gpu_h * 3600)} of waiting",
        "wait": f"wait until it starts {when(it.at_s, now_s)}: {gpu_hours(it.cost_gpu_h * 3600)} of waiting",
        "raise-limit": f"raise the limit of {it.subject} to {it.limit or 0:g} {unit}",
        "make-preemptible": f"make it preemptible, or raise the quota of {it.subject} to {it.limit or 0:g} {unit}",
        "repair": f"repair {where}, expected {when(it.at_s, now_s)}",
        "undrain": f"undrain {where}",
        "call-off": f"call off maintenance {it.subject}",
        "extend": f"extend {where}",
    }[it.kind]
    return text + (f" ({_forbidden(it)})" if it.forbidden_by else "")


def _forbidden(it: Unblock) -> str:
    policy = "policy.defragment is advise" if it.kind == "defragment" else "policy.preemption is off"
    special = {
        "policy": policy, "not-its-turn": "not its turn: others ahead of it come first",
        "promised": "the domains are promised to others, or go out of use",
    }  # fmt: skip
    return "; ".join(
        special.get(code) or f"{count} {GUARDS[code]}" for code, count in it.forbidden_by.items()
    )


def guards(answer: Why) -> str | None:
    """Whom it may not preempt, by reason."""
    if not answer.guards or any(u.allowed and u.kind != "wait" for u in answer.unblocks):
        return None
    counted = [f"{count} {GUARDS[code]}" for code, count in answer.guards.items()]
    return f"gangs that hold nodes: {', '.join(counted)}"


def choice(it: ChoiceJudged, answer: Why) -> str:
    """One shape, what it is worth, and what keeps the gang from it."""
    value = "no system offers it" if it.value_per_h is None else f"worth {it.value_per_h:.4g} an hour"
    text = f"shape {it.choice}: {it.segments} x {it.nodes_per_segment} nodes, throughput {it.throughput:g}, {value}"
    if answer.placed is not None:
        return text + (" (taken)" if it.choice == answer.choice else "")
    if it.choice == answer.choice:
        return text + " (judged)"
    return f"{text}: {OBSTACLES[it.obstacle.code]}"


def placed(answer: Why) -> Iterator[str]:
    """More about a gang that holds nodes, line by line."""
    it, now_s = answer.placed, answer.now_s
    assert it is not None
    started = next((h for h in reversed(answer.history) if h.free_nodes_left is not None), None)
    spans = [f"{count} {level}{'s' if count != 1 else ''}" for level, count in it.spans.items()]
    left = f"; {started.free_nodes_left} free nodes were left there" if started is not None else ""
    yield f"it lies in {', '.join(spans)}{left}; its end is expected {when(it.expected_end_s, now_s)}"
    if answer.status == "leaving":
        yield from _leaving(answer, it)
    else:
        cost = it.lost_gpu_h + it.restart_gpu_h + it.penalty_gpu_h
        yield (
            f"stopping it now would cost {gpu_hours(cost * 3600)}: {gpu_hours(it.lost_gpu_h * 3600)} of work,"
            f" {gpu_hours(it.restart_gpu_h * 3600)} to restart, {gpu_hours(it.penalty_gpu_h * 3600)} of penalty"
        )
        yield _protection(it, now_s)
    if it.must_leave_s is not None:
        yield f"it will be told to leave {when(it.must_leave_s, now_s)}: {_cause(it.must_leave_for or '')}"
    if it.growth is not None:
        yield f"growing: {GROWTH[it.growth]}"


def _leaving(answer: Why, it: Placed) -> Iterator[str]:
    last = next((h for h in reversed(answer.history) if h.action not in ("start", "restart")), None)
    yield f"checkpoints keep {duration(it.kept_h * 3600)} of its work"
    if last is not None:
        yield f"its last departure: {happened(last, answer.now_s)}"
    back = f"goes on on {listed(it.back_on)}" if it.back_on else "waits again, at the front of its class,"
    yield f"it {back} as soon as it has left"


def _protection(it: Placed, now_s: float) -> str:
    until = (
        f" until {duration(it.protected_until_s - now_s)} from now"
        if it.protected_until_s is not None
        else ""
    )
    takers = [name for name in it.taken_by if name != "reclaim"]
    inside = f" of queue {it.taken_within}" if it.taken_within is not None else ""
    by = [f"by {listed(takers)}{inside}"] if takers else []
    by += ["by queues that are owed what its queue borrows"] if "reclaim" in it.taken_by else []
    may = f"it may be preempted {' or '.join(by)}" if by else "nobody may preempt it"
    if it.shrinks and by:
        may += ", and would be shrunk first"
    return (
        may
        if it.protected_by is None or not by
        else f"{may}; now it is protected{until}: {GUARDS[it.protected_by]}"
    )


def happened(it: Happened, now_s: float) -> str:
    """One past decision about the gang."""
    ago = f"{duration(max(0.0, now_s - it.at_s))} ago"
    where = f" on {listed(it.domains)}" if it.domains else ""
    by = f" for {it.for_gang}" if it.for_gang else ""
    window = f" ({it.window})" if it.window else ""
    cost = it.lost_gpu_h + it.restart_gpu_h + it.penalty_gpu_h
    price = f", at {gpu_hours(cost * 3600)}" if cost else ""
    return f"{ago} {it.action} of attempt {it.attempt}{where}{by}{window}: {_cause(it.code)}{price}"


def interruptions(answer: Why) -> str | None:
    """How often it was interrupted, and by what."""
    gone = [h for h in answer.history if h.action not in ("start", "stop")]
    if not gone:
        return None
    times = "once" if len(gone) == 1 else f"{len(gone)} times"
    return f"interrupted {times}: " + "; ".join(happened(h, answer.now_s) for h in gone[-FEW:])


def out_of_use(it: NodeOut, now_s: float) -> str:
    """Nodes of a domain that can't be used."""
    causes = {
        "failed": "failed", "drained": "drained by people", "announced": "not delivered yet",
        "lemon": "closed, since failures came too often", "expired": "gone back",
    }  # fmt: skip
    cause = causes.get(it.why, f"in maintenance {it.why}")
    back = f", expected back {when(it.back_s, now_s)}" if it.back_s is not None else ""
    if it.leave_by_s is not None and it.leave_by_s > now_s:
        back = f": nothing new starts, and gangs must have left {when(it.leave_by_s, now_s)}"
    often = f", {it.failures} failures lately" if it.failures > 1 else ""
    return f"{named(it.nodes)} {cause}{back}{often}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def domain(it: WhyDomain) -> Iterator[str]:
    """What holds a domain or a node, and what is to come, line by line."""
    room, now_s = it.room, it.now_s
    if it.node is None:
        yield f"{_nodes(room.room)} free to gangs beside {room.spares} spares; {room.out} out of use"
    elif room.room:
        yield "it is free"
    for holder in room.held_by:
        what = _nodes(holder.nodes) if it.node is None else "it"
        yield f"{holder.gang} holds {what}, expected to end {when(holder.expected_end_s, now_s)}"
    if room.kept_for:
        yield f"{'nodes are' if it.node is None else 'it is'} kept for {listed(room.kept_for)}"
    if room.promised_to:
        where = "" if it.node is None else f"nodes of {it.domain} are "
        yield f"{where}promised to {listed(room.promised_to)}"
    for out in it.out:
        yield out_of_use(out, now_s)
    for window in it.windows:
        what = "goes back" if window.name == "expired" else f"maintenance {window.name}"
        until = "" if window.end_s is None else f" for {duration(window.end_s - window.start_s)}"
        yield f"{named(window.nodes)}: {what} {when(window.start_s, now_s)}{until}"


def times(it: WhyBooking | WhyMaintenance) -> str:
    """`begins in 2 h 00 for 60 min`, `ends in 12 min`."""
    if it.start_s > it.now_s:
        return f"begins in {duration(it.start_s - it.now_s)} for {duration(it.end_s - it.start_s)}"
    return f"ends in {duration(max(0.0, it.end_s - it.now_s))}"


def planned(it: WhyBooking | WhyMaintenance) -> Iterator[str]:
    """When and where a booking or a maintenance is, and whom it concerns, line by line."""
    if isinstance(it, WhyMaintenance):
        yield f"maintenance of {place_of(it)}: it {times(it)}"
        if it.must_leave:
            yield f"told to leave in time, if they have not ended: {_holders(it.must_leave, it.now_s)}"
        elif it.status == "to-come":
            yield "nobody has to leave for it"
        return
    size = f"{it.segments} x {it.nodes_per_segment} nodes"
    yield f"booking of {size}, queue {it.queue}, priority {it.priority}: it {times(it)}"
    yield from _kept(it)
    if it.in_the_way:
        yield f"in its way, unless they end or leave: {_holders(it.in_the_way, it.now_s)}"
    if it.jobs:
        yield f"running in it: {listed(it.jobs)}"
    if it.waiting:
        yield f"waiting for it: {listed(it.waiting)}"
    if not it.jobs and not it.waiting:
        yield f"no job asks for it (booking: {it.name})"


def _kept(it: WhyBooking) -> Iterator[str]:
    where = listed(it.domains)
    if it.status == "kept":
        yield f"its nodes are kept on {where}"
    elif not it.domains:
        yield "nobody knows yet where it will have room"
    elif it.expected_s is not None and it.expected_s > max(it.start_s, it.now_s):
        yield f"it is expected to have room too late, {when(it.expected_s, it.now_s)}, on {where}"
    else:
        yield f"it is expected to have room on {where} in time"


def _holders(holders: Sequence[Holder], now_s: float) -> str:
    return listed([f"{h.gang} ({_nodes(h.nodes)}, ends {when(h.expected_end_s, now_s)})" for h in holders])


def place_of(it: WhyMaintenance) -> str:
    """`use1-a/us-007`, or nodes of it."""
    return it.domain if it.nodes is None else f"{it.domain}/{named(it.nodes)}"
