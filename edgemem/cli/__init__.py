"""The command line: ``edgemem export | adopt | check | upgrade | build | run | serve | bench | inspect | choose | …``.

Each sub-command has its own file, which is imported when the command is called. What ends a command early is handled
only here:

==============================================  =========  ========================
cause                                           exit code  on stderr
==============================================  =========  ========================
:class:`~edgemem.errors.EdgememError`           1          ``Error:`` and the hint
the system refuses (a full disk, a closed       1          ``Error:``
stdout, a name too long, too little memory)
wrong usage                                     2          usage and ``Error:``
Ctrl-C                                          130        nothing
the reader closed the pipe                      141        nothing
==============================================  =========  ========================

A traceback is left for what should not happen: a fault of edgemem's.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from edgemem.console import printable
from edgemem.errors import EdgememError
from edgemem.extras import DISTRIBUTION

_COMMANDS = {
    "export": ("edgemem.cli.export_command:export", "Export a model to a bundle, and verify it."),
    "adopt": ("edgemem.cli.adopt_command:adopt", "Make a bundle of an ONNX file that others exported."),
    "check": ("edgemem.cli.check_command:check", "Verify a bundle again, against its source if wanted."),
    "upgrade": ("edgemem.cli.upgrade_command:upgrade", "Write an older bundle again in today's format."),
    "build": ("edgemem.cli.build_command:build", "Build TensorRT engines, or pack what to build them from."),
    "run": ("edgemem.cli.run_command:run", "Stream text or features through a bundle."),
    "serve": ("edgemem.cli.serve_command:serve", "Serve the streams of bundles over WebSockets and OpenAI's API."),
    "bench": ("edgemem.cli.bench_command:bench", "Measure a bundle on this machine."),
    "inspect": ("edgemem.cli.inspect_command:inspect", "Show what a bundle is, its states and its memory."),
    "choose": ("edgemem.cli.choose_command:choose", "Show which memories are worth so many bytes."),
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
        if ctx.obj is not None:
            ctx.obj()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                result = super().invoke(ctx)
            except (click.exceptions.Exit, SystemExit):
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return result
        except click.ClickException as error:
            vars(error)["message"] = printable(error.message)
            raise
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            _discard_output()
            ctx.exit(128 + signal.SIGPIPE)
        except (EdgememError, OSError, MemoryError) as error:
            _discard_output()
            raise _failure(error) from error


def _failure(error: Exception) -> _Failure:
    """What to print of an error that the user can mend."""
    words = str(error)
    if isinstance(error, MemoryError):
        words = f"there is not enough memory{': ' * bool(words)}{words or '.'}"
    elif isinstance(error, OSError) and error.strerror:
        what = "the output" if error.filename is None else os.fsdecode(error.filename)
        words = f"{what}: {error.strerror}."
    return _Failure(printable(words))


def _open_standard_streams() -> None:
    """Open what the caller closed: stdin is empty, what stderr gets is dropped, and writing to stdout fails.

    Otherwise the next file that is opened gets the number of the closed one, and what is printed.
    """
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:  # the lowest free number, which open() takes, is that of the closed one
            setattr(sys, name, open(os.open(os.devnull, flags), mode, errors="replace"))  # noqa: SIM115 (stays open)


def _discard_output() -> None:
    """Drop what is still buffered and cannot be written; otherwise the interpreter complains about it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="edgemem", message="%(prog)s %(version)s")
def main() -> None:
    """Export sequence models with a fixed-size memory, stream them on a device, and measure them there."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show becomes a '?', not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def program(imported: Callable[[], object] | None = None) -> None:
    """Run the program. What the group does not see, such as help for a full disk, ends here.

    Args:
        imported: Called when the modules of the command have been imported.
    """
    _open_standard_streams()
    try:
        main(obj=imported)
    except OSError as error:
        _discard_output()
        _failure(error).show()
        sys.exit(1)
