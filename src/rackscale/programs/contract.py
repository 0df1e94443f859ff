"""The worker contract: what every rank of a gang is told, and what it may say. The same on every executor.

Told: torchrun's environment plus `RACKSCALE_*`. Said: heartbeats, one JSON object a line, appended to this rank's own
file, and an exit status. SIGTERM means "checkpoint now and leave": within the grace period write a checkpoint, say
"left", and exit with status `LEFT`; SIGKILL follows. A program that does none of this works too: it loses what it did
since its own last checkpoint, and its progress is unknown.

Only the standard library is imported here, so that executors and users' own programs can.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rackscale.errors import RackscaleError

LEFT = 75
"""Exit status of a rank that checkpointed on request and left (EX_TEMPFAIL: run me again)."""

RANK = "RANK"
LOCAL_RANK = "LOCAL_RANK"
WORLD_SIZE = "WORLD_SIZE"
LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
GROUP_RANK = "GROUP_RANK"
GROUP_WORLD_SIZE = "GROUP_WORLD_SIZE"
MASTER_ADDR = "MASTER_ADDR"
MASTER_PORT = "MASTER_PORT"
RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"
RUN_ID = "TORCHELASTIC_RUN_ID"

JOB = "RACKSCALE_JOB"
GANG = "RACKSCALE_GANG"
ATTEMPT = "RACKSCALE_ATTEMPT"
DOMAIN = "RACKSCALE_DOMAIN"
NODE = "RACKSCALE_NODE"
CHECKPOINT_DIR = "RACKSCALE_CHECKPOINT_DIR"
OUTPUT_DIR = "RACKSCALE_OUTPUT_DIR"
HEARTBEAT_FILE = "RACKSCALE_HEARTBEAT_FILE"
PORT = "RACKSCALE_PORT"

BeatKind = Literal["started", "step", "checkpoint", "ready", "left", "finished"]
BEAT_KINDS: frozenset[str] = frozenset(get_args(BeatKind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One rank's place in its gang. The defaults are a process that nobody gave an environment."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    group_rank: int = 0
    """The rank of this rank's node."""
    group_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int | None = None
    """Where rank 0 meets the others; None: nobody said, so this can only be a world of one."""
    job: str = ""
    gang: str = ""
    attempt: int = 1
    domain: str = ""
    node: str = ""
    checkpoint_dir: Path | None = None
    output_dir: Path | None = None
    heartbeat_file: Path | None = None
    port: int | None = None
    """The port that a service listens on."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Worker:
        """Read the contract. Raises RackscaleError where a number is no number or ranks are out of range."""
        worker = cls(
            rank=_number(environ, RANK, 0),
            local_rank=_number(environ, LOCAL_RANK, 0),
            world_size=_number(environ, WORLD_SIZE, 1),
            local_world_size=_number(environ, LOCAL_WORLD_SIZE, 1),
            group_rank=_number(environ, GROUP_RANK, 0),
            group_world_size=_number(environ, GROUP_WORLD_SIZE, 1),
            master_addr=environ.get(MASTER_ADDR, "127.0.0.1"),
            master_port=_number(environ, MASTER_PORT, 0) or None,
            job=environ.get(JOB, ""),
            gang=environ.get(GANG, ""),
            attempt=_number(environ, ATTEMPT, _number(environ, RESTART_COUNT, 0) + 1),
            domain=environ.get(DOMAIN, ""),
            node=environ.get(NODE, ""),
            checkpoint_dir=_path(environ, CHECKPOINT_DIR),
            output_dir=_path(environ, OUTPUT_DIR),
            heartbeat_file=_path(environ, HEARTBEAT_FILE),
            port=_number(environ, PORT, 0) or None,
        )
        if not 0 <= worker.rank < worker.world_size:
            raise RackscaleError(f"{RANK} is {worker.rank}, but {WORLD_SIZE} is {worker.world_size}")
        if worker.world_size > 1 and worker.master_port is None:
            raise RackscaleError(
                f"{WORLD_SIZE} is {worker.world_size}, but {MASTER_PORT} is not set: the ranks can't meet",
                hint="start the ranks with rackscale or torchrun",
            )
        return worker

    def environ(self) -> dict[str, str]:
        """The same as environment variables, for those who start ranks; what is unknown is left out."""
        known: dict[str, object] = {
            RANK: self.rank,
            LOCAL_RANK: self.local_rank,
            WORLD_SIZE: self.world_size,
            LOCAL_WORLD_SIZE: self.local_world_size,
            GROUP_RANK: self.group_rank,
            GROUP_WORLD_SIZE: self.group_world_size,
            MASTER_ADDR: self.master_addr,
            MASTER_PORT: self.master_port,
            RESTART_COUNT: self.attempt - 1,
            RUN_ID: self.gang,
            JOB: self.job,
            GANG: self.gang,
            ATTEMPT: self.attempt,
            DOMAIN: self.domain,
            NODE: self.node,
            CHECKPOINT_DIR: self.checkpoint_dir,
            OUTPUT_DIR: self.output_dir,
            HEARTBEAT_FILE: self.heartbeat_file,
            PORT: self.port,
        }
        return {name: str(value) for name, value in known.items() if value is not None and value != ""}


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise RackscaleError(f"{name} is {text!r}, not a whole number") from None


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name, "")
    return Path(text) if text else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat. `step` counts steps that are done; what is None was not said."""

    at_s: float
    """Seconds since the epoch."""
    kind: BeatKind
    step: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    """Of the whole gang."""


class Heartbeat:
    """Appends this rank's heartbeats to its file; says nothing when there is none."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()  # tells at once that this program will say when it works, however long it loads

    def say(
        self,
        kind: BeatKind,
        *,
        step: int | None = None,
        loss: float | None = None,
        tokens_per_s: float | None = None,
        url: str | None = None,
        model: str | None = None,
    ) -> None:
        """`url` and `model`: where a service answers, and what its requests call the model."""
        if self._file is None:
            return
        record: dict[str, object] = {"at_s": time.time(), "kind": kind}
        said = {"step": step, "loss": loss, "tokens_per_s": tokens_per_s, "url": url, "model": model}
        record |= {name: value for name, value in said.items() if value is not None}
        # Closed each time: that is when shared storage shows it to others. One write, so that only a crash tears it.
        with self._file.open("ab", buffering=0) as stream:
            stream.write(json.dumps(record).encode() + b"\n")


def read_beats(file: Path, offset: int = 0) -> tuple[list[Beat], int]:
    """The heartbeats of `file` from byte `offset` on, and the offset to go on from; none when there is no file yet.

    A last line without its end is left for the next call. Lines that are no heartbeat are passed over: programs are
    killed in the middle of a line, and a user's own may write anything.
    """
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    beats = [beat for line in whole.splitlines() if (beat := _beat(line)) is not None]
    return beats, offset + len(whole)


def _beat(line: bytes) -> Beat | None:
    try:
        record: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or str(record.get("kind")) not in BEAT_KINDS:
        return None
    at_s, step = _finite(record.get("at_s")), _finite(record.get("step"))
    if at_s is None:
        return None
    return Beat(
        at_s=at_s,
        kind=record["kind"],
        step=None if step is None else int(step),
        loss=_finite(record.get("loss")),
        tokens_per_s=_finite(record.get("tokens_per_s")),
    )


def _finite(value: object) -> float | None:
    """A JSON number that is one; json reads NaN and Infinity too, and a diverged loss writes them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None
