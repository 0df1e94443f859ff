"""What a rank is told and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rackscale.errors import RackscaleError
from rackscale.programs import contract
from rackscale.programs.contract import Heartbeat, Worker, read_beats

names = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8)
paths = st.none() | st.just(Path("/shared/some where"))


@st.composite
def workers(draw: st.DrawFn) -> Worker:
    world_size = draw(st.integers(1, 512))
    return Worker(
        rank=draw(st.integers(0, world_size - 1)),
        local_rank=draw(st.integers(0, 7)),
        world_size=world_size,
        local_world_size=draw(st.integers(1, 8)),
        group_rank=draw(st.integers(0, 63)),
        group_world_size=draw(st.integers(1, 64)),
        master_addr="10.0.0.7",
        master_port=draw(st.integers(1024, 65535)),
        job=draw(names),
        gang=draw(names),
        attempt=draw(st.integers(1, 9)),
        domain=draw(names),
        node=draw(names),
        checkpoint_dir=draw(paths),
        output_dir=draw(paths),
        heartbeat_file=draw(paths),
        port=draw(st.none() | st.integers(1024, 65535)),
    )


@given(worker=workers())
def test_what_an_executor_says_is_what_a_rank_reads(worker: Worker) -> None:
    assert Worker.from_environ(worker.environ()) == worker


def test_a_process_that_nobody_told_anything_is_a_world_of_one() -> None:
    assert Worker.from_environ({}) == Worker()


def test_torchruns_restarts_are_attempts_where_rackscale_says_nothing() -> None:
    assert Worker.from_environ({"TORCHELASTIC_RESTART_COUNT": "2"}).attempt == 3
    assert Worker.from_environ({"TORCHELASTIC_RESTART_COUNT": "2", "RACKSCALE_ATTEMPT": "7"}).attempt == 7


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "first"}, "RANK is 'first'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_PORT is not set"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(RackscaleError, match=message):
        Worker.from_environ(environ)


def test_heartbeats_are_read_as_they_were_said(tmp_path: Path) -> None:
    file = tmp_path / "attempt" / "rank-0.jsonl"
    before_s = time.time()
    heartbeat = Heartbeat(file)
    heartbeat.say("started", step=40)
    heartbeat.say("step", step=41, loss=2.5, tokens_per_s=1000.0)
    beats, _ = read_beats(file)
    assert [(beat.kind, beat.step, beat.loss, beat.tokens_per_s) for beat in beats] == [
        ("started", 40, None, None),
        ("step", 41, 2.5, 1000.0),
    ]
    assert before_s <= beats[0].at_s <= beats[1].at_s <= time.time()


def test_a_later_attempt_appends(tmp_path: Path) -> None:
    file = tmp_path / "rank-0.jsonl"
    Heartbeat(file).say("started")
    Heartbeat(file).say("left")
    assert [beat.kind for beat in read_beats(file)[0]] == ["started", "left"]


def test_without_a_file_nothing_is_said() -> None:
    Heartbeat(None).say("started")


def test_there_may_be_no_file_yet(tmp_path: Path) -> None:
    assert read_beats(tmp_path / "not-yet") == ([], 0)


@given(cut=st.integers(0, 200))
def test_reading_in_pieces_reads_the_same(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wherever the file happens to end while it is read, a later call goes on without a gap or a repetition."""
    lines = b"".join(b'{"at_s": %d, "kind": "step", "step": %d}\n' % (i, i) for i in range(5))
    file = tmp_path_factory.mktemp("beats") / "rank-0.jsonl"
    file.write_bytes(lines[:cut])
    first, offset = read_beats(file)
    file.write_bytes(lines)
    second, end = read_beats(file, offset)
    assert [beat.step for beat in first + second] == [0, 1, 2, 3, 4]
    assert end == len(lines)


def test_lines_that_are_no_heartbeat_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "rank-0.jsonl"
    good = json.dumps({"at_s": 1.0, "kind": "finished", "note": "more fields are welcome"})
    bad = [
        '{"at_s": 1.0, "kind": "st' + good,  # torn by a kill, then appended to
        "[]",
        "epoch 3",
        '{"kind": "step"}',
        '{"at_s": "now", "kind": "step"}',
        '{"at_s": true, "kind": "step"}',
        '{"at_s": 1.0, "kind": "resting"}',
        '{"at_s": 1.0, "kind": ["step"]}',
        '{"at_s": NaN, "kind": "step"}',
    ]
    file.write_bytes("\n".join([*bad, good]).encode() + b"\n\xff\xfe\n")
    assert [beat.kind for beat in read_beats(file)[0]] == ["finished"]


def test_a_diverged_loss_is_no_loss(tmp_path: Path) -> None:
    file = tmp_path / "rank-0.jsonl"
    Heartbeat(file).say("step", step=3, loss=float("nan"))
    (beat,), _ = read_beats(file)
    assert (beat.step, beat.loss) == (3, None)


def test_the_contract_needs_only_the_standard_library() -> None:
    look = "import sys, rackscale.programs.contract; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    allowed = {*sys.stdlib_module_names, "rackscale", "__main__"}
    assert not {m for m in loaded.split() if m not in allowed and not m.startswith(("_", "site"))}


def test_the_status_of_leaving_is_pinned() -> None:
    assert contract.LEFT == 75
