"""``edgemem run --prefix``: a beginning whose state is computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edgemem.cli.interrupt import Interrupt
from edgemem.cli.options import option
from edgemem.cli.snapshots import SnapshotOptions
from edgemem.errors import InputError
from edgemem.files import cache_folder
from edgemem.reading import read_text
from edgemem.runtimes import Session, Stream
from edgemem.text.prefixes import Prefixes
from edgemem.wording import counted


@dataclass(frozen=True)
class PrefixOptions:
    """What every text begins with."""

    prefix: Path | None = option(
        "--prefix",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Begin with the text of FILE, computed once and kept; with --chat, it is the system message.",
    )
    prefix_dir: Path | None = option(
        "--prefix-dir",
        metavar="FOLDER",
        type=click.Path(file_okay=False, path_type=Path),
        help="Keep the states of prefixes here. Default: ~/.cache/edgemem/prefixes.",
    )

    def check(self, snapshots: SnapshotOptions) -> None:
        """Fail at once if the options do not fit each other.

        Raises:
            UsageError: They do not.
        """
        if self.prefix_dir is not None and self.prefix is None:
            raise click.UsageError("--prefix-dir needs --prefix.")
        if self.prefix is not None and snapshots.resume is not None:
            raise click.UsageError(f"--prefix begins a text, but {snapshots.resume} is in the middle of one.")

    def reader(self, session: Session, stream: Stream, interrupt: Interrupt) -> Callable[[NDArray[np.int64], int], int]:
        """What brings ``stream`` from its start behind the first of some tokens, and returns how many it has read.

        It says on stderr what it did; a signal ends it, and then the stream is at its start.
        """
        prefixes = Prefixes(session, self.prefix_dir or cache_folder("prefixes"))

        def read(tokens: NDArray[np.int64], count: int) -> int:
            if self.prefix is None or not count or stream.position:
                return 0
            found = prefixes.read(stream, tokens[:count], lambda: interrupt.signal is not None)
            if found.problem:
                click.echo(f"Warning: {found.problem}", err=True)
            if found.tokens:
                what = "restored" if found.restored else "computed"
                click.echo(f"prefix {counted(found.tokens, 'token')}, {what} in {found.seconds:.3f} s", err=True)
            return found.tokens

        return read

    def text(self) -> str:
        """The text of the file; nothing without one.

        Raises:
            InputError: It cannot be read, or is empty.
        """
        if self.prefix is None:
            return ""
        text = read_text(self.prefix)
        if not text.strip():
            raise InputError(f"the prefix {self.prefix} is empty.", hint="Write the text that every run begins with.")
        return text
