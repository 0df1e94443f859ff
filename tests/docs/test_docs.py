"""The pages lead somewhere and say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [["docs/links.py"], ["docs/generate.py", "--check"]], ids=" ".join)
def test_pages(arguments: list[str]) -> None:
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "page",
    [
        page.relative_to(ROOT)
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if "```console" in page.read_text()
    ],
    ids=str,
)
def test_pages_show_what_commands_print(page: Path) -> None:
    run = subprocess.run(
        [sys.executable, "docs/console.py", page], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "links.py").write_text((ROOT / "docs" / "links.py").read_text())
    (docs / "index.md").write_text("# Index\n\n[a](a.md#there) [b](b.md) [c](#index) ``` [d](d.md)\n")
    (docs / "a.md").write_text("# Here\n")
    (docs / "lost.md").write_text("# Lost\n")
    run = subprocess.run([sys.executable, docs / "links.py"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout.splitlines() == [
        "docs/index.md: a.md#there has no such heading",
        "docs/index.md: b.md does not exist",
        "docs/index.md: d.md does not exist",
        "docs/lost.md: no page leads here",
    ]
