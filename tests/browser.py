"""A real browser: Debian's Chromium through playwright, and what holds for every page in it.

Needs ``pip install playwright axe-playwright-python`` and Chromium; a test is skipped without them.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

WIDTHS, SCHEMES = (390, 768, 1280), ("light", "dark")
_ARGUMENTS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
_OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth
    const found = document.documentElement.scrollWidth > width ? ["the page"] : []
    for (const element of document.querySelectorAll("main *")) {
        const box = element.getBoundingClientRect()
        if (box.width && (box.right > width + 1 || box.left < -1) && !element.closest(".scroll"))
            found.push(`${element.tagName} ${element.textContent.slice(0, 40)}`)
    }
    return found
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser, with a microphone that beeps and asks nobody."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, address: str, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """A page. Nothing may be written to its console, and nothing asked of another address."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, permissions=["microphone"]
    )
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = address.rpartition("/")[0]
    page.on("request", lambda asked: None if asked.url.startswith((own, "blob:", "data:")) else wrong.append(asked.url))
    page.goto(address)
    yield page
    assert wrong == []
    context.close()


def settled(page: Any, expression: str, timeout_s: float = 20.0) -> None:
    """Wait until an expression of JavaScript is true. (playwright's own wait needs what a page's policy may forbid.)"""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def check_look(page: Any) -> None:
    """Nothing overflows, and nothing is wrong for a screen reader."""
    from axe_playwright_python.sync_playwright import Axe

    assert page.evaluate(_OVERFLOWING) == []
    found = Axe().run(page).response["violations"]
    assert [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in found] == []
