"""One raw document -> its typed model, or everything that is wrong with it in people's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rackscale.spec.fields import VARIABLE_RULE, Fault, Strict
from rackscale.spec.jobs import BatchDocument, JobDocument, ServiceDocument, TrainingDocument
from rackscale.spec.policy import PolicyDocument
from rackscale.spec.problems import NO_VALUE, Path, Problem, dotted, nearest, shown
from rackscale.spec.queues import QueueDocument
from rackscale.spec.reader import RawDocument
from rackscale.spec.site import FleetDocument
from rackscale.spec.windows import BookingDocument, MaintenanceDocument
from rackscale.workload import NAME_RULE

KINDS: dict[str, type[Strict]] = {
    "Fleet": FleetDocument,
    "Queue": QueueDocument,
    "Policy": PolicyDocument,
    "Booking": BookingDocument,
    "Maintenance": MaintenanceDocument,
    "Training": TrainingDocument,
    "Batch": BatchDocument,
    "Service": ServiceDocument,
}
"""Every kind of document by the word that documents use."""

_OWN_ERRORS = ("duration", "clock", "positive", "unknown_name", "when", "choice", "amount")
JOB_KINDS = tuple(kind for kind, model in KINDS.items() if issubclass(model, JobDocument))

_SECRET = (("envs",), ("setup",), ("run",))
"""Fields whose values are never shown."""

_RULES = {
    NAME_RULE: "must be letters, digits, '.', '_' or '-', begin and end with a letter or digit, at most 100 long",
    VARIABLE_RULE: "must be letters, digits or '_', not beginning with a digit",
}
_MESSAGES = {
    "missing": "is required",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "list_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
}
"""Messages by pydantic's error types; `{name}` is filled from the error's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A raw document with its kind; `model` is None where it is not valid."""

    raw: RawDocument
    kind: str
    model: Any
    """A `FleetDocument`, `TrainingDocument` ... as `kind` says."""

    sound: Any = None
    """The same where only fields are wrong that nothing else is judged by, without those."""

    @property
    def fields(self) -> Mapping[str, object]:
        assert isinstance(self.raw.data, dict)
        return self.raw.data

    @property
    def name(self) -> str | None:
        name = self.fields.get("name")
        return name if isinstance(name, str) else None

    def text(self, field: str) -> str | None:
        """The field's value if it is text."""
        value = self.fields.get(field)
        return value if isinstance(value, str) else None

    def value_at(self, path: Path) -> object:
        """What is written at a field."""
        return _value_at(self.fields, path)

    @property
    def source(self) -> str:
        """`file:line` of the document's first field."""
        return f"{self.raw.file}:{self.raw.places[()][0]}"

    @property
    def title(self) -> str:
        """How problems call it: `Training 'exp-812'`."""
        return f"{self.kind} {shown(self.name)}" if self.name else self.kind

    def problem(self, path: Path, message: str, *, fix: str | None = None, at_key: bool = False) -> Problem:
        """A problem at a field: at its line if it is written, else at the line of what should hold it."""
        place, found = self.raw.place(path)
        value = _value_at(self.fields, found)
        plain = not isinstance(value, dict | list)
        if plain:
            path = found  # where a scalar stands for a mapping, the scalar is what people see
        line, column = self.raw.keys[path] if at_key else place
        return Problem(
            file=self.raw.file,
            line=line,
            column=column,
            document=self.title,
            field=dotted(path),
            message=message,
            value=value if plain and not at_key and path[:1] not in _SECRET else NO_VALUE,
            fix=fix,
        )


def validate(raw: RawDocument) -> tuple[Document | None, list[Problem]]:
    """The document and its problems; no document where not even the kind is known."""
    if not isinstance(raw.data, dict):
        line, column = raw.places[()]
        message = "a document must be a mapping that says its kind"
        return None, [*raw.faults, Problem(file=raw.file, line=line, column=column, message=message)]
    kind = raw.data.get("kind")
    known = isinstance(kind, str) and kind in KINDS
    document = Document(raw=raw, kind=str(kind) if known else "document", model=None)
    problems = [replace(fault, document=document.title) for fault in raw.faults]
    if not known:
        if ("kind",) not in raw.faulty:
            message = "unknown kind" if "kind" in raw.data else "is required"
            problems.append(document.problem(("kind",), message, fix=nearest(kind, KINDS)))
        return None, problems + _if_meant(document, kind)
    model_type = KINDS[document.kind]
    problems += [_of_fault(document, fault) for fault in model_type.conflicts(raw.data)]
    try:
        model = model_type.model_validate(raw.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [p for detail in details if (p := _of_detail(document, detail)) is not None]
        problems += [_of_fault(document, fault) for fault in model_type.partial_faults(raw.data)]
        sound = _without(model_type, raw.data, {detail["loc"][0] for detail in details if detail["loc"]})
        if sound is not None:
            problems += [_of_fault(document, fault) for fault in sound.faults()]
        return replace(document, sound=sound), problems
    problems += [_of_fault(document, fault) for fault in model.faults()]
    return replace(document, model=None if problems else model, sound=model), problems


INDEPENDENT = frozenset(
    (
        "arrivals",
        "booking",
        "cluster",
        "envs",
        "priority",
        "queue",
        "ranks_per_node",
        "system",
        "user",
        "workdir",
    )
)
"""Optional fields that nothing else of a document is judged by: with one of them wrong, the rest still is."""


def _without(model_type: type[Strict], data: Mapping[str, object], wrong: set[object]) -> Strict | None:
    """The document without its wrong fields; None where others are judged by one of them."""
    if not wrong <= INDEPENDENT:
        return None
    try:
        return model_type.model_validate({name: value for name, value in data.items() if name not in wrong})
    except ValidationError:
        return None


def _if_meant(document: Document, kind: object) -> list[Problem]:
    """What is wrong with the fields that are there, if the kind is the one that is most like it."""
    near = difflib.get_close_matches(kind, KINDS, n=1) if isinstance(kind, str) else []
    if not near:
        return []
    meant = replace(document, kind=near[0])
    try:
        KINDS[meant.kind].model_validate({**document.fields, "kind": meant.kind})
    except ValidationError as error:
        details = [d for d in error.errors(include_url=False) if d["type"] != "missing"]
        return [p for detail in details if (p := _of_detail(meant, detail)) is not None]
    return []


def _of_fault(document: Document, fault: Fault) -> Problem:
    return document.problem(fault.path, fault.message, fix=fault.fix)


def _of_detail(document: Document, detail: ErrorDetails) -> Problem | None:
    """One of pydantic's errors as a problem; None where the value was reported when it was read."""
    path = tuple(step for step in detail["loc"] if step != "[key]")
    if any(path[:length] in document.raw.faulty for length in range(len(path) + 1)):
        return None
    kind = detail["type"]
    context = {name: _plain(value) for name, value in (detail.get("ctx") or {}).items()}
    if kind == "extra_forbidden":
        known = _field_names(KINDS[document.kind], path[:-1])
        return document.problem(path, "there is no such field", fix=nearest(path[-1], known), at_key=True)
    if kind == "string_pattern_mismatch":
        return document.problem(path, _RULES[str(context["pattern"])], at_key="[key]" in detail["loc"])
    template = _MESSAGES.get(kind)
    assert template or kind in _OWN_ERRORS, f"no words for pydantic's {kind}"
    message = template.format(**context) if template else detail["msg"]
    number = kind == "string_type" and isinstance(detail["input"], int | float)
    return document.problem(
        path, message, fix="put it in quotes" if number else (detail.get("ctx") or {}).get("fix")
    )


def _plain(value: object) -> object:
    """A limit as people write it: 0, not 0.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value_at(data: object, path: Path) -> object:
    for step in path:
        assert isinstance(data, dict | list)
        data = data[step]  # type: ignore[index]
    return data


def _field_names(model: type[Strict], path: Path) -> list[str]:
    """The fields that a mapping at `path` may have, as documents spell them."""
    for step in path:
        if isinstance(step, str):
            model = next(_models(_fields(model)[step].annotation))
    return list(_fields(model))


def _fields(model: type[Strict]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _models(annotation: object) -> Iterator[type[Strict]]:
    """The document sections that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
