"""How ``edgemem run`` reads rows: formats, headers, columns, timestamps, and rows that are not finite."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.cli.interrupt import Interrupt
from edgemem.cli.rows import RowOptions, open_rows
from edgemem.cli.text_rows import CsvRows, JsonRows
from edgemem.contract import InputSpec
from edgemem.errors import InputError

PAIR = InputSpec("features", (2,))


def read(text: str, spec: InputSpec = PAIR, **options: Any) -> list[tuple[list[float], str]]:
    parser = JsonRows(spec, **options) if options.pop("json", False) else CsvRows(spec, **options)
    found = (parser.parse(line.encode(), f"line {i}") for i, line in enumerate(text.splitlines(), 1))
    return [row for row in found if row is not None]


def values(text: str, spec: InputSpec = PAIR, **options: Any) -> list[list[float]]:
    return [row for row, _ in read(text, spec, **options)]


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("1,2\n3,4", {}, [[1, 2], [3, 4]]),
        ("x,y\n1,2", {}, [[1, 2]]),
        ("accel (m/s²),temp. °C\n1,2", {}, [[1, 2]]),
        ("7,8\n1,2", {"has_header": True}, [[1, 2]]),
        ("1;2\n3 ; 4", {"delimiter": ";"}, [[1, 2], [3, 4]]),
        ("1\t2", {"delimiter": "\t"}, [[1, 2]]),
        ("t,y,x\n0,1,2", {"columns": ["x", "y"]}, [[2, 1]]),
        ("0,1,2\n3,4,5", {"columns": ["3", "1"]}, [[2, 0], [5, 3]]),
        ("3,x\n1,2", {"columns": ["3", "x"]}, [[1, 2]]),
        ("a,b,c\n0,1,2", {"columns": ["3", "1"]}, [[2, 0]]),
        ('"1","2"\n', {}, [[1, 2]]),
        ("1,-inf\nnan,1e400", {}, [[1, -np.inf], [np.nan, np.inf]]),
    ],
)
def test_csv(text: str, options: dict[str, Any], wanted: list[list[float]]) -> None:
    np.testing.assert_array_equal(values(text, **options), wanted)


@pytest.mark.parametrize(
    ("text", "width", "options", "message"),
    [
        ("1;2", 2, {}, r"line 1, column 1: '1;2' is not a number\.\n.*--delimiter ';'"),
        ("a;b\n1;2", 2, {}, r"line 1, column 1: 'a;b' is not a number"),
        ("1;2", 1, {}, r"'1;2' is not a number\.\n.*--delimiter ';'"),
        ('{"accel":1}', 1, {}, r"is not a number\.\n.*--input-format jsonl"),
        ("[1]", 1, {}, "--input-format jsonl"),
        ("n/a,n/a\n1,2", 2, {}, "'n/a' is not a number"),
        ("a,b,c\n1,2", 2, {}, "'a' is not a number"),
        ("1,2,3", 2, {}, r"column 3: the row has 3 numbers, the model takes 2\.\n.*--columns"),
        ("x,y\n1,2", 1, {"columns": ["z"]}, "there is no column 'z' in the header x, y"),
        ("1,2\n1", 1, {"columns": ["2"]}, "line 2: the row has 1 columns, column 2 is wanted"),
        ("1,2", 1, {"columns": ["0"]}, "there is no column '0'"),
        ("1,2", 1, {"columns": ["9" * 5000]}, "is wanted"),
        ('1,"2', 2, {"delimiter": "\0"}, "line 1"),
        ("1,\0", 2, {}, "line 1"),
    ],
)
def test_csv_that_is_something_else_is_refused(text: str, width: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        values(text, InputSpec("x", (width,)), **options)


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("[1, 2]\n\n[[3], [4.5]]", {}, [[1, 2], [3, 4.5]]),
        ('{"y": 1, "x": 2, "z": "?"}', {"columns": ["x", "y"]}, [[2, 1]]),
        ('{"pair": [1, 2]}', {"columns": ["pair"]}, [[1, 2]]),
        ("[0, 1, 2]", {"columns": ["3", "2"]}, [[2, 1]]),
        ("[NaN, -Infinity]\n[1, 1e400]", {}, [[np.nan, -np.inf], [1, np.inf]]),
    ],
)
def test_json(text: str, options: dict[str, Any], wanted: list[list[float]]) -> None:
    np.testing.assert_array_equal(values(text, json=True, **options), wanted)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"x": 1}', {}, r"line 1 is an object\.\n.*--columns"),
        ('{"x": 1}', {"columns": ["x", "y"]}, "line 1 has no 'y'"),
        ('[1, "2"]', {}, "line 1, '2': '2' is not a number"),
        ("[1, true]", {}, "True is not a number"),
        ("[1, null]", {}, "None is not a number"),
        ("[1, 2, 3]", {}, "the row has 3 numbers, the model takes 2"),
        ("[" * 60 + "7" + "]" * 60, {}, "the row has 1 numbers"),
        ("[1, 2", {}, "line 1 is not JSON"),
        ("[1, 1" + "0" * 400 + "]", {}, None),
        ("[1, 1" + "0" * 5000 + "]", {}, "line 1 is not JSON"),
        ("[" * 100_000, {}, "line 1 is not JSON"),
        ("[1, 1e39]", {}, "1e\\+39 does not fit in float32"),
    ],
)
def test_json_that_is_something_else_is_refused(text: str, options: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert values(text, json=True, **options) == [[1, np.inf]]
        return
    with pytest.raises(InputError, match=message):
        values(text, json=True, **options)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("float16", "65504", "65536"),
        ("bfloat16", "3.38e38", "3.4e38"),
        ("int8", "-128", "128"),
        ("uint8", "255", "-1"),
        ("int32", "7", "1.5"),
        ("int32", "7", "nan"),
        ("bool", "1", "2"),
    ],
)
def test_a_number_must_fit_the_dtype_of_the_input(dtype: str, good: str, bad: str) -> None:
    spec = InputSpec("x", (1,), dtype)
    assert values(good, spec) == [[float(good)]]
    with pytest.raises(InputError, match=r"column 1: .* (does not fit in|is not a whole number)"):
        values(bad, spec)


def test_timestamps_are_read_as_they_are_written() -> None:
    assert read("time,x,y\n2024-01-01 10:00:00,1,2", timestamp="time") == [([1, 2], "2024-01-01 10:00:00")]
    assert read('1,"7,50",2', timestamp="2") == [([1, 2], "7,50")]
    assert read(
        '{"t": 7, "x": 1, "y": 2}\n{"t": "8", "x": 1, "y": 2}', json=True, columns=["x", "y"], timestamp="t"
    ) == [
        ([1, 2], "7"),
        ([1, 2], "8"),
    ]
    assert read("[0.50, 1, 2]", json=True, timestamp="1") == [([1, 2], "0.5")]


@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.text("0123456789.,;:-+eEnaif_\"'\\[]{}# \t\r\0x²٣", max_size=16).map(str.encode),
            st.sampled_from(
                [b"\x93NUMPY", b"1,2", b"[1,2]", b'{"a":1,"b":[2]}', b"a,b", b'"a","b', b"1e400,nan", b"[1e999,-1e999]"]
            ),
        ),
        max_size=4,
    ),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "int8", "bool"]),
    options=st.fixed_dictionaries(
        {
            "format": st.sampled_from(["csv", "jsonl", "f32le", "s16le", None]),
            "header": st.booleans(),
            "columns": st.sampled_from([None, "a,b", "1,2", "2,a", "9,٣", "²,0", ","]),
            "delimiter": st.sampled_from([None, ";", "tab", " ", '"', "\0", "\n", "²"]),
            "timestamp": st.sampled_from([None, "1", "a", "0", "²", ""]),
        }
    ),
)
@settings(deadline=None)
def test_any_bytes_are_rows_or_an_error_that_says_where(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], dtype: str, options: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.write_bytes(b"\n".join(lines))
    message = str(path)
    try:
        for rows in open_rows(path, InputSpec("x", (2,), dtype), 3, Interrupt(), RowOptions(**options)).batches:
            assert rows.values.shape == (len(rows.numbers), 2)
            assert rows.values.dtype == (np.float32 if dtype == "bfloat16" else np.dtype(dtype))
    except InputError as error:
        message = str(error)
    assert str(path) in message


@pytest.mark.parametrize("name", ["f32le", "s16le"])
@pytest.mark.parametrize("most_rows", [1, 7])
def test_bare_numbers_are_rows_of_so_many_bytes(tmp_path: Path, name: str, most_rows: int) -> None:
    wanted = np.arange(-20, 20).reshape(20, 2)
    data = wanted.astype("<f4" if name == "f32le" else "<i2").tobytes()
    (tmp_path / "raw").write_bytes(data)
    batches = [*open_rows(tmp_path / "raw", PAIR, most_rows, Interrupt(), RowOptions(format=name)).batches]
    np.testing.assert_array_equal(np.concatenate([batch.values for batch in batches]), wanted)
    assert batches[-1].done == len(data)
    (tmp_path / "raw").write_bytes(data[:-1])
    source = open_rows(tmp_path / "raw", PAIR, 100, Interrupt(), RowOptions(format=name))
    assert len(next(source.batches).values) == 19
    with pytest.raises(InputError, match=r"raw ends inside row 20: \d of \d bytes"):
        next(source.batches)


def test_whole_numbers_are_not_rounded_or_wrapped(tmp_path: Path) -> None:
    spec = InputSpec("x", (1,), "int8")
    for name, array, message in (
        ("float", np.array([1.5]), "float.npy contains float64 numbers, the model takes whole ones"),
        ("large", np.array([1, 300]), "large.npy contains 300, which does not fit in int8"),
        ("small", np.array([-129]), "small.npy contains -129, which does not fit in int8"),
    ):
        np.save(tmp_path / name, array)
        with pytest.raises(InputError, match=message):
            next(open_rows(tmp_path / f"{name}.npy", spec, 3, Interrupt()).batches)
    np.save(tmp_path / "good", np.array([-128, 127]))
    rows = next(open_rows(tmp_path / "good.npy", spec, 3, Interrupt()).batches)
    assert (rows.values.dtype, rows.values.ravel().tolist()) == (np.int8, [-128, 127])


def test_bare_numbers_that_arrive_in_pieces_are_answered_row_by_row(summer: Path, start: Any) -> None:
    process = start("run", summer, "-", "--input-format", "f32le")
    for row, wanted in (((1, 2), b"1.0,2.0\n"), ((3, 4), b"4.0,6.0\n")):
        data = np.array(row, "<f4").tobytes()
        for part in (data[:3], data[3:]):
            process.stdin.write(part)
            process.stdin.flush()
        assert process.stdout.readline() == wanted


@pytest.mark.parametrize("text", ["", "\n\n# nothing\n", "x,y\n"])
@pytest.mark.parametrize("source", ["stdin", "file"])
def test_an_input_of_which_nothing_was_read_is_an_error(
    summer: Path, invoke: Any, tmp_path: Path, text: str, source: str
) -> None:
    (tmp_path / "rows.csv").write_text(text)
    result = invoke("run", summer, *([tmp_path / "rows.csv"] if source == "file" else []), input=text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "contains no rows" in result.stderr


def test_an_endless_line_is_refused() -> None:
    with (
        Path("/dev/zero").open("rb", buffering=0) as zeros,
        pytest.raises(InputError, match="line of more than 16 MiB"),
    ):
        next(Interrupt().lines(zeros, "zeros"))


def test_a_line_is_whole_however_it_arrives() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as end:
        lines = Interrupt().lines(end, "pipe")
        os.write(writer, b"1,")
        os.write(writer, b"2\n3")
        assert next(lines) == b"1,2\n"
        os.close(writer)
        assert [*lines] == [b"3"]


def test_while_nothing_arrives_idle_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemem.cli.interrupt._LONGEST_WAIT_S", 0.001)
    reader, writer = os.pipe()
    calls = []

    def idle() -> float:
        calls.append(True)
        if len(calls) == 3:
            os.close(writer)
        return 60.0

    with os.fdopen(reader, "rb") as end:
        assert [*Interrupt().blocks(end, "pipe", idle)] == []
    assert len(calls) == 3


def test_a_format_that_must_be_mapped_is_not_read_from_a_pipe(summer: Path, invoke: Any) -> None:
    result = invoke("run", summer, "--input-format", "npy", input=b"1,2\n")
    assert result.exit_code == 1
    assert "stdin cannot be mapped" in result.stderr


NAN_ROWS = "1,2\n3,4\nnan,1\n1,1\n"


@pytest.mark.parametrize("source", ["stdin", "file", "npy"])
@pytest.mark.parametrize(
    ("policy", "out", "error"),
    [
        ([], "1.0,2.0\n4.0,6.0\n", "{place} 3: features at position 2 (stream 0) holds nan."),
        (["--on-nan", "skip"], "1.0,2.0\n4.0,6.0\n\n5.0,7.0\n", None),
        (["--on-nan", "hold"], "1.0,2.0\n4.0,6.0\n7.0,10.0\n8.0,11.0\n", None),
        (["--on-nan", "pass"], "1.0,2.0\n4.0,6.0\nnan,7.0\nnan,8.0\n", None),
    ],
)
def test_a_row_that_is_not_finite(
    summer: Path, invoke: Any, tmp_path: Path, source: str, policy: list[str], out: str, error: str | None
) -> None:
    path = tmp_path / ("rows.npy" if source == "npy" else "rows.csv")
    if source == "npy":
        np.save(path, [[1, 2], [3, 4], [np.nan, 1], [1, 1]])
    else:
        path.write_text(NAN_ROWS)
    result = invoke("run", summer, *([] if source == "stdin" else [path]), *policy, input=NAN_ROWS)
    assert result.stdout == out
    assert result.exit_code == (0 if error is None else 1)
    if error is None:
        assert result.stderr.startswith("4 rows, ")
    else:
        name = {"stdin": "stdin, line", "file": f"{path}, line", "npy": f"{path}, row"}[source]
        assert f"Error: {error.format(place=name)}\n" in result.stderr


def test_the_guard_keeps_the_rows_before_the_one_that_overflows(summer: Path, invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3e38,1\n3e38,1\n1,1\n")
    result = invoke("run", summer, tmp_path / "rows.csv", "--guard", "--snapshot", tmp_path / "state")
    assert (result.exit_code, result.stdout) == (1, "1.0,2.0\n3e+38,3.0\n")
    assert "rows.csv, line 3: output 'sums' became inf at position 2" in result.stderr
    assert invoke("run", summer, "--resume", tmp_path / "state", input="0,1\n").stdout == "3e+38,4.0\n"


def test_timestamps_and_a_header_are_written(summer: Path, invoke: Any) -> None:
    text = "t,a,b,c\n10,1,0,2\n11,nan,0,1\n12,3,0,4\n"
    options = ("--columns", "a,c", "--timestamp", "t", "--on-nan", "skip")
    result = invoke("run", summer, *options, "--output-header", input=text)
    assert result.stdout == "t,sums.0,sums.1\n10,1.0,2.0\n\n12,4.0,6.0\n"
    said = json.loads(invoke("run", summer, *options, "--json", input=text).stdout)
    assert (said["timestamps"], said["predictions"]) == (["10", "11", "12"], [[1, 2], None, [4, 6]])
    numbered = invoke("run", summer, "--timestamp", "1", "--output-header", input="7,1,2\n")
    assert numbered.stdout == "timestamp,sums.0,sums.1\n7,1.0,2.0\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--columns", "a"), "--columns names 1, the model takes 2"),
        (("--delimiter", "ab"), "one character or 'tab'"),
        (("--delimiter", ""), "one character or 'tab'"),
        (("--header", "--input-format", "jsonl"), "--header is for csv, not for jsonl"),
        (("--timestamp", "t", "--input-format", "f32le"), "--timestamp is for csv and jsonl, not for f32le"),
        (("--output-header", "--json"), "--output-header is for lines"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(
    summer: Path, invoke: Any, options: tuple[str, ...], message: str
) -> None:
    result = invoke("run", summer, *options, input="1,2\n")
    assert result.exit_code == 2
    assert message in result.stderr


def test_options_for_features_are_wrong_usage_for_tokens(reciter: Path, invoke: Any) -> None:
    result = invoke("run", reciter, "--on-nan", "skip", "--prompt", "a")
    assert result.exit_code == 2
    assert "--on-nan is for models of features" in result.stderr
