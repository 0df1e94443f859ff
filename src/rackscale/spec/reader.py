"""Files and folders -> raw documents whose every value knows its line and column.

YAML is read by the rules of YAML 1.2's core schema, as editors do: `10:00` and `yes` are text. Nothing a file holds
can build an object, run away in size or depth, or hide the documents after it: each `---` part is parsed by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rackscale.spec.problems import Path as FieldPath
from rackscale.spec.problems import Place, Problem, dotted, shown

LARGEST_FILE_BYTES = 1 << 20
DEEPEST_NESTING = 32
MOST_VALUES = 100_000
"""Values of one document, aliases expanded."""

_LONGEST_NUMBER = 30
_SUFFIXES = (".yaml", ".yml")
_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    (f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
    (f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    (f"{_TAG}int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    (
        f"{_TAG}float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)\Z"
        ),
    ),
)
_PATTERNS = dict(_SCALARS)
_MARKER = re.compile(r"---([ \t\r\n\x85\u2028\u2029]|\Z)")
_END = re.compile(r"\.\.\.([ \t\r\n\x85\u2028\u2029]|\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDocument:
    """One YAML document as plain data, not yet validated."""

    file: str
    folder: Path
    """Paths inside the document are relative to it."""
    data: object
    places: dict[FieldPath, Place] = field(repr=False)
    """Where each value is written; `()` is the document itself."""
    keys: dict[FieldPath, Place] = field(repr=False)
    """Where each mapping key is written."""
    faults: tuple[Problem, ...] = ()
    """What is wrong with single keys and values as YAML; `document` is still to be said."""
    faulty: frozenset[FieldPath] = frozenset()
    """Values that `faults` speak of, and that say nothing."""

    def place(self, path: FieldPath) -> tuple[Place, FieldPath]:
        """The place of `path`, or of its nearest ancestor that is written; with the path found."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path], path


def read(paths: Iterable[Path | str]) -> tuple[list[RawDocument], list[Problem]]:
    """Every document of the files, and of the folders' *.yaml and *.yml files, in order; and what can't be read."""
    documents: list[RawDocument] = []
    problems: list[Problem] = []
    files = _files(paths, problems)
    for file in files:
        text = _text(file, problems)
        if text is not None:
            documents += _documents(file, text, problems)
    return documents, problems


def parse(text: str, source: str) -> tuple[object, list[Problem]]:
    """One YAML value that stands in no file, or what is wrong with it; problems call it `source`."""
    try:
        nodes = list(_compose(text))
    except yaml.YAMLError as error:
        return None, [replace(_syntax_problem(source, 0, text, error), line=0)]
    if len(nodes) != 1:
        return None, [
            Problem(file=source, message="a value is missing" if not nodes else "must be one value")
        ]
    try:
        raw = _Builder(file=source, offset=0).build(nodes[0], Path())
    except _TooMuchError as error:
        return None, [replace(error.problem, line=0)]
    return raw.data, [replace(fault, line=0) for fault in raw.faults]


def _files(paths: Iterable[Path | str], problems: list[Problem]) -> list[Path]:
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = list(_walk(path, problems))
            if not inside:
                problems.append(Problem(file=str(path), message="no *.yaml or *.yml file in this folder"))
        elif path.exists():
            inside = [path]
        else:
            problems.append(Problem(file=str(path), message="no such file or folder"))
            continue
        for file in inside:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _walk(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        problems.append(Problem(file=str(error.filename), message=f"can't be read: {error.strerror}"))

    for where, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            file = Path(where, name)
            if name.endswith(_SUFFIXES) and not name.startswith(".") and file.is_file():
                yield file


def _text(file: Path, problems: list[Problem]) -> str | None:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        problems.append(Problem(file=str(file), message=f"can't be read: {error.strerror}"))
        return None
    if len(content) > LARGEST_FILE_BYTES:
        problems.append(
            Problem(
                file=str(file),
                message=f"larger than {LARGEST_FILE_BYTES >> 10} KiB",
                fix="split it into several files",
            )
        )
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        message = f"not UTF-8 text (byte 0x{content[error.start]:02x})"
        problems.append(
            Problem(file=str(file), line=line, column=column, message=message, fix="save it as UTF-8")
        )
        return None


def _documents(file: Path, text: str, problems: list[Problem]) -> list[RawDocument]:
    documents = []
    for first_line, part in _parts(text):
        try:
            for node in _compose(part):
                if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null":
                    continue  # nothing between two markers
                builder = _Builder(file=str(file), offset=first_line)
                try:
                    documents.append(builder.build(node, file.parent))
                except _TooMuchError as error:
                    problems.append(error.problem)
        except yaml.YAMLError as error:
            problems.append(_syntax_problem(str(file), first_line, part, error))
    return documents


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """The text between `---` markers, each with its first line (from 0), so that one bad document hides no other.

    A line that starts with `---` is always a marker, even inside a block scalar (YAML 1.2, rule c-forbidden).
    """
    first, lines, started = 0, list[str](), False
    for number, line in enumerate(text.splitlines(keepends=True)):
        if started and _MARKER.match(line):
            yield first, "".join(lines)
            first, lines, started = number, [], False
        lines.append(line)
        # Comments and directives before a marker belong to the document after it.
        started = started or re.match(r"\s*([#%]|$)", line) is None
        if started and _END.match(line):
            yield first, "".join(lines)
            first, lines, started = number + 1, [], False
    yield first, "".join(lines)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth >= DEEPEST_NESTING:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
        plain, _ = implicit
        tags = (tag for tag, pattern in _SCALARS if plain and pattern.match(value))
        return next(tags, f"{_TAG}str")


_TOO_DEEP = f"nested deeper than {DEEPEST_NESTING} levels"


def _compose(text: str) -> Iterator[yaml.Node]:
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            yield node
    except (
        ValueError,
        OverflowError,
    ) as error:  # PyYAML lets "\U99999999" and "%YAML 1.<5,000 digits>" through
        raise yaml.YAMLError("an escape or a number is out of range") from error


def _syntax_problem(file: str, offset: int, text: str, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n"), error.position - (before.rfind("\n") + 1)
        message = f"a control character (0x{error.character:02x}) is not allowed in YAML"
        return Problem(file=file, line=offset + line + 1, column=column + 1, message=message)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}, " if error.context else ""
        message = f"not valid YAML: {context}{error.problem}"
        fix = "indent with spaces" if "'\\t'" in message else None
        if mark is not None:
            return Problem(
                file=file, line=offset + mark.line + 1, column=mark.column + 1, message=message, fix=fix
            )
        return Problem(file=file, line=offset + 1, column=1, message=message)
    return Problem(file=file, line=offset + 1, column=1, message=f"not valid YAML: {error}")


class _TooMuchError(Exception):
    """The document is too large or too deep to be built."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Builder:
    """One node graph -> plain data and places."""

    def __init__(self, *, file: str, offset: int) -> None:
        self._file, self._offset = file, offset
        self._places: dict[FieldPath, Place] = {}
        self._keys: dict[FieldPath, Place] = {}
        self._faults: list[Problem] = []
        self._faulty: set[FieldPath] = set()

    def build(self, node: yaml.Node, folder: Path) -> RawDocument:
        """The document. Raises _TooMuchError."""
        data = self._build(node, ())
        return RawDocument(
            file=self._file,
            folder=folder,
            data=data,
            places=self._places,
            keys=self._keys,
            faults=tuple(self._faults),
            faulty=frozenset(self._faulty),
        )

    def _build(self, node: yaml.Node, path: FieldPath) -> object:
        self._places[path] = self._place(node)
        if len(self._places) > MOST_VALUES:
            raise _TooMuchError(
                self._problem(node, (), f"more than {MOST_VALUES:,} values, aliases expanded")
            )
        if len(path) > DEEPEST_NESTING:
            raise _TooMuchError(self._problem(node, (), f"{_TOO_DEEP}, or an alias that contains itself"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        try:
            return _scalar(node)
        except _FaultError as fault:
            self._faults.append(self._problem(node, path, str(fault), fault.fix))
            self._faulty.add(path)
            return None

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                self._faults.append(self._problem(key_node, path, "a key must be text", "put it in quotes"))
            elif not _storable(key):
                self._faults.append(self._problem(key_node, path, _NOT_STORABLE))
            elif key in result:
                message = f"the key is already given in line {self._keys[(*path, key)][0]}"
                self._faults.append(self._problem(key_node, (*path, key), message))
            else:
                self._keys[(*path, key)] = self._place(key_node)
                result[key] = self._build(value_node, (*path, key))
        return result

    def _place(self, node: yaml.Node) -> Place:
        return self._offset + node.start_mark.line + 1, node.start_mark.column + 1

    def _problem(self, node: yaml.Node, path: FieldPath, message: str, fix: str | None = None) -> Problem:
        line, column = self._place(node)
        return Problem(
            file=self._file, line=line, column=column, field=dotted(path), message=message, fix=fix
        )


class _FaultError(Exception):
    """A scalar that can't be a value."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix


_NOT_STORABLE = "text may not hold NUL or lone surrogate characters"


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _scalar(node: yaml.ScalarNode) -> object:
    kind, text = str(node.tag).removeprefix(_TAG), str(node.value)
    if kind == "str":
        if not _storable(text):
            raise _FaultError(_NOT_STORABLE)
        return text
    pattern = _PATTERNS.get(str(node.tag))
    if pattern is None or not pattern.match(text):
        raise _FaultError(f"the tag {shown(kind)} can't be used here", "remove it")
    if kind == "null":
        raise _FaultError("a value is missing", "give one, or remove the line")
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if len(text) > _LONGEST_NUMBER:
        raise _FaultError("the number has too many digits")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
