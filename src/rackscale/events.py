"""Everything that can happen to a fleet, and everything that can be decided about it, as frozen records.

The fleet's state is the fold of these records (`rackscale.fleet.state`), the journal stores them, and a plan is a
tuple of actions inside one `Decided`. Times are seconds since the epoch (or since the start of a rehearsal) on the
event itself: nothing that folds or decides reads a clock.

    inputs     Announced Delivered Extended Configured Submitted Cancelled      from people
               Drained Undrained Planned Unplanned Booked Unbooked
               NodeFailed NodeRepaired GangRunning Checkpointed Progressed GangEnded Ticked    from executors
    decisions  Decided(actions: Start Restart Preempt Move Stop Requeue Claim Unclaim Refuse
                                Reserve Unreserve Hold Free Close Open)
    notes      Forecast                                                          kept for `audit`, decides nothing
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from rackscale.workload import Booking, Job, Maintenance, Policy, Queue


class Segment(Struct, frozen=True, kw_only=True, array_like=True):
    """One segment of a gang: nodes of one NVLink domain, in rank order."""

    domain: str
    nodes: tuple[int, ...]
    spares: tuple[int, ...] = ()
    """Nodes that the gang holds idle beside them."""

    @property
    def held(self) -> tuple[int, ...]:
        """All nodes that the segment takes."""
        return self.nodes + self.spares


Binding = tuple[Segment, ...]
"""Where a gang runs: its segments in rank order. The n-th node over all segments is node rank n."""


class DomainSpec(Struct, frozen=True, kw_only=True):
    """One NVLink domain of a fleet. Domains are listed in fabric order: neighbours in the list are close."""

    name: str
    system: str
    nodes: int
    gpus_per_node: int
    cluster: str
    region: str = ""
    building: str = ""
    spine: str = ""
    leaf: str = ""
    """Where it hangs on the fabric, as far as that is known. What is not known counts as the same for the cluster."""
    spares: int = 0
    """Nodes kept free for repairs of running gangs."""
    usd_per_gpu_hour: float | None = None
    expires_s: float | None = None
    """When the capacity goes back; None: it stays."""


Cause = Literal[
    "preempted", "drained", "node-failure", "program-failed", "cancelled", "finished", "superseded"
]


class Reason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an action was taken: a code for machines, and the numbers that a sentence is made of."""

    code: str
    """One of `REASONS`."""
    for_gang: str | None = None
    domain: str | None = None
    node: int | None = None
    lost_gpu_s: float = 0.0
    """Work since the last checkpoint that is at risk, GPU-seconds."""
    restart_gpu_s: float = 0.0
    """Restart time x GPUs, GPU-seconds."""
    penalty_gpu_s: float = 0.0
    free_nodes_left: int | None = None
    """Free nodes that remain in the domains used."""
    start_s: float | None = None
    """When what is reserved is expected to be free."""
    window: str | None = None
    """The maintenance or booking that it is about."""
    gain_gpu_s: float = 0.0
    """What a move is expected to save, GPU-seconds of waiting."""


REASONS = {
    "fits": "free nodes were found by best fit",
    "claim-complete": "the nodes cleared for this gang are free",
    "spare": "a failed node was replaced by a free node of the same domain",
    "moved-segment": "no free node was left in the domain, so the segment moved to another domain",
    "own-spare": "a failed node was replaced by a spare of the gang's own",
    "preempted-for": "its nodes are cleared for a gang of higher priority; no cheaper set of victims was found",
    "reclaimed-for": "it runs on nodes that its queue borrowed, and whose queue is owed them wants them back",
    "shrunk-for": "some of its nodes are cleared for another gang; it goes on with the rest",
    "shrunk": "no replacement was found for a failed node, so it goes on with fewer nodes",
    "grown": "it goes on with more nodes, since nobody waits for them",
    "moved-for": "it moves, so that a whole domain opens for a gang that waits",
    "drain": "its nodes are being drained",
    "maintenance": "its nodes go into maintenance",
    "expired": "the capacity goes back",
    "lemon": "the node failed too often",
    "booking-over": "the booking that it ran in is over",
    "booked": "its nodes are kept for a booking",
    "booking-mended": "a node of the booking went out of use, and others are kept instead",
    "reserved": "nobody behind it may delay its start",
    "no-longer-reserved": "it started, ended or fell behind in the order, or nobody knows when there will be room",
    "no-replacement": "a node failed and no replacement fits anywhere",
    "cleared-domain": "nodes are held for this gang while victims leave",
    "claim-broken": "a claimed node is no longer usable, or not for as long as the gang takes",
    "cancelled": "its owner cancelled it",
    "never-fits": "no domain of this fleet could ever hold it",
    "unknown-priority": "the policy does not define its priority class",
}
"""Every reason code with its meaning."""


# -- actions: what a plan may say ------------------------------------------------------------------------------------


class Start(Struct, frozen=True, kw_only=True, tag=True):
    gang: str
    attempt: int
    binding: Binding
    reason: Reason
    choice: int = 0
    """Which of the job's `choices` it runs in."""


class Restart(Struct, frozen=True, kw_only=True, tag=True):
    """Stop what is left of the running attempt and start `attempt` on `binding`."""

    gang: str
    attempt: int
    binding: Binding
    reason: Reason
    choice: int = 0


class Preempt(Struct, frozen=True, kw_only=True, tag=True):
    """Ask the gang to checkpoint and leave within `grace_s`; it waits again afterwards."""

    gang: str
    attempt: int
    grace_s: float
    reason: Reason


class Move(Struct, frozen=True, kw_only=True, tag=True):
    """Ask the gang to checkpoint and leave within `grace_s`; it goes on at once on `binding`, which is held for it.

    The binding may share nodes with the present one: so a gang shrinks, grows, or makes way.
    """

    gang: str
    attempt: int
    grace_s: float
    binding: Binding
    reason: Reason
    choice: int = 0


class Stop(Struct, frozen=True, kw_only=True, tag=True):
    """Stop the gang for good (cancelled)."""

    gang: str
    attempt: int
    grace_s: float
    reason: Reason


class Requeue(Struct, frozen=True, kw_only=True, tag=True):
    """Kill what is left of a broken gang; it waits again at the front of its class."""

    gang: str
    attempt: int
    reason: Reason


class Claim(Struct, frozen=True, kw_only=True, tag=True):
    """Hold `binding` for a waiting gang while victims leave it."""

    gang: str
    binding: Binding
    reason: Reason
    choice: int = 0


class Unclaim(Struct, frozen=True, kw_only=True, tag=True):
    gang: str
    reason: Reason


class Refuse(Struct, frozen=True, kw_only=True, tag=True):
    """The job can never run on this fleet."""

    job: str
    reason: Reason


class Reserve(Struct, frozen=True, kw_only=True, tag=True):
    """Promise a waiting gang that nobody behind it delays its start at `start_s`. A later one replaces it."""

    gang: str
    start_s: float
    domains: tuple[str, ...]
    """Where, by segment. It may start elsewhere, and earlier."""
    reason: Reason
    choice: int = 0


class Unreserve(Struct, frozen=True, kw_only=True, tag=True):
    gang: str
    reason: Reason


class Hold(Struct, frozen=True, kw_only=True, tag=True):
    """A booking begins, or gets other nodes than before: these are kept for its jobs."""

    booking: str
    binding: Binding
    reason: Reason


class Free(Struct, frozen=True, kw_only=True, tag=True):
    """A booking is over."""

    booking: str
    reason: Reason


class Close(Struct, frozen=True, kw_only=True, tag=True):
    """Take nodes out of use: maintenance begins, capacity expires, a node is a lemon. None: the whole domain."""

    domain: str
    nodes: tuple[int, ...] | None
    reason: Reason


class Open(Struct, frozen=True, kw_only=True, tag=True):
    """Maintenance is over."""

    domain: str
    nodes: tuple[int, ...] | None
    reason: Reason


Action = (
    Start | Restart | Preempt | Move | Stop | Requeue | Claim | Unclaim | Refuse
    | Reserve | Unreserve | Hold | Free | Close | Open
)  # fmt: skip


def subject(action: Action) -> str:
    """What the action is about: a gang, a job, a booking or a domain, by name."""
    match action:
        case Refuse():
            return action.job
        case Hold() | Free():
            return action.booking
        case Close() | Open():
            return action.domain
    return action.gang


class Plan(Struct, frozen=True, kw_only=True):
    """What `decide` answers. `wake_at_s`: decide again then, even if nothing happens; None: no need."""

    at_s: float
    actions: tuple[Action, ...] = ()
    wake_at_s: float | None = None
    retry_at_s: float | None = None
    """Not before then is room cleared and reserved again for all gangs that wait; something else wakes the state."""


# -- inputs ----------------------------------------------------------------------------------------------------------


class Announced(Struct, frozen=True, kw_only=True, tag=True):
    """NVLink domains that are contracted and expected at `ready_s`. Announced again, they are late (or early)."""

    at_s: float
    ready_s: float
    domains: tuple[DomainSpec, ...]


class Delivered(Struct, frozen=True, kw_only=True, tag=True):
    """NVLink domains join the fleet, healthy and empty."""

    at_s: float
    domains: tuple[DomainSpec, ...]


class Extended(Struct, frozen=True, kw_only=True, tag=True):
    """The capacity of these domains goes back at another time than was said; None: it stays."""

    at_s: float
    domains: tuple[str, ...]
    expires_s: float | None


class Configured(Struct, frozen=True, kw_only=True, tag=True):
    """The policy and the queues from now on."""

    at_s: float
    policy: Policy
    queues: tuple[Queue, ...] = ()


class Submitted(Struct, frozen=True, kw_only=True, tag=True):
    at_s: float
    job: Job


class Cancelled(Struct, frozen=True, kw_only=True, tag=True):
    at_s: float
    job: str


class Drained(Struct, frozen=True, kw_only=True, tag=True):
    """Nothing new starts on these nodes and what runs there leaves; `nodes` None: the whole domain."""

    at_s: float
    domain: str
    nodes: tuple[int, ...] | None = None
    deadline_s: float | None = None
    """What runs there may go on, but must have left by then; None: it leaves at once."""


class Undrained(Struct, frozen=True, kw_only=True, tag=True):
    at_s: float
    domain: str
    nodes: tuple[int, ...] | None = None


class Planned(Struct, frozen=True, kw_only=True, tag=True):
    at_s: float
    maintenance: Maintenance


class Unplanned(Struct, frozen=True, kw_only=True, tag=True):
    """The maintenance is called off, or over before its time."""

    at_s: float
    maintenance: str


class Booked(Struct, frozen=True, kw_only=True, tag=True):
    at_s: float
    booking: Booking


class Unbooked(Struct, frozen=True, kw_only=True, tag=True):
    """The booking is called off, or over before its time."""

    at_s: float
    booking: str


class NodeFailed(Struct, frozen=True, kw_only=True, tag=True):
    """Nodes are lost; `nodes` None: the whole domain (an NVLink fault)."""

    at_s: float
    domain: str
    nodes: tuple[int, ...] | None = None
    cause: str = "unknown"
    repair_s: float | None = None
    """How long the repair is expected to take; None: as the policy says."""


class NodeRepaired(Struct, frozen=True, kw_only=True, tag=True):
    at_s: float
    domain: str
    nodes: tuple[int, ...] | None = None


class GangRunning(Struct, frozen=True, kw_only=True, tag=True):
    """All ranks of the attempt do productive work; `step` is what it resumed from, `url` where a service answers."""

    at_s: float
    gang: str
    attempt: int
    step: int | None = None
    url: str | None = None
    saves_every_s: float | None = None
    """From now on it writes a whole checkpoint so often, and no event says so each time; None: each is reported."""


class Checkpointed(Struct, frozen=True, kw_only=True, tag=True):
    """A whole checkpoint of the gang is on shared storage."""

    at_s: float
    gang: str
    attempt: int
    step: int | None = None


class Progressed(Struct, frozen=True, kw_only=True, tag=True):
    """Throughput and loss, as the program reports them; decides nothing."""

    at_s: float
    gang: str
    attempt: int
    step: int
    loss: float | None = None
    tokens_per_s: float | None = None


Outcome = Literal["finished", "left", "failed"]


class GangEnded(Struct, frozen=True, kw_only=True, tag=True):
    """No process of the attempt is left. `left`: stopped on request; `failed`: the program's own failure."""

    at_s: float
    gang: str
    attempt: int
    outcome: Outcome
    detail: str = ""
    checkpointed: bool = False
    """Whether a checkpoint was written on leaving, so that no work was lost."""


class Ticked(Struct, frozen=True, kw_only=True, tag=True):
    """Time passed and nothing else happened."""

    at_s: float


class Decided(Struct, frozen=True, kw_only=True, tag=True):
    """The end of one control cycle: the plan that `decide` made from the state before it."""

    at_s: float
    plan: Plan


class Forecast(Struct, frozen=True, kw_only=True, tag=True):
    """What a plan promised for one job when it was applied (one run of the twin)."""

    at_s: float
    job: str
    start_s: float | None
    running_s: float | None
    end_s: float | None
    victims: tuple[str, ...] = ()
    lost_gpu_s: float = 0.0


Input = (
    Announced | Delivered | Extended | Configured | Submitted | Cancelled | Drained | Undrained
    | Planned | Unplanned | Booked | Unbooked
    | NodeFailed | NodeRepaired | GangRunning | Checkpointed | Progressed | GangEnded | Ticked
)  # fmt: skip
Event = (
    Announced | Delivered | Extended | Configured | Submitted | Cancelled | Drained | Undrained
    | Planned | Unplanned | Booked | Unbooked
    | NodeFailed | NodeRepaired | GangRunning | Checkpointed | Progressed | GangEnded | Ticked | Decided | Forecast
)  # fmt: skip

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """One line of JSON; the same event always gives the same bytes."""
    return _encoder.encode(event)


def decode(line: bytes | str) -> Event:
    """Inverse of `encode`. Raises msgspec.ValidationError (a ValueError) on anything else."""
    return _decoder.decode(line)
