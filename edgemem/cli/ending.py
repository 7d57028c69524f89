"""How a run ends: by itself, by a signal, because nobody reads its output any more, or by input that was wrong."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from edgemem.cli.interrupt import Interrupt
from edgemem.errors import InputError


class Ending:
    """Holds back what ended the block, as a context manager, until the state is saved: then call :meth:`close`.

    Held back are only endings that leave the stream's state whole. Others, a second Ctrl-C among them, go on at once.

    Args:
        interrupt: Tells a first Ctrl-C from a second one.
        input_counts: Whether what was fed before wrong input counts as done: rows do, half a prompt does not.
    """

    def __init__(self, interrupt: Interrupt, *, input_counts: bool) -> None:
        self._interrupt = interrupt
        self._held_back = (KeyboardInterrupt, BrokenPipeError, *((InputError,) if input_counts else ()))
        self._error: BaseException | None = None

    @property
    def reason(self) -> str | None:
        """``"interrupt"`` after a signal, ``None`` after an end of its own."""
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
        """Report, where the run ended by itself or by a signal, and let the ending go on.

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
