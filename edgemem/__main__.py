"""The program ``edgemem``, also as ``python -m edgemem``: Ctrl-C ends it quietly even while modules are imported."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # no exception: in the middle of an import it may become another one
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from edgemem.cli import program

    program(lambda: signal.signal(signal.SIGINT, before))


if __name__ == "__main__":
    main()
