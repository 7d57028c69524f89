"""Where a step's time goes: the engine's profile, added up by kind of operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import example_result

from edgemem.bench import operators, report
from edgemem.bench.result import Operator, Operators
from edgemem.bench.tables import tables
from edgemem.bundle import Bundle
from edgemem.cli import main
from edgemem.export import export_bundle
from edgemem.export.source import from_config
from edgemem.models import DecoderConfig


def kernel(node: str, kind: str, micros: int, weights: int = 0) -> dict[str, Any]:
    """One event of ONNX Runtime's profile."""
    return {
        "name": f"{node}_kernel_time",
        "dur": micros,
        "args": {"op_name": kind, "parameter_size": str(weights)},
    }


def run(micros: int) -> dict[str, Any]:
    return {"name": "model_run", "dur": micros, "args": {}}


def test_medians_are_added_up_by_kind_and_by_what_is_read():
    events = [{"name": "session_initialization", "dur": 5_000}]
    for micros in (900, 10, 12, 11):  # the first run is not among the last three
        events += [
            kernel("a", "MatMul", 10 * micros, weights=4096),
            kernel("b", "MatMul", 2 * micros),
            kernel("c", "MatMul", micros),
            kernel("d", "Add", micros, weights=8),
            run(15 * micros),
        ]
    found = operators.summarise(events, 3)
    assert found == Operators(
        steps=3,
        run_p50_ms=pytest.approx(0.165),
        kinds=[
            Operator("MatMul", True, 1, pytest.approx(0.11)),
            Operator("MatMul", False, 2, pytest.approx(0.033)),
            Operator("Add", False, 1, pytest.approx(0.011)),
        ],
    )


def test_a_product_whose_weights_were_packed_away_still_reads_them():
    def product(node: str, columns: int, inputs: int) -> dict[str, Any]:
        event = kernel(node, "MatMul", 10)
        event["args"] |= {
            "input_type_shape": [{"float": [1, 1, 64]}] * inputs,
            "output_type_shape": [{"float": [1, 1, columns]}],
        }
        return event

    events = [product("weights", 256, 1), product("column", 1, 1), product("states", 256, 2), run(50)]
    found = operators.summarise(events, 1)
    assert {(kind.reads_weights, kind.count) for kind in found.kinds} == {(True, 1), (False, 2)}


def test_a_bundle_is_profiled_as_it_runs(tokens: Bundle):
    found = operators.profile(tokens, threads=1, device="cpu", steps=5, warmup=3)
    assert found.steps == 5
    assert found.run_p50_ms > 0
    assert sum(kind.count for kind in found.kinds) > 3
    assert "MatMul" in {kind.name for kind in found.kinds}


def test_the_table_ends_with_what_is_small_and_the_sum():
    table = next(table for table in tables(example_result()) if table.key == "operators")
    assert [row[:3] for row in table.rows] == [("MatMul", "weights", "4"), ("4 more", "", "4"), ("all", "", "8")]
    assert table.rows[0][4] == "98.0%"
    assert "0.980 ms in operators that read weights, 20.0 µs in the others" in table.notes[0]


def test_the_page_shows_the_table():
    report.require()
    assert "Where a step&#39;s time goes" in report.render(example_result())


def test_the_command_times_operators_where_it_is_asked_to(tokens: Bundle):
    done = bench(tokens, "--operators", "--json", "-")
    assert json.loads(done.stdout)["operators"]["kinds"]
    assert json.loads(bench(tokens, "--json", "-").stdout)["operators"] is None


def test_another_runtime_says_that_it_has_no_profile(tmp_path: Path):
    config = DecoderConfig(d_model=16, layers=1, heads=2, memory=[{"type": "window", "window": 4}], vocab_size=16)
    bundle = export_bundle(from_config(config, "tiny"), tmp_path / "bundle", verify=False)
    done = bench(bundle, "--operators", "--runtime", "torch")
    assert done.exit_code == 0, done.output
    assert "Not measured: runtime 'torch' has no profile of its operators" in done.stdout


def bench(bundle: Bundle, *options: str) -> Result:
    quick = ["--quick", "--steps", "20", "--threads", "1", "--no-baselines"]
    return CliRunner().invoke(main, ["bench", str(bundle.path), *quick, *options])
