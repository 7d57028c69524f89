"""One self-contained HTML page: no network, no scripts, light and dark, wide and narrow.

matplotlib and jinja2 are imported here alone, and only when a page is rendered: after the measurement, whose memory
figures they would inflate.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib import resources

from edgemem.bench.result import BenchResult, Energy
from edgemem.bench.tables import NOT_MEASURED, count, headline, joules, ms, name_of, number, tables, times, unit_of
from edgemem.console import readable_bytes
from edgemem.errors import MissingDependencyError

TEMPLATE = "report.html.j2"
_THOUSANDS = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")
_PACKAGES = ("jinja2", "matplotlib")


def require() -> None:
    """Say at once, not after minutes of measuring, that the page could not be made. Imports nothing.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the HTML report needs {' and '.join(missing)}.", hint='pip install "edgemem[report]"'
        )


@dataclass(frozen=True)
class Card:
    """One of the figures on top of the page."""

    label: str
    value: str
    note: str


def cards(result: BenchResult) -> list[Card]:
    """The figures on top of the page."""
    latency = result.steps.latency
    p99 = latency.percentile_ms(99.0)
    unit = unit_of(result.subject)
    made = [
        Card("p50 of a step", ms(latency.percentile_ms(50.0)), f"of {count(latency.count)} steps"),
        Card(
            "p99 of a step",
            ms(p99),
            f"worst {ms(latency.max_ms)}" if p99 is not None else "needs more steps",
        ),
        Card(f"{unit} a second", number(result.steps.steps_per_second), "the whole loop"),
        Card(
            "state of one stream",
            readable_bytes(result.memory.state_bytes),
            "at every position" if result.subject.has_fixed_size else "at position 0, and growing",
        ),
        Card("peak memory", readable_bytes(result.memory.peak_bytes), "of the whole process"),
    ]
    rails = result.energy.rails if result.energy else []
    total = next((rail for rail in rails if rail.is_total and rail.joules_per_step is not None), None)
    if total is not None:
        made.append(Card("energy of a step", joules(total.joules_per_step), f"{total.name}, {total.covers}"))
    floor = result.comparison.floor if result.comparison else None
    if floor is not None:
        made.append(Card("over the floor", times(floor.step_over_floor), f"floor {ms(floor.p50_ms)}"))
    else:
        prefill = result.prefill
        rate = number(prefill.steps_per_second) if prefill else NOT_MEASURED
        made.append(
            Card(f"prefill {unit} a second", rate, f"of {count(prefill.length)}" if prefill else "one at a time")
        )
    return made


def has_trace(energy: Energy) -> bool:
    """Whether there is power to draw."""
    return any(len(rail.watts) > 1 for rail in energy.rails)


def _keep_digits_together(value: object) -> object:
    """A number must not break where its thousands are set apart."""
    return _THOUSANDS.sub("\N{NO-BREAK SPACE}", value) if type(value) is str else value


def render(result: BenchResult) -> str:
    """The page.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    require()
    import jinja2
    from markupsafe import Markup

    from edgemem.bench import plots

    comparison = result.comparison
    has_bars = comparison is not None and (comparison.floor is not None or any(b.ratio for b in comparison.baselines))
    pictures = {
        "latency": plots.latency_by_position(result),
        "memory": plots.memory_by_position(result),
        "distribution": plots.distribution(result.steps.latency),
        "baselines": plots.baselines(result) if has_bars else "",
        "power": plots.power(result.energy) if result.energy is not None and has_trace(result.energy) else "",
    }
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_keep_digits_together,
    )
    template = environment.from_string(resources.files("edgemem.bench").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        result=result,
        name=name_of(result.subject),
        headline=headline(result),
        cards=cards(result),
        tables={table.key: table for table in tables(result)},
        plots={name: Markup(svg) for name, svg in pictures.items()},
    )
