"""What each target is and takes: memory, types, opset, operators. Data; :mod:`edgemem.export.targets.lint` reads it.

What is known of TensorRT-RTX was tried on its own parser and compiler (1.7). What is known of classic TensorRT comes
from NVIDIA's release notes and support matrices, and of Jetson boards from their data sheets: nothing of that was run
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from edgemem.errors import EngineError
from edgemem.runtimes.trt.flavour import Flavour, version_tuple

GIB = 1 << 30
Version = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """One thing to build for.

    Attributes:
        name: What users call it.
        title: What it is, for people.
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        tensorrt: Oldest version that it comes with, which the graph is checked against.
        compute_capabilities: Of its GPU, or of every GPU that the engine is to run on.
        element_types: ONNX element types that its TensorRT and GPU compute with, by ONNX's names.
        no_products: Those of them that it multiplies no matrices in.
        max_opset: Newest ONNX opset that its parser is documented to read; ``None``: no limit was found.
        missing_operators: ONNX operators that its parser does not know → the way out.
        board: What a board's firmware says of itself contains this; ``""`` where no board is meant.
        memory_bytes: Memory of the smallest board of that name, which CPU and GPU share; 0 where unknown.
        workspace_bytes: Scratch memory that an engine may use if the user does not say.
        precision: What to export for it; ``""`` where nothing speaks against float32.
        system: The JetPack release that brings this TensorRT.
    """

    name: str
    title: str
    flavour: str
    tensorrt: Version
    compute_capabilities: tuple[str, ...]
    element_types: frozenset[str]
    max_opset: int | None
    missing_operators: Mapping[str, str]
    no_products: frozenset[str] = frozenset()
    board: str = ""
    memory_bytes: int = 0
    workspace_bytes: int | None = None
    precision: str = ""
    system: str = ""

    @property
    def is_device(self) -> bool:
        """Whether engines for it can be built on such a device only."""
        return bool(self.board)


_EVERYWHERE = frozenset({"FLOAT", "FLOAT16", "DOUBLE", "INT8", "INT32", "INT64", "BOOL", "UINT8"})
_SINCE: tuple[tuple[Version, frozenset[str]], ...] = (
    ((8, 0), frozenset({"BFLOAT16", "INT4"})),
    ((8, 9), frozenset({"FLOAT8E4M3FN"})),
    ((10, 0), frozenset({"FLOAT4E2M1", "FLOAT8E8M0"})),
)
"""Compute capability → the types that GPUs have from there on."""

_NO_PRODUCTS: tuple[tuple[Version, frozenset[str]], ...] = (((8, 0), frozenset({"FLOAT"})),)
"""Compute capability → types that TensorRT-RTX multiplies no matrices in on GPUs before it."""

_OPSETS: tuple[tuple[Version, int], ...] = (
    ((10, 3), 21),  # documented to 20; the blockwise DequantizeLinear of 21 is there since 10.0
    ((10, 9), 22),
    ((10, 13), 24),
    ((11, 0), 25),
)
"""Version of classic TensorRT → newest opset of its parser."""

_DYNAMIC = "Quantise weights only (--weights int8 or int4): they are dequantised by DequantizeLinear."
_STATIC = "Rewrite the model with tensor operations of fixed shape."
_WAY_OUT = {
    "DynamicQuantizeLinear": _DYNAMIC,
    "MatMulInteger": _DYNAMIC,
    "ConvInteger": _DYNAMIC,
    "QLinearConv": _DYNAMIC,
    "QLinearMatMul": _DYNAMIC,
    "Multinomial": "Sample on the host, or let the engine pick the largest outputs (--top-k).",
    "Bernoulli": "Draw random numbers on the host.",
    "CumProd": "Sum logarithms with a triangular MatMul.",
    "BitShift": "Multiply or divide by a power of two.",
    "SwiGLU": "Write it as x · Sigmoid(x) · y.",
}


def _missing(*names: str) -> Mapping[str, str]:
    return MappingProxyType({name: _WAY_OUT.get(name, _STATIC) for name in names})


_RTX_MISSING = _missing(
    *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    *("CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "DeformConv"),
    *("Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix"),
    *("Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement"),
    *("QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
    *("SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss"),
    *("SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
)
_MISSING_BEFORE: tuple[tuple[Version, Mapping[str, str]], ...] = (
    ((10, 4), _missing("BlackmanWindow", "HannWindow", "HammingWindow")),
    ((10, 5), _missing("STFT")),
)
"""Version of classic TensorRT → operators that came with it."""


def element_types(compute_capabilities: tuple[str, ...]) -> frozenset[str]:
    """The types that every one of these GPUs computes with."""
    found = _EVERYWHERE.union(*(types for _, types in _SINCE))
    for name in compute_capabilities:
        here = _EVERYWHERE.union(*(types for since, types in _SINCE if version_tuple(name) >= since))
        found &= here
    return found


def max_opset(tensorrt: Version) -> int:
    """Newest opset that a version of classic TensorRT is documented to read."""
    return max((opset for since, opset in _OPSETS if tensorrt >= since), default=_OPSETS[0][1])


def missing_operators(tensorrt: Version) -> Mapping[str, str]:
    """Operators that the parser of a version of classic TensorRT does not know."""
    later = {name: way for since, names in _MISSING_BEFORE if tensorrt < since for name, way in names.items()}
    return MappingProxyType({**_RTX_MISSING, **later})


def _jetson(
    name: str, title: str, board: str, *, tensorrt: Version, capability: str, memory: int, workspace: int, system: str
) -> Target:
    return Target(
        name=name,
        title=title,
        flavour="tensorrt",
        tensorrt=tensorrt,
        compute_capabilities=(capability,),
        element_types=element_types((capability,)),
        max_opset=max_opset(tensorrt),
        missing_operators=missing_operators(tensorrt),
        board=board,
        memory_bytes=memory,
        workspace_bytes=workspace,
        precision="--dtype fp16, with --weights int8 or int4 where that holds up",
        system=system,
    )


_ORIN = {"tensorrt": (10, 3), "capability": "8.7", "system": "JetPack 6.1 or later"}

LOCAL = Target(
    "local", "the GPU of this machine", "tensorrt", (10, 3), (), element_types(()), 21, missing_operators((10, 3))
)
RTX = Target(
    "rtx",
    "RTX GPUs from Ampere on",
    "tensorrt_rtx",
    (1, 2),
    # An engine for all of them may hold what only some compute with: those that do not refuse it.
    (),
    element_types(("8.9",)) | element_types(("12.0",)),
    None,
    _RTX_MISSING,
)
JETSONS: tuple[Target, ...] = (
    _jetson("orin-nano", "Jetson Orin Nano", "Orin Nano", memory=4 * GIB, workspace=GIB // 2, **_ORIN),  # type: ignore[arg-type]
    _jetson("orin-nx", "Jetson Orin NX", "Orin NX", memory=8 * GIB, workspace=GIB, **_ORIN),  # type: ignore[arg-type]
    _jetson("orin-agx", "Jetson AGX Orin", "AGX Orin", memory=32 * GIB, workspace=4 * GIB, **_ORIN),  # type: ignore[arg-type]
    _jetson(
        "thor",
        "Jetson AGX Thor",
        "Thor",
        tensorrt=(10, 13),
        capability="11.0",
        memory=128 * GIB,
        workspace=8 * GIB,
        system="JetPack 7.0 or later",
    ),
)
TARGETS: dict[str, Target] = {target.name: target for target in (LOCAL, RTX, *JETSONS)}


def narrowed(target: Target, compute_capabilities: tuple[str, ...]) -> Target:
    """The target for these GPUs alone.

    Raises:
        EngineError: It cannot be narrowed: classic TensorRT builds for the GPU it runs on.
    """
    if not compute_capabilities:
        return target
    if target.flavour != "tensorrt_rtx":
        raise EngineError(
            f"--compute-capability is for --target rtx: an engine for {target.name} is for the GPU it is built on."
        )
    oldest = min(version_tuple(name) for name in compute_capabilities)
    return replace(
        target,
        compute_capabilities=compute_capabilities,
        element_types=element_types(compute_capabilities),
        no_products=frozenset().union(*(types for since, types in _NO_PRODUCTS if oldest < since)),
    )


def of_flavour(flavour: Flavour) -> Target:
    """The target ``local`` as it is: by this machine's TensorRT and GPU."""
    if flavour.is_rtx:
        return RTX
    version = version_tuple(flavour.version)
    gpus = (flavour.cuda.compute_capability,) if flavour.cuda.compute_capability else ()
    return replace(
        LOCAL,
        title=flavour.cuda.device or LOCAL.title,
        tensorrt=version,
        compute_capabilities=gpus,
        element_types=element_types(gpus),
        max_opset=max_opset(version),
        missing_operators=missing_operators(version),
    )
