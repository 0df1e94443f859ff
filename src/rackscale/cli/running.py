"""Starting and stopping the controller of a site, as a process of its own.

python -m rackscale.cli.running SITE local|ray ...      is that process
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from rackscale import daemon, spec
from rackscale.cli.output import report
from rackscale.cli.site import commands_of
from rackscale.commands import Command
from rackscale.control import Executor
from rackscale.errors import ExecutorError, RackscaleError
from rackscale.fleet.state import FleetState
from rackscale.journal import Journal, location, writer

START_S = 120.0
"""How long a controller may take to be ready: Ray's head takes 6 s quiet and 25 s on a busy machine."""
STOP_S = 60.0
"""How long a controller may take to end, beyond the grace period of its gangs."""


class Engine(StrEnum):
    """What runs gangs for real."""

    local = "local"
    ray = "ray"


def bring_up(site: Path, on: Engine, *, address: str | None, repair_s: float) -> daemon.Standing:
    """Start the controller, detached, and wait until it is ready. Raises ControllerError, DocumentError."""
    spec.load([site]).for_site()  # mistakes are reported here, not in the controller's log
    argv = [sys.executable, "-P", "-m", __name__, str(site.resolve()), on.value, "--repair-s", str(repair_s)]
    if address is not None:
        argv += ["--address", address]
    return daemon.start(site, argv, timeout_s=START_S)


def take_down(site: Path, *, stop_gangs: bool) -> None:
    """Stop the gangs, unless they are to go on, then the controller. Raises ControllerError.

    Gangs may take their whole grace period.
    """
    graces_s: list[float] = []
    if stop_gangs and writer(location(site)) is not None:
        with Journal.open(location(site)) as journal:
            graces_s = [job.durability.grace_s for job in journal.load().jobs.values()]
    daemon.stop(site, stop_gangs=stop_gangs, timeout_s=STOP_S + max(graces_s, default=0.0))


def _run_local(options: argparse.Namespace, first: list[Command]) -> None:
    from rackscale.runtime.local import LocalExecutor

    def make() -> Executor:
        return LocalExecutor(options.site, repair_s=options.repair_s)

    daemon.run(options.site, make, executor_name=options.on.value, initially=first)


def _run_ray(options: argparse.Namespace, first: list[Command]) -> None:
    try:
        from rackscale.runtime.ray.executor import RayExecutor
    except ModuleNotFoundError as error:
        raise ExecutorError(f"Ray is not installed ({error})", hint="pip install 'rackscale[ray]'") from None
    made: list[RayExecutor] = []

    def make() -> Executor:
        made.append(RayExecutor(options.site, address=options.address, repair_s=options.repair_s))
        return made[0]

    try:
        daemon.run(options.site, make, executor_name=options.on.value, initially=first)
    finally:
        # Ray nodes outlive a controller for the sake of the gangs on them.
        if made and not _anything_runs(options.site):
            made[0].shutdown()


def _anything_runs(site: Path) -> bool:
    with Journal.open(location(site)) as journal:
        return any(gang.binding for gang in journal.load().gangs.values())


def main(argv: Sequence[str] | None = None) -> int:
    """The controller's process."""
    parser = argparse.ArgumentParser(prog="rackscale-controller", description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("on", type=Engine, choices=list(Engine))
    parser.add_argument("--address")
    parser.add_argument("--repair-s", type=float, default=60.0)
    options = parser.parse_args(argv)
    os.umask(0o077)
    try:
        first = commands_of(spec.load([options.site]), FleetState(), time.time(), windows=False)
        (_run_local if options.on is Engine.local else _run_ray)(options, first)
    except RackscaleError as error:
        report(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
