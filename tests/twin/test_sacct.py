"""What `sacct -P` prints, in the layouts that people use."""

from __future__ import annotations

from pathlib import Path

import pytest

from rackscale.errors import DocumentError
from rackscale.twin.traces import Trace, read_jobs
from tests.twin.test_traces import FLEET, write

USUAL = """\
JobID|User|Partition|Submit|Start|End|Elapsed|State|NNodes|AllocTRES
101|eve|research|2026-01-05T08:00:00|2026-01-05T08:01:00|2026-01-06T10:04:05|1-02:03:05|COMPLETED|2|billing=16,cpu=64,gres/gpu:gb200=8,gres/gpu=8,mem=1T,node=2
101.batch||||2026-01-05T08:01:00|2026-01-06T10:04:05|1-02:03:05|COMPLETED|1|cpu=32,gres/gpu=4,node=1
101.extern||||2026-01-05T08:01:00|2026-01-06T10:04:05|1-02:03:05|COMPLETED|2|cpu=64,gres/gpu=8,node=2
101.0||||2026-01-05T08:01:00|2026-01-06T10:04:05|1-02:03:05|COMPLETED|2|cpu=64,gres/gpu=8,node=2
102_7|eve|batch|2026-01-05T08:00:30|2026-01-05T08:01:00|2026-01-05T08:11:00|00:10:00|FAILED|1|cpu=8,gres/gpu:gb200=1,node=1
103|bob|batch|2026-01-05T09:00:00|Unknown|Unknown|00:00:00|PENDING|1|
104|bob|batch|2026-01-05T09:00:00|2026-01-05T09:00:00|Unknown|12:00:00|RUNNING|1|gres/gpu=4
105|bob|cpu|2026-01-05T09:00:00|2026-01-05T09:00:00|2026-01-05T09:30:00|00:30:00|COMPLETED|1|cpu=8,node=1
106|bob|batch|2026-01-05T09:00:00|None|2026-01-05T09:30:00|00:00:00|CANCELLED by 1000|1|
"""


def jobs(tmp_path: Path, text: str) -> Trace:
    return read_jobs(write(tmp_path / "sacct.txt", text), FLEET)


def rows(trace: Trace) -> list[tuple[str, float, float | None, int, str]]:
    return [(s.job.name, s.at_s, s.duration_s, s.job.shape.nodes, s.job.queue) for s in trace.submissions]


def test_the_usual_layout(tmp_path: Path) -> None:
    trace = jobs(tmp_path, USUAL)
    assert rows(trace) == [
        ("trace/101", 0.0, 93_785.0, 2, "research"),
        ("trace/102_7", 30.0, 600.0, 1, "batch"),
    ]
    assert trace.skipped == {"job steps": 3, "never started": 2, "still running": 1, "no GPUs": 1}
    assert trace.rounded == 1


def test_raw_numbers_epoch_seconds_and_another_order_of_columns(tmp_path: Path) -> None:
    text = (
        "ElapsedRaw|ReqTRES|JobIDRaw|Submit\n90|cpu=1,gres/gpu=4|7|1767600000\n30|gres/gpu=8|8|1767600060\n"
    )
    assert rows(jobs(tmp_path, text)) == [
        ("trace/7", 0.0, 90.0, 1, "default"),
        ("trace/8", 60.0, 30.0, 2, "default"),
    ]


def test_a_line_may_end_with_a_bar_and_elapsed_may_be_start_and_end(tmp_path: Path) -> None:
    text = (
        "JobID|Submit|Start|End|AllocTRES|\r\n"
        "9|2026-01-05T08:00:00|2026-01-05T08:00:10|2026-01-05T08:02:10|gres/gpu=4|\r\n"
    )
    assert rows(jobs(tmp_path, text)) == [("trace/9", 0.0, 120.0, 1, "default")]


@pytest.mark.parametrize(
    ("elapsed", "seconds"),
    [
        ("02:03", 123.0),
        ("00:02:03", 123.0),
        ("1-00:00:01", 86_401.0),
        ("00:01.500", 1.5),
        ("01:00:00", 3600.0),
    ],
)
def test_forms_of_elapsed(tmp_path: Path, elapsed: str, seconds: float) -> None:
    text = f"JobID|Submit|Elapsed|AllocTRES\n1|2026-01-05T08:00:00|{elapsed}|gres/gpu=1\n"
    assert jobs(tmp_path, text).submissions[0].duration_s == seconds


def test_runs_of_a_requeued_job_are_work_of_their_own(tmp_path: Path) -> None:
    row = "1|2026-01-05T08:00:00|00:01:00|gres/gpu=1\n"
    trace = jobs(tmp_path, "JobID|Submit|Elapsed|AllocTRES\n" + row + row)
    assert [s.job.name for s in trace.submissions] == ["trace/1", "trace/1-run2"]


def test_bad_rows_are_named(tmp_path: Path) -> None:
    text = (
        "JobID|Submit|Start|End|Elapsed|AllocTRES\n"
        "1|yesterday|x|x|00:01:00|gres/gpu=1\n"
        "2|2026-01-05T08:00:00|x|x|soon|gres/gpu=1\n"
        "3|2026-01-05T08:00:00|x|x|00:01:00\n"
        "|2026-01-05T08:00:00|x|x|00:01:00|gres/gpu=1\n"
        "4|2026-01-05T08:00:00|2026-01-05T08:00:00|2026-01-05T07:00:00||gres/gpu=1\n"
    )
    with pytest.raises(DocumentError) as raised:
        jobs(tmp_path, text)
    assert [problem.split("sacct.txt:")[1] for problem in raised.value.problems] == [
        "2: not a time: 'yesterday'",
        "3: Elapsed is not [days-][hours:]minutes:seconds: 'soon'",
        "4: 5 columns, but the header has 6",
        "5: JobID is missing",
        "6: End '2026-01-05T07:00:00' is before Start '2026-01-05T08:00:00'",
    ]


def test_columns_to_ask_for_are_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as raised:
        jobs(tmp_path, "JobID|State\n1|COMPLETED\n")
    assert [problem.split("sacct.txt:")[1] for problem in raised.value.problems] == [
        "1: sacct must be asked for Submit",
        "1: sacct must be asked for Elapsed",
        "1: sacct must be asked for AllocTRES",
    ]
