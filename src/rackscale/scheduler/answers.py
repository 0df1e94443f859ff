"""What `why` answers, as values. Codes are for machines and stable; sentences are made of them elsewhere.

Times are seconds on the clock of the state (`now_s` of the answer), work and waiting are GPU-hours.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

OBSTACLES = {
    "next-cycle": "it fits, and the next decision starts it",
    "claimed": "its nodes are kept for it, and others are still leaving them",
    "paused": "its program failed, and it joins the line again after a pause",
    "reserved": "it would fit, but would delay a gang or booking ahead of it",
    "topology": "enough GPUs are free in a cluster, but in too few domains with room for a segment",
    "fabric": "enough domains have room, but not as close together, or as far apart, as it asks",
    "capacity": "no cluster has enough free GPUs",
    "queue-limit": "its queue, or one above it, may hold no more GPUs or domains",
    "queue-gangs": "its queue, or one above it, may run no more gangs",
    "user-limit": "its user may hold no more",
    "borrows": "it is not preemptible, so it may not hold what its queue would have to borrow",
    "booking": "it runs inside a booking only",
    "maintenance": "it would fit, but not end before maintenance",
    "expiry": "it would fit, but not end before the capacity goes back",
    "announced": "only capacity that is not delivered yet could hold it",
    "health": "only nodes that are failed, drained or closed could hold it",
    "spares": "it would fit on nodes that are kept free for repairs",
    "never-fits": "no cluster could hold it, even if it were healthy and empty",
    "policy": "it would fit, but the policy lets nobody overtake",
}
"""What keeps a gang waiting. Each is named only where those that are checked before it are out of the way: limits,
then promises, maintenance, nearness and spares, each ignored together with those before it."""

UnblockKind = Literal[
    "preempt", "reclaim", "shrink", "defragment", "wait", "raise-limit", "repair", "undrain", "call-off", "extend",
    "make-preemptible",
]  # fmt: skip


class Holder(Struct, frozen=True, kw_only=True):
    """A gang on a domain."""

    gang: str
    nodes: int
    expected_end_s: float | None = None
    """When its nodes are expected to be free; None: nobody knows."""


class DomainRoom(Struct, frozen=True, kw_only=True):
    """What one domain has of what a segment needs, in nodes."""

    domain: str
    room: int
    """Free nodes beyond its spares."""
    lacks: int
    """Nodes short of one segment; 0: it has the room."""
    spares: int = 0
    """Nodes kept free for repairs."""
    out: int = 0
    """Nodes that are failed, drained, closed or not delivered."""
    held_by: tuple[Holder, ...] = ()
    """The largest first."""
    kept_for: tuple[str, ...] = ()
    """Gangs and `@bookings` that nodes are claimed for."""
    promised_to: tuple[str, ...] = ()
    """Gangs and `@bookings` with a reservation on it."""
    window: str | None = None
    """The next maintenance, or `expired`."""
    window_start_s: float | None = None


class Obstacle(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What keeps a gang waiting in one of its shapes. `code` is one of `OBSTACLES`; what does not apply is left out."""

    code: str
    needs_gpus: int = 0
    """GPUs of all nodes that it would hold."""
    free_gpus: int = 0
    """GPUs free to normal placement in the cluster that has the most of them."""
    segments: int = 0
    nodes_per_segment: int = 0
    """Its own spares included."""
    roomy_domains: int = 0
    """Domains of that cluster with room for a segment."""
    subject: str | None = None
    """Queue, user, booking, gang ahead, maintenance, or the rule of nearness."""
    detail: str | None = None
    """Of a booking: `unknown`, `not-begun`, `outlives` or `full`; of a claim: `broken`."""
    domains: tuple[str, ...] = ()
    at_s: float | None = None
    """When it is expected to be out of the way, or what is in the way begins."""
    takes_s: float = 0.0
    """Of a booking that it would outlive: how long it takes from start to end,"""
    lasts_s: float = 0.0
    """and how much of the booking is to come."""
    unit: Literal["gpus", "domains", "gangs"] | None = None
    """Of `used`, `asks` and `limit`; of a pause none: failures so far, and those that are retried."""
    used: float = 0.0
    asks: float = 0.0
    limit: float = 0.0


class ChoiceJudged(Struct, frozen=True, kw_only=True):
    """One of the job's shapes, what an hour in it is worth, and what keeps it waiting in it."""

    choice: int
    segments: int
    nodes_per_segment: int
    system: str | None
    throughput: float
    value_per_h: float | None
    """US dollars an hour, nodes paid (GPUs where prices are unknown); None: no system offers it."""
    obstacle: Obstacle


class Share(Struct, frozen=True, kw_only=True):
    """One queue between the root and the gang, in fair share. Less `used_gpus` per `weight` goes first."""

    queue: str
    weight: float
    used_gpus: float | None
    """Mean GPUs over the time that counts (decayed); None: past use does not count."""
    held_gpus: int
    quota_gpus: int | None
    quota_domains: float | None


class InLine(Struct, frozen=True, kw_only=True):
    """The gang's place in the order."""

    ahead: int
    next_ahead: str | None
    shares: tuple[Share, ...]
    """From the root down."""


class Step(Struct, frozen=True, kw_only=True):
    """Something that has to happen before a start, and when it is expected."""

    kind: Literal["ends", "leaves", "repair", "delivery", "booking-over"]
    subject: str
    """The gang, or the domain."""
    domain: str
    nodes: int
    at_s: float | None


class Reservation(Struct, frozen=True, kw_only=True):
    """When and where a waiting gang is expected to start."""

    start_s: float
    domains: tuple[str, ...]
    choice: int
    promised: bool
    """Whether nobody behind it may delay it; else it is what is expected today."""
    steps: tuple[Step, ...]
    """What has to happen first, the last of it at the end."""


class Unblock(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to let the gang start."""

    kind: UnblockKind
    allowed: bool
    """Whether the scheduler does it by itself: makes the room the next time it looks at all that wait, or waits."""
    cheapest: bool = False
    cost_gpu_h: float = 0.0
    """Lost work, restarts and penalties; for waiting, the gang's GPUs until it starts."""
    at_s: float | None = None
    """When the gang could start; None: as soon as it is done."""
    gangs: tuple[str, ...] = ()
    """Who would leave, shrink or move."""
    domains: tuple[str, ...] = ()
    """Where the gang would start, or what is to be repaired, undrained or kept."""
    subject: str | None = None
    """The queue, the maintenance."""
    saves_gpu_h: float = 0.0
    """Waiting that it saves, where that decides."""
    forbidden_by: dict[str, int] = {}
    """Guards or `policy` in the way -> gangs that they protect (0: nothing to do with gangs)."""
    unit: Literal["gpus", "domains", "gangs"] | None = None
    limit: float | None = None
    """The least limit that would do."""


class Happened(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision about the gang in the past."""

    at_s: float
    action: str
    """Of `events.Action`, in small letters: start, restart, preempt, move, stop, requeue."""
    attempt: int
    code: str
    for_gang: str | None = None
    window: str | None = None
    domains: tuple[str, ...] = ()
    """Where to."""
    lost_gpu_h: float = 0.0
    restart_gpu_h: float = 0.0
    penalty_gpu_h: float = 0.0
    free_nodes_left: int | None = None


class Placed(Struct, frozen=True, kw_only=True):
    """A gang that holds nodes."""

    attempt: int
    domains: tuple[str, ...]
    nodes: int
    choice: int
    value_per_h: float | None
    expected_end_s: float | None
    spans: dict[str, int]
    """Fabric level -> units of it that the segments lie in."""
    lost_gpu_h: float
    """What stopping it now costs: work,"""
    restart_gpu_h: float
    """its restart,"""
    penalty_gpu_h: float
    """and what its owner says."""
    kept_h: float
    """Hours of work (at throughput 1) that checkpoints keep."""
    protected_by: str | None
    """The guard that keeps everybody from preempting it now; None: see `taken_by`."""
    protected_until_s: float | None
    taken_by: tuple[str, ...]
    """Priority classes that may preempt it; `reclaim`: queues that are owed what its queue borrows."""
    taken_within: str | None
    """The queue of which those of a higher priority have to be, since it needs the gang for its quota; None: any."""
    shrinks: bool
    """Whether it would be shrunk first."""
    growth: str | None
    """Elastic gangs: why it does not grow (`grows`: it does, next). None: not elastic."""
    back_on: tuple[str, ...] = ()
    """Leaving gangs: domains kept for it to go on."""
    must_leave_s: float | None = None
    """When it will be told to leave, since its nodes are drained or go out of use."""
    must_leave_for: str | None = None


class Largest(Struct, frozen=True, kw_only=True):
    """The largest gang that a cluster could ever hold, of one segment per domain."""

    cluster: str
    system: str
    domains: int
    nodes_per_segment: int


class Why(Struct, frozen=True, kw_only=True):
    """The explanation of one gang.

    `constraint`: for waiting gangs a code of `OBSTACLES`; else of `events.REASONS`, or how it ended.
    """

    gang: str
    status: str
    """`waiting`, `starting`, `running`, `broken`, `leaving` or `ended`."""
    now_s: float
    since_s: float | None
    constraint: str
    obstacle: Obstacle | None = None
    choice: int = 0
    """The shape that `obstacle` is about."""
    choices: tuple[ChoiceJudged, ...] = ()
    """All shapes, the most valuable first; empty where there is only one."""
    line: InLine | None = None
    reservation: Reservation | None = None
    domains: tuple[DomainRoom, ...] = ()
    """The best domains for a waiting gang, those that a placed one lies in."""
    unblocks: tuple[Unblock, ...] = ()
    """Those that the scheduler does by itself first, then the cheapest first."""
    guards: dict[str, int] = {}
    """Why gangs that hold nodes may not be preempted for it: guard -> gangs; `allowed`: those that may."""
    due_s: float | None = None
    """When all that wait have room cleared and reserved again; None: with the next decision."""
    placed: Placed | None = None
    ran_before: str = ""
    """Why it waits again."""
    evictions: int = 0
    history: tuple[Happened, ...] = ()
    """Its last starts and departures, as far as the journal was given."""
    outcome: str | None = None
    detail: str = ""
    attempts: int = 0
    largest: tuple[Largest, ...] = ()
    """Of gangs that never fit: what would."""

    @property
    def unblock(self) -> Unblock | None:
        """The cheapest."""
        return next((u for u in self.unblocks if u.cheapest), None)


class NodeOut(Struct, frozen=True, kw_only=True):
    """Nodes that are out of use, why, and until when."""

    nodes: tuple[int, ...]
    why: str
    """`failed`, `drained`, `announced`, `lemon`, `expired`, or the maintenance."""
    back_s: float | None = None
    leave_by_s: float | None = None
    """Of drained ones: when gangs must have left; None: at once."""
    failures: int = 0
    """Failures of the worst of them in the policy's window."""


class Coming(Struct, frozen=True, kw_only=True):
    """A time when nodes go out of use."""

    name: str
    nodes: tuple[int, ...]
    start_s: float
    end_s: float | None


class WhyDomain(Struct, frozen=True, kw_only=True):
    """The explanation of a domain or a node of it."""

    domain: str
    node: int | None
    """None: all nodes."""
    now_s: float
    room: DomainRoom
    """Of the node, or of the whole domain. Promises are of a domain: nobody knows yet on which of its nodes."""
    status: str
    """`free`, `held`, `kept` (claimed), `partly-held`, `draining` (drained and held), or `out`."""
    out: tuple[NodeOut, ...]
    windows: tuple[Coming, ...]


class WhyBooking(Struct, frozen=True, kw_only=True):
    """A booking: when, where, and for whom."""

    name: str
    now_s: float
    status: str
    """`to-come`, `kept` (it has begun, and its nodes are kept), or `due` (it should have begun, and has no nodes)."""
    start_s: float
    end_s: float
    queue: str
    priority: str
    segments: int
    nodes_per_segment: int
    domains: tuple[str, ...]
    """Where its nodes are kept, or are expected to be; empty: nobody knows."""
    expected_s: float | None
    """When those nodes are expected to be free, if it has not begun."""
    jobs: tuple[str, ...]
    """Jobs that run in it,"""
    waiting: tuple[str, ...]
    """and that wait for it or in it."""
    in_the_way: tuple[Holder, ...]
    """Where it is not expected to have room in time: gangs on those domains that don't end before it begins."""


class WhyMaintenance(Struct, frozen=True, kw_only=True):
    """A maintenance: when, where, and who leaves for it."""

    name: str
    now_s: float
    status: str
    """`to-come` or `on`."""
    start_s: float
    end_s: float
    domain: str
    nodes: tuple[int, ...] | None
    """None: the whole domain."""
    must_leave: tuple[Holder, ...]
    """Gangs on those nodes that are not expected to end before it begins."""
