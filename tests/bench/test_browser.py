"""The page in a real browser: nothing overflows, nothing is wrong for a screen reader, nothing is logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemem.bench import page
from tests.bench.examples import example_result
from tests.browser import SCHEMES, WIDTHS, check_look, chromium, opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=["one", "several"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = [example_result()] if request.param == "one" else [example_result(), example_result(extras=False)]
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(page.render(*results), encoding="utf-8")
    return path


@pytest.mark.long
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_right_in_a_browser(browser: Any, file: Path, width: int, scheme: str) -> None:
    with opened(browser, file.as_uri(), width, scheme) as shown:
        shown.evaluate("() => document.querySelectorAll('details').forEach(each => each.open = true)")
        check_look(shown)
