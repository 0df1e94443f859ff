"""The engines that answer requests, behind one seam: what each serves, what it needs, and how its process is started.

rackscale has no inference server of its own. An engine is a child process that answers OpenAI's HTTP API:

    vllm          a Hugging Face folder; `vllm serve`, for GPUs in production
    transformers  a Hugging Face folder; `transformers serve`, which runs anywhere torch does
    llamacpp      a GGUF file; llama.cpp's own server, from the package xllamacpp
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from rackscale.errors import ExecutorError, RackscaleError, UnknownNameError


class Format(Enum):
    FOLDER = "a Hugging Face folder"
    GGUF = "a GGUF file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What an engine is asked to serve, and where."""

    model: Path
    name: str
    """What requests call the model."""
    host: str
    port: int
    max_model_len: int | None = None
    """Tokens of a prompt and its answer together; None: as many as the model was made for."""
    gpus: int = 0
    """GPUs of this node. A gang holds whole nodes, so its engine may use them all."""
    extra: tuple[str, ...] = ()
    """Arguments for the engine itself, after all others."""


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def serves(self) -> Format: ...

    def missing(self) -> str | None:
        """How to install the engine; None: it is installed."""

    def argv(self, endpoint: Endpoint) -> list[str]:
        """The command that serves `endpoint`, in the foreground; SIGTERM ends it."""

    def environ(self) -> Mapping[str, str]:
        """What that command's environment has where the user set nothing else."""


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""The model is a folder of this site: nothing may be fetched from, or told to, anybody."""

HEALTH = "/health"
"""Every engine here answers 200 on this path when it can serve."""


class Vllm:
    name = "vllm"
    serves = Format.FOLDER

    def missing(self) -> str | None:
        if _program("vllm"):
            return None
        return "pip install 'rackscale[vllm]', best in an environment of its own with its bin folder on PATH"

    def argv(self, endpoint: Endpoint) -> list[str]:
        argv = [_program("vllm") or "vllm", "serve", str(endpoint.model)]
        argv += ["--served-model-name", endpoint.name, "--host", endpoint.host, "--port", str(endpoint.port)]
        argv += ["--disable-access-log-for-endpoints", HEALTH]
        if endpoint.gpus > 1:
            argv += ["--tensor-parallel-size", str(endpoint.gpus)]
        if endpoint.max_model_len is not None:
            argv += ["--max-model-len", str(endpoint.max_model_len)]
        return [*argv, *endpoint.extra]

    def environ(self) -> Mapping[str, str]:
        return OFFLINE | {"VLLM_NO_USAGE_STATS": "1"}


class Transformers:
    name = "transformers"
    serves = Format.FOLDER

    def missing(self) -> str | None:
        needed = ("torch", "transformers", "accelerate", "fastapi", "uvicorn", "openai")
        return None if all(map(importlib.util.find_spec, needed)) else "pip install 'rackscale[serve]'"

    def argv(self, endpoint: Endpoint) -> list[str]:
        return _module("rackscale.programs.serve_transformers", endpoint)

    def environ(self) -> Mapping[str, str]:
        # Threads that wait by spinning are a disaster where others need the cores: on 2 busy ones, 48 tokens of a
        # small model took 5 to 28 s, and 0.1 to 0.4 s with this.
        return OFFLINE | {"OMP_WAIT_POLICY": "PASSIVE"}


class LlamaCpp:
    name = "llamacpp"
    serves = Format.GGUF

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("xllamacpp") else "pip install 'rackscale[llamacpp]'"

    def argv(self, endpoint: Endpoint) -> list[str]:
        return _module("rackscale.programs.serve_llamacpp", endpoint)

    def environ(self) -> Mapping[str, str]:
        return {}


ENGINES: tuple[Engine, ...] = (Vllm(), Transformers(), LlamaCpp())
"""Best first, among those that serve the same format."""

AUTO = "auto"


def choose(name: str, model: Path) -> Engine:
    """The engine `name`, or for "auto" the best one that is installed for the model's format.

    Raises RackscaleError where there is no such engine or model, or the two don't go together; ExecutorError where
    the engine is not installed.
    """
    engines = [engine for engine in ENGINES if name in (AUTO, engine.name)]
    if not engines:
        raise UnknownNameError("engine", name, [AUTO, *(engine.name for engine in ENGINES)])
    found = format_of(model)
    fitting = [engine for engine in engines if engine.serves is found]
    if not fitting:
        right = ", ".join(engine.name for engine in ENGINES if engine.serves is found)
        raise RackscaleError(
            f"{model} is {found.value}, and {name} serves {engines[0].serves.value}", hint=f"--engine {right}"
        )
    for engine in fitting:
        if engine.missing() is None:
            return engine
    plainest = fitting[-1]
    raise ExecutorError(f"the engine {plainest.name} is not installed here", hint=plainest.missing())


def format_of(model: Path) -> Format:
    """Look at the files. Raises RackscaleError, saying what is missing, where they are nothing that can be served."""
    if not model.exists():
        raise RackscaleError(
            f"there is no model at {model}", hint="give a Hugging Face folder or a GGUF file"
        )
    if model.is_dir():
        _check_folder(model)
        return Format.FOLDER
    with model.open("rb") as stream:
        if stream.read(4) == b"GGUF":
            return Format.GGUF
    raise RackscaleError(f"{model} is not a GGUF file", hint="give one, or a Hugging Face folder")


def _check_folder(folder: Path) -> None:
    needed = {
        "config.json": ("config.json",),
        "weights (*.safetensors)": ("*.safetensors", "pytorch_model*.bin"),
        "a tokenizer (tokenizer.json)": ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    }
    missing = [
        what for what, patterns in needed.items() if not any(any(folder.glob(one)) for one in patterns)
    ]
    if missing:
        inside = sorted(folder.glob("*.gguf"))
        hint = f"give the GGUF file itself: {inside[0]}" if inside else None
        raise RackscaleError(
            f"{folder} is not {Format.FOLDER.value}: it has no {', no '.join(missing)}", hint=hint
        )
    try:
        json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        raise RackscaleError(f"{folder / 'config.json'} is not JSON: {error}") from None


def gpus_here(
    environ: Mapping[str, str] = os.environ, driver: Path = Path("/proc/driver/nvidia/gpus")
) -> int:
    """NVIDIA GPUs that this process may use, without loading CUDA."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(driver.iterdir())) if driver.is_dir() else 0


def _program(name: str) -> str | None:
    """Beside this interpreter, where an environment that was not activated has it, or on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _module(module: str, endpoint: Endpoint) -> list[str]:
    # -P: nothing in the current folder may stand in for a module.
    argv = [sys.executable, "-P", "-m", module, "--model", str(endpoint.model), "--name", endpoint.name]
    argv += ["--host", endpoint.host, "--port", str(endpoint.port)]
    if endpoint.max_model_len is not None:
        argv += ["--max-model-len", str(endpoint.max_model_len)]
    return [*argv, *endpoint.extra]
