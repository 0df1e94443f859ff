"""The command line. One file per group of verbs; `app` joins them."""

from rackscale.cli.app import main

__all__ = ["main"]
