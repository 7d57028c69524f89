"""Rows of features as text: a line of CSV or of JSON each."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edgemem.contract import InputSpec
from edgemem.dtypes import numpy_dtype
from edgemem.errors import InputError
from edgemem.reading import parse_json

_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_NAME = re.compile(r"[^\W\d][\w .()/%°²-]*")
_NO_VALUE = {"n/a", "na", "none", "null"}
_LARGEST_BFLOAT16 = float.fromhex("0x1.fep127")


class TextRows(Protocol):
    """A format with a row in each line.

    Attributes:
        timestamp: The column of the timestamp, as the user names it.
    """

    timestamp: str | None

    def parse(self, line: bytes, where: str) -> tuple[list[float], str] | None:
        """The values of a row and its timestamp; ``None`` for a line without a row.

        Raises:
            InputError: The line is wrong; ``where`` names it.
        """


class CsvRows:
    """Lines of CSV. Blank lines and lines that begin with ``#`` are skipped.

    Args:
        spec: What a row must contain.
        columns: The columns to read, by name or by number from 1; ``None``: all but the timestamp.
        timestamp: The column of the timestamp.
        has_header: Whether the first line must be a header. It is one anyway where a column is named, and where it has
            as many cells as a row and all of them are names.
        delimiter: What separates cells; ``None``: a comma, or blanks in a line without one.
    """

    def __init__(
        self,
        spec: InputSpec,
        columns: Sequence[str] | None = None,
        timestamp: str | None = None,
        *,
        has_header: bool = False,
        delimiter: str | None = None,
    ) -> None:
        self.timestamp = timestamp
        self._range, self._width = _Range(spec), math.prod(spec.shape)
        self._columns = columns
        self._has_header = has_header or any(not name.isdecimal() for name in (*(columns or ()), timestamp or "1"))
        self._delimiter = delimiter
        self._is_first = True
        self._chosen: list[int] | None = None
        self._time: int | None = None

    def parse(self, line: bytes, where: str) -> tuple[list[float], str] | None:
        """See :class:`TextRows`."""
        cells = self._cells(_text(line, where), where)
        if not cells:
            return None
        if self._is_first:
            self._is_first = False
            if self._begin(cells, where):
                return None
        if (last := max([*(self._chosen or ()), -1 if self._time is None else self._time], default=-1)) >= len(cells):
            raise InputError(f"{where}: the row has {len(cells)} columns, column {last + 1} is wanted.")
        chosen = [i for i in range(len(cells)) if i != self._time] if self._chosen is None else self._chosen
        values = _values([cells[i] for i in chosen], chosen, where)
        if len(values) != self._width:
            column = chosen[self._width] + 1 if len(values) > self._width else len(cells) + 1
            raise InputError(
                f"{where}, column {column}: the row has {len(values)} numbers, the model takes {self._width}.",
                hint="Choose columns with --columns." if len(values) > self._width else None,
            )
        self._range.check(values, lambda i: f"{where}, column {chosen[i] + 1}: {cells[chosen[i]]}")
        return values, "" if self._time is None else cells[self._time]

    def _cells(self, text: str, where: str) -> list[str]:
        if not text.strip() or text.lstrip().startswith("#"):
            return []
        if self._delimiter is None and "," not in text:
            return [cell.strip('"') for cell in text.split()]
        if '"' not in text:
            return [cell.strip() for cell in text.split(self._delimiter or ",")]
        try:
            cells = next(csv.reader([text], delimiter=self._delimiter or ",", skipinitialspace=True))
        except csv.Error as error:
            raise InputError(f"{where} is not CSV: {error}.") from None
        return [cell.strip() for cell in cells]

    def _begin(self, cells: list[str], where: str) -> bool:
        """Find the columns; whether the first line is a header."""
        count = len(cells) - (self.timestamp is not None)
        names_only = all(_NAME.fullmatch(cell) and cell.lower() not in _NO_VALUE for cell in cells)
        is_header = self._has_header or (
            names_only and (self._columns is not None or count == self._width) and not any(map(_is_number, cells))
        )
        names = cells if is_header else []

        def place(column: str) -> int:
            if column in names:
                return names.index(column)
            if column.isdecimal() and int(column[:9]) > 0:
                return int(column[:9]) - 1
            raise InputError(f"{where}: there is no column {column!r} in the header {', '.join(names)}.")

        self._chosen = None if self._columns is None else [place(column) for column in self._columns]
        self._time = None if self.timestamp is None else place(self.timestamp)
        return is_header


class JsonRows:
    """Lines of JSON: an array of numbers, or an object whose fields are numbers or arrays of numbers.

    Args:
        spec: What a row must contain.
        columns: The fields of an object, or the places in an array from 1, in the model's order.
        timestamp: The field or place of the timestamp.
    """

    def __init__(self, spec: InputSpec, columns: Sequence[str] | None = None, timestamp: str | None = None) -> None:
        self.timestamp = timestamp
        self._range, self._width = _Range(spec), math.prod(spec.shape)
        self._columns = columns

    def parse(self, line: bytes, where: str) -> tuple[list[float], str] | None:
        """See :class:`TextRows`."""
        text = _text(line, where)
        if not text.strip():
            return None
        try:
            row = parse_json(text, loose=True)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}.") from None
        if isinstance(row, list):
            fields = {str(i): value for i, value in enumerate(row, start=1)}
        elif isinstance(row, dict):
            fields = row
            if self._columns is None:
                raise InputError(
                    f"{where} is an object.", hint="Name its fields, in the model's order, with --columns."
                )
        else:
            fields = {"1": row}
        names = [name for name in fields if name != self.timestamp] if self._columns is None else self._columns
        wanted = names if self.timestamp is None else (*names, self.timestamp)
        if missing := [name for name in wanted if name not in fields]:
            raise InputError(f"{where} has no {missing[0]!r}.")
        values = [value for name in names for value in _numbers(fields[name], f"{where}, {name!r}")]
        if len(values) != self._width:
            raise InputError(f"{where}: the row has {len(values)} numbers, the model takes {self._width}.")
        self._range.check(values, lambda i: f"{where}: {values[i]}")
        if self.timestamp is None:
            return values, ""
        time = fields[self.timestamp]
        return values, time if isinstance(time, str) else json.dumps(time)


def _numbers(value: Any, where: str) -> list[float]:
    """The numbers of a JSON value, in order; arrays may be nested."""
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each, where)]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where}: {value!r} is not a number.")
    try:
        return [float(value)]
    except OverflowError:
        return [math.inf if value > 0 else -math.inf]


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8").lstrip(_BYTE_ORDER_MARK).strip("\r\n")
    except UnicodeDecodeError:
        raise InputError(
            f"{where} is not text.", hint="Give rows as text, in a .npy file, or with --input-format."
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _values(cells: Sequence[str], columns: Sequence[int], where: str) -> list[float]:
    """The numbers of cells; the error for one that is not a number names its column."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        values = []
    if len(values) == len(cells) and not any("_" in cell for cell in cells):
        return values
    column, cell = next((column, cell) for column, cell in zip(columns, cells, strict=True) if not _is_number(cell))
    hint = None
    if cell.startswith(("{", "[")):
        hint = "Lines of JSON need --input-format jsonl."
    elif found := re.search(r"[;|\t:]", cell):
        hint = f"Columns that are separated by {found[0]!r} need --delimiter {found[0]!r}."
    raise InputError(f"{where}, column {column + 1}: {cell!r} is not a number.", hint=hint)


class _Range:
    """What the dtype of an input can hold."""

    def __init__(self, spec: InputSpec) -> None:
        self._dtype = spec.dtype
        self._is_whole = "float" not in spec.dtype
        self._least, self._most = -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16
        if spec.dtype == "bool":
            self._least, self._most = 0.0, 1.0
        elif spec.dtype != "bfloat16":
            dtype = numpy_dtype(spec.dtype)
            info: Any = np.iinfo(dtype) if self._is_whole else np.finfo(dtype)
            self._least, self._most = float(info.min), float(info.max)

    def check(self, values: Sequence[float], show: Callable[[int], str]) -> None:
        """Refuse finite values that do not fit, and fractions where whole numbers are wanted.

        Args:
            values: The values of a row.
            show: Names a value by its index.
        """
        if not self._is_whole and values and self._least <= min(values) and max(values) <= self._most:
            return
        for i, value in enumerate(values):
            if self._is_whole and not value.is_integer():
                raise InputError(f"{show(i)} is not a whole number ({self._dtype}).")
            if not self._least <= value <= self._most and (self._is_whole or math.isfinite(value)):
                raise InputError(f"{show(i)} does not fit in {self._dtype}.")
