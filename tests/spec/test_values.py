"""What documents become: fleets, queues, policies and jobs."""

from __future__ import annotations

import itertools
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from rackscale import spec
from rackscale.errors import DocumentError
from rackscale.events import Announced, Booked, Delivered, DomainSpec, Planned, Submitted, decode, encode
from rackscale.programs.contract import Worker
from rackscale.programs.train import parse
from rackscale.spec.fields import clock_seconds, seconds
from rackscale.spec.shapes import ElasticSection
from rackscale.workload import (
    Booking,
    Durability,
    Job,
    Maintenance,
    Nearness,
    Offer,
    Policy,
    Program,
    Queue,
    Shape,
)


class Quoting(yaml.SafeDumper):
    """Puts all text in quotes: PyYAML leaves text such as 0E0 bare, which is a number in YAML 1.2."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"'))


def load(tmp_path: Path, *documents: dict[str, object] | str) -> spec.Documents:
    file = tmp_path / "site.yaml"
    file.write_text(
        "---\n".join(d if isinstance(d, str) else yaml.dump(d, Dumper=Quoting) for d in documents)
    )
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
@example(run="0", variable="0E0", nodes=1, priority="low")
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


def test_a_queue_in_full(tmp_path: Path) -> None:
    [org, queue, closed] = load(
        tmp_path,
        "kind: Queue\nname: org\nquota: {domains: 2.5}\nborrow: {domains: 1}\n",
        "kind: Queue\nname: q\nparent: org\nweight: 2\nquota: {gpus: 64}\nborrow: none\nmax_gangs: 9\n"
        "per_user: {max_gangs: 3, max_gpus: 32}\n",
        "kind: Queue\nname: c\nquota: {gpus: 8, domains: 1}\n",
    ).queues
    assert org == Queue(name="org", quota_domains=2.5, borrow_domains=1.0)
    assert queue == Queue(
        name="q", parent="org", weight=2.0, quota_gpus=64, borrow_gpus=0, max_gangs=9, max_gangs_per_user=3,
        max_gpus_per_user=32,
    )  # fmt: skip
    assert closed == Queue(name="c", quota_gpus=8, quota_domains=1.0)


def test_a_policy_in_full(tmp_path: Path) -> None:
    written = (
        "kind: Policy\ndecision_interval: 5s\nfair_share_half_life: never\nbackfill: false\nreservations: 3\n"
        "reclaim: false\ndefragment: on\ndefragment_gain: 4\ngrowth: false\nmarginal_throughput: 0.25\n"
        "spares: adaptive\nfailures_per_gpu_hour: 1.0e-5\nnode_repair: 1h\ndomain_repair: 3h\nassumed_duration: 12h\n"
    )
    policy = Policy(
        decision_interval_s=5.0, fair_share_half_life_s=None, backfill=False, reservations=3, reclaim=False,
        defragment="on", defragment_gain=4.0, growth=False, marginal_throughput=0.25, spares="adaptive",
        failures_per_gpu_hour=1e-5, node_repair_s=3600.0, domain_repair_s=10_800.0, lemon_failures=2,
        lemon_window_s=86_400.0, assumed_duration_s=43_200.0,
    )  # fmt: skip
    assert load(tmp_path, written + "lemon: {failures: 2, window: 1d}\n").policy == policy
    never = load(tmp_path, "kind: Policy\nlemon: never\ndefragment: off\n").policy
    assert never == Policy(lemon_failures=None, defragment="off")


@pytest.mark.parametrize(
    ("kind", "names"), [(Queue, {"name"}), (Policy, set()), (Job, {"name", "kind", "replicas", "program"})]
)
def test_every_field_can_be_written(kind: type[Struct], names: set[str]) -> None:
    """What a document can't say is decided by nobody: each field of the value has one of the document's."""
    said = {
        "quota": {"quota_gpus", "quota_domains"}, "borrow": {"borrow_gpus", "borrow_domains"},
        "per_user": {"max_gangs_per_user", "max_gpus_per_user"}, "lemon": {"lemon_failures", "lemon_window_s"},
        "nodes": {"shape"}, "shapes": {"offers"}, "worth": {"usd_per_hour"}, "near": {"nearness"},
        "checkpoint": {"durability"},
    }  # fmt: skip
    title = "TrainingDocument" if kind is Job else f"{kind.__name__}Document"
    written = spec.json_schema()["$defs"][title]["properties"]
    found = set().union(*(said.get(name, {name, f"{name}_s"}) for name in written), names)
    assert set(kind.__struct_fields__) - found == set()


def test_a_cluster_on_a_fabric_comes_and_goes(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "kind: Fleet\nname: f\nclusters:\n"
        "  - name: a\n    system: p5\n    domains: 9\n    expires: 90d\n"
        "    fabric: {domains_per_leaf: 2, leaves_per_spine: 2, spines_per_building: 2}\n"
        "  - {name: b, system: p5, domains: 2, ready: 10d, fabric: {domains_per_leaf: 16}}\n",
    )
    places = [(d.building, d.spine, d.leaf) for d in found.fleet]
    assert places[:3] == [
        ("building-000", "spine-000", leaf) for leaf in ("leaf-000", "leaf-000", "leaf-001")
    ]
    assert places[4] == ("building-000", "spine-001", "leaf-002")
    assert places[8] == ("building-001", "spine-002", "leaf-004")
    assert places[9] == ("", "", "leaf-000")
    assert {d.expires_s for d in found.fleet} == {90 * 86_400.0, None}
    assert [d.name for d in found.delivered] == [f"a/us-00{i}" for i in range(9)]
    assert found.opening()[1:] == (
        Delivered(at_s=0.0, domains=found.fleet[:9]),
        Announced(at_s=0.0, ready_s=864_000.0, domains=found.fleet[9:]),
        Delivered(at_s=864_000.0, domains=found.fleet[9:]),
    )


def test_a_job_says_how_it_lies_and_whose_it_is(tmp_path: Path) -> None:
    [job] = load(
        tmp_path,
        "kind: Service\nname: s\nrun: x\nuser: ann\nnodes: 4\nspares: 1\nsystem: p5\nbooking: b\n"
        "shapes: [{nodes: 8, throughput: 1.8, system: u-p6e-gb300x72, spares: 2}]\n"
        "worth: {usd_per_hour: 12.5}\n"
        "near: {within: building, prefer: leaf, spread: domain, apart: spine, apart_required: true}\n",
    ).jobs
    assert job.shape == Shape(nodes_per_segment=4, spares_per_segment=1)
    assert job.offers == (
        Offer(
            shape=Shape(nodes_per_segment=8, spares_per_segment=2), system="u-p6e-gb300x72", throughput=1.8
        ),
    )
    assert (job.user, job.usd_per_hour, job.booking, job.elastic) == ("ann", 12.5, "b", False)
    assert job.nearness == Nearness(
        within="building", prefer="leaf", spread="domain", apart="spine", apart_required=True
    )
    [helper] = load(tmp_path, "kind: Batch\nname: h\nrun: x\ncpu_only: true\nelastic: false\n").jobs
    assert (helper.cpu_only, helper.elastic) == (True, False)


def test_an_elastic_job_keeps_a_share_of_each_doubling(tmp_path: Path) -> None:
    text = "kind: Training\nname: t\nrun: x\nsegments: 8\nnodes_per_segment: 16\nspares: 1\n"
    [job] = load(
        tmp_path, text + "elastic: {min_segments: 4, max_segments: 17, step: 4, efficiency: 0.9}\n"
    ).jobs
    assert job.elastic
    assert [offer.shape.segments for offer in job.offers] == [4, 12, 16, 17]
    assert all((o.shape.nodes_per_segment, o.shape.spares_per_segment) == (16, 1) for o in job.offers)
    assert job.offers[0].throughput == pytest.approx(0.5 / 0.9, abs=1e-6)
    assert job.offers[2].throughput == pytest.approx(2 * 0.9)
    [chosen] = load(tmp_path, text + "elastic: true\nshapes: [{nodes: 2, throughput: 0.1}]\n").jobs
    assert (chosen.elastic, len(chosen.offers)) == (True, 1)


@given(
    segments=st.integers(1, 40), low=st.integers(1, 40), high=st.integers(1, 40), kept=st.floats(0.51, 1.0)
)
def test_more_segments_do_more_in_all_and_less_each(segments: int, low: int, high: int, kept: float) -> None:
    shape = Shape(segments=segments, nodes_per_segment=2)
    ranged = ElasticSection(min_segments=low, max_segments=high, efficiency=kept)
    work = {o.shape.segments: o.throughput for o in ranged.offers(shape, None)} | {segments: 1.0}
    pairs = list(itertools.pairwise(sorted(work)))
    assert all(work[less] < work[more] for less, more in pairs)
    assert all(work[less] / less >= work[more] / more - 1e-5 for less, more in pairs)


WINDOWS = (
    "kind: Fleet\nname: f\nclusters: [{name: a, system: u-p6e-gb300x72, domains: 2}]\n",
    """kind: Booking
name: k
segments: 2
nodes_per_segment: 16
queue: default
priority: high
system: u-p6e-gb300x72
cluster: a
near: {within: leaf}
from: 02:00
until: 1d9h
""",
    "kind: Maintenance\nname: m\ndomain: us-001\nnodes: [4, 3]\nfrom: 3600\nuntil: 2h\n",
)


def test_bookings_and_maintenance_of_a_rehearsal(tmp_path: Path) -> None:
    found = load(tmp_path, *WINDOWS)
    booking = Booking(
        name="k", shape=Shape(segments=2, nodes_per_segment=16), start_s=7200.0, end_s=118_800.0, priority="high",
        system="u-p6e-gb300x72", cluster="a", nearness=Nearness(within="leaf"),
    )  # fmt: skip
    maintenance = Maintenance(name="m", domain="a/us-001", nodes=(3, 4), start_s=3600.0, end_s=7200.0)
    assert found.opening()[2:] == (
        Planned(at_s=0.0, maintenance=maintenance),
        Booked(at_s=0.0, booking=booking),
    )
    assert not found.dated
    with pytest.raises(DocumentError) as caught:
        found.for_site()
    assert [line.removeprefix(f"{tmp_path}/") for line in caught.value.problems] == [
        f"site.yaml:{place}: a live site does not know since when this counts ({text}); "
        "write a date with its zone, or for a booking or maintenance `in 2h`"
        for place, text in (
            ("14:7: Booking 'k' from", "'02:00'"),
            ("15:8: Booking 'k' until", "'1d9h'"),
            ("21:7: Maintenance 'm' from", "3600"),
            ("22:8: Maintenance 'm' until", "'2h'"),
        )
    ]
    found.for_site(kinds=("Fleet",))


def test_bookings_of_a_live_site(tmp_path: Path) -> None:
    text = "kind: Booking\nname: k\nfrom: in 2h\nuntil: 2026-12-01T02:00+01:00\n"
    found = load(tmp_path, text)
    end_s = datetime(2026, 12, 1, 1, tzinfo=UTC).timestamp()
    [booking] = found.bookings(now_s=1_000_000.0)
    assert (booking.start_s, booking.end_s) == (1_007_200.0, end_s)
    assert found.dated
    found.for_site()
    with pytest.raises(DocumentError, match=r"site.yaml:4:8: Booking 'k' until: a rehearsal knows no dates"):
        found.opening()


@pytest.mark.parametrize(
    ("setting", "policy"),
    [
        ("policy.spares=adaptive", Policy(min_runtime_s=60.0, spares="adaptive")),
        ("policy.min_runtime=2m", Policy(min_runtime_s=120.0)),
        ("policy.lemon.failures=7", Policy(min_runtime_s=60.0, lemon_failures=7)),
        ("policy.priorities={a: 1, normal: 0}", Policy(min_runtime_s=60.0, priorities={"a": 1, "normal": 0})),
    ],
)
def test_a_field_of_the_policy_is_set_from_outside(tmp_path: Path, setting: str, policy: Policy) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("kind: Policy\nmin_runtime: 1m\n")
    assert spec.load([file], settings=[setting]).policy == policy
    file.write_text("kind: Queue\nname: q\n")
    assert spec.load([file], settings=[setting, "policy.min_runtime=1m"]).policy == replace(
        policy, min_runtime_s=60.0
    )


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("policy.spares=adptive", "Policy spares: must be 'none', 'fixed' or 'adaptive' ('adptive')"),
        ("policy.spare=none", "Policy spare: there is no such field; did you mean 'spares'?"),
        ("policy.lemon.failurs=2", "Policy lemon.failurs: there is no such field; did you mean 'failures'?"),
        ("polcy.spares=none", "can't be read; write policy.FIELD=VALUE; did you mean 'policy'?"),
        ("policy.spares", "can't be read; write policy.FIELD=VALUE"),
        ("policy.spares=", "a value is missing"),
    ],
)
def test_what_can_not_be_set_is_told_like_a_mistake_in_a_file(
    tmp_path: Path, setting: str, says: str
) -> None:
    (tmp_path / "site.yaml").write_text("kind: Policy\n")
    with pytest.raises(DocumentError) as caught:
        spec.load([tmp_path], settings=[setting])
    assert caught.value.problems == (f"--set {setting}: {says}",)
