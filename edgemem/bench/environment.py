"""Where a measurement was made: the machine, and how busy it was."""

from __future__ import annotations

from datetime import datetime, timezone

from edgemem.bench.result import Environment
from edgemem.machine.facts import facts, load_average


def describe(threads: int | None, load_average_before: list[float]) -> Environment:
    """The environment at the end of a run.

    Args:
        threads: Threads the engine was given; ``None``: the engine chose.
        load_average_before: The load average at the start of the run.
    """
    return Environment(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        load_average=load_average_before,
        load_average_after=load_average(),
        threads=threads,
        **vars(facts()),
    )
