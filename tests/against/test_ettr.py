"""The twin against published effective training time ratios (ETTR) of one large gang.

Exact renewal form, from which the linear form (1 - N r (u + dt / 2)) / (1 + w / dt) follows for small N r u. With
failures of the gang at rate l, restarts of u and non-blocking checkpoints every t, an attempt that lives x > u keeps
floor((x - u) / t) checkpoints, so that E[kept] / E[x] = l t exp(-l u) / (exp(l t) - 1).

Cases: Meta RSC (Kokolis et al., HPCA 2025, arXiv:2410.21680), 6.5 failures per 1,000 node-days, restarts of 5 minutes.
"""

from __future__ import annotations

from math import exp, expm1, sqrt

import pytest

from rackscale.events import DomainSpec
from rackscale.spec import Documents, Duration, Failures, Work
from rackscale.twin import rehearse
from rackscale.workload import Durability, Job, Shape

DAY_S = 86_400.0
PER_NODE_DAY = 6.5e-3
GPUS_PER_NODE = 8
NODES_PER_DOMAIN = 20
RESTART_S = 300.0


def exact(failures_per_s: float, interval_s: float) -> float:
    rate = failures_per_s
    return rate * interval_s * exp(-rate * RESTART_S) / expm1(rate * interval_s)


@pytest.mark.parametrize(
    ("gpus", "interval_s", "published", "rounding"),
    [
        (16_000, 3600.0, 0.70, 0.025),  # "0.7", hourly checkpoints, the whole cluster
        (16_000, 300.0, 0.93, 0.005),  # the same job with checkpoints every 5 minutes
        (4_096, 3600.0, 0.91, 0.015),  # "> 0.90"
    ],
)
def test_ettr_of_one_gang_against_published_cases(
    gpus: int, interval_s: float, published: float, rounding: float
) -> None:
    nodes = gpus // GPUS_PER_NODE
    per_segment = 16
    segments = nodes // per_segment
    # Four nodes of each domain are spare, so that every failure is answered at once.
    fleet = tuple(
        DomainSpec(
            name=f"d{i:03}", system="a100", nodes=NODES_PER_DOMAIN, gpus_per_node=GPUS_PER_NODE, cluster="rsc",
            spares=4,
        )
        for i in range(segments)
    )  # fmt: skip
    job = Job(
        name="big", kind="training", shape=Shape(segments=segments, nodes_per_segment=per_segment),
        durability=Durability(checkpoint_interval_s=interval_s, restart_s=RESTART_S),
    )  # fmt: skip
    failures = Failures(
        per_gpu_hour=PER_NODE_DAY / 24 / GPUS_PER_NODE, domain_share=0.0,
        node_repair=Duration(median_s=3600.0, p90_s=3600.0),
    )  # fmt: skip
    days = 800.0 / (nodes * PER_NODE_DAY)
    found = rehearse(
        Documents(fleet=fleet, failures=failures, work=(Work(job=job),)), until_s=days * DAY_S, seed=1
    )

    held = dict.fromkeys(("productive", "lost", "starting"), 0.0)
    for row in found.ledger:
        if row.state in held:
            held[row.state] += row.gpu_h
    ettr = held["productive"] / sum(held.values())
    assert 680 < found.restarts["spare"] < 920
    assert found.restarts == {"spare": found.restarts["spare"]}

    expected = exact(nodes * PER_NODE_DAY / DAY_S, interval_s)
    # What an attempt keeps varies by about its mean: the error of the ratio falls with the root of the failures.
    error = (1.0 - expected) / sqrt(found.restarts["spare"])
    assert abs(ettr - expected) < 3 * error
    assert abs(ettr - published) < rounding + 3 * error
