"""A result shows every section in each of its forms: the terminal, the JSON and the page."""

from __future__ import annotations

import json
import pkgutil
from dataclasses import dataclass, replace

import pytest
from click.testing import CliRunner

from edgemem.bench import page, sections, suite
from edgemem.bench.result import BenchResult, NotMeasured, Section, Stage
from edgemem.bench.sections import all_sections
from edgemem.bench.sections.memory import Memory
from edgemem.bench.sections.steps import Steps
from edgemem.bench.subject import Moment, Options, Plan, Run
from edgemem.bench.table import Card, Picture, Table, rows_of, shown
from edgemem.bundle import Bundle
from edgemem.cli import main
from tests.bench.examples import example_page, example_result

PLAN = replace(Plan.quick(), steps=20, warmup=2)


@dataclass(frozen=True)
class Invented(Section, key="invented", title="An invented section", place=15, stage=Stage.ALONE, gives_reason=True):
    """A section that only this file knows."""

    figure: int = shown("its figure", str, "made up")
    read_at: int = shown("moments until then", str)

    @classmethod
    def read(cls, run: Run | None) -> str:
        return "closed" if run is None else f"position {run.loop.stream.position}"

    @classmethod
    def measure(cls, run: Run) -> Section | NotMeasured | None:
        assert run.reading(cls.key, Moment.BEFORE_OPENING) == "closed"
        assert run.reading(cls.key, Moment.OPENED) == "position 1"
        assert run.reading(cls.key, Moment.STEPPED) == "position 25"
        return cls(4711, len(run.readings))

    def tables(self, result: BenchResult) -> list[Table]:
        plot = Picture("An invented plot", lambda figure: figure.add_subplot().set_title("invented plot"))
        return [Table(self.key, self.title, ("what", "figure", ""), rows_of(self), notes=["A note."], pictures=[plot])]

    def headline(self, result: BenchResult) -> str:
        return "Invented, too."

    def cards(self, result: BenchResult) -> list[Card]:
        return [Card("invented card", "4,712", "on top")]

    def method(self, result: BenchResult) -> dict[str, str]:
        return {"Invention": "It was `invented`."}


@dataclass(frozen=True)
class Unable(Invented):
    """It cannot be measured."""

    @classmethod
    def measure(cls, run: Run) -> NotMeasured:
        return NotMeasured("it was invented")


@dataclass(frozen=True)
class Unwanted(Invented):
    """It was not asked for."""

    @classmethod
    def measure(cls, run: Run) -> None:
        return None


def outputs(bundle: Bundle, kind: type[Section], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict, str]:
    """Terminal, JSON and page of a benchmark of two sections."""
    result = suite.run(bundle.path, Options(threads=1), PLAN, sections=[kind, Steps])
    monkeypatch.setattr("edgemem.cli.bench_command.run_suite", lambda *_: result)
    done = CliRunner().invoke(main, ["bench", str(bundle.path), "--full"])
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads(json.dumps(result.to_json(), allow_nan=False)), page.render(result)


def test_a_new_section_is_on_the_terminal_in_the_json_and_on_the_page(
    tokens: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, data, html = outputs(tokens, Invented, monkeypatch)
    for text in (terminal, html):
        for wanted in ("An invented section", "its figure", "4711", "made up", "A note.", "Invented, too."):
            assert wanted in text
        assert text.index("Latency of a step") < text.index("An invented section"), "sorted by place"
    for wanted in ("invented plot", 'aria-label="An invented plot"', "invented card", "4,712", "<code>invented</code>"):
        assert wanted in html
    assert data["invented"] == {"figure": 4711, "read_at": 3}
    assert data["invented_skipped"] is None


def test_a_section_that_was_not_measured_has_its_reason_everywhere(
    tokens: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, data, html = outputs(tokens, Unable, monkeypatch)
    for text in (terminal, html):
        assert "An invented section" in text
        assert "Not measured: it was invented." in text
    assert (data["invented"], data["invented_skipped"]) == (None, "it was invented")


def test_a_section_that_was_not_asked_for_is_only_in_the_json(tokens: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, data, html = outputs(tokens, Unwanted, monkeypatch)
    assert "nvented" not in terminal + html.partition("<script")[0]
    assert (data["invented"], data["invented_skipped"]) == (None, None)


@pytest.mark.parametrize("extras", [True, False])
def test_the_page_has_every_table_of_the_terminal(extras: bool) -> None:
    html = example_page(extras=extras)
    tables = example_result(extras=extras).tables()
    assert len(tables) > 10
    assert html.count("<h2>") == len(tables) + 1, "and how it was measured"
    assert all(f'<section class="{table.key}">' in html for table in tables)


def test_every_file_of_the_sections_is_found_and_no_two_share_a_place_or_a_key() -> None:
    found = all_sections()
    assert len(found) == len([*pkgutil.iter_modules(sections.__path__)])
    assert len({kind.place for kind in found}) == len({kind.key for kind in found}) == len(found)
    keys = [table.key for table in example_result().tables()]
    assert len(set(keys)) == len(keys)


def test_the_json_is_the_result() -> None:
    result = example_result()
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["format"] == "edgemem.bench"
    assert data["steps"]["latency"]["percentiles"][4] == {
        "percent": 99.9,
        "value_ms": None,
        "needed_samples": 10_000,
    }
    assert data["comparison"]["baselines"][1]["skipped"] == "torch is not installed."
    assert data["memory"]["state_bytes"] == result[Memory].state_bytes


def test_a_missing_section_is_a_key_error() -> None:
    result = example_result(extras=False)
    assert result.get(Invented) is None
    with pytest.raises(KeyError, match="invented"):
        result[Invented]


def test_a_generic_alias_in_a_module_of_sections_is_no_section(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alias:
        """Like ``dict[str, int]`` in Python 3.10: a type by its own account, and none for ``issubclass``."""

        __class__ = type  # type: ignore[assignment]

    before = all_sections()
    monkeypatch.setattr("edgemem.bench.sections.steps.Rows", Alias(), raising=False)
    assert all_sections() == before
