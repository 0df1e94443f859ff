"""Fails where a link between the project's pages leads nowhere, or a page can't be reached from docs/index.md.

python docs/links.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def main() -> int:
    problems = [*broken_links(ROOT), *orphans(ROOT)]
    print("\n".join(problems) or "every link leads somewhere")
    return 1 if problems else 0


def pages(root: Path) -> list[Path]:
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def broken_links(root: Path) -> Iterator[str]:
    for page in pages(root):
        for link, target, anchor in _links(page):
            if not target.exists():
                yield f"{page.relative_to(root)}: {link} does not exist"
            elif anchor and target.suffix == ".md" and anchor not in _anchors(target):
                yield f"{page.relative_to(root)}: {link} has no such heading"


def orphans(root: Path) -> Iterator[str]:
    """Pages of docs/ that nobody who starts at the index can find."""
    start = root / "docs" / "index.md"
    found, todo = {start}, [start]
    while todo:
        page = todo.pop()
        for _, target, _ in _links(page):
            if target.suffix == ".md" and target.exists() and target not in found:
                found.add(target)
                todo.append(target)
    for page in sorted((root / "docs").rglob("*.md")):
        if page not in found:
            yield f"{page.relative_to(root)}: no page leads here"


def _links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """Link as written, file, anchor; links to other sites are left out."""
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        yield link, (page.parent / path).resolve() if path else page, anchor


def _anchors(page: Path) -> set[str]:
    """Heading anchors as GitHub makes them."""
    text = FENCE.sub("", page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


if __name__ == "__main__":
    sys.exit(main())
