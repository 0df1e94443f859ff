"""Runs the commands in the pages' console blocks, and compares what they print with what the page shows.

    python docs/console.py [PAGE...]            fail where a page shows something else
    python docs/console.py --write [PAGE...]    put what they print into the pages

A block starts with ```console, and holds one command (`$ rackscale ...`, run from the project's root) with its output.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```console\n\$ (?P<command>rackscale .*)\n(?P<shown>(?:.*\n)*?)```$", re.MULTILINE)
SPEED = re.compile(r"in [\d.]+ s \([\d,]+ events/s\)")
"""What differs from run to run."""


def main(arguments: Sequence[str]) -> int:
    write = "--write" in arguments
    named = [Path(a).resolve() for a in arguments if not a.startswith("-")]
    wrong = 0
    for page in named or sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text("utf-8")
        fresh = BLOCK.sub(
            lambda block: f"```console\n$ {block['command']}\n{printed(block['command'])}```", text
        )
        if fresh == text:
            continue
        wrong += 1
        print(f"{page.relative_to(ROOT)}: " + ("written" if write else "shows what is not printed"))
        if write:
            page.write_text(fresh, "utf-8")
        else:
            print(_difference(text, fresh))
    return 1 if wrong and not write else 0


def printed(command: str) -> str:
    """What a command prints in a pipe 100 columns wide, errors included."""
    program = Path(sys.executable).with_name("rackscale")
    run = subprocess.run(
        [program, *shlex.split(command)[1:]],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [SPEED.sub("in ... s (... events/s)", line.rstrip()) for line in run.stdout.splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _difference(shown: str, fresh: str) -> str:
    old, new = shown.splitlines(), fresh.splitlines()
    return "\n".join(
        [f"  shown:   {line}" for line in old if line not in new][:10]
        + [f"  printed: {line}" for line in new if line not in old][:10]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
