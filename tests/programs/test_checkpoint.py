"""Checkpoints of one rank in this process; those of several ranks are in test_train.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from rackscale.errors import RackscaleError
from rackscale.programs.checkpoint import Checkpoints, State, whole
from tests.conftest import Eventually


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield Checkpoints(tmp_path, rank=0, group=dist.new_group(backend="gloo"))
    dist.destroy_process_group()


def state(value: float) -> State:
    return {"weight": torch.full((3, 4), value), "moment": torch.full((5,), value)}


def steps(folder: Path) -> list[int]:
    return [step for step, _ in whole(folder)]


def test_what_was_saved_is_loaded(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    checkpoints.save(40, state(1.0))
    checkpoints.save(50, state(2.0))
    loaded = state(0.0)
    assert checkpoints.newest() == 50
    checkpoints.load(50, loaded)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state(2.0).items())


def test_a_background_save_holds_what_was_there_when_it_began(
    checkpoints: Checkpoints, eventually: Eventually
) -> None:
    live = state(1.0)
    assert checkpoints.done() is None
    checkpoints.begin(10, live)
    assert checkpoints.busy()
    for tensor in live.values():
        tensor.fill_(9.0)  # training goes on
    assert eventually(checkpoints.done) == 10
    assert not checkpoints.busy()
    assert checkpoints.done() is None, "told once"
    loaded = state(0.0)
    checkpoints.load(10, loaded)
    assert torch.equal(loaded["weight"], state(1.0)["weight"])


def test_two_saves_at_once_are_a_mistake(checkpoints: Checkpoints) -> None:
    checkpoints.begin(10, state(1.0))
    with pytest.raises(AssertionError):
        checkpoints.begin(20, state(1.0))
    with pytest.raises(AssertionError):
        checkpoints.save(20, state(1.0))
    assert checkpoints.wait() == 10


def test_a_save_that_fails_is_told(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "step-00000010").write_text("in the way")
    checkpoints.begin(10, state(1.0))
    with pytest.raises(RackscaleError, match=r"step 10 can't be written: rank 0: .*step-00000010"):
        checkpoints.wait()


def test_a_checkpoint_that_lost_a_file_is_told(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save(10, state(1.0))
    next((tmp_path / "step-00000010").glob("*.distcp")).unlink()
    with pytest.raises(RackscaleError, match="step 10 can't be read"):
        checkpoints.load(10, state(0.0))


def test_the_last_two_are_kept(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoints.save(step, state(1.0))
    checkpoints.begin(40, state(1.0))
    assert steps(tmp_path) == [20, 30], "none goes before the next is whole"
    checkpoints.wait()
    assert steps(tmp_path) == [30, 40]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000030", "step-00000040"]


def test_what_is_not_whole_is_ignored_and_swept(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save(10, state(1.0))
    checkpoints.save(20, state(2.0))
    (tmp_path / "step-00000020" / ".metadata").unlink()
    (tmp_path / "step-00000030").mkdir()
    (tmp_path / "step-of-mine").mkdir()
    assert checkpoints.newest() == 10
    checkpoints.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-of-mine"]
