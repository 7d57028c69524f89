"""Where the states of streams lie on disk: one file a stream, in a folder named after the model's fingerprint."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from edgemem.errors import EdgememError
from edgemem.files import sync_files, sync_folder
from edgemem.runtimes.snapshot import is_whole
from edgemem.serve.errors import RequestError
from edgemem.serve.log import log
from edgemem.serve.options import ServeOptions

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

    Args:
        folder: The folder of this model.

    Attributes:
        folder: As given.

    Raises:
        EdgememError: Another server keeps streams there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._new = folder, folder / "new"
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
        self._new.mkdir(exist_ok=True, mode=0o700)
        self._recover()

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._handle)

    def _recover(self) -> None:
        """Take what a server had written when it was killed, if it is whole: it is newer than what was saved before."""
        for found in self._new.iterdir():
            if is_whole(found.read_bytes()):
                os.replace(found, self._path(found.name))
            else:
                found.unlink()

    def names(self) -> list[str]:
        """The streams that are saved."""
        return sorted(path.name[: -len(_SUFFIX)] for path in self.folder.glob(f"*{_SUFFIX}"))

    def write(self, states: Mapping[str, bytes]) -> dict[str, OSError]:
        """Save streams, each whole or not at all; which could not be saved, and why.

        What the disk is asked to write down is asked once for all, which is most of the cost.
        """
        failed = dict[str, OSError]()
        for name, data in states.items():
            try:
                with FileIO(f"{self._new}/{name}", "w") as file:
                    while data:
                        data = data[file.write(data) :]
            except OSError as error:
                failed[name] = error
        written = [name for name in states if name not in failed]
        try:
            sync_files([self._new / name for name in written])
        except OSError as error:
            return dict.fromkeys(states, error)
        for name in written:
            try:
                os.replace(f"{self._new}/{name}", self._path(name))
            except OSError as error:
                failed[name] = error
        sync_folder(self.folder)
        return failed

    def read(self, name: str) -> bytes:
        """What was saved.

        Raises:
            OSError: It cannot be read.
        """
        return self._path(name).read_bytes()

    def remove(self, name: str) -> None:
        """Forget a stream."""
        for path in (self._path(name), self._new / name):
            path.unlink(missing_ok=True)

    def set_aside(self, name: str) -> Path:
        """Keep a damaged file under another name."""
        path = self._path(name)
        return path.replace(path.with_suffix(".damaged"))

    def _path(self, name: str) -> Path:
        return self.folder / (checked_name(name) + _SUFFIX)


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
            f"{folder} holds the states of {count:,} streams of other weights, which this server cannot resume.",
            hint="Serve the bundle they were saved with; or start with --discard to delete them, or --keep-state to "
            "leave them where they are.",
        )
    for path, found in others.items():
        if found and options.other_states == "discard":
            shutil.rmtree(path)
            log("discarded_states", folder=str(path), streams=found)
    return {name: Store(folder / fingerprint[:16]) for name, fingerprint in fingerprints.items()}
