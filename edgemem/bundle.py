"""The bundle: a folder that holds one exported model, complete and checked.

::

    bundle/
      manifest.json          see edgemem/manifest.py
      model.onnx             one graph for any T  (or step.onnx and chunk.onnx)
      native.model.onnx      the same with edgemem's own operators, if it has a place for them
      weights.safetensors    the weights, which every graph refers to as ONNX external data
      tokenizer.json         if the model has one
      chat_template.jinja    if the model was trained for conversations
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from io import FileIO
from pathlib import Path

from edgemem.contract import Contract
from edgemem.errors import BundleError, EdgememError
from edgemem.external_data import external_files
from edgemem.extras import DISTRIBUTION
from edgemem.files import hash_of, inside, open_file, read_file, replace_folder, sha256_file
from edgemem.manifest import MANIFEST_FORMAT, GraphFile, Manifest
from edgemem.mappings import make_private
from edgemem.unchanged import Stamp, fixed_folder, keep_writers_out, private_folder

__all__ = [
    "CHAT_TEMPLATE",
    "MANIFEST",
    "WEIGHTS",
    "Bundle",
    "BundleWriter",
    "GraphFile",
    "Manifest",
    "is_bundle",
    "open_bundle",
    "package_versions",
    "write_bundle",
]

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CHAT_TEMPLATE = "chat_template.jinja"
RECIPE, PACKED = "recipe.json", "bundle"
"""In a folder that was packed for a board: how to build there, and the folder of the bundle."""
_MOST_BYTES, _MOST_GRAPH_BYTES = 1 << 36, 2 << 30  # of a file, so that hashing it ends; of a protocol buffer


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been checked against its manifest.

    Attributes:
        path: Its folder.
        manifest: What its manifest says.
        digest: SHA-256 of the manifest, which it contains itself; ``None``: it is of version 1, which has none.
    """

    path: Path
    manifest: Manifest
    digest: str | None = None
    _hashed: dict[str, Stamp] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        size = sum(size for _, size in self.manifest.files.values())
        return f"Bundle({str(self.path)!r}: {self.manifest.source.name or 'unnamed'}, {size / 2**20:.1f} MiB)"

    @property
    def contract(self) -> Contract:
        """The state contract."""
        return self.manifest.contract

    @property
    def fingerprint(self) -> str:
        """Identity of the model: SHA-256 over the contract, the weights and the graphs' bytes, in hexadecimal."""
        return self.manifest.fingerprint

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights file (0 if all weights are in the graphs)."""
        return self.manifest.files.get(WEIGHTS, ("", 0))[1]

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no file {name!r}.")
        return inside(self.path, name)

    def read(self, name: str, most_bytes: int) -> bytes:
        """What a file holds that the manifest lists.

        Raises:
            BundleError: It cannot be read, was changed, or is larger than ``most_bytes``.
        """
        with self._opened(name, self.path, most_bytes) as file:
            content = file.readall()
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name][0]:
            raise self._changed(name)
        return content

    @contextlib.contextmanager
    def loading(self) -> Iterator[Path]:
        """The folder to load files from. Once the block has ended, what was loaded has the hashes of the manifest.

        It is the bundle's own folder where the kernel keeps writers out of every file meanwhile: another thread hashes
        them while the block runs. Else it is a copy of our own, hashed as it was made. What is still mapped at the end
        is moved into memory of this process: nothing that happens to the files later reaches it.

        Raises:
            BundleError: A file was changed since the bundle was opened, or while the block ran.
            EdgememError: There is no room for a copy that is needed, or no memory for what is mapped.
        """
        with self._all_opened() as (folder, files):
            if not all([keep_writers_out(file) for file in files.values()]):
                with self._copied(files) as copy:
                    yield copy
                    make_private(copy)
                return
            with ThreadPoolExecutor(1) as other_thread:
                stamps = other_thread.submit(self._stamps, files)
                try:
                    yield folder
                    make_private(folder)
                except Exception:
                    stamps.result()  # a changed file explains every other error
                    raise
                except BaseException:
                    for file in files.values():
                        file.close()  # which ends the hashing
                    raise
            for name, stamp in stamps.result().items():
                if not stamp.is_of(folder / name):
                    raise BundleError(f"{self.path}: {name} was changed while it was loaded.", hint="Open it again.")

    def copy_to(self, folder: Path, names: Iterable[str]) -> None:
        """Copy some of the files, with the hashes of the manifest.

        Args:
            folder: Where to; it exists.
            names: Of files that the manifest lists, or of the manifest.

        Raises:
            BundleError: A file was changed since the bundle was opened.
            OSError: A copy cannot be written.
        """
        with self._all_opened() as (source, files):
            for name in names:
                if name in files:
                    self._verify(name, files[name], folder)
                else:
                    shutil.copyfile(inside(source, name), inside(folder, name))

    @contextlib.contextmanager
    def _all_opened(self) -> Iterator[tuple[Path, dict[str, FileIO]]]:
        """A path that leads to this folder, whatever is renamed, and every file that the manifest lists."""
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(fixed_folder(self.path))
            except OSError as error:
                raise BundleError(f"{self.path} cannot be read: {error.strerror}.") from error
            yield folder, {name: stack.enter_context(self._opened(name, folder)) for name in self.manifest.files}

    def _stamps(self, files: dict[str, FileIO]) -> dict[str, Stamp]:
        """The stamps of open files, whose content was hashed now or had these stamps when it was."""
        stamps = {}
        for name, file in files.items():
            stamps[name] = Stamp.of(file.fileno())
            if self._hashed.get(name) != stamps[name] or not stamps[name].is_settled:
                self._verify(name, file)
                self._hashed[name] = stamps[name]
        return stamps

    @contextlib.contextmanager
    def _copied(self, files: dict[str, FileIO]) -> Iterator[Path]:
        """A folder with a copy of every file, hashed as it was read."""
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(private_folder(sum(size for _, size in self.manifest.files.values())))
                for name, file in files.items():
                    stamp = Stamp.of(file.fileno())
                    self._verify(name, file, folder)
                    self._hashed[name] = stamp
            except OSError as error:
                raise EdgememError(
                    f"others may write to the files of {self.path}, and a copy of them cannot be made: {error}.",
                    hint="Let the user that runs this own them, set TMPDIR to a folder with room, or end who writes.",
                ) from error
            yield folder

    def check_files(self, but: Container[str] = ()) -> None:
        """Compare every file with its entry in the manifest. What was hashed and has not changed is not read again.

        Args:
            but: Names of files of which only the size is compared.

        Raises:
            BundleError: A file is missing, is of another size, or has another content.
        """
        for name in self.manifest.files:
            with self._opened(name, self.path, _MOST_BYTES) as file:
                if name not in but:
                    self._stamps({name: file})

    def check_rest(self) -> None:
        """Compare the files that were never hashed with their entries in the manifest.

        Raises:
            BundleError: As :meth:`check_files`.
        """
        if self.manifest.files.keys() - self._hashed.keys():
            self.check_files(but=self._hashed)

    @contextlib.contextmanager
    def _opened(self, name: str, folder: Path, most_bytes: int | None = None) -> Iterator[FileIO]:
        """A file of the size that the manifest lists."""
        size = self.manifest.files[name][1]
        try:
            file = open_file(inside(folder, name), most_bytes)
        except FileNotFoundError:
            hint = "Copy the whole bundle, or export it again."
            raise BundleError(f"{self.path}: {name} is missing.", hint=hint) from None
        except OSError as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error.strerror or error}.") from error
        with file:
            if (found := os.fstat(file.fileno()).st_size) != size:
                raise BundleError(
                    f"{self.path}: {name} has {found} bytes, but the manifest lists {size}.",
                    hint="The file was cut short or changed: copy the bundle again, or export it again.",
                )
            yield file

    def _verify(self, name: str, file: FileIO, copy_to: Path | None = None) -> None:
        """Hash an open file, which is copied into a folder as it is read."""
        copy = None if copy_to is None else inside(copy_to, name)
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
        if hash_of(file, copy) != self.manifest.files[name][0]:
            raise self._changed(name)

    def _changed(self, name: str) -> BundleError:
        return BundleError(
            f"{self.path}: the SHA-256 of {name} differs from the manifest's.",
            hint="The file was changed after the export: copy the bundle again, or export it again.",
        )

    def graph_for(self, time: int) -> GraphFile | None:
        """The narrowest graph that takes ``time`` steps in one call, or ``None``."""
        fits = [graph for graph in self.manifest.graphs if graph.min_time <= time <= graph.max_time]
        return min(fits, key=lambda graph: graph.max_time - graph.min_time, default=None)

    @property
    def max_time(self) -> int:
        """Most time steps that any graph takes in one call."""
        return max(graph.max_time for graph in self.manifest.graphs)


def is_bundle(path: Path) -> bool:
    """Whether ``path`` is a folder with an edgemem manifest; its other files are not looked at."""
    return MANIFEST_FORMAT.is_at(path / MANIFEST)


def open_bundle(path: str | Path, *, verify: bool = True, weights: bool = True) -> Bundle:
    """Read a bundle and check every file's size and SHA-256 against the manifest.

    Args:
        path: The bundle's folder, or a folder that ``edgemem build`` packed for a board: the bundle in it is read.
        verify: Also hash the files; sizes are always checked.
        weights: Hash the weights too; if not, :meth:`Bundle.loading` or :meth:`Bundle.check_rest` does it later.

    Raises:
        BundleError: The bundle is missing, truncated, changed, or not an edgemem bundle.
    """
    folder = Path(path)
    if (folder / RECIPE).is_file() and is_bundle(folder / PACKED):
        folder /= PACKED
    try:
        fields = MANIFEST_FORMAT.load(inside(folder, MANIFEST))
    except BundleError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        what = "has no manifest.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise BundleError(
            f"{folder} is not a bundle: it {what}.", hint="Make one with: edgemem export SOURCE --out BUNDLE"
        ) from None
    bundle = Bundle(folder, Manifest.from_json(fields.values, str(folder / MANIFEST)), fields.digest)
    later: Container[str] = () if weights else (WEIGHTS,)
    bundle.check_files(but=later if verify else bundle.manifest.files)
    for graph in bundle.manifest.graphs:
        for file in (graph.file, graph.native):
            if file is not None:
                _check_graph(bundle, file)
    return bundle


def _check_graph(bundle: Bundle, file: str) -> None:
    """Refuse a graph with data in a file that the manifest does not list: it could change unseen."""
    path = bundle.file(file)
    try:
        used = external_files(read_file(path, _MOST_GRAPH_BYTES))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not an ONNX graph: {error}.", hint=MANIFEST_FORMAT.hint) from error
    if unlisted := sorted(used - set(bundle.manifest.files)):
        raise BundleError(
            f"{path} refers to {unlisted[0]!r}, which the manifest does not list.", hint="Do not use this bundle."
        )


def package_versions(*names: str) -> dict[str, str]:
    """Versions of Python, edgemem and the named packages; packages that are not installed are left out."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in (DISTRIBUTION, *names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions["edgemem" if name == DISTRIBUTION else name] = metadata.version(name)
    return versions


@contextlib.contextmanager
def write_bundle(path: str | Path) -> Iterator[BundleWriter]:
    """Write a bundle that replaces what is at ``path`` only when it is complete.

    Raises:
        BundleError: ``path`` exists and is something other than a bundle or an empty folder.
        EdgememError: The disk is full or the folder cannot be written; what was at ``path`` is unchanged.
    """
    target = Path(path)
    if target.exists() and not is_bundle(target) and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(
            f"{target} exists and is not an edgemem bundle, so it was not changed.", hint="Name another --out folder."
        )
    with replace_folder(target) as folder:
        writer = BundleWriter(folder)
        yield writer
        if not writer.finished:
            raise EdgememError(f"the bundle for {target} was not finished.")


class BundleWriter:
    """Fills the folder of a bundle; :meth:`finish` writes the manifest last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = False

    def finish(self, manifest: Manifest) -> Bundle:
        """Hash every file in the folder, write the manifest, and return the bundle."""
        files = {
            file.relative_to(self.folder).as_posix(): (sha256_file(file), file.stat().st_size)
            for file in sorted(self.folder.rglob("*"))
            if file.is_file() and file.name != MANIFEST
        }
        created = manifest.created or datetime.now(timezone.utc).isoformat(timespec="seconds")
        path, complete = self.folder / MANIFEST, replace(manifest, files=files, created=created)
        MANIFEST_FORMAT.write(path, complete.to_json())
        self.finished = True
        return Bundle(self.folder, complete, MANIFEST_FORMAT.load(path).digest)
