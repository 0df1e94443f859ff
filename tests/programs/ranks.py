"""Real ranks of the training program, started the way an executor starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest

from rackscale.programs.contract import Beat, Worker, read_beats

CONTRACT = ("RACKSCALE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "LOCAL_", "RANK", "WORLD_SIZE", "OMP_")


def bare_environ() -> dict[str, str]:
    """The environment of the tests without anything that a rank would read."""
    return {name: value for name, value in os.environ.items() if not name.startswith(CONTRACT)}


class Gang:
    """One attempt: `world_size` processes that share `folder/ckpt` and `folder/out`; a context that leaves none."""

    def __init__(self, folder: Path, flags: Sequence[str], *, world_size: int, attempt: int = 1) -> None:
        self.folder = folder / f"attempt-{attempt}"
        self.folder.mkdir(parents=True)
        port = _free_port()
        self.processes = []
        for rank in range(world_size):
            worker = Worker(
                rank=rank, local_rank=rank, world_size=world_size, local_world_size=world_size,
                master_port=port, job="test", gang="test", attempt=attempt, checkpoint_dir=folder / "ckpt",
                output_dir=folder / "out", heartbeat_file=self._heartbeats(rank),
            )  # fmt: skip
            with (self.folder / f"rank-{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "rackscale.programs.train", *flags],
                    env=bare_environ() | worker.environ(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _heartbeats(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.jsonl"

    def beats(self, kind: str, rank: int = 0) -> list[Beat]:
        return [beat for beat in read_beats(self._heartbeats(rank))[0] if beat.kind == kind]

    def losses(self) -> dict[int, float]:
        said = {beat.step: beat.loss for beat in self.beats("step")}
        return {step: loss for step, loss in said.items() if step is not None and loss is not None}

    def until(
        self, kind: str, when: Callable[[Beat], bool] = lambda _: True, *, within_s: float = 60
    ) -> Beat:
        """Wait for rank 0 to say so, and fail with the logs when it can't any more."""
        deadline_s = time.monotonic() + within_s
        while True:
            alive = self.processes[0].poll() is None and time.monotonic() < deadline_s
            if said := [beat for beat in self.beats(kind) if when(beat)]:
                return said[0]
            if not alive:
                pytest.fail(f"never said {kind!r}\n{self.logs()}")
            time.sleep(0.01)

    def wait(self, *, within_s: float = 90) -> list[int]:
        """The exit statuses of the ranks."""
        deadline_s = time.monotonic() + within_s
        try:
            return [process.wait(max(0.0, deadline_s - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {within_s:g} s\n{self.logs()}")

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def logs(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in sorted(self.folder.glob("*.log")))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
