"""Verbs that need no controller; exit codes; mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rackscale import models
from tests.cli.conftest import LOOP, loop, rackscale

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_check_counts_what_it_read(site: Path, tmp_path: Path) -> None:
    job = loop(tmp_path, "count")
    assert rackscale("check", site, job).out == "ok: 1 Fleet, 1 Queue, 1 Policy, 1 Batch\n"
    assert rackscale("check", site, job, "--json").json["problems"] == []


def test_check_reports_every_problem_with_its_place(site: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    text = LOOP.replace("NAME", "bad").replace("NODES", "many").replace("queue: research", "queu: research")
    bad.write_text(text)
    answer = rackscale("check", site, bad, code=1)
    assert answer.out == ""
    assert f"{bad}:3:" in answer.err
    assert f"{bad}:4:" in answer.err
    assert "did you mean 'queue'?" in answer.err
    assert answer.err.endswith("2 problems\n")
    assert len(rackscale("check", site, bad, "--json", code=1).json["problems"]) == 2


def test_check_looks_at_the_site_that_it_is_told(site: Path, tmp_path: Path) -> None:
    job = loop(tmp_path, "wide", nodes=3)
    job.write_text(job.read_text().replace("queue: research", "queue: reserch"))
    assert rackscale("check", job).out == "ok: 1 Batch\n"
    answer = rackscale("check", job, "--site", site, code=1)
    assert "unknown queue ('reserch'); did you mean 'research'?" in answer.err
    assert "too large for every NVLink domain (3); at most 2" in answer.err
    assert "neither a journal nor documents" in rackscale("check", job, "--site", tmp_path / "x", code=1).err


def test_quotas_that_only_the_spares_could_fill_are_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    text = (
        "kind: Fleet\nname: f\nclusters: [{name: a, system: u-p6e-gb300x72, domains: 2, spares_per_domain: 1}]\n"
        "---\nkind: Queue\nname: p\nquota: {gpus: 100}\n---\nkind: Queue\nname: q\nquota: {gpus: 40}\n"
    )
    file.write_text(text)
    answer = rackscale("check", file)
    assert answer.out == "ok: 1 Fleet, 2 Queue\n"
    assert answer.err == (
        f"warning: {file}:11:15: Queue 'q' quota.gpus: 'p' and 'q' are guaranteed 140 GPUs, and 8 of the fleet's 144"
        " are spares: 136 GPUs are left (40); lower quotas by 4\n"
    )
    (warning,) = rackscale("check", file, "--json").json["warnings"]
    assert f"warning: {warning}\n" == answer.err
    for change in ("quota: {gpus: 36}", "quota: {gpus: 40}\n---\nkind: Policy\nspares: none"):
        file.write_text(text.replace("quota: {gpus: 40}", change))
        assert rackscale("check", file).err == ""


def test_the_schema_is_json_and_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    rackscale("schema", "-o", file)
    assert json.loads(file.read_text()) == rackscale("schema").json


def test_the_catalog_tells_units_and_sources() -> None:
    assert "u-p6e-gb300x72" in rackscale("catalog").out
    assert json.dumps(rackscale("catalog", "u-p6e-gb300x72", "--json").json).count("source") > 0
    assert "did you mean" in rackscale("catalog", "u-p6e-gb300x27", code=1).err
    both = {one["name"] for one in rackscale("catalog", "p6e-gb200", "--json").json}
    assert both == {"u-p6e-gb200x36", "u-p6e-gb200x72"}


def test_the_catalog_lists_models_by_a_part_of_any_of_their_names() -> None:
    every = rackscale("catalog", "--models", "--json").json
    assert len(every) == len(models.models())
    llama = rackscale("catalog", "meta-llama/llama-3.2", "--models", "--json").json
    assert {one["name"] for one in llama} == {"llama3.2-1b", "llama3.2-3b"}
    (alias,) = rackscale("catalog", "deepseek-v3", "--models", "--json").json
    assert (alias["name"], alias["layers"], alias["longest_tokens"]) == ("deepseek-v3-671b", 61, 163840)
    assert alias["active_parameters"] < alias["parameters"] == 671026404352
    for columns in (80, 120):
        text = rackscale("catalog", "--models", columns=columns).out
        assert len(text.splitlines()) == len(every) + 1
    assert "did you mean 'llama3-8b'?" in rackscale("catalog", "lamma3-8b", "--models", code=1).err


def test_a_plan_without_a_controller_is_made_on_the_documents_and_leaves_nothing(
    site: Path, tmp_path: Path
) -> None:
    made = rackscale("plan", loop(tmp_path, "first", nodes=2), "--site", site, "--json").json
    (start,) = made["actions"]
    assert (start["type"], start["gang"], start["binding"]) == ("Start", "first", [["c/us-000", [0, 1], []]])
    (forecast,) = made["forecasts"]
    assert (forecast["start_s"], forecast["running_s"], forecast["end_s"]) == (0.0, 0.0, 60.0)
    assert not made["live"]
    assert [path.name for path in site.iterdir()] == ["site.yaml"]
    text = rackscale("plan", site, loop(tmp_path, "first", nodes=2)).out
    assert "START" in text
    assert "c/us-000/n00-n01" in text


def test_a_rehearsal_is_its_seed(tmp_path: Path) -> None:
    def rehearsed(seed: int, file: str) -> bytes:
        path = tmp_path / file
        command = ("rehearse", EXAMPLES / "one-rack", "--until", "12h", "--seed", seed, "--journal", path)
        assert rackscale(*command, "--json").json["seed"] == seed
        return path.read_bytes()

    first = rehearsed(7, "a.jsonl")
    assert first.count(b"\n") > 20
    assert all(json.loads(line) for line in first.splitlines())
    assert rehearsed(7, "b.jsonl") == first
    assert rehearsed(8, "c.jsonl") != first


def test_a_rehearsal_may_change_its_policy() -> None:
    def spare(*settings: str) -> float:
        chosen = [word for setting in settings for word in ("--set", setting)]
        command = ("rehearse", EXAMPLES / "one-rack", "--until", "4h", "--no-failures", *chosen, "--json")
        totals = rackscale(*command).json["totals"]
        return float(next(row["gpu_h"] for row in totals if row["state"] == "spare"))

    assert spare() == 4 * 4.0
    assert spare("policy.spares=none") == 0.0


def test_help_and_version_are_no_mistakes() -> None:
    assert "plan" in rackscale("--help").out
    assert rackscale("--version").out.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("statsu",), 2, "Did you mean 'status'?"),
        (("plan",), 2, "name at least one file"),
        (("apply",), 2, "name files, or one plan"),
        (("check",), 2, "Missing argument"),
        (("up", "--on", "slurm"), 2, "slurm"),
        (("rehearse", "SITE", "--until", "soon"), 2, "is no time"),
        (("check", "BROKEN"), 1, "BROKEN:3"),
        (("plan", "BINARY", "--site", "SITE"), 1, "not UTF-8"),
        (("plan", "JOB", "--site", "EMPTY"), 1, "neither a journal nor a Fleet document"),
        (("apply", "JOB", "--site", "SITE"), 1, "no controller runs"),
        (("apply", "--plan", "BINARY", "--site", "SITE"), 1, "no saved plan"),
        (("rehearse", "SITE"), 1, "no work to rehearse"),
        (("rehearse", "SITE", "--jobs", "BROKEN"), 1, "there is no column 'job_id'"),
        (("rehearse", "SITE", "--jobs", "BINARY"), 1, "can't be read"),
        (("rehearse", "SITE", "JOB", "--journal", "absent/a.jsonl"), 1, "absent/a.jsonl"),
        (("schema", "-o", "absent/schema.json"), 1, "absent/schema.json"),
        (("plan", "JOB", "--site", "SITE", "--out", "absent/plan.json"), 1, "absent/plan.json"),
        (("up", "EMPTY"), 1, "no *.yaml"),
        (("up", "absent"), 1, "no such file or folder"),
        (("down", "--site", "SITE"), 1, "no controller runs"),
        (("status", "--site", "SITE"), 1, "no controller has run"),
        (("logs", "anything", "--site", "SITE"), 1, "no controller has run"),
        (("cancel", "anything", "--site", "SITE"), 1, "no controller runs"),
        (("drain", "us-000", "--site", "SITE"), 1, "no controller runs"),
        (("drain", "us-000", "--by", "tonight", "--site", "SITE"), 2, "is no time"),
        (("drain", "us-000", "--by", "2026-12-01T02:00", "--site", "SITE"), 2, "a date needs its zone"),
        (("plan", "JOB", "--at", "02:00", "--site", "SITE"), 2, "--at goes with --drain"),
        (("book", "--site", "SITE"), 2, "name files with Booking documents"),
        (("book", "JOB", "--name", "k", "--site", "SITE"), 2, "name files with Booking documents"),
        (("book", "--name", "k", "--site", "SITE"), 2, "say when it ends"),
        (("book", "--name", "k", "--until", "2h", "--site", "SITE"), 1, "no controller runs"),
        (("unbook", "k", "--site", "SITE"), 1, "no controller runs"),
        (("maintain", "us-000", "--site", "SITE"), 2, "say when it ends"),
        (("maintain", "us-000", "--from", "1h", "--until", "2h", "--site", "SITE"), 1, "no controller runs"),
        (("unmaintain", "m", "--site", "SITE"), 1, "no controller runs"),
        (
            ("rehearse", "SITE", "JOB", "--set", "policy.spares=some"),
            1,
            "must be 'none', 'fixed' or 'adaptive'",
        ),
        (("rehearse", "SITE", "JOB", "DATED"), 1, "a rehearsal knows no dates"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_gets_a_sentence_and_a_code(
    arguments: tuple[str, ...], code: int, says: str, site: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "EMPTY"
    empty.mkdir()
    (tmp_path / "BINARY").write_bytes(b"\x00\xff\x80")
    (tmp_path / "BROKEN").write_text("kind: Batch\nname: [\n")
    (tmp_path / "DATED").write_text("kind: Booking\nname: k\nfrom: in 1h\nuntil: 2036-12-01T02:00Z\n")
    places = {"SITE": site, "JOB": loop(tmp_path, "job"), "EMPTY": empty}
    answer = rackscale(*(places.get(a, a) for a in arguments), code=code, cwd=tmp_path)
    assert says in " ".join(answer.err.split())
    assert answer.out == ""
