"""Recorded jobs: formats, what is rounded, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rackscale.errors import DocumentError, RackscaleError
from rackscale.events import DomainSpec
from rackscale.spec import Documents
from rackscale.twin import rehearse
from rackscale.twin.traces import Sizing, read_jobs
from rackscale.workload import Shape

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "jobs"


def domain(name: str = "c/us-000", *, system: str = "gb200", nodes: int = 18, gpus: int = 4) -> DomainSpec:
    return DomainSpec(name=name, system=system, nodes=nodes, gpus_per_node=gpus, cluster="c", spares=1)


FLEET = tuple(domain(f"c/us-{i:03}") for i in range(8))


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def problems(path: Path, **options: tuple[str, ...]) -> tuple[str, ...]:
    with pytest.raises(DocumentError) as raised:
        read_jobs(path, FLEET, **options)
    return tuple(problem.replace(f"{path}:", "") for problem in raised.value.problems)


def test_csv_rows_become_jobs_in_order_of_submission(tmp_path: Path) -> None:
    path = write(
        tmp_path / "jobs.csv",
        "job_id,submit_s,duration_s,gpus,queue,user\nb,1060,30.5,4,,eve\na,1000,3600,9,research,adam\n",
    )
    trace = read_jobs(path, FLEET)
    a, b = trace.submissions
    assert (a.at_s, a.job.name, a.duration_s, a.job.queue) == (0.0, "trace/a", 3600.0, "research")
    assert (b.at_s, b.job.name, b.duration_s, b.job.queue) == (60.0, "trace/b", 30.5, "default")
    assert a.job.shape == Shape(nodes_per_segment=3)
    assert (trace.rounded, trace.segmented) == (1, 0)
    assert trace.asked_gpu_h == pytest.approx(9 + 4 * 30.5 / 3600)
    assert trace.held_gpu_h == pytest.approx(12 + 4 * 30.5 / 3600)


@pytest.mark.parametrize(
    ("gpus", "segments", "nodes"),
    [
        (1, 1, 1),
        (68, 1, 17),
        (72, 2, 9),  # 18 nodes: one is a spare
        (256, 4, 16),  # 64 nodes: 16 divides, 17 does not
        (4096, 64, 16),
        (76, 2, 10),  # 19 nodes: nothing divides; one node is wasted
        (2000, 50, 10),
    ],
)
def test_gangs_larger_than_a_domain_become_equal_segments(gpus: int, segments: int, nodes: int) -> None:
    assert Sizing.of(FLEET).shape(gpus) == Shape(segments=segments, nodes_per_segment=nodes)


def test_jobs_are_sized_for_the_largest_system_and_stay_on_it_where_nodes_differ() -> None:
    other = domain("p/us-000", system="p5", nodes=1, gpus=8)
    assert Sizing.of((*FLEET, other)) == Sizing(gpus_per_node=4, domain_nodes=17, system="gb200")
    assert Sizing.of((*FLEET, domain("x/us-000", system="gb300", nodes=9))).system is None
    with pytest.raises(RackscaleError, match="no fleet"):
        Sizing.of(())


def test_every_bad_row_is_named_with_its_line_and_reason(tmp_path: Path) -> None:
    path = write(
        tmp_path / "jobs.csv",
        "job_id,submit_s,duration_s,gpus,priority\n"
        "1,0,10,4,\n"
        ",0,10,4,\n"
        "2,zero,10,4,\n"
        "3,0,-10,4,\n"
        "4,0,10,2.5,\n"
        "5,0,nan,4,\n"
        "1,0,10,4,\n"
        "6,0,10,4,prodution\n"
        "7,0,10\n",
    )
    assert problems(path, priorities=("production", "normal")) == (
        "3: job_id is missing",
        "4: submit_s is no number: 'zero'",
        "5: duration_s is negative: '-10'",
        "6: gpus is no whole number: '2.5'",
        "7: duration_s is not finite: 'nan'",
        "8: job_id '1' occurs twice",
        "9: priority 'prodution' is not in the policy; did you mean 'production'?",
        "10: gpus is missing",
    )


def test_very_many_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"{i},0,x,1\n" for i in range(1500))
    found = problems(write(tmp_path / "jobs.csv", "job_id,submit_s,duration_s,gpus\n" + rows))
    assert len(found) == 21
    assert found[-1] == " and 1,480 more such rows"


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.csv", "job_id,submitted_s,duration_s\n1,0,10\n")
    assert problems(path) == (
        "1: there is no column 'submit_s'; did you mean 'submitted_s'?",
        "1: there is no column 'gpus'",
    )


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    assert problems(write(tmp_path / "jobs.csv", ""))[0] == "1: there is no column 'job_id'"


def test_jobs_without_gpus_are_counted_not_dropped_in_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.csv", "job_id,submit_s,duration_s,gpus\n1,0,10,0\n2,5,10,1\n")
    trace = read_jobs(path, FLEET)
    assert [s.job.name for s in trace.submissions] == ["trace/2"]
    assert trace.skipped == {"no GPUs": 1}


def test_a_file_that_cannot_be_read_is_a_plain_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "none.parquet", write(tmp_path / "text.parquet", "no")):
        with pytest.raises(RackscaleError, match="can't be read"):
            read_jobs(path, FLEET)
    latin = tmp_path / "latin.csv"
    latin.write_bytes("job_id,submit_s,duration_s,gpus\né,0,1,1\n".encode("latin-1"))
    with pytest.raises(RackscaleError, match="can't be read"):
        read_jobs(latin, FLEET)


def test_parquet_without_the_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RackscaleError) as raised:
        read_jobs(tmp_path / "jobs.parquet", FLEET)
    assert raised.value.hint == "pip install 'rackscale[parquet]'"


def test_parquet_rows_are_checked_like_others(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {
        "job_id": [7, 8],
        "submit_s": [10.0, 20.0],
        "duration_s": [5.0, None],
        "gpus": [4, 4],
        "queue": [None, "q"],
    }
    path = tmp_path / "jobs.parquet"
    pq.write_table(pa.table(columns), path)
    assert problems(path) == ("2: duration_s is missing",)
    pq.write_table(pa.table(columns).slice(0, 1), path)
    (submission,) = read_jobs(path, FLEET).submissions
    assert (submission.at_s, submission.job.name, submission.duration_s) == (0.0, "trace/7", 5.0)


@pytest.mark.skipif(not DATA.exists(), reason="published traces are not here")
@pytest.mark.parametrize(
    ("name", "jobs", "gpu_h"),
    [("acme_kalos_completed", 319, 456_843), ("philly_first_half", 41_123, 479_708)],
)
def test_published_traces_are_read_whole(name: str, jobs: int, gpu_h: int) -> None:
    pytest.importorskip("pyarrow")
    trace = read_jobs(DATA / f"{name}.parquet", FLEET)
    assert len(trace.submissions) == jobs
    assert round(trace.asked_gpu_h) == gpu_h
    assert trace.skipped == {}


@pytest.mark.skipif(not DATA.exists(), reason="published traces are not here")
def test_a_published_trace_is_rehearsed_to_its_end() -> None:
    pytest.importorskip("pyarrow")
    fleet = tuple(domain(f"c/us-{i:03}") for i in range(60))
    trace = read_jobs(DATA / "acme_kalos_completed.parquet", fleet)
    found = rehearse(Documents(fleet=fleet), until_s=150 * 86_400.0, jobs=trace.submissions)
    assert found.jobs["submitted"] == found.jobs["finished"] == 319
    productive = next(total for total in found.totals if total.state == "productive")
    assert productive.gpu_h == pytest.approx(trace.held_gpu_h)
