"""llama.cpp's own HTTP server, from the package xllamacpp, on a GGUF file; an engine of `engines.py`.

The server is C++ and speaks OpenAI's API itself; here are only its parameters. It answers as long as its object lives.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARALLEL = 4
"""Requests that are answered at the same time; they share the context's memory. As llama.cpp's own program does."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    # Before the server starts its threads, so that the request to leave reaches `sigwait` and none of them.
    leave = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, leave)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.model)
    params.model_alias = {arguments.name}
    params.hostnames, params.port = [arguments.host], arguments.port
    params.n_ctx = arguments.max_model_len
    params.n_parallel, params.kv_unified = PARALLEL, True
    params.endpoint_metrics = True
    for setting in arguments.settings:
        set_parameter(params, setting)
    server = xllamacpp.Server(params)
    signal.sigwait(leave)
    del server


def set_parameter(params: Any, setting: str) -> None:
    """`n_parallel=8` or `cpuparams.n_threads=2`, of the type that the parameter has now. Exits where there is none."""
    path, _, text = setting.partition("=")
    *owners, name = path.split(".")
    try:
        for owner in owners:
            params = getattr(params, owner)
        kind = type(getattr(params, name))
        setattr(params, name, text == "true" if kind is bool else kind(text))
    except (AttributeError, TypeError, ValueError) as error:
        raise SystemExit(f"llama.cpp: can't set {setting}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rackscale.programs.serve_llamacpp", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, default=0, help="0: what the model was made for")
    parser.add_argument("settings", nargs="*", metavar="PARAMETER=VALUE", help="of xllamacpp.CommonParams")
    return parser


if __name__ == "__main__":
    main()
