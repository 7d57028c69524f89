"""Runs the whole benchmark: opens the bundle, and measures every section in its stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemem.bench.measure import Progress, silent
from edgemem.bench.result import BenchResult, NotMeasured, Section, Stage
from edgemem.bench.sections import all_sections
from edgemem.bench.subject import Moment, Options, Plan, Run, Subject


def run(
    path: str | Path,
    options: Options,
    plan: Plan,
    progress: Progress = silent,
    sections: Sequence[type[Section]] | None = None,
) -> BenchResult:
    """Measure a bundle.

    Args:
        path: The bundle.
        options: What is measured.
        plan: How much of it.
        progress: Called between timed sections.
        sections: The sections; all by default.

    Returns:
        The complete result; there is no partial one.

    Raises:
        EdgememError: The bundle cannot be opened, or its outputs are not finite.
    """
    began = time.perf_counter()
    kinds = sorted(all_sections() if sections is None else sections, key=lambda kind: kind.place)
    before = _read(kinds, None)
    outcomes: dict[type[Section], Section | NotMeasured | None] = {}
    with contextlib.ExitStack() as stack:
        subject = Run(path, options, plan, progress, stack)
        subject.readings[Moment.BEFORE_OPENING] = before
        subject.readings[Moment.OPENED] = _read(kinds, subject)
        for stage in Stage:
            if stage is Stage.READINGS:
                subject.readings[Moment.END] = _read(kinds, subject)
            for kind in kinds:
                if kind.stage is stage:
                    outcomes[kind] = kind.measure(subject)
            if stage is Stage.STEPS:
                subject.readings[Moment.STEPPED] = _read(kinds, subject)
        return BenchResult(
            subject=Subject.of(subject.session),
            outcomes={kind: outcomes[kind] for kind in kinds},
            quick=options.quick,
            duration_s=time.perf_counter() - began,
        )


def _read(kinds: Sequence[type[Section]], run: Run | None) -> dict[str, Any]:
    return {kind.key: kind.read(run) for kind in kinds}
