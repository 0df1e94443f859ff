"""The JSON Schema for editors agrees with what reads the documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from rackscale import spec
from rackscale.spec.reader import read
from rackscale.spec.validate import KINDS, validate

EXAMPLES = Path(__file__).parents[2] / "examples"
SCHEMA = spec.json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def documents() -> Iterator[tuple[str, dict[str, object]]]:
    raws, _ = read([EXAMPLES])
    for raw in raws:
        assert isinstance(raw.data, dict)
        yield f"{raw.folder.name}: {raw.data['kind']} {raw.data.get('name')}", raw.data


DOCUMENTS = dict(documents())


def test_it_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("title", DOCUMENTS)
def test_it_accepts_the_examples(title: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(DOCUMENTS[title])] == []


@pytest.mark.parametrize("title", DOCUMENTS)
def test_it_refuses_a_field_that_does_not_exist(title: str) -> None:
    assert not VALIDATOR.is_valid({**DOCUMENTS[title], "no_such_field": 1})


MINIMAL: dict[str, dict[str, object]] = {
    "Fleet": {"name": "f", "clusters": [{"name": "a", "system": "p5", "domains": 1}]},
    "Queue": {"name": "q"},
    "Policy": {},
    "Booking": {"name": "k", "from": "02:00", "until": "04:00"},
    "Maintenance": {"name": "m", "domain": "us-000", "from": "in 1h", "until": "in 2h"},
    "Training": {"name": "t", "run": "x"},
    "Batch": {"name": "b", "run": "x"},
    "Service": {"name": "s", "run": "x"},
}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, {}) for kind in KINDS),
        ("Batch", {"duration": "1h30m"}),
        ("Batch", {"duration": 90}),
        ("Batch", {"duration": "90"}),
        ("Batch", {"duration": 0}),
        ("Batch", {"duration": {"median": "1h", "p90": "2h"}}),
        ("Batch", {"duration": {"mean": "1h"}}),
        ("Batch", {"duration": "1 hour"}),
        ("Batch", {"arrivals": {"at": "09:00"}}),
        ("Batch", {"arrivals": {"at": ["09:00", 5, "1d"]}}),
        ("Batch", {"arrivals": {"at": "9am"}}),
        ("Batch", {"arrivals": {"per_hour": 0}}),
        ("Batch", {"checkpoint": {"interval": "never"}}),
        ("Batch", {"checkpoint": {"interval": "seldom"}}),
        ("Batch", {"model": {}}),
        ("Batch", {"envs": {"A": 1, "B": "x"}}),
        ("Batch", {"envs": {"A": 1.5}}),
        ("Batch", {"envs": {"1": "x"}}),
        ("Batch", {"nodes": 0}),
        ("Batch", {"nodes": "1"}),
        ("Batch", {"nodes": True}),
        ("Batch", {"name": "a/b"}),
        ("Batch", {"name": 7}),
        ("Batch", {"preemptible": "yes"}),
        ("Batch", {"system": "local"}),
        ("Batch", {"system": "lokal"}),
        ("Service", {"replicas": 2}),
        ("Service", {"count": 2}),
        ("Policy", {"priorities": {"a": 1, "normal": 0}}),
        ("Policy", {"priorities": {}}),
        ("Policy", {"priorities": {"a": "b"}}),
        ("Policy", {"defragment": "off"}),
        ("Policy", {"defragment": False}),
        ("Policy", {"lemon": "never"}),
        ("Policy", {"lemon": {"window": "7d"}}),
        ("Policy", {"lemon": 3}),
        ("Policy", {"fair_share_half_life": "never"}),
        ("Policy", {"decision_interval": 0}),
        ("Queue", {"quota": {"gpus": 64}, "borrow": "none"}),
        ("Queue", {"quota": {"domains": 0.5}, "borrow": {"domains": 2}}),
        ("Queue", {"quota": {"gpus": 0.5}}),
        ("Queue", {"quota": 64}),
        ("Queue", {"weight": 0}),
        ("Training", {"elastic": {"min_segments": 1, "max_segments": 2}}),
        ("Training", {"elastic": False}),
        ("Training", {"elastic": "yes"}),
        ("Training", {"shapes": [{"nodes": 2, "throughput": 2}]}),
        ("Training", {"shapes": []}),
        ("Training", {"near": {"within": "leaf"}}),
        ("Training", {"near": {"within": "rack"}}),
        ("Training", {"spares": -1}),
        ("Service", {"elastic": True}),
        ("Booking", {"until": "1d9h"}),
        ("Booking", {"from": "in 2h", "until": "2026-12-01T02:00Z"}),
        ("Booking", {"until": "2026-12-01T02:00"}),
        ("Booking", {"until": "tomorrow"}),
        ("Maintenance", {"nodes": [0, 1]}),
        ("Maintenance", {"nodes": [-1]}),
        (
            "Fleet",
            {"clusters": [{"name": "a", "system": "p5", "domains": 1, "ready": "10d", "expires": "90d"}]},
        ),
        ("Fleet", {"clusters": [{"name": "a", "system": "p5", "domains": 1, "ready": "in 10d"}]}),
        ("Fleet", {"failures": {"range": [1e-5, 2e-5]}}),
        ("Fleet", {"failures": {"range": [1e-5]}}),
        ("Fleet", {"failures": {"provenance": "guessed"}}),
    ],
)
def test_it_agrees_with_the_reader_on_single_fields(
    tmp_path: Path, kind: str, fields: dict[str, object]
) -> None:
    data = {"kind": kind, **MINIMAL[kind], **fields}
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(data))
    [raw], problems = read([file])
    assert not problems
    assert VALIDATOR.is_valid(data) == (not validate(raw)[1]), validate(raw)[1]


def test_every_field_is_described() -> None:
    obvious = {"kind", "name"}
    for title, definition in SCHEMA["$defs"].items():
        [section] = [d for d in (definition, *definition.get("anyOf", ())) if "properties" in d]
        assert section["additionalProperties"] is False
        assert "description" in section, title
        for name, field in section["properties"].items():
            assert "description" in field or name in obvious, f"{title}.{name}"
