"""Whatever the files hold: an answer or a DocumentError, never another exception."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rackscale import spec
from rackscale.errors import DocumentError

EXAMPLES = sorted(Path(__file__).parents[2].joinpath("examples").rglob("*.yaml"))
TEXTS = [file.read_text("utf-8") for file in EXAMPLES]
WORDS = sorted({word for text in TEXTS for word in text.replace(":", " ").split()})

fuzz = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read_in_vain(folder: Path, content: bytes) -> None:
    """Every problem must be one printable line that begins with the file."""
    file = folder / "site.yaml"
    file.write_bytes(content)
    problems: tuple[str, ...] = ()
    try:
        spec.load([file])
    except DocumentError as error:
        problems = error.problems
    assert all(line.startswith(f"{file}:") and line.isprintable() for line in problems)
    assert problems == spec.check([file]).problems


@fuzz
@given(st.binary(max_size=200))
@example(b'kind: "\\U99999999"')
@example(b"%YAML 1." + b"9" * 5000 + b"\n---\na: 1")
@example(b"kind: Batch\nname: " + b"9" * 5000)
@example(b"\xff\xfek\x00i\x00n\x00d\x00")
@example(b"? [a]\n: 1\n? {b: 1}\n: 2")
@example(b'kind: Batch\nname: "\\ud800"')
@example(b'"\\ud800": 1')
@example(b"kind: !!python/object/apply:os.system [ls]")
@example(b"kind: !!timestamp 2001-01-01")
@example(b"&a [*a]")
@example(b"kind: Batch\nname: b\nduration: 1" + b"0" * 25 + b"\n")
@example(b"kind: Batch\nname: b\nduration: 999999999999w999999999999w\n")
@example(b"kind: Policy\npriorities: {a: 99999999999999999999}\n")
@example(b"kind: Batch\nname: b\nduration: .nan\n")
@example(b"kind: Fleet\nname: f\nclusters: {a: 1}\n")
@example(b"kind: Batch\nname: b\nrun: x\nworkdir: ~nobody-of-that-name/x\n")
def test_random_bytes(tmp_path: Path, content: bytes) -> None:
    read_in_vain(tmp_path, content)


@fuzz
@given(st.text(alphabet=st.sampled_from("{}[]:,-&*!|>'\"%#?@ \n\tab01~.<\\\u2028\x85\r"), max_size=120))
def test_random_yaml_punctuation(tmp_path: Path, text: str) -> None:
    read_in_vain(tmp_path, text.encode())


@fuzz
@given(st.randoms(use_true_random=False), st.sampled_from(TEXTS))
def test_mutated_examples(tmp_path: Path, stream: random.Random, text: str) -> None:
    lines = text.splitlines()
    for _ in range(stream.randint(1, 4)):
        at = stream.randrange(len(lines))
        match stream.randrange(5):
            case 0:
                lines[at] = lines[stream.randrange(len(lines))]
            case 1:
                lines[at] = lines[at][: stream.randrange(len(lines[at]) + 1)]
            case 2:
                words = lines[at].split(" ")
                words[stream.randrange(len(words))] = stream.choice(WORDS)
                lines[at] = " ".join(words)
            case 3:
                lines[at] = "  " + lines[at]
            case _:
                cut = stream.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:cut] + stream.choice("{}[]:,-&*!|>'\"%#?@\t~0") + lines[at][cut:]
    read_in_vain(tmp_path, "\n".join(lines).encode())


KEYS = [
    "name", "clusters", "failures", "priorities", "nodes", "segments", "nodes_per_segment", "duration", "checkpoint",
    "arrivals", "model", "run", "envs", "count", "replicas", "queue", "system", "domains", "at", "every", "from",
    "quota", "borrow", "parent", "gpus", "shapes", "elastic", "min_segments", "max_segments", "near", "within", "lemon",
    "spares", "worth", "fabric", "domains_per_leaf", "ready", "expires", "booking", "domain",
    "until", "jitter", "repeat_every", "per_hour", "median", "p90", "interval", "range", "grace", "preset", "seq",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
    | st.sampled_from(["30s", "4h", "09:00", "never", "local", "job:x", "job:"])
    | st.sampled_from(["none", "in 2h", "2026-12-01T02:00Z", "leaf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@fuzz
@given(
    st.sampled_from(
        ["Fleet", "Queue", "Policy", "Training", "Batch", "Service", "Booking", "Maintenance", "Thing"]
    ),
    VALUES,
    st.data(),
)
def test_random_structures(tmp_path: Path, kind: str, extra: object, data: st.DataObject) -> None:
    fields = data.draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8))
    documents = [{"kind": kind, **fields}, extra, {"kind": "Batch", "name": "b", "run": "true"}]
    read_in_vain(tmp_path, yaml.safe_dump_all(documents, allow_unicode=True).encode())


@pytest.mark.parametrize("text", TEXTS, ids=[f"{f.parent.name}/{f.name}" for f in EXAMPLES])
def test_every_prefix_of_an_example(tmp_path: Path, text: str) -> None:
    lines = text.splitlines(keepends=True)
    for end in range(1, len(lines)):
        read_in_vain(tmp_path, "".join(lines[:end]).encode())
