"""A short form of the attack on the command line; ``make fuzz`` runs the long one."""

from __future__ import annotations

import click
import pytest

from edgemem.cli import main
from tests.fuzz.command_lines import lines, run_all

FILES = {"bundle": ["reciter", "chat"], "file": ["file"], "path": ["none"]}


def test_a_sample_of_command_lines_ends_without_a_traceback() -> None:
    counts, bad = run_all(sample=80)
    assert bad == []
    assert counts.total() == 80
    assert counts["exit 1"] > 10
    assert counts["exit 2"] > 10


@pytest.mark.long
def test_every_command_line_ends_without_a_traceback() -> None:
    counts, bad = run_all()
    assert bad == []
    assert counts.total() >= 750


def test_every_option_of_every_command_is_attacked() -> None:
    words = {(*line.arguments[:1], word.partition("=")[0]) for line in lines(FILES) for word in line.arguments[1:]}
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option):
                assert (name, option.opts[0]) in words, f"{name} {option.opts[0]}"
