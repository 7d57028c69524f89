"""Where the states of streams lie on disk: one file a stream, in a folder named after the model's fingerprint."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from edgemem.errors import EdgememError
from edgemem.files import sync_files, sync_folder
from edgemem.runtimes.snapshot import is_whole
from edgemem.serve.errors import RequestError
from edgemem.serve.log import log
from edgemem.serve.options import ServeOptions
from edgemem.wording import counted

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SUFFIX = ".state"


def checked_name(name: object) -> str:
    """The name of a stream, which becomes the name of a file.

    Raises:
        RequestError: It is not one.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise RequestError(
        "bad_stream_name",
        f"{str(name)[:40]!r} is not the name of a stream.",
        hint="Use 1 to 128 letters, digits, '-', '_' and '.', a letter or digit first.",
    )


class Store:
    """The saved states of one model's streams.

    A state that was written outlives this process, in the folder ``new``. Once the disk has it, it outlives a power cut
    too, and goes from ``settling`` to its place. So a slow disk holds up nobody who writes.

    Args:
        folder: The folder of this model.

    Attributes:
        folder: As given.

    Raises:
        EdgememError: Another server keeps streams there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._new, self._settling = folder, folder / "new", folder / "settling"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise EdgememError(
                f"another server keeps the streams of this model in {folder.parent}.",
                hint="Stop it, or choose another --state-dir.",
            ) from error
        self._settle_lock = threading.Lock()
        for place in (self._new, self._settling):
            place.mkdir(exist_ok=True, mode=0o700)
            for found in place.iterdir():  # a killed server wrote it
                if not found.name.endswith(_SUFFIX) or not is_whole(found.read_bytes()):
                    found.unlink()

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._handle)

    def names(self) -> list[str]:
        """The streams that are saved."""
        found = {path.name for place in self._places("") for path in place.glob(f"*{_SUFFIX}")}
        return sorted(name[: -len(_SUFFIX)] for name in found)

    def write(self, states: Mapping[str, bytes]) -> dict[str, OSError]:
        """Save streams, each whole or not at all; which could not be saved, and why. :meth:`settle` must follow."""
        failed = dict[str, OSError]()
        for name, data in states.items():
            new = f"{self._new}/{checked_name(name)}"
            try:
                with FileIO(new, "w") as file:
                    while data:
                        data = data[file.write(data) :]
                os.replace(new, new + _SUFFIX)
            except OSError as error:
                failed[name] = error
        return failed

    def settle(self) -> dict[str, OSError]:
        """Have the disk write down what was saved, asked once for all streams; which failed, and why."""
        failed = dict[str, OSError]()
        with self._settle_lock:
            for new in list(self._new.glob(f"*{_SUFFIX}")):
                with contextlib.suppress(FileNotFoundError):  # the stream was forgotten
                    os.replace(new, self._settling / new.name)
            moved = list(self._settling.iterdir())
            sync_files(moved)
            for path in moved:
                try:
                    os.replace(path, self.folder / path.name)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    failed[path.stem] = error
            sync_folder(self.folder)
        return failed

    def read(self, name: str) -> bytes:
        """What was saved.

        Raises:
            OSError: It cannot be read.
        """
        *newer, settled = self._places(checked_name(name) + _SUFFIX)
        for path in newer:
            with contextlib.suppress(FileNotFoundError):
                return path.read_bytes()
        return settled.read_bytes()

    def remove(self, name: str) -> None:
        """Forget a stream."""
        for path in self._places(checked_name(name) + _SUFFIX):
            path.unlink(missing_ok=True)

    def set_aside(self, name: str) -> Path:
        """Keep a damaged file under another name."""
        path = next(path for path in self._places(checked_name(name) + _SUFFIX) if path.exists())
        return path.replace(path.with_suffix(".damaged"))

    def _places(self, name: str) -> tuple[Path, Path, Path]:
        """Where a file may be, in the order in which it moves."""
        return self._new / name, self._settling / name, self.folder / name


def open_stores(options: ServeOptions, fingerprints: dict[str, str]) -> dict[str, Store]:
    """The stores of some models, by their names.

    Args:
        options: Where states lie, and what to do with those of other models.
        fingerprints: Of each model.

    Raises:
        EdgememError: States of another model lie there, and nobody said what to do with them.
    """
    folder = options.state_dir
    if folder is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = {fingerprint[:16] for fingerprint in fingerprints.values()}
    others = {path: len(list(path.glob(f"*{_SUFFIX}"))) for path in folder.iterdir() if path.name not in known}
    if (count := sum(others.values())) and options.other_states == "refuse":
        raise EdgememError(
            f"{folder} holds states of {counted(count, 'stream')} of other weights, which this server cannot resume.",
            hint="Serve the bundle they were saved with; or start with --discard to delete them, or --keep-state to "
            "leave them where they are.",
        )
    for path, found in others.items():
        if found and options.other_states == "discard":
            shutil.rmtree(path)
            log("discarded_states", folder=str(path), streams=found)
    return {name: Store(folder / fingerprint[:16]) for name, fingerprint in fingerprints.items()}
