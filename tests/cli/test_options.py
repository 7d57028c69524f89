"""A group declares options, and a command gets them as one object."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from edgemem.cli.options import flags_given, option, option_group
from edgemem.cli.totals import readable_rate


@dataclass(frozen=True)
class Tea:
    """How tea is made."""

    minutes: int = option("--minutes", "-m", default=3, type=click.IntRange(min=1), show_default=True)
    sorts: tuple[str, ...] = option("--sort", default=(), multiple=True)
    milk: bool = option("--milk", default=False, is_flag=True, help="Add milk.")


@click.command()
@click.argument("cups", type=int)
@option_group("tea", Tea)
@click.option("--json", "as_json", is_flag=True)
def make(cups: int, tea: Tea, as_json: bool) -> None:
    """Make tea."""
    click.echo(f"{cups} {tea.minutes} {tea.sorts} {tea.milk} {as_json} {flags_given(tea)}")


run = functools.partial(CliRunner().invoke, make)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["2"], "2 3 () False False []"),
        (["2", "-m", "5", "--sort", "a", "--sort", "b"], "2 5 ('a', 'b') False False ['--minutes', '--sort']"),
        (["2", "--milk", "--json"], "2 3 () True True ['--milk']"),
    ],
)
def test_a_command_gets_the_options_of_a_group_as_one_object(arguments, output):
    assert run(arguments).output == f"{output}\n"


def test_the_types_and_the_help_of_the_options_are_those_of_click():
    assert run(["2", "--minutes", "0"]).exit_code == 2
    text = run(["--help"]).output
    assert "Make tea." in text
    assert "[default: 3; x>=1]" in text
    assert text.index("--minutes") < text.index("--sort") < text.index("--milk") < text.index("--json")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "no"), (0.04, "0.0"), (8.46, "8.5"), (99.94, "99.9"), (99.96, "100"), (13204, "13,204")],
)
def test_rates_are_written_in_one_style(value, text):
    assert readable_rate(value) == text
