"""Processes of this host, as /proc shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    state: str
    parent: int
    group: int
    started_ticks: int
    """Clock ticks since boot: with the pid, what tells a process from a later one of the same pid."""

    @property
    def zombie(self) -> bool:
        return self.state in "ZX"


def find(pid: int) -> Process | None:
    """The process of that pid, zombies too; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return Process(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[19]))


def every() -> Iterator[Process]:
    """All processes that exist while we look."""
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    return (found for pid in pids if (found := find(pid)) is not None)


def environ(pid: int) -> frozenset[bytes]:
    """`NAME=value` entries that the process was started with; empty where it is gone or not ours to read."""
    try:
        return frozenset(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return frozenset()


def boot_id() -> str:
    """Changes when the machine starts again, so that a pid and its start can't be mistaken for an earlier one's."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
