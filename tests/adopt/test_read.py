"""What is not an ONNX file is recognised, and the error says which way works."""

import io
import pickle
import zipfile

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgemem.adopt.read import graph_tensors, read_model
from edgemem.errors import ExportError
from tests.adopt.models import LEAKY, model, write


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind", "way"),
    [
        (b"", "empty", "Fetch it again"),
        (b"these are words", "not an ONNX file", "Fetch it again"),
        (pickle.dumps([1]), "a pickle", "edgemem export package.module:factory"),
        (zipped("m/code/__torch__.py", "m/data.pkl"), "a TorchScript archive", "edgemem export package.module:factory"),
        (zipped("m/data.pkl"), "a torch checkpoint", "edgemem export package.module:factory"),
        (zipped("m/readme"), "a ZIP archive", "edgemem export"),
        (b"PK", "a damaged ZIP archive", "edgemem export"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model", "tf2onnx"),
        (b"\x1c\0\0\0ORTM", "ONNX Runtime's own format", ".onnx file"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a": 1}', "a safetensors file", "edgemem export"),
        (b"\x89HDF\r\n", "an HDF5 file", "tf2onnx"),
        (b"<!DOCTYPE html>", "an XML or HTML file", "fetch it again"),
    ],
)
def test_other_files_are_named_with_the_way_that_works(tmp_path, content, kind, way):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError) as caught:
        read_model(path)
    assert kind in caught.value.message
    assert "not an ONNX file" in caught.value.message
    assert way in (caught.value.hint or "")


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ExportError, match="cannot be read"):
            read_model(path)


def with_external_data(path, location):
    made = model(LEAKY)
    made.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    onnx.external_data_helper.set_external_data(made.graph.initializer[0], location, offset=0, length=16)
    made.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(made.SerializeToString())
    return path


def test_external_data_must_be_there_and_inside_the_folder(tmp_path):
    path = with_external_data(tmp_path / "a.onnx", "weights.bin")
    with pytest.raises(ExportError, match=r"'weights.bin', which is missing"):
        read_model(path)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert read_model(path).graph.outputs
    for location in ("../weights.bin", "/etc/passwd"):
        with pytest.raises(ExportError, match="not a file in its folder"):
            read_model(with_external_data(tmp_path / "b.onnx", location))


def test_tensors_have_the_dtypes_and_sizes_that_the_file_declares(tmp_path):
    inputs, outputs = graph_tensors(read_model(write(tmp_path / "a.onnx", LEAKY)))
    assert [str(tensor) for tensor in (*inputs, *outputs)] == [
        "x float32 [batch, 4]",
        "mem float32 [batch, 4]",
        "y float32 [batch, 4]",
        "mem_out float32 [batch, 4]",
    ]


def test_a_name_that_is_not_text_is_refused(tmp_path):
    content = model(LEAKY).SerializeToString().replace(b"mem_out", b"mem_o\xfft")
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="wanted text"):
        graph_tensors(read_model(tmp_path / "m.onnx"))


def test_a_dtype_that_no_contract_knows_is_refused(tmp_path):
    path = write(tmp_path / "a.onnx", "m (double[1] x) => (double[1] y) { y = Tanh(x) }")
    with pytest.raises(ExportError, match="x has the dtype double"):
        graph_tensors(read_model(path))


def test_weights_that_are_also_inputs_are_not_inputs(tmp_path):
    made = model(LEAKY.replace("float[batch, 4] mem)", "float[batch, 4] mem, float[4] w)"))
    made.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    onnx.save(made, tmp_path / "a.onnx")
    inputs, _ = graph_tensors(read_model(tmp_path / "a.onnx"))
    assert [tensor.name for tensor in inputs] == ["x", "mem"]
