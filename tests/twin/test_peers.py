"""The comparison on recorded jobs: worlds from records, and peers that decide as they say, in the same twin."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import peers, recorded, traces
from benchmarks.recorded import DAY_S, NODES, PRODUCTION, SPARES, Record
from rackscale.control import Decide
from rackscale.events import Configured, Decided, Delivered, DomainSpec, Event, Preempt, Start
from rackscale.fleet.state import FleetState
from rackscale.spec import Submission
from rackscale.twin import TwinExecutor, play
from rackscale.workload import Durability, Job, Policy, Queue, Shape

ROOT = Path(__file__).parents[2]
START_S = recorded.START_DAY * DAY_S


def synthetic() -> tuple[list[Record], list[Record]]:
    """Records in the form of the real ones: many small jobs in bursts, few large ones."""
    stream = Random("records")
    research = [
        Record(
            START_S + stream.randrange(24) * 3600.0 * 3,
            stream.expovariate(1 / 12_000.0) + 60.0,
            gpus,
            f"{n % 3}",
        )
        for n in range(2400)
        for gpus in (stream.choice((1, 1, 1, 1, 2, 4, 8, 16)),)
    ]
    production = [
        Record(stream.uniform(0.0, recorded.PERIOD_S), stream.uniform(600.0, 40_000.0), gpus, "Pretrain")
        for gpus in (64, 64, 128, 256, 512) * 40
    ]
    return sorted(research), sorted(production)


@pytest.mark.parametrize("load", [0.7, 0.95])
def test_the_fleet_is_as_large_as_the_load_asks_for(load: float) -> None:
    world = recorded.world(*synthetic(), load=load, days=3.0, seed=1, largest=1)
    assert world.load == pytest.approx(load, rel=0.05)
    given = len(world.fleet) * (NODES - SPARES) * recorded.GPUS_PER_NODE
    quotas = {queue.name: queue.quota_gpus or 0 for queue in world.queues}
    rest = (given - quotas[PRODUCTION]) / 2
    assert rest - 4 * len(quotas) <= sum(quotas.values()) - quotas[PRODUCTION] <= rest
    shapes = {s.job.shape.nodes_per_segment for s in world.submissions if s.job.queue == PRODUCTION}
    assert shapes == {recorded.SEGMENT}


def test_all_loads_and_schedulers_see_the_same_jobs() -> None:
    low, high = (recorded.world(*synthetic(), load=load, days=3.0, seed=1, largest=4) for load in (0.7, 0.95))
    assert low.submissions == high.submissions
    assert len(low.fleet) > len(high.fleet)
    other = recorded.world(*synthetic(), load=0.7, days=3.0, seed=2, largest=4)
    assert other.submissions != low.submissions


def test_what_ran_at_the_start_of_the_window_has_what_was_left_of_it() -> None:
    early = Record(START_S - 5000.0, 8000.0, 8, "a")
    over = Record(START_S - 5000.0, 4000.0, 8, "a")
    world = recorded.world([early, over], synthetic()[1], load=0.8, days=3.0, seed=1)
    (found,) = (s for s in world.submissions if s.job.queue == "vc-a")
    assert (found.at_s, found.duration_s, found.job.shape.nodes) == (0.0, 3000.0, 8)


def test_every_scheduler_runs_and_the_rows_say_what_happened() -> None:
    rows = _compare(*synthetic())
    assert [row["scheduler"] for row in rows] == list(traces.SCHEDULERS)
    submitted = {row["jobs"]["submitted"] for row in rows}
    assert len(submitted) == 1
    for row in rows:
        production = row["waits"]["production"]
        assert production["gangs"] > 0
        assert 0.0 <= production["p50_s"] <= production["p95_s"] <= production["p99_s"]
        assert 0.2 < row["useful"] < row["occupancy"] < 1.0
        assert row["lost_sent"] <= row["lost"]
        assert row["jobs"]["refused"] == 0
    by_name = {row["scheduler"]: row for row in rows}
    assert by_name["FIFO"]["departures"] == {}
    assert by_name["EASY + quota"]["gfr"] < by_name["no topology"]["gfr"]
    traces.show(rows)


def test_recorded_jobs_run_on_a_small_fleet() -> None:
    data = recorded.found(ROOT)
    if data is None:
        pytest.skip("the records are not beside the project (../shared/data/jobs)")
    research = recorded.read(data / "philly_first_half.parquet")
    assert len(research) == 41_123
    rows = _compare(research, recorded.read(data / "acme_kalos_completed.parquet"))
    assert all(row["jobs"]["finished"] > 500 for row in rows)


def _compare(research: list[Record], production: list[Record]) -> list[dict[str, Any]]:
    return traces.compare(
        research, production, scale="small", loads=(0.7,), seeds=(1,), schedulers=list(traces.SCHEDULERS)
    )


# -- what each peer does ---------------------------------------------------------------------------------------------


def _job(
    name: str, nodes: int, hours: float, *, segments: int = 1, queue: str = "lab", priority: str = "normal"
) -> Job:
    return Job(
        name=name, kind="training", shape=Shape(segments=segments, nodes_per_segment=nodes), queue=queue,
        priority=priority, duration_s=hours * 3600.0,
        durability=Durability(checkpoint_interval_s=600.0, checkpoint_s=30.0, grace_s=60.0, restart_s=0.0),
    )  # fmt: skip


def _starts(
    decide: Decide, jobs: list[tuple[float, Job]], *, domains: int = 2, quotas: dict[str, int] | None = None
) -> tuple[dict[str, float], list[str]]:
    """When each gang started first, hours, and who was preempted; domains have 4 nodes of 4 GPUs."""
    starts: dict[str, float] = {}
    sent: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, Decided):
            for action in event.plan.actions:
                if isinstance(action, Start):
                    starts.setdefault(action.gang, event.at_s / 3600.0)
                elif isinstance(action, Preempt):
                    sent.append(action.gang)

    fleet = tuple(
        DomainSpec(name=f"us-{d}", system="u", nodes=4, gpus_per_node=4, cluster="c") for d in range(domains)
    )
    queues = tuple(Queue(name=name, quota_gpus=gpus) for name, gpus in (quotas or {}).items())
    twin = TwinExecutor(
        submissions=[Submission(at_s=at_h * 3600.0, job=job, duration_s=job.duration_s) for at_h, job in jobs],
        inputs=[Configured(at_s=0.0, policy=Policy(), queues=queues), Delivered(at_s=0.0, domains=fleet)],
    )  # fmt: skip
    play(FleetState(), twin, until_s=40 * 3600.0, listeners=(watch,), decide=decide)
    return starts, sent


BLOCKED = [
    (0.0, _job("long", 3, 10)),
    (0.0, _job("also", 4, 5)),
    (1.0, _job("head", 4, 1)),
    (2.0, _job("short", 1, 2)),
    (2.0, _job("slow", 1, 20)),
]
"""One node is free; the head of the line needs four, and gets them at hour 5."""


def test_fifo_lets_nobody_pass_the_head() -> None:
    starts, _ = _starts(peers.Fifo(), BLOCKED)
    assert starts == {"long": 0.0, "also": 0.0, "head": 5.0, "short": 5.0, "slow": 6.0}


def test_easy_lets_pass_what_does_not_delay_the_head() -> None:
    starts, _ = _starts(peers.Easy(), BLOCKED)
    # By count, five nodes are free at hour 5: one more than the head needs, so that the slow one may pass as well.
    assert starts == {"long": 0.0, "also": 0.0, "head": 5.0, "short": 2.0, "slow": 4.0}


def test_a_reservation_by_count_does_not_keep_a_rack_whole_and_one_by_rack_does() -> None:
    jobs = [
        (0.0, _job("a", 3, 4)),
        (0.0, _job("b", 3, 8)),
        (1.0, _job("head", 4, 1)),
        (1.0, _job("slow", 1, 9)),
    ]
    by_count, _ = _starts(peers.Easy(), jobs)
    by_rack, _ = _starts(peers.Racks(), jobs)
    # Two nodes are free and the head needs four: at hour 4 there are five by count, wherever they are.
    assert by_count == {"a": 0.0, "b": 0.0, "slow": 1.0, "head": 8.0}
    assert by_rack == {"a": 0.0, "b": 0.0, "slow": 1.0, "head": 4.0}


def test_quota_preempts_by_count_the_lowest_priority_and_the_youngest_and_scatters_what_is_free() -> None:
    jobs = [
        *[(0.1 * n, _job(f"low-{n}", 2, 30, priority="low")) for n in range(2)],
        *[(0.1 * n + 1, _job(f"mid-{n}", 2, 30)) for n in range(2)],
        (3.0, _job("head", 4, 1, queue="owed", priority="production")),
    ]
    starts, sent = _starts(peers.Easy(), jobs, quotas={"owed": 16, "lab": 8})
    assert sent[:2] == ["low-0", "low-1"]
    assert starts["head"] < 4.0
    jobs[0] = (0.0, _job("low-0", 2, 30, priority="production"))
    starts, sent = _starts(peers.Easy(), jobs, quotas={"owed": 16, "lab": 8})
    # The youngest of the others leave: one in each domain. Four nodes are free, no domain is.
    assert sent[:2] == ["mid-1", "low-1"]
    assert starts["head"] >= 30.0


def test_nobody_is_preempted_while_enough_is_free_in_number_or_beyond_the_quota() -> None:
    jobs = [
        (0.0, _job("a", 2, 30)),
        (0.0, _job("wide", 2, 1)),
        (0.0, _job("b", 2, 30)),
        (2.0, _job("head", 4, 1, queue="owed", priority="production")),
    ]
    _, sent = _starts(peers.Scatter(), jobs, quotas={"owed": 16, "lab": 0})
    assert sent == []
    _, sent = _starts(
        peers.Easy(), [*jobs[:3], (1.5, _job("c", 2, 30)), jobs[3]], quotas={"owed": 8, "lab": 0}
    )
    assert sent == []
