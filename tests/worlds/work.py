"""What gangs of the worlds run on real executors: so many seconds of work, kept in checkpoints, and the contract.

Usage: python work.py SECONDS [--hold ATTEMPT] [--leave SECONDS] [--serve]

--hold: it does not finish before that attempt, so that a slow machine can't end a story early
--leave: what a checkpoint on request takes
--serve: it answers, and never finishes
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

LEFT = 75
STEP_S = 0.05
SAVE_EVERY = 4

parser = argparse.ArgumentParser()
parser.add_argument("seconds", type=float)
parser.add_argument("--hold", type=int, default=1)
parser.add_argument("--leave", type=float, default=0.0)
parser.add_argument("--serve", action="store_true")
options = parser.parse_args()

rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
number = int(os.environ["RACKSCALE_ATTEMPT"])
gang = os.environ["RACKSCALE_GANG"].replace("/", "-")
folder, beats = Path(os.environ["RACKSCALE_CHECKPOINT_DIR"]), Path(os.environ["RACKSCALE_HEARTBEAT_FILE"])
saved, crash = folder / f"{gang}-{rank}", folder / "crash"
asked = threading.Event()


def say(kind: str, step: int) -> None:
    with beats.open("a") as stream:
        stream.write(json.dumps({"at_s": time.time(), "kind": kind, "step": step}) + "\n")


def save(step: int) -> None:
    draft = saved.with_suffix(".draft")
    draft.write_text(str(step))
    draft.rename(saved)


def leave_if_asked(step: int) -> None:
    if asked.is_set():
        time.sleep(options.leave)
        save(step)
        say("left", step)
        sys.exit(LEFT)


def meet() -> None:
    """As ranks of a real program do: nobody works before all are there."""
    (folder / f"{gang}.{number}.{rank}.here").touch()
    while len(list(folder.glob(f"{gang}.{number}.*.here"))) < world_size:
        if asked.is_set():
            sys.exit(LEFT)
        time.sleep(0.02)


signal.signal(signal.SIGTERM, lambda *_: asked.set())
# The law that no node is held twice, as the node sees it.
node = (folder.parent / os.environ["RACKSCALE_NODE"].replace("/", "-")).open("w")
fcntl.flock(node, fcntl.LOCK_EX | fcntl.LOCK_NB)
meet()
step = int(saved.read_text()) if saved.exists() else 0
say("started", step)
if options.serve:
    say("ready", step)
steps = round(options.seconds / STEP_S)
while step < steps or number < options.hold or options.serve:
    time.sleep(STEP_S)
    step += 1
    if not options.serve:
        say("step", step)
    leave_if_asked(step)
    if rank == 0 and crash.exists():
        crash.unlink()
        sys.exit(3)
    if step % SAVE_EVERY == 0 and not options.serve:
        save(step)
        say("checkpoint", step)
say("finished", step)
