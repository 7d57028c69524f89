"""Rows of features: where they are read from, in which format, and how what follows from them is written.

A format is a function that turns what a file gives into batches of rows. It names the line or the row of every error,
and gives out the rows before a bad one first.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, get_args

import click
import numpy as np
from numpy.typing import NDArray

from edgemem.audio.files import RAW
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.options import option
from edgemem.cli.text_rows import CsvRows, JsonRows, TextRows
from edgemem.contract import InputSpec
from edgemem.dtypes import numpy_dtype
from edgemem.errors import InputError
from edgemem.runtimes.on_nan import OnNan

_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class RowOptions:
    """How rows of features are read, and how predictions are written."""

    on_nan: OnNan = option(
        "--on-nan",
        default="stop",
        type=click.Choice(get_args(OnNan)),
        help="Rows with NaN or infinity: stop (default), skip (an empty line), hold the last good row, or pass.",
    )
    format: str | None = option(
        "--input-format",
        type=click.Choice(["csv", "jsonl", "npy", *RAW]),
        help="Format of INPUT. Default: npy by its first bytes, else csv.",
    )
    header: bool = option(
        "--header", default=False, is_flag=True, help="The first line is a header. Default: where it holds only names."
    )
    columns: str | None = option(
        "--columns", metavar="A,B", help="The columns or JSON fields to read, by name or number, in the model's order."
    )
    delimiter: str | None = option(
        "--delimiter", metavar="CHAR", help="Between columns; 'tab' for a tab. Default: a comma, else blanks."
    )
    timestamp: str | None = option(
        "--timestamp", metavar="COLUMN", help="Copy this column or JSON field to the start of the row's prediction."
    )
    output_header: bool = option(
        "--output-header", default=False, is_flag=True, help="Write a line with the names of the outputs first."
    )

    def check(self, spec: InputSpec, as_json: bool) -> None:
        """Raise :class:`click.UsageError` if the options do not fit the model's input or each other."""
        width = math.prod(spec.shape)
        if self.delimiter is not None and self.delimiter != "tab" and len(self.delimiter) != 1:
            raise click.UsageError(f"--delimiter takes one character or 'tab', got {self.delimiter!r}.")
        if self.columns is not None and (count := len(self.columns.split(","))) != width:
            raise click.UsageError(f"--columns names {count}, the model takes {width} values.")
        text = [flag for flag, value in (("--columns", self.columns), ("--timestamp", self.timestamp)) if value]
        csv = [flag for flag, value in (("--header", self.header), ("--delimiter", self.delimiter)) if value]
        if csv and self.format not in (None, "csv"):
            raise click.UsageError(f"{csv[0]} is for csv, not for {self.format}.")
        if text and self.format not in (None, "csv", "jsonl"):
            raise click.UsageError(f"{text[0]} is for csv and jsonl, not for {self.format}.")
        if self.output_header and as_json:
            raise click.UsageError("--output-header is for lines of predictions, not for --json.")


@dataclass(frozen=True)
class Rows:
    """The next rows of a source.

    Attributes:
        values: ``[N, *shape]``.
        numbers: Of each, its line or row in the source, from 1.
        timestamps: Of each, its text; ``None`` where none is read.
        done: How much of the source's ``total`` has been read with them.
    """

    values: NDArray[Any]
    numbers: Sequence[int]
    timestamps: Sequence[str] | None
    done: int

    def row(self, index: int) -> Rows:
        """One of them alone."""
        one = slice(index, index + 1)
        times = None if self.timestamps is None else self.timestamps[one]
        return replace(self, values=self.values[one], numbers=self.numbers[one], timestamps=times)


@dataclass(frozen=True)
class RowSource:
    """Rows to read.

    Attributes:
        batches: The next rows; it raises an :class:`~edgemem.errors.InputError` at a bad row, and if there is none.
        total: Bytes or rows in total; ``None`` for a live source, whose length is unknown and which gives single rows.
        place: Names a row by its number, for messages.
    """

    batches: Generator[Rows, None, None]
    total: int | None
    place: Callable[[int], str]


@dataclass(frozen=True)
class Source:
    """An open source of bytes.

    Attributes:
        file: Its bytes.
        name: What messages call it.
        is_live: Whether it is stdin, a pipe or a device, so that its length is unknown.
        closing: Closes it at the end of a block, unless it is stdin.
    """

    file: IO[bytes]
    name: str
    is_live: bool
    closing: AbstractContextManager[object]


def open_source(path: Path) -> Source:
    """Open a file, a pipe or a device, or stdin, which is called ``-``.

    Raises:
        InputError: It cannot be opened.
    """
    if str(path) == "-":
        return Source(sys.stdin.buffer, "stdin", True, contextlib.nullcontext())
    try:
        file = path.open("rb", buffering=0)
        return Source(file, str(path), not path.is_file(), contextlib.closing(file))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def open_rows(
    path: Path,
    spec: InputSpec,
    most_rows: int,
    interrupt: Interrupt,
    options: RowOptions | None = None,
    idle: Callable[[], float] = lambda: math.inf,
) -> RowSource:
    """Open a source of rows.

    Args:
        path: A file; ``-`` is stdin. Like stdin, a pipe or a device gives each row as soon as it is there.
        spec: What one row must contain.
        most_rows: Most rows in one batch.
        interrupt: Ends the wait for a row.
        options: How rows are read.
        idle: Called while nothing arrives; see :meth:`~edgemem.cli.interrupt.Interrupt.blocks`.

    Raises:
        InputError: The file cannot be read or does not contain such rows; also raised while iterating.
    """
    options = options or RowOptions()
    opened = open_source(path)
    file, name, is_live = opened.file, opened.name, opened.is_live
    try:
        is_npy = options.format == "npy" or (
            options.format is None and not is_live and file.read(len(_NPY_MAGIC)) == _NPY_MAGIC
        )
        total = None if is_live else file.seek(0, os.SEEK_END)
        if not is_live:
            file.seek(0)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
    if is_npy:
        if is_live:
            raise InputError(f"{name} cannot be mapped into memory as npy needs.", hint="Give a file, csv, or f32le.")
        file.close()  # it is mapped instead
        array = _open_npy(path, spec)
        batches, unit, total = _npy_batches(array, name, spec, most_rows), "row", len(array)
    elif raw := RAW.get(options.format or ""):
        blocks = interrupt.blocks(file, name, idle)
        batches, unit = _raw_batches(blocks, raw, name, spec, 1 if is_live else most_rows), "row"
    else:
        lines = interrupt.lines(file, name, idle)
        chosen = (options.columns.split(",") if options.columns else None, options.timestamp)
        delimiter = "\t" if options.delimiter == "tab" else options.delimiter
        parser: TextRows = (
            JsonRows(spec, *chosen)
            if options.format == "jsonl"
            else CsvRows(spec, *chosen, has_header=options.header, delimiter=delimiter)
        )
        batches, unit = _text_batches(lines, parser, name, spec, 1 if is_live else most_rows), "line"
    return RowSource(_not_empty(batches, name, opened.closing), total, lambda number: f"{name}, {unit} {number}")


def _not_empty(
    batches: Iterator[Rows], name: str, to_close: AbstractContextManager[object]
) -> Generator[Rows, None, None]:
    is_empty = True
    with to_close:
        for rows in batches:
            is_empty = False
            yield rows
    if is_empty:
        raise InputError(f"{name} contains no rows.")


def host_dtype(spec: InputSpec) -> np.dtype[Any]:
    """The dtype of rows as they are given to a stream, which rounds to bfloat16 itself."""
    return np.dtype(np.float32) if spec.dtype == "bfloat16" else numpy_dtype(spec.dtype)


def _text_batches(
    lines: Iterator[bytes], parser: TextRows, name: str, spec: InputSpec, most_rows: int
) -> Iterator[Rows]:
    values: list[list[float]] = []
    numbers: list[int] = []
    times: list[str] = []
    done = 0

    def batch() -> Rows:
        whole = np.array(values, dtype=host_dtype(spec)).reshape(len(values), *spec.shape)
        made = Rows(whole, tuple(numbers), None if parser.timestamp is None else tuple(times), done)
        for each in (values, numbers, times):
            each.clear()
        return made

    try:
        for number, line in enumerate(lines, start=1):
            done += len(line)
            if (row := parser.parse(line, f"{name}, line {number}")) is None:
                continue
            values.append(row[0])
            times.append(row[1])
            numbers.append(number)
            if len(values) == most_rows:
                yield batch()
    except InputError:
        if values:
            yield batch()
        raise
    if values:
        yield batch()


def _raw_batches(
    blocks: Iterator[bytes], raw: np.dtype[Any], name: str, spec: InputSpec, most_rows: int
) -> Iterator[Rows]:
    """Numbers without anything between them, one row behind the other."""
    row_bytes = raw.itemsize * math.prod(spec.shape)
    rest, number, done = b"", 1, 0
    for block in blocks:
        rest += block
        whole = len(rest) // row_bytes
        values = np.frombuffer(rest, raw, whole * math.prod(spec.shape)).reshape(whole, *spec.shape)
        for start in range(0, whole, most_rows):
            rows = _converted(values[start : start + most_rows], spec, name)
            done += len(rows) * row_bytes
            yield Rows(rows, range(number, number + len(rows)), None, done)
            number += len(rows)
        rest = rest[whole * row_bytes :]
    if rest:
        raise InputError(f"{name} ends inside row {number}: {len(rest)} of {row_bytes} bytes.")


def _converted(values: NDArray[Any], spec: InputSpec, name: str) -> NDArray[Any]:
    dtype = host_dtype(spec)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinity, which is found like any other
            return values.astype(dtype)
    if values.dtype.kind == "f":
        raise InputError(f"{name} contains {values.dtype} numbers, the model takes whole ones ({spec.dtype}).")
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for value in (values.min(), values.max()):
        if not least <= value <= most:
            raise InputError(f"{name} contains {value}, which does not fit in {spec.dtype}.")
    return values.astype(dtype)


def _open_npy(path: Path, spec: InputSpec) -> NDArray[Any]:
    """The array of an NPY file ``[T, F]`` (``[T]`` if F is 1), mapped into memory rather than read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python, with the errors of that
        raise InputError(f"{path} is not an array of numbers: {error}") from None
    wanted = f"[T, {', '.join(map(str, spec.shape))}]" if spec.shape else "[T]"
    if array.ndim == 1 and math.prod(spec.shape) == 1:
        array = array.reshape(-1, *spec.shape)
    if array.dtype.kind not in ("iub" if spec.dtype == "bool" else "fiu"):
        raise InputError(f"{path} has dtype {array.dtype}, the model takes numbers ({spec.dtype}).")
    if array.shape[1:] != spec.shape or array.ndim == 0:
        raise InputError(f"{path} has shape {list(array.shape)}, the model takes {wanted}.")
    return np.asarray(array)


def _npy_batches(array: NDArray[Any], name: str, spec: InputSpec, most_rows: int) -> Iterator[Rows]:
    for start in range(0, len(array), most_rows):
        rows = _converted(array[start : start + most_rows], spec, name)
        yield Rows(rows, range(start + 1, start + 1 + len(rows)), None, start + len(rows))
