"""The pages of the documentation, and their parts."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [text for language, text in _FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def python_block(page: str, *, containing: str) -> str:
    """The one Python block of a page of ``docs/`` that contains some text."""
    found = [block for block in blocks(ROOT / "docs" / page, "python") if containing in block]
    assert len(found) == 1, f"{len(found)} Python blocks of {page} contain {containing!r}"
    return textwrap.dedent(found[0])
