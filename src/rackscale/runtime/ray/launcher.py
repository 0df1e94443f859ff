"""Instances on Ray nodes. The launcher never waits for Ray: what Ray answers arrives as mail and is read between steps.

node      not there -> coming (a thread starts it and hires its agent) -> up -> lost
lost      Ray says that the agent died, or its node; or the agent has not answered for `SILENT_S`
instance  there until its agent says that it ended, or its node is lost
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError

from rackscale.errors import ExecutorError
from rackscale.events import DomainSpec
from rackscale.programs import attempt
from rackscale.programs.attempt import InstanceSpec
from rackscale.runtime.launcher import NodeChange, NodeRef
from rackscale.runtime.ray.cluster import JoinedCluster

PARALLEL = 4
"""Nodes that are started at once: each start is two seconds of a core."""
PING_S = 1.0
SILENT_S = 6.0
"""An agent that does not answer for so long is lost. Assumed: far beyond what a busy machine delays an answer."""
CHECK_S = 1.0
"""Between two looks at the cluster as a whole."""
PAUSED_S = 2.0
"""If we ourselves did not listen for this long, nobody else's silence means anything."""

logger = logging.getLogger(__name__)
Key = tuple[str, int]


Call = Callable[[Any], Any]
"""Given an agent, asks it something. Safe to repeat, all of them: an answer may be lost on its way."""
Then = Callable[[Any], None]


@dataclass(slots=True, kw_only=True)
class _Host:
    """One node that we have to do with. `agent` None: it is coming. Times are monotonic."""

    agent: Any = None
    waiting: list[InstanceSpec] = field(default_factory=list)
    """Instances to start when it is up."""
    again: list[tuple[Call, Then]] = field(default_factory=list)
    """What was asked when the connection broke."""
    ended: int = 0
    """How many ends its agent has told us."""
    listening: bool = False
    """Whether the agent was asked for more ends."""
    pinging: bool = False
    pinged_s: float = 0.0
    answered_s: float = 0.0


class RayLauncher:
    """Implements `launcher.Launcher` on a cluster of Ray nodes."""

    def __init__(self, cluster: JoinedCluster) -> None:
        self.detection_s = cluster.detection_s
        self._cluster = cluster
        self._domains: dict[str, DomainSpec] = {}
        self._hosts: dict[NodeRef, _Host] = {}
        self._there: dict[Key, InstanceSpec] = {}
        self._doomed: set[Key] = set()
        """Killed by us: their end says nothing about their node."""
        self._repairs: dict[NodeRef, float] = {}
        """Nodes that are down, and when (epoch) to bring them back; infinite while that is under way."""
        self._changes: list[NodeChange] = []
        self._cold: set[str] = set()
        """Domains where a gang was started and the spares may not be up yet."""
        self._mail: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._rang = threading.Event()
        self._starters = ThreadPoolExecutor(PARALLEL, thread_name_prefix="ray-node")
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="ray-cluster")
        self._connected = self._checker.submit(cluster.connect)
        self._checking: Future[set[NodeRef]] | None = None
        self._checked_s = 0.0
        self._gone = False
        """Whether the last look found no cluster."""
        self._listened_s = time.monotonic()

    def connected(self) -> None:
        """Wait until we are connected to the cluster. Raises ExecutorError if that fails."""
        self._connected.result()

    def add_domains(self, domains: Sequence[DomainSpec]) -> None:
        self._domains |= {spec.name: spec for spec in domains}
        self._cluster.add_domains(domains)

    # -- instances ---------------------------------------------------------------------------------------------------

    def start(self, spec: InstanceSpec) -> None:
        ref = _ref(spec)
        found = attempt.read_claim(spec)
        if found is not None and (found.pid == 0 or self._cluster.deserted(ref)):
            return  # it never ran, or died with its node while no controller looked
        self._there[_key(spec)] = spec
        host = self._hosts.get(ref)
        if host is None:
            host = self._summon(ref)
        if host.agent is None:
            host.waiting.append(spec)
        else:
            self._send(ref, host, spec)
        self._cold.add(ref.domain)

    def _send(self, ref: NodeRef, host: _Host, spec: InstanceSpec) -> None:
        self._ask(ref, host, lambda agent: agent.start.remote(_path(spec)))

    def alive(self, spec: InstanceSpec) -> bool:
        self._listen()
        host = self._hosts.get(_ref(spec))
        if host is not None and spec in host.waiting and attempt.revoked(spec):
            host.waiting.remove(spec)  # no need to wait for its node
            self._forget([spec])
        return _key(spec) in self._there

    def terminate(self, spec: InstanceSpec) -> None:
        ref = _ref(spec)
        host = self._hosts.get(ref)
        if host is not None and host.agent is not None:
            self._ask(ref, host, lambda agent: agent.terminate.remote(_path(spec)))

    def kill(self, specs: Sequence[InstanceSpec]) -> None:
        self._doomed |= {_key(spec) for spec in specs} & self._there.keys()
        paths: dict[NodeRef, list[str]] = {}
        for spec in specs:
            paths.setdefault(_ref(spec), []).append(_path(spec))
        for ref, here in paths.items():
            # No host: it was lost, and buried. No agent: those that wait are killed when there is one.
            if (host := self._hosts.get(ref)) is not None and host.agent is not None:
                self._ask(ref, host, partial(_kill, here))

    # -- nodes -------------------------------------------------------------------------------------------------------

    def repair(self, node: NodeRef, now_s: float) -> None:
        self._repairs.setdefault(node, now_s + self._cluster.repair_s)

    def node_changes(self, now_s: float) -> Sequence[NodeChange]:
        self._listen()
        for ref, at_s in list(self._repairs.items()):
            if at_s <= now_s:
                self._repairs[ref] = float("inf")
                if ref not in self._hosts:
                    self._summon(ref)
                elif self._hosts[ref].agent is not None:
                    self._repaired(ref)
        changes, self._changes = self._changes, []
        return changes

    def wait(self, timeout_s: float) -> None:
        if self._mail.empty():
            self._rang.wait(timeout_s)
        self._rang.clear()

    def close(self) -> None:
        # Without its head Ray answers no call for a minute, and ends this process if we disconnect meanwhile.
        stuck = self._gone and any(host.agent is None for host in self._hosts.values())
        for pool in (self._starters, self._checker):
            pool.shutdown(wait=not stuck, cancel_futures=True)
        if not stuck:
            self._cluster.disconnect()

    def shutdown(self) -> None:
        """End our part of the cluster, and with it every instance."""
        self.close()
        self._cluster.stop()

    def _summon(self, ref: NodeRef) -> _Host:
        """Have the node brought up, if it is ours to start, and its agent hired."""
        host = self._hosts[ref] = _Host()
        coming = self._starters.submit(self._bring_up, ref)
        coming.add_done_callback(lambda done: self._post(lambda: self._arrived(ref, host, done)))
        return host

    def _bring_up(self, ref: NodeRef) -> Any:
        self.connected()
        return self._cluster.hire(ref, self._cluster.bring_up(ref))

    def _arrived(self, ref: NodeRef, host: _Host, done: Future[Any]) -> None:
        if done.cancelled():
            return
        try:
            host.agent = done.result()
        except ExecutorError as error:
            self._lose(ref, host, str(error))
            return
        host.answered_s = time.monotonic()
        waiting, host.waiting = host.waiting, []
        for spec in waiting:
            self._send(ref, host, spec)
            if _key(spec) in self._doomed:
                self.kill([spec])
        if ref in self._repairs:
            self._repaired(ref)

    def _repaired(self, ref: NodeRef) -> None:
        del self._repairs[ref]
        self._changes.append(NodeChange(node=ref, usable=True))

    def _lose(self, ref: NodeRef, host: _Host, cause: str) -> None:
        """The node counts as dead from now on, and so does all that ran there."""
        if self._hosts.get(ref) is not host:
            return
        del self._hosts[ref]
        # A node that is missing stays so for long: say it once.
        level = logging.DEBUG if ref in self._repairs else logging.WARNING
        logger.log(level, "%s/n%02d is lost: %s", ref.domain, ref.node, cause)
        self._cluster.bury(ref, host.agent)
        gone = [spec for spec in self._there.values() if _ref(spec) == ref]
        # The supervisor of a gang tells of the nodes that died under it; nobody else tells of the others.
        told = any(_key(spec) not in self._doomed and not attempt.revoked(spec) for spec in gone)
        self._forget(gone)
        if ref in self._repairs:
            self._repairs[ref] = time.time() + self._cluster.repair_s
        elif not told:
            self._changes.append(NodeChange(node=ref, usable=False, cause=cause))

    def _forget(self, gone: Sequence[InstanceSpec]) -> None:
        for spec in gone:
            del self._there[_key(spec)]
            self._doomed.discard(_key(spec))

    def _warm(self) -> None:
        """Have the nodes ready that the scheduler would take as spares: a failure must not wait for `ray start`.
        Not before the nodes that gangs wait for."""
        if not self._cold or any(host.agent is None for host in self._hosts.values()):
            return
        for domain in sorted(self._cold):
            spec = self._domains[domain]
            busy = {_ref(there).node for there in self._there.values() if there.domain == domain}
            idle = [node for node in range(spec.nodes) if node not in busy]
            for node in idle[: spec.spares]:
                ref = NodeRef(domain, node)
                if ref not in self._hosts and ref not in self._repairs:
                    self._summon(ref)
        self._cold.clear()

    # -- mail --------------------------------------------------------------------------------------------------------

    def _post(self, message: Callable[[], None]) -> None:
        """Called from any thread."""
        self._mail.put(message)
        self._rang.set()

    def _listen(self) -> None:
        """Read what has arrived, and ask again where somebody should answer. Raises ExecutorError if the cluster is
        gone."""
        while True:
            try:
                message = self._mail.get_nowait()
            except Empty:
                break
            message()
        now_s = time.monotonic()
        paused_s, self._listened_s = now_s - self._listened_s, now_s
        self._check(now_s)
        self._warm()
        for ref, host in list(self._hosts.items()):
            if host.agent is not None:
                if paused_s > PAUSED_S:
                    host.answered_s = now_s
                self._attend(ref, host, now_s)

    def _attend(self, ref: NodeRef, host: _Host, now_s: float) -> None:
        if now_s - host.answered_s >= SILENT_S:
            self._lose(ref, host, f"its agent has not answered for {SILENT_S:.0f} s")
            return
        if not host.listening:
            host.listening = True
            known = host.ended
            self._ask(ref, host, lambda agent: agent.gone.remote(known), partial(self._ended, host))
        if not host.pinging and now_s - host.pinged_s >= PING_S:
            host.pinging, host.pinged_s = True, now_s
            self._ask(ref, host, lambda agent: agent.ping.remote(), lambda _: self._ponged(ref, host))

    def _ask(self, ref: NodeRef, host: _Host, call: Call, then: Then = lambda _: None) -> None:
        """`then` gets what the agent answers; if it can't answer any more, its node is lost."""
        answer = call(host.agent).future()
        answer.add_done_callback(lambda done: self._post(lambda: self._take(ref, host, done, (call, then))))

    def _take(self, ref: NodeRef, host: _Host, done: Future[Any], asked: tuple[Call, Then]) -> None:
        if self._hosts.get(ref) is not host:
            return
        error = done.exception()
        if error is None:
            asked[1](done.result())
        elif isinstance(error, ActorUnavailableError):
            # The connection broke: either the agent answers again, or it is lost for its silence.
            host.pinging = False
            host.again.append(asked)
        elif isinstance(error, RayActorError):
            self._lose(ref, host, "its Ray node died")
        else:
            # The agent itself failed, because it can't read the attempt's folder for example.
            self._lose(ref, host, str(error).strip().rpartition("\n")[2])

    def _ended(self, host: _Host, paths: list[str]) -> None:
        host.listening = False
        host.ended += len(paths)
        self._forget([spec for spec in self._there.values() if _path(spec) in set(paths)])

    def _ponged(self, ref: NodeRef, host: _Host) -> None:
        host.pinging, host.answered_s = False, time.monotonic()
        again, host.again = host.again, []
        for call, then in again:
            self._ask(ref, host, call, then)

    def _check(self, now_s: float) -> None:
        """Look after the cluster as a whole, without waiting for it."""
        if not self._connected.done():
            return
        self._connected.result()
        if self._checking is None:
            if self._domains and now_s - self._checked_s >= CHECK_S:
                self._checking = self._checker.submit(self._cluster.check)
        elif self._checking.done():
            checking, self._checking, self._checked_s = self._checking, None, now_s
            self._gone = checking.exception() is not None
            absent = checking.result()
            for ref in absent - self._hosts.keys() - self._repairs.keys():
                self.repair(ref, time.time())
                self._changes.append(
                    NodeChange(node=ref, usable=False, cause="no live Ray node has its labels")
                )


def _kill(paths: list[str], agent: Any) -> Any:
    return agent.kill.remote(paths)


def _key(spec: InstanceSpec) -> Key:
    return spec.folder, spec.node_rank


def _ref(spec: InstanceSpec) -> NodeRef:
    return NodeRef(spec.domain, spec.node)


def _path(spec: InstanceSpec) -> str:
    return str(spec.file("spec"))
