"""What lies in the folder of one attempt of a gang: how the instances and the controller tell each other things.

The folder is on storage that all nodes of the gang share, and private to its owner (0700).

    spec-N.json       what node rank N runs (`InstanceSpec`), written before the instance starts
    claim-N.json      who runs it (`Claim`); made once. A second process that finds it leaves: nothing starts twice
    rendezvous.json   where the ranks meet (`Rendezvous`), made by node rank 0 on its own host
    up-N              setup is done and the ranks of node rank N were started
    leave.json        the request to checkpoint and leave (`Leave`); SIGTERM makes the instance look
    killed.json       the instances that the controller itself killed (`Killed`), written before it does
    exit-N.json       how it ended (`Exit`), written when none of its processes is left
    setup-N.log, rank-R.log, rank-R.jsonl     output and heartbeats
    instance-N.log    what the instance program itself has to say: nothing, unless it breaks

Only the standard library is imported, and little of it: this lies in the path of every restart.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rackscale.programs.contract import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What one instance runs. The user's scripts and variables may hold secrets: they are not in `repr`."""

    gang: str
    job: str
    attempt: int
    node_rank: int
    nodes: int
    ranks_per_node: int
    started_s: float
    """When the attempt was decided, by the journal: tells it from one of the same number in an earlier journal."""
    domain: str
    node: int
    """Number of the node within its domain."""
    run: str = field(repr=False)
    setup: str = field(default="", repr=False)
    envs: dict[str, str] = field(default_factory=dict, repr=False)
    workdir: str
    folder: str
    """The attempt's folder; absolute."""
    checkpoint_dir: str
    output_dir: str
    service: bool = False
    """Whether the ranks are given a port to listen on."""
    grace_s: float = 30.0
    """Seconds between SIGTERM and SIGKILL where leave.json says nothing else."""
    host: str = "127.0.0.1"
    """The address under which the other instances reach this one."""
    die_with_parent: bool = False
    """Whether the instance dies with the process that started it (an agent that stands for the node)."""

    def file(self, kind: str) -> Path:
        return Path(self.folder, f"{kind}-{self.node_rank}.json")

    @property
    def up(self) -> Path:
        return Path(self.folder, f"up-{self.node_rank}")

    @property
    def log(self) -> Path:
        return Path(self.folder, f"instance-{self.node_rank}.log")

    @property
    def ranks(self) -> range:
        first = self.node_rank * self.ranks_per_node
        return range(first, first + self.ranks_per_node)

    @property
    def node_name(self) -> str:
        return f"{self.domain}/n{self.node:02d}"

    def worker(self, rank: int, rendezvous: Rendezvous) -> Worker:
        """The contract of one of this instance's ranks."""
        return Worker(
            rank=rank, local_rank=rank - self.ranks.start, world_size=self.nodes * self.ranks_per_node,
            local_world_size=self.ranks_per_node, group_rank=self.node_rank, group_world_size=self.nodes,
            master_addr=rendezvous.host, master_port=rendezvous.master_port, job=self.job, gang=self.gang,
            attempt=self.attempt, domain=self.domain, node=self.node_name, checkpoint_dir=Path(self.checkpoint_dir),
            output_dir=Path(self.output_dir), heartbeat_file=heartbeat_file(Path(self.folder), rank),
            port=rendezvous.port,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The one process that runs a spec; pid 0: nobody ever will."""

    pid: int
    started_ticks: int = 0
    """Start of the process since boot in clock ticks: with `boot`, what tells it from a later one of that pid."""
    boot: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    host: str
    master_port: int
    port: int | None
    """The port that a service listens on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    at_s: float
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    nodes: list[int]
    """Node ranks."""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How an instance ended."""

    at_s: float
    code: int = 0
    """0, or that of the first rank (or setup) that failed; 128 + n: killed by signal n."""
    rank: int | None = None
    """The rank that failed first; None: none did, or setup failed."""
    log: str = ""
    """The log of what failed."""
    asked: bool = False
    """Whether it was asked to leave before it ended."""
    late: bool = False
    """Whether something had to be killed after the grace period."""


Record = InstanceSpec | Claim | Rendezvous | Leave | Killed | Exit


def heartbeat_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.jsonl"


def write(path: Path, value: Record) -> None:
    """Write a record whole or not at all."""
    _temporary(path, value).replace(path)


def _temporary(path: Path, value: Record) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(asdict(value), stream)
    return draft


def read_spec(path: Path) -> InstanceSpec:
    return InstanceSpec(**json.loads(path.read_bytes()))


def read_claim(spec: InstanceSpec) -> Claim | None:
    record = _read(spec.file("claim"))
    return None if record is None else Claim(**record)


def read_exit(spec: InstanceSpec) -> Exit | None:
    record = _read(spec.file("exit"))
    return None if record is None else Exit(**record)


def read_rendezvous(folder: Path) -> Rendezvous | None:
    record = _read(folder / "rendezvous.json")
    return None if record is None else Rendezvous(**record)


def read_leave(folder: Path) -> Leave | None:
    record = _read(folder / "leave.json")
    return None if record is None else Leave(**record)


def read_killed(folder: Path) -> Killed | None:
    record = _read(folder / "killed.json")
    return None if record is None else Killed(**record)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None


def claim(spec: InstanceSpec, value: Claim) -> bool:
    """Make the claim; False if there is one. Linking makes it appear whole and at most once."""
    draft = _temporary(spec.file("claim"), value)
    try:
        spec.file("claim").hardlink_to(draft)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def revoke(spec: InstanceSpec) -> bool:
    """Make sure that the instance never starts; False if it already did."""
    return claim(spec, Claim(pid=0))


def revoked(spec: InstanceSpec) -> bool:
    """Whether it was made sure that the instance never starts."""
    found = read_claim(spec)
    return found is not None and found.pid == 0
