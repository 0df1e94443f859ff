"""A Ray cluster as rackscale sees it: nodes known by their labels, and an agent on each node that is used.

    ray start --address=HEAD --labels="rackscale/cluster=use1-a,rackscale/domain=us-007,rackscale/node=3"

The domain label is the last part of the domain's name (`use1-a/us-007`); a label can't hold a slash.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rackscale.errors import ExecutorError
from rackscale.events import DomainSpec
from rackscale.runtime.launcher import NodeRef
from rackscale.runtime.ray.agent import Agent
from rackscale.runtime.ray.marks import mark, site_id

CLUSTER, DOMAIN, NODE, REGION = (f"rackscale/{kind}" for kind in ("cluster", "domain", "node", "region"))
REACH_S = 5.0
HIRE_S = 60.0
"""How long an agent may take to answer for the first time: a Python process must start, on a busy machine."""


class RayNode(NamedTuple):
    """A Ray node that lives and carries the labels of one of our nodes."""

    ray_id: str
    address: str
    gpus: float


def labels(spec: DomainSpec, node: int) -> dict[str, str]:
    """What a Ray node must be labelled with to be this node."""
    named = {
        CLUSTER: spec.cluster,
        DOMAIN: spec.name.rsplit("/", 1)[-1],
        NODE: str(node),
        REGION: spec.region,
    }
    return {key: value for key, value in named.items() if value}


class JoinedCluster:
    """A cluster that exists and belongs to somebody: its nodes are used, never started or stopped.

    Methods may be called from several threads.
    """

    detection_s = 7.0
    """The cluster's own health checks are its owner's; an agent that is silent for this long is lost anyway."""
    repair_s = 2.0
    """How often to look whether a lost node is back."""

    def __init__(self, site: Path, address: str) -> None:
        self._site, self._address = site, address
        self._domains: dict[str, DomainSpec] = {}
        self._attached, self._checked = False, False

    def connect(self) -> None:
        """Become a driver of the cluster. Blocks. Raises ExecutorError if there is none."""
        self._attach(None)

    def _attach(self, node_address: str | None) -> None:
        attach(self._address, namespace=f"rackscale-{site_id(self._site)}", node_address=node_address)
        self._attached = True

    def add_domains(self, domains: Sequence[DomainSpec]) -> None:
        self._domains |= {spec.name: spec for spec in domains}

    def check(self) -> set[NodeRef]:
        """Nodes that are not there. Blocks. Raises ExecutorError if the cluster is gone; the first time also if it
        can't be this fleet."""
        found = self._labelled()
        if not self._checked:
            self._validate([ref for ref, _ in found])
            self._checked = True
        there = {ref for ref, _ in found}
        return {
            NodeRef(spec.name, node) for spec in self._domains.values() for node in range(spec.nodes)
        } - there

    def _validate(self, found: list[NodeRef]) -> None:
        for ref in found:
            if found.count(ref) > 1:
                raise ExecutorError(f"two live Ray nodes are labelled {ref.domain}/n{ref.node:02d}")
        if not found:
            spec = next(iter(self._domains.values()))
            wanted = ",".join(f"{key}={value}" for key, value in labels(spec, 0).items())
            raise ExecutorError(
                f"no live Ray node of {self._address} is labelled as a node of {spec.name}, or of another domain",
                hint=f'start its nodes with: ray start --address=... --labels="{wanted}" and so on',
            )

    def find(self, ref: NodeRef) -> RayNode | None:
        """The node, if it lives."""
        return dict(self._labelled()).get(ref)

    def _labelled(self) -> list[tuple[NodeRef, RayNode]]:
        known = {(spec.cluster, spec.name.rsplit("/", 1)[-1]): spec for spec in self._domains.values()}
        found = []
        for entry in entries():
            told = entry["Labels"]
            spec = known.get((told.get(CLUSTER, ""), told.get(DOMAIN, "")))
            number = told.get(NODE, "")
            if not entry["Alive"] or spec is None or not number.isdecimal() or int(number) >= spec.nodes:
                continue
            gpus = entry["Resources"].get("GPU", 0.0)
            node = RayNode(entry["NodeID"], entry["NodeManagerAddress"], gpus)
            found.append((NodeRef(spec.name, int(number)), node))
        return found

    def bring_up(self, ref: NodeRef) -> RayNode:
        """The node, started if it is ours to start. Blocks. Raises ExecutorError if it can't be had."""
        found = self.find(ref)
        if found is None:
            raise ExecutorError(f"no live Ray node is labelled {ref.domain}/n{ref.node:02d}")
        return found

    def hire(self, ref: NodeRef, node: RayNode) -> Any:
        """The node's agent, started if there is none; it has answered. Blocks.

        It holds the node's GPUs, so that other users of the cluster see that they are taken.
        Raises ExecutorError if there is no answer.
        """
        try:
            agent = self._agent(ref, node)
            ray.get(agent.ping.remote(), timeout=HIRE_S)
        except ray.exceptions.GetTimeoutError:
            ray.kill(agent)
            raise ExecutorError(
                f"{ref.domain}/n{ref.node:02d}: no agent started within {HIRE_S:.0f} s",
                hint="does something else hold GPUs of that Ray node?" if node.gpus else None,
            ) from None
        except (ray.exceptions.RayError, ValueError) as error:
            raise ExecutorError(
                f"{ref.domain}/n{ref.node:02d}: no agent can run there: {_first_line(error)}",
                hint="the same version of rackscale must be installed on every Ray node",
            ) from error
        return agent

    def _agent(self, ref: NodeRef, node: RayNode) -> Any:
        return (
            ray.remote(Agent)
            .options(
                name=f"agent-{node.ray_id}",
                get_if_exists=True,
                lifetime="detached",
                max_restarts=0,
                num_cpus=0,
                num_gpus=node.gpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.ray_id, soft=False),
            )
            .remote(self._host(node), mark(self._site, ref))
        )

    def _host(self, node: RayNode) -> str:
        return node.address

    def deserted(self, ref: NodeRef) -> bool:  # noqa: ARG002
        """Whether it is certain that nothing runs on the node."""
        return False

    def bury(self, ref: NodeRef, agent: Any) -> None:  # noqa: ARG002
        """The node counts as dead: end what may go on there, as far as it can be reached."""
        if agent is not None:
            ray.kill(agent)

    def disconnect(self) -> None:
        if self._attached:
            self._attached = False
            ray.shutdown()

    def stop(self) -> None:
        """End our agents, and with them what they started; leave the cluster to its owner."""
        if not self._attached:
            self.connect()
        for name in ray.util.list_named_actors():
            ray.kill(ray.get_actor(name))
        self.disconnect()


def attach(address: str, *, namespace: str, node_address: str | None) -> None:
    """Make this process a driver, from the Ray node of this machine at `node_address`, or from any.

    Raises ExecutorError if that is not possible.
    """
    if ray.is_initialized():
        raise ExecutorError("this process is already connected to a Ray cluster")
    try:
        if address != "auto":  # Ray itself would try for a minute
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=REACH_S).close()
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=node_address,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ExecutorError(f"can't join the Ray cluster at {address}: {_first_line(error)}") from error


def entries() -> list[dict[str, Any]]:
    """Every Ray node that the cluster has known. Raises ExecutorError if the cluster does not answer."""
    try:
        return list(ray.nodes())  # type: ignore[no-untyped-call]
    except ray.exceptions.RayError as error:
        raise ExecutorError(f"the Ray cluster does not answer: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
