"""The bar of a long file: what it shows, and where it stays away."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from edgemem.cli.audio_progress import audio_bar


def shown(audio_s: float | None, out: Path | None = Path("out.wav"), *, terminal: bool = True) -> str:
    on = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with audio_bar(on, audio_s, out) as show:
        for read_s in (0.0, 1_234.0, 3_600.0):
            show(read_s)
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_an_hour_has_a_bar_that_is_gone_at_its_end() -> None:
    text = shown(3_600.0)
    assert "3,600 of 3,600 s of audio" in text
    assert text.endswith("\x1b[2K"), "the line is erased"


@pytest.mark.parametrize(("audio_s", "terminal"), [(59.0, True), (None, True), (3_600.0, False)])
def test_a_short_file_a_live_stream_and_a_log_have_none(audio_s: float | None, terminal: bool) -> None:
    assert shown(audio_s, terminal=terminal) == ""


@pytest.mark.parametrize("out", [None, Path("-")])
def test_results_on_the_terminal_are_not_mixed_with_it(out: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert shown(3_600.0, out) == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert "s of audio" in shown(3_600.0, out)
