"""The serving program as a real process, started the way an executor starts rank 0."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from openai import OpenAI

from rackscale.programs import processes
from rackscale.programs.contract import Worker
from tests.programs.ranks import bare_environ


class Service:
    """A context that leaves no process."""

    def __init__(self, folder: Path, flags: Sequence[str], *, worker: Worker | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._beats, self._log = folder / "rank-0.jsonl", folder / "rank-0.log"
        contract = {"RACKSCALE_JOB": "chat"} if worker is None else worker.environ()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rackscale.programs.serve", *flags],
                env=bare_environ() | contract | {"RACKSCALE_HEARTBEAT_FILE": str(self._beats)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def beats(self) -> list[dict[str, Any]]:
        text = self._beats.read_text() if self._beats.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def ready(self, *, within_s: float = 120) -> dict[str, Any]:
        """The heartbeat that says so; fails with the log when it can't come any more."""
        deadline_s = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < deadline_s:
            if said := [beat for beat in self.beats() if beat["kind"] == "ready"]:
                return said[0]
            time.sleep(0.05)
        pytest.fail(f"never ready\n{self.log()}")

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.ready()['url']}/v1", api_key="none", max_retries=0, timeout=60)

    def children(self) -> list[int]:
        """The pid of the engine, once there is one."""
        return [found.pid for found in processes.every() if found.parent == self.process.pid]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, *, within_s: float = 60) -> int:
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {within_s:g} s\n{self.log()}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-5000:]
