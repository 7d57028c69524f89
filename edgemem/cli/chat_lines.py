"""Where the messages of ``edgemem run --chat`` are read from."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator

import click

from edgemem.cli.interrupt import Interrupt
from edgemem.cli.run_options import STDIN, RunOptions


class TerminalLines:
    """Lines typed at the terminal, after a prompt.

    Args:
        interrupt: Lets Ctrl-C end the wait for a line.
    """

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._on_stderr = not sys.stdout.isatty()  # stdout with the replies is redirected
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (line editing and history)

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                with self._interrupt.waiting():
                    line = click.prompt(">", prompt_suffix=" ", default="", show_default=False, err=self._on_stderr)
            # Raised by click for Ctrl-D and for Ctrl-C.
            except click.Abort:
                click.echo(err=True)
                if self._interrupt.signal != signal.SIGINT:
                    self._interrupt.check()
                    return
                self._interrupt.clear()
                click.echo("Ctrl-D or /quit ends.", err=True)
            else:
                yield str(line)


@contextlib.contextmanager
def open_lines(
    options: RunOptions, interrupt: Interrupt, idle: Callable[[], float]
) -> Iterator[tuple[Iterable[str], bool]]:
    """The messages: of --prompt, the terminal, stdin or a file; and whether they are typed at a terminal.

    ``idle`` is called while none arrives; see :meth:`~edgemem.cli.interrupt.Interrupt.blocks`.
    """
    if options.prompt.prompt is not None:
        yield [options.prompt.prompt], False
    elif options.source not in (None, STDIN):
        assert options.source is not None
        with options.source.open("rb") as file:
            yield _decoded(interrupt.lines(file, str(options.source), idle)), False
    elif sys.stdin.isatty():
        click.echo("Ctrl-D or /quit ends, /help lists the commands.", err=True)
        yield TerminalLines(interrupt), True
    else:
        yield _decoded(interrupt.lines(sys.stdin.buffer, "stdin", idle)), False


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")
