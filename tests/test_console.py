import json

import pytest

from edgemem.console import (
    console,
    headed,
    print_json,
    print_table,
    printable,
    readable_bytes,
    readable_count,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 << 30, "64 GiB"), (5 << 40, "5 TiB")],
)
def test_bytes_are_written_in_powers_of_1024(count, text):
    assert readable_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1000, "1000"), (1024, "1k"), (4096, "4k"), (1 << 20, "1M"), (1 << 40, "1T")]
)
def test_counts_are_written_in_powers_of_1024_if_they_are_multiples(count, text):
    assert readable_count(count) == text


def test_json_is_valid_also_if_numbers_are_not_finite(capsys):
    print_json({"a": [1.5, float("nan"), (float("inf"),)], "b": {"c": float("-inf")}, "d": "é"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": [1.5, None, [None]],
        "b": {"c": None},
        "d": "é",
    }


def test_outside_a_terminal_a_row_is_one_plain_line_of_any_length(capsys):
    print_table(console(), "Title", ("name", "value"), [("[bold]a[/bold]", "x" * 500), ("b", "é")])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line.split() for line in out.splitlines()] == [
        ["Title"],
        ["name", "value"],
        ["[bold]a[/bold]", "x" * 500],
        ["b", "é"],
        [],
    ]


def test_control_characters_are_shown_and_not_obeyed(capsys):
    hostile = "a\x1b[2J\x07\x7f\x9b31m\tb"
    assert printable(hostile) == "a\\x1b[2J\\x07\\x7f\\x9b31m\tb"
    print_table(console(), hostile, ("name",), [(hostile,)])
    console().print(hostile)
    console().print(headed(hostile, hostile))
    print_json({hostile: hostile})
    out = capsys.readouterr().out
    assert not set("\x1b\x07\x7f\x9b") & set(out)
    assert json.loads(out[out.index("{") :]) == {hostile: hostile}


@pytest.mark.parametrize("text", ["x[/]y", "[bold]x[/bold]", "edgemem[export]", ":smile:"])
def test_brackets_and_colons_are_text(capsys, text):
    console().print(text)
    console().print(headed(text, text))
    assert capsys.readouterr().out == f"{text}\n{text}{text}\n"
