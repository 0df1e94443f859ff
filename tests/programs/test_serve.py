"""A model that this project exported, served by the real engine over real HTTP: asked, streamed, killed, hung, left."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from rackscale.errors import RackscaleError
from rackscale.programs import processes
from rackscale.programs.contract import LEFT, Worker
from rackscale.programs.corpus import prepare
from rackscale.programs.export import export
from rackscale.programs.llama import Llama
from rackscale.programs.serve import FAILED, find_model
from rackscale.programs.settings import LlamaShape
from tests.conftest import Eventually
from tests.programs.service import Service

SHAPE = LlamaShape(hidden=32, intermediate=48, layers=1, heads=2, kv_heads=1, context=1024)
WINDOW = 64
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a gang?"}]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a site where the job tiny-llama exported a model. An @ in its path, for paths may have one."""
    folder = tmp_path_factory.mktemp("site") / "out@puts"
    model = Llama(SHAPE, vocab=512, length=8, seed=0)
    export(
        folder / "tiny-llama" / "model",
        weights={name: weight.detach() for name, weight in model.named_parameters()},
        shape=SHAPE,
        tokenizer=prepare(None, vocab=512, cache=None).tokenizer,
    )
    return folder


@pytest.fixture(scope="module")
def model(outputs: Path) -> str:
    return str(outputs / "tiny-llama" / "model")


@pytest.fixture(scope="module")
def service(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    worker = Worker(job="chat", output_dir=outputs / "chat")
    flags = ["--model", "job:tiny-llama", "--engine", "transformers", "--max-model-len", str(WINDOW)]
    with Service(tmp_path_factory.mktemp("service"), flags, worker=worker) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    with service.client() as client:
        yield client


# -- the contract with clients ---------------------------------------------------------------------------------------


def test_ready_says_where_and_by_which_name(service: Service) -> None:
    ready = service.ready()
    assert ready["model"] == "chat"
    assert ready["url"].startswith("http://127.0.0.1:")
    assert [beat["kind"] for beat in service.beats()][:2] == ["started", "ready"]


def test_the_model_is_listed_by_its_name(client: OpenAI) -> None:
    assert [listed.id for listed in client.models.list()] == ["chat"]


# The weights are random: sampled with a seed, the answers are at least not one token again and again.


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=HELLO, max_tokens=5, temperature=1, seed=1)
    assert answer.model == "chat"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_a_streamed_chat_says_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="chat", messages=HELLO, max_tokens=9, temperature=1, seed=1)
    parts = list(
        client.chat.completions.create(
            model="chat", messages=HELLO, max_tokens=9, temperature=1, seed=1, stream=True
        )
    )
    assert len(parts) > 3, "in pieces"
    said = "".join(part.choices[0].delta.content or "" for part in parts)
    assert said == (whole.choices[0].message.content or "").rstrip("\N{REPLACEMENT CHARACTER}"), (
        "half a letter is not"
    )
    assert parts[-1].choices[0].finish_reason == "length"


def test_completions(client: OpenAI) -> None:
    whole = client.completions.create(model="chat", prompt="A gang is", max_tokens=9, temperature=0)
    assert whole.model == "chat"
    assert whole.choices[0].text
    parts = list(
        client.completions.create(model="chat", prompt="A gang is", max_tokens=9, temperature=0, stream=True)
    )
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_a_temperature_varies_the_answer(client: OpenAI) -> None:
    texts = {
        client.completions.create(model="chat", prompt="A gang is", max_tokens=16, temperature=1.5, seed=seed)
        .choices[0]
        .text
        for seed in range(4)
    }
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("path", "ask"),
    [("/v1/completions", {"prompt": "A gang"}), ("/v1/chat/completions", {"messages": HELLO})],
)
def test_a_stream_is_closed_the_way_clients_wait_for(
    service: Service, path: str, ask: dict[str, object]
) -> None:
    there = urlsplit(service.ready()["url"])
    connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
    body = {"model": "chat", "max_tokens": 3, "stream": True, **ask}
    with closing(connection):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line for line in answer.read().decode().splitlines() if line]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


def test_an_answer_ends_with_the_context(client: OpenAI) -> None:
    """The folder asks for 96 tokens where nothing else is said."""
    answer = client.completions.create(model="chat", prompt="A gang is", temperature=0)
    assert answer.usage is not None
    assert answer.usage.total_tokens == WINDOW


def test_refusals_say_why(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'; this is 'chat'"):
        client.completions.create(model="other", prompt="A gang")
    with pytest.raises(openai.BadRequestError, match=f"and the context only {WINDOW}"):
        client.completions.create(model="chat", prompt="gang " * 200, stream=True)
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        client.completions.create(model="chat", prompt="")
    with pytest.raises(openai.BadRequestError, match="prompt must be a string"):
        client.completions.create(model="chat", prompt=["A", "B"])


@pytest.mark.parametrize("path", ["/reset", "/load_model"])
def test_no_client_can_change_what_is_served(client: OpenAI, path: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.post(f"{str(client.base_url).removesuffix('/v1/')}{path}", cast_to=object, body={"model": "x"})


# -- the contract with the supervisor --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doomed(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """One service for each fate, started together; they have nothing in common but the time they take to start."""
    folder = tmp_path_factory.mktemp("doomed")
    flags = ["--model", model, "--engine", "transformers", "--hang-s", "1.5"]
    fates = ("asked", "engine killed", "engine hangs")
    running = {fate: Service(folder / fate, flags) for fate in fates}
    for one in running.values():
        one.ready()
    yield running
    for one in running.values():
        one.__exit__()


def test_asked_to_leave_it_finishes_what_it_is_answering(doomed: dict[str, Service]) -> None:
    service = doomed["asked"]
    [engine] = service.children()
    with service.client() as client:
        stream = client.completions.create(model="chat", prompt="A gang is", max_tokens=200, stream=True)
        next(iter(stream))
        service.signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason in {"length", "stop"}
    assert service.wait() == LEFT, service.log()
    assert service.beats()[-1]["kind"] == "left"
    assert processes.find(engine) is None


def test_it_ends_with_its_engine(doomed: dict[str, Service]) -> None:
    service = doomed["engine killed"]
    [engine] = service.children()
    os.kill(engine, signal.SIGKILL)
    assert service.wait(within_s=10) == FAILED, service.log()
    assert "the engine ended with status -9" in service.log()


def test_a_hung_engine_is_killed(doomed: dict[str, Service]) -> None:
    service = doomed["engine hangs"]
    [engine] = service.children()
    os.kill(engine, signal.SIGSTOP)
    assert service.wait(within_s=30) == FAILED, service.log()
    assert "no sign of health for 1.5 s" in service.log()
    assert processes.find(engine) is None


def test_an_engine_does_not_outlive_its_program(model: str, tmp_path: Path, eventually: Eventually) -> None:
    with Service(tmp_path, ["--model", model, "--engine", "transformers"]) as service:
        [engine] = eventually(service.children)
        service.signal(signal.SIGKILL)
        eventually(lambda: (found := processes.find(engine)) is None or found.zombie)


def test_the_engine_is_no_rank_of_the_gang(service: Service) -> None:
    """Else torch inside it would look for the other ranks."""
    service.ready()
    [engine] = service.children()
    names = {entry.partition(b"=")[0] for entry in processes.environ(engine)}
    assert names.isdisjoint({b"RANK", b"WORLD_SIZE", b"MASTER_ADDR", b"TORCHELASTIC_RUN_ID"})
    assert {b"RACKSCALE_JOB", b"HF_HUB_OFFLINE"} <= names, (
        "but what it serves, and where it belongs, is known"
    )


def test_heartbeats_go_on_while_the_engine_is_well(service: Service, eventually: Eventually) -> None:
    eventually(lambda: [beat["kind"] for beat in service.beats()].count("ready") > 2)


def test_an_engine_that_takes_too_long_is_given_up(model: str, tmp_path: Path) -> None:
    with Service(tmp_path, ["--model", model, "--engine", "transformers", "--start-s", "0.3"]) as service:
        assert service.wait() == FAILED
        assert "did not answer within 0.3 s" in service.log()


def test_other_ranks_stand_by(tmp_path: Path, eventually: Eventually) -> None:
    worker = Worker(rank=1, world_size=2, master_port=1)
    with Service(tmp_path, ["--model", "unseen"], worker=worker) as service:
        eventually(lambda: "stands by" in service.log())
        service.signal(signal.SIGTERM)
        assert service.wait() == LEFT
        assert [beat["kind"] for beat in service.beats()] == ["started", "left"]


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_a_mistake_is_a_sentence(tmp_path: Path) -> None:
    with Service(tmp_path, ["--model", "nowhere"]) as service:
        assert service.wait() == 2
        assert "serve: there is no model at " in service.log()
        assert "Traceback" not in service.log()


def test_a_taken_port_is_said_before_the_engine_starts(model: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = Worker(job="chat", port=port)
        with Service(tmp_path, ["--model", model], worker=worker) as service:
            assert service.wait() == 2
            assert f"can't listen on 127.0.0.1:{port}: the port is taken" in service.log()


def test_a_job_that_exported_nothing(outputs: Path) -> None:
    worker = Worker(output_dir=outputs / "chat")
    assert find_model("job:tiny-llama", worker) == outputs / "tiny-llama" / "model"
    with pytest.raises(RackscaleError, match="the job exp-7 has exported no model"):
        find_model("job:exp-7", worker)
    with pytest.raises(RackscaleError, match="RACKSCALE_OUTPUT_DIR"):
        find_model("job:exp-7", Worker())
