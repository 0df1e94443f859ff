"""Train a small Llama-architecture language model: `python -m rackscale.programs.train`, once per rank.

This file reads the command line and the environment; the work is in `trainer.py`, which needs torch.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rackscale.errors import RackscaleError
from rackscale.programs.contract import LEFT, Heartbeat, Worker
from rackscale.programs.settings import PRESETS, Settings

EXAMPLES = f"""\
examples:
  one process, nothing saved:
    python -m rackscale.programs.train --steps 100
  two ranks with torchrun, with checkpoints and at the end a Hugging Face folder (out/model):
    torchrun --nproc-per-node 2 -m rackscale.programs.train \\
        --checkpoint-dir ckpt --export --output-dir out
  your own text, documents separated by blank lines:
    python -m rackscale.programs.train --text notes.txt --steps 2000

Run it again with the same --checkpoint-dir, with any number of ranks, and it goes on from
the newest whole checkpoint. SIGTERM makes it write one, leave, and exit with status {LEFT}.
Under rackscale the folders come from the environment.
"""


def main(argv: Sequence[str] | None = None) -> int:
    # First of all, since a request to leave may come while torch is still loading.
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    # Before torch reads it. A rank is one of several on its machine: more threads would only take turns.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        worker = Worker.from_environ()
        settings = parse(argv, worker)
        heartbeat = Heartbeat(worker.heartbeat_file)
        # Loading torch makes objects that stay; looking for garbage among them takes a sixth of a start. `train` goes
        # back to collecting when it has started.
        gc.disable()
        from rackscale.programs.trainer import train

        return train(settings, worker, heartbeat, asked)
    except RackscaleError as error:
        print(f"train: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2


def parse(argv: Sequence[str] | None, worker: Worker) -> Settings:
    """Settings from flags, else from the worker's environment, else the defaults.

    Raises RackscaleError for what can't work together; argparse itself exits with 2 for what it can't read.
    """
    given = vars(_parser().parse_args(argv))
    settings = Settings(**{"checkpoint_dir": worker.checkpoint_dir, "output_dir": worker.output_dir, **given})
    settings.check(worker.world_size)
    if settings.checkpoint_dir is None and worker.rank == 0:
        print("train: no checkpoint folder: nothing will be saved", file=sys.stderr)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rackscale.programs.train",
        description="Train a small Llama-architecture language model, data-parallel over the ranks of a gang.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Returns only what was given: the environment goes between the flags and the defaults.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_model_flags(parser.add_argument_group("model and data"))
    _add_run_flags(parser.add_argument_group("run"))
    _add_folder_flags(parser.add_argument_group("folders"))
    return parser


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    default = Settings()
    group.add_argument("--preset", choices=PRESETS, help=f"size of the model (default {default.preset})")
    group.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to learn (default: one made here)"
    )
    _number(group, "--vocab", int, 300, f"tokens of the vocabulary, at most (default {default.vocab})")
    _number(group, "--seq", int, 2, f"tokens per sample (default {default.seq})")
    _number(
        group,
        "--global-batch",
        int,
        1,
        f"samples per step, all ranks together (default {default.global_batch})",
    )
    _number(group, "--seed", int, 0, f"of the weights and of the order of samples (default {default.seed})")


def _add_run_flags(group: argparse._ArgumentGroup) -> None:
    default = Settings()
    _number(group, "--steps", int, 1, f"steps in all, over all attempts (default {default.steps})")
    _number(group, "--lr", float, 0, f"peak learning rate (default {default.lr})")
    _number(
        group,
        "--warmup",
        int,
        0,
        f"steps until the peak, before a cosine to a tenth (default {default.warmup})",
    )
    group.add_argument(
        "--sharding", choices=("fsdp", "ddp"), help=f"FSDP2, or whole replicas (default {default.sharding})"
    )
    _number(group, "--step-time-s", float, 0, "least seconds per step, to pace a demonstration (default 0)")
    _number(group, "--report-s", float, 0, f"least seconds between heartbeats (default {default.report_s})")
    _number(
        group, "--timeout-s", float, 1, f"seconds to wait for a silent rank (default {default.timeout_s:g})"
    )


def _add_folder_flags(group: argparse._ArgumentGroup) -> None:
    default = Settings()
    group.add_argument(
        "--checkpoint-dir", type=Path, metavar="DIR", help="default: $RACKSCALE_CHECKPOINT_DIR"
    )
    _number(
        group, "--checkpoint-every", int, 1, f"steps between checkpoints (default {default.checkpoint_every})"
    )
    group.add_argument("--output-dir", type=Path, metavar="DIR", help="default: $RACKSCALE_OUTPUT_DIR")
    group.add_argument(
        "--export", action="store_true", help="at the end write a Hugging Face folder, model/, there"
    )


def _number(
    group: argparse._ArgumentGroup, flag: str, kind: Callable[[str], float], least: float, text: str
) -> None:
    def read(given: str) -> float:
        value = kind(given)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{given} is not {least:g} or more")
        return value

    read.__name__ = kind.__name__  # what argparse calls it when `kind` can't read it
    group.add_argument(flag, type=read, metavar="N", help=text)


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    except Exception:  # noqa: BLE001 - told in full, then the exit below
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # An ordinary exit takes torch half a second, and after a failure waits for a save that waits for a lost rank.
    os._exit(status)
