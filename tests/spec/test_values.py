"""What documents become: fleets, queues, policies and jobs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rackscale import spec
from rackscale.events import DomainSpec, Submitted, decode, encode
from rackscale.programs.contract import Worker
from rackscale.programs.train import parse
from rackscale.spec.fields import clock_seconds, seconds
from rackscale.workload import Durability, Job, Policy, Program, Queue, Shape


def load(tmp_path: Path, *documents: dict[str, object] | str) -> spec.Documents:
    file = tmp_path / "site.yaml"
    file.write_text("---\n".join(d if isinstance(d, str) else yaml.safe_dump(d) for d in documents))
    return spec.load([file])


def test_a_fleet_is_its_domains_in_fabric_order(tmp_path: Path) -> None:
    fleet = load(
        tmp_path,
        "kind: Fleet\nname: f\nclusters:\n"
        "  - {name: b, region: r, system: u-p6e-gb200x36, domains: 2, spares_per_domain: 1, usd_per_gpu_hour: 10.582}\n"
        "  - {name: a, system: local, domains: 1, nodes: 3, gpus_per_node: 2}\n",
    ).fleet
    first = DomainSpec(
        name="b/us-000", system="u-p6e-gb200x36", nodes=9, gpus_per_node=4, cluster="b", region="r", spares=1,
        usd_per_gpu_hour=10.582,
    )  # fmt: skip
    assert fleet[0] == first
    assert [d.name for d in fleet] == ["b/us-000", "b/us-001", "a/us-000"]
    assert (fleet[2].nodes, fleet[2].gpus_per_node, fleet[2].usd_per_gpu_hour) == (3, 2, None)


def test_a_queue_and_a_policy(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "kind: Queue\nname: q\nrank: -1\nmax_evictions_per_day: 0\n",
        "kind: Policy\npriorities: {a: 1, normal: 0}\nmin_runtime: 1m\npreemption: false\ncandidate_domains: 7\n",
    )
    assert found.queues == (Queue(name="q", rank=-1, max_evictions_per_day=0),)
    assert found.policy == Policy(
        priorities={"a": 1, "normal": 0}, min_runtime_s=60.0, preemption=False, candidate_domains=7
    )


def test_an_empty_policy_is_the_default_policy(tmp_path: Path) -> None:
    assert load(tmp_path, "kind: Policy\n").policy == Policy()


def test_failures_are_assumed_unless_somebody_says_more(tmp_path: Path) -> None:
    fleet = "kind: Fleet\nname: f\nclusters: [{name: a, system: p5, domains: 1}]\n"
    assumed = load(tmp_path, fleet).failures
    assert (assumed.per_gpu_hour, assumed.range_per_gpu_hour, assumed.provenance) == (
        2e-5,
        (1e-5, 4e-5),
        "assumed",
    )
    assert "no field data for NVL72" in assumed.source
    told = load(
        tmp_path,
        fleet + "failures: {per_gpu_hour: 0, node_repair: 1h, provenance: measured, source: our log}\n",
    ).failures
    assert (told.per_gpu_hour, told.provenance, told.source) == (0, "measured", "our log")
    assert told.node_repair == spec.Duration(median_s=3600.0, p90_s=3600.0)


def test_a_users_own_program(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "kind: Training\nname: x\nqueue: q\nsegments: 2\nnodes_per_segment: 16\nmay_share_domain: true\n"
        "duration: 2d\npreemptible: false\neviction_penalty_gpu_h: 3\n"
        "checkpoint: {interval: 10m, time: 20s}\ngrace: 1m\nrestart_time: 90s\nmax_restarts: 0\n"
        "setup: pip install .\nrun: |\n  torchrun 'train.py'\nenvs: {THREADS: 4}\nworkdir: code\nranks_per_node: 1\n",
    )
    assert found.jobs == (
        Job(
            name="x",
            kind="training",
            shape=Shape(segments=2, nodes_per_segment=16, may_share_domain=True),
            queue="q",
            preemptible=False,
            duration_s=172_800.0,
            eviction_penalty_gpu_h=3.0,
            durability=Durability(
                checkpoint_interval_s=600.0, checkpoint_s=20.0, grace_s=60.0, restart_s=90.0, max_restarts=0
            ),
            program=Program(
                run="torchrun 'train.py'\n",
                setup="pip install .",
                envs={"THREADS": "4"},
                workdir=str(tmp_path / "code"),
                ranks_per_node=1,
            ),
        ),
    )
    assert found.source("x") == f"{tmp_path / 'site.yaml'}:1"
    assert found.source("y") == ""


def test_nodes_are_one_segment(tmp_path: Path) -> None:
    assert load(tmp_path, "kind: Batch\nname: b\nrun: x\nnodes: 5\n").jobs[0].shape == Shape(
        nodes_per_segment=5
    )


def test_batch_does_not_checkpoint_unless_it_says_so(tmp_path: Path) -> None:
    def durability(text: str) -> Durability:
        return load(tmp_path, "name: b\nrun: x\n" + text).jobs[0].durability

    assert durability("kind: Batch\n") == Durability()
    assert durability("kind: Training\n").checkpoint_interval_s == 1800.0
    assert durability("kind: Training\ncheckpoint: {interval: never}\n").checkpoint_interval_s is None
    assert durability("kind: Batch\ncheckpoint: {interval: 60}\n").checkpoint_interval_s == 60.0


def test_count_makes_equal_jobs(tmp_path: Path) -> None:
    found = load(tmp_path, "kind: Batch\nname: b\nrun: x\n", "kind: Batch\nname: c\nrun: x\ncount: 3\n")
    assert [job.name for job in found.jobs] == ["b", "c-0", "c-1", "c-2"]
    assert found.source("c-2").endswith(":5")


def test_the_built_in_trainer_reads_what_the_document_says(tmp_path: Path) -> None:
    model = {
        "steps": 7,
        "seq": 32,
        "step_time": "200ms",
        "text": "a b'c.txt",
        "export": True,
        "checkpoint_every": 5,
    }
    [job] = load(tmp_path, {"kind": "Training", "name": "t", "model": model}).jobs
    assert job.program is not None
    words = shlex.split(job.program.run)
    assert words[:4] == ["exec", "python", "-m", "rackscale.programs.train"]
    settings = parse(words[4:], Worker(output_dir=tmp_path))
    assert (settings.steps, settings.seq, settings.step_time_s, settings.export) == (7, 32, 0.2, True)
    assert settings.text == tmp_path / "a b'c.txt"
    assert settings.checkpoint_every == 5
    assert job.duration_s == pytest.approx(7 * 0.2)
    assert job.durability.checkpoint_interval_s == pytest.approx(5 * 0.2)


def test_a_trainer_told_nothing_keeps_its_own_defaults(tmp_path: Path) -> None:
    [job] = load(tmp_path, "kind: Training\nname: t\nmodel: {export: false}\n").jobs
    assert job.program == Program(run="exec python -m rackscale.programs.train")
    assert job.duration_s is None


@pytest.mark.parametrize(
    ("model", "argument"),
    [
        ("job:tiny", "job:tiny"),
        ("my model/", "{folder}/my model"),
        ("/models/x; rm -rf ~", "/models/x; rm -rf ~"),
    ],
)
def test_a_service_for_a_model(tmp_path: Path, model: str, argument: str) -> None:
    [job] = load(
        tmp_path,
        {
            "kind": "Service",
            "name": "s",
            "model": model,
            "engine": "vllm",
            "engine_args": ["--a", "b c"],
            "replicas": 2,
            "grace": 5,
        },
    ).jobs
    assert job.gangs() == ("s/0", "s/1")
    assert job.durability.grace_s == 5.0
    assert job.program is not None
    assert job.program.ranks_per_node == 1
    words = ["exec", "python", "-m", "rackscale.programs.serve", "--model", argument.format(folder=tmp_path)]
    assert shlex.split(job.program.run) == [*words, "--engine", "vllm", "--", "--a", "b c"]


def test_a_service_may_run_its_own_server(tmp_path: Path) -> None:
    [job] = load(tmp_path, "kind: Service\nname: s\nrun: serve --port $RACKSCALE_PORT\n").jobs
    assert job.program == Program(run="serve --port $RACKSCALE_PORT")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


@given(run=TEXT, variable=TEXT, nodes=st.integers(1, 1000), priority=st.sampled_from(["production", "low"]))
def test_users_text_arrives_unchanged_and_survives_the_journal(
    tmp_path_factory: pytest.TempPathFactory, run: str, variable: str, nodes: int, priority: str
) -> None:
    document: dict[str, object] = {
        "kind": "Batch", "name": "b", "run": run, "envs": {"V": variable}, "nodes": nodes, "priority": priority,
    }  # fmt: skip
    [job] = load(tmp_path_factory.mktemp("site"), document).jobs
    assert job.program == Program(run=run, envs={"V": variable})
    assert (job.shape.nodes, job.priority) == (nodes, priority)
    event = Submitted(at_s=0.0, job=job)
    assert decode(encode(event)) == event


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("30s", 30), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172_800), ("1w", 604_800), ("200ms", 0.2),
     (45, 45), (0.5, 0.5), (0, 0)],
)  # fmt: skip
def test_durations(text: object, expected_s: float) -> None:
    assert seconds(text) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("09:00", 32_400),
        ("9:00", 32_400),
        ("18:30:15", 66_615),
        ("24:00", 86_400),
        ("1d9h", 118_800),
        (60, 60),
    ],
)
def test_times_of_day(text: object, expected_s: float) -> None:
    assert clock_seconds(text) == expected_s
