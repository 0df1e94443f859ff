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

        Returns at once; the cluster is started or joined meanwhile, and `poll` raises ExecutorError if that fails.
        """
        site = site.resolve()
        cluster = (
            EmulatedCluster(site, repair_s=repair_s) if address is None else JoinedCluster(site, address)
        )
        self._ray = RayLauncher(cluster)
        super().__init__(self._ray, site, settings=settings)

    def shutdown(self) -> None:
        """End everything of this site on Ray: instances, agents and, where they are ours, its nodes and head."""
        self._ray.shutdown()
