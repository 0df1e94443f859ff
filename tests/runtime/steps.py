"""A program that keeps the worker contract, as a user without torch might write it: it counts to N, slowly.

Usage: python steps.py STEPS SECONDS_PER_STEP [--deaf]; --deaf: SIGTERM is ignored
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

steps, step_s, deaf = int(sys.argv[1]), float(sys.argv[2]), "--deaf" in sys.argv
rank, beats = os.environ["RANK"], Path(os.environ["RACKSCALE_HEARTBEAT_FILE"])
saved = Path(os.environ["RACKSCALE_CHECKPOINT_DIR"], f"rank-{rank}")
asked = threading.Event()


def say(kind: str, step: int) -> None:
    with beats.open("a") as stream:
        stream.write(
            json.dumps({"at_s": time.time(), "kind": kind, "step": step, "loss": 1 / (1 + step)}) + "\n"
        )


def save(step: int) -> None:
    draft = saved.with_suffix(".draft")
    draft.write_text(str(step))
    draft.rename(saved)


signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else lambda *_: asked.set())
step = int(saved.read_text()) if saved.exists() else 0
say("started", step)
print(f"rank {rank} goes on at {step}", flush=True)
while step < steps:
    time.sleep(step_s)
    step += 1
    say("step", step)
    if asked.is_set():
        time.sleep(0.3)
        save(step)
        say("left", step)
        sys.exit(75)
    if step % 5 == 0:
        save(step)
        say("checkpoint", step)
say("finished", step)
