"""Where a step's time goes: the engine's profile, added up by kind of operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgemem.bench.sections import operators
from edgemem.bench.sections.operators import Operator, Operators
from edgemem.bundle import Bundle
from edgemem.cli import main
from tests.bench.examples import example_result
from tests.bench.tiny import write_decoder


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
    result = example_result()
    (table,) = result[Operators].tables(result)
    assert [row[:3] for row in table.rows] == [("MatMul", "weights", "4"), ("4 more", "", "4"), ("all", "", "8")]
    assert table.rows[0][4] == "98.0%"
    assert "Operators that read weights take 0.980 ms, the others 20.0 µs." in table.notes[0]


def test_the_command_times_operators_where_it_is_asked_to(tokens: Bundle):
    done = bench(tokens, "--operators", "--json", "-")
    assert json.loads(done.stdout)["operators"]["kinds"]
    assert json.loads(bench(tokens, "--json", "-").stdout)["operators"] is None


def test_another_runtime_has_no_profile_and_the_reason_is_shown(tmp_path: Path):
    done = bench(write_decoder(tmp_path / "bundle"), "--operators", "--runtime", "torch")
    assert done.exit_code == 0, done.output
    assert "Not measured: the runtime 'torch' has no profile of its operators" in done.stdout


def bench(bundle: Bundle, *options: str) -> Result:
    quick = ["--quick", "--steps", "20", "--threads", "1", "--no-baselines"]
    return CliRunner().invoke(main, ["bench", str(bundle.path), *quick, *options])
