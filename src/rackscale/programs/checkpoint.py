"""Distributed checkpoints of a gang: asynchronous, whole or ignored, readable at any world size.

A checkpoint is a folder `step-00000040` under the job's checkpoint folder, written by all ranks at once
(torch.distributed.checkpoint). It is whole where `.metadata` exists: torch writes that last, by a rename. Reading it
unpickles `.metadata`, so the checkpoint folder must be the job's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from rackscale.errors import RackscaleError

State = dict[str, Tensor]
"""Names to tensors (sharded or whole); loading writes into them."""

KEEP = 2


def whole(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the whole checkpoints in `folder`, oldest first."""
    return sorted((int(path.name[5:]), path) for path in _folders(folder) if (path / ".metadata").exists())


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if path.name[5:].isdecimal()]


@contextmanager
def _in_words(done: str, step: int) -> Iterator[None]:
    """Say what failed on which rank; torch's own exception is a BaseException with a traceback for a message."""
    try:
        yield
    except CheckpointException as error:
        causes = "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in sorted(error.failures.items()))
        hint = f"remove step-{step:08d} to go on from the one before it" if done == "read" else None
        raise RackscaleError(f"the checkpoint of step {step} can't be {done}: {causes}", hint=hint) from error


class Checkpoints:
    """Saves and loads; never two saves at once. All ranks make the same calls in the same order."""

    def __init__(self, folder: Path, *, rank: int, group: dist.ProcessGroup) -> None:
        """`group`: a gloo group used for nothing else, since saves run beside the training's own collectives."""
        self._folder, self._rank, self._group = folder, rank, group
        self._saving: tuple[int, Future[Any]] | None = None

    def busy(self) -> bool:
        """Whether a background save is under way."""
        return self._saving is not None

    def newest(self) -> int | None:
        """The step of the newest whole checkpoint; the ranks agree because rank 0 looks and tells."""
        steps = [step for step, _ in whole(self._folder)] if self._rank == 0 else []
        said = [steps[-1] if steps else None]
        dist.broadcast_object_list(said, src=0, group=self._group)
        return said[0]

    def load(self, step: int, state: State) -> None:
        """Fill `state` from the checkpoint of `step`, whatever the number of ranks that wrote it."""
        with _in_words("read", step):
            load(state, storage_reader=FileSystemReader(self._path(step)), process_group=self._group)

    def begin(self, step: int, state: State) -> None:
        """Copy `state` now and write it in the background; `done` tells when it is whole."""
        assert self._saving is None, "a save is under way"
        future = async_save(state, storage_writer=self._writer(step), process_group=self._group)
        assert isinstance(future, Future)
        self._saving = step, future

    def done(self) -> int | None:
        """The step of a background save that became whole since the last call, or None.

        Raises RackscaleError where the save failed: training on without checkpoints would only lose more.
        """
        if self._saving is None or not self._saving[1].done():
            return None
        return self.wait()

    def wait(self) -> int | None:
        """Wait for the background save, if there is one; its step."""
        if self._saving is None:
            return None
        step, future = self._saving
        with _in_words("written", step):
            future.result()
        self._saving = None
        self._prune()
        return step

    def save(self, step: int, state: State) -> None:
        """Write `state` before returning."""
        assert self._saving is None, "a save is under way"
        with _in_words("written", step):
            save(state, storage_writer=self._writer(step), process_group=self._group)
        self._prune()

    def sweep(self) -> None:
        """Remove what attempts that were killed left unfinished."""
        if self._rank == 0:
            for path in _folders(self._folder):
                if not (path / ".metadata").exists():
                    shutil.rmtree(path)

    def _prune(self) -> None:
        if self._rank == 0:
            for _, path in whole(self._folder)[:-KEEP]:
                # First what makes it whole: a crash half-way must not leave a folder that looks usable.
                (path / ".metadata").unlink()
                shutil.rmtree(path)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _writer(self, step: int) -> FileSystemWriter:
        return FileSystemWriter(self._path(step))
