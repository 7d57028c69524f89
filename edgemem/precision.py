"""The precision in which a bundle computes, and the one in which it stores its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any, Literal, get_args

from edgemem.dtypes import FloatDType, MemoryDType
from edgemem.errors import ExportError
from edgemem.versioned import Fields

QuantType = Literal["int8", "int4"]

DTYPES: dict[str, FloatDType] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}
MEMORY_DTYPES: dict[str, MemoryDType] = {"fp16": "float16", "int8": "int8"}
"""Types that rings may be stored in where the model computes in float32."""
BLOCK_SIZES = (16, 32, 64, 128)
DEFAULT_BLOCK_SIZE = 32
QUANT_RANGES: dict[QuantType, tuple[int, int]] = {"int4": (-8, 7), "int8": (-127, 127)}
LARGEST_QUANTS: dict[QuantType, tuple[float, ...]] = {"int4": (6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 10.0), "int8": (127.0,)}
"""What a block's largest weight may become before it is rounded. Beyond the range it is clipped, and the others get
finer."""
LEAST_ELEMENTS, LEAST_COLUMNS = 1024, 32
"""Weights with fewer elements stay in float32: they cost nothing. Narrower matrices are gates and projections to a few
values: sensitive and small."""
BLOCKWISE_OPSET = 21
"""The first with blockwise DequantizeLinear and 4-bit types."""


@dataclass(frozen=True)
class Precision:
    """What was asked for, and what became of each matrix.

    Attributes:
        dtype: Of weights and matrix products, as the contract names dtypes: ``"float32"``, ``"float16"`` or
            ``"bfloat16"``.
        weights: ``"int8"`` or ``"int4"`` where matrices are stored as scaled integers; ``None``: in ``dtype``.
        block_size: Rows of a matrix that share a scale.
        matrices: Names of the quantised matrices.
        halved: Names of the matrices that a pass over the graphs stored in ``dtype``.
        transposed: Names of the matrices, among both, whose parameter is the transpose, as ``nn.Linear`` keeps it.
        lookups: Names of the tables that are only looked up: they are stored in 16 bits.
        left: Name of every large matrix that was left in ``dtype``, and why.
        memory: Dtype of the rings; ``None``: the one that the model computes in.
    """

    dtype: FloatDType = "float32"
    weights: QuantType | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    matrices: tuple[str, ...] = ()
    halved: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    memory: MemoryDType | None = None

    @classmethod
    def of(
        cls,
        dtype: str | None,
        weights: str | None,
        block_size: int,
        memory: str | None = None,
        *,
        default: FloatDType = "float32",
    ) -> Precision:
        """The precision that options name; ``default`` is the dtype if they name none.

        Raises:
            ExportError: An option has an unknown value.
        """
        if dtype is not None and dtype not in DTYPES:
            raise ExportError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
        if weights is not None and weights not in get_args(QuantType):
            raise ExportError(f"weights {weights!r} is not one of {', '.join(get_args(QuantType))}.")
        if block_size not in BLOCK_SIZES:
            raise ExportError(f"block size {block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}.")
        if memory is not None and memory not in MEMORY_DTYPES:
            raise ExportError(f"memory dtype {memory!r} is not one of {', '.join(MEMORY_DTYPES)}.")
        computed = default if dtype is None else DTYPES[dtype]
        if memory is not None and computed != "float32":
            raise ExportError(
                f"memory dtype {memory!r} is for models that compute in float32; this one computes in {computed}.",
                hint="Leave it out: rings have the model's dtype.",
            )
        stored = None if memory is None else MEMORY_DTYPES[memory]
        return cls(computed, weights, block_size, memory=stored)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, fields: Fields) -> Precision:
        """Read what :meth:`to_json` wrote. The first bundles stored nothing here: they are float32.

        Raises:
            EdgememError: It is malformed; the class is that of the file's format.
        """
        if not fields.values:
            return cls()
        fields.with_defaults({"memory": None}).only(*(field.name for field in dataclass_fields(cls)))
        dtype, weights = fields.text("dtype"), fields.text_or_none("weights")
        memory = fields.text_or_none("memory") if "memory" in fields.values else None
        if dtype not in get_args(FloatDType):
            raise fields.wrong("dtype", f"one of {', '.join(get_args(FloatDType))}")
        if memory not in (None, *get_args(MemoryDType)):
            raise fields.wrong("memory", f"null or one of {', '.join(get_args(MemoryDType))}")
        if weights not in (None, *get_args(QuantType)):
            raise fields.wrong("weights", f"null or one of {', '.join(get_args(QuantType))}")
        return cls(
            dtype=dtype,  # type: ignore[arg-type]
            weights=weights,  # type: ignore[arg-type]
            block_size=fields.integer_or_none("block_size", least=1) or DEFAULT_BLOCK_SIZE,
            matrices=fields.texts("matrices"),
            halved=fields.texts("halved"),
            transposed=fields.texts("transposed"),
            lookups=fields.texts("lookups"),
            left=fields.mapping("left", str, "an object of texts"),
            memory=memory,  # type: ignore[arg-type]
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the manifest."""
        names = {key: list(getattr(self, key)) for key in ("matrices", "halved", "transposed", "lookups")}
        return {**asdict(self), **names, "block_size": self.block_size if self.weights else None}

    @property
    def is_plain(self) -> bool:
        """Whether everything is float32."""
        return self.dtype == "float32" and self.weights is None and self.memory is None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of :func:`~edgemem.export.export_bundle` that ask for this precision."""
        short = {dtype: short for short, dtype in {**DTYPES, **MEMORY_DTYPES}.items()}
        memory = None if self.memory is None else short[self.memory]
        return {
            "dtype": short[self.dtype],
            "weights": self.weights,
            "block_size": self.block_size,
            "memory_dtype": memory,
        }

    def __str__(self) -> str:
        """The precision in one line.

        >>> str(Precision("float16"))
        'float16'
        """
        words: str = self.dtype
        if self.weights is not None:
            noun = "matrix" if len(self.matrices) == 1 else "matrices"
            words += f", {len(self.matrices)} {noun} as {self.weights} in blocks of {self.block_size}"
            if self.dtype == "float32" and self.lookups:
                words += f"; looked up, in 16 bits: {', '.join(self.lookups)}"
        if self.memory is not None:
            words += f"; rings in {self.memory}"
        if self.left:
            words += "; left: " + ", ".join(f"{name} ({reason})" for name, reason in self.left.items())
        return words
