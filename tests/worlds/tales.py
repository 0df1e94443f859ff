"""The worlds."""

from __future__ import annotations

from rackscale.commands import Cancel, Drain, Repair, Submit, Undrain
from rackscale.workload import Policy
from tests.worlds.story import (
    ENDLESS_S,
    Crash,
    Kill,
    Moment,
    World,
    at_once,
    both,
    ended,
    fleet,
    job,
    leaves,
    runs,
    saved,
    waits,
)

POLICY = Policy(min_runtime_s=0.0, preemption_retry_s=0.5)

WHOLE = World(
    name="a gang starts whole and finishes",
    fleet=fleet(2, 3),
    policy=POLICY,
    moments=(Moment(at_once, Submit(jobs=(job("whole", 2, 2),))),),
    decisions=("start whole on us-000:0,1 us-001:0,1 (fits)",),
    outcomes={"whole": "finished after 1"},
)

TURNS = World(
    name="gangs that want the same domain take turns by priority",
    fleet=fleet(1, 3),
    policy=Policy(preemption=False),
    moments=(
        Moment(at_once, Submit(jobs=(job("first", 3, work_s=ENDLESS_S),))),
        Moment(runs("first"), Submit(jobs=(job("low", 3, priority="low"),))),
        Moment(waits("low"), Submit(jobs=(job("high", 3, priority="high"),))),
        Moment(waits("high"), Cancel(job="first")),
    ),
    decisions=(
        "start first on us-000:0,1,2 (fits)",
        "stop first (cancelled)",
        "start high on us-000:0,1,2 (fits)",
        "start low on us-000:0,1,2 (fits)",
    ),
    outcomes={"first": "cancelled after 1", "high": "finished after 1", "low": "finished after 1"},
)

SPARE = World(
    name="a spare of the same domain replaces a dead node",
    fleet=fleet(2, 3, spares=1),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("lucky", 2, hold=2),))),
        Moment(saved("lucky"), Kill("w/us-000", 1)),
    ),
    decisions=("start lucky on us-000:0,1 (fits)", "restart lucky on us-000:0,2 (spare)"),
    outcomes={"lucky": "finished after 2"},
)

MOVED = World(
    name="without a spare the segment moves",
    fleet=fleet(3, 2),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("mover", 2, 2, hold=2),))),
        Moment(saved("mover"), Kill("w/us-001", 0)),
    ),
    decisions=(
        "start mover on us-000:0,1 us-001:0,1 (fits)",
        "restart mover on us-000:0,1 us-002:0,1 (moved-segment)",
    ),
    outcomes={"mover": "finished after 2"},
)

REPAIRED = World(
    name="without any room the gang waits for the repair",
    fleet=fleet(1, 2),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("patient", 2, hold=2),))),
        Moment(saved("patient"), Kill("w/us-000", 0)),
        Moment(waits("patient"), Repair(target="us-000/n00")),
    ),
    decisions=(
        "start patient on us-000:0,1 (fits)",
        "requeue patient (no-replacement)",
        "start patient on us-000:0,1 (fits)",
    ),
    outcomes={"patient": "finished after 2"},
)

CLEARED = World(
    name="production clears the domain with the cheapest victims",
    fleet=fleet(2, 3),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("dear", 2, work_s=ENDLESS_S, penalty_gpu_h=9.0),))),
        Moment(runs("dear"), Submit(jobs=(job("cheap-2", 2, hold=2, leave_s=1.0),))),
        Moment(runs("cheap-2"), Submit(jobs=(job("other", 1, work_s=ENDLESS_S),))),
        Moment(runs("other"), Submit(jobs=(job("cheap-1", 1, hold=2),))),
        Moment(saved("cheap-1", "cheap-2", "dear", "other"), Submit(jobs=(job("prod", 3, priority="production"),))),
        # While one victim is gone and the other still writes its checkpoint, there is a node that looks free.
        Moment(leaves("cheap-2"), Submit(jobs=(job("thief", 1),))),
        Moment(both(runs("prod"), waits("thief")), Cancel(job="thief")),
        Moment(ended("prod", "cheap-1", "cheap-2"), Cancel(job="dear")),
        Moment(ended("dear"), Cancel(job="other")),
    ),
    decisions=(
        "start dear on us-000:0,1 (fits)",
        "start cheap-2 on us-001:0,1 (fits)",
        "start other on us-000:2 (fits)",
        "start cheap-1 on us-001:2 (fits)",
        "claim prod on us-001:0,1,2 (cleared-domain)",
        "preempt cheap-1 for prod (preempted-for)",
        "preempt cheap-2 for prod (preempted-for)",
        "start prod on us-001:0,1,2 (claim-complete)",
        "start cheap-2 on us-001:0,1 (fits)",
        "start cheap-1 on us-001:2 (fits)",
        "stop dear (cancelled)",
        "stop other (cancelled)",
    ),
    outcomes={
        "thief": "cancelled after 0",
        "prod": "finished after 1",
        "cheap-2": "finished after 2",
        "cheap-1": "finished after 2",
        "dear": "cancelled after 1",
        "other": "cancelled after 1",
    },
)  # fmt: skip

DRAINED = World(
    name="a drained domain sends its gang to another",
    fleet=fleet(2, 3),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("guest", 2, hold=2),))),
        Moment(saved("guest"), Drain(target="us-000")),
        Moment(runs("guest", attempt=2), Undrain(target="us-000")),
    ),
    decisions=(
        "start guest on us-000:0,1 (fits)",
        "preempt guest (drain)",
        "start guest on us-001:0,1 (fits)",
    ),
    outcomes={"guest": "finished after 2"},
)

CANCELLED = World(
    name="a cancelled gang stops, one that waits never starts",
    fleet=fleet(1, 2),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("running", 2, work_s=ENDLESS_S), job("waiting", 2)))),
        Moment(both(runs("running"), waits("waiting")), Cancel(job="waiting")),
        Moment(ended("waiting"), Cancel(job="running")),
    ),
    decisions=("start running on us-000:0,1 (fits)", "stop running (cancelled)"),
    outcomes={"waiting": "cancelled after 0", "running": "cancelled after 1"},
)

FAILED = World(
    name="a program that fails is tried again, then given up",
    fleet=fleet(1, 2),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("broken", 2, work_s=ENDLESS_S, max_restarts=1),))),
        Moment(saved("broken"), Crash("broken")),
        Moment(runs("broken", attempt=2), Crash("broken")),
    ),
    decisions=("start broken on us-000:0,1 (fits)", "start broken on us-000:0,1 (fits)"),
    outcomes={"broken": "failed after 2"},
)

SERVICE = World(
    name="a replica of a service is replaced",
    fleet=fleet(1, 3, spares=1),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("chat", 1, kind="service", replicas=2),))),
        Moment(runs("chat/0", "chat/1"), Kill("w/us-000", 0)),
        Moment(both(runs("chat/0", attempt=2), runs("chat/1")), Cancel(job="chat")),
    ),
    decisions=(
        "start chat/0 on us-000:0 (fits)",
        "start chat/1 on us-000:1 (fits)",
        "restart chat/0 on us-000:2 (spare)",
        "stop chat/0 (cancelled)",
        "stop chat/1 (cancelled)",
    ),
    outcomes={"chat/0": "cancelled after 2", "chat/1": "cancelled after 1"},
)

ELASTIC = World(
    name="an elastic gang shrinks for production and grows again",
    fleet=fleet(2, 2),
    policy=POLICY,
    moments=(
        Moment(at_once, Submit(jobs=(job("wide", 2, 2, work_s=3.0, hold=3, fewer=(1,)),))),
        Moment(saved("wide"), Submit(jobs=(job("prod", 2, hold=1, priority="production"),))),
    ),
    decisions=(
        "start wide on us-000:0,1 us-001:0,1 (fits)",
        "claim prod on us-000:0,1 (cleared-domain)",
        "move wide on us-001:0,1 for prod (shrunk-for)",
        "start prod on us-000:0,1 (claim-complete)",
        "start wide on us-001:0,1 (claim-complete)",
        "move wide on us-001:0,1 us-000:0,1 (grown)",
        "start wide on us-001:0,1 us-000:0,1 (claim-complete)",
    ),
    outcomes={"prod": "finished after 1", "wide": "finished after 3"},
)

WORLDS = (WHOLE, TURNS, SPARE, MOVED, REPAIRED, CLEARED, DRAINED, CANCELLED, FAILED, SERVICE, ELASTIC)
