"""How a run ends: by itself, by a signal, because its output is no longer read, or because of wrong input."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from edgemem.cli.interrupt import Interrupt
from edgemem.errors import InputError


class Ending:
    """Holds the exception that ended the block back, as a context manager, until the state is saved.

    Then call :meth:`close`. Only exceptions that leave the stream's state complete are held back. Others, such as a
    second Ctrl-C, are raised at once.

    Args:
        interrupt: Tells a first Ctrl-C from a second one.
        input_counts: Whether the input before a wrong one is kept: rows are, half a prompt is not.
    """

    def __init__(self, interrupt: Interrupt, *, input_counts: bool) -> None:
        self._interrupt = interrupt
        self._held_back = (KeyboardInterrupt, BrokenPipeError, *((InputError,) if input_counts else ()))
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
        if isinstance(error, KeyboardInterrupt) and self._interrupt.forced:
            return False
        if isinstance(error, self._held_back):
            self._error = error
            return True
        return False

    def close(self, report: Callable[[], None]) -> None:
        """Report, if the run ended by itself or by a signal, and raise what was held back.

        Raises:
            SystemExit: After a signal, with its exit code.
        """
        if self._error is None:
            report()
        elif isinstance(self._error, KeyboardInterrupt):
            report()
            raise SystemExit(self._interrupt.exit_code)
        else:
            raise self._error
