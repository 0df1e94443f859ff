"""The examples are what the documentation says that they are, and work."""

from __future__ import annotations

from pathlib import Path

import pytest

from rackscale import catalog, spec

EXAMPLES = Path(__file__).parents[2] / "examples"
SITES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


def capacity_nodes(site: spec.Documents) -> int:
    return sum(domain.nodes - domain.spares for domain in site.fleet)


def demand_nodes(site: spec.Documents, *, end_s: float) -> float:
    """Nodes that the work would keep busy on average, if none of it ever waited."""
    return sum(
        s.job.shape.nodes * s.job.replicas * min(s.duration_s or end_s, end_s - s.at_s) / end_s
        for s in spec.submissions(site.work, seed=1, end_s=end_s)
    )


@pytest.mark.parametrize("name", SITES)
def test_every_example_is_clean(name: str) -> None:
    report = spec.check([EXAMPLES / name])
    assert report.problems == ()
    assert report.counts["Fleet"] == 1


@pytest.mark.parametrize("name", ["one-rack", "aws-openai"])
def test_every_job_of_a_rehearsal_says_how_long_it_takes(name: str) -> None:
    for work in spec.load([EXAMPLES / name]).work:
        assert work.job.kind == "service" or work.duration is not None, work.source


@pytest.mark.parametrize("name", ["one-rack", "aws-openai"])
def test_a_rehearsed_day_is_busy_but_not_hopeless(name: str) -> None:
    site = spec.load([EXAMPLES / name])
    assert 0.7 < demand_nodes(site, end_s=86_400.0) / capacity_nodes(site) < 0.95


def test_aws_openai_is_four_thousand_ultraservers() -> None:
    fleet = spec.load([EXAMPLES / "aws-openai"]).fleet
    assert len(fleet) == 4000
    assert sum(domain.nodes * domain.gpus_per_node for domain in fleet) == 288_000
    assert {domain.system for domain in fleet} == {"u-p6e-gb200x72", "u-p6e-gb300x72"}


def test_the_list_price_is_the_catalogs() -> None:
    fleet = spec.load([EXAMPLES / "aws-openai"]).fleet
    blocks = [p for p in catalog.system("u-p6e-gb200x72").prices if p.model == "capacity-block"]
    assert {domain.usd_per_gpu_hour for domain in fleet} == {blocks[-1].usd_per_gpu_hour}


def test_the_demos_production_gang_fits_only_in_a_cleared_domain() -> None:
    site = spec.load([EXAMPLES / "demo"])
    assert [(domain.nodes, domain.spares) for domain in site.fleet] == [(4, 1), (4, 1)]
    gang = next(job for job in site.jobs if job.priority == "production")
    assert gang.shape.nodes == 3
    busy = sum(job.shape.nodes * job.replicas for job in site.jobs if job is not gang)
    assert busy > capacity_nodes(site) - gang.shape.nodes
