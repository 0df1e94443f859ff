"""The durable log of a site, in one SQLite file: what happened, what was decided, and what people asked.

    events     one row per event; `crc` runs over all payloads from the first on, so that damage is seen
    snapshots  the state after event `seq`, so that loading stays fast; folding everything gives the same bytes
    inbox      commands and, once a cycle has taken them, their replies
    meta       facts about the site: its executor, its fingerprint, how its controller fares

One process writes (it holds `journal.lock`, which the kernel frees even after kill -9); any number read, and post to
the inbox, at the same time.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from rackscale.commands import Command, Reply
from rackscale.errors import ControllerError, JournalError
from rackscale.events import Event, decode, encode
from rackscale.fleet.state import FleetState

APPLICATION_ID = 0x5241434B
"""Tells our files from other SQLite files ("RACK")."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL,
        crc INTEGER NOT NULL);
    CREATE TABLE snapshots (seq INTEGER PRIMARY KEY, payload TEXT NOT NULL, crc INTEGER NOT NULL);
    CREATE TABLE inbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, payload TEXT NOT NULL, reply TEXT, answered_s REAL);
    CREATE INDEX pending ON inbox (id) WHERE reply IS NULL;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    INSERT INTO meta VALUES ('fingerprint', lower(hex(randomblob(8))))
    """,
)
"""Statements that bring a file from schema i to i + 1. The file's `user_version` is its schema."""

LAST = """
    SELECT max(coalesce((SELECT max(rowid) FROM events), 0),
               coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0))
"""
"""Number of the last event. SQLite keeps it beside the table too, so that a lost end is seen."""
PAGE = 4096
"""Rows read at once: a reader that dawdles must not hold a read transaction open."""
SNAPSHOT_BYTES = 1 << 20
"""Least bytes of events between two snapshots."""
BUSY_S = 30.0
"""How long a write waits for another one to finish; each takes milliseconds."""
LOCK_S = 0.5
"""How long opening for writing insists: whoever asks for the writer's pid holds the lock for a moment."""
REPLY_POLL_S = 0.01

_command: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_reply = msgspec.json.Decoder(Reply)


def location(site: Path) -> Path:
    """The journal's file of a site folder."""
    return site / ".rackscale" / "journal.db"


def writer(path: Path) -> int | None:
    """The pid of the process that writes this journal, or None if nobody does. Creates nothing."""
    try:
        fd = os.open(_lock_file(path), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 32, 0) or b"0")
    finally:
        os.close(fd)
    return None


class Journal:
    """An open journal. `open` makes one; close it, or use it in a `with`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self.seq = 0
        """The last event that `load` folded or `append` wrote; at first, the last there is."""
        self.snapshot_bytes = SNAPSHOT_BYTES
        self._db, self._lock = connection, lock
        self._crc = 0
        self._tail_bytes = 0
        """Events since the last snapshot."""
        self._snapshot_size = 0
        self._version = -1

    # -- open and close ----------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, *, writer: bool = False) -> Journal:
        """Open for reading and posting, or, once at a time, as the writer, who also creates and migrates it.

        Raises JournalError if it is missing (for readers), damaged, not a journal, or of another schema;
        ControllerError if another process is the writer.
        """
        if writer:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(path)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        elif not path.exists():
            raise JournalError(
                f"there is no journal at {path}", hint="start a controller first: rackscale up"
            )
        else:
            lock = None
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_S
        )
        connection.text_factory = bytes
        journal = cls(path, connection, lock)
        try:
            journal._prepare()
        except BaseException:
            journal.close()
            raise
        return journal

    def _prepare(self) -> None:
        with self._told():
            application, schema = self._pragma("application_id"), self._pragma("user_version")
            if (application, schema) != (0, 0) and application != APPLICATION_ID:
                raise JournalError(f"{self.path} is not a journal of rackscale")
            if schema > len(MIGRATIONS):
                raise JournalError(
                    f"{self.path} was written by a newer rackscale (schema {schema}, this one knows {len(MIGRATIONS)})",
                    hint="upgrade rackscale",
                )
            if self._lock is not None:
                if self._pragma("journal_mode = WAL") != b"wal":
                    raise JournalError(f"{self.path} can't be kept here", hint="put the site on a local disk")
                self._migrate(schema)
            elif schema < len(MIGRATIONS):
                raise JournalError(
                    f"{self.path} has schema {schema}, this rackscale reads {len(MIGRATIONS)}",
                    hint="start its controller once: rackscale up",
                )
            self._pragma("synchronous = FULL")
            last = self._rows("SELECT seq, crc FROM events ORDER BY seq DESC LIMIT 1")
            self.seq, self._crc = last[0] if last else (0, 0)

    def _pragma(self, pragma: str) -> Any:
        row = self._db.execute(f"PRAGMA {pragma}").fetchone()
        return row[0] if row else None

    def _migrate(self, schema: int) -> None:
        if schema == len(MIGRATIONS):
            return
        with self._transaction():
            for statements in MIGRATIONS[schema:]:
                for statement in statements.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def close(self) -> None:
        """Let go of the file and of the lock."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            damaged = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            if damaged:
                raise self._damaged(str(error)) from error
            raise JournalError(f"{self.path} can't be used: {error}") from error
        except UnicodeDecodeError as error:  # in SQLite's own message about a damaged schema
            raise self._damaged("its schema can't be read") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _damaged(self, what: str) -> JournalError:
        return JournalError(f"{self.path} is damaged: {what}", hint="restore the file from a backup")

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._told():
            return self._db.execute(query, values).fetchall()

    # -- events ------------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event], replies: Mapping[int, Reply] | None = None) -> None:
        """Make events, and replies to inbox rows, durable in one transaction. Returns when they are. Writer only.

        Raises JournalError (a full disk, for instance); then none of it was written.
        """
        assert self._lock is not None, "only the writer appends"
        rows = []
        seq, crc, size = self.seq, self._crc, 0
        for event in events:
            payload = encode(event)
            seq, crc, size = seq + 1, checksum(payload, crc), size + len(payload)
            rows.append((seq, event.at_s, type(event).__name__, payload.decode(), crc))
        now_s = time.time()
        answers = [(encode_json(reply), now_s, number) for number, reply in (replies or {}).items()]
        with self._transaction():
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
            self._db.executemany("UPDATE inbox SET reply = ?, answered_s = ? WHERE id = ?", answers)
        self.seq, self._crc = seq, crc
        self._tail_bytes += size

    def events(self, after_seq: int = 0) -> Iterator[Event]:
        """Events from number `after_seq` + 1 to the last there is now; numbers have no gaps.

        Raises JournalError on damage.
        """
        return (self._decode(payload) for payload in self._payloads(after_seq))

    def follow(self, after_seq: int = 0, *, every_s: float = 0.1) -> Iterator[list[Event]]:
        """Endless: what is new, every `every_s` seconds; an empty list when nothing is."""
        while True:
            batch = list(self.events(after_seq)) if self.changed() else []
            after_seq += len(batch)
            yield batch
            time.sleep(every_s)

    def export(self, stream: BinaryIO) -> None:
        """Write all events as JSON lines, the same bytes whoever asks and whenever."""
        stream.writelines(payload + b"\n" for payload in self._payloads(0))

    def _payloads(self, after_seq: int) -> Iterator[bytes]:
        """What was written after `after_seq`, checked against the running checksum, in pages."""
        seq, crc = after_seq, 0
        if after_seq:
            anchor = self._rows("SELECT crc FROM events WHERE seq = ?", after_seq)
            if not anchor:
                raise self._damaged(f"event {after_seq} is missing")
            crc = anchor[0][0]
        (last,) = self._rows(LAST)[0]
        query = "SELECT seq, crc, payload FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        while seq < last:
            rows = self._rows(query, seq, last, PAGE)
            if not rows:
                raise self._damaged(f"event {seq + 1} is missing")
            for found, expected, payload in rows:
                if found != seq + 1:
                    raise self._damaged(f"event {seq + 1} is missing")
                seq, crc = found, checksum(payload, crc)
                if crc != expected:
                    raise self._damaged(f"event {seq} is not what was written")
                yield payload

    def _decode(self, payload: bytes) -> Event:
        try:
            return decode(payload)
        except msgspec.ValidationError as error:
            raise JournalError(
                f"{self.path} has an event that this rackscale does not know: {error}",
                hint="upgrade rackscale",
            ) from error

    # -- state -------------------------------------------------------------------------------------------------------

    def load(self) -> FleetState:
        """The state after the last event, as the writer has it. Raises JournalError on damage."""
        state, seq, tail_bytes = FleetState(), 0, 0
        for found, payload, crc in self._rows("SELECT seq, payload, crc FROM snapshots"):
            if crc != checksum(payload, found):
                raise self._damaged(f"the snapshot after event {found} is not what was written")
            try:
                state = FleetState.restore(payload)
            except msgspec.ValidationError:
                continue  # of another version, and only a shortcut: the events say the same
            seq, self._snapshot_size = found, len(payload)
        for payload in self._payloads(seq):
            state.fold(self._decode(payload))
            seq, tail_bytes = seq + 1, tail_bytes + len(payload)
        self.seq, self._tail_bytes = seq, tail_bytes
        return state

    def snapshot(self, state: FleetState) -> bool:
        """Keep the state as it is after the last event, if one is due. Writer only; between cycles.

        Due when the events since the last one outweigh it, so that loading costs at most about twice a snapshot and
        writing at most twice the events.
        """
        assert self._lock is not None, "only the writer takes snapshots"
        if self._tail_bytes < max(self.snapshot_bytes, self._snapshot_size):
            return False
        payload = state.snapshot()
        with self._transaction():
            self._db.execute("DELETE FROM snapshots")
            self._db.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?)",
                (self.seq, payload.decode(), checksum(payload, self.seq)),
            )
        self._snapshot_size, self._tail_bytes = len(payload), 0
        return True

    # -- inbox -------------------------------------------------------------------------------------------------------

    def post(self, command: Command) -> int:
        """Put a command into the inbox, durably; the controller takes it when it runs. Returns its number."""
        with self._told():
            inserted = self._db.execute(
                "INSERT INTO inbox (at_s, payload) VALUES (?, ?)", (time.time(), encode_json(command))
            )
        assert inserted.lastrowid is not None
        return inserted.lastrowid

    def withdraw(self, number: int) -> bool:
        """Take back a command that was not taken yet. False: it was, and has its reply."""
        with self._told():
            return (
                self._db.execute("DELETE FROM inbox WHERE id = ? AND reply IS NULL", (number,)).rowcount == 1
            )

    def reply(self, number: int) -> Reply | None:
        """What became of a command, or None while it waits."""
        rows = self._rows("SELECT reply FROM inbox WHERE id = ?", number)
        return _reply.decode(rows[0][0]) if rows and rows[0][0] is not None else None

    def wait_reply(self, number: int, timeout_s: float) -> Reply:
        """The reply, as soon as there is one. Raises ControllerError when there is none after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while (reply := self.reply(number)) is None:
            if time.monotonic() > deadline_s:
                raise ControllerError(f"no answer from the controller within {timeout_s:g} s")
            time.sleep(REPLY_POLL_S)
        return reply

    def pending(self) -> list[tuple[int, Command]]:
        """Commands without a reply, oldest first. Writer only: those that it can't read, it refuses."""
        found: list[tuple[int, Command]] = []
        for number, payload in self._rows("SELECT id, payload FROM inbox WHERE reply IS NULL ORDER BY id"):
            try:
                found.append((number, _command.decode(payload)))
            except msgspec.DecodeError as error:
                message = f"this controller does not understand the command: {error}"
                hint = "it may be older than the command line: restart it"
                self.append((), {number: Reply(outcome="refused", message=message, hint=hint)})
        return found

    def changed(self) -> bool:
        """Whether another process has written since the last call. Cheap enough to ask all the time."""
        with self._told():
            version = self._pragma("data_version")
        changed, self._version = version != self._version, version
        return bool(changed)

    # -- meta --------------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Identity of this journal: what an executor left behind under another one is not its own."""
        return self.get("fingerprint") or ""

    def get(self, key: str) -> str | None:
        """A fact about the site, or None."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return rows[0][0].decode() if rows else None

    def put(self, key: str, value: str) -> None:
        """Set a fact about the site, durably. Writer only."""
        assert self._lock is not None, "only the writer states facts"
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def beat(self) -> None:
        """Say that the writer is alive and well: sets the lock file's time."""
        assert self._lock is not None, "only the writer beats"
        os.utime(self._lock)

    def beaten_s(self) -> float | None:
        """When the writer last said so, seconds since the epoch; None if there never was one."""
        try:
            return _lock_file(self.path).stat().st_mtime
        except FileNotFoundError:
            return None


def checksum(payload: object, begin: object) -> int:
    """CRC-32 going on from `begin`; -1, which no checksum is, for what damage made something else than bytes."""
    if not isinstance(payload, bytes) or not isinstance(begin, int):
        return -1
    return zlib.crc32(payload, begin)


def encode_json(value: Command | Reply) -> str:
    return msgspec.json.encode(value).decode()


def _lock_file(path: Path) -> Path:
    return path.with_name("journal.lock")


def _take_lock(path: Path) -> int:
    """An open file that holds the writer's lock until it is closed, by us or by the kernel."""
    fd = os.open(_lock_file(path), os.O_RDWR | os.O_CREAT, 0o600)
    deadline_s = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                pid = int(os.pread(fd, 32, 0) or b"0")
                os.close(fd)
                raise ControllerError(
                    f"a controller runs here already (pid {pid})", hint="stop it first: rackscale down"
                ) from None
            time.sleep(0.01)
        else:
            break
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd
