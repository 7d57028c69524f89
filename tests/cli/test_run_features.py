"""``edgemem run`` with a model of features. The summing model outputs the sum of all rows so far."""

import json
import os
import pty
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.cli.interrupt import Interrupt
from edgemem.cli.rows import open_rows
from edgemem.contract import InputSpec
from edgemem.errors import InputError

from .conftest import end_by_signal

ROWS = np.arange(100, dtype=np.float32).reshape(50, 2)
SUMS = ROWS.cumsum(axis=0)


def parsed(text: str) -> np.ndarray:
    return np.array([[float(cell) for cell in line.split(",")] for line in text.splitlines()])


@pytest.fixture
def csv(tmp_path):
    """A CSV file of :data:`ROWS`."""
    np.savetxt(tmp_path / "rows.csv", ROWS, delimiter=",", fmt="%g")
    return tmp_path / "rows.csv"


def test_a_csv_file_gives_a_line_of_predictions_for_every_row(summer, invoke, csv):
    result = invoke("run", summer, csv)
    assert result.exit_code == 0
    np.testing.assert_array_equal(parsed(result.stdout), SUMS)
    assert result.stderr.startswith("50 rows, ")
    assert result.stderr.endswith("position 50\n")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_file_can_have_any_real_dtype(summer, invoke, tmp_path, dtype, order):
    np.save(tmp_path / "rows", np.array(ROWS, dtype=dtype, order=order))
    np.testing.assert_array_equal(parsed(invoke("run", summer, tmp_path / "rows.npy").stdout), SUMS)


def test_rows_are_read_from_stdin_by_default(summer, invoke, csv):
    for source in ((), ("-",)):
        result = invoke("run", summer, *source, input=csv.read_bytes())
        np.testing.assert_array_equal(parsed(result.stdout), SUMS)


def test_numbers_are_written_in_full_and_no_longer(summer, invoke):
    value = np.float32(1) / np.float32(3)
    line = invoke("run", summer, input=f"{value},0.1").stdout.strip()
    assert line == "0.33333334,0.1"
    assert np.float32(line.split(",")[0]) == value


def test_a_prediction_appears_before_the_next_row_is_written(summer, start):
    process = start("run", summer, "-")
    for row, expected in (("1,2\n", b"1.0,2.0\n"), ("3,4\n", b"4.0,6.0\n"), ("0,0.5\n", b"4.0,6.5\n")):
        process.stdin.write(row.encode())
        process.stdin.flush()
        assert process.stdout.readline() == expected
    assert process.poll() is None


def test_a_named_pipe_is_also_read_line_by_line(summer, start, tmp_path):
    os.mkfifo(tmp_path / "sensor")
    process = start("run", summer, tmp_path / "sensor")
    with (tmp_path / "sensor").open("w") as sensor:
        sensor.write("1,2\n")
        sensor.flush()
        assert process.stdout.readline() == b"1.0,2.0\n"
    assert process.wait(timeout=30) == 0


def test_a_terminal_shows_progress_which_does_not_mix_with_the_predictions(summer, start, csv):
    terminal, stderr = pty.openpty()
    process = start("run", summer, csv, stderr=stderr)
    os.close(stderr)
    out = process.stdout.read()
    assert process.wait(timeout=30) == 0
    np.testing.assert_array_equal(parsed(out.decode()), SUMS)
    assert b"100%" in os.read(terminal, 100_000)
    os.close(terminal)


def test_json_is_one_object(summer, invoke, csv):
    result = invoke("run", summer, csv, "--json")
    said = json.loads(result.stdout)
    assert said.pop("rows_per_second") > 0
    assert said == {
        "predictions": SUMS.tolist(),
        "rows": 50,
        "ended_by": "end",
        "position": 50,
        "runtime": "onnxruntime",
        "device": "cpu",
    }
    assert result.stderr == ""


def test_json_stays_valid_if_a_prediction_is_not_finite(summer, invoke):
    result = invoke("run", summer, "--json", input="3e38,1\n3e38,1\n")
    assert json.loads(result.stdout, parse_constant=pytest.fail)["predictions"][1] == [None, 2.0]


def test_a_resumed_stream_continues_where_it_stopped(summer, invoke, tmp_path):
    state = tmp_path / "state"
    invoke("run", summer, "--snapshot", state, input="1,2\n3,4\n")
    assert invoke("run", summer, "--resume", state, input="10,20").stdout == "14.0,26.0\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_waiting_for_a_row_saves_the_state(summer, invoke, start, tmp_path, number):
    state = tmp_path / "state"
    process = start("run", summer, "--snapshot", state)
    process.stdin.write(b"1,2\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"1.0,2.0\n"
    assert end_by_signal(process, number) == 128 + number
    assert process.stderr.read().startswith(b"1 row, ")
    assert invoke("run", summer, "--resume", state, input="1,1").stdout == "2.0,3.0\n"


def test_ctrl_c_inside_a_file_keeps_every_row_that_was_printed(summer, invoke, start, tmp_path):
    np.save(tmp_path / "rows", np.ones((2_000_000, 2), dtype=np.float32))
    process = start("run", summer, tmp_path / "rows.npy", "--snapshot", tmp_path / "state")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    printed = 1 + out.count(b"\n")
    assert errors.startswith(f"{printed} rows, ".encode())
    assert (
        invoke("run", summer, "--resume", tmp_path / "state", input="1,1").stdout
        == f"{printed + 1}.0,{printed + 1}.0\n"
    )


def test_a_closed_pipe_ends_quietly_and_keeps_the_snapshot(summer, start, tmp_path):
    np.save(tmp_path / "rows", np.ones((200_000, 2), dtype=np.float32))
    process = start("run", summer, tmp_path / "rows.npy", "--snapshot", tmp_path / "state")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""
    assert (tmp_path / "state").exists()


BAD_ROWS = [
    ("1,x", "column 2: 'x' is not a number"),
    ("1,", "column 2: '' is not a number"),
    ("1,2,3", "column 3: the row has 3 numbers, the model takes 2"),
    ("1", "column 2: the row has 1 numbers, the model takes 2"),
    ("1_0,2", "column 1: '1_0' is not a number"),
    ("1,1e39", "column 2: 1e39 does not fit in float32"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
@pytest.mark.parametrize("source", ["stdin", "file"])
def test_the_error_names_the_bad_row_and_the_rows_before_it_are_kept(summer, invoke, tmp_path, row, message, source):
    text = f"1,2\n3,4\n{row}\n5,6\n"
    (tmp_path / "rows.csv").write_text(text)
    arguments = (tmp_path / "rows.csv",) if source == "file" else ()
    name = str(tmp_path / "rows.csv") if source == "file" else "stdin"
    result = invoke("run", summer, *arguments, "--snapshot", tmp_path / "state", input=text)
    assert result.exit_code == 1
    assert result.stdout == "1.0,2.0\n4.0,6.0\n"
    assert result.stderr.splitlines()[0] == f"Error: {name}, line 3, {message}."
    assert invoke("run", summer, "--resume", tmp_path / "state", input="1,1").stdout == "5.0,7.0\n"


def test_a_header_blank_lines_comments_and_a_byte_order_mark_are_skipped(summer, invoke):
    text = '\ufeff# a comment\nleft, right\n\n 1 , 2\r\n# another\n"3",4'
    assert invoke("run", summer, input=text.encode()).stdout == "1.0,2.0\n4.0,6.0\n"


def test_a_second_header_is_an_error(summer, invoke):
    result = invoke("run", summer, input="a,b\nc,d\n")
    assert result.exit_code == 1
    assert "line 2, column 1" in result.stderr


def test_numbers_can_be_separated_by_blanks_or_tabs(summer, invoke):
    assert invoke("run", summer, input="1 2\n3\t4\n").stdout == "1.0,2.0\n4.0,6.0\n"


def test_bytes_that_are_not_text_are_an_error(summer, invoke):
    result = invoke("run", summer, input=b"1,2\n\xff\xfe\n")
    assert (result.exit_code, result.stdout) == (1, "1.0,2.0\n")
    assert "line 2 is not text" in result.stderr


def test_the_guard_names_the_step_at_which_a_row_is_not_finite(summer, invoke):
    result = invoke("run", summer, "--guard", input="1,2\n3,4\n5,nan\n6,7\n")
    assert (result.exit_code, result.stdout) == (1, "1.0,2.0\n4.0,6.0\n")
    assert "Error: stdin, line 3: features at position 2" in result.stderr


class Unpickled:
    """Fails the test that unpickles it."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3)), "has shape [5, 3], the model takes [T, 2]"),
        (np.zeros(4), "has shape [4], the model takes [T, 2]"),
        (np.zeros(()), "has shape [], the model takes [T, 2]"),
        (np.zeros((5, 2), dtype=complex), "has dtype complex128"),
        (np.zeros((5, 2), dtype="U3"), "has dtype <U3"),
        (np.array([[Unpickled(), 1]], dtype=object), "is not an array of numbers"),
    ],
)
def test_an_npy_file_of_something_else_is_an_error(summer, invoke, tmp_path, array, message):
    np.save(tmp_path / "rows", array, allow_pickle=True)
    result = invoke("run", summer, tmp_path / "rows.npy")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr


def test_a_truncated_npy_file_is_an_error(summer, invoke, tmp_path):
    np.save(tmp_path / "rows", ROWS)
    whole = (tmp_path / "rows.npy").read_bytes()
    for size in (7, 60, len(whole) - 4):
        (tmp_path / "cut.npy").write_bytes(whole[:size])
        result = invoke("run", summer, tmp_path / "cut.npy")
        assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize("option", [("--prompt", "a"), ("--max-tokens", "3"), ("--stop", "a"), ("--seed", "1")])
def test_options_for_tokens_are_wrong_usage_for_features(summer, invoke, option):
    result = invoke("run", summer, *option, input="1,2")
    assert result.exit_code == 2
    assert f"{option[0]} is for models of tokens" in result.stderr


@given(
    st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 3), min_size=1, max_size=20),
    st.integers(1, 7),
    st.sampled_from([",", " ", "\t", " , "]),
)
def test_any_rows_are_read_as_they_were_written_whatever_the_batches(tmp_path_factory, rows, most_rows, between):
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.write_text("".join(f"{between.join(map(repr, row))}\n" for row in rows))
    source = open_rows(path, InputSpec("features", (3,)), most_rows, Interrupt())
    batches = list(source.batches)
    assert all(1 <= len(batch.values) <= most_rows for batch in batches)
    found = np.concatenate([batch.values for batch in batches])
    np.testing.assert_array_equal(found, np.array(rows, dtype=np.float32).reshape(-1, 3))
    assert source.total == path.stat().st_size == batches[-1].done
    assert [number for batch in batches for number in batch.numbers] == [*range(1, len(rows) + 1)]


def test_rows_of_one_feature_need_no_second_axis(tmp_path):
    np.save(tmp_path / "rows", np.arange(5))
    (tmp_path / "rows.csv").write_text("0\n1\n2\n3\n4\n")
    for name in ("rows.npy", "rows.csv"):
        batches = [*open_rows(tmp_path / name, InputSpec("x", (1,)), 3, Interrupt()).batches]
        assert [batch.values.tolist() for batch in batches] == [[[0], [1], [2]], [[3], [4]]]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        open_rows(tmp_path, InputSpec("x", (1,)), 3, Interrupt())
