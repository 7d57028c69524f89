"""The page shows the result, and needs nothing but itself."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from edgemem.bench import page
from edgemem.bench.result import BenchResult
from edgemem.bench.sections.steps import Steps
from edgemem.bench.statistics import Distribution
from edgemem.bench.words import ms
from edgemem.errors import MissingDependencyError
from tests.bench.examples import example_page, example_result

VOID = {"meta", "br", "hr", "img", "link", "input"}
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


class Page(HTMLParser):
    """Collects the visible text outside of pictures, that inside of them, ids and attributes; checks the nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.drawn: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "svg" in self.open:
            self.drawn.append(data)
        elif not {"style", "script"} & set(self.open) and data.strip():
            self.text.append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return example_page()


@pytest.fixture(scope="module")
def parsed(html: str) -> Page:
    return Page(html)


@pytest.mark.parametrize("baselines", [True, False])
@pytest.mark.parametrize("extras", [True, False])
def test_the_page_parses_whatever_was_measured(baselines: bool, extras: bool) -> None:
    parsed = Page(example_page(baselines=baselines, extras=extras))
    assert parsed.open == []
    assert ("Compared with" in parsed.text) is baselines
    assert ("Deadlines at 100 Hz" in parsed.text) is extras


def test_the_page_fetches_nothing_and_runs_nothing(html: str, parsed: Page) -> None:
    assert "http" not in html
    assert "//" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    tags = {tag for tag, _, _ in parsed.attributes}
    assert not tags & {"link", "img", "iframe", "object", "image"}
    assert {value for tag, name, value in parsed.attributes if (tag, name) == ("script", "type")} == {
        "application/json"
    }
    assert html.count("<script") == html.count('<script type="application/json"') == 1
    assert not [name for _, name, _ in parsed.attributes if name == "src" or name.startswith("on")]
    assert all(value.startswith("#") for _, name, value in parsed.attributes if name == "href")


def test_no_two_elements_share_an_id_and_every_reference_has_its_target(html: str, parsed: Page) -> None:
    assert len(parsed.ids) == len(set(parsed.ids))
    targets = set(re.findall(r'url\(#([^)"]+)\)', html))
    targets |= {value[1:] for _, name, value in parsed.attributes if name == "href"}
    assert targets
    assert targets <= set(parsed.ids)


def test_the_pictures_take_their_colours_from_the_page(html: str) -> None:
    assert "#0a0b" not in html
    assert "prefers-color-scheme: dark" in html
    used = set(re.findall(r"var\(--(\w+)\)", html)) - {"wide", "first"}
    light, dark = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    for scheme in (light, dark):
        assert used <= set(re.findall(r"--(\w+):", scheme))


def test_the_page_is_made_for_a_phone_too(html: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert html.count('<svg viewBox="') == 6
    assert html.count("<style") == 1
    assert not re.search(r"<svg [^>]*width=", html)


def shifted(value: Any, name: str = "") -> Any:
    """The same result with every number in it changed, the order of numbers kept."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: shifted(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    if isinstance(value, dict):
        return {key: shifted(entry, name) for key, entry in value.items()}
    if isinstance(value, list):
        return [shifted(entry, name) for entry in value]
    if isinstance(value, bool) or value is None or name in ("percent", "confidence", "shares", "format", "version"):
        return value
    if isinstance(value, int):
        return value + value // 3 + 1
    if isinstance(value, float):
        return value * 1.37
    return re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), value)


def test_every_number_on_the_page_comes_from_the_result(parsed: Page) -> None:
    result = example_result()
    other = Page(page.render(shifted(result)))
    words, other_words = ("\n".join(p.text) for p in (parsed, other))
    assert NUMBER.sub("#", words) == NUMBER.sub("#", other_words)
    same = [
        (a[0], words[max(0, a.start() - 30) : a.end() + 12])
        for a, b in zip(NUMBER.finditer(words), NUMBER.finditer(other_words), strict=True)
        if a[0] == b[0]
    ]
    constants = [
        r"\bp(50|90|95|99|99\.9)\b",  # names of percentiles
        r"per 1,000 positions",  # the slope's unit
        r"95%",  # the confidence of the intervals
        r"edgemem\n1\n",  # the bundle against itself
        r"\d+ more\n",  # kinds of operators that share a line
        r" (ms|µs)\n[\d.]+%\n",  # an operator's share of a step
    ]
    unexplained = [around for _, around in same if not any(re.search(c, around) for c in constants)]
    assert unexplained == []


def test_the_page_holds_its_result_and_names_model_and_machine(html: str) -> None:
    (data,) = re.findall(r'<script type="application/json" class="result">(.*?)</script>', html)
    assert json.loads(data) == json.loads(json.dumps(example_result().to_json()))
    assert "<title>reference on NVIDIA Jetson Orin NX: edgemem bench</title>" in html


def test_a_loaded_machine_is_called_out_above_the_figures(html: str) -> None:
    assert 0 < html.index("This machine was loaded") < html.index('<ul class="cards"')
    assert "This machine was loaded" not in example_page(extras=False)


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it, 0 to 1."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_the_colours_of_lines_differ_in_greyscale_and_stand_out_from_their_card(html: str) -> None:
    for scheme in re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL):
        colors = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
        lightness = sorted(116 * luminance(colors[name]) ** (1 / 3) - 16 for name in ("ours", "other", "floor"))
        assert min(np.diff(lightness)) >= 9, lightness
        for name in ("ours", "other", "floor", "faint"):
            low, high = sorted((luminance(colors[name]), luminance(colors["card"])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_pointing_at_a_plot_shows_its_values(html: str) -> None:
    titles = re.findall(r"<g><title>(.*?)</title>", html)
    assert "growing KV cache, position 4,096: 14.7 ms" in titles
    assert "hand-written numpy loop: 1.82×" in titles
    assert "after 8.70 s: 5.62 ms" in titles
    assert any(re.fullmatch(r"5\.\d+ ms to 5\.\d+ ms: [\d,]+ steps?", title) for title in titles)
    assert "hover:" not in html


def test_the_step_has_one_figure_in_the_headline_the_card_and_the_bar(html: str, parsed: Page) -> None:
    p50 = ms(example_result()[Steps].latency.percentile_ms(50.0))
    assert f"{p50} a step." in " ".join(parsed.text)
    assert f'<span class="value">{p50}</span>' in html
    assert f"<title>edgemem: 1×, {p50}</title>" in html


@pytest.mark.parametrize("cards", range(1, 20))
def test_no_row_of_cards_is_half_empty(cards: int) -> None:
    each, first = page.full_rows(cards)
    assert 1 <= each <= 6
    assert (cards - 1 + first) % each == 0
    assert first <= 3


def test_one_page_shows_several_boards() -> None:
    several = page.render(example_result(), example_result(extras=False))
    parsed = Page(several)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert several.count('<details class="board">') == 2
    assert "2 boards" in parsed.text
    assert several.count("application/json") == 2


def test_the_figures_of_the_result_are_on_the_page(parsed: Page) -> None:
    text = "\n".join(parsed.text)
    for wanted in (
        "reference",
        "1.82",
        "1.10×",
        "20.6 GB/s",
        "4,096 tokens",
        "1,551 tokens/s",
        "8.24×",
        "torch is not installed.",
        "NVIDIA Jetson Orin NX",
        "Cortex <A78AE> & co",
        "10,000,000",
        "305.2 GiB",
        "needs 10,000 samples",
        "random weights",
        "412 ms",
    ):
        assert wanted in text, wanted


def test_the_pictures_carry_the_figures_too(parsed: Page) -> None:
    drawn = "\n".join(parsed.drawn)
    for wanted in ("growing KV cache", "42.0 ms", "1.82×", "p50", "p99", "305.2 GiB", "5.36 ms", "8.008 MiB"):
        assert wanted in drawn, wanted
    assert "p99.9" not in drawn


def with_latency(latency: Distribution) -> BenchResult:
    result = example_result()
    return dataclasses.replace(result, outcomes={Steps: dataclasses.replace(result[Steps], latency=latency)})


def test_a_page_of_few_steps_names_no_percentile() -> None:
    latency = example_result()[Steps].latency
    few = dataclasses.replace(
        latency, count=5, percentiles=[dataclasses.replace(p, value_ms=None) for p in latency.percentiles]
    )
    few_steps = Page(page.render(with_latency(few)))
    assert "ms a step on average." in "".join(few_steps.text)


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    with pytest.raises(MissingDependencyError, match="needs matplotlib") as error:
        page.require()
    assert 'pip install "edgemem-toolkit[report]"' in str(error.value)


def test_measuring_loads_nothing_that_only_the_page_needs() -> None:
    code = (
        "import sys, edgemem.cli.bench_command, edgemem.bench.page as p; p.require();"
        "print([m for m in ('matplotlib', 'jinja2', 'torch', 'onnx', 'edgemem.export') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
