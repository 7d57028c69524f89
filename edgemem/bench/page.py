"""One self-contained HTML page: no network, no scripts, for light and dark, wide and narrow screens.

It shows every table of the result, whatever its section. jinja2 and matplotlib are imported only when a page is
rendered: after the measurement, whose memory figures they would increase.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import resources

from edgemem.bench.result import BenchResult
from edgemem.bench.sections.environment import Environment
from edgemem.errors import MissingDependencyError
from edgemem.extras import how_to_install

TEMPLATE = "page.html.j2"
_PACKAGES = ("jinja2", "matplotlib")
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
    """The page of a result.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    require()
    import jinja2
    from markupsafe import Markup, escape

    from edgemem.bench import pictures

    result = results[0]
    tables = result.tables()
    environment = result.get(Environment)
    template_environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template_environment.filters["code"] = lambda text: Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))
    text = resources.files("edgemem.bench").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return template_environment.from_string(text).render(
        result=result,
        device=environment.device if environment else "",
        date=environment.date if environment else "",
        cards=[card for section in result.measured for card in section.cards(result)],
        top=[table for table in tables if table.on_top],
        others=[table for table in tables if not table.on_top],
        drawn={
            table.key: [
                (picture.label, Markup(pictures.render(picture, f"{table.key}{number}")))
                for number, picture in enumerate(table.pictures)
            ]
            for table in tables
        },
        methods={term: text for section in result.measured for term, text in section.method(result).items()},
    )
