"""Fields of the Policy document as the command line sets them: `policy.spares=adaptive`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path as FilePath

from rackscale.spec.problems import Path, Problem, nearest
from rackscale.spec.reader import RawDocument, parse
from rackscale.spec.validate import Document, validate

_ROOT = "policy"


def override(documents: Sequence[Document], settings: Iterable[str]) -> tuple[list[Document], list[Problem]]:
    """The documents with `policy.FIELD=VALUE` set in their Policy, or in one of their own; and what can't be set.

    A value is read like YAML: `7d`, `true`, `{failures: 2, window: 3d}`. One part of a section is set by
    `policy.lemon.failures=2`.
    """
    found, problems = list(documents), list[Problem]()
    for text in settings:
        policy = next((d for d in found if d.kind == "Policy"), None)
        changed, faults = _set(policy, text)
        problems += faults
        if changed is not None:
            found = [d for d in found if d is not policy] + [changed]
    return found, problems


def _set(policy: Document | None, text: str) -> tuple[Document | None, list[Problem]]:
    """The Policy document with one field set, and what is wrong with that field alone."""
    source = f"--set {text}"
    name, equals, value_text = text.partition("=")
    root, *path = name.strip().split(".")
    if not equals or root != _ROOT or not 1 <= len(path) <= 2:
        fix = "write policy.FIELD=VALUE" + ("" if root == _ROOT else f"; {nearest(root, [_ROOT])}")
        return None, [Problem(file=source, message="can't be read", fix=fix)]
    before = dict(policy.fields) if policy is not None else {"kind": "Policy"}
    value, problems = parse(value_text, source)
    if problems:
        return None, problems
    if len(path) == 2:
        section = before.get(path[0])
        value = {**(section if isinstance(section, dict) else {}), path[1]: value}
    alone = _raw({"kind": "Policy", path[0]: value}, source, path)
    _, faults = validate(alone)
    if faults:
        return None, [replace(fault, line=0, document="Policy") for fault in faults]
    merged = {**before, path[0]: value}
    raw = _raw(merged, source, path) if policy is None else replace(policy.raw, data=merged)
    document, _ = validate(raw)
    return document, []


def _raw(data: dict[str, object], source: str, path: Sequence[str]) -> RawDocument:
    """A document that stands in no file."""
    keys: list[Path] = [(key,) for key in data] + [tuple(path)]
    places = {(): (0, 0), **dict.fromkeys(keys, (0, 0))}
    return RawDocument(file=source, folder=FilePath(), data=data, places=places, keys=places)
