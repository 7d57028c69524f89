"""What the exporter writes is compiled by NVIDIA's own compiler, which needs no GPU.

A part of the table in docs/compile-table.md: every memory in float32, and every precision over models that hold every
memory between them, in both graph shapes. ``python benchmarks/compile_table.py`` compiles all combinations.
"""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest

from edgemem.export import export_bundle
from edgemem.runtimes.trt.flavour import load_flavour
from tests.export.test_memories_export import KINDS, SEALED
from tests.shared import TracedDecoder

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, the compiler that needs no GPU, is not installed")

SPEC = importlib.util.spec_from_file_location(
    "compile_table", Path(__file__).parents[2] / "benchmarks" / "compile_table.py"
)
compile_table = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = compile_table  # dataclasses look their module up
SPEC.loader.exec_module(compile_table)
Case = compile_table.Case

FIRST, SECOND = (name for name in compile_table.MEMORIES if name.startswith("hybrid"))
# Between them they hold every memory in every precision, in one graph shape or the other.
CASES = [
    Case(FIRST, "fp16", True),
    Case(FIRST, "int8", True),
    Case(FIRST, "int4", True),
    Case(SECOND, "fp16", False),
    Case(SECOND, "int8", False),
    Case(SECOND, "int4", False),
    Case("cumulative", "bf16", False),
]


@pytest.fixture(scope="module")
def rtx():
    return load_flavour("tensorrt_rtx")


def test_the_table_has_a_row_for_every_memory():
    rows = compile_table.MEMORIES
    assert {name: layers[0] for name, layers in rows.items() if not name.startswith("hybrid")} == KINDS
    in_hybrids = {spec["type"] for name in (FIRST, SECOND) for layer in rows[name] for spec in layer}
    assert in_hybrids == set(KINDS) - {"full"}  # a growing cache is a baseline, and stands alone


def test_the_table_holds_every_case_that_is_compiled_here():
    assert set(CASES) < set(compile_table.cases())


def taken(bundle, rtx):
    found = compile_table.outcome(bundle, rtx)
    assert found.refused == ()
    assert found.error == ""
    assert found.plan_bytes > 0


@pytest.mark.parametrize("name", KINDS)
def test_every_memory_compiles(name, memory_bundle, rtx):
    taken(memory_bundle(name, KINDS[name]), rtx)


@pytest.mark.long
@pytest.mark.parametrize("name", SEALED)
def test_sealed_graphs_compile(name, memory_bundle, rtx):
    taken(memory_bundle(name, KINDS[name], heads=2, sealed=True), rtx)


@pytest.mark.parametrize("which", ["hybrid_bundle", "sealed_bundle"])
def test_hybrids_compile(which, rtx, request):
    taken(request.getfixturevalue(which), rtx)


@pytest.fixture(scope="module")
def source():
    """The model of a row, which is traced once for all precisions."""

    @functools.cache
    def traced_once(memory):
        return TracedDecoder(compile_table.source(memory).module, memory, "config")

    return traced_once


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_precision_compiles(case, rtx, source, tmp_path):
    taken(export_bundle(source(case.memory), tmp_path / "bundle", case.options), rtx)


def test_the_page_says_what_failed_and_where():
    cases = list(compile_table.cases())
    good = compile_table.Outcome((), "", 1 << 20, 1.0)
    outcomes = dict.fromkeys(cases, good)
    assert f"{len(cases)} compile, 0 do not" in compile_table.table(outcomes, "1.7")
    outcomes[cases[0]] = compile_table.Outcome((), "Myelin failed", 0, 1.0)
    page = compile_table.table(outcomes, "1.7")
    assert "1 do not" in page
    assert f"| {cases[0].memory} | no, yes |" in page
    assert f"- {cases[0]}: Myelin failed" in page
