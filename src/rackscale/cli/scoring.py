"""score, calibrate: how right sizing is about measured steps, and how to make it more so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rackscale.cli.output import FAILED, JsonOption, err, out, print_json, show

PANEL = "Sizing"
File = Annotated[Path, typer.Argument(help="A CSV table of measured steps.", show_default=False)]
Constants = Annotated[
    Path | None,
    typer.Option("--constants", metavar="FILE.toml", help="Your own, as `rackscale calibrate` writes them."),
]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    app.command("score", rich_help_panel=PANEL)(score)
    app.command("calibrate", rich_help_panel=PANEL)(calibrate)


def score(file: File, constants: Constants = None, json: JsonOption = False) -> None:
    """Predict every measured step of a table, and say how far off it was, row by row and in summary.

    Needed columns: system, model, num_gpus, global_batch_size (sequences), seq_len (tokens), tp, pp, and step_time_s or
    tokens_per_s_per_gpu.

    Columns that matter where they are not the default: precision (bf16), micro_batch_size (1), cp, ep, etp (1), vp
    (as deep as it goes), dp_type (ddp+dist-optimizer, fsdp, zero2, none), recompute (the least that fits), layers (the
    model's), task (pretrain), framework (megatron), source_date (now), nic_gbps_per_gpu, offload, cuda_graph,
    comm_overlap. Row_id, source_id and memory_gib are read too. Rows that can't be read are named with the reason.

    Examples: `rackscale score measured.csv`, `rackscale score ours.csv --constants ours.toml --json`
    """
    from rackscale.report import scoring as report
    from rackscale.sizing import scoring

    with err.status("predicting"):
        values = None if constants is None else scoring.from_toml(constants)[0]
        found = scoring.score(file, values=values)
    show(found, report.score(found), json=json)
    if not found.rows:
        raise typer.Exit(FAILED)


def calibrate(
    file: File,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.toml", help="Write the constants here.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Sharpen sizing on your own fleet's measured steps, and show the error before and after.

    The table is that of `rackscale score`. Every fifth row is held back (of fewer than 25 rows, each fifth in turn), so
    that errors are of rows which the constants have not seen. Those written are then fitted to all rows. They start
    from the published ones and stay near them where your rows say nothing. Needs SciPy: the extra `calibrate`.

    Examples: `rackscale calibrate ours.csv --out ours.toml`, then
    `rackscale size llama3.1-70b --train --system p5 --gpus 64 --constants ours.toml`
    """
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # the matrices are small: threads would wait for each other
    from rackscale.report import scoring as report
    from rackscale.sizing import scoring

    with err.status("fitting"):
        found = scoring.calibrate(file)
    if out_file is not None:
        out_file.write_text(scoring.as_toml(found, file), "utf-8")
    if json:
        print_json(found)
        return
    out.print(report.calibration(found, file))
    if out_file is None:
        out.print("nothing is written: --out FILE.toml keeps the constants", markup=False, style="dim")
    else:
        out.print(f"written: {out_file}", markup=False)
