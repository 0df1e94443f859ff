"""Writes docs/reference from the code, so that the two can't drift apart.

python docs/generate.py            write
python docs/generate.py --check    fail where a page is not what the code says
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import typer

from rackscale import catalog, events, spec, workload
from rackscale.cli import app as command_line
from rackscale.programs import contract

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py from the code. Change the code, then run it. -->"


def main(arguments: Sequence[str]) -> int:
    stale = []
    for name, page in PAGES.items():
        path = REFERENCE / name
        text = f"{NOTE}\n\n" + page().rstrip() + "\n"
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {path}")
    if stale and "--check" in arguments:
        print(f"out of date: {', '.join(stale)} (python docs/generate.py writes them)")
        return 1
    return 0


# -- markdown --------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    return f"`{value}`"


def first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


# -- records, from their source --------------------------------------------------------------------------------------


class Record(NamedTuple):
    """A class of fields with the docstrings that stand below them."""

    name: str
    doc: str
    fields: list[tuple[str, str, str, str]]
    """Name, type, default, meaning."""


def records(module: ModuleType) -> Iterator[Record]:
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(s, ast.AnnAssign) for s in node.body):
            yield Record(node.name, " ".join((ast.get_docstring(node) or "").split()), list(_fields(node)))


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    for at, statement in enumerate(node.body):
        if not isinstance(statement, ast.AnnAssign) or "ClassVar" in ast.unparse(statement.annotation):
            continue
        below = node.body[at + 1] if at + 1 < len(node.body) else None
        doc = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            doc = str(below.value.value)
        default = "required" if statement.value is None else code(ast.unparse(statement.value))
        yield ast.unparse(statement.target), code(ast.unparse(statement.annotation)), default, doc


def fields_table(record: Record) -> str:
    return table(
        ("field", "type", "default", "meaning"), [(code(n), t, d, doc) for n, t, d, doc in record.fields]
    )


# -- pages -----------------------------------------------------------------------------------------------------------


def events_page() -> str:
    """Inputs, decisions and notes, with every action and reason."""
    doc = inspect.getdoc(events) or ""
    parts = ["# Events", doc.partition("\n\n")[2]]
    parts += ["## Reasons", "An action's reason has one of these codes."]
    parts.append(table(("code", "meaning"), [(code(c), meaning) for c, meaning in events.REASONS.items()]))
    parts.append("## Records")
    for record in records(events):
        parts.append(f"### {record.name}")
        if record.doc:
            parts.append(record.doc)
        parts.append(fields_table(record))
    return "\n\n".join(parts)


def policy_page() -> str:
    by_name = {record.name: record for record in records(workload)}
    parts = [
        "# Policy and defaults",
        "What the scheduler does when no document says otherwise. Every default is assumed, not measured.",
    ]
    for name in ("Policy", "Queue", "Durability"):
        record = by_name[name]
        parts += [f"## {name}", record.doc, fields_table(record)]
    return "\n\n".join(parts)


def contract_page() -> str:
    """The worker contract, from its own docstring and names."""
    record = next(r for r in records(contract) if r.name == "Worker")
    names = sorted(n for n in vars(contract) if n.isupper() and isinstance(getattr(contract, n), str))
    parts = ["# Worker contract", inspect.getdoc(contract) or "", "## Environment"]
    parts.append(
        table(("variable", "name in `Worker`"), [(code(getattr(contract, n)), n.lower()) for n in names])
    )
    parts += ["## Worker", record.doc, fields_table(record)]
    return "\n\n".join(parts)


def catalog_page() -> str:
    parts = [
        "# Catalog",
        "What rackscale knows about systems, and who says so. An empty cell: nobody publishes it.",
    ]
    parts.append(
        table(
            ("system", "what it is", "accelerator", "nodes x GPUs", "GPUs", "GiB a GPU", "fabric Gb/s a GPU"),
            [
                (
                    code(s.name),
                    s.title,
                    s.accelerator.name,
                    f"{s.nodes} x {s.gpus_per_node}",
                    s.gpus,
                    _scaled(s.accelerator.hbm_bytes, 2**30),
                    _scaled(s.fabric_bits_per_s_per_gpu, 1e9),
                )
                for s in catalog.systems()
            ],
        )
    )
    parts += ["## List prices", "They move; a fleet's own contract price always wins over them."]
    parts.append(
        table(
            ("system", "model", "region", "seen", "USD a GPU-hour", "source"),
            [
                (
                    code(p.name),
                    p.model,
                    p.region,
                    p.seen,
                    p.usd_per_gpu_hour,
                    _source(p.origins["usd_per_gpu_hour"]),
                )
                for s in catalog.systems()
                for p in s.prices
            ],
        )
    )
    parts.append("## Systems")
    for found in catalog.systems():
        parts += [f"### {found.name}", _facts(found)]
    parts.append("## Accelerators")
    accelerators = {s.accelerator.name: s.accelerator for s in catalog.systems()}
    for accelerator in accelerators.values():
        if accelerator.origins:
            parts += [f"### {accelerator.name}", _facts(accelerator)]
    return "\n\n".join(parts)


def _facts(row: catalog.System | catalog.Accelerator) -> str:
    return table(
        ("fact", "value", "provenance", "source", "note"),
        [
            (code(name), _number(getattr(row, name)), origin.provenance, _source(origin), origin.note)
            for name, origin in row.origins.items()
        ],
    )


def _source(origin: catalog.Origin) -> str:
    return f"[{origin.source}]({origin.url})" if origin.url else origin.source


def _scaled(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:,.0f}"


def _number(value: object) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def documents_page() -> str:
    """Every kind of document with its fields, from the JSON Schema that editors use."""
    schema: dict[str, Any] = spec.json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    parts = ["# Documents", "What the YAML files may say. `rackscale schema` prints the same as JSON Schema."]
    for name, definition in sorted(
        definitions.items(), key=lambda item: "kind" not in item[1].get("properties", {})
    ):
        if "properties" not in definition:
            continue
        kind = definition["properties"].get("kind", {}).get("const")
        parts += [f"## {kind or name}", " ".join(definition.get("description", "").split())]
        required = set(definition.get("required", ()))
        rows = [
            (code(field), _type(value), _default(field in required, value), value.get("description", ""))
            for field, value in definition["properties"].items()
        ]
        parts.append(table(("field", "type", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _default(required: bool, value: dict[str, Any]) -> str:
    if required:
        return "required"
    default = value.get("default")
    return "" if default is None or isinstance(default, dict) else code(default)


def _type(value: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return code(value["const"])
    if "enum" in value:
        return ", ".join(code(each) for each in value["enum"])
    if options := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(each) for each in options if each.get("type") != "null"))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    kinds = value.get("type", "anything")
    examples = value.get("examples")
    words = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    return words + (f", such as {code(examples[0])}" if examples else "")


def cli_page() -> str:
    root: Any = typer.main.get_command(command_line.app)
    parts = ["# Command line", first_line(root.help)]
    parts.append(
        table(("command", "what it does"), [(code(p), first_line(c.help)) for p, c in _commands(root)])
    )
    for path, command in _commands(root):
        parts += [f"## {path}", inspect.cleandoc(command.help or "")]
        rows = [_parameter(p) for p in command.params if not getattr(p, "hidden", False)]
        if rows:
            parts.append(table(("argument", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _commands(group: Any, prefix: str = "rackscale") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _parameter(parameter: Any) -> tuple[str, str, str]:
    option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if option else [parameter.name.upper()]
    default = parameter.default
    shown = "required" if parameter.required else ""
    if not parameter.required and isinstance(default, str | int | float | Path) and default is not False:
        shown = code(default)
    return ", ".join(code(name) for name in names), shown, parameter.help or ""


PAGES: dict[str, Callable[[], str]] = {
    "catalog.md": catalog_page,
    "cli.md": cli_page,
    "documents.md": documents_page,
    "events.md": events_page,
    "policy.md": policy_page,
    "worker-contract.md": contract_page,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
