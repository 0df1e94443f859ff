"""Serve a model over OpenAI's HTTP API: `python -m rackscale.programs.serve`, once per rank.

Rank 0 starts an engine (`engines.py`) as its child, has it answer real requests before it says "ready", watches its
health, and ends when it does. The endpoint is the engine's own: no request passes through this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import http.client
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rackscale.errors import ExecutorError, RackscaleError
from rackscale.programs import contract, engines
from rackscale.programs.contract import LEFT, Heartbeat, Worker
from rackscale.programs.engines import AUTO, ENGINES, Endpoint, Engine
from rackscale.programs.instance import PR_SET_PDEATHSIG, prctl

EXAMPLES = f"""\
engines:
  vllm           Hugging Face folders, for GPUs in production: pip install 'rackscale[vllm]'
  transformers   Hugging Face folders, anywhere torch runs:    pip install 'rackscale[serve]'
  llamacpp       GGUF files:                                   pip install 'rackscale[llamacpp]'
  auto           the first of these that is installed and serves the model's format

examples:
  a folder, on a free port:
    python -m rackscale.programs.serve --model out/model
  what the job tiny-llama exported, under a name of its own:
    python -m rackscale.programs.serve --model job:tiny-llama --name chat --port 8000
  vLLM, with arguments of its own after --:
    python -m rackscale.programs.serve --model /models/llama-3.1-70b --engine vllm \\
        --max-model-len 8192 -- --tensor-parallel-size 4 --enable-prefix-caching
  llama.cpp, with parameters of its own after --:
    python -m rackscale.programs.serve --model smollm2.gguf -- n_parallel=8 cpuparams.n_threads=2

Then, with the URL and the name that it prints:
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{{"model": "chat", "messages": [{{"role": "user", "content": "Hello"}}], "stream": true}}'

Nothing is fetched from a hub. SIGTERM ends the engine after the requests that it is
answering, and the status is {LEFT}; an engine that dies or hangs is status 1.
"""

FAILED = 1
TORCHRUN = frozenset(
    {
        contract.RANK,
        contract.LOCAL_RANK,
        contract.WORLD_SIZE,
        contract.LOCAL_WORLD_SIZE,
        contract.GROUP_RANK,
        contract.GROUP_WORLD_SIZE,
        contract.MASTER_ADDR,
        contract.MASTER_PORT,
        contract.RESTART_COUNT,
        contract.RUN_ID,
    }
)
JOB_PREFIX = "job:"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

BEAT_S = 1.0
"""Between two looks at the engine's health, and two heartbeats."""
ASK_S = 5.0
"""How long one look may take."""
POLL_S = 0.1
"""Between two looks at an engine that is starting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds before this program stops waiting. All assumed."""

    start_s: float = 1800.0
    """From the engine's start to its first answer: the largest models load for many minutes."""
    hang_s: float = 60.0
    """Without a sign of health, before a running engine counts as hung."""
    drain_s: float = 20.0
    """For the requests that are being answered when we are asked to leave; below a gang's grace period (30 s)."""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        worker = Worker.from_environ()
        arguments = _parser().parse_args(argv)
        heartbeat = Heartbeat(worker.heartbeat_file)
        if worker.rank != 0:
            return stand_by(worker.rank, heartbeat)
        engine, endpoint = prepare(arguments, worker)
        patience = Patience(start_s=arguments.start_s, hang_s=arguments.hang_s, drain_s=arguments.drain_s)
        return asyncio.run(Service(engine, endpoint, heartbeat, patience).run())
    except RackscaleError as error:
        print(f"serve: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2


def stand_by(rank: int, heartbeat: Heartbeat) -> int:
    """Wait to be asked to leave. These ranks are reserved for engines that span nodes, which none does yet."""
    asked = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    heartbeat.say("started")
    print(f"serve: rank {rank} stands by: the engine of rank 0 serves alone", flush=True)
    signal.sigwait(asked)
    heartbeat.say("left")
    return LEFT


# -- what to serve, and where ----------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace, worker: Worker) -> tuple[Engine, Endpoint]:
    """Raises RackscaleError where something that was asked for can't be."""
    model = find_model(arguments.model, worker)
    engine = engines.choose(arguments.engine, model)
    name = arguments.name or worker.job or model.stem
    if not NAME.fullmatch(name):
        raise RackscaleError(f"{name!r} can't name a model", hint="letters, digits and . _ - make a --name")
    host = arguments.host or worker.master_addr
    port = claim_port(host, arguments.port or worker.port or 0)
    return engine, Endpoint(
        model=model,
        name=name,
        host=host,
        port=port,
        max_model_len=arguments.max_model_len,
        gpus=engines.gpus_here(),
        extra=tuple(arguments.extra),
    )


def find_model(model: str, worker: Worker) -> Path:
    """A path, or `job:NAME`: the folder that the job NAME exported, beside this job's own outputs.

    Raises RackscaleError where there is no such job's folder.
    """
    if not model.startswith(JOB_PREFIX):
        return Path(model).expanduser().absolute()
    if worker.output_dir is None:
        raise RackscaleError(f"{model} is known only under rackscale, which sets {contract.OUTPUT_DIR}")
    job = model.removeprefix(JOB_PREFIX)
    folder = worker.output_dir.absolute().parent / job / "model"
    if not folder.is_dir():
        raise RackscaleError(
            f"the job {job} has exported no model to {folder}",
            hint="a training exports one at its end, where its document says `export: true`",
        )
    return folder


def claim_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises ExecutorError where nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        why = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise ExecutorError(f"can't listen on {host}:{port}: {why}") from None


# -- the engine's life -----------------------------------------------------------------------------------------------


class Service:
    """One engine, from its start until it left, died or hung."""

    def __init__(self, engine: Engine, endpoint: Endpoint, heartbeat: Heartbeat, patience: Patience) -> None:
        self._engine, self._endpoint, self._heartbeat, self._patience = engine, endpoint, heartbeat, patience
        # An engine that listens everywhere is asked here; the gang's supervisor knows its node's address.
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # somebody else's wish
        self._host = everywhere.get(endpoint.host, endpoint.host)
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._url = f"http://{shown}:{endpoint.port}"

    async def run(self) -> int:
        """The exit status: LEFT when asked to leave, FAILED when the engine ended or hung."""
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        self._heartbeat.say("started")
        process = await self._start()
        leaving = asyncio.create_task(asked.wait())
        ending = asyncio.create_task(process.wait())
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((leaving, ending, watching), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                await self._drain(process)
                self._heartbeat.say("left")
                return LEFT
            why = watching.result() if watching.done() else f"the engine ended with status {ending.result()}"
            self._print(why)
            return FAILED
        finally:
            watching.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        endpoint = self._endpoint
        argv = self._engine.argv(endpoint)
        self._print(f"{self._engine.name} serves {endpoint.model} as {endpoint.name!r} on {self._url}")
        return await asyncio.create_subprocess_exec(
            *argv,
            env=_engine_environ(self._engine),
            stdin=asyncio.subprocess.DEVNULL,
            # A group of its own: we ask it to leave, once, and can end all that it started.
            process_group=0,
            preexec_fn=_die_with_parent,
        )

    async def _drain(self, process: asyncio.subprocess.Process) -> None:
        """Let the engine finish what it is answering."""
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._patience.drain_s)
        except TimeoutError:
            self._print(f"requests were still running after {self._patience.drain_s:g} s")

    async def _watch(self) -> str:
        """Say "ready" and go on saying it while the engine is well; why it no longer is."""
        began_s = time.monotonic()
        while not await self._healthy():
            if time.monotonic() - began_s > self._patience.start_s:
                return f"the engine did not answer within {self._patience.start_s:g} s"
            await asyncio.sleep(POLL_S)
        if (refusal := await self._warm_up()) is not None:
            return f"the engine is up, but can't answer: {refusal}"
        self._heartbeat.say("ready", url=self._url, model=self._endpoint.name)
        self._print(f"ready after {time.monotonic() - began_s:.1f} s")
        healthy_s = time.monotonic()
        while time.monotonic() - healthy_s < self._patience.hang_s:
            await asyncio.sleep(BEAT_S)
            if await self._healthy():
                healthy_s = time.monotonic()
                self._heartbeat.say("ready")
        return f"the engine gave no sign of health for {self._patience.hang_s:g} s"

    async def _healthy(self) -> bool:
        try:
            status, _ = await self._ask("GET", engines.HEALTH, timeout_s=min(ASK_S, self._patience.hang_s))
        except (OSError, http.client.HTTPException):
            return False
        return status == http.HTTPStatus.OK

    async def _warm_up(self) -> str | None:
        """Have each route answer once, so that no user's request is the slow first one; what the engine refused."""
        message = [{"role": "user", "content": "Hello"}]
        question = {"model": self._endpoint.name, "max_tokens": 1}
        for path, body in (
            ("/v1/completions", question | {"prompt": "Hello"}),
            ("/v1/chat/completions", question | {"messages": message}),
        ):
            try:
                status, text = await self._ask("POST", path, body, timeout_s=self._patience.start_s)
            except (OSError, http.client.HTTPException) as error:
                return f"{path}: {error}"
            if status == http.HTTPStatus.OK:
                continue
            if path == "/v1/completions":
                return f"{path}: status {status}, {text}"
            self._print(f"no chat: status {status}, {text} (has the model's tokenizer a chat template?)")
        return None

    async def _ask(self, method: str, path: str, body: object = None, *, timeout_s: float) -> tuple[int, str]:
        return await asyncio.to_thread(
            ask, self._host, self._endpoint.port, method, path, body, timeout_s=timeout_s
        )

    def _print(self, line: str) -> None:
        print(f"serve: {line}", flush=True)


def ask(
    host: str, port: int, method: str, path: str, body: object = None, *, timeout_s: float
) -> tuple[int, str]:
    """Status and text of the answer. Raises OSError or HTTPException where there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def _engine_environ(engine: Engine) -> dict[str, str]:
    """Ours without torchrun's part, for an engine is no rank of the gang; what the user set stands."""
    ours = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    return dict(engine.environ()) | ours


def _die_with_parent() -> None:
    """An engine must not outlive us: it holds the port. What it started itself, the gang's instance ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# -- the command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    patience = Patience()
    parser = argparse.ArgumentParser(
        prog="python -m rackscale.programs.serve",
        description="Serve a model over OpenAI's HTTP API: /v1/models, /v1/chat/completions and /v1/completions.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="a Hugging Face folder, a GGUF file, or job:NAME")
    add("--engine", default=AUTO, metavar="|".join((AUTO, *(engine.name for engine in ENGINES))))
    add("--name", help="what requests call the model (default: the job's name, or the folder's)")
    add("--host", help="address to listen on (default: $MASTER_ADDR, or 127.0.0.1)")
    add("--port", type=_number(int, 1, 65535), metavar="N", help="default: $RACKSCALE_PORT, or a free one")
    add(
        "--max-model-len",
        type=_number(int, 1),
        metavar="N",
        help="tokens of prompt and answer (default: the model's)",
    )
    for flag, default, text in (
        ("--start-s", patience.start_s, "to wait for the first answer"),
        ("--hang-s", patience.hang_s, "without health before the engine is killed"),
        ("--drain-s", patience.drain_s, "for running requests when asked to leave"),
    ):
        add(
            flag,
            type=_number(float, 0),
            default=default,
            metavar="N",
            help=f"seconds {text} (default {default:g})",
        )
    add("extra", nargs="*", metavar="ARGUMENT", help="after --: for the engine itself")
    return parser


def _number(kind: Callable[[str], float], least: float, most: float = float("inf")) -> Callable[[str], float]:
    def read(given: str) -> float:
        value = kind(given)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{given} is not {least:g} or more, up to {most:g}")
        return value

    read.__name__ = kind.__name__  # what argparse calls it when `kind` can't read it
    return read


if __name__ == "__main__":
    sys.exit(main())
