"""`transformers serve` on one folder, keeping to OpenAI's contract; an engine of `engines.py`.

All generation is transformers' own, and so are all options. Its server (5.23) knows a local model only by its path,
lists the hub's cache instead of what it serves, lets any client load another model or unload this one, doesn't end a
stream with `[DONE]`, goes on past the model's context, and makes a missing `max_tokens` 1,024, whatever the folder
says; its command looks for a newer transformers when it starts. So its request handlers are mounted on an
application of our own, of four routes, with these things mended.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import typer
from fastapi import FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from transformers.cli.serve import Serve
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import BaseHandler, CBWorkerDeadError

HERE = "."
"""The folder, to transformers: a path with an @ or a colon in it would mean something else there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The one model of this process."""

    name: str
    model: Any
    tokenizer: Any
    window: int | None
    """Tokens of a prompt and its answer together; None: the model has no limit."""


class Contract(BaseHandler):
    """Over a handler of transformers: the one model, by its name, within its context."""

    served: Served
    required: str

    def _validate_request(self, body: dict[str, Any]) -> None:
        if self.required not in body:
            raise HTTPException(400, f"the request has no {self.required!r}")
        super()._validate_request(body)

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
        served = self.served
        if body.get("model", served.name) != served.name:
            raise HTTPException(404, f"there is no model {body['model']!r}; this is {served.name!r}")
        return served.name, served.model, served.tokenizer

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False
    ) -> Any:
        config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        limits = ("max_tokens", "max_completion_tokens", "generation_config")
        if model_generation_config.max_new_tokens is not None and all(
            body.get(name) is None for name in limits
        ):
            config.max_new_tokens = model_generation_config.max_new_tokens
        if body.get("temperature"):
            config.do_sample = True  # else a temperature has no effect on a folder that doesn't say so itself
        return config

    def _streaming(self, *args: Any, **named: Any) -> StreamingResponse:
        self._fit(inputs=args[4], config=args[5])
        return ended(super()._streaming(*args, **named))  # type: ignore[misc]  # of the handler beside this class

    async def _non_streaming(self, *args: Any, **named: Any) -> JSONResponse:
        self._fit(inputs=args[4], config=args[5])
        response: JSONResponse = await super()._non_streaming(*args, **named)  # type: ignore[misc]
        return response

    def _fit(self, inputs: Any, config: Any) -> None:
        """Keep the answer within the context. Raises HTTPException where there is no prompt, or no room after it."""
        ids, window = inputs["input_ids"], self.served.window
        tokens = len(ids) if isinstance(ids, list) else ids.shape[-1]
        if tokens == 0:
            raise HTTPException(400, "the prompt is empty")
        if window is None:
            return
        if tokens >= window:
            raise HTTPException(400, f"the prompt has {tokens} tokens, and the context only {window}")
        config.max_new_tokens = min(config.max_new_tokens, window - tokens)


class Chat(Contract, ChatCompletionHandler):
    required = "messages"


class Completion(Contract, CompletionHandler):
    required = "prompt"


def ended(response: StreamingResponse) -> StreamingResponse:
    """The same stream, closed by what tells a client that it is whole."""
    parts: Any = response.body_iterator

    async def stream() -> AsyncIterator[Any]:
        async with aclosing(parts):  # a client that goes away stops the generation
            async for part in parts:
                yield part
        yield "data: [DONE]\n\n"

    response.body_iterator = stream()
    return response


Handler = Chat | Completion


class Service(Serve):
    """The engine, made by its own command line. Started with `--non-blocking`, it leaves the start to us."""

    name: str
    max_model_len: int | None

    def start_server(self) -> None:
        app = application(self.name, self._handlers(), alive=self._generation_state.is_cb_alive)
        self.server.config.app = app
        self.server.run()

    def _handlers(self) -> dict[str, Handler]:
        manager, state = self._model_manager, self._generation_state
        model, tokenizer = manager.load_model_and_processor(manager.process_model_name(HERE))
        made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        limits = [limit for limit in (made_for, self.max_model_len) if limit is not None]
        served = Served(name=self.name, model=model, tokenizer=tokenizer, window=min(limits, default=None))
        handlers: dict[str, Handler] = {
            "/v1/chat/completions": Chat(manager, state, self._chat_handler.chat_template_kwargs),
            "/v1/completions": Completion(manager, state),
        }
        for handler in handlers.values():
            handler.served = served
        return handlers


def application(name: str, handlers: Mapping[str, Handler], *, alive: Callable[[], bool]) -> FastAPI:
    app = FastAPI(title=f"rackscale service {name}")
    listed = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "rackscale"}

    @app.get("/health")
    def health() -> JSONResponse:
        return JSONResponse({}, status_code=200 if alive() else 503)

    @app.get("/v1/models")
    def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [listed]})

    for path, handler in handlers.items():
        app.post(path)(_route(handler))
    app.add_exception_handler(HTTPException, lambda _, error: _refusal(error.status_code, error.detail))
    app.add_exception_handler(RequestValidationError, lambda _, error: _refusal(400, _first(error)))
    app.add_exception_handler(ValueError, lambda _, error: _refusal(400, str(error)))
    app.add_exception_handler(CBWorkerDeadError, lambda _, error: _refusal(503, str(error)))
    return app


def _route(handler: Handler) -> Callable[..., Any]:
    async def answer(body: dict[str, Any]) -> Response:
        return await handler.handle_request(body, str(uuid4()))

    return answer


def _first(error: RequestValidationError) -> str:
    return str(error.errors()[0]["msg"])


def _refusal(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status_code=status)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rackscale.programs.serve_transformers", allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--max-model-len", type=int)
    ours, theirs = parser.parse_known_args(argv)
    os.chdir(ours.model)
    Service.name, Service.max_model_len = ours.name, ours.max_model_len
    # Somebody asks for the health every second; the log is for what clients ask.
    logging.getLogger("uvicorn.access").addFilter(lambda record: "/health" not in record.getMessage())
    command = typer.Typer(add_completion=False)
    command.command(name="serve")(Service)
    command([HERE, "--non-blocking", *theirs])


if __name__ == "__main__":
    main()
