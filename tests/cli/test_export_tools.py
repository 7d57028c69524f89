"""What export and check show while they work."""

from __future__ import annotations

import io

from rich.console import Console

from edgemem.cli.export_tools import checking


def test_a_stage_without_a_known_end_shows_its_time_and_no_bar() -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    with checking(shown) as (announce, progress):
        announce("tracing the model")
        progress("stepping", 3, 10)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "tracing the model" in text
    assert "0:00:00" in text
    assert "0/?" not in text
    assert "3/10" in text


def test_outside_a_terminal_each_stage_is_a_line() -> None:
    shown = Console(file=io.StringIO(), width=100)
    with checking(shown) as (announce, progress):
        announce("tracing the model")
        progress("stepping", 3, 10)
    assert shown.file.getvalue() == "tracing the model\n"  # type: ignore[attr-defined]
