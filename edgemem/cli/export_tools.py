"""What ``export`` and ``check`` share: required packages, progress bars, the report."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from edgemem.console import headed, print_table
from edgemem.errors import MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.overrides import override
from edgemem.wording import counted


def needs_export_packages(*packages: str) -> None:
    """Fail if a package for exporting is missing.

    Args:
        packages: Those that are needed; by default all.

    Raises:
        MissingDependencyError: Names the missing packages and the command that installs them.
    """
    needed = packages or ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"this needs {', '.join(missing)}, which is not installed.",
            hint=how_to_install(*needed),
        )


class _Bar(BarColumn):
    """A bar for what has an end that is known; a stage without one has a spinner and the time that it takes."""

    @override
    def render(self, task: Task) -> Any:
        return Text() if task.total is None else super().render(task)


class _Count(MofNCompleteColumn):
    @override
    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


@contextlib.contextmanager
def checking(on: Console) -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Show the current stage with its time, and a bar for each phase of a check; outside a terminal only the stages."""
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        _Bar(),
        _Count(),
        TimeElapsedColumn(),
        console=on,
        transient=True,
        disable=not on.is_terminal,
    )
    with bars:
        stage = bars.add_task("", total=None, visible=False)
        tasks: dict[str, Any] = {}

        def announce(message: str) -> None:
            bars.reset(stage, description=message, visible=True)
            if not on.is_terminal:
                on.print(message)

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield announce, progress


def equal_to(
    what: str, steps: int, largest_difference: float, change: float | None = None, change_tolerance: float | None = None
) -> str:
    """That a bundle computes what a loop by hand computes, or how far its precision changes that, in words."""
    if change is not None and change_tolerance is not None:
        return (
            f"Outputs change by {change:.2%} of their standard deviation against {what} over {steps:,} steps "
            f"(at most {change_tolerance:.0%}); the largest difference is {largest_difference:.1e} of a spread."
        )
    how = f"within {largest_difference:.1e} of each output's spread" if largest_difference else "bit for bit"
    return f"Equal to {what} over {steps:,} steps {how}."


def print_report(on: Console, report: dict[str, Any]) -> None:
    """Print what a check measured."""
    rows = [["stepping", f"{report['steps']} steps", f"{report['step_error']:.1e}"]]
    rows += [[name, f"{report['steps']} steps", f"{error:.1e}"] for name, error in report["chunk_errors"].items()]
    rows.append(["states", f"{report['steps']} steps", f"{report['state_error']:.1e}"])
    rows += [[f"from position {name}", "1 call", f"{error:.1e}"] for name, error in report["far_errors"].items()]
    states = counted(report["graph_states"], "state")
    print_table(
        on,
        f"Equal to torch's full-sequence pass within {report['tolerance']:.0e} of each channel's spread, "
        f"{'the ' if report['graph_states'] == 1 else 'all '}{states} used and changing",
        ["streamed", "length", "largest difference"],
        rows,
        right=["largest difference"],
    )
    if report["compared"] < report["steps"]:
        on.print(f"Outputs were compared at {report['compared']:,} steps; those of all steps would not fit in memory.")
    if report["change"] is not None:
        on.print(
            f"Outputs change by {report['change']:.2%} of their standard deviation against the float32 model "
            f"(at most {report['change_tolerance']:.0%})."
        )
    if report["unverified"]:
        advice = f" {report['unverified']} Use it to measure a device, not its outputs."
        on.print(headed("Unverified:", advice, "yellow"))
    if not report["float64"]:
        on.print("The model does not run in float64, so its counters were not checked.")
    if report["emulated"]:
        on.print("bfloat16 was emulated (float32, rounded after each operator): this machine has no kernels for it.")
