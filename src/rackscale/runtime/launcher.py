"""The seam between what a gang's life is (`supervisor`) and where its instances run (`local`, Ray, Slurm).

A launcher starts `rackscale.programs.instance` on a node and knows whether it still lives. It decides nothing: what
an instance did is read from the files that it leaves in the attempt's folder, which every node sees.

    Dead or done?  `alive` says no and exit-N.json exists -> it ended, with that code
                   `alive` says no and there is none      -> it died, and so did its node
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from rackscale.events import DomainSpec
from rackscale.programs import instance
from rackscale.programs.attempt import InstanceSpec

__all__ = ["InstanceSpec", "Launcher", "NodeChange", "NodeRef", "command"]


class NodeRef(NamedTuple):
    """One node of one NVLink domain."""

    domain: str
    node: int


class NodeChange(Struct, frozen=True, kw_only=True):
    """A node that the launcher itself saw die (`usable` False) or that can be used again."""

    node: NodeRef
    usable: bool
    cause: str = ""


def command(spec: InstanceSpec) -> list[str]:
    """The command that runs an instance; its spec already lies in the attempt's folder. Takes about 50 ms.

    -P: nothing in the current folder may stand in for a module.
    """
    return [sys.executable, "-P", "-m", instance.__name__, str(spec.file("spec"))]


class Launcher(Protocol):
    """Starts, watches and ends instances. One launcher serves all gangs of an executor, from one thread."""

    detection_s: float
    """How long after a node's death `alive` may still say yes. A failed rank is blamed on the program only when no
    node of the gang turned out dead within this time, for ranks also fail because another node went away."""

    def add_domains(self, domains: Sequence[DomainSpec]) -> None:
        """These domains exist; told again after a restart of the controller. Nodes may be started lazily."""

    def start(self, spec: InstanceSpec) -> None:
        """Run `command(spec)` on (spec.domain, spec.node), or adopt it where it has claimed its spec already.

        Always called before the other methods ask about `spec`. Need not make sure that it happens once: an instance
        that finds claim-N.json leaves again without doing anything. `host` and `die_with_parent` are the launcher's to
        change: write the changed spec over spec-N.json before the instance starts.
        """

    def alive(self, spec: InstanceSpec) -> bool:
        """Whether the instance may still do something. False for good once it is gone, or once its node is.

        Where files of other nodes show up late, False only when an exit-N.json would be seen by now.
        """

    def terminate(self, spec: InstanceSpec) -> None:
        """SIGTERM to the instance program (not to its group): it passes the request on to its ranks.

        The grace period is the instance's own affair; leave.json is there before this is called.
        """

    def kill(self, specs: Sequence[InstanceSpec]) -> None:
        """SIGKILL to the process groups of these instances and to all else that they started; also to what is left
        of dead ones. Those that never claimed their spec can't any more."""

    def repair(self, node: NodeRef, now_s: float) -> None:
        """The node died under a gang; bring it back and say so in `node_changes`. Also called again for nodes that
        were failed when the controller was restarted."""

    def node_changes(self, now_s: float) -> Sequence[NodeChange]:
        """Nodes that died though nothing ran there, and nodes that came back, since the last call."""

    def wait(self, timeout_s: float) -> None:
        """Sleep; return at once when an instance or a node dies, as far as the launcher can tell."""

    def close(self) -> None:
        """Let go of handles; instances go on."""
