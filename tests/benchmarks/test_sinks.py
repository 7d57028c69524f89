"""The script that streams text through decoders with sinks, and distils them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import house

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "evidence"))

import sinks


def test_a_byte_costs_the_logarithm_of_its_probability() -> None:
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.125, 0.875, 0.0 + 1e-9]]], dtype=np.float32)) + 7
    assert sinks.costs(logits, np.array([[1, 0]])) == pytest.approx(np.array([[2.0, 3.0]]), abs=1e-6)


def test_the_tables_show_means_and_ranges_and_the_share_of_the_gap() -> None:
    seeds = [
        {
            **{name: {"inside": 2.0, "beyond": 3.0 + shift} for name in sinks.SINK_ROWS},
            "teacher": {"inside": 2.0},
            "before": {"inside": 2.4},
            "without summary": {"inside": 2.3},
            "after": {"inside": 2.2 - shift},
        }
        for shift in (0.0, 0.1)
    ]
    assert "| full attention | 2.000 (2.000 to 2.000) | 3.050 (3.000 to 3.100) |" in sinks.sink_table(seeds)
    assert "| 4 sinks, window 12 | 2.000" in sinks.sink_table(seeds)
    assert "| after | 2.150 (2.100 to 2.200) | 0.625 (0.500 to 0.750) |" in sinks.distilled_table(seeds)
    assert "| before | 2.400 (2.400 to 2.400) | 0.000 (0.000 to 0.000) |" in sinks.distilled_table(seeds)


def test_the_page_shows_the_results() -> None:
    seeds = list(json.loads((house.ROOT / "benchmarks/evidence/sinks.json").read_text()).values())
    page = (house.ROOT / "docs/evidence.md").read_text()
    assert len(seeds) == 3
    for line in sinks.sink_table(seeds).splitlines()[2:]:
        assert line.partition("window")[2] in page or line in page
    for line in sinks.distilled_table(seeds).splitlines()[2:]:
        assert f"| {line.split(' | ')[1]} |" in page
