"""``edgemem choose``: which memory for a budget of bytes, from the committed results of ``make evidence``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from edgemem.cli.options import MOST
from edgemem.console import console, print_json, print_table, readable_bytes
from edgemem.evidence import TASKS, Entry, Evidence, Offer, calibrate, ceiling, offers
from edgemem.overrides import override

LIMITS = "Small models: two layers of width 64, about 0.1 million parameters, minutes of training (docs/evidence.md)."

_LISTED = 8


class Amount(click.ParamType):  # type: ignore[type-arg]
    """A number with a unit: ``64K`` and ``64KiB`` are 65,536, ``100Hz`` and ``100`` are 100."""

    def __init__(self, name: str, units: dict[str, int]) -> None:
        self.name, self.units = name, units

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value))
        unit = self.units.get(found[2].lower()) if found else None
        number = float(found[1]) * unit if found and unit else 0.0
        if not 0 < number <= MOST:
            self.fail(f"{value!r} is not an amount such as {self.name}.", param, ctx)
        return number


SIZE = Amount("64K", {"": 1, "b": 1, "k": 1024, "kb": 1024, "kib": 1024, "m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20})
RATE = Amount("100Hz", {"": 1, "hz": 1, "khz": 1000})


@click.command()
@click.option("--bytes", "budget", type=SIZE, required=True, help="Most bytes of state of a stream: 64K.")
@click.option("--task", type=click.Choice(list(TASKS)), help="What the model shall do. Default: show all.")
@click.option("--rate", type=RATE, help="Steps a second that one core must reach: 100Hz.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def choose(budget: float, task: str | None, rate: float | None, as_json: bool) -> None:
    """Show which memories are worth so many bytes.

    Quality is from small trained models that were measured once. The time of a step is scaled to this machine.
    """
    evidence = Evidence.load()
    here_us = calibrate()
    tasks = [task] if task else [name for name in TASKS if evidence.entries[name]]
    found = {name: answer(evidence, name, int(budget), rate, here_us) for name in tasks}
    if as_json:
        print_json({"budget_bytes": int(budget), "rate_hz": rate, "limits": LIMITS, "tasks": found})
        return
    for name, facts in found.items():
        _print(name, facts, int(budget))
    click.echo(f"Steps were timed on {evidence.machine}, and are scaled by small products timed here just now.")
    click.echo(LIMITS)


def answer(evidence: Evidence, task: str, budget: int, rate: float | None, here_us: float) -> dict[str, Any]:
    """What is said about one task."""
    entries = evidence.entries[task]
    there_us = min((entry.calibration_us for entry in entries), default=here_us)
    shown, slow = offers(evidence, task, budget, here_us / there_us, rate)
    tops = ceiling(evidence, task)
    return {
        "unit": TASKS[task].unit,
        "more_is_better": TASKS[task].more_is_better,
        "rows": [_facts(offer) for offer in shown],
        "too_slow": [_name(entry) for entry in slow],
        "ceiling": [{"memory": entry.label, "quality": entry.quality(task).value} for entry in tops],
        "compared": sum(1 for entry in entries if entry.budget and entry.state_bytes <= budget),
        "not_tried": evidence.not_tried.get(task, []),
    }


def _name(entry: Entry) -> str:
    return f"{entry.label} ({entry.turned})"


def _facts(offer: Offer) -> dict[str, Any]:
    entry = offer.entry
    return {
        "memory": entry.label,
        "turned": entry.turned,
        "configuration": entry.memory,
        "state_bytes": entry.state_bytes,
        "quality": offer.quality.value,
        "half_interval": offer.quality.half,
        "seeds": len(offer.quality.values),
        "learning_rates_tried": list(entry.rates),
        "may_be_best": offer.may_be_best,
        "step_us": offer.step_us,
        "shown": offer.quality.text(),
    }


_AS_GOOD = {True: "perhaps", False: "no", None: "not known"}


def _print(task: str, facts: dict[str, Any], budget: int) -> None:
    title = f"{task}: {TASKS[task].what}"
    columns = ("memory", "turned", "state", facts["unit"], "as good as the first?", "µs a step")
    rows: Sequence[tuple[str, ...]] = [
        (
            row["memory"],
            row["turned"],
            readable_bytes(row["state_bytes"]),
            row["shown"],
            _AS_GOOD[row["may_be_best"]] if at else "first",
            f"{row['step_us']:.0f}",
        )
        for at, row in enumerate(facts["rows"])
    ]
    if rows:
        print_table(console(), title, columns, rows, right=("µs a step",))
        better = "More" if facts["more_is_better"] else "Less"
        click.echo(f"{better} is better. Rows within the budget: {facts['compared']}.")
        click.echo("A row that another one beats in bytes, time and quality is not shown.")
    elif facts["compared"]:
        click.echo(f"{title}\nEvery memory of {readable_bytes(budget)} or less is too slow for the rate.")
    else:
        click.echo(f"{title}\nNo memory of {readable_bytes(budget)} or less was tried.")
    for top in facts["ceiling"]:
        click.echo(f"For comparison, {top['memory']}: {top['quality']:.3f}.")
    for words, names in (("Too slow for the rate", facts["too_slow"]), ("Not tried", facts["not_tried"])):
        if names:
            more = f"; and {len(names) - _LISTED} more (--json)" if len(names) > _LISTED else ""
            click.echo(f"{words}: {'; '.join(names[:_LISTED])}{more}.")
    click.echo()
