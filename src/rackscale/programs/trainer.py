"""The training loop of one rank: data-parallel, interruptible at any step, resumable at any world size."""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
import time
from datetime import timedelta
from ipaddress import ip_address

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from rackscale.errors import RackscaleError
from rackscale.programs.checkpoint import Checkpoints
from rackscale.programs.contract import LEFT, Heartbeat, Worker
from rackscale.programs.corpus import Batches, Corpus, prepare
from rackscale.programs.learner import Learner
from rackscale.programs.settings import Settings

PRINT_S = 1.0
"""Least time between two lines of the log; heartbeats are denser."""


def train(settings: Settings, worker: Worker, heartbeat: Heartbeat, asked: threading.Event) -> int:
    """Train to the last step, or until `asked` to leave; the exit status.

    Raises RackscaleError where the text can't be used, or the checkpoints are another run's.
    """
    corpus = prepare(settings.text, vocab=settings.vocab, cache=settings.checkpoint_dir)
    device = _join(worker, settings.timeout_s)
    trainer = Trainer(settings, worker, heartbeat, corpus, device)
    status = trainer.run(asked)
    dist.destroy_process_group()
    return status


def _join(worker: Worker, timeout_s: float) -> torch.device:
    """Meet the other ranks; this rank's device."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", worker.local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if worker.world_size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        os.environ.setdefault("MASTER_ADDR", worker.master_addr)
        if _is_loopback(worker.master_addr) and "lo" in (name for _, name in socket.if_nameindex()):
            # Else gloo looks up this machine's own name, which needs not lead back to it.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(backend, timeout=timeout)
    return device


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _pause(until_s: float, asked: threading.Event) -> None:
    # Not `asked.wait`: a signal handler that sets an event while its own thread waits for it can deadlock.
    while (left_s := until_s - time.monotonic()) > 0 and not asked.is_set():
        time.sleep(min(left_s, 0.05))


class Trainer:
    """One rank's run. The ranks agree on leaving and saving by one tiny all-reduce per step."""

    def __init__(
        self, settings: Settings, worker: Worker, heartbeat: Heartbeat, corpus: Corpus, device: torch.device
    ) -> None:
        self._settings, self._worker, self._heartbeat, self._corpus = settings, worker, heartbeat, corpus
        self._device = device
        self._batches = Batches(
            corpus, seq=settings.seq, global_batch=settings.global_batch, seed=settings.seed
        )
        self._learner = Learner(settings, vocab=corpus.vocab, device=device, world_size=worker.world_size)
        self._checkpoints: Checkpoints | None = None
        if settings.checkpoint_dir is not None:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=settings.timeout_s))
            self._checkpoints = Checkpoints(settings.checkpoint_dir, rank=worker.rank, group=group)
        self._saved = 0

    def run(self, asked: threading.Event) -> int:
        start = self._resume()
        gc.freeze()
        gc.enable()
        self._heartbeat.say("started", step=start)
        self._print(
            f"started at step {start} of {self._settings.steps}, world size {self._worker.world_size}"
        )
        progress = Progress(self._settings, self._heartbeat, start) if self._worker.rank == 0 else None
        due = False
        step = start
        while step < self._settings.steps:
            began_s = time.monotonic()
            loss, leave, saving = self._agree(self._step(step), asked.is_set())
            step += 1
            if progress is not None:
                progress.tell(step, loss)
            self._notice_saved()
            if leave:
                return self._leave(step)
            due = due or step % self._settings.checkpoint_every == 0
            if due and not saving and self._checkpoints is not None:
                self._checkpoints.begin(step, self._learner.state())
                due = False
            _pause(began_s + self._settings.step_time_s, asked)
        return self._finish(step)

    def _step(self, step: int) -> Tensor:
        inputs, targets = self._batches.at(step, rank=self._worker.rank, world_size=self._worker.world_size)
        return self._learner.step(step, inputs, targets)

    def _agree(self, loss: Tensor, asked: bool) -> tuple[float, bool, bool]:
        """The gang's loss; whether any rank was asked to leave; whether any is still saving."""
        saving = self._checkpoints is not None and self._checkpoints.busy()
        mine = torch.stack((loss, loss.new_tensor(asked), loss.new_tensor(saving)))
        dist.all_reduce(mine)
        total, askings, savings = mine.tolist()
        return total / self._worker.world_size, askings > 0, savings > 0

    def _resume(self) -> int:
        if self._checkpoints is None:
            return 0
        newest = self._checkpoints.newest()
        self._claim(fresh=newest is None)
        self._checkpoints.sweep()
        if newest is not None:
            self._checkpoints.load(newest, self._learner.state())
            self._learner.restore(newest)
            self._saved = newest
        return self._saved

    def _claim(self, *, fresh: bool) -> None:
        """Leave a note of what this run is, or refuse checkpoints that another kind of run has left."""
        assert self._settings.checkpoint_dir is not None
        note = self._settings.checkpoint_dir / "run.json"
        mine = self._settings.identity() | {"text": self._corpus.digest}
        if fresh:
            if self._worker.rank == 0:
                draft = note.with_suffix(".tmp")
                draft.write_text(json.dumps(mine, indent=1))
                draft.replace(note)
            return
        theirs = json.loads(note.read_text()) if note.exists() else {}
        changed = [
            f"{name} was {theirs.get(name)}, is {now}"
            for name, now in mine.items()
            if theirs.get(name) != now
        ]
        if changed:
            raise RackscaleError(
                f"the checkpoints in {note.parent} are of another run: {'; '.join(changed)}",
                hint="go back to what it was, or give another --checkpoint-dir",
            )

    def _notice_saved(self, *, wait: bool = False) -> None:
        if self._checkpoints is None:
            return
        step = self._checkpoints.wait() if wait else self._checkpoints.done()
        if step is not None:
            self._tell_saved(step)

    def _tell_saved(self, step: int) -> None:
        self._saved = step
        if self._worker.rank == 0:
            self._heartbeat.say("checkpoint", step=step)

    def _save(self, step: int) -> None:
        """Bring step `step` to storage before returning."""
        self._notice_saved(wait=True)
        if self._checkpoints is not None and self._saved != step:
            self._checkpoints.save(step, self._learner.state())
            self._tell_saved(step)

    def _leave(self, step: int) -> int:
        self._save(step)
        self._heartbeat.say("left", step=self._saved)
        self._print(f"left at step {step}; the next attempt starts at {self._saved}")
        return LEFT

    def _finish(self, step: int) -> int:
        self._save(step)
        if self._settings.export:
            self._export()
        self._heartbeat.say("finished", step=step)
        self._print(f"finished at step {step}")
        return 0

    def _export(self) -> None:
        from rackscale.programs.export import export

        assert self._settings.output_dir is not None
        weights = self._learner.whole_weights(keep=self._worker.rank == 0)
        if self._worker.rank == 0:
            folder = self._settings.output_dir / "model"
            export(folder, weights=weights, shape=self._settings.shape, tokenizer=self._corpus.tokenizer)
            self._print(f"exported to {folder}")

    def _print(self, line: str) -> None:
        if self._worker.rank == 0:
            print(line, flush=True)


class Progress:
    """Rank 0's account of its steps: the first, the last, and a few per second between them."""

    def __init__(self, settings: Settings, heartbeat: Heartbeat, start: int) -> None:
        self._settings, self._heartbeat = settings, heartbeat
        self._always = {start + 1, settings.steps}
        self._told_step, self._told_s = start, time.monotonic()
        self._printed_s = 0.0

    def tell(self, step: int, loss: float) -> None:
        now_s = time.monotonic()
        elapsed_s = now_s - self._told_s
        if step not in self._always and elapsed_s < self._settings.report_s:
            return
        tokens = (step - self._told_step) * self._settings.global_batch * self._settings.seq
        self._heartbeat.say("step", step=step, loss=loss, tokens_per_s=tokens / elapsed_s)
        if step in self._always or now_s - self._printed_s >= PRINT_S:
            rate = f"{tokens / elapsed_s:,.0f} tokens/s"
            print(f"step {step}/{self._settings.steps}  loss {loss:.3f}  {rate}", flush=True)
            self._printed_s = now_s
        self._told_step, self._told_s = step, now_s
