"""Files of the kernel, below a root: a recorded tree can stand in for a machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NUMBERS = re.compile(r"(\d+)")


def natural(path: Path) -> list[str | int]:
    """A key that sorts ``zone2`` before ``zone10``."""
    return [int(part) if part.isdigit() else part for part in _NUMBERS.split(str(path))]


class Tree:
    """Reads files below ``root``. A missing file is ``None``; one that exists and cannot be read is a problem.

    Args:
        root: The machine's ``/``, or a recorded tree's.

    Attributes:
        problems: What could not be read or made no sense: path on the machine → why.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.problems: dict[str, str] = {}

    def glob(self, pattern: str) -> list[Path]:
        """Paths that match a pattern relative to the root, in natural order; none if a folder cannot be read."""
        try:
            return sorted(self.root.glob(pattern), key=natural)
        except OSError as error:
            self.problems[f"/{pattern}"] = _reason(error)
            return []

    def text(self, path: Path | str) -> str | None:
        """The text of a file, without surrounding spaces and zero bytes."""
        where = self.root / path
        try:
            return where.read_bytes().decode("utf-8", errors="replace").strip("\x00\n\t ")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.problems[self.name(where)] = _reason(error)
            return None

    def integer(self, path: Path | str) -> int | None:
        """The whole number in a file."""
        text = self.text(path)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            self.problems[self.name(self.root / path)] = f"holds {text[:32]!r}, not a whole number"
            return None

    def name(self, path: Path) -> str:
        """The path on the machine."""
        return f"/{path.relative_to(self.root)}" if path.is_relative_to(self.root) else str(path)


class TreeReader:
    """What all readers of files share; see :class:`~edgemem.bench.devices.reader.Reader`.

    Args:
        tree: The machine's files.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    @property
    def problems(self) -> dict[str, str]:
        """See :class:`~edgemem.bench.devices.reader.Reader`."""
        return self._tree.problems


def _reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "not readable by this user"
    return os.strerror(error.errno) if error.errno else str(error)
