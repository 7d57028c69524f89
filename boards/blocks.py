"""Writes the shell blocks of a page to files: ``NN-workstation.sh`` and ``NN-board.sh``, for boards/rehearse.sh.

A comment before a block says what is done with it: ``<!-- not here: REASON -->`` or ``<!-- refused here: TEXT -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_BLOCK = re.compile(r"(?:<!-- (not|refused) here: (.*?) -->\n)?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORKSTATION = "## On the workstation", "## Back on the workstation"


def main(page: Path, folder: Path) -> None:
    """Write the blocks, and ``left-out``: one line for each block that is not run, with its reason."""
    text = page.read_text(encoding="utf-8")
    left_out = []
    for number, found in enumerate(_BLOCK.finditer(text)):
        how, words, commands = found.groups()
        heading = re.findall(r"^## .*$", text[: found.start()], re.MULTILINE)[-1]
        if how == "not":
            left_out.append(f"  {words}: {'; '.join(commands.strip().splitlines())}")
            continue
        name = f"{number:02}-{'workstation' if heading in WORKSTATION else 'board'}"
        (folder / f"{name}.sh").write_text(commands, encoding="utf-8")
        if how == "refused":
            (folder / f"{name}.refused").write_text(words, encoding="utf-8")
    (folder / "left-out").write_text("".join(f"{line}\n" for line in left_out), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
