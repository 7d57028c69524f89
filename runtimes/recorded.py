"""A bundle against recorded inputs and outputs of the model that was shipped.

A recording is an ``.npz`` file with an array for every data input ``[B, N, *item_shape]``, every held input
``[B, ...]`` and every output ``[B, M, *item_shape]``, under the names of the contract. Only the engine is needed to
replay it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemem.contract import Contract
from edgemem.contract.items import as_passed, items_of_steps, results_by_name
from edgemem.errors import EdgememError, VerificationError
from edgemem.files import read_file, write_atomic
from edgemem.measure import Array, Measure, change, change_tolerance, rounding_tolerance
from edgemem.precision import Precision
from edgemem.runtimes.session import Session

_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class Replayed:
    """How far a bundle is from a recording.

    Attributes:
        steps: Steps of the recording.
        tolerance: The largest error that was allowed, as a share of a channel's spread.
        errors: The largest error, by the way in which the recording was fed.
        change: Root mean square of the error as a share of the outputs' standard deviation.
        change_tolerance: The largest change that was allowed; ``None`` where the bundle is in float32.
    """

    steps: int
    tolerance: float
    errors: dict[str, float]
    change: float
    change_tolerance: float | None


def replay(session: Session, recording: Mapping[str, Array], precision: Precision) -> Replayed:
    """Feed a recording in one call, and step by step, and compare the outputs.

    A bundle in float32 may differ by rounding. One in reduced precision may change its outputs by as much as its export
    allows.

    Raises:
        VerificationError: The outputs differ, or there are more or fewer of them than recorded.
        EdgememError: The recording lacks an input, or has another shape than the contract.
    """
    contract = session.contract
    data = {spec.name: recording[spec.name] for spec in contract.data}
    spec = contract.input
    steps = data[spec.name].shape[1] // spec.step_items
    wanted = {spec.name: _channels(recording[spec.name]) for spec in contract.output_specs}
    tolerance = rounding_tolerance(precision)
    measure = Measure(wanted, tolerance, lambda: None, precision.dtype)
    errors: dict[str, float] = {}
    worst_change = 0.0
    for way, size in (("one call", steps), ("stepping", 1)):
        got = {name: _channels(value) for name, value in _fed(session, data, recording, steps, size).items()}
        for name, value in wanted.items():
            if got[name].shape != value.shape:
                raise VerificationError(
                    f"{way}: the bundle gives {got[name].shape[1]} items of {name}, the recording has {value.shape[1]}."
                )
            if value.dtype.kind == "f":
                worst_change = max(worst_change, change(got[name], value))
            error = measure.error(name, got[name])
            errors[way] = max(errors.get(way, 0.0), float(error.max(initial=0.0)))
            if precision.is_plain and not (error <= tolerance).all():
                first = int(np.argmax(~(error <= tolerance)))
                raise VerificationError(
                    f"{way}: item {first} of {name} differs by {error[first]:.2e} of its spread from the recording "
                    f"(tolerance {tolerance:.0e})."
                )
    allowed = None if precision.is_plain else change_tolerance(precision)
    if allowed is not None and not worst_change <= allowed:
        raise VerificationError(
            f"the outputs differ by {worst_change:.3f} of their standard deviation from the recording "
            f"(this precision allows {allowed:.2f})."
        )
    return Replayed(steps, tolerance, errors, worst_change, allowed)


def read_recording(path: Path, contract: Contract) -> dict[str, Array]:
    """The arrays of a recording that a contract names.

    Raises:
        EdgememError: It is not an ``.npz`` file of arrays, or lacks one; the message names it.
    """
    try:
        with np.load(io.BytesIO(read_file(path, _MOST_BYTES)), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except OSError as error:
        raise EdgememError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise EdgememError(f"{path} is not an .npz file of arrays: {error}") from error
    names = [spec.name for spec in (*contract.data, *contract.held)] + [spec.name for spec in contract.output_specs]
    if missing := [name for name in names if name not in found]:
        raise EdgememError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(found) or 'none'}.",
            hint="np.savez(path, ...) with an array for every input [B, N, ...] and every output [B, M, ...].",
        )
    _check_shapes(path, contract, found)
    return found


def _check_shapes(path: Path, contract: Contract, found: Mapping[str, Array]) -> None:
    """Refuse arrays that do not belong together.

    Raises:
        EdgememError: One has another shape than the contract, another number of streams or steps, or no numbers.
    """
    first = found[contract.input.name]
    batch, steps = (*first.shape[:2], 0, 0)[:2]
    steps //= contract.input.step_items
    wanted: dict[str, tuple[int | str, ...]] = {
        **{spec.name: (batch, steps * spec.step_items, *spec.item_shape) for spec in contract.data},
        **{spec.name: (batch, *spec.shape) for spec in contract.held},
        **{spec.name: (batch, "M", *spec.item_shape) for spec in contract.output_specs},
    }
    for name, shape in wanted.items():
        got = found[name]
        fits = got.ndim == len(shape) and all(size in (axis, "M") for axis, size in zip(got.shape, shape, strict=True))
        if not (fits and batch and steps and got.dtype.kind in "fiub"):
            axes = ", ".join(map(str, ("B", "N", *shape[2:]) if name == contract.input.name else shape))
            raise EdgememError(
                f"{path}: {name} is {got.dtype} of shape {list(got.shape)}, wanted numbers [{axes}].",
                hint="One row for each stream first, then the items in time, one step or more.",
            )


def write_recording(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a recording."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def record(session: Session, data: Mapping[str, Array], held: Mapping[str, Array]) -> dict[str, Array]:
    """A recording of what a session gives for ``data`` and ``held``."""
    spec = session.contract.input
    steps = data[spec.name].shape[1] // spec.step_items
    return {**data, **held, **_fed(session, data, held, steps, steps)}


def _fed(
    session: Session, data: Mapping[str, Array], held: Mapping[str, Array], steps: int, size: int
) -> dict[str, Array]:
    """Every output, by name, of ``data`` fed in calls of ``size`` steps; ``held`` may have more than held inputs."""
    contract = session.contract
    batch = len(data[contract.input.name])
    stream = session.stream(batch, held={spec.name: held[spec.name] for spec in contract.held})
    parts: dict[str, list[Array]] = {spec.name: [] for spec in contract.output_specs}
    for start in range(0, steps, size):
        part = items_of_steps(contract, data, start, start + size)
        result = stream.feed(as_passed(contract, part), outputs="all")
        for name, value in results_by_name(contract, result).items():
            parts[name].append(value.copy())
    return {name: np.concatenate(values, axis=1) for name, values in parts.items()}


def _channels(value: Array) -> Array:
    """``[B, M, *item_shape]`` as :class:`~edgemem.measure.Measure` takes it."""
    return value[:, :, None]
