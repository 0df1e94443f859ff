"""Every mistake is told at its line and column, with the field, the value and a way out; all of them at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rackscale import spec
from rackscale.errors import DocumentError
from rackscale.events import DomainSpec
from rackscale.workload import Policy, Queue

MISTAKES = re.split(r"^== ", Path(__file__).with_name("mistakes.txt").read_text("utf-8"), flags=re.MULTILINE)[
    1:
]
"""The documents, each followed by what is said about it, on lines that begin with `! `."""


def problems(*files: Path, around: spec.Documents | None = None) -> list[str]:
    """The problems with the files' folders cut off."""
    folder = f"{files[0] if files[0].is_dir() else files[0].parent}/"
    return [line.replace(folder, "") for line in spec.check(files, around=around).problems]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.splitlines()[0] for m in MISTAKES])
def test_mistake(mistake: str, tmp_path: Path) -> None:
    lines = mistake.splitlines()[1:]
    file = tmp_path / "FILE"
    file.write_text("\n".join(line for line in lines if not line.startswith("! ")), "utf-8")
    assert problems(file) == [
        "FILE:" + line[2:].replace("in 1", "in FILE:1") for line in lines if line.startswith("! ")
    ]


def test_all_problems_of_all_files_come_at_once_in_reading_order(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: Batch\nname: b\nrun: [\n---\nkind: Queue\nname: q\nrnk: 1\n")
    (tmp_path / "a.yaml").write_text("kind: Batch\nname: b\nqueue: p\n---\nkind: Queue\n")
    with pytest.raises(DocumentError) as caught:
        spec.load([tmp_path / "b.yaml", tmp_path / "a.yaml", tmp_path / "c.yaml"])
    assert [line.replace(f"{tmp_path}/", "") for line in caught.value.problems] == [
        "c.yaml: no such file or folder",
        "b.yaml:4:1: not valid YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
        "b.yaml:7:1: Queue 'q' rnk: there is no such field; did you mean 'rank'?",
        "a.yaml:1:1: Batch 'b': needs run to be run, or duration to be rehearsed",
        "a.yaml:3:8: Batch 'b' queue: unknown queue ('p'); one of default, q",
        "a.yaml:5:1: Queue name: is required",
    ]
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_jobs_alone_may_name_what_only_the_live_site_knows(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("kind: Batch\nname: b\nrun: x\nqueue: research\npriority: gold\ncluster: a\nnodes: 8\n")
    assert problems(file) == []
    domain = DomainSpec(name="a/us-000", system="local", nodes=4, gpus_per_node=1, cluster="a")
    live = spec.Documents(
        fleet=(domain,), queues=(Queue(name="research"),), policy=Policy(priorities={"gold": 1, "normal": 0})
    )
    too_large = (
        "job.yaml:7:8: Batch 'b' nodes: too large for every NVLink domain (8); "
        "at most 4 (a domain of a has 4 nodes), or segments x nodes_per_segment over several domains"
    )
    assert problems(file, around=live) == [too_large]
    bare = spec.Documents(fleet=(domain,))
    assert problems(file, around=bare) == [
        "job.yaml:4:8: Batch 'b' queue: unknown queue ('research'); only default exists",
        "job.yaml:5:11: Batch 'b' priority: unknown priority class ('gold'); one of high, low, normal, production",
        too_large,
    ]


def test_what_is_faulty_itself_is_held_against_nobody(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "kind: Fleet\nname: f\nclusters: [{name: a, system: p5, domains: 0}]\n---\nkind: Queue\nname: q\nrank: x\n"
        "---\nkind: Policy\npriorities: {gold: x}\n"
        "---\nkind: Batch\nname: b\nrun: x\nqueue: q\npriority: gold\ncluster: c\nnodes: 99\n"
    )
    assert [line.split(": ")[0].split(":")[1] for line in problems(file)] == ["3", "7", "10"]


def test_values_that_may_be_secret_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("kind: Batch\nname: b\nrun: [hunter2]\nenvs: {TOKEN: 12345.5}\nsetup: 98765\n")
    text = "\n".join(problems(file))
    assert text.count("\n") == 2
    assert not any(secret in text for secret in ("hunter2", "12345", "98765"))


def test_a_long_or_unprintable_value_stays_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f'kind: Batch\nname: "a\\e[31m\\n{"x" * 200}"\nrun: x\n"b\\nc": 1\n')
    found = problems(file)
    assert len(found) == 2
    assert all(line.isprintable() and len(line) < 300 for line in found)
