"""Weights in fewer bits and other opsets, with what that changes in the report."""

import numpy as np
import onnx
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt, recheck
from edgemem.adopt.narrow import quantized
from edgemem.errors import ExportError, VerificationError
from tests.adopt.models import FILTER, LEAKY, MASK, SIZE, model, write, write_dense


@pytest.fixture
def dense(tmp_path):
    return write_dense(tmp_path / "dense.onnx")


def adopted(path, **options):
    return adopt(path, path.parent / "bundle", AdoptOptions(steps=40, **options))


@pytest.mark.parametrize(
    ("options", "most", "words"),
    [
        ({"dtype": "fp16"}, 0.01, "float16"),
        ({"weights": "int8"}, 0.03, "float32, 2 matrices as int8 in blocks of 32"),
        ({"weights": "int4"}, 0.3, "float32, 2 matrices as int4 in blocks of 32"),
        ({"dtype": "fp16", "weights": "int8"}, 0.04, "float16, 2 matrices as int8 in blocks of 32"),
    ],
)
def test_weights_in_fewer_bits_are_smaller_and_the_change_is_reported(dense, options, most, words):
    plain = adopted(dense)
    small = adopt(dense, dense.parent / "small", AdoptOptions(steps=40, **options))
    found = small.manifest.verification
    assert str(small.manifest.precision) == words
    assert small.weights_bytes < 0.6 * plain.weights_bytes
    assert 0 < found["change"] <= most
    assert found["change_tolerance"] == pytest.approx(most)
    again = recheck(small, [dense], 40)
    assert (again.change, again.change_tolerance) == (found["change"], found["change_tolerance"])
    with edgemem.open(small.path) as session:
        assert session.stream().step(np.zeros((1, SIZE), np.float32)).dtype == np.float32


def test_what_changes_too_much_is_not_written(dense):
    made = onnx.load(dense)
    wide = onnx.numpy_helper.to_array(made.graph.initializer[0]).copy()
    wide[0, :] *= 1e4  # w [N, K] is a transpose: one row has large weights, and scales follow the blocks of each row
    wide[:, 0] *= 1e4
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(wide, "w"))
    onnx.save(made, dense)
    with pytest.raises(VerificationError, match=r"y changes by .*% of its standard deviation in this precision"):
        adopted(dense, weights="int4")
    assert not (dense.parent / "bundle").exists()


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_the_nearest_for_their_scale(bits):
    matrix = np.random.default_rng(1).standard_normal((64, 40)).astype(np.float32)
    matrix[:32, 0] = 0
    values, scale = quantized(matrix, 32, "int4" if bits == 4 else "int8", np.float32)
    wide = values.astype(np.float32) * np.repeat(scale, 32, axis=0)
    least, most = (-8, 7) if bits == 4 else (-127, 127)
    clipped = np.clip(np.rint(matrix / np.repeat(scale, 32, axis=0)), least, most)
    np.testing.assert_array_equal(values, clipped)
    assert (scale > 0).all()
    assert not wide[:32, 0].any()
    assert np.abs(wide - matrix).std() / matrix.std() < (0.12 if bits == 4 else 0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int8"}, "no matrix of a product can be stored so"),
        ({"dtype": "fp16"}, "no large weight"),
        ({"opset": 5}, "onnx does not convert the graph from opset 17 to 5"),
    ],
)
def test_a_model_that_cannot_be_stored_so_says_why(tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        adopted(write(tmp_path / "leaky.onnx", LEAKY), **options)


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"weights": "int2"}])
def test_unknown_precisions_are_refused(options):
    with pytest.raises(ExportError, match="is not one of"):
        AdoptOptions(**options)


def test_a_graph_is_converted_to_another_opset(dense):
    bundle = adopted(dense, opset=21)
    assert onnx.load(bundle.path / "model.onnx", load_external_data=False).opset_import[0].version == 21
    assert bundle.manifest.verification["largest_difference"] <= 1e-6


def test_stages_of_two_opsets_get_the_newer_one(tmp_path):
    old = model(FILTER)
    old.opset_import[0].version = 15
    onnx.save(old, tmp_path / "filter.onnx")
    files = [write(tmp_path / "mask.onnx", MASK), tmp_path / "filter.onnx"]
    options = AdoptOptions(between="spectral-mask", takes=4, context=12, steps=20)
    bundle = adopt(files, tmp_path / "bundle", options)
    assert bundle.manifest.verification["largest_difference"] == 0
    assert onnx.load(bundle.path / "model.onnx").opset_import[0].version == 17
