"""One self-contained HTML page: no network, nothing that runs, for light and dark, wide and narrow screens.

It shows every table of the result, whatever its section. jinja2 and matplotlib are imported only when a page is
rendered: after the measurement, whose memory figures they would increase.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from edgemem.bench.result import BenchResult
from edgemem.bench.sections.comparison import Comparison
from edgemem.bench.sections.environment import Environment
from edgemem.bench.sections.memory import Memory
from edgemem.bench.sections.steps import Steps
from edgemem.bench.table import Table
from edgemem.bench.words import NOT_MEASURED, ms, number, times
from edgemem.console import readable_bytes
from edgemem.errors import MissingDependencyError
from edgemem.extras import how_to_install

TEMPLATE = "page.html.j2"
_PACKAGES = ("jinja2", "matplotlib")
_MOST_CARDS = 6
_CODE = re.compile(r"`([^`]+)`")


def require() -> None:
    """Check that a page could be rendered, before anything is measured. Imports nothing.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"the HTML report needs {' and '.join(missing)}.", hint=how_to_install(*_PACKAGES))


def render(*results: BenchResult) -> str:
    """The page of one result, or of several: then with a table of all of them above.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    require()
    import jinja2
    from markupsafe import Markup, escape

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["full_rows"] = full_rows
    environment.filters["code"] = lambda text: Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))
    text = resources.files("edgemem.bench").joinpath(TEMPLATE).read_text(encoding="utf-8")
    boards = [_board(result, f"b{number}-" if number else "") for number, result in enumerate(results)]
    return environment.from_string(text).render(boards=boards, overview=_overview(results))


def full_rows(cards: int) -> tuple[int, int]:
    """How many cards a row of a wide page has, and how many places the first card takes: no row is half empty."""
    each = min(cards, _MOST_CARDS)
    if cards > _MOST_CARDS:
        each = min(range(_MOST_CARDS, 3, -1), key=lambda size: -cards % size)
    return max(1, each), 1 + -cards % max(1, each)


def _board(result: BenchResult, prefix: str) -> dict[str, Any]:
    """What the template shows of one result; ``prefix`` makes its ids differ from those of the others."""
    from markupsafe import Markup

    from edgemem.bench import pictures

    tables, environment = result.tables(), result.get(Environment)
    data = json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False)
    return {
        "result": result,
        "device": environment.device if environment else "",
        "date": environment.date if environment else "",
        "command": environment.command if environment else "",
        "cards": [card for section in result.measured for card in section.cards(result)],
        "top": [table for table in tables if table.on_top],
        "others": [table for table in tables if not table.on_top],
        "drawn": {
            table.key: [
                (picture.label, Markup(pictures.render(picture, f"{prefix}{table.key}{number}")))
                for number, picture in enumerate(table.pictures)
            ]
            for table in tables
        },
        "methods": {term: text for section in result.measured for term, text in section.method(result).items()},
        "json": Markup(data.replace("<", "\\u003c").replace("/", "\\u002f")),
    }


def _overview(results: Sequence[BenchResult]) -> Table:
    """One row for each result."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        environment, steps = result.get(Environment), result.get(Steps)
        comparison, used = result.get(Comparison), result.get(Memory)
        floor = comparison.floor if comparison else None
        rows.append(
            (
                environment.device if environment else "unknown",
                result.subject.name,
                f"{result.subject.runtime} on {result.subject.device}",
                ms(steps.latency.percentile_ms(50.0)) if steps else NOT_MEASURED,
                number(steps.steps_per_second) if steps else NOT_MEASURED,
                times(floor.step_over_floor) if floor else NOT_MEASURED,
                readable_bytes(used.peak_bytes) if used else NOT_MEASURED,
                "loaded" if environment and environment.loaded else "",
            )
        )
    columns = ("machine", "model", "runtime", "p50 of a step", "steps/s", "over the floor", "peak memory", "note")
    return Table("boards", "Boards", columns, rows, columns[3:7])
