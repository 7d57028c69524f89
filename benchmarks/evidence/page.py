"""docs/evidence.md and its pictures, from the merged results: ``PYTHONPATH=benchmarks python -m evidence.page``."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.evidence import TASKS, Entry, Evidence, Mean, ceiling
from edgemem.files import write_atomic
from evidence import merge, pictures
from evidence.gates import gates
from evidence.plan import MAIN_BUDGETS, OTHER_BUDGETS, counts
from evidence.rows import KIB
from evidence.runs import RATES, RESULTS, SEEDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/evidence.md"
BEGIN, END = "<!-- Written by `make evidence-page`: -->\n", "<!-- The end of what is written. -->\n"
_BUDGETS = sorted((*MAIN_BUDGETS, *OTHER_BUDGETS))
_LISTED = 10
_HEADS = {
    "recall": ("MQAR, pairs: 8", "32", "128"),
    "distance": ("recall, steps back: 64", "256", "1,024", "4,096"),
    "copying": ("copying",),
    "text": ("bits per byte",),
    "sensor": ("same person, later", "another person"),
}
_COLUMNS = {
    **{name: task.columns for name, task in TASKS.items()},
    "sensor": ("same person, later", "another person"),
}


def cell(mean: Mean, digits: int) -> str:
    """A mean and half its interval: ``0.91 ± 0.03``."""
    return f"{mean.value:.{digits}f}" + ("" if mean.half is None else f" ± {mean.half:.{digits}f}")


def table(task: str, entries: list[Entry]) -> list[str]:
    """The rows of a task at one budget, the best first."""
    digits = 2 if TASKS[task].unit == "answers right" else 3
    heads = ("memory", "turned", "state bytes", *_HEADS[task], "µs a step", "engine KiB", "seeds", "rate")
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- |{' ---: |' * (len(heads) - 2)}"]
    sign = -1 if TASKS[task].more_is_better else 1
    for entry in sorted(entries, key=lambda entry: sign * entry.quality(task).value):
        failed = sum(TASKS[task].failed(value) for value in entry.quality(task).values)
        seeds = len(entry.quality(task).values)
        cells = [
            entry.label,
            entry.turned,
            f"{entry.state_bytes:,}" if entry.budget else "grows",
            *(cell(entry.mean(name), digits) for name in _COLUMNS[task]),
            f"{entry.step_us:.0f}",
            f"{entry.engine_bytes / KIB:.0f}",
            f"{seeds}" + (f", {failed} failed" if failed else ""),
            f"{entry.rate:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def section(evidence: Evidence) -> str:
    """What stands between :data:`BEGIN` and :data:`END`."""
    done, there = counts(RESULTS)
    lines = [
        "",
        f"{done} of {there} planned trainings are done. A figure without ± is of one seed. ± is half of the 95 % "
        f"interval over the seeds (Student's t; {len(SEEDS)} seeds make it wide). Each row has the best of the "
        f"learning rates {', '.join(f'{rate:g}' for rate in RATES)}, chosen by validation data.",
        "",
        "### Is the harness right?",
        "",
        "| what must hold | found | |",
        "| --- | --- | --- |",
        *(f"| {gate.what} | {gate.found} | {gate.verdict} |" for gate in gates(evidence)),
        "",
    ]
    for task, about in TASKS.items():
        lines += [f"### {task.capitalize()}", "", f"{about.what[0].upper()}{about.what[1:]}: {about.unit}.", ""]
        for budget in _BUDGETS:
            entries = [entry for entry in evidence.entries[task] if entry.budget == budget]
            if entries:
                title = f"{budget // KIB} KiB of state a stream, and the full cache:"
                lines += [title, "", *table(task, [*entries, *ceiling(evidence, task)]), ""]
        if missing := evidence.not_tried[task]:
            lines += [
                f"Not run yet: {'; '.join(missing)}."
                if len(missing) <= _LISTED
                else f"Not run yet: {len(missing)} rows.",
                "",
            ]
    return "\n".join(lines) + "\n"


def page(evidence: Evidence) -> str:
    """The page with its written part as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{PAGE} has lost the lines that mark the written part"
    return f"{before}{BEGIN}{section(evidence)}{END}{after}"


@click.command()
def main() -> None:
    """Merge the results, and write the page and its pictures."""
    merge.write()
    evidence = Evidence.load()
    write_atomic(PAGE, page(evidence).encode())
    pictures.write(evidence, ROOT / "docs/images")


if __name__ == "__main__":
    main()
