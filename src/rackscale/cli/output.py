"""What every verb does alike: options, printing for people or for machines, errors, exit codes.

Exit codes: 0 done; 1 the answer is no (problems found, refused, not running); 2 the command line was wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, RenderableType

from rackscale.errors import DocumentError, RackscaleError

SiteOption = Annotated[
    Path,
    typer.Option(
        "--site", "-s", envvar="RACKSCALE_SITE", help="Folder with the site's documents and its journal."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Files = Annotated[list[Path], typer.Argument(help="YAML files or folders.", show_default=False)]

FAILED = 1

PIPE_COLUMNS = 160


def _console(*, stderr: bool) -> Console:
    """A pipe has no width of its own, and names and addresses must not break in the middle."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output, indented."""
    found = msgspec.json.encode(value, enc_hook=str, order="deterministic")  # sets have no order of their own
    sys.stdout.buffer.write(msgspec.json.format(found, indent=2) + b"\n")
    sys.stdout.flush()


def show(value: Any, picture: RenderableType, *, json: bool) -> None:
    """`value` for machines or `picture` for people."""
    if json:
        print_json(value)
    else:
        out.print(picture)


def report(error: RackscaleError) -> None:
    """An expected error, on standard error, without a traceback."""
    if isinstance(error, DocumentError):
        for problem in error.problems:
            err.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
        count = len(error.problems)
        err.print(f"{count} problem{'s' if count != 1 else ''}", style="bold red")
        return
    hint = f"; {error.hint}" if error.hint else ""
    err.print(f"rackscale: {error}{hint}", style="red", markup=False, highlight=False, soft_wrap=True)


def fail(message: str, hint: str | None = None) -> typer.Exit:
    """Print an error and give the exception to raise."""
    report(RackscaleError(message, hint=hint))
    return typer.Exit(FAILED)
