"""The options of ``edgemem bench``."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgemem.bench.subject import Options, Plan
from edgemem.cli.options import MOST_STEPS, MOST_THREADS, FiniteRange, count, option
from edgemem.overrides import override
from edgemem.runtimes import DEVICES, known_runtimes

STDOUT = Path("-")
_MOST_BATCH = 4_096


class Counts(click.ParamType):  # type: ignore[type-arg]
    """The type of an option that is some whole numbers, as ``1,2,4``."""

    name = "counts"

    def __init__(self, most: int) -> None:
        self._each: click.ParamType[Any] = count(1, most)

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found = tuple(int(self._each.convert(part.strip(), param, ctx)) for part in str(value).split(","))
        if len(set(found)) < len(found):
            self.fail(f"{value!r} names a number twice.", param, ctx)
        return found


class Share(click.ParamType):  # type: ignore[type-arg]
    """The type of an option that is a share, as ``5%``."""

    name = "share"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        percent = str(value).strip().removesuffix("%")
        return float(FiniteRange(0, 1_000).convert(percent, param, ctx)) / 100


def _file(*, allow_dash: bool = False) -> click.Path:
    return click.Path(dir_okay=False, path_type=Path, allow_dash=allow_dash)


@dataclass(frozen=True)
class Measuring:
    """What is measured, and how."""

    steps: int | None = option(
        "--steps", type=count(20, MOST_STEPS), help="Steps of the main loop. [default: 2000, quick: 200]"
    )
    quick: bool = option("--quick", default=False, is_flag=True, help="A short run with rough figures.")
    no_baselines: bool = option("--no-baselines", default=False, is_flag=True, help="Measure only the bundle.")
    rate: float | None = option(
        "--rate", metavar="HZ", type=FiniteRange(0.001, 1e6), help="Also run a loop with deadlines at HZ."
    )
    idle_gap: float | None = option(
        "--idle-gap",
        metavar="MS",
        type=FiniteRange(0, 60_000, min_open=True),
        help="Also time steps after a pause of MS.",
    )
    operators: bool = option(
        "--operators", default=False, is_flag=True, help="Also time each operator of a step (onnxruntime)."
    )
    batch: tuple[int, ...] = option(
        "--batch", default=(), metavar="B,…", type=Counts(_MOST_BATCH), help="Also the rates of B streams in one call."
    )
    runtime: str = option(
        "--runtime", default="auto", type=click.Choice(["auto", *known_runtimes()]), show_default=True
    )
    threads: tuple[int, ...] = option(
        "--threads", default=(), metavar="N,…", type=Counts(MOST_THREADS),
        help="Threads of the engine and of the baselines. Of several, the rates are measured with each.",
    )  # fmt: skip
    pin: bool = option(
        "--pin",
        default=False,
        is_flag=True,
        help="Use always the same cores, one for each of --threads.",
    )
    device: str = option("--device", default="auto", type=click.Choice(DEVICES), show_default=True)

    def plan(self) -> Plan:
        """How much is measured."""
        plan = Plan.quick() if self.quick else Plan()
        return plan if self.steps is None else dataclasses.replace(plan, steps=self.steps)

    def options(self, bundle: Path) -> Options:
        """What is measured; with ``--pin``, this process is pinned now, before an engine starts its threads."""
        threads = self.threads or ((1,) if self.pin else ())
        return Options(
            runtime=self.runtime,
            device=self.device,
            threads=threads[0] if threads else None,
            more_threads=threads[1:],
            batches=self.batch,
            rate_hz=self.rate,
            idle_gap_ms=self.idle_gap,
            baselines=not self.no_baselines,
            operators=self.operators,
            quick=self.quick,
            pinned=_pin(max(threads)) if self.pin else (),
            command=self.command(bundle),
        )

    def command(self, bundle: Path) -> str:
        """The command line that measures the same."""
        words = ["edgemem", "bench", bundle.name]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(field.metadata["flags"][0])
                if value is not True:
                    words.append(",".join(map(str, value)) if isinstance(value, tuple) else f"{value}")
        return shlex.join(words)


def _pin(cores: int) -> tuple[int, ...]:
    """Pin this process to its last cores: the first ones serve most interrupts."""
    if not hasattr(os, "sched_setaffinity"):
        raise click.UsageError("this system cannot pin a process to cores.")
    chosen = tuple(sorted(os.sched_getaffinity(0))[-cores:])
    os.sched_setaffinity(0, chosen)
    return chosen


@dataclass(frozen=True)
class Reports:
    """What is written and compared."""

    full: bool = option("--full", default=False, is_flag=True, help="Print every table, not only one screen.")
    json_file: Path | None = option(
        "--json",
        metavar="FILE",
        type=_file(allow_dash=True),
        help="Write the result as JSON; - prints it, and no tables.",
    )
    html_file: Path | None = option("--html", metavar="FILE", type=_file(), help="Write an HTML page with plots.")
    report_file: Path | None = option(
        "--report", metavar="FILE", type=_file(), help="Write the JSON without the bundle's folder, to show to others."
    )
    markdown_file: Path | None = option(
        "--markdown", metavar="FILE", type=_file(), help="Write the rates as a Markdown table."
    )
    csv_file: Path | None = option("--csv", metavar="FILE", type=_file(), help="Write the rates as CSV.")
    page: bool = option(
        "--page", default=False, is_flag=True, help="Measure nothing: make a page (--html) of results in JSON files."
    )
    compare: Path | None = option(
        "--compare", metavar="OLD.json", type=_file(),
        help="Also compare with an old result. Exits with 1 if this one is slower, 3 if the runs cannot be compared.",
    )  # fmt: skip
    against: str | None = option(
        "--against", metavar="PYTHON", help="Only compare with the edgemem of another environment, in turns."
    )
    fail_above: float = option(
        "--fail-above", default="5%", metavar="SHARE", type=Share(), show_default=True,
        help="With --against: exit with 1 if a step is slower by more.",
    )  # fmt: skip

    @property
    def files(self) -> list[Path]:
        """The files that are written."""
        wanted = (self.json_file, self.html_file, self.report_file, self.markdown_file, self.csv_file)
        return [file for file in wanted if file is not None and file != STDOUT]
