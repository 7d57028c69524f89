"""Three pictures of the evidence: quality against bytes, recall against distance, a step's time against bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgemem.console import readable_bytes
from edgemem.evidence import DISTANCES, TASKS, Entry, Evidence, ceiling
from edgemem.files import write_atomic
from evidence.plan import MAIN_BUDGETS

_MARKS = "osD^v<>Ph*Xp8d"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evidence",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8e3",
}


def quality(evidence: Evidence, figure: Figure) -> None:
    """A panel for each task: its quality against the bytes of state, with intervals."""
    for axes, (task, about) in zip(figure.subplots(1, len(TASKS)), TASKS.items(), strict=True):
        for number, (label, entries) in enumerate(_by_label(evidence, task)):
            means = [entry.quality(task) for entry in entries]
            axes.errorbar(
                [entry.state_bytes * 1.03 ** (number % 7 - 3) for entry in entries],
                [mean.value for mean in means],
                yerr=[mean.half or 0 for mean in means],
                **_look(evidence, label),
                label=label,
            )
        for entry in ceiling(evidence, task):
            axes.axhline(entry.quality(task).value, color="#8a929a", linestyle="--", linewidth=1)
        _byte_axis(axes)
        axes.set_title(f"{task}: {about.unit} ({'more' if about.more_is_better else 'less'} is better)", loc="left")
    _legend(figure)


def distance(evidence: Evidence, figure: Figure) -> None:
    """Recall against the steps since, a panel for each budget that all rows have and of which something is there."""
    there = {entry.budget for entry in evidence.entries["distance"]}
    budgets = [budget for budget in MAIN_BUDGETS if budget in there]
    panels = figure.subplots(1, max(1, len(budgets)), sharey=True, squeeze=False)[0]
    panels[0].set_ylabel("answers right")
    for axes, budget in zip(panels, budgets, strict=False):
        chosen = [entry for entry in evidence.entries["distance"] if entry.budget in (0, budget)]
        for entry in chosen:
            means = [entry.mean(f"recall-{steps}") for steps in DISTANCES]
            axes.errorbar(
                DISTANCES,
                [mean.value for mean in means],
                yerr=[mean.half or 0 for mean in means],
                **_look(evidence, entry.label),
                label=entry.label,
            )
        axes.axhline(1 / 32, color="#8a929a", linestyle="--", linewidth=1)
        axes.set(xscale="log", xlabel="steps back", title=readable_bytes(budget), ylim=(0, 1.02))
        axes.set_xticks(DISTANCES, [f"{steps:,}" for steps in DISTANCES])
        axes.minorticks_off()
    _legend(figure)


def time(evidence: Evidence, figure: Figure) -> None:
    """Microseconds of a step against the bytes of state."""
    axes = figure.subplots()
    for label, entries in _by_label(evidence, "recall"):
        axes.plot(
            [entry.state_bytes for entry in entries],
            [entry.step_us for entry in entries],
            **_look(evidence, label),
            label=label,
        )
    _byte_axis(axes)
    axes.set(yscale="log", ylabel="µs a step")
    axes.set_title("A step of one stream on one core", loc="left")
    _legend(figure)


def write(evidence: Evidence, folder: Path) -> None:
    """Write the pictures as SVG files."""
    for draw, width, height in ((quality, 18, 4.6), (distance, 9, 4.6), (time, 7, 4.6)):
        with rc_context(_STYLE):
            figure = Figure(figsize=(width, height), layout="constrained")
            draw(evidence, figure)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
        write_atomic(folder / f"evidence-{draw.__name__}.svg", text.encode())


def _by_label(evidence: Evidence, task: str) -> Iterable[tuple[str, list[Entry]]]:
    fixed = [entry for entry in evidence.entries[task] if entry.budget]
    for label in dict.fromkeys(entry.label for entry in fixed):
        yield label, sorted((e for e in fixed if e.label == label), key=lambda entry: entry.state_bytes)


def _look(evidence: Evidence, label: str) -> dict[str, Any]:
    labels = list(dict.fromkeys(entry.label for task in TASKS for entry in evidence.entries[task]))
    number = labels.index(label)
    colour = colormaps["tab20"](number % 20)
    return {"color": colour, "marker": _MARKS[number % len(_MARKS)], "markersize": 5, "linewidth": 1.2}


def _byte_axis(axes: Axes) -> None:
    budgets = [4096, 16384, 65536, 262144]
    axes.set(xscale="log", xlabel="bytes of state of a stream")
    axes.set_xticks(budgets, [readable_bytes(budget) for budget in budgets])
    axes.minorticks_off()


def _legend(figure: Figure) -> None:
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
