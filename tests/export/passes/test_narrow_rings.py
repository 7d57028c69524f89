"""Rings in fewer bits: every entry is rounded before anything reads it, in both forms of the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgemem.errors import ExportError
from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.export.passes.narrow_rings import narrow_rings
from edgemem.export.verify.check import check
from edgemem.models import Decoder, DecoderConfig
from edgemem.runtimes.ort.engine import OrtSession
from tests.export.conftest import lively

MEMORY = [{"type": "sinks", "slots": 2}, {"type": "window", "window": 6}, {"type": "cumulative"}]
CONFIG = DecoderConfig(d_model=32, layers=1, heads=4, kv_heads=2, vocab_size=20, memory=MEMORY)


@pytest.fixture(scope="module")
def source():
    return lively(from_config(CONFIG, "narrow"))


@pytest.fixture(scope="module")
def bundle(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("narrow") / "fp16"
    return export_bundle(source, out, ExportOptions(memory_dtype="fp16", verify=False))


def test_only_the_rings_are_narrow(bundle):
    dtypes = {state.name: state.dtype for state in bundle.contract}
    assert {name: dtype for name, dtype in dtypes.items() if dtype != "float32"} == {
        "0.window.k": "float16",
        "0.window.v": "float16",
    }
    assert bundle.manifest.precision.memory == "float16"
    assert "rings in float16" in str(bundle.manifest.precision)


def test_it_is_held_to_the_float32_model_in_both_forms(bundle, source):
    report = check(bundle.path, source)
    assert 0 < report.change < 0.01
    assert max(report.step_error, *report.chunk_errors.values()) < 0.02


def test_the_operator_reads_and_writes_narrow_rings_itself(bundle):
    (graph,) = bundle.manifest.graphs
    model = ir.load(bundle.file(graph.native))
    (attention,) = (node for node in model.graph if node.op_type == "MemoryAttention")
    assert all(attention.inputs[at].is_graph_input() for at in (8, 9))
    assert all(attention.outputs[at].is_graph_output() for at in (1, 2))
    assert "Cast" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("native", [False, True])
def test_a_chunk_reads_its_own_entries_as_later_calls_do(bundle, native):
    tokens = np.arange(5) % 20
    with OrtSession(bundle, threads=1, device="cpu", native=native) as session:
        stepped, fed = session.stream(), session.stream()
        by_step = np.stack([stepped.step(int(token)).copy() for token in tokens], axis=1)
        np.testing.assert_allclose(fed.feed(tokens, outputs="all"), by_step, atol=2e-5)


def test_a_model_without_such_rings_is_refused():
    config = DecoderConfig(d_model=16, layers=1, heads=2, vocab_size=20, memory=[{"type": "gated_delta"}])
    with pytest.raises(ExportError, match="no float32 ring"):
        narrow_rings([], Decoder(config).contract(), "float16")


def test_it_goes_with_models_that_compute_in_float32_only():
    with pytest.raises(ExportError, match="computes in float16"):
        ExportOptions(dtype="fp16", memory_dtype="fp16").precision("float32")
    with pytest.raises(ExportError, match="'fp8' is not one of fp16"):
        ExportOptions(memory_dtype="fp8")
