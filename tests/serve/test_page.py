"""The page of the server in a real browser: live figures, a chat, a signal, a microphone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import SCHEMES, WIDTHS, check_look, chromium, opened, settled
from tests.cli.audio_models import DETECTOR
from tests.cli.test_run_chat import REPLIES, USER, write_talker
from tests.handmade import write_summer
from tests.runtimes import tiny
from tests.serve.conftest import Running, running
from tests.text import chat_templates

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    talker = write_talker(folder / "talker", chat_templates.CHATML)
    with running([talker, write_summer(folder / "summer"), write_listener(folder / "listener")], slots=4) as server:
        yield server


def write_listener(folder: Path) -> Path:
    """A model of audio at 16 kHz: the loudest of every 160 samples."""
    spec = replace(DETECTOR.input, takes=160, front_end=None, sample_rate_hz=16_000)
    contract = replace(DETECTOR, input_specs=(spec,))
    n = tiny.Nodes()
    loudest = n.ReduceMax(n.Abs("audio"), n.const([1]), keepdims=1, out="present.0.loud.last")
    n.Squeeze(n.Mul(n.Add(loudest, "past.0.loud.last"), n.const(np.float32(0.5))), n.const([1]), out="loud")
    return tiny.save_bundle(folder, contract, tiny.model_proto(contract, n)).path


def address(server: Running) -> str:
    return f"http://127.0.0.1:{server.port}/"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_looks_right(browser: Any, served: Running, width: int, scheme: str, tmp_path: Path) -> None:
    with opened(browser, address(served), width, scheme) as page:
        settled(page, "document.querySelectorAll('#models tbody tr').length === 3")
        for model in ("talker", "summer", "listener"):
            page.select_option("#model", model)
            check_look(page)


def test_an_answer_streams_into_the_chat_and_the_conversation_goes_on(browser: Any, served: Running) -> None:
    with opened(browser, address(served)) as page:
        settled(page, "!document.getElementById('chat').hidden")
        for number, (message, reply) in enumerate(zip(USER[:2], REPLIES[:2], strict=True), start=1):
            page.fill("#prompt", message)
            page.click("#send")
            settled(page, "document.getElementById('send').textContent === 'Send'")
            assert page.locator("#talk li").count() == 2 * number
            assert page.locator("#talk li").last.text_content() == reply
        assert "tokens read" in page.text_content("#usage")
        check_look(page)
        assert "ms" in page.text_content("#last")
        page.click("#again")
        assert page.locator("#talk li").count() == 0


def test_a_test_signal_shows_the_models_output(browser: Any, served: Running) -> None:
    with opened(browser, address(served)) as page:
        settled(page, "document.querySelectorAll('#model option').length === 3")
        page.select_option("#model", "summer")
        page.click("#test")
        settled(page, "outputs.length === 2 && outputs[0].length > 20 && times.length > 10 && memory.length > 2")
        inputs, outputs = page.evaluate("[inputs, outputs].map((curves) => curves[0].slice(0, 20).map((p) => p[1]))")
        np.testing.assert_allclose(outputs, np.cumsum(inputs), atol=1e-5)
        assert "position" in page.text_content("#where")
        check_look(page)
        page.click("#test")
        assert page.text_content("#test") == "Start a test signal"


def test_the_microphone_is_heard(browser: Any, served: Running) -> None:
    with opened(browser, address(served)) as page:
        settled(page, "document.querySelectorAll('#model option').length === 3")
        page.select_option("#model", "listener")
        page.click("#microphone")
        settled(page, "Math.max(...(outputs[0] || []).map((point) => point[1])) > 0.05")  # the made-up microphone beeps
        page.click("#microphone")
        assert page.text_content("#microphone") == "Use the microphone"


def test_a_token_is_asked_for_only_where_it_is_needed(browser: Any, summer: Path) -> None:
    with running([summer], token="secret") as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address(server))
        settled(page, "!document.getElementById('auth').hidden")
        page.fill("#token", "secret")
        page.press("#token", "Enter")
        settled(page, "document.getElementById('auth').hidden && document.getElementById('error').textContent === ''")
        page.click("#test")
        settled(page, "(outputs[0] || []).length > 4")
        context.close()


def test_the_recipe_of_a_microphone(browser: Any, tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(EXAMPLES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{files.server_port}"
        server = running([write_listener(tmp_path / "listener")], origins=(origin,))
        with server as found, opened(browser, f"{origin}/microphone.html?server={address(found)[:-1]}") as page:
            page.click("button")
            settled(page, "Number(document.querySelector('output').textContent) > 0.05")
        files.shutdown()
