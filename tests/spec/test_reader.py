"""Files and folders: which are read, and what can't be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rackscale import spec

BATCH = "kind: Batch\nname: {}\nrun: x\n"


def names(*paths: Path) -> list[str]:
    return [job.name for job in spec.load(paths).jobs]


def problem(file: Path, content: bytes) -> str:
    """The one problem with this content, without the file's folder."""
    file.write_bytes(content)
    [line] = spec.check([file]).problems
    return line.removeprefix(f"{file.parent}/")


def test_folders_are_read_recursively_and_sorted(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "sub/c.yaml", "sub/d.txt", ".hidden.yaml", ".rackscale/e.yaml"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(BATCH.format(file.name[0] if file.name[0] != "." else "hidden"))
    assert names(tmp_path) == ["a", "b", "c"]
    assert names(tmp_path / "sub" / "d.txt") == ["d"]  # named by its user, so it is meant


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(BATCH.format("a"))
    (tmp_path / "link.yaml").symlink_to(file)
    assert names(file, tmp_path) == ["a"]


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "a.yaml").write_text(BATCH.format("a"))
    assert names(tmp_path) == ["a"]


def test_a_folder_without_documents(tmp_path: Path) -> None:
    assert spec.check([tmp_path]).problems == (f"{tmp_path}: no *.yaml or *.yml file in this folder",)


def test_yaml_1_2_scalars(tmp_path: Path) -> None:
    """Under YAML 1.1, `10:00` is 600, `no` is false and `010` is 8."""
    file = tmp_path / "a.yaml"
    file.write_text("kind: Batch\nname: no\nrun: x\nnodes: 010\narrivals: {at: 10:00}\n")
    [work] = spec.load([file]).work
    assert (work.job.name, work.job.shape.nodes) == ("no", 10)
    assert work.arrivals is not None
    assert work.arrivals.at_s == (36_000.0,)


@pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing\n---\n# more\n"])
def test_nothing_between_markers_is_no_document(tmp_path: Path, text: str) -> None:
    assert problem(tmp_path / "a.yaml", text.encode()) == "a.yaml: there is no document here"
    (tmp_path / "b.yaml").write_text(text + "---\n" + BATCH.format("b"))
    assert names(tmp_path / "b.yaml") == ["b"]


def test_lines_are_counted_over_documents_comments_and_directives(tmp_path: Path) -> None:
    text = "%YAML 1.2\n---\n# one\nkind: Queue\nname: q\n...\n# two\n--- # three\nkind: Queue\nname: r\n---\n- x\n"
    assert problem(tmp_path / "a.yaml", text.encode()).startswith("a.yaml:12:1: ")


def test_a_marker_inside_a_script_ends_the_document(tmp_path: Path) -> None:
    """As YAML 1.2 has it: a line that begins with --- is a marker wherever it stands."""
    file = tmp_path / "a.yaml"
    file.write_text("kind: Batch\nname: a\nrun: |\n  one\n--- \nkind: Batch\nname: b\nrun: x\n")
    assert names(file) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"kind: Batch\nname: \xff\n", "a.yaml:2:7: not UTF-8 text (byte 0xff); save it as UTF-8"),
        (b"kind: Batch\nname: b\x07\n", "a.yaml:2:8: a control character (0x07) is not allowed in YAML"),
        (b"x: " + b"[" * 100_000, "a.yaml:1:35: not valid YAML: nested deeper than 32 levels"),
        (b"&a [*a]", "a.yaml:1:1: nested deeper than 32 levels, or an alias that contains itself"),
        (b"- " * (1 << 20), "a.yaml: larger than 1024 KiB; split it into several files"),
        (b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 8))
            for c in b"bcdefgh"), "a.yaml:1:8: more than 100,000 values, aliases expanded"),
        (b"kind: Batch\nname: b\nrun: x\nnodes: " + b"9" * 5000,
            "a.yaml:4:8: Batch 'b' nodes: the number has too many digits"),
        (b'kind: Batch\nname: b\nrun: "a\\0b"\n',
            "a.yaml:3:6: Batch 'b' run: text may not hold NUL or lone surrogate characters"),
    ],
    ids=["latin", "control", "deep", "circle", "huge", "bomb", "digits", "nul"],
)  # fmt: skip
def test_what_can_not_be_read(tmp_path: Path, content: bytes, expected: str) -> None:
    assert problem(tmp_path / "a.yaml", content) == expected


def test_tabs_are_no_indentation(tmp_path: Path) -> None:
    line = problem(tmp_path / "a.yaml", b"kind: Batch\n\tname: b\n")
    assert line.startswith("a.yaml:2:1: not valid YAML: ")
    assert line.endswith("; indent with spaces")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(BATCH.format("a"))
    file.chmod(0)
    assert spec.check([file]).problems == (f"{file}: can't be read: Permission denied",)
