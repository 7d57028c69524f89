"""Results in files: written as JSON, read back as they were, and as rows for a table of Markdown or CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from edgemem.bench.result import FORMAT, VERSION, BenchResult, NotMeasured, Section
from edgemem.bench.sections import all_sections
from edgemem.bench.sections.environment import Environment
from edgemem.bench.sections.rates import Rate, Rates
from edgemem.bench.subject import Subject
from edgemem.bench.words import ms, number, spread
from edgemem.errors import EdgememError
from edgemem.files import write_atomic
from edgemem.versioned import JsonFormat

RESULT_FORMAT = JsonFormat(FORMAT, "a result of edgemem bench", EdgememError, "measure again", (VERSION,))
COLUMNS = ("model", "machine", "runtime", "threads", "test", "per second", "interval", "one step")
_CSV_COLUMNS = (
    *("model", "machine", "runtime", "device", "threads", "test", "batch", "depth"),
    *("per_second", "low", "high", "step_ms"),
)


def encode(result: BenchResult) -> bytes:
    """The content of a result's file."""
    return f"{json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)}\n".encode()


def report(result: BenchResult) -> bytes:
    """The content of a file to show to others: of the bundle's path only the name is left."""
    subject = dataclasses.replace(result.subject, path=PurePath(result.subject.path).name)
    return encode(dataclasses.replace(result, subject=subject))


def read_result(path: Path) -> BenchResult:
    """A result that ``edgemem bench`` wrote.

    Raises:
        EdgememError: The file is not such a result, or of a version that is not known here.
    """
    data = dict(RESULT_FORMAT.load(path).values)
    try:
        outcomes: dict[type[Section], Section | NotMeasured | None] = {}
        for kind in all_sections():
            found, reason = data.get(kind.key), data.get(f"{kind.key}_skipped")
            without = NotMeasured(str(reason)) if reason else None
            outcomes[kind] = without if found is None else _build(kind, found)
        subject = _build(Subject, data["subject"])
        return BenchResult(subject, outcomes, bool(data["quick"]), float(data["duration_s"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RESULT_FORMAT.refusal(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _build(wanted: Any, value: Any) -> Any:
    """A value of JSON as the type that it was written from: dataclasses, lists, dictionaries, and what JSON has."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _build(next(each for each in inner if each is not type(None)), value)
    if dataclasses.is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        names = {field.name for field in dataclasses.fields(wanted)} & set(value)
        return wanted(**{name: _build(hints[name], value[name]) for name in names})  # type: ignore[operator]
    if origin is list:
        return [_build(inner[0], each) for each in value]
    if origin is tuple:
        return tuple(_build(inner[0], each) for each in value)
    if origin is dict:
        return {str(key): _build(inner[1], each) for key, each in value.items()}
    if wanted is float:
        return float(value)
    if wanted in (int, str, bool) and not isinstance(value, wanted):
        raise TypeError(f"{value!r} is not of type {wanted.__name__}")
    return value


def rows(results: Sequence[BenchResult]) -> list[tuple[str, ...]]:
    """The rates of results, one row for each test; columns as :data:`COLUMNS`."""
    found: list[tuple[str, ...]] = []
    for result, machine, rate in _rates(results):
        threads, interval = "auto" if rate.threads is None else str(rate.threads), rate.per_second
        where = f"{result.subject.runtime} on {result.subject.device}"
        figures = (number(interval.value), spread(interval), ms(rate.step_ms))
        found.append((result.subject.name, machine, where, threads, rate.test, *figures))
    return found


def _rates(results: Sequence[BenchResult]) -> Iterator[tuple[BenchResult, str, Rate]]:
    for result in results:
        environment, rates = result.get(Environment), result.get(Rates)
        for rate in rates.rows if rates else []:
            yield result, environment.device if environment else "unknown", rate


def markdown(results: Sequence[BenchResult]) -> str:
    """A table of Markdown, and the warnings of the runs."""
    lines = [COLUMNS, ("---",) * 3 + ("---:", "---") + ("---:",) * 3, *rows(results)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    warnings = [f"\n{result.subject.name}: {warning}" for result in results for warning in result.warnings]
    return "\n".join([*table, *warnings, ""])


def as_csv(results: Sequence[BenchResult]) -> str:
    """The same rows as CSV, with numbers that programs read: rates per second, and a step in milliseconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for result, machine, rate in _rates(results):
        about, interval = result.subject, rate.per_second
        test = (rate.threads, rate.test, rate.batch, rate.depth)
        figures = (interval.value, interval.low, interval.high, rate.step_ms)
        writer.writerow((about.name, machine, about.runtime, about.device, *test, *figures))
    return out.getvalue()


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole."""
    write_atomic(path, content if isinstance(content, bytes) else content.encode())
