"""Snapshots: a stream as bytes, in the safetensors format, portable between runtimes.

The tensors are ``past.<name>`` for every state, ``position`` int64 ``[B]``, and ``kept.<name>`` for what else a stream
keeps (:mod:`edgemem.runtimes.buffers`); bfloat16 is kept as its bits in uint16. The metadata's entry :data:`FORMAT`
holds, as JSON, the version, the model's fingerprint, a note of the caller's, and a SHA-256 over all of it. Nothing in a
snapshot is executed. Version 1 had no ``kept`` tensors.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bundle import package_versions
from edgemem.contract import POSITION, Contract
from edgemem.dtypes import numpy_dtype
from edgemem.errors import SnapshotError
from edgemem.files import read_file
from edgemem.reading import MOST_JSON_BYTES, parse_json
from edgemem.runtimes.buffers import HELD, LAST, Buffers, item_dtype
from edgemem.runtimes.memory import Array
from edgemem.versioned import JsonFormat
from edgemem.wording import counted

FORMAT = "edgemem.snapshot"
VERSION = "2"
SNAPSHOT = JsonFormat(FORMAT, "a snapshot", SnapshotError, way_out="start a new stream.", versions=("1", VERSION))
_STATE, _KEPT = "past.", "kept."


@dataclass(frozen=True)
class Parts:
    """What a snapshot holds.

    Attributes:
        state: Every state by name, ``[B, *shape]``.
        positions: int64 ``[B]``.
        buffers: What else the stream keeps, by name, ``[B, ...]``.
        note: Text of the caller's.
    """

    state: Mapping[str, Array]
    positions: NDArray[np.int64]
    buffers: Mapping[str, Array]
    note: str = ""


def pack(fingerprint: str, contract: Contract, parts: Parts) -> bytes:
    """Serialise a stream.

    Args:
        fingerprint: Identity of the model.
        contract: Its contract.
        parts: The stream.
    """
    from safetensors.numpy import save

    tensors = {f"{_STATE}{spec.name}": np.ascontiguousarray(parts.state[spec.name]) for spec in contract}
    tensors |= {f"{_KEPT}{name}": np.ascontiguousarray(array) for name, array in parts.buffers.items()}
    tensors[POSITION] = np.ascontiguousarray(parts.positions)
    facts = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "edgemem": _own_version(),
    }
    facts |= {"note": parts.note} if parts.note else {}
    # One entry, as safetensors keeps entries in no fixed order: equal states give equal bytes.
    return save(tensors, metadata={FORMAT: json.dumps({**facts, "sha256": _digest(facts, tensors)}, sort_keys=True)})


@functools.cache
def _own_version() -> str:
    return package_versions().get("edgemem", "?")


@functools.cache
def _written(dtype: np.dtype[Any]) -> str:
    return str(dtype)  # in numpy this takes longer than the hash of a small tensor


def most_bytes(contract: Contract, batch: int) -> int:
    """Most bytes of a snapshot of ``batch`` streams; of a growing state there is no telling."""
    kept = sum(array.nbytes for array in Buffers(contract, batch).arrays.values())
    given = sum(math.prod(spec.shape) * numpy_dtype(spec.dtype).itemsize for spec in contract.input_specs)
    limit = batch * (contract.state_bytes + given + 8) + kept + MOST_JSON_BYTES
    return limit if contract.has_fixed_size else sys.maxsize


def read(source: bytes | str | Path, fingerprint: str, contract: Contract, batch: int) -> Parts:
    """Read a snapshot or a file that holds one; see :func:`unpack`.

    Raises:
        SnapshotError: As there; or the file cannot be read.
    """
    if isinstance(source, (str, Path)):
        try:
            source = read_file(Path(source), most_bytes(contract, batch))
        except OSError as error:
            raise SnapshotError(f"the snapshot {source!s} cannot be read: {error.strerror or error}") from error
    return unpack(source, fingerprint, contract, batch)


def unpack(data: bytes, fingerprint: str, contract: Contract, batch: int) -> Parts:
    """Read what :func:`pack` wrote.

    Args:
        data: The snapshot.
        fingerprint: Identity of the model that is to go on.
        contract: Its contract.
        batch: Streams that are to go on.

    Raises:
        SnapshotError: It is of another model, version or batch, damaged, or cut short.
    """
    facts, tensors = _read(data)
    if (taken := facts.get("fingerprint", "")) != fingerprint:
        raise SnapshotError(
            f"the snapshot is of another model: {taken[:12]}…, this one is {fingerprint[:12]}….",
            hint="Restore it with the bundle that it was taken with.",
        )
    positions = tensors.pop(POSITION, np.empty(0, np.int64))
    if positions.ndim != 1:
        raise SnapshotError(f"the snapshot is malformed: its positions have shape {list(positions.shape)}, wanted [B].")
    if len(positions) != batch:
        raise SnapshotError(
            f"the snapshot holds {counted(len(positions), 'stream')}, this stream has batch {batch}.",
            hint=f"Open it with session.stream(batch={len(positions)}).",
        )
    buffers = {key[len(_KEPT) :]: tensors.pop(key) for key in list(tensors) if key.startswith(_KEPT)}
    _check_buffers(contract, batch, buffers)
    names = {f"{_STATE}{spec.name}": spec.name for spec in contract}
    if set(names) != set(tensors):
        raise SnapshotError(f"the snapshot holds {sorted(tensors)}, wanted {sorted(names)}.")
    return Parts({names[key]: value for key, value in tensors.items()}, positions, buffers, facts.get("note", ""))


def is_whole(data: bytes) -> bool:
    """Whether this is a snapshot, of any model, to the last byte what :func:`pack` wrote."""
    try:
        return bool(_read(data))
    except SnapshotError:
        return False


def _read(data: bytes) -> tuple[dict[str, str], dict[str, Array]]:
    """The facts and the tensors of a snapshot that is whole and of a version known here."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    facts = _facts(data)
    SNAPSHOT.check_version(facts, "the data")
    try:
        tensors: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"the snapshot is damaged or cut short: {error}") from error
    if facts.pop("sha256", None) != _digest(facts, tensors):
        raise SnapshotError("the snapshot was changed after it was written: its SHA-256 does not match.")
    return facts, tensors


def _check_buffers(contract: Contract, batch: int, found: Mapping[str, Array]) -> None:
    """Hold what a stream keeps besides its states to the contract."""
    wanted = {name: (array.shape, array.dtype) for name, array in Buffers(contract, batch).arrays.items()}
    held = {f"{HELD}{spec.name}": ((batch, *spec.shape), numpy_dtype(spec.dtype)) for spec in contract.held}
    last = {f"{LAST}{spec.name}": ((batch, *spec.item_shape), item_dtype(spec)) for spec in contract.data}
    optional = {**held, **last, "ended": ((batch,), np.dtype(bool))}
    have = {name: (array.shape, array.dtype) for name, array in found.items()}
    if not wanted.items() <= have.items() or not have.items() <= {**wanted, **optional}.items():
        raise SnapshotError(f"the snapshot keeps {have or 'nothing'} besides its states, wanted {wanted or 'nothing'}.")


def _facts(data: bytes) -> dict[str, str]:
    """Our entry in the metadata of a safetensors file: a length in 8 bytes, little-endian, then a header in JSON."""
    try:
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = parse_json(header["__metadata__"][FORMAT])
        return {str(key): str(value) for key, value in facts.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(
            "this is not an edgemem snapshot, or it is cut short.", hint="Write one with stream.save(path)."
        ) from error


def _digest(facts: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    """SHA-256 over the metadata and over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {_written(tensor.dtype)} {tensor.shape} ".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
