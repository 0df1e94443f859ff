"""check, schema, catalog: documents and facts, without a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from rackscale import catalog, spec
from rackscale.cli.output import FAILED, Files, JsonOption, err, out, print_json, report, show
from rackscale.cli.site import Site, declared
from rackscale.cli.sizing import known_models, known_systems
from rackscale.errors import DocumentError, UnknownNameError
from rackscale.report.tables import plain


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    panel = "Documents and facts"
    app.command(rich_help_panel=panel)(check)
    app.command(rich_help_panel=panel)(schema)
    app.command("catalog", rich_help_panel=panel)(show_catalog)


def check(
    files: Files,
    site: Annotated[
        Path | None,
        typer.Option(
            "--site",
            "-s",
            help="Check against what this site has: its live fleet where a controller has run, else its documents.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check documents; report every problem with its file and line. Warnings are no problems.

    Examples: `rackscale check site/`, `rackscale check train.yaml --site site/`,
    `rackscale check train.yaml queue.yaml --json`
    """
    found = spec.check(files, around=None if site is None else declared(Site(site)))
    for warning in () if json else found.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if json:
        print_json({"counts": found.counts, "problems": found.problems, "warnings": found.warnings})
    elif found.problems:
        report(DocumentError(found.problems))
    else:
        out.print("ok: " + ", ".join(f"{count} {kind}" for kind, count in found.counts.items()))
    if found.problems:
        raise typer.Exit(FAILED)


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of printing.")
    ] = None,
) -> None:
    """Print the JSON Schema of all documents, for editors.

    Example: `rackscale schema -o rackscale.schema.json`, then put
    `# yaml-language-server: $schema=rackscale.schema.json` on top of a document.
    """
    if output is None:
        print_json(spec.json_schema())
        return
    import msgspec

    output.write_bytes(msgspec.json.format(msgspec.json.encode(spec.json_schema()), indent=2) + b"\n")
    out.print(f"wrote {output}")


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    return (known_models if ctx.params.get("of_models") else known_systems)(incomplete)


def show_catalog(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them, or a part of names; all when left out.", autocompletion=_names),
    ] = None,
    of_models: Annotated[
        bool, typer.Option("--models", help="Models that can be sized, instead of systems.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the systems that a fleet can be made of, or the models that can be sized, with their sources.

    Examples: `rackscale catalog`, `rackscale catalog u-p6e-gb300x72 --json`, `rackscale catalog --models`,
    `rackscale catalog qwen3 --models`
    """
    if of_models:
        _show_models(name, json=json)
        return
    systems = catalog.systems()
    if name is not None:
        parts = tuple(s for s in systems if name.lower() in s.name)
        exact = tuple(s for s in systems if s.name == name)
        systems = exact or parts or (catalog.system(name),)
    table = plain("system", "what", "accelerator", "nodes", "GPUs per node", "GPUs")
    for system in systems:
        table.add_row(
            Text(system.name),
            system.title,
            system.accelerator.name,
            str(system.nodes),
            str(system.gpus_per_node),
            str(system.gpus),
        )
    show(systems, table, json=json)


def _show_models(part: str | None, *, json: bool) -> None:
    from rackscale import models
    from rackscale.report import models as report

    found = report.known(part)
    if part is not None and not found:
        raise UnknownNameError("model", part, [*(m.name for m in models.models()), *models.aliases()])
    show(found, report.table(found), json=json)
