"""The shell blocks of a page, for those that run them: boards/rehearse.sh and ``make docs-run``.

A comment before a block says what is done with it: after ``<!-- not here: REASON -->`` it is not run on this machine,
after ``<!-- refused here: TEXT -->`` it must end with exit code 1 and print TEXT. In a block ``console``, a line with
``$`` in front is a command.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!-- (not|refused) here: ([^\n]*?) -->\n)?^```(sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_ANY_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
WORKSTATION = "## On the workstation", "## Back on the workstation"


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        heading: The heading of second order above it; ``""`` above the first.
        text: The commands.
        not_here: Why it cannot run; ``""`` if it can.
        refused: What it must print when it fails; ``""`` if it must not fail.
    """

    heading: str
    text: str
    not_here: str = ""
    refused: str = ""

    @property
    def commands(self) -> list[str]:
        """One command each, continued lines together; comments on lines of their own are left out."""
        joined = re.findall(r"^((?:.*\\\n)*.+)$", self.text, re.MULTILINE)
        return [line.strip() for line in joined if not line.lstrip().startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in its order. A block with commands of a console has only these."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        how, words, language, commands = match.groups()
        if language == "console":
            commands = "".join(re.findall(r"^\$ (.*\n)", commands, re.MULTILINE))
        headings = re.findall(r"^## .*$", _ANY_FENCE.sub("", text[: match.start()]), re.MULTILINE)
        block = Block(
            heading=headings[-1] if headings else "",
            text=commands,
            not_here=words if how == "not" else "",
            refused=words if how == "refused" else "",
        )
        found += [block] if commands else []
    return found


def main(page: Path, folder: Path) -> None:
    """Write ``NN-workstation.sh`` and ``NN-board.sh``, and ``left-out``: a line for each block that is not run."""
    left_out = []
    for number, block in enumerate(blocks_of(page)):
        if block.not_here:
            left_out.append(f"  {block.not_here}: {'; '.join(block.commands)}")
            continue
        name = f"{number:02}-{'workstation' if block.heading in WORKSTATION else 'board'}"
        (folder / f"{name}.sh").write_text(block.text, encoding="utf-8")
        if block.refused:
            (folder / f"{name}.refused").write_text(block.refused, encoding="utf-8")
    (folder / "left-out").write_text("".join(f"{line}\n" for line in left_out), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
