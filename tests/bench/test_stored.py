"""Results in files: read back as they were, and as rows for others."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from edgemem.bench import stored
from edgemem.bench.result import BenchResult
from edgemem.bench.sections.memory import Memory
from edgemem.errors import EdgememError
from tests.bench.examples import example_result


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "board.json"
    stored.write(path, stored.encode(example_result()))
    return path


@pytest.mark.parametrize("extras", [True, False])
@pytest.mark.parametrize("baselines", [True, False])
def test_a_result_is_read_back_as_it_was(tmp_path: Path, extras: bool, baselines: bool) -> None:
    result = example_result(extras=extras, baselines=baselines)
    path = tmp_path / "r.json"
    stored.write(path, stored.encode(result))
    assert stored.read_result(path) == result


def test_a_section_of_which_an_old_file_knows_nothing_was_not_asked_for(written: Path) -> None:
    data = json.loads(written.read_text(encoding="utf-8"))
    del data["rates"], data["environment"]["loaded"]
    written.write_text(json.dumps(data), encoding="utf-8")
    assert stored.rows([stored.read_result(written)]) == []


@pytest.mark.parametrize("content", ["", "{}", '{"format": "edgemem.bench", "version": 99}', "[1, 2]"])
def test_a_file_that_is_no_result_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(EdgememError, match=r"other\.json"):
        stored.read_result(path)


def test_a_damaged_result_is_refused(written: Path) -> None:
    data = json.loads(written.read_text(encoding="utf-8"))
    data["memory"]["state_bytes"] = "many"
    written.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(EdgememError, match="is damaged"):
        stored.read_result(written)


def test_a_report_for_others_does_not_name_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    result = example_result()
    private = dataclasses.replace(result, subject=dataclasses.replace(result.subject, path="/home/someone/bundle"))
    text = stored.report(private).decode()
    assert "someone" not in text
    assert json.loads(text)["memory"]["state_bytes"] == result[Memory].state_bytes


def results() -> list[BenchResult]:
    return [example_result(), example_result(extras=False)]


def test_the_rates_are_a_table_of_markdown_with_the_warning_of_a_loaded_machine() -> None:
    text = stored.markdown(results())
    assert "| reference | NVIDIA Jetson Orin NX | onnxruntime on cpu | 2 | prefill 512 | 1,503 |" in text
    assert text.count("decode 128 @ depth 4096") == 2
    assert text.count("This machine was loaded") == 1


def test_the_rates_are_csv_with_plain_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(stored.as_csv(results()))))
    assert len(lines) == 4
    assert (lines[1]["test"], float(lines[1]["per_second"]), lines[1]["depth"]) == (
        "decode 128 @ depth 4096",
        183.4,
        "4096",
    )
