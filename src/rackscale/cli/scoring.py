"""score, calibrate: how right sizing is about measured steps, and how to make it more so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rackscale.cli.output import FAILED, JsonOption, err, fail, out, print_json, show
from rackscale.errors import DocumentError

PANEL = "Sizing"
File = Annotated[Path, typer.Argument(help="A CSV table of measured steps.", show_default=False)]
Constants = Annotated[
    Path | None,
    typer.Option(
        "--constants",
        metavar="FILE.toml",
        help="Your own, as `rackscale calibrate` writes them. [default: the published ones]",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    app.command("score", rich_help_panel=PANEL)(score)
    app.command("calibrate", rich_help_panel=PANEL)(calibrate)


def score(file: File, constants: Constants = None, json: JsonOption = False) -> None:
    """Predict every measured step of a table, and say how far off it was, row by row and in summary.

    Needed columns: system, model, num_gpus, global_batch_size (sequences), seq_len (tokens), tp, pp, and one of
    step_time_s, tokens_per_s_per_gpu, model_tflops_per_gpu (counted as NVIDIA's tables of that year count).

    Columns that matter where they are not the default: precision (bf16), micro_batch_size (1), cp, ep, etp (1), vp
    (as deep as it goes), dp_type (ddp+dist-optimizer, fsdp, zero2, none), recompute (the least that fits; none, full,
    or modules as `rackscale size` names them, such as norm+activation), layers (the model's), task (pretrain),
    framework (megatron), source_date (now), nic_gbps_per_gpu, offload (20layers), cuda_graph (none, layers, full),
    comm_overlap (dispatcher=deepep|hybridep|alltoall, moe_a2a_overlap=True, tp_overlap=none), moe_routing (token-drop).

    Row_id, source_id and memory_gib are read too. Rows that can't be read are named with the reason.

    Examples: `rackscale score measured.csv`, `rackscale score ours.csv --constants ours.toml --json`
    """
    from rackscale.report import scoring as report
    from rackscale.sizing import scoring

    with err.status("predicting"):
        found = scoring.score(file, constants_file=constants)
    show(found, report.score(found), json=json)
    if not found.rows:
        raise typer.Exit(FAILED)


def calibrate(
    file: File,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.toml", help="Write the constants here, if they gain.", show_default=False
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write them even if they do not gain on rows held back.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Sharpen sizing on your own fleet's measured steps, and show the error before and after.

    The table is that of `rackscale score`. Every fifth row is held back (of fewer than 25 rows, each fifth in turn), so
    that errors are of rows which the constants have not seen. Those written are then fitted to all rows. They start
    from the published ones and stay near them where your rows say nothing. Needs SciPy: the extra `calibrate`.

    Exit code 1: there is nothing to gain, so that nothing is written (unless `--anyway`).

    Examples: `rackscale calibrate ours.csv --out ours.toml`, then
    `rackscale size llama3.1-70b --train --system p5 --gpus 64 --constants ours.toml`
    """
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # the matrices are small: threads would wait for each other
    from rackscale.report import scoring as report
    from rackscale.sizing import scoring

    if out_file is not None:
        _check_writable(out_file)
    with err.status("fitting"):
        found = scoring.calibrate(file)
    if json:
        print_json(found)
    else:
        out.print(report.calibration(found, file))
    if out_file is None:
        if not json:
            out.print("nothing is written: --out FILE.toml keeps the constants", markup=False, style="dim")
    elif found.gains or anyway:
        write_whole(out_file, scoring.as_toml(found, file))
        if not json:
            out.print(f"written: {out_file}", markup=False)
    else:
        raise fail(
            f"{out_file} is not written: on rows held back the median error is {found.after.median:.1%} with the new"
            f" constants and {found.before.median:.1%} with the published ones",
            hint="keep those, or say --anyway",
        )


def _check_writable(path: Path) -> None:
    """Before minutes are spent on what can't be kept. Raises DocumentError."""
    folder = path.resolve().parent
    if path.exists() and not path.is_file():
        raise DocumentError(
            [f"--out {path}: this is {'a folder' if path.is_dir() else 'no file'}; name a file"]
        )
    if not folder.is_dir():
        raise DocumentError([f"--out {path}: there is no folder {path.parent}"])
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise DocumentError([f"--out {path}: it can't be written: permission denied"])


def write_whole(path: Path, text: str) -> None:
    """The whole text or nothing: whoever reads or interrupts finds the old file or the new one."""
    place = path.resolve()  # a link goes on leading to it
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
