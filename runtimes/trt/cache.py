"""Engines that were built on first use, under the user's cache folder.

Two builds of one graph differ in bytes, so an entry's key is a hash of what goes in: graph, weights, contract, options,
TensorRT, GPU and platform. Nothing is ever thrown away; the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from edgemem import files
from edgemem.bundle import Bundle, GraphFile
from edgemem.errors import EdgememError
from edgemem.files import read_file, write_atomic
from edgemem.runtimes.trt import sidecar
from edgemem.runtimes.trt.flavour import Flavour
from edgemem.runtimes.trt.options import MOST_BYTES, BuildOptions


def cache_folder() -> Path:
    """The folder of the engines."""
    return files.cache_folder("engines")


def key(bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions) -> str:
    """Name of an engine's entry: SHA-256 over everything that the engine follows from, in hexadecimal."""
    inputs = {
        "format": sidecar.SIDECAR.versions[-1],
        "graph": graph.file,
        "sources": sidecar.sources(bundle, graph),
        "contract": bundle.contract.fingerprint,
        "options": options.to_json(),
        "flavour": flavour.name,
        "version": flavour.version,
        "gpu": [flavour.cuda.compute_capability, flavour.cuda.device],
        "platform": flavour.platform,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def timing_path(flavour: Flavour) -> Path:
    """Where the kernel timings of this TensorRT on this GPU lie."""
    gpu = hashlib.sha256(f"{flavour.cuda.compute_capability} {flavour.cuda.device}".encode()).hexdigest()[:12]
    return cache_folder() / f"timing-{flavour.name}-{flavour.version}-{gpu}.bin"


@contextlib.contextmanager
def locked(name: str, announce: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of an entry, so that two processes do not build one engine at once.

    Yields:
        Whether there is a lock: false where the cache folder cannot be written, and nothing can be cached.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        announce(f"{folder} cannot be written ({error.strerror}): the engine will be built anew at every start")
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce("another process builds this engine: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield True
    finally:
        os.close(handle)  # releases the lock


def write_checked(path: Path, data: bytes) -> None:
    """Write a file that :func:`read_checked` reads: a SHA-256, and the data.

    Raises:
        OSError, EdgememError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, hashlib.sha256(data).digest() + data)


def read_checked(path: Path) -> bytes:
    """What :func:`write_checked` wrote; empty where there is nothing, or anything else."""
    try:
        content = read_file(path, MOST_BYTES)
    except OSError:
        return b""
    size = hashlib.sha256().digest_size
    return content[size:] if hashlib.sha256(content[size:]).digest() == content[:size] else b""


def write_quietly(write: Callable[[], None], announce: Callable[[str], None]) -> None:
    """Write to the cache; where that fails the engine still runs, so it is only said."""
    try:
        write()
    except (EdgememError, OSError) as error:
        announce(f"not cached: {error}")
