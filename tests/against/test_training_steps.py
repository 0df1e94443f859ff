"""Predicted steps and peaks of memory against published measurements.

training_steps.csv holds a few dozen published rows with their sources, one per model, system and precision. Where the
whole table is at hand it is read too. Bounds are what was measured when the constants were fitted, with a little room:
a change of the model that makes it worse must be seen here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rackscale.sizing import calibration
from rackscale.sizing.layout import Array, Layouts
from rackscale.sizing.measurements import Measurement, read
from rackscale.sizing.memory import CONTEXT_BYTES, OUT, TIGHT, memory, verdicts

FEW = Path(__file__).with_name("training_steps.csv")
ALL = Path(__file__).parents[3] / "shared/data/training/measured.csv"


def ratio(rows: list[Measurement]) -> Array:
    problem = calibration.problem(rows)
    return problem.predict(calibration.published()).seconds / problem.seconds


def needed(row: Measurement) -> float:
    at = Layouts.of([row.layout], global_batch=row.global_batch, tokens=row.tokens, domain=row.domain)
    return float(memory(row.model, at, row.recipe).total[0])


def test_a_few_dozen_published_steps() -> None:
    rows, unread = read(FEW)
    assert not unread
    found = calibration.errors(ratio(rows))
    assert found.median < 0.07
    assert found.p90 < 0.25


def test_no_layout_that_ran_is_called_out_of_memory() -> None:
    for row in read(FEW)[0]:
        room = row.recipe.hardware.accelerator.hbm_bytes
        assert room is not None
        assert needed(row) <= room * (1 + TIGHT), (row.row, row.label, str(row.layout))


@pytest.mark.parametrize(
    ("model", "layers", "tp", "pp", "dp", "stated_gib"),
    [
        # SimuMax 1.2, docs/b200/b200_release_v1.2_summary.json: Megatron-LM 0.14 on one node of 8 B200, layers cut
        ("llama3-70b", 12, 1, 2, 4, 66.55),
        ("llama3-70b", 12, 2, 1, 4, 60.68),
        ("llama3-70b", 12, 4, 1, 2, 39.07),
        ("llama3-70b", 12, 8, 1, 1, 28.29),
        ("llama3.1-405b", 4, 1, 2, 4, 87.08),
        ("llama3.1-405b", 4, 2, 1, 4, 81.59),
        ("llama3.1-405b", 4, 4, 1, 2, 52.89),
        ("llama3.1-405b", 4, 8, 1, 1, 38.57),
    ],
)
def test_stated_peaks_of_memory(  # noqa: PLR0917
    tmp_path: Path, model: str, layers: int, tp: int, pp: int, dp: int, stated_gib: float
) -> None:
    file = tmp_path / "row.csv"
    file.write_text(
        "system,model,layers,precision,framework,num_gpus,global_batch_size,micro_batch_size,seq_len,tp,pp,vp,dp_type,"
        "recompute,step_time_s\n"
        f"b200,{model},{layers},bf16,megatron-lm 0.14,8,{4 * dp},1,4096,{tp},{pp},1,zero1,none,1\n",
        "utf-8",
    )
    rows, unread = read(file)
    assert not unread
    assert needed(rows[0]) - CONTEXT_BYTES == pytest.approx(stated_gib * 2**30, rel=0.06)


@pytest.mark.skipif(not ALL.exists(), reason="the whole table of measurements is not at hand")
def test_the_whole_table() -> None:
    rows, unread = read(ALL)
    assert len(rows) > 700
    assert all(bad.reason for bad in unread)
    found = calibration.errors(ratio(rows))
    assert found.median < 0.045
    assert found.p90 < 0.15
    for row in rows:
        room = row.recipe.hardware.accelerator.hbm_bytes
        assert verdicts(np.array([needed(row)]), room)[0] != OUT, (row.row, row.label, str(row.layout))
