"""The executor on Ray: the same supervision as everywhere, on Ray nodes."""

from __future__ import annotations

from pathlib import Path

from rackscale.runtime.gangs import GangExecutor
from rackscale.runtime.local import REPAIR_S
from rackscale.runtime.ray.cluster import JoinedCluster
from rackscale.runtime.ray.emulated import EmulatedCluster
from rackscale.runtime.ray.launcher import RayLauncher
from rackscale.runtime.supervisor import Settings


class RayExecutor(GangExecutor):
    """Runs gangs on Ray nodes. Implements `control.Executor`."""

    def __init__(
        self,
        site: Path,
        *,
        address: str | None = None,
        repair_s: float = REPAIR_S,
        settings: Settings | None = None,
    ) -> None:
        """`address`: join this cluster (`host:port`; a Ray node of it must run on this machine) instead of emulating
        one here. `repair_s`: seconds until an emulated node can be used again; one of a joined cluster can as soon
        as it is back.

        An emulated cluster is started while the first cycles run, and `poll` raises ExecutorError if that fails; one
        that can't be joined is told here.
        """
        site = site.resolve()
        if address is None:
            self._ray = RayLauncher(EmulatedCluster(site, repair_s=repair_s))
        else:
            self._ray = RayLauncher(JoinedCluster(site, address))
            self._ray.connected()
        super().__init__(self._ray, site, settings=settings)

    def shutdown(self) -> None:
        """End everything of this site on Ray: instances, agents and, where they are ours, its nodes and head."""
        self._ray.shutdown()
