"""Reading an ONNX file that others wrote, and refusing what is not one, with the way that works instead."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from edgemem.dtypes import ELEMENT_TYPES
from edgemem.errors import BundleError, ExportError
from edgemem.external_data import external_files
from edgemem.files import inside, read_file

_MOST_BYTES = 2 << 30  # of a protocol buffer
_FACTORY = "Export it from torch: edgemem export package.module:factory --out BUNDLE (docs/own-model.md)."
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x80", "a pickle: weights or objects of Python, without a graph", _FACTORY),
    (0, b"version https://git-lfs", "a pointer of Git LFS: the file itself was not fetched", "Run: git lfs pull"),
    (0, b"\x89HDF", "an HDF5 file (Keras)", "Convert it with tf2onnx, and adopt what that writes."),
    (4, b"TFL3", "a TensorFlow Lite model", "Convert it with: python -m tf2onnx.convert --tflite FILE --output X.onnx"),
    (4, b"ORTM", "a model in ONNX Runtime's own format", "Adopt the .onnx file that it was made from."),
    (8, b'{"', "a safetensors file: weights without a graph", _FACTORY),
    (
        0,
        b"<",
        "an XML or HTML file",
        "Adopt the .onnx file from which it was converted, or fetch it again.",
    ),
)


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph as its file declares it.

    Attributes:
        name: Its name.
        dtype: A contract's dtype.
        dims: Sizes; a text or ``None`` for one that a call chooses. ``None``: the file does not say how many axes.
    """

    name: str
    dtype: str
    dims: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        """For instance ``state float32 [2, batch, 128]``."""
        dims = "of unknown shape" if self.dims is None else f"[{', '.join(str(d or '?') for d in self.dims)}]"
        return f"{self.name} {self.dtype} {dims}"


def read_model(path: Path) -> ir.Model:
    """The model in an ONNX file, its weights not yet read.

    Raises:
        ExportError: It is not an ONNX file, or data that it refers to are missing or lie outside its folder.
    """
    try:
        content = read_file(path, _MOST_BYTES)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}.") from error
    _refuse_others(path, content)
    try:
        used = external_files(content)
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise many kinds of errors
        raise ExportError(
            f"{path} is not an ONNX file, or is damaged: {error or type(error).__name__}.", hint="Fetch it again."
        ) from error
    if not model.graph.outputs:
        raise ExportError(f"{path} is not an ONNX file: it has no graph with outputs.")
    for name in sorted(used):
        _check_external(path, name)
    RemoveInitializersFromInputsPass()(model)
    return model


def _refuse_others(path: Path, content: bytes) -> None:
    """Refuse files of other kinds by what they begin with.

    Raises:
        ExportError: Names the kind, and the way that works.
    """
    what, hint = "", ""
    if content.startswith(b"PK"):
        what, hint = _zip_kind(content), _FACTORY
    elif not content:
        what, hint = "empty", "Fetch it again."
    for at, magic, kind, way in _MAGIC:
        if not what and content[at : at + len(magic)] == magic:
            what, hint = kind, way
    if what:
        raise ExportError(f"{path} is not an ONNX file: it is {what}.", hint=hint)


def _zip_kind(content: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return "a damaged ZIP archive"
    if any("/code/" in name for name in names):
        return "a TorchScript archive, which torch alone can read"
    if any(name.endswith("data.pkl") for name in names):
        return "a torch checkpoint: weights without a graph"
    return "a ZIP archive"


def _check_external(path: Path, name: str) -> None:
    try:
        found = inside(path.parent, name)
    except BundleError as error:
        raise ExportError(
            f"{path} refers to data in {name!r}, which is not a file in its folder.",
            hint="onnx.save(model, path, save_as_external_data=True) writes the data beside the model.",
        ) from error
    if not found.is_file():
        raise ExportError(
            f"{path} refers to data in {name!r}, which is missing.", hint=f"Put {name} into {path.parent or '.'}."
        )


def graph_tensors(model: ir.Model) -> tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]:
    """The inputs and outputs of a model.

    Raises:
        ExportError: One is no tensor, or of a dtype that a contract does not know.
    """
    return tuple(map(_tensor, model.graph.inputs)), tuple(map(_tensor, model.graph.outputs))


def _tensor(value: ir.Value) -> GraphTensor:
    if not isinstance(value.name, str) or not value.name:
        raise ExportError(f"an input or output is called {value.name!r}, wanted text.", hint="The file is damaged.")
    if not isinstance(value.type, ir.TensorType):
        raise ExportError(f"{value.name} is {value.type or 'of no declared type'}, wanted a tensor.")
    number = int(value.type.dtype)
    dtype = next((element.name for element in ELEMENT_TYPES.values() if element.onnx == number), None)
    if dtype is None:
        known = ", ".join(ELEMENT_TYPES)
        raise ExportError(f"{value.name} has the dtype {value.type.dtype.name.lower()}, known are {known}.")
    shape = value.shape
    dims = None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)
    return GraphTensor(value.name or "", dtype, dims)
