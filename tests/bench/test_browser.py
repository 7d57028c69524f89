"""The page in a real browser: nothing overflows, nothing is wrong for a screen reader, nothing is logged.

Needs ``pip install playwright axe-playwright-python`` and Chromium, and is skipped without them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgemem.bench import page
from tests.bench.examples import example_result

OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth
    const found = document.documentElement.scrollWidth > width ? ["the page"] : []
    for (const element of document.querySelectorAll("main *")) {
        const box = element.getBoundingClientRect()
        if (box.width && (box.right > width + 1 || box.left < -1) && !element.closest(".scroll"))
            found.push(`${element.tagName} ${element.textContent.slice(0, 40)}`)
    }
    return found
}"""


@pytest.fixture(scope="module")
def browser() -> Any:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["one", "several"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = [example_result()] if request.param == "one" else [example_result(), example_result(extras=False)]
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(page.render(*results), encoding="utf-8")
    return path


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_is_right_in_a_browser(browser: Any, file: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown, logged = context.new_page(), []
    shown.on("console", lambda message: logged.append(message.text))
    shown.on("pageerror", lambda error: logged.append(str(error)))
    shown.goto(file.as_uri())
    shown.evaluate("() => document.querySelectorAll('details').forEach(each => each.open = true)")
    assert shown.evaluate(OVERFLOWING) == []
    assert [violation["id"] for violation in Axe().run(shown).response["violations"]] == []
    assert logged == []
    context.close()
