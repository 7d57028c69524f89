"""The command line: ``edgemem export | check | build | run | bench | inspect | doctor``.

Each sub-command has its own file, which is imported when the command is called. What ends a command early is handled
only here:

=====================================  =========  ========================
cause                                  exit code  on stderr
=====================================  =========  ========================
:class:`~edgemem.errors.EdgememError`  1          ``Error:`` and the hint
wrong usage                            2          usage and ``Error:``
Ctrl-C                                 130        nothing
the reader closed the pipe             141        nothing
output that cannot be written          1          ``Error:``
=====================================  =========  ========================
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import click

from edgemem.errors import EdgememError

_COMMANDS = {
    "export": ("edgemem.cli.export_command:export", "Export a model to a bundle, and verify it."),
    "check": ("edgemem.cli.check_command:check", "Verify a bundle again, against its source if wanted."),
    "build": ("edgemem.cli.build_command:build", "Build TensorRT engines, or pack what to build them from."),
    "run": ("edgemem.cli.run_command:run", "Stream text or features through a bundle."),
    "bench": ("edgemem.cli.bench_command:bench", "Measure a bundle on this machine."),
    "inspect": ("edgemem.cli.inspect_command:inspect", "Show what a bundle is, its states and its memory."),
    "doctor": ("edgemem.cli.doctor_command:doctor", "Show which runtimes work on this machine."),
}


class _Failure(click.ClickException):
    """An :class:`EdgememError` as click shows it: exit code 1, no traceback."""


class _Commands(click.Group):
    """A group that imports a sub-command when it is called, and handles the errors of all of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except EdgememError as error:
            raise _Failure(str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            _discard_output()
            ctx.exit(128 + signal.SIGPIPE)
        except OSError as error:  # such as a full disk behind stdout
            _discard_output()
            raise _Failure(f"{error.filename or 'the output'}: {error.strerror or error}.") from error


def _discard_output() -> None:
    """Drop what is still buffered; otherwise the interpreter complains at exit that it cannot be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgemem", prog_name="edgemem", message="%(prog)s %(version)s")
def main() -> None:
    """Export sequence models with a fixed-size memory, stream them on a device, and measure them there."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show becomes a '?', not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
