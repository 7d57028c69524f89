"""The floor reads the bytes that a step reads."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgemem.bench import weights
from edgemem.bundle import WEIGHTS, Bundle, GraphFile
from edgemem.errors import BundleError, MissingDependencyError
from edgemem.weights_file import tensor_places
from tests.bench.tiny import UNTIED, VOCAB, WIDTH, write_tiny

READS = weights.WeightReads(((3, 5), (4, 5), (2, 7)), "three matrices")


def test_an_embedding_that_is_only_looked_up_does_not_count(tmp_path: Path) -> None:
    untied = weights.weight_reads(write_tiny(tmp_path / "untied", model=UNTIED))
    assert untied.shapes == ((WIDTH, VOCAB),)
    assert untied.nbytes == 4 * WIDTH * VOCAB
    assert "except embedding" in untied.counted


def test_an_embedding_that_the_output_layer_shares_counts(tmp_path: Path) -> None:
    tied = weights.weight_reads(write_tiny(tmp_path / "tied", model=replace(UNTIED, tie_embeddings=True)))
    assert tied.nbytes == 2 * 4 * WIDTH * VOCAB


def test_a_table_that_the_exporter_folded_is_no_weight(tmp_path: Path) -> None:
    plain = weights.weight_reads(write_tiny(tmp_path / "plain", model=UNTIED))
    folded = weights.weight_reads(write_tiny(tmp_path / "folded", model=UNTIED, folded=np.zeros((64, 64), np.float32)))
    assert folded == plain


def test_every_matrix_of_an_unknown_module_counts_where_the_graph_cannot_be_read(
    tokens: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    reads = weights.weight_reads(tokens)
    assert reads.nbytes == 2 * 4 * WIDTH * VOCAB
    assert "as if none were only looked up" in reads.counted


@pytest.mark.parametrize(("is_shared", "counted"), [(False, 1), (True, 2)])
def test_a_table_of_an_unknown_module_counts_only_where_a_product_reads_it_too(
    tmp_path: Path, is_shared: bool, counted: int
) -> None:
    table, head = np.ones((VOCAB, WIDTH), np.float32), np.ones((VOCAB, WIDTH), np.float32)
    save_file({"table": table, "head": head}, tmp_path / WEIGHTS)
    values = {}
    for name, (start, end) in tensor_places(tmp_path / WEIGHTS).items():
        stored = ir.ExternalTensor(
            WEIGHTS, start, end - start, ir.DataType.FLOAT, shape=ir.Shape(table.shape), name=name, base_dir=tmp_path
        )
        values[name] = ir.Value(name=name, const_value=stored)
    tokens = ir.Value(name="tokens")
    lookup = ir.node("Gather", [values["table"], tokens])
    product = ir.node("Gemm", [lookup.outputs[0], values["table" if is_shared else "head"]], {"transB": 1})
    other = ir.node("Gemm", [product.outputs[0], values["head"]])
    graph = ir.Graph([tokens], other.outputs, nodes=[lookup, product, other], initializers=list(values.values()))
    for name, node in zip("abc", graph, strict=True):
        node.outputs[0].name = name
    graph.opset_imports[""] = 20
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    bundle: Any = SimpleNamespace(
        manifest=SimpleNamespace(model=None, files={WEIGHTS: ("", 0)}),
        graph_for=lambda time: GraphFile("model.onnx", 1, 1),
        file=lambda name: tmp_path / name,
    )
    assert len(weights.weight_reads(bundle).shapes) == counted


@given(st.lists(st.integers(1, 600), min_size=2, max_size=4), st.sampled_from([0.5, 1, 2, 4, 8]))
def test_a_matrix_has_the_bytes_of_its_tensor(shape: list[int], item_bytes: float) -> None:
    nbytes = int(np.prod(shape) * item_bytes)
    rows, cols = weights.matrix_shape(shape, max(1, nbytes))
    assert rows >= 1
    assert cols >= 1
    # Off by half a row at most, which is where the bytes are no whole number of rows.
    assert abs(4 * rows * cols - nbytes) <= 4 * cols


def test_float32_matrices_keep_their_shape() -> None:
    assert weights.matrix_shape((1536, 512), 1536 * 512 * 4) == (1536, 512)
    assert weights.matrix_shape((1536, 512), 1536 * 512 * 2) == (768, 512)


def test_shapes_and_bytes_are_those_of_the_tensors(tmp_path: Path) -> None:
    tensors = {"a": np.zeros((3, 4), dtype=np.float16), "b": np.zeros(5, dtype=np.int64)}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"k": "v"})
    assert weights.tensors_of(tmp_path / "w.safetensors") == {"a": ((3, 4), 24), "b": ((5,), 40)}


@pytest.mark.parametrize("content", [b"", b"\x05\x00\x00\x00\x00\x00\x00\x00[1,2]", b"\xff" * 40])
def test_weights_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        weights.tensors_of(tmp_path / "w.safetensors")


def test_numpy_multiplies_every_matrix() -> None:
    run = weights.NumpyPass(READS)
    run.step()
    assert [matrix.shape for matrix, _, _ in run._work] == list(READS.shapes)
    for matrix, vector, out in run._work:
        np.testing.assert_allclose(out, matrix @ vector, rtol=1e-5)


def test_onnxruntime_multiplies_every_matrix() -> None:
    run = weights.OnnxRuntimePass(READS, threads=1)
    for out in run._keep_out:
        out.fill(np.nan)
    run.step()
    assert [out.shape for out in run._keep_out] == [(1, rows) for rows, _ in READS.shapes]
    assert all(np.isfinite(out).all() and out.any() for out in run._keep_out)


def test_without_onnx_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="onnx is not installed") as error:
        weights.OnnxRuntimePass(READS, threads=1)
    assert "edgemem-toolkit[export" in str(error.value)


def test_weights_beyond_what_a_graph_holds_are_refused() -> None:
    with pytest.raises(BundleError, match="do not fit in one ONNX graph"):
        weights.OnnxRuntimePass(weights.WeightReads(((600_000, 1_000),), "huge"), threads=1)


def test_numpy_keeps_its_threads_where_the_environment_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    with weights.blas_threads(3) as obstacle:
        assert obstacle is None


def test_numpy_that_cannot_be_limited_is_left_out_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with weights.blas_threads(2) as obstacle:
        assert obstacle is not None
        assert "OMP_NUM_THREADS=2" in obstacle
    with weights.blas_threads(None) as obstacle:
        assert obstacle is None
