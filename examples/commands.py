"""Run the ``edgemem`` command from an example, as a user would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click


def edgemem_command(
    *arguments: str | Path,
    stdin: Path | None = None,
    stdout: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Print an ``edgemem`` command line and run it.

    Args:
        arguments: The command and its arguments.
        stdin: File for the command to read.
        stdout: File for the command's output; ``None`` prints the output.
        variables: Environment variables to set. ``PYTHONPATH`` is put in front of the present one.

    Raises:
        subprocess.CalledProcessError: The command fails.
    """
    variables = variables or {}
    words = ["edgemem", *map(str, arguments)]
    shown = [*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(words)]
    shown += [f"{sign} {shlex.quote(str(file))}" for sign, file in (("<", stdin), (">", stdout)) if file]
    click.echo(f"$ {' '.join(shown)}")
    words[0] = str(Path(sysconfig.get_path("scripts")) / "edgemem")
    environment = dict(os.environ) | dict(variables)
    if "PYTHONPATH" in variables and "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    with ExitStack() as files:
        source = files.enter_context(stdin.open()) if stdin else None
        target = files.enter_context(stdout.open("w")) if stdout else None
        subprocess.run(words, check=True, env=environment, stdin=source, stdout=target)
