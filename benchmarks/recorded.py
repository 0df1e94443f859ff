"""Recorded jobs as work for a fleet of UltraServers: Microsoft's Philly, with large gangs from Shanghai AI Lab's Kalos.

How the records become work (what is assumed is marked so):

- One recorded Philly GPU becomes one node of four GPUs (assumed: a unit of research work has grown fourfold since
  2017). So 1-GPU jobs are 1 node, 8-GPU jobs 8 nodes, 32-GPU jobs 2 segments of 16. Arrivals, bursts and durations are
  as recorded. The virtual clusters are queues.
- The window starts three weeks into the record, when the cluster has filled; what ran then runs at the start, with what
  was left of it.
- Kalos's completed jobs of 64 GPUs or more are the production class: gangs of whole-domain segments, 16 nodes each
  (64 GPUs). `COPIES` copies of its 90 days, each shifted around the circle by a seeded offset, are laid over each
  other: bursts inside a copy stay. Failed and cancelled jobs are not in that record.
- The fleet is as many UltraServers as make the offered load what is asked for. Offered load: nodes that would be held
  on average if every job started at once, over what the fleet can give (one node per domain stays spare). So all loads
  and all schedulers see the same jobs.
- Production's quota is the most that it would ever hold if every job started at once, at most `MOST_QUOTA` of the
  fleet: it is guaranteed its bursts (assumed). The virtual clusters are guaranteed half of the rest in proportion to
  their recorded use, and anybody may borrow (assumed: guarantees that add up to the whole fleet can't all be kept by
  whole domains). Of other jobs 30 % are low priority, the rest normal (assumed). `Mix` varies all of this.
- Production saves every 20 minutes, others every 30 (assumed; a survey of 40 training runs saw a median of 40). A
  share of the jobs that are said to be short never save (assumed; see `Mix`).
- The scheduler is told an estimate: the true duration times a log-normal error, rounded up to one of 20 values, the
  same for all schedulers. Users' estimates are bad (Lee et al., JSSPP 2004), and multiples of the truth alone tell too
  much: 90 % of real jobs use some 20 values (Tsafrir, JSSPP 2010). The error's size is assumed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import ceil, exp
from pathlib import Path
from random import Random
from typing import NamedTuple

from msgspec import Struct

from rackscale.events import DomainSpec
from rackscale.spec import Submission
from rackscale.workload import Durability, Job, Queue, Shape

DAY_S = 86_400.0
NODES, SPARES, GPUS_PER_NODE = 18, 1, 4
SEGMENT = 16
"""Nodes of a whole-domain segment."""
LARGE_GPUS = 64
START_DAY = 21
PERIOD_S = 90 * DAY_S
"""What the Kalos record covers."""
COPIES = 4
MOST_QUOTA = 0.7
PRODUCTION = "production"
HOUR_S = 3600.0
SAVES_S, OTHERS_SAVE_S = 1200.0, 1800.0
CHECKPOINT_S, GRACE_S = 60.0, 120.0
RESTART_S, SMALL_RESTART_S = 300.0, 60.0
"""Of gangs of a whole domain or more, and of others (assumed)."""
MODES_S = tuple(
    hours * HOUR_S
    for hours in (0.1, 0.25, 0.5, 0.75, 1, 2, 3, 4, 6, 8, 12, 18, 24, 36, 48, 72, 96, 168, 336, 720)
)
"""Values that users give for durations (assumed, after the shape that Tsafrir reports)."""


class Record(NamedTuple):
    """One recorded job."""

    submit_s: float
    duration_s: float
    gpus: int
    queue: str


class Mix(Struct, frozen=True, kw_only=True):
    """What no record says, and may as well be otherwise. All assumed."""

    low_share: float = 0.3
    """Of the jobs that are not production."""
    unsaved_share: float = 0.3
    """Of those whose estimate is at most `short_s`: they never save."""
    short_s: float = 4 * HOUR_S
    guarantee: float = 1.0
    """Production's quota covers what it would hold at this quantile in time if every job started at once."""
    research_share: float = 0.5
    """Of what production's quota leaves: guaranteed to the virtual clusters."""
    bias: float = 1.5
    """Median of estimate over truth."""
    sigma: float = 0.8
    """Standard deviation of the estimate's logarithm."""


class World(Struct, frozen=True, kw_only=True):
    """A fleet and all that is submitted to it."""

    fleet: tuple[DomainSpec, ...]
    queues: tuple[Queue, ...]
    submissions: tuple[Submission, ...]
    until_s: float
    demand_nodes: float
    """Nodes that would be held on average if every job started at once."""

    @property
    def load(self) -> float:
        return self.demand_nodes / (len(self.fleet) * (NODES - SPARES))


def found(root: Path) -> Path | None:
    """The folder with the records beside the project, or None."""
    places = (parent / "shared" / "data" / "jobs" for parent in root.parents)
    return next((place for place in places if (place / "philly_first_half.parquet").exists()), None)


def read(path: Path) -> list[Record]:
    """The records of one file, in order of submission."""
    from pyarrow.parquet import read_table

    table = read_table(path, columns=["submit_s", "duration_s", "gpus", "queue"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return sorted(Record(float(at), float(took), int(gpus), str(queue)) for at, took, gpus, queue in rows)


def world(
    research: Sequence[Record],
    production: Sequence[Record],
    *,
    load: float,
    days: float,
    seed: int,
    mix: Mix | None = None,
    thin: float = 1.0,
    largest: int = 16,
) -> World:
    """Work for `days` days and the fleet that makes the offered load `load`.

    `thin`: the share of the research jobs and of the copies of production that is kept, for a smaller fleet;
    `largest`: production gangs are cut to so many segments.
    """
    mix, until_s, stream = mix or Mix(), days * DAY_S, Random(f"{seed}/recorded")
    arrivals = [
        *_research(research, until_s, thin, stream),
        *_production(production, until_s, max(1, round(COPIES * thin)), largest, stream),
    ]
    submissions = tuple(
        _submission(number, arrival, mix, stream)
        for number, arrival in enumerate(sorted(arrivals, key=lambda a: (a.at_s, a.queue, a.duration_s)))
    )
    used: dict[str, float] = defaultdict(float)
    for arrival in arrivals:
        used[arrival.queue] += arrival.shape.nodes * min(arrival.duration_s, until_s - arrival.at_s) / until_s
    demand = sum(used.values())
    domains = max(largest, round(demand / load / (NODES - SPARES)))
    return World(
        fleet=_fleet(domains), queues=_queues(used, domains, _peak(arrivals, until_s, mix.guarantee), mix),
        submissions=submissions, until_s=until_s, demand_nodes=demand,
    )  # fmt: skip


class Arrival(NamedTuple):
    """A recorded job in the new fleet's terms."""

    at_s: float
    queue: str
    duration_s: float
    shape: Shape


def _research(records: Sequence[Record], until_s: float, thin: float, stream: Random) -> Iterator[Arrival]:
    """Philly's jobs from `START_DAY` on, and what is left of those that ran then."""
    start_s = START_DAY * DAY_S
    for record in records:
        at_s, left_s = record.submit_s - start_s, record.duration_s
        if at_s < 0:
            at_s, left_s = 0.0, left_s + at_s
        if left_s <= 0 or at_s >= until_s or stream.random() >= thin:
            continue
        segments = ceil(record.gpus / SEGMENT)
        shape = Shape(segments=segments, nodes_per_segment=ceil(record.gpus / segments))
        yield Arrival(at_s, f"vc-{record.queue}", left_s, shape)


def _production(
    records: Sequence[Record], until_s: float, copies: int, largest: int, stream: Random
) -> Iterator[Arrival]:
    """Kalos's large jobs, laid over each other at seeded offsets."""
    for _ in range(copies):
        offset_s = stream.uniform(0.0, PERIOD_S)
        for record in records:
            at_s = (record.submit_s + offset_s) % PERIOD_S
            if record.gpus >= LARGE_GPUS and at_s < until_s:
                segments = min(largest, ceil(record.gpus / LARGE_GPUS))
                shape = Shape(segments=segments, nodes_per_segment=SEGMENT)
                yield Arrival(at_s, PRODUCTION, record.duration_s, shape)


def _submission(number: int, arrival: Arrival, mix: Mix, stream: Random) -> Submission:
    estimate_s = arrival.duration_s * mix.bias * exp(stream.gauss(0.0, mix.sigma))
    mode = bisect_left(MODES_S, estimate_s)
    told_s = MODES_S[mode] if mode < len(MODES_S) else estimate_s
    production = arrival.queue == PRODUCTION
    priority = "production" if production else "low" if stream.random() < mix.low_share else "normal"
    unsaved = stream.random() < mix.unsaved_share and told_s <= mix.short_s and not production
    saves_s = SAVES_S if production else OTHERS_SAVE_S
    durability = Durability(
        checkpoint_interval_s=None if unsaved else saves_s, checkpoint_s=CHECKPOINT_S, grace_s=GRACE_S,
        restart_s=RESTART_S if arrival.shape.nodes >= SEGMENT else SMALL_RESTART_S,
    )  # fmt: skip
    job = Job(
        name=f"{'p' if production else 'r'}{number:06}", kind="training", shape=arrival.shape, queue=arrival.queue,
        priority=priority, duration_s=told_s, durability=durability,
    )  # fmt: skip
    return Submission(at_s=arrival.at_s, job=job, duration_s=arrival.duration_s)


def _fleet(domains: int) -> tuple[DomainSpec, ...]:
    return tuple(
        DomainSpec(
            name=f"us-{d:03}", system="u-p6e-gb200x72", nodes=NODES, gpus_per_node=GPUS_PER_NODE, cluster="one",
            spares=SPARES,
        )
        for d in range(domains)
    )  # fmt: skip


def _peak(arrivals: Sequence[Arrival], until_s: float, share: float) -> int:
    """Nodes that production would hold at most for this share of the time if every job started at once."""
    changes = sorted(
        (at_s, nodes)
        for a in arrivals
        if a.queue == PRODUCTION
        for at_s, nodes in ((a.at_s, a.shape.nodes), (min(until_s, a.at_s + a.duration_s), -a.shape.nodes))
    )
    spent_s: dict[int, float] = defaultdict(float)
    held, since_s = 0, 0.0
    for at_s, nodes in changes:
        spent_s[held] += at_s - since_s
        held, since_s = held + nodes, at_s
    spent_s[0] += until_s - since_s
    below_s = 0.0
    for held in sorted(spent_s):
        below_s += spent_s[held]
        if below_s >= share * until_s * (1 - 1e-9):
            return held
    raise AssertionError("the time adds up to the whole")


def _queues(used: dict[str, float], domains: int, peak: int, mix: Mix) -> tuple[Queue, ...]:
    """Quotas add up to no more than the fleet can give."""
    nodes = domains * (NODES - SPARES)
    production = min(peak, int(MOST_QUOTA * nodes))
    rest = sum(used.values()) - used[PRODUCTION]
    return tuple(
        Queue(
            name=name,
            quota_gpus=GPUS_PER_NODE
            * (
                production
                if name == PRODUCTION
                else int(mix.research_share * (nodes - production) * used[name] / rest)
            ),
        )
        for name in sorted(used)
    )
