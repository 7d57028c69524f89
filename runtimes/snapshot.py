"""Snapshots: a stream's state and positions as bytes, in the safetensors format, portable between runtimes.

The tensors are ``past.<name>`` for every state and ``position`` int64 ``[B]``; bfloat16 is kept as its bits in uint16.
The metadata's entry :data:`FORMAT` carries, as JSON, the version, the model's fingerprint, a note of the caller's own,
and a SHA-256 over all of it. Nothing in a snapshot is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgemem.bundle import package_versions
from edgemem.contract import POSITION, Contract
from edgemem.errors import SnapshotError
from edgemem.runtimes.memory import Array

FORMAT = "edgemem.snapshot"
VERSION = "1"


def pack(
    fingerprint: str, contract: Contract, state: Mapping[str, Array], positions: NDArray[np.int64], note: str = ""
) -> bytes:
    """Serialise a stream.

    Args:
        fingerprint: Identity of the model.
        contract: Its contract.
        state: Every state by name, ``[B, *shape]``.
        positions: int64 ``[B]``.
        note: Text of the caller's own.
    """
    from safetensors.numpy import save

    tensors = {spec.input_name: np.ascontiguousarray(state[spec.name]) for spec in contract}
    tensors[POSITION] = np.ascontiguousarray(positions)
    facts = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "edgemem": package_versions().get("edgemem", "?"),
    }
    facts |= {"note": note} if note else {}
    # One entry, as safetensors keeps entries in no fixed order: equal states give equal bytes.
    return save(tensors, metadata={FORMAT: json.dumps({**facts, "sha256": _digest(facts, tensors)}, sort_keys=True)})


def unpack(
    data: bytes, fingerprint: str, contract: Contract, batch: int
) -> tuple[dict[str, Array], NDArray[np.int64], str]:
    """Read what :func:`pack` wrote.

    Args:
        data: The snapshot.
        fingerprint: Identity of the model that is to go on.
        contract: Its contract.
        batch: Streams that are to go on.

    Returns:
        Every state by name, the positions int64 ``[B]``, and the note.

    Raises:
        SnapshotError: It is of another model, version or batch, damaged, or cut short.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    facts = _facts(data)
    if facts.get("version") != VERSION:
        raise SnapshotError(
            f"the snapshot is of version {facts.get('version')}, this edgemem reads version {VERSION}.",
            hint=f"It was written by edgemem {facts.get('edgemem')}: restore it there.",
        )
    try:
        tensors: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"the snapshot is damaged or cut short: {error}") from error
    if facts.pop("sha256", None) != _digest(facts, tensors):
        raise SnapshotError("the snapshot was changed after it was written: its SHA-256 does not match.")
    if (taken := facts.get("fingerprint", "")) != fingerprint:
        raise SnapshotError(
            f"the snapshot is of another model: {taken[:12]}…, this one is {fingerprint[:12]}….",
            hint="Restore it with the bundle that it was taken with.",
        )
    positions = tensors.pop(POSITION, np.empty(0, np.int64))
    if positions.shape != (batch,):
        raise SnapshotError(
            f"the snapshot holds {len(positions)} streams, this stream has batch {batch}.",
            hint=f"Open it with session.stream(batch={len(positions)}).",
        )
    names = {spec.input_name: spec.name for spec in contract}
    if set(names) != set(tensors):
        raise SnapshotError(f"the snapshot holds {sorted(tensors)}, wanted {sorted(names)}.")
    return {names[key]: value for key, value in tensors.items()}, positions, facts.get("note", "")


def _facts(data: bytes) -> dict[str, str]:
    """Our entry in the metadata of a safetensors file: a length in 8 bytes, little-endian, then a header in JSON."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"][FORMAT])
        return {str(key): str(value) for key, value in facts.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(
            "this is not an edgemem snapshot, or it is cut short.", hint="Write one with stream.save(path)."
        ) from error


def _digest(facts: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    """SHA-256 over the metadata and over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
