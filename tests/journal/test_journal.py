"""The durable log: what is written is there, once, in order, whoever reads; what is damaged says so."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rackscale.commands import Cancel, Reply, Submit
from rackscale.errors import ControllerError, JournalError
from rackscale.events import Delivered, Event, Submitted, Ticked, decode, encode
from rackscale.fleet.state import FleetState
from rackscale.journal import MIGRATIONS, Journal, location, writer
from tests.conftest import Eventually
from tests.scheduler.world import domain, job

DONE = Reply(outcome="done", message="done")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return location(tmp_path)


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal.open(path, writer=True) as journal:
        yield journal


def story(count: int) -> list[Event]:
    """A fleet, and jobs that come in."""
    jobs: list[Event] = [Submitted(at_s=float(i), job=job(f"job-{i}", 1)) for i in range(1, count)]
    return [Delivered(at_s=0.0, domains=(domain(0),)), *jobs]


def folded(events: list[Event]) -> bytes:
    state = FleetState()
    for event in events:
        state.fold(event)
    return state.snapshot()


# -- events and state ------------------------------------------------------------------------------------------------


def test_events_come_back_in_order_and_give_the_state(journal: Journal, path: Path) -> None:
    events = story(10)
    journal.append(events[:4])
    journal.append(events[4:])
    with Journal.open(path) as reader:
        assert list(reader.events()) == events
        assert list(reader.events(7)) == events[7:]
        assert reader.load().snapshot() == folded(events)
        assert reader.seq == journal.seq == 10


def test_a_writer_goes_on_where_the_one_before_it_ended(path: Path) -> None:
    events = story(6)
    with Journal.open(path, writer=True) as first:
        first.append(events[:3])
        fingerprint = first.fingerprint
    with Journal.open(path, writer=True) as second:
        second.append(events[3:])
        assert second.fingerprint == fingerprint
        assert list(second.events()) == events


def test_export_is_the_encoded_events_and_nothing_else(journal: Journal, path: Path) -> None:
    events = story(5)
    for event in events:
        journal.append([event])
    outputs = [io.BytesIO(), io.BytesIO()]
    with Journal.open(path) as reader:
        for output in outputs:
            reader.export(output)
    assert outputs[0].getvalue() == outputs[1].getvalue() == b"".join(encode(e) + b"\n" for e in events)
    assert [decode(line) for line in outputs[0].getvalue().splitlines()] == events


def test_more_events_than_a_page_holds(journal: Journal) -> None:
    events: list[Event] = [Ticked(at_s=float(i)) for i in range(10_000)]
    journal.append(events)
    assert list(journal.events()) == events


def test_follow_gives_what_is_new_and_then_nothing(journal: Journal, path: Path) -> None:
    events = story(4)
    journal.append(events[:2])
    with Journal.open(path) as reader:
        news = reader.follow(every_s=0.0)
        assert next(news) == events[:2]
        assert next(news) == []
        journal.append(events[2:])
        assert next(news) == events[2:]
        assert next(news) == []


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_loading_starts_from_the_snapshot_and_gives_the_same_bytes(journal: Journal, path: Path) -> None:
    journal.snapshot_bytes = 1
    events = story(20)
    journal.append(events[:15])
    assert journal.snapshot(journal.load())
    journal.append(events[15:])
    with Journal.open(path) as reader:
        assert reader.load().snapshot() == folded(events)
    with sqlite3.connect(path) as raw:  # had it started from the first event, it would trip over this
        raw.execute("UPDATE events SET crc = crc + 1 WHERE seq = 3")
    raw.close()
    with Journal.open(path) as reader:
        assert reader.load().snapshot() == folded(events)
        with pytest.raises(JournalError, match="event 3"):
            list(reader.events())


def test_snapshots_are_due_when_events_outweigh_them(journal: Journal) -> None:
    journal.snapshot_bytes = 1000
    state = journal.load()
    taken = []
    for event in story(200):
        journal.append([event])
        state.fold(event)
        if journal.snapshot(state):
            taken.append((journal.seq, len(state.snapshot())))
    assert len(taken) > 2
    size = len(encode(event))
    for (before, weight), (after, _) in itertools.pairwise(taken):
        assert (after - before) * size >= 0.9 * weight
    assert not journal.snapshot(state) or taken[-1][0] < journal.seq


def test_a_snapshot_of_another_version_is_only_a_shortcut_lost(journal: Journal, path: Path) -> None:
    events = story(5)
    journal.append(events)
    old = b'{"layout":"of another version"}'
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO snapshots VALUES (3, ?, ?)", (old.decode(), zlib.crc32(old, 3)))
    raw.close()
    with Journal.open(path) as reader:
        assert reader.load().snapshot() == folded(events)


# -- one writer, many readers ----------------------------------------------------------------------------------------


def test_reading_needs_a_journal_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no journal"):
        Journal.open(location(tmp_path))
    assert writer(location(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_created_is_private(journal: Journal, path: Path) -> None:
    journal.append(story(2))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_second_writer_is_refused_and_told_who_the_first_is(journal: Journal, path: Path) -> None:
    with pytest.raises(ControllerError, match=f"pid {os.getpid()}"):
        Journal.open(path, writer=True)
    assert writer(path) == os.getpid()


def test_a_killed_writer_frees_the_journal(path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom rackscale.journal import Journal\n"
        "from rackscale.events import Ticked\n"
        "journal = Journal.open(Path(sys.argv[1]), writer=True)\njournal.append([Ticked(at_s=1.0)])\n"
        "print('open', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(ControllerError, match=f"pid {process.pid}"):
            Journal.open(path, writer=True)
        process.send_signal(signal.SIGKILL)
    assert writer(path) is None
    with Journal.open(path, writer=True) as journal:
        assert list(journal.events()) == [Ticked(at_s=1.0)]


def test_a_reader_in_the_middle_of_a_long_journal_blocks_nobody(journal: Journal, path: Path) -> None:
    events: list[Event] = [Ticked(at_s=float(i)) for i in range(9000)]
    journal.append(events)
    with Journal.open(path) as reader:
        reading = reader.events()
        assert next(reading) == events[0]
        for event in events:
            if event.at_s % 100 == 0:
                journal.append([event])
        checkpointed = journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert checkpointed == (0, 0, 0), "a reader keeps the write-ahead log from being emptied"
        assert list(reading) == events[1:]


# -- what can't be used ----------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused(journal: Journal, path: Path) -> None:
    journal._db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    journal.close()
    for as_writer in (False, True):
        with pytest.raises(JournalError, match="newer rackscale"):
            Journal.open(path, writer=as_writer)


@pytest.mark.parametrize("content", [b"not a database at all, whatever it is" * 40, b"SQLite format 3\0"])
def test_a_file_of_something_else_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for as_writer in (False, True):
        with pytest.raises(JournalError, match=r"journal\.db"):
            Journal.open(path, writer=as_writer)
    assert path.read_bytes() == content


def test_a_database_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE events (anything)")
        raw.execute("PRAGMA user_version = 1")
    raw.close()
    for as_writer in (False, True):
        with pytest.raises(JournalError, match="not a journal"):
            Journal.open(path, writer=as_writer)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(path: Path) -> None:
    events = story(60)
    with Journal.open(path, writer=True) as journal:
        journal.snapshot_bytes = 1
        for event in events[:40]:
            journal.append([event])
        journal.snapshot(journal.load())
        journal.append(events[40:])
    whole, state = path.read_bytes(), folded(events)
    rng = random.Random(1)
    noticed = 0
    for _ in range(600):
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            with Journal.open(path) as journal:
                assert list(journal.events()) == events
                assert journal.load().snapshot() == state
        except JournalError:
            noticed += 1
    assert noticed > 200


def test_a_full_disk_leaves_the_journal_as_it_was(journal: Journal, path: Path) -> None:
    events = story(50)
    number = journal.post(Cancel(job="x"))
    journal.append(events[:1])
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="full"):
        journal.append(events[1:], {number: DONE})
    assert journal.reply(number) is None
    assert list(journal.events()) == events[:1]
    journal._db.execute("PRAGMA max_page_count = 1000000")
    journal.append(events[1:], {number: DONE})
    assert list(journal.events()) == events


# -- inbox -----------------------------------------------------------------------------------------------------------


def test_a_command_waits_until_it_is_replied_to(journal: Journal, path: Path) -> None:
    command = Submit(jobs=(job("x"),), expected=())
    with Journal.open(path) as client:
        first, second = client.post(command), client.post(Cancel(job="y"))
        assert journal.pending() == [(first, command), (second, Cancel(job="y"))]
        assert client.reply(first) is None
        journal.append([Ticked(at_s=1.0)], {first: DONE})
        assert client.wait_reply(first, 0.0) == DONE
        assert journal.pending() == [(second, Cancel(job="y"))]


def test_no_answer_in_time_is_said(journal: Journal) -> None:
    with pytest.raises(ControllerError, match="no answer"):
        journal.wait_reply(journal.post(Cancel(job="x")), 0.05)


def test_only_what_was_not_taken_can_be_withdrawn(journal: Journal) -> None:
    first, second = journal.post(Cancel(job="x")), journal.post(Cancel(job="y"))
    journal.append([], {first: DONE})
    assert not journal.withdraw(first)
    assert journal.withdraw(second)
    assert journal.pending() == []
    assert journal.post(Cancel(job="z")) > second, "numbers are never used twice"


def test_a_command_that_nobody_understands_is_refused(journal: Journal) -> None:
    journal._db.execute('INSERT INTO inbox (at_s, payload) VALUES (0, \'{"type": "Teleport"}\')')
    number = journal.post(Cancel(job="x"))
    assert journal.pending() == [(number, Cancel(job="x"))]
    reply = journal.reply(number - 1)
    assert reply is not None
    assert reply.outcome == "refused"
    assert "Teleport" in reply.message


def test_the_writer_sees_at_little_cost_that_somebody_wrote(journal: Journal, path: Path) -> None:
    journal.changed()
    assert not journal.changed()
    journal.append([Ticked(at_s=1.0)])
    assert not journal.changed(), "its own writing is no news"
    with Journal.open(path) as client:
        client.post(Cancel(job="x"))
    assert journal.changed()
    assert not journal.changed()


def test_posting_while_the_writer_writes(journal: Journal, path: Path, eventually: Eventually) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom rackscale.journal import Journal\n"
        "from rackscale.commands import Cancel\njournal = Journal.open(Path(sys.argv[1]))\n"
        "for i in range(200): journal.post(Cancel(job=f'{sys.argv[2]}-{i}'))\n"
    )
    clients = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in ("a", "b")]
    seen: list[str] = []

    def all_seen() -> bool:
        found = journal.pending()
        journal.append([Ticked(at_s=1.0)], {number: DONE for number, _ in found})
        seen.extend(command.job for _, command in found if isinstance(command, Cancel))
        return len(seen) >= 400

    eventually(all_seen, within_s=60.0)
    assert [client.wait(10) for client in clients] == [0, 0]
    for name in ("a", "b"):
        assert [s for s in seen if s.startswith(name)] == [f"{name}-{i}" for i in range(200)]
