"""`rackscale`: the verbs, joined."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import rackscale
from rackscale.cli import demo, documents, fleet, jobs, quality, rehearse, scoring, sizing, windows
from rackscale.cli.output import FAILED, report
from rackscale.errors import RackscaleError

app = typer.Typer(
    name="rackscale",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Plan, rehearse and run training and serving on rack-scale GPU capacity.\n\n"
    "**plan** asks first, **apply** acts with the same code, **why** explains, **audit** scores the forecast.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(rackscale.__version__)
        raise typer.Exit


@app.callback()
def options(
    _version_option: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb."""


for group in (jobs, fleet, windows, quality, rehearse, sizing, scoring, demo, documents):
    group.register(app)


def main() -> None:
    """Entry point: expected errors become one line and exit code 1."""
    try:
        app()
    except RackscaleError as error:
        report(error)
        sys.exit(FAILED)
    except BrokenPipeError:  # the reader (head, less) has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        if error.filename is None:  # not about a file that somebody named
            raise
        report(RackscaleError(f"{error.filename}: {error.strerror}"))
        sys.exit(FAILED)
