"""Writes docs/reference from the code, so that the two can't drift apart.

python docs/generate.py            write
python docs/generate.py --check    fail where a page is not what the code says
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

import typer

from rackscale import catalog, events, spec, workload
from rackscale.capacity import ledger, placement, quality, waits
from rackscale.cli import app as command_line
from rackscale.programs import contract
from rackscale.report import because
from rackscale.report import models as known_models
from rackscale.scheduler import answers
from rackscale.sizing import (
    calibration,
    checkpoint,
    goodput,
    groups,
    layout,
    measurements,
    memory,
    provenance,
    scoring,
    size,
    step,
)

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
        yield ast.unparse(statement.target), code(ast.unparse(statement.annotation)), _value(statement), doc


def _value(statement: ast.AnnAssign) -> str:
    """The default as written; what a factory would make, where there is one."""
    match statement.value:
        case None:
            return "required"
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Lambda(body=made))]):
            return code(ast.unparse(made))
        case value:
            return code(ast.unparse(value))


def fields_table(record: Record) -> str:
    return table(
        ("field", "type", "default", "meaning"), [(code(n), t, d, doc) for n, t, d, doc in record.fields]
    )


# -- pages -----------------------------------------------------------------------------------------------------------


def events_page() -> str:
    """Inputs, decisions and notes, with every action and reason."""
    doc = inspect.getdoc(events) or ""
    parts = ["# Events", doc.partition("\n\n")[2]]
    parts += ["## Actions", "What a plan may say. Fields are under [records](#records)."]
    actions = {record.name: record for record in records(events)}
    names = [action.__name__ for action in get_args(events.Action)]
    parts.append(
        table(
            ("action", "about", "meaning"),
            [(f"[{n}](#{n.lower()})", _subject(actions[n]), actions[n].doc or MEANINGS[n]) for n in names],
        )
    )
    parts += ["## Reasons", "An action's reason has one of these codes."]
    parts.append(table(("code", "meaning"), [(code(c), meaning) for c, meaning in events.REASONS.items()]))
    parts.append("## Records")
    for record in records(events):
        parts.append(f"### {record.name}")
        if record.doc:
            parts.append(record.doc)
        parts.append(fields_table(record))
    return "\n\n".join(parts)


MEANINGS = {
    "Start": "Start a waiting gang on these nodes.",
    "Unclaim": "Give up the nodes held for a waiting gang; it tries again.",
    "Unreserve": "The promise to a waiting gang no longer holds.",
}
"""Of actions without a docstring of their own."""


def _subject(record: Record) -> str:
    return record.fields[0][0]


KNOWN = {
    "fair_share_half_life_s": "assumed; Slurm's default",
    "failures_per_gpu_hour": "measured on H100 (Llama 3: 1.97e-5); assumed of NVL72 racks",
}
"""Where a default of the policy comes from; all others are assumed."""


def policy_page() -> str:
    by_name = {record.name: record for record in records(workload)}
    parts = [
        "# Policy and defaults",
        (
            "What the scheduler does when no document says otherwise. Defaults are assumed, not measured, unless the "
            "provenance says so: they are starting points for a site to change."
        ),
    ]
    policy = by_name["Policy"]
    assert KNOWN.keys() <= {name for name, *_ in policy.fields}
    rows = [(code(n), t, d, KNOWN.get(n, "assumed"), doc) for n, t, d, doc in policy.fields]
    parts += ["## Policy", policy.doc, table(("field", "type", "default", "provenance", "meaning"), rows)]
    parts += ["## Queue", by_name["Queue"].doc, fields_table(by_name["Queue"])]
    durability = by_name["Durability"]
    parts += ["## Durability", f"{durability.doc} The defaults are assumed.", fields_table(durability)]
    return "\n\n".join(parts)


def why_page() -> str:
    """What `why` answers: obstacles, guards, ways out, and the JSON."""
    parts = [
        "# Why",
        "What `rackscale why` answers, in words and with `--json`. Codes are stable.",
        "## Obstacles",
        (
            "What keeps a gang waiting: `constraint`, and `code` of an obstacle. Each is named only where those that "
            "are checked before it are out of the way: limits, then promises, maintenance, nearness and spares."
        ),
        table(("code", "meaning"), [(code(c), meaning) for c, meaning in answers.OBSTACLES.items()]),
        "## Guards",
        (
            "Why a gang that holds nodes may not be preempted for the one that waits: keys of `guards` and "
            "`forbidden_by`. There, `policy`, `not-its-turn` and `promised` have nothing to do with gangs."
        ),
        table(("code", "gangs that are"), [(code(c), meaning) for c, meaning in because.GUARDS.items()]),
        "## Ways out",
        "`kind` of an unblock: " + ", ".join(code(kind) for kind in get_args(answers.UnblockKind)) + ".",
        "## Growth",
        "Why an elastic gang does not grow.",
        table(("code", "meaning"), [(code(c), meaning) for c, meaning in because.GROWTH.items()]),
        "## JSON",
        "A list of `Why`, one per gang of the job; of a domain or a node, one `WhyDomain`.",
        *_described(answers),
    ]
    return "\n\n".join(parts)


def quality_page() -> str:
    """The JSON of `rackscale quality`, and the ledger's states."""
    parts = [
        "# Quality",
        (
            "What `rackscale quality --json` answers. What the metrics mean: "
            "[how good the scheduling was](../explanation/quality.md)."
        ),
        *_described(quality, waits, placement, only=PUBLIC),
        "## States of the ledger",
        "At any instant every delivered GPU is in exactly one of these.",
        table(("state", "the GPU"), _states()),
        "## Badput",
        "States that are badput, and the names of Google's ml-goodput-measurement.",
        table(("state", "name"), [(code(s), code(name)) for s, name in quality.BADPUT.items()]),
    ]
    return "\n\n".join(parts)


def sizing_page() -> str:
    """The JSON of size, score, calibrate and catalog --models."""
    parts = [
        "# Sizing",
        (
            "What `rackscale size`, `score`, `calibrate` and `catalog --models` answer with `--json`. Names end with "
            "the unit; shares are parts of 1; infinite times are null. How it is reckoned: "
            "[sizing](../explanation/sizing.md)."
        ),
    ]
    for heading, text, modules, names in SIZING:
        found = {record.name: record for module in modules for record in records(module)}
        parts += [f"## {heading}", text]
        for name in names:
            record = found[name]
            rows = [
                (code(field), _json_type(kind), meaning or MEANT.get(f"{name}.{field}", ""))
                for field, kind, _, meaning in record.fields
            ]
            parts += [f"### {name}", record.doc, table(("field", "type", "meaning"), rows)]
    return "\n\n".join(parts)


SIZING: tuple[tuple[str, str, tuple[ModuleType, ...], tuple[str, ...]], ...] = (
    (
        "rackscale size",
        (
            "One `Sizing`. `candidates` are ranked, the first is the best; where none fits (`fitting` is 0, exit code "
            "1) they are the nearest to fitting. `seconds` of a candidate has the fields of `Step`, `bytes` those of "
            "`Memory`. `offer` is what an elastic job's document says of a shape: its `throughput` is in steps per "
            "second, to be compared with that of other offers of the same job."
        ),
        (size, layout, step, memory, groups, checkpoint, goodput, provenance, workload),
        (
            "Sizing",
            "Candidate",
            "Layout",
            "Step",
            "Memory",
            "Group",
            "Checkpoint",
            "Goodput",
            "Input",
            "Offer",
            "Shape",
        ),
    ),
    (
        "rackscale score",
        "One `Score`.",
        (scoring, calibration, measurements),
        ("Score", "Scored", "Errors", "Unread"),
    ),
    (
        "rackscale calibrate",
        "One `Calibrated`; `Errors` and `Unread` are above.",
        (scoring,),
        ("Calibrated",),
    ),
    ("rackscale catalog --models", "A list of `KnownModel`.", (known_models,), ("KnownModel",)),
)
"""Verbs with what they answer, and the records that it is made of."""

JSON_TYPES = (
    (r"tuple\[(\w+), \.\.\.\]", r"list[\1]"),
    (r"frozenset\[", "list["),
    (r"\bArray\b", "float"),
    (r"\bNone\b", "null"),
    (r"Annotated\[(\w+),.*\]", r"\1"),
    (r"\b(?:Basis|Sharding)\b", "str"),
    (r"\bCount\b", "int"),
)


def _json_type(kind: str) -> str:
    for pattern, word in JSON_TYPES:
        kind = re.sub(pattern, word, kind)
    return kind


MEANT = {
    "Sizing.system": "Its name in the catalog.",
    "Sizing.gpus": "GPUs of the job.",
    "Sizing.goodput": "With failures and checkpoints.",
    "Candidate.layout": "Its degrees of parallelism.",
    "Candidate.tokens_per_s_per_gpu": "Without failures.",
    "Layout.gpus": "GPUs of the job.",
    "Layout.sharding": "What data-parallel ranks divide: `none`, `zero1` (optimizer states), `zero2` (gradients too), "
    "`fsdp` (parameters too).",
    "Step.recompute": "What is computed again going backward.",
    "Step.context": "The same, context parallel.",
    "Step.expert": "The same, expert parallel.",
    "Step.pipeline": "The same, between stages.",
    "Step.data": "The same, data parallel.",
    "Step.optimizer": "The update of the parameters.",
    "Memory.parameters": "Weights that products read.",
    "Memory.gradients": "As they are reduced.",
    "Memory.optimizer": "Master weights and moments.",
    "Memory.logits": "Of the loss.",
    "Memory.fragments": "What the allocator holds and no request fits.",
    "Group.ranks": "How many talk to each other.",
    "Input.value": "A number or a word.",
    "Input.unit": "Empty: it has none.",
    "Input.provenance": "`given`, `assumed`, `measured` or `vendor`.",
    "Offer.shape": "Segments and nodes.",
    "Shape.segments": "Parts that each lie inside one NVLink domain.",
    "Shape.nodes_per_segment": "Instances of each part.",
    "Scored.precision": "Of the products.",
    "Scored.predicted_s": "The same, by the constants.",
    "Scored.high_s": "See `low_s`.",
    "Scored.gpus": "GPUs of the job.",
    "Errors.rows": "How many.",
    "Errors.median": "Of abs(predicted / measured - 1).",
    "Errors.p90": "Nine in ten are no worse.",
    "Errors.worst": "The greatest.",
    "Unread.row": "`row_id`, or the line.",
    "Unread.line": "Of the file, counted from 1.",
    "Unread.reason": "All that is wrong with it.",
    "Calibrated.rows": "Rows that could be read.",
    "KnownModel.name": "As `rackscale size` takes it.",
    "KnownModel.family": "Models that are made alike.",
    "KnownModel.parameters": "All, without multi-token prediction.",
    "KnownModel.layers": "Without those of multi-token prediction.",
    "KnownModel.source": "Who says so.",
    "Score.file": "As it was named.",
    "Score.rows": "Row by row.",
    "Sizing.model": "Its name in the catalog.",
    "Sizing.sequence_tokens": "Tokens of a sequence.",
    "Sizing.hbm_bytes": "Memory of one GPU; null: nobody publishes it.",
    "Sizing.peak_flop_per_s": "Of one GPU, dense, in the precision of the products: what MFU is a share of.",
    "Sizing.flops_per_token": "That the model needs, forward and backward.",
    "Sizing.run_tokens": "As `--tokens` said; null: it did not.",
    "Sizing.run_usd": "Of all GPUs for `run_s`; null: there is no price.",
    "Sizing.inputs": "Everything that the answer rests on, with what was assumed.",
    "Candidate.step_s": "Expected time of one step.",
    "Candidate.high_s": "One in ten took longer than this.",
    "Candidate.total_bytes": "Of memory on the fullest GPU.",
    "Candidate.fits": "Whether that is there.",
    "Candidate.usd_per_million_tokens": "Without failures; null: there is no price.",
    "Layout.recompute": "Parts of a layer, or `layer`: all of it but its input.",
    "Input.name": "Such as `precision`.",
    "Input.source": "Who says so, or why it was chosen.",
}
"""Of fields that have no docstring."""

PUBLIC = ("Quality", "Share", "Wait", "Spread", "Span", "Badput", "Recovery")
"""The records that the JSON is made of, from the outside in."""


def _described(*modules: ModuleType, only: Sequence[str] = ()) -> Iterator[str]:
    found = {record.name: record for module in modules for record in records(module)}
    for name in only or found:
        record = found[name]
        yield f"### {name}"
        if record.doc:
            yield record.doc
        yield fields_table(record)


def _states() -> list[tuple[str, str]]:
    """States with their meaning, from the ledger's docstring."""
    doc = inspect.getdoc(ledger) or ""
    lines = (line.split(None, 1) for line in doc.splitlines() if line.startswith("    "))
    told = {name: meaning for name, meaning in lines if name in ledger.STATES}
    assert tuple(told) == ledger.STATES
    return [(code(name), meaning) for name, meaning in told.items()]


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


def models_page() -> str:
    """The models that can be sized."""
    rows = [
        (
            code(one.name),
            f"{one.parameters / 1e9:,.2f}",
            "" if one.active_parameters == one.parameters else f"{one.active_parameters / 1e9:,.2f}",
            one.layers,
            "" if one.longest_tokens is None else f"{one.longest_tokens:,}",
            ", ".join(map(code, one.aliases)),
        )
        for one in known_models.known()
    ]
    head = ("model", "parameters, G", "of a token, G", "layers", "longest sequence, tokens", "also called")
    return "\n\n".join(
        (
            "# Models",
            (
                "What `rackscale size` knows by name; `rackscale catalog --models` lists the same. Any other is "
                "described by the path of its Hugging Face config.json."
            ),
            table(head, rows),
        )
    )


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


WORDS = {"30s": "duration", "09:00": "time"}
"""What texts of this form (their first example in the schema) are called."""


def documents_page() -> str:
    """Every kind of document with its fields, from the JSON Schema that editors use."""
    parts = [
        "# Documents",
        "What the YAML files may say. `rackscale schema` prints the same as JSON Schema, for editors.",
        "A *duration* is a number of seconds, or text such as `30s`, `10m`, `1h30m`, `2d`.",
        "A *time* is `09:00`, or a duration since midnight of a rehearsal's first day.",
    ]
    definitions = _definitions()
    documents = [_reference(option) for option in spec.json_schema()["oneOf"]]
    for name in dict.fromkeys((*documents, *definitions)):
        fields = _fields_of(definitions[name])
        required = fields.get("required", ())
        rows = [
            (code(field), _type(value), _default(field in required, value), value.get("description", ""))
            for field, value in sorted(fields["properties"].items(), key=lambda item: item[0] != "kind")
        ]
        parts += [f"## {_title(name)}", fields.get("description", "")]
        parts.append(table(("field", "type", "default", "meaning"), rows))
    return "\n\n".join(parts)


@cache
def _definitions() -> dict[str, Any]:
    found: dict[str, Any] = spec.json_schema()["$defs"]
    return found


def _fields_of(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition as a mapping, where it may also be written in one value."""
    options: list[dict[str, Any]] = definition.get("anyOf", [definition])
    return next(option for option in options if "properties" in option)


def _reference(value: dict[str, Any]) -> str:
    return str(value["$ref"]).rpartition("/")[2]


def _title(name: str) -> str:
    return name.removesuffix("Document").removesuffix("Section")


def _default(required: bool, value: dict[str, Any]) -> str:
    if required:
        return "required"
    default = value.get("default")
    if default in (None, "") or isinstance(default, dict):
        return ""
    return code(f"{default:g}" if isinstance(default, float) else json.dumps(default))


def _type(value: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "$ref" in value:
        name = _reference(value)
        link = f"[{_title(name)}](#{_title(name).lower()})"
        options = _definitions()[name].get("anyOf", ())
        return _either([_type(option) for option in options if "properties" not in option] + [link])
    if "const" in value:
        return code(value["const"])
    if "enum" in value:
        systems = [s.name for s in catalog.systems()]
        return (
            "[system](catalog.md)" if value["enum"] == systems else ", ".join(code(v) for v in value["enum"])
        )
    if "anyOf" in value:
        return _either([_type(option) for option in value["anyOf"]])
    kind = value.get("type", "anything")
    if kind == "array":
        return f"list of {_type(value['items'])}"
    example = next(iter(value.get("examples", ())), None)
    if example in WORDS:
        return WORDS[example]
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    return words if example is None else f"{words}, such as {code(example)}"


def _either(words: list[str]) -> str:
    """Alternatives in words; a time may be a duration, and a duration a number, without saying so."""
    implied = {"time": {"duration", "number"}, "duration": {"number"}}
    left_out = {word for given in words for word in implied.get(given, ())}
    return " or ".join(word for word in dict.fromkeys(words) if word not in left_out)


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
    "models.md": models_page,
    "policy.md": policy_page,
    "quality.md": quality_page,
    "sizing.md": sizing_page,
    "why.md": why_page,
    "worker-contract.md": contract_page,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
