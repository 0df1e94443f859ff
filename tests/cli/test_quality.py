"""`rackscale quality`, as a process, on a rehearsal's journal and on a site's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rackscale.events import (
    Decided,
    Delivered,
    DomainSpec,
    GangRunning,
    Plan,
    Reason,
    Segment,
    Start,
    Submitted,
    encode,
)
from rackscale.journal import Journal, location
from rackscale.workload import Job, Shape
from tests.cli.conftest import rackscale

BEGAN_S = 1_700_000_000.0
ONE_RACK = Path(__file__).parents[2] / "examples" / "one-rack"
DOMAIN = DomainSpec(name="d", system="s", nodes=4, gpus_per_node=2, cluster="c")
START = Start(
    gang="j", attempt=1, binding=(Segment(domain="d", nodes=(0,)),), reason=Reason(code="fits")
)  # fmt: skip
EVENTS = (
    Delivered(at_s=BEGAN_S, domains=(DOMAIN,)),
    Submitted(at_s=BEGAN_S, job=Job(name="j", kind="training", shape=Shape())),
    Decided(at_s=BEGAN_S + 60, plan=Plan(at_s=BEGAN_S + 60, actions=(START,))),
    GangRunning(at_s=BEGAN_S + 100, gang="j", attempt=1),
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    file = tmp_path / "journal.jsonl"
    file.write_bytes(b"".join(encode(event) + b"\n" for event in EVENTS))
    return file


def test_a_rehearsal_and_its_journal_tell_the_same(tmp_path: Path) -> None:
    file = tmp_path / "day.jsonl"
    command = ("rehearse", ONE_RACK, "--until", "6h", "--seed", 7, "--journal", file)
    rehearsed = rackscale(*command, "--json").json["quality"]
    measured = rackscale("quality", "--journal", file, "--until", "6h", "--json").json
    assert measured == rehearsed
    assert measured["gar"]["mean"] > 0
    text = rackscale("quality", "--journal", file).out
    for part in ("GAR", "SOR", "GFR", "JWTD", "badput", "PROGRAM_STARTUP", "█"):
        assert part in text
    assert "GFR" in rackscale(*command).out


def test_a_window_leaves_out_what_was_before_and_after(journal: Path) -> None:
    def measured(*options: str) -> Any:
        return rackscale("quality", "--journal", journal, "--json", *options).json

    assert measured()["sor"] == 40 * 2 / (100 * 8)
    assert measured("--since", "-50s")["sor"] == 40 * 2 / (50 * 8)
    assert measured("--since", "20s", "--until", "80s")["sor"] == 20 * 2 / (60 * 8)
    assert measured("--until", "40s")["waits"][0]["waits"]["longest_open_s"] == 40.0
    assert measured("--until", "2023-11-14T22:14:20+00:00")["sor"] == 0.0


def test_a_site_s_journal_is_measured_too(site: Path) -> None:
    with Journal.open(location(site), writer=True) as book:
        book.append(EVENTS)
    found = rackscale("quality", "--site", site, "--json").json
    assert (found["until_s"], found["sor"]) == (BEGAN_S + 100, 0.1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":5: this is no event"),
        (encode(EVENTS[2]).decode().replace('"j"', '"k"'), ":5: nothing before tells of 'k'"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(journal: Path, line: str, said: str) -> None:
    journal.write_text(journal.read_text() + line + "\n")
    answer = rackscale("quality", "--journal", journal, code=1)
    assert f"{journal}{said}" in answer.err
    assert answer.out == ""


def test_other_mistakes_are_told_in_one_line(journal: Path, site: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, said in [
        (("--journal", journal, "--since", "soon"), "'soon' is no time"),
        (("--journal", journal, "--since", "2h"), "not before the end"),
        (("--journal", journal, "--until", "1999-01-01"), "before the journal's start"),
        (("--journal", tmp_path / "empty.jsonl"), "is empty"),
        (("--journal", tmp_path / "none.jsonl"), "No such file"),
        (("--site", site), "no controller has run"),
    ]:
        answer = rackscale("quality", *arguments, code=1)
        assert said in answer.err
        assert answer.err.count("\n") == 1
