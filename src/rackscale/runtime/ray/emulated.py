"""A Ray cluster of our own on this machine: a head, and one Ray node per instance, started when first needed.

It outlives the controller: `SITE/.rackscale/ray/head.json` says where it is. Its sockets and logs lie in a private
folder under /tmp, because the path of a socket may have 107 bytes only and a site's may be longer. Ray listens on all
interfaces, so that nobody gets in without the token in `SITE/.rackscale/ray/token`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # a compiled module

from rackscale.errors import ExecutorError
from rackscale.programs import processes
from rackscale.programs.attempt import Claim
from rackscale.runtime.launcher import NodeRef
from rackscale.runtime.local import SMALL, lives
from rackscale.runtime.ray.cluster import JoinedCluster, RayNode, entries, labels
from rackscale.runtime.ray.marks import HEAD, MARK, end, mark, of_node, of_site, stop, temp_of

START_S = 60.0
"""How long `ray start` may take."""
STORE_BYTES = 80_000_000
"""Of a node's object store, about the least that Ray accepts: nothing of ours goes through it."""
HEAD_ADDRESS, NODE_ADDRESS = "127.0.0.2", "127.0.0.3"
"""Two, so that the controller attaches to the head's raylet and never to one that may be killed. Not 127.0.0.1: Ray
would take this machine's outer address instead, which may change or be missing."""
BIRTH = "rackscale/birth"
HEALTH = {
    # A dead raylet refuses the connection: seen after 3 checks, about 1 s. A hung one: after 3 that time out, 6 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # when memory runs out, our agents are the wrong ones to kill
    "RAY_worker_niceness": "0",  # what agents start is the work itself, not a helper that may wait
    "RAY_enable_metrics_collection": "0",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where the head is, and the process that tells whether it lives."""

    address: str
    gcs: Claim


class EmulatedCluster(JoinedCluster):
    """Starts and ends its own nodes."""

    detection_s = 3.0

    def __init__(self, site: Path, *, repair_s: float) -> None:
        """`repair_s`: seconds until the node of a killed instance can be used again."""
        super().__init__(site, "")
        self.repair_s = repair_s
        self._folder = site / ".rackscale" / "ray"
        self._temp = temp_of(site)
        self._head: Head | None = None

    # -- the head ----------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        self._head = self._find_head() or self._start_head()
        self._address = self._head.address
        os.environ |= self._access()
        # Ray reads both once per process, which may have known another cluster before.
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        self._attach(HEAD_ADDRESS)

    def check(self) -> set[NodeRef]:
        if self._head is None or not lives(self._head.gcs):
            raise ExecutorError("the Ray head of this site has died", hint="start the controller again")
        return set()  # nodes that are not there yet are started when they are needed

    def _find_head(self) -> Head | None:
        try:
            record = json.loads((self._folder / "head.json").read_bytes())
        except FileNotFoundError:
            return None
        head = Head(address=record["address"], gcs=Claim(**record["gcs"]))
        return head if lives(head.gcs) else None

    def _start_head(self) -> Head:
        end(lambda: of_site(self._site))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_temp()
        token = self._folder / "token"
        token.unlink(missing_ok=True)
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32))
        temp = self._temp / HEAD
        options = ["--head", "--port=0", "--include-dashboard=false", "--no-monitor", *_client_port()]
        self._ray_start(HEAD, temp, HEAD_ADDRESS, options)
        address = (temp / "ray_current_cluster").read_text().strip()
        head = Head(address=address, gcs=_find_gcs(of_node(self._site, HEAD)))
        draft = self._folder / "head.json.draft"
        draft.write_text(json.dumps(asdict(head)))
        draft.replace(self._folder / "head.json")
        return head

    def _make_temp(self) -> None:
        """Anybody may write to /tmp: refuse a folder that somebody else has put there."""
        self._temp.mkdir(mode=0o700, exist_ok=True)
        found = self._temp.lstat()
        if self._temp.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ExecutorError(f"{self._temp} is not ours alone", hint="remove it")

    def stop(self) -> None:
        """End the cluster and all that runs on it; also where no controller is connected."""
        self.disconnect()
        stop(self._site)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def bring_up(self, ref: NodeRef) -> RayNode:
        if (found := self.find(ref)) is not None:
            return found
        end(lambda: of_node(self._site, ref))
        spec = self._domains[ref.domain]
        temp = self._temp / f"{list(self._domains).index(ref.domain)}-{ref.node}"
        shutil.rmtree(temp, ignore_errors=True)
        birth = secrets.token_hex(4)
        told = ",".join(f"{key}={value}" for key, value in (labels(spec, ref.node) | {BIRTH: birth}).items())
        self._ray_start(ref, temp, NODE_ADDRESS, [f"--address={self._address}", f"--labels={told}"])
        for entry in entries():
            if entry["Labels"].get(BIRTH) == birth:
                return RayNode(entry["NodeID"], entry["NodeManagerAddress"], 0.0)
        raise ExecutorError(f"{ref.domain}/n{ref.node:02d}: its Ray node died at once; logs in {temp}")

    def find(self, ref: NodeRef) -> RayNode | None:
        # Ray may not have noticed yet that the node was killed.
        return None if self.deserted(ref) else super().find(ref)

    def _host(self, node: RayNode) -> str:  # noqa: ARG002
        return "127.0.0.1"

    def deserted(self, ref: NodeRef) -> bool:
        return not of_node(self._site, ref)

    def bury(self, ref: NodeRef, agent: Any) -> None:  # noqa: ARG002
        end(lambda: of_node(self._site, ref))

    def _ray_start(self, part: NodeRef | str, temp: Path, address: str, options: list[str]) -> None:
        """Run `ray start` in a session of its own, which the daemons that it leaves behind inherit: Ctrl-C is not
        for them. Raises ExecutorError if it fails."""
        argv = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *options, f"--node-ip-address={address}",
            f"--temp-dir={temp}", "--num-cpus=0", "--num-gpus=0", f"--object-store-memory={STORE_BYTES}",
            "--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false", "--disable-usage-stats",
        ]  # fmt: skip
        env = SMALL | os.environ | self._access() | HEALTH | QUIET | {MARK: mark(self._site, part)}
        try:
            done = subprocess.run(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, timeout=START_S, text=True, check=False, cwd=self._temp,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            end(lambda: of_node(self._site, part))
            raise ExecutorError(f"ray start takes longer than {START_S:.0f} s; logs in {temp}") from None
        if done.returncode != 0:
            end(lambda: of_node(self._site, part))
            last = done.stdout.strip().rpartition("\n")[2]
            raise ExecutorError(f"ray start failed: {last}; logs in {temp}")

    def _access(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._folder / "token")}


def _find_gcs(pids: list[int]) -> Claim:
    for pid in pids:
        found = processes.find(pid)
        comm = Path(f"/proc/{pid}/comm")
        if found is not None and comm.exists() and comm.read_text().strip() == "gcs_server":
            return Claim(pid=pid, started_ticks=found.started_ticks, boot=processes.boot_id())
    raise ExecutorError("the Ray head died at once")


def _client_port() -> list[str]:
    """Where grpcio is installed, a head also serves Ray clients, on a port that only one head can have."""
    if find_spec("grpc") is None:
        return []
    return [f"--ray-client-server-port={20_000 + secrets.randbelow(12_000)}"]
