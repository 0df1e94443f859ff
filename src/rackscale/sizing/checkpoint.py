"""What a checkpoint and a restart of a training job take, from its size and its GPUs."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from math import log2

import msgspec
from msgspec import Struct

from rackscale import models
from rackscale.catalog.tables import Row, Source, row
from rackscale.models.description import Model
from rackscale.sizing.memory import optimizer_bytes
from rackscale.sizing.recipe import Recipe
from rackscale.sizing.work import BF16

MANY = 1024.0
"""GPUs beyond which a start takes longer."""


class Rates(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rates of checkpoints.toml; `origins` says where each comes from."""

    copy_s: float
    """Of planning a copy to host memory, whatever its size."""
    copy_bytes_per_s: float
    """From a GPU to its host's memory."""
    save_s: float
    """Of saving or loading, whatever the size."""
    storage_bytes_per_s: float
    """To and from shared storage, of a whole job."""
    storage_bytes_per_s_per_gpu: float
    """At most, of each GPU."""
    detect_s: float
    """From a failure until it is known."""
    reschedule_s: float
    """Until the job has its nodes again."""
    start_s: float
    """Until ranks can load."""
    start_s_per_doubling: float
    """More of it per doubling of GPUs beyond 1,024."""


class Checkpoint(Struct, frozen=True, kw_only=True):
    """Of one job, in bytes and seconds."""

    total_bytes: float
    """Weights and what the optimizer keeps, each once."""
    gpu_bytes: float
    """A GPU's share: every GPU saves its part of the replicas' copies."""
    stall_s: float
    """Training stands still: an asynchronous checkpoint copies to host memory first."""
    synchronous_s: float
    """It would stand still that long if it waited for storage."""
    save_s: float
    """Until the checkpoint can be used."""
    restart_s: float
    """From a failure until the first new step: detect, reschedule, start, load."""

    def given(self, *, stall_s: float | None = None, restart_s: float | None = None) -> Checkpoint:
        """With what somebody knows better; a stall that is longer than saving is a synchronous checkpoint's."""
        stall = self.stall_s if stall_s is None else stall_s
        return msgspec.structs.replace(
            self,
            stall_s=stall,
            save_s=max(self.synchronous_s, stall),
            restart_s=self.restart_s if restart_s is None else restart_s,
        )


@cache
def rates() -> Rates:
    """What checkpoints.toml says."""
    table = tomllib.loads(resources.files(__package__).joinpath("checkpoints.toml").read_text("utf-8"))
    known = msgspec.convert(table["sources"], dict[str, Source])
    return row(Rates, {"name": "checkpoints", **table["rates"]}, known)


def checkpoint(model: Model, recipe: Recipe, *, gpus: int, by: Rates | None = None) -> Checkpoint:
    """Of a sharded, asynchronous checkpoint of what is trained.

    Adapters are saved alone; what they rest on is loaded again.
    """
    count = models.parameters(model, mtp=True)
    trained = count * recipe.trained * (BF16 + optimizer_bytes(recipe))
    rested = count * recipe.weight_bytes if recipe.trained < 1.0 else 0.0
    return sized(trained, trained + rested, gpus=gpus, by=by)


def sized(saved_bytes: float, loaded_bytes: float, *, gpus: int, by: Rates | None = None) -> Checkpoint:
    """The stall is the copy to host memory: copy_s + share / copy_bytes_per_s.

    Saving goes on beside training, at the storage's rate or at what the GPUs reach together.
    """
    by = rates() if by is None else by
    storage = min(by.storage_bytes_per_s, by.storage_bytes_per_s_per_gpu * gpus)
    stall = by.copy_s + saved_bytes / gpus / by.copy_bytes_per_s
    saves = by.save_s + saved_bytes / storage
    starts = by.start_s + by.start_s_per_doubling * max(log2(gpus / MANY), 0.0)
    return Checkpoint(
        total_bytes=saved_bytes,
        gpu_bytes=saved_bytes / gpus,
        stall_s=stall,
        synchronous_s=saves,
        save_s=max(saves, stall),
        restart_s=by.detect_s + by.reschedule_s + starts + by.save_s + loaded_bytes / storage,
    )
