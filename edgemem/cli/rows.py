"""Reads rows of features: from an NPY file, from a CSV file, or line by line from stdin, a pipe or a device."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.cli.interrupt import Interrupt
from edgemem.contract import InputSpec
from edgemem.dtypes import numpy_dtype
from edgemem.errors import InputError

_NPY_MAGIC = b"\x93NUMPY"
_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclass(frozen=True)
class RowSource:
    """Rows to read.

    Attributes:
        batches: Pairs of the next rows ``[N, F]`` and how much of ``total`` has been read with them.
        total: Bytes or rows in total; ``None`` for a live source, whose length is unknown and which gives single rows.
    """

    batches: Iterator[tuple[NDArray[Any], int]]
    total: int | None


def open_rows(path: Path, spec: InputSpec, most_rows: int, interrupt: Interrupt) -> RowSource:
    """Open a source of rows.

    Args:
        path: An NPY or CSV file; ``-`` is stdin. Like stdin, a pipe or a device is read line by line.
        spec: What one row must contain.
        most_rows: Most rows in one batch.
        interrupt: Ends the wait for a line.

    Raises:
        InputError: The file cannot be read or does not contain such rows; also raised while iterating.
    """
    if str(path) == "-":
        return RowSource(_parsed(interrupt.lines(sys.stdin.buffer), "stdin", spec, 1), None)
    try:
        if not path.is_file():
            return RowSource(_parsed(interrupt.lines(path.open("rb")), str(path), spec, 1), None)
        with path.open("rb") as file:
            is_npy = file.read(len(_NPY_MAGIC)) == _NPY_MAGIC
        if is_npy:
            array = _open_npy(path, spec)
            return RowSource(_npy_batches(array, spec, most_rows), len(array))
        return RowSource(_parsed(path.open("rb"), str(path), spec, most_rows), path.stat().st_size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _parsed(lines: Iterable[bytes], name: str, spec: InputSpec, most_rows: int) -> Iterator[tuple[NDArray[Any], int]]:
    """Rows of numbers from lines of CSV, in batches. The rows before a bad one are given out before its error."""
    width = math.prod(spec.shape)
    rows: list[list[float]] = []
    done = 0

    def batch() -> tuple[NDArray[Any], int]:
        whole = np.array(rows, dtype=numpy_dtype(spec.dtype)).reshape(len(rows), *spec.shape)
        rows.clear()
        return whole, done

    first = True
    try:
        for number, line in enumerate(lines, start=1):
            done += len(line)
            cells = _cells(line, f"{name}, line {number}")
            if not cells:
                continue
            header, first = first and not any(_is_number(cell) for cell in cells), False
            if header:
                continue
            rows.append(_numbers(cells, width, spec.dtype, f"{name}, line {number}"))
            if len(rows) == most_rows:
                yield batch()
    except InputError:
        if rows:
            yield batch()
        raise
    if rows:
        yield batch()


def _cells(line: bytes, where: str) -> list[str]:
    """The cells of a line, split at commas, or else at blanks; none for a blank line or a ``#`` comment."""
    try:
        text = line.decode("utf-8").lstrip(_BYTE_ORDER_MARK).strip()
    except UnicodeDecodeError:
        raise InputError(f"{where} is not text.", hint="Give rows as CSV, or in a .npy file.") from None
    if not text or text.startswith("#"):
        return []
    return [cell.strip().strip('"') for cell in text.split(",")] if "," in text else text.split()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _numbers(cells: list[str], width: int, dtype: str, where: str) -> list[float]:
    for column, cell in enumerate(cells, start=1):
        if not _is_number(cell):
            raise InputError(f"{where}, column {column}: {cell!r} is not a number.")
    if len(cells) != width:
        column = min(len(cells), width) + 1
        raise InputError(f"{where}, column {column}: the row has {len(cells)} numbers, the model takes {width}.")
    row = [float(cell) for cell in cells]
    largest = float(np.finfo(dtype).max) if dtype.startswith("float") else math.inf
    for column, value in enumerate(row, start=1):
        if largest < abs(value) < math.inf:
            raise InputError(f"{where}, column {column}: {cells[column - 1]} does not fit in {dtype}.")
    return row


def _open_npy(path: Path, spec: InputSpec) -> NDArray[Any]:
    """The array of an NPY file ``[T, F]`` (``[T]`` if F is 1), mapped into memory rather than read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is not an array of numbers: {error}") from None
    wanted = f"[T, {', '.join(map(str, spec.shape))}]" if spec.shape else "[T]"
    if array.ndim == 1 and math.prod(spec.shape) == 1:
        array = array.reshape(-1, *spec.shape)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path} has dtype {array.dtype}, the model takes numbers ({spec.dtype}).")
    if array.shape[1:] != spec.shape or array.ndim == 0:
        raise InputError(f"{path} has shape {list(array.shape)}, the model takes {wanted}.")
    return np.asarray(array)


def _npy_batches(array: NDArray[Any], spec: InputSpec, most_rows: int) -> Iterator[tuple[NDArray[Any], int]]:
    for start in range(0, len(array), most_rows):
        rows = array[start : start + most_rows].astype(numpy_dtype(spec.dtype))
        yield rows, start + len(rows)
