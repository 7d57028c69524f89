"""Where ``edgemem run`` saves and restores the stream's state: at the end, and as it runs."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from edgemem.cli.note import Note
from edgemem.cli.options import option
from edgemem.errors import EdgememError
from edgemem.files import check_replaceable
from edgemem.machine.systemd import Heartbeat, notify
from edgemem.runtimes import Stream

SAVE_EVERY_S = 60.0
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str) -> float:
    """A time such as ``30``, ``60s``, ``5m`` or ``1h``, in seconds.

    Raises:
        BadParameter: It is not one, or it is 0.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text)
    if found is None or not (seconds := float(found[1]) * _UNITS[found[2]]):
        raise click.BadParameter(f"{text[:40]!r} is not a time such as 60s, 5m or 1h.")
    return seconds


@dataclass(frozen=True)
class SnapshotOptions:
    """Where the stream's state is saved and restored."""

    save_to: Path | None = option(
        "--snapshot",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Save the stream's state to FILE at the end, whatever ends the run.",
    )
    resume: Path | None = option(
        "--resume",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Continue from a snapshot.",
    )
    state: Path | None = option(
        "--state",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Continue from FILE if it exists, and save the state there at the end and every --save-every.",
    )
    save_every_s: float | None = option(
        "--save-every",
        metavar="TIME",
        type=duration_s,
        help=f"Also save after each TIME, such as 60s or 5m. Default with --state: {SAVE_EVERY_S:.0f}s.",
    )

    @property
    def target(self) -> Path | None:
        """The file that is written."""
        return self.save_to if self.state is None else self.state

    @property
    def source(self) -> Path | None:
        """The snapshot to continue from."""
        return self.state if self.state is not None and self.state.exists() else self.resume

    def check(self) -> None:
        """Fail at once if the options do not fit each other, or the snapshot could not be written at the end.

        Raises:
            UsageError: The options do not fit each other.
            EdgememError: Its folder is missing or not writable, or it is something else than a file.
        """
        if self.state is not None and (self.save_to or self.resume):
            raise click.UsageError("--state saves and continues: give it without --snapshot and --resume.")
        if self.target is None:
            if self.save_every_s is not None:
                raise click.UsageError("--save-every needs --state or --snapshot.")
            return
        folder = self.target.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            problem = "is not writable" if folder.is_dir() else "is not a folder"
            raise EdgememError(f"cannot write the snapshot {self.target}: {folder} {problem}.")
        check_replaceable(self.target)

    def restore(self, stream: Stream) -> Note:
        """Restore the stream, if there is a snapshot to continue from, and return its note."""
        return Note() if (source := self.source) is None else Note.read(stream.restore(source))

    def saver(self, stream: Stream, note: Callable[[], Note] = Note) -> Saver:
        """What saves ``stream``, with the note that ``note`` gives at that time."""
        every_s = SAVE_EVERY_S if self.save_every_s is None and self.state is not None else self.save_every_s
        return Saver(stream, note, self.target, math.inf if every_s is None else every_s)


class Saver:
    """Saves a stream: at the end, and again and again if wanted.

    Args:
        stream: The stream.
        note: Gives the note to save with it.
        path: The file; ``None`` saves nothing.
        every_s: A step is saved at the latest this long after it was made.

    Since it knows that a stream is ready, and is called between steps, it also tells systemd so.
    """

    def __init__(self, stream: Stream, note: Callable[[], Note], path: Path | None, every_s: float) -> None:
        self._stream, self._note, self._path, self._every_s = stream, note, path, every_s
        self._saved_positions = stream.positions
        self._due_s = time.monotonic() + every_s
        self._heartbeat = Heartbeat()
        notify("READY=1")

    def beat(self) -> float:
        """Tell systemd that the work goes on; the seconds until it is to be told again."""
        return self._heartbeat.beat()

    def tick(self, *, early: bool = False) -> float:
        """Save if it is time; call it between two steps. A save that fails is reported, and tried again later.

        Args:
            early: Save before it is time, because the next call may come late.

        Returns:
            Seconds until it will be time.
        """
        now_s, beat_s = time.monotonic(), self.beat()
        if now_s < self._due_s and not (early and math.isfinite(self._due_s)):
            return min(beat_s, self._due_s - now_s)
        self._due_s = now_s + self._every_s
        if (self._stream.positions != self._saved_positions).any():
            try:
                self.save()
            except EdgememError as error:
                click.echo(f"Warning: {error}", err=True)
            took_s = time.monotonic() - now_s  # the next one begins earlier, by what it may take
            self._due_s -= min(2 * took_s, self._every_s / 2)
        return min(beat_s, max(0.0, self._due_s - time.monotonic()))

    def save(self) -> None:
        """Save the stream, if a file was named.

        Raises:
            EdgememError: The file cannot be written.
        """
        if self._path is not None:
            self._stream.save(self._path, self._note().write())
            self._saved_positions = self._stream.positions
