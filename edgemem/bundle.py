"""The bundle: a folder that holds one exported model, complete and checked.

::

    bundle/
      manifest.json          contract, graphs, SHA-256 of every file, versions, source, meaning of the input
      model.onnx             one graph for any T  (or step.onnx and chunk.onnx)
      weights.safetensors    the weights, which every graph refers to as ONNX external data
      tokenizer.json         where the model has one
      chat_template.jinja    where the model was trained for conversations
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from edgemem.contract import Contract
from edgemem.errors import BundleError, ConfigError, ContractError, EdgememError
from edgemem.files import inside, replace_folder, sha256_file, write_atomic
from edgemem.generation_defaults import GenerationDefaults

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CHAT_TEMPLATE = "chat_template.jinja"
FORMAT = "edgemem.bundle"
VERSION = 1


@dataclass(frozen=True)
class GraphFile:
    """One ONNX file of a bundle.

    Attributes:
        file: Name in the bundle's folder.
        min_time: Fewest time steps one call takes.
        max_time: Most time steps one call takes.
    """

    file: str
    min_time: int
    max_time: int


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        contract: The state contract that every graph of the bundle keeps.
        graphs: The graphs; together they serve every T from 1 to ``contract.max_chunk``, or T = 1 alone.
        files: Name of every file in the bundle → (SHA-256, bytes).
        source: Where the model came from: ``kind`` (``checkpoint``, ``config``, ``factory`` ...), ``name``, whether
            the weights are random, and the ``options`` of its loading.
        model: The decoder's configuration, from which the torch runtime rebuilds the model; ``None`` for a user's
            own module.
        precision: In what the bundle computes and stores its weights: ``dtype``, ``weights`` (``"int8"``, ``"int4"`` or
            ``None``), ``block_size``, and which matrices are how. Empty: float32.
        tokenizer: ``"bytes"``, the name of a tokenizer file in the bundle, or ``None``.
        special_tokens: Text of the tokens that a chat template asks for by name: ``bos_token``, ``eos_token`` …
        generation: How to draw text where the user says nothing.
        input_meaning: One line for people: what the input is.
        versions: Versions of the packages that wrote the bundle.
        verification: What the export's own check measured.
        created: ISO 8601 time, UTC.
    """

    contract: Contract
    graphs: tuple[GraphFile, ...]
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    precision: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation: GenerationDefaults = GenerationDefaults()  # noqa: RUF009 (it cannot be changed)
    input_meaning: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def load_options(self) -> dict[str, Any]:
        """How the source bounded its model's past: ``memory`` as text, or ``max_length``; other entries are ignored."""
        options = self.source.get("options")
        kinds = {"memory": str, "max_length": int}
        return {name: value for name, value in dict(options or {}).items() if isinstance(value, kinds.get(name, ()))}

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "created": self.created,
            "source": self.source,
            "input_meaning": self.input_meaning,
            "tokenizer": self.tokenizer,
            "special_tokens": self.special_tokens,
            "generation": self.generation.to_json(),
            "graphs": [{"file": g.file, "time": [g.min_time, g.max_time]} for g in self.graphs],
            "files": {name: {"sha256": sha, "bytes": size} for name, (sha, size) in sorted(self.files.items())},
            "versions": self.versions,
            "verification": self.verification,
            "precision": self.precision,
            "model": self.model,
            "contract": self.contract.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "manifest") -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            BundleError: It is not a manifest of a version known here.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(f"{where} is not an edgemem manifest.", hint="Make a bundle with: edgemem export")
        if data.get("version") != VERSION:
            raise BundleError(
                f"{where} is of bundle version {data.get('version')}, this edgemem reads version {VERSION}.",
                hint="Export the model again, or install the edgemem that wrote it.",
            )
        try:
            manifest = cls(
                contract=Contract.from_json(data["contract"]),
                graphs=tuple(GraphFile(str(g["file"]), int(g["time"][0]), int(g["time"][1])) for g in data["graphs"]),
                files={name: (str(f["sha256"]), int(f["bytes"])) for name, f in data["files"].items()},
                source=dict(data["source"]),
                model=data["model"],
                precision=dict(data.get("precision", {})),
                tokenizer=data["tokenizer"],
                # Bundles written before these were thought of have none.
                special_tokens={str(name): str(text) for name, text in data.get("special_tokens", {}).items()},
                generation=GenerationDefaults.from_json(data.get("generation", {}), "generation"),
                input_meaning=str(data["input_meaning"]),
                versions=dict(data["versions"]),
                verification=dict(data["verification"]),
                created=str(data["created"]),
            )
        except (ContractError, ConfigError) as error:
            raise BundleError(f"{where}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BundleError(f"{where} is malformed: {type(error).__name__}: {error}") from error
        if not any(graph.min_time == 1 <= graph.max_time for graph in manifest.graphs):
            raise BundleError(f"{where} is malformed: it names no graph that takes one time step.")
        return manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been checked against its manifest."""

    path: Path
    manifest: Manifest

    @property
    def contract(self) -> Contract:
        """The state contract."""
        return self.manifest.contract

    @property
    def fingerprint(self) -> str:
        """Identity of the model: SHA-256 over the contract, the weights and the graphs' bytes, in hexadecimal."""
        return fingerprint(self.manifest)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights file (0 where every weight lies in the graph)."""
        return self.manifest.files.get(WEIGHTS, ("", 0))[1]

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no file {name!r}.")
        return inside(self.path, name)

    def graph_for(self, time: int) -> GraphFile | None:
        """The narrowest graph that takes ``time`` steps in one call, or ``None``."""
        fits = [graph for graph in self.manifest.graphs if graph.min_time <= time <= graph.max_time]
        return min(fits, key=lambda graph: graph.max_time - graph.min_time, default=None)

    @property
    def max_time(self) -> int:
        """Most time steps that any graph takes in one call."""
        return max(graph.max_time for graph in self.manifest.graphs)


def fingerprint(manifest: Manifest) -> str:
    """Identity of a model: SHA-256 over its contract and its files' hashes, in hexadecimal."""
    parts = [manifest.contract.fingerprint, *(f"{name}:{sha}" for name, (sha, _) in sorted(manifest.files.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_bundle(path: Path) -> bool:
    """Whether ``path`` is a folder with a manifest of ours, whatever state its files are in."""
    try:
        data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Read a bundle and check every file's size and SHA-256 against the manifest.

    Args:
        path: The bundle's folder.
        verify: Also hash the files; sizes are always checked.

    Raises:
        BundleError: The bundle is missing, truncated, tampered with, or not ours.
    """
    folder = Path(path)
    manifest_path = folder / MANIFEST
    try:
        data = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "has no manifest.json" if folder.is_dir() else "does not exist" if not folder.exists() else "is a file"
        raise BundleError(
            f"{folder} is not a bundle: it {what}.", hint="Make one with: edgemem export SOURCE --out BUNDLE"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{manifest_path} cannot be read: {error}") from error
    bundle = Bundle(folder, Manifest.from_json(data, str(manifest_path)))
    for name, (sha, size) in bundle.manifest.files.items():
        file = inside(folder, name)
        if not file.is_file():
            raise BundleError(f"{folder}: {name} is missing.", hint="Copy the whole bundle, or export it again.")
        if (found := file.stat().st_size) != size:
            raise BundleError(
                f"{folder}: {name} holds {found} bytes, the manifest says {size}.",
                hint="The file was cut short or changed: copy the bundle again, or export it again.",
            )
        if verify and sha256_file(file) != sha:
            raise BundleError(
                f"{folder}: {name} does not have the SHA-256 that the manifest says.",
                hint="The file was changed after the export: copy the bundle again, or export it again.",
            )
    for graph in bundle.manifest.graphs:
        bundle.file(graph.file)
    return bundle


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of edgemem, Python and the packages named; absent ones are left out."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("edgemem", *names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextlib.contextmanager
def write_bundle(path: str | Path) -> Iterator[BundleWriter]:
    """Write a bundle that takes the place of ``path`` only when it is complete.

    Raises:
        BundleError: ``path`` exists and is something other than a bundle or an empty folder.
        EdgememError: The disk is full or the folder cannot be written; what was at ``path`` is as it was.
    """
    target = Path(path)
    if target.exists() and not is_bundle(target) and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(
            f"{target} exists and is not an edgemem bundle: it is left as it is.", hint="Name another --out folder."
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
        """Hash every file of the folder, write the manifest, and return the bundle as it lies in the new folder."""
        files = {
            file.relative_to(self.folder).as_posix(): (sha256_file(file), file.stat().st_size)
            for file in sorted(self.folder.rglob("*"))
            if file.is_file() and file.name != MANIFEST
        }
        complete = Manifest(
            **{
                **{name: getattr(manifest, name) for name in Manifest.__dataclass_fields__},
                "files": files,
                "created": manifest.created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        )
        text = json.dumps(complete.to_json(), indent=1, ensure_ascii=False)
        write_atomic(self.folder / MANIFEST, text.encode())
        self.finished = True
        return Bundle(self.folder, complete)
