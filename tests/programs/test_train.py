"""Gangs of real ranks: killed, asked to leave, resumed at another world size, and they learn the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rackscale.errors import RackscaleError
from rackscale.programs.contract import LEFT, Worker
from rackscale.programs.settings import Settings
from rackscale.programs.train import parse
from tests.conftest import Eventually
from tests.programs.ranks import Gang, bare_environ

STEPS = 16
FLAGS = [
    *("--steps", str(STEPS), "--seq", "32", "--global-batch", "8", "--vocab", "512"),
    *("--checkpoint-every", "4", "--report-s", "0"),
]
PACED = [*FLAGS, "--step-time-s", "0.15"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The loss of each step of two ranks that nobody disturbed."""
    with Gang(tmp_path_factory.mktemp("undisturbed"), FLAGS, world_size=2) as gang:
        assert gang.wait() == [0, 0], gang.logs()
        losses = gang.losses()
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1] - 1, "it learns, and so tells steps apart"
    return losses


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a gang leaves behind whose rank 1 was killed a little after the checkpoint of step 8."""
    folder = tmp_path_factory.mktemp("killed")
    with Gang(folder, PACED, world_size=2) as gang:
        gang.until("checkpoint", lambda beat: beat.step == 8)
        assert (folder / "ckpt" / "step-00000008" / ".metadata").exists(), "whole when it is said to be"
        gang.signal(1, signal.SIGKILL)
        survivor, dead = gang.wait(within_s=20)
    assert dead == -signal.SIGKILL
    assert survivor not in {0, LEFT}, "a rank alone neither goes on nor hangs"
    return folder


def same(losses: dict[int, float], undisturbed: dict[int, float]) -> bool:
    return losses == {step: pytest.approx(undisturbed[step], rel=1e-3) for step in losses}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_gang_goes_on_as_if_nothing_had_happened(
    world_size: int, killed: Path, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    shutil.copytree(killed / "ckpt", tmp_path / "ckpt")
    # A save that the kill interrupted: newer, but not whole.
    newest, torn = tmp_path / "ckpt" / "step-00000008", tmp_path / "ckpt" / "step-00000012"
    shutil.copytree(newest, torn, dirs_exist_ok=True)
    (torn / ".metadata").unlink()
    with Gang(tmp_path, FLAGS, world_size=world_size, attempt=2) as gang:
        assert gang.wait() == [0] * world_size, gang.logs()
        assert [beat.step for beat in gang.beats("started", world_size - 1)] == [8]
        assert list(gang.losses()) == list(range(9, STEPS + 1))
        assert same(gang.losses(), undisturbed)
        assert [beat.step for beat in gang.beats("finished")] == [STEPS]
    assert {path.name for path in (tmp_path / "ckpt").glob("step-*")} == {"step-00000012", "step-00000016"}


def test_leaving_on_request_loses_nothing(undisturbed: dict[int, float], tmp_path: Path) -> None:
    """One rank of replicas is asked; all leave at one step, and a single rank takes over what they had."""
    with Gang(tmp_path, [*PACED, "--sharding", "ddp"], world_size=2) as gang:
        gang.until("step", lambda beat: (beat.step or 0) >= 5)
        asked_s = time.time()
        gang.signal(1, signal.SIGTERM)
        assert gang.wait(within_s=10) == [LEFT, LEFT], gang.logs()
        (left,) = gang.beats("left")
        assert left.at_s - asked_s < 5
        assert [beat.step for beat in gang.beats("left", 1)] == [left.step]
        assert left.step == max(gang.losses()) < STEPS
        assert gang.beats("checkpoint")[-1].step == left.step
    with Gang(tmp_path, FLAGS, world_size=1, attempt=2) as gang:
        assert gang.wait() == [0], gang.logs()
        assert list(gang.losses()) == list(range(left.step + 1, STEPS + 1))
        assert same(gang.losses(), undisturbed)


def test_a_request_that_comes_while_torch_is_loading_is_kept(tmp_path: Path, eventually: Eventually) -> None:
    with Gang(tmp_path, [*FLAGS, "--steps", "100000"], world_size=1) as gang:
        eventually(lambda: catches(gang.processes[0].pid, signal.SIGTERM))
        gang.signal(0, signal.SIGTERM)
        assert not gang.beats("started")
        assert gang.wait() == [LEFT], gang.logs()
        assert [beat.step for beat in gang.beats("left")] == [1]


def test_a_finished_job_that_is_started_again_only_finishes(tmp_path: Path) -> None:
    flags = [*FLAGS, "--steps", "3", "--checkpoint-every", "1"]
    with Gang(tmp_path, flags, world_size=1) as gang:
        assert gang.wait() == [0], gang.logs()
        saved = [beat.step or 0 for beat in gang.beats("checkpoint")]
        assert saved[-1] == 3
        assert saved == sorted(set(saved)), "one save at a time"
    with Gang(tmp_path, [*flags, "--export"], world_size=1, attempt=2) as gang:
        assert gang.wait() == [0], gang.logs()
        assert gang.losses() == {}
        assert [beat.step for beat in gang.beats("finished")] == [3]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").config.vocab_size == 512


def test_checkpoints_of_another_run_are_refused(killed: Path) -> None:
    with Gang(killed, [*FLAGS, "--global-batch", "4"], world_size=1, attempt=2) as gang:
        assert gang.wait() == [2]
        assert "--global-batch was 8, is 4" in gang.logs()
        assert "Traceback" not in gang.logs()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler of its own for the signal."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=bare_environ(), capture_output=True, text=True, check=False, timeout=120
    )


def test_a_process_that_nobody_told_anything_learns_a_users_text(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("A rack is a rack.\n\nA spare is a spare.\n" * 9, encoding="utf-8")
    flags = ["--text", "notes.txt", "--steps", "2", "--seq", "16", "--export", "--output-dir", "out"]
    train = run(sys.executable, "-m", "rackscale.programs.train", *flags, folder=tmp_path)
    assert train.returncode == 0, train.stderr
    assert train.stderr == "train: no checkpoint folder: nothing will be saved\n"
    assert "finished at step 2" in train.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "out"}
    assert (tmp_path / "out" / "model" / "config.json").exists()


@pytest.mark.slow
def test_plain_torchrun_runs_it(tmp_path: Path) -> None:
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    flags = [*FLAGS, "--steps", "4", "--checkpoint-dir", "ckpt"]
    options = ["--standalone", "--nproc-per-node", "2"]
    train = run(torchrun, *options, "-m", "rackscale.programs.train", *flags, folder=tmp_path)
    assert train.returncode == 0, train.stderr
    assert "world size 2" in train.stdout
    assert (tmp_path / "ckpt" / "step-00000004" / ".metadata").exists()


@pytest.mark.parametrize(
    ("flags", "world_size", "message", "hint"),
    [
        (["--global-batch", "10"], 4, "--global-batch 10 can't be shared evenly by 4 ranks", "8 or 12"),
        (["--global-batch", "1"], 4, "can't be shared evenly by 4 ranks", "use 4"),
        (["--export"], 1, "--export has nowhere to write", "--output-dir"),
        (["--seq", "4096"], 1, "--seq 4096 is longer than the 512 positions", "--seq 512"),
    ],
)
def test_what_cant_work_is_said_with_the_way_out(
    flags: list[str], world_size: int, message: str, hint: str
) -> None:
    with pytest.raises(RackscaleError, match=message) as raised:
        parse(flags, Worker(world_size=world_size))
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize(
    "flags", [["--steps", "0"], ["--lr", "nan"], ["--seq", "x"], ["--preset", "huge"], ["--step", "3"]]
)
def test_flags_that_make_no_sense_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(flags, Worker())
    assert raised.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_flags_go_before_the_environment_and_that_before_the_defaults() -> None:
    worker = Worker(checkpoint_dir=Path("/shared/ckpt"), output_dir=Path("/shared/out"))
    assert parse([], worker) == Settings(checkpoint_dir=Path("/shared/ckpt"), output_dir=Path("/shared/out"))
    assert parse(["--checkpoint-dir", "mine"], worker).checkpoint_dir == Path("mine")


def test_mistakes_are_found_before_torch_is_loaded() -> None:
    """A wrong flag answers at once, and so does --help."""
    look = "import sys; from rackscale.programs import train; train.main(['--export']); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", look], env=bare_environ(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert (
        done.stderr
        == "train: --export has nowhere to write\n  give --output-dir, or set RACKSCALE_OUTPUT_DIR\n"
    )
