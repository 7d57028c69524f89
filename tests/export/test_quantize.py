"""The pass that turns large matrices into whole numbers, on graphs of every form that torch traces."""

from __future__ import annotations

import collections
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgemem.errors import ExportError
from edgemem.export.parameters import substituted
from edgemem.export.passes.halve import halve_matrices, halve_tables
from edgemem.export.passes.quantize import quantize
from edgemem.export.passes.store_weights import store_weights
from edgemem.export.stored import StoredWeights
from edgemem.precision import Precision


class Mixed(nn.Module):
    """Linear layers on three and on two axes, a head tied to the embedding, and matrices that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64, bias=False)
        self.gate = nn.Linear(64, 16)  # few columns
        self.odd = nn.Linear(50, 64)  # 50 rows
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)
        x = x + torch.relu(self.down(torch.relu(self.up(x)))) * self.gate(x).mean(-1, keepdim=True)
        last = self.up(x[:, 0])  # two axes: a Gemm
        return self.head(x + self.odd(x[..., :50])), last


def trace(module: nn.Module, tokens: Tensor) -> ir.Model:
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about itself
        program = torch.onnx.export(
            module.eval(),
            (tokens,),
            dynamo=True,
            opset_version=20,
            verbose=False,
            input_names=["tokens"],
            dynamic_shapes=({0: dynamic, 1: dynamic},),
        )
    assert program is not None
    return program.model


TOKENS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


@pytest.fixture(scope="module")
def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.fixture(scope="module")
def traced(mixed) -> ir.Model:
    return trace(mixed, TOKENS)


def session(path, level: str, optimised=None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def written(module, model, precision, folder):
    """Two graphs of a module that share their weights file, and what became of the weights."""
    models = [model.clone() for _ in range(2)]
    stored = StoredWeights()
    quantize(models, module, precision, stored)
    halve_tables(models, module, stored)
    store_weights(models, module, folder, whole=False, instead=stored.files())
    for index, model in enumerate(models):
        ir.save(model, folder / f"{index}.onnx")
    return stored


@pytest.fixture(scope="module", params=["int4", "int8"])
def quantised(request, mixed, traced, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, written(mixed, traced, Precision.of("fp32", request.param, 32), folder)


def test_linear_layers_and_a_tied_head_are_quantised_and_the_rest_is_named(quantised):
    _, stored = quantised
    assert set(stored.matrices) == {"embedding.weight", "up.weight", "down.weight"}
    assert set(stored.lookups) == {"embedding.weight"}
    assert set(stored.left) == {"gate.weight", "odd.weight"}
    assert "16 columns" in stored.left["gate.weight"]
    assert "50 rows" in stored.left["odd.weight"]


def test_the_graph_is_valid_and_computes_what_the_module_computes_with_the_same_weights(quantised, mixed):
    folder, stored = quantised
    onnx.checker.check_model(str(folder / "0.onnx"), full_check=True)
    with substituted(mixed, stored.multiplied(), stored.looked_up()), torch.inference_mode():
        wanted = mixed(TOKENS)
    got = session(folder / "0.onnx", "1").run(None, {"tokens": TOKENS.numpy()})
    for value, tensor in zip(got, wanted, strict=True):
        np.testing.assert_allclose(value, tensor.numpy(), atol=2e-5, rtol=1e-5)


def test_the_module_has_its_own_weights_back_afterwards(quantised, mixed):
    _, stored = quantised
    before = mixed(TOKENS)[0]
    with substituted(mixed, stored.multiplied(), stored.looked_up()):
        assert mixed.head.weight is not mixed.embedding.weight
        assert not torch.equal(mixed(TOKENS)[0], before)
    assert mixed.head.weight is mixed.embedding.weight
    assert torch.equal(mixed(TOKENS)[0], before)


@pytest.mark.parametrize("time", [1, 4])
def test_the_engine_fuses_every_pair_of_dequantise_and_multiply(quantised, tmp_path, time):
    folder, _ = quantised
    engine = session(folder / "0.onnx", "4", tmp_path / "optimised.onnx")
    operators = collections.Counter(
        node.op_type for node in onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
    )
    assert operators["MatMulNBits"] == 4, "the product with up.weight occurs twice"
    assert operators["DequantizeLinear"] == 0
    assert engine.run(None, {"tokens": TOKENS[:, :time].numpy()})[0].shape == (2, time, 300)


def test_two_graphs_share_one_copy_of_the_weights(quantised):
    folder, stored = quantised
    held = sum(t.numel() * t.element_size() for files in stored.files().values() for t in files.values())
    left = 4 * (50 * 64 + 64 * 16)
    small = 2048
    assert held + left <= (folder / "weights.safetensors").stat().st_size <= held + left + small + 2048


def test_no_float_copy_of_a_quantised_matrix_is_left_in_the_graph(quantised):
    folder, _ = quantised
    model = ir.load(folder / "0.onnx")
    shapes = {tuple(v.shape.numpy()) for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT}
    assert shapes.isdisjoint({(300, 64), (64, 300), (64, 128), (128, 64)})


def test_a_smaller_block_serves_a_matrix_that_the_wanted_one_does_not_fit(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(40, 48), nn.Linear(48, 64, bias=False))
    stored = written(module, trace(module, TOKENS), Precision.of("fp32", "int4", 64), tmp_path)
    assert {name: made.block_size for name, made in stored.matrices.items()} == {"1.weight": 16}


def test_a_model_with_nothing_to_quantise_or_to_halve_is_an_error():
    module = nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 4))
    model = trace(module, TOKENS)
    with pytest.raises(ExportError, match="no matrix that can be quantised"):
        quantize([model], module, Precision.of("fp32", "int8", 32), StoredWeights())
    with pytest.raises(ExportError, match="no large matrix to store in it"):
        halve_matrices([model], module, Precision.of("fp16", None, 32), StoredWeights())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_products_can_be_in_half_precision_and_all_else_in_float32(mixed, traced, dtype):
    model = traced.clone()
    precision = Precision.of(dtype, "int8", 32)
    stored = StoredWeights()
    quantize([model], mixed, precision, stored)
    halve_matrices([model], mixed, precision, stored)
    typed = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[dtype]
    types = {v.name: v.type.tensor_type.elem_type for v in (*typed.graph.value_info, *typed.graph.output)}
    products = [node for node in typed.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 6
    assert {types[node.output[0]] for node in products} == {half}
    assert {types[v.name] for v in typed.graph.output} == {onnx.TensorProto.FLOAT}
    assert {types[n.output[0]] for n in typed.graph.node if n.op_type in ("Relu", "ReduceMean")} == {
        onnx.TensorProto.FLOAT
    }


@pytest.mark.parametrize(
    ("dtype", "weights", "block", "message"),
    [("fp8", None, 32, "dtype 'fp8'"), ("fp32", "int2", 32, "weights 'int2'"), ("fp32", "int4", 48, "block size 48")],
)
def test_a_precision_that_does_not_exist_is_refused(dtype, weights, block, message):
    with pytest.raises(ExportError, match=message):
        Precision.of(dtype, weights, block)
