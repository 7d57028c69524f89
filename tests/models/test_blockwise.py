"""Blockwise quantised matrices: packing, the scales, and how near they come."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgemem.models.blockwise import pack_int4, quantize_matrix, read_matrix, unpack_int4

KINDS = ("int4", "int8")
RANGES = {"int4": (-8, 7), "int8": (-127, 127)}


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_packing_four_bits_loses_nothing_whatever_the_shape(rows, columns, seed):
    values = torch.randint(-8, 8, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack_int4(values)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-rows * columns // 2)
    assert torch.equal(unpack_int4(packed, (rows, columns)), values)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    block=st.sampled_from((16, 32)),
    blocks=st.integers(1, 3),
    columns=st.integers(1, 40),
    seed=st.integers(0, 99),
    spread=st.floats(1e-4, 1e3),
)
def test_every_weight_is_near_and_every_scale_is_positive(kind, block, blocks, columns, seed, spread):
    weight = matrix(block * blocks, columns, seed) * spread
    made = quantize_matrix(weight, kind, block, torch.float32)
    least, most = RANGES[kind]
    assert made.block_size == block
    assert made.scale.shape == (blocks, columns)
    assert bool((made.scale > 0).all())
    assert least <= int(made.values.min()) <= int(made.values.max()) <= most
    largest = weight.reshape(blocks, block, columns).abs().amax(1, keepdim=True)
    error = (made.dequantize() - weight).reshape(blocks, block, columns).abs()
    # Half a step of the coarsest scale that is tried; int4 may clip a weight by a third of the largest.
    assert bool((error <= largest * (0.5 / 127 if kind == "int8" else 0.34) * 1.001).all())


def test_a_search_for_the_scale_beats_the_largest_weight_alone():
    weight = matrix(512, 64)
    blocks = weight.reshape(16, 32, 64)
    plain = blocks.abs().amax(1, keepdim=True) / 7
    by_largest = ((blocks / plain).round().clamp(-8, 7) * plain - blocks).square().mean()
    searched = (quantize_matrix(weight, "int4", 32, torch.float32).dequantize() - weight).square().mean()
    assert searched < 0.85 * by_largest


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_zeros_stays_zero(kind):
    made = quantize_matrix(torch.zeros(32, 4), kind, 32, torch.float16)
    assert torch.equal(made.dequantize(), torch.zeros(32, 4, dtype=torch.float16))


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_what_was_quantised_changes_next_to_nothing(kind):
    once = quantize_matrix(matrix(64, 48), kind, 32, torch.float32).dequantize()
    twice = quantize_matrix(once, kind, 32, torch.float32).dequantize()
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [10, 7])
def test_it_is_what_onnx_dequantises(kind, columns):
    made = quantize_matrix(matrix(64, columns), kind, 32, torch.float32)
    kinds = {"int4": TensorProto.INT4, "int8": TensorProto.INT8}
    stored = made.stored()[kind].numpy().tobytes()
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=32)
    graph = helper.make_graph(
        [node],
        "blockwise",
        [],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, columns])],
        [
            helper.make_tensor("q", kinds[kind], [64, columns], stored, raw=True),
            onnx.numpy_helper.from_array(made.scale.numpy(), "s"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (weight,) = ReferenceEvaluator(model).run(None, {})
    np.testing.assert_array_equal(weight, made.dequantize().numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_weights_file_gives_it_back_and_one_of_another_shape_does_not(kind):
    made = quantize_matrix(matrix(32, 9), kind, 16, torch.float32)
    file = {f"w.{ending}": tensor for ending, tensor in made.stored().items()}
    found = read_matrix("w", (32, 9), file.get)
    assert found is not None
    assert found.kind == kind
    assert torch.equal(found.dequantize(), made.dequantize())
    assert read_matrix("w", (32, 8), file.get) is None
    assert read_matrix("v", (32, 9), file.get) is None
