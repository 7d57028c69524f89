"""In what precision a bundle computes and stores its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from torch import Tensor

from edgemem.contract import FloatDType
from edgemem.errors import BundleError, ExportError
from edgemem.models.blockwise import QuantizedMatrix, QuantType

DTYPES: dict[str, FloatDType] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}
BLOCK_SIZES = (16, 32, 64, 128)
DEFAULT_BLOCK_SIZE = 32
LEAST_ELEMENTS = 1024
"""Weights with fewer elements stay in float32: they cost nothing."""


@dataclass(frozen=True)
class Precision:
    """What was asked for, and what became of each matrix.

    Attributes:
        dtype: Of weights and matrix products, as the contract names dtypes: ``"float32"``, ``"float16"`` or
            ``"bfloat16"``.
        weights: ``"int8"`` or ``"int4"`` where matrices are stored as whole numbers; ``None``: in ``dtype``.
        block_size: Rows of a matrix that share a scale.
        matrices: Names of the quantised matrices.
        halved: Names of the matrices that a pass over the graphs stored in ``dtype``.
        transposed: Those of both whose parameter is the transpose, as ``nn.Linear`` keeps it.
        lookups: Names of the tables that are only looked up: they are stored in 16 bits.
        left: Name of every large matrix that was left in ``dtype``, and why.
    """

    dtype: FloatDType = "float32"
    weights: QuantType | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    matrices: tuple[str, ...] = ()
    halved: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, dtype: str | None, weights: str | None, block_size: int, *, default: FloatDType = "float32"
    ) -> Precision:
        """The precision that options name; ``default`` is the dtype where they name none.

        Raises:
            ExportError: There is none of that name, or the block size is none of 16, 32, 64 and 128.
        """
        if dtype is not None and dtype not in DTYPES:
            raise ExportError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
        if weights is not None and weights not in get_args(QuantType):
            raise ExportError(f"weights {weights!r} is not one of {', '.join(get_args(QuantType))}.")
        if block_size not in BLOCK_SIZES:
            raise ExportError(f"block size {block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}.")
        return cls(default if dtype is None else DTYPES[dtype], weights, block_size)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> Precision:
        """Read what :meth:`to_json` wrote; bundles of before it was written are float32.

        Raises:
            BundleError: It is malformed.
        """
        if not data:
            return cls()
        try:
            if data["dtype"] not in get_args(FloatDType) or data["weights"] not in (None, *get_args(QuantType)):
                raise ValueError(f"no precision of dtype {data['dtype']!r} and weights {data['weights']!r}")
            return cls(
                dtype=data["dtype"],
                weights=data["weights"],
                block_size=int(data["block_size"] or DEFAULT_BLOCK_SIZE),
                matrices=tuple(data["matrices"]),
                halved=tuple(data["halved"]),
                transposed=tuple(data["transposed"]),
                lookups=tuple(data["lookups"]),
                left=dict(data["left"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the manifest's precision is malformed: {type(error).__name__}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the manifest."""
        names = {key: list(getattr(self, key)) for key in ("matrices", "halved", "transposed", "lookups")}
        return {**asdict(self), **names, "block_size": self.block_size if self.weights else None}

    @property
    def is_plain(self) -> bool:
        """Whether all is float32."""
        return self.dtype == "float32" and self.weights is None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of :func:`~edgemem.export.export_bundle` that ask for it."""
        short = next(short for short, dtype in DTYPES.items() if dtype == self.dtype)
        return {"dtype": short, "weights": self.weights, "block_size": self.block_size}


def half_key(name: str, *, transposed: bool, looked_up: bool) -> str:
    """Under which name the weights file holds a matrix in 16 bits: a table of its name may lie there the other way."""
    return f"{name}.transposed" if transposed and looked_up else name


@dataclass
class StoredWeights:
    """How a bundle holds a module's large weights, by their names.

    Attributes:
        matrices: The quantised matrices ``[K, N]``.
        halved: Matrices in 16 bits.
        transposed: For each of both, whether the parameter of its name is the transpose, as ``nn.Linear`` keeps it.
        lookups: Tables that are only looked up, in 16 bits.
        left: Large matrices that stay as they are, and why.
    """

    matrices: dict[str, QuantizedMatrix] = field(default_factory=dict)
    halved: dict[str, Tensor] = field(default_factory=dict)
    transposed: dict[str, bool] = field(default_factory=dict)
    lookups: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def described(self, precision: Precision) -> Precision:
        """``precision`` with the names filled in."""
        return replace(
            precision,
            matrices=tuple(sorted(self.matrices)),
            transposed=tuple(sorted(name for name, transposed in self.transposed.items() if transposed)),
            halved=tuple(sorted(self.halved)),
            lookups=tuple(sorted(self.lookups)),
            left=dict(sorted(self.left.items())),
        )

    def files(self) -> dict[str, dict[str, Tensor]]:
        """For each parameter that is not stored as it is: what the weights file holds instead."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, matrix in self.matrices.items():
            found[name] = {f"{name}.{ending}": tensor for ending, tensor in matrix.stored().items()}
        for name, tensor in self.halved.items():
            key = half_key(name, transposed=self.transposed[name], looked_up=name in self.lookups)
            found.setdefault(name, {})[key] = tensor
        for name, tensor in self.lookups.items():
            found.setdefault(name, {})[name] = tensor
        return found

    def multiplied(self) -> dict[str, Tensor]:
        """Values of the parameters, as they are when something is multiplied with them: float32."""
        found = {name: tensor.float() for name, tensor in self.halved.items()}
        found |= {name: matrix.dequantize().float() for name, matrix in self.matrices.items()}
        return {name: value.t().contiguous() if self.transposed[name] else value for name, value in found.items()}

    def looked_up(self) -> dict[str, Tensor]:
        """Values of the parameters, as they are when they are looked up: float32."""
        multiplied = self.multiplied()
        found = {name: multiplied[name] for name in self.halved}
        return found | {name: table.float() for name, table in self.lookups.items()}
