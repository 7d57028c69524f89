"""Rings in fewer bits: every entry is rounded before anything reads it, in both forms of the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import edgemem
from edgemem import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import ExportError
from edgemem.export import ExportOptions, export_bundle
from edgemem.export.passes.narrow_rings import narrow_rings
from edgemem.export.verify.check import check
from edgemem.models import Decoder, DecoderConfig
from edgemem.runtimes.ort.engine import OrtSession
from edgemem.runtimes.stream import Stream
from tests.export.conftest import traced_once
from tests.export.modules import RingSum

MEMORY = [
    *({"type": "sinks", "slots": 2}, {"type": "window", "window": 6}, {"type": "cumulative"}),
    {"type": "moving_average", "window": 5},
]
CONFIG = DecoderConfig(d_model=32, layers=1, heads=4, kv_heads=2, vocab_size=20, memory=MEMORY)
RINGS = ("0.window.k", "0.window.v", "0.moving_average.pairs")
STORED = {
    "fp16": dict.fromkeys(RINGS, "float16"),
    "int8": dict.fromkeys(RINGS, "int8"),
}


@pytest.fixture(scope="module")
def source():
    return traced_once(CONFIG, "narrow")


@pytest.fixture(scope="module", params=STORED)
def bundle(request, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("narrow") / request.param
    return export_bundle(source, out, ExportOptions(memory_dtype=request.param, verify=False))


def test_only_the_rings_are_narrow(bundle):
    dtypes = {state.name: state.dtype for state in bundle.contract}
    assert {name: dtype for name, dtype in dtypes.items() if dtype != "float32"} == STORED[bundle.path.name]
    memory = bundle.manifest.precision.memory
    assert memory == STORED[bundle.path.name]["0.window.k"]
    assert f"rings in {memory}" in str(bundle.manifest.precision)


def test_a_ring_of_integers_has_a_scale_for_each_slot(bundle):
    shapes = {state.name: (state.shape, state.update) for state in bundle.contract if state.name.endswith("_scale")}
    rings = {
        "0.window.k_scale": ((2, 6, 1), "append"),
        "0.window.v_scale": ((2, 6, 1), "append"),
        "0.moving_average.pairs_scale": ((4, 5, 1), "append"),
    }
    assert shapes == (rings if bundle.path.name == "int8" else {})


def test_it_is_held_to_the_float32_model_in_both_forms(bundle, source):
    report = check(bundle.path, source, steps=24)
    assert 0 < report.change < {"fp16": 0.001, "int8": 0.01}[bundle.path.name]
    assert 0 < max(report.step_error, *report.chunk_errors.values()) < report.tolerance / 2


def test_the_operator_reads_and_writes_narrow_rings_itself(bundle):
    (graph,) = bundle.manifest.graphs
    model = ir.load(bundle.file(graph.native))
    (attention,) = (node for node in model.graph if node.op_type == "MemoryAttention")
    states = {value.name for value in model.graph.inputs if value.name.startswith("past.")}
    assert states <= {value.name for value in attention.inputs if value is not None}
    assert all(value.is_graph_output() for value in attention.outputs[1:])
    assert not {"Cast", "QuantizeLinear"} & {node.op_type for node in model.graph}


@pytest.mark.parametrize("native", [False, True])
def test_a_chunk_reads_its_own_entries_as_later_calls_do(bundle, native):
    tokens = np.arange(5) % 20
    with OrtSession(bundle, threads=1, device="cpu", native=native) as session:
        stepped, fed = session.stream(), session.stream()
        by_step = np.stack([stepped.step(int(token)).copy() for token in tokens], axis=1)
        np.testing.assert_allclose(fed.feed(tokens, outputs="all"), by_step, atol=2e-5)


def test_both_forms_and_torch_compute_alike(bundle):
    tokens = np.arange(13) % 20
    read = []
    for native in (False, True):
        with OrtSession(bundle, threads=1, device="cpu", native=native) as session:
            read.append(session.stream().feed(tokens, outputs="all"))
    with edgemem.open(bundle.path, runtime="torch", device="cpu") as session:
        read.append(session.stream().feed(tokens, outputs="all"))
    for other in read[1:]:  # a rounding may fall on the other side
        np.testing.assert_allclose(other, read[0], atol=0.02 * read[0].std())


def test_streams_of_such_rings_are_saved_joined_and_stepped_in_a_batch(bundle):
    with edgemem.open(bundle.path, threads=1, device="cpu") as session:
        one, two = session.stream(), session.stream()
        one.feed(np.arange(9) % 20)
        two.feed(np.arange(4) % 20)
        loaded = session.stream()
        loaded.restore(one.snapshot())
        both = Stream.join([loaded, two])
        together = both.step(np.array([3, 7])).copy()
        alone = np.concatenate([one.step(3), two.step(7)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_integers_in_standard_operators(special):
    """Each slot is rounded by its largest number; zeros stay zeros, and a slot that is not finite is read as NaN."""
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[B,1,T,4] x, float[B,1,3,4] past_r) => (float[B,1,S,4] y, float[B,1,T,4] append_r) {
        append_r = Identity(x)
        y = Concat<axis = 2>(past_r, append_r)
    }"""
    contract = Contract(
        (InputSpec("x", (4,)),),
        (OutputSpec("y", (4,)),),
        (StateSpec("r", (1, 3, 4), update="append", input="past_r", output="append_r"),),
        max_chunk=1,
    )
    model = ir.from_onnx_text(text)
    narrow = narrow_rings([model], contract, "int8")
    assert [state.input_name for state in narrow] == ["past_r", "past_r_scale"]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    x = np.float32([[1, -0.5, 0.2, 0.004], [0, 0, 0, 0], [3e-5, -2e-5, 0, 1e-5], [special, 1, 2, 3]])[None, None]
    ring = {"past_r": np.full((1, 1, 3, 4), 3, np.int8), "past_r_scale": np.full((1, 1, 3, 1), 0.5, np.float32)}
    y, entries, scales = session.run(None, {"x": x, **ring})
    assert [value.name for value in session.get_outputs()] == ["y", "append_r", "append_r_scale"]
    assert (y[:, :, :3] == 1.5).all()
    np.testing.assert_array_equal(entries[0, 0, :3], [[127, -64, 25, 1], [0, 0, 0, 0], [127, -85, 0, 42]])
    np.testing.assert_allclose(y[0, 0, 3:6], entries[0, 0, :3] * scales[0, 0, :3])
    assert (np.abs(y[0, 0, 3:6] - x[0, 0, :3]) <= scales[0, 0, :3] / 2 * 1.001).all()
    assert np.isnan(scales[0, 0, 3])


def test_a_slot_of_one_number_stays_as_it_is():
    with pytest.raises(ExportError, match="no float32 ring"):
        narrow_rings([], RingSum().contract(), "int8")


def test_a_model_without_such_rings_is_refused():
    config = DecoderConfig(d_model=16, layers=1, heads=2, vocab_size=20, memory=[{"type": "gated_delta"}])
    with pytest.raises(ExportError, match="no float32 ring"):
        narrow_rings([], Decoder(config).contract(), "float16")


def test_it_goes_with_models_that_compute_in_float32_only():
    with pytest.raises(ExportError, match="computes in float16"):
        ExportOptions(dtype="fp16", memory_dtype="fp16").precision("float32")
    with pytest.raises(ExportError, match="'fp8' is not one of fp16, int8"):
        ExportOptions(memory_dtype="fp8")
