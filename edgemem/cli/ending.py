"""How a run ends: by itself, by a signal, because its output cannot be written, or because of wrong input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType

import click

from edgemem.cli.interrupt import Interrupt
from edgemem.errors import EdgememError, InputError
from edgemem.machine.systemd import notify


class Ending:
    """Holds the exception that ended the block back, as a context manager, until the state is saved.

    Then call :meth:`close`. Only exceptions that leave the stream's state complete are held back. Others, such as a
    second Ctrl-C, are raised at once.

    Args:
        interrupt: Tells a first Ctrl-C from a second one.
        save: Saves the state.
        input_counts: Whether the input before a wrong one is kept: rows are, half a prompt is not.

    Attributes:
        input_counts: As given; it may change as the run goes on.
    """

    def __init__(self, interrupt: Interrupt, save: Callable[[], None], *, input_counts: bool) -> None:
        self._interrupt = interrupt
        self._save = save
        self.input_counts = input_counts
        self._error: BaseException | None = None

    @property
    def reason(self) -> str | None:
        """``"interrupt"`` after a signal, ``None`` if the block ended by itself."""
        return "interrupt" if isinstance(self._error, KeyboardInterrupt) else None

    def __enter__(self) -> Ending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, KeyboardInterrupt):
            is_held = not self._interrupt.forced
        elif isinstance(error, InputError):
            is_held = self.input_counts
        else:  # a call that raises leaves the stream as it was, and output is written between two calls
            is_held = isinstance(error, (EdgememError, OSError))
        if is_held:
            self._error = error
        return is_held

    def close(self, report: Callable[[], None]) -> None:
        """Save; then report, if the run ended by itself or by a signal, and raise what was held back.

        Raises:
            SystemExit: After a signal, with its exit code.
            EdgememError: The state cannot be saved; where another error was held back, that one is raised.
        """
        is_signal = isinstance(self._error, KeyboardInterrupt)
        notify("STOPPING=1")
        try:
            self._save()
        except EdgememError as failure:
            if self._error is None or is_signal:
                raise
            with contextlib.suppress(OSError):
                click.echo(f"Error: {failure}", err=True)
        if self._error is None:
            report()
        elif is_signal:
            with contextlib.suppress(OSError):  # after SIGHUP the terminal is gone
                report()
            raise SystemExit(self._interrupt.exit_code)
        else:
            raise self._error
