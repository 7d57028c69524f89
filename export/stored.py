"""The large weights of a bundle, in the dtypes in which it stores them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from safetensors import safe_open
from torch import Tensor

from edgemem.bundle import WEIGHTS, Bundle
from edgemem.errors import BundleError
from edgemem.models.blockwise import QuantizedMatrix, read_matrix
from edgemem.precision import Precision


def half_key(name: str, *, transposed: bool, looked_up: bool) -> str:
    """The name of a 16-bit matrix in the weights file: a table that is not transposed may have its plain name."""
    return f"{name}.transposed" if transposed and looked_up else name


@dataclass
class StoredWeights:
    """How a bundle holds a module's large weights, by their names.

    Attributes:
        matrices: The quantised matrices ``[K, N]``.
        halved: Matrices in 16 bits.
        transposed: For each of both, whether the parameter with its name is the transpose, as ``nn.Linear`` keeps it.
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
        """For each parameter that is not stored unchanged: what the weights file holds instead."""
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
        """float32 values of the parameters, as used when something is multiplied with them."""
        found = {name: tensor.float() for name, tensor in self.halved.items()}
        found |= {name: matrix.dequantize().float() for name, matrix in self.matrices.items()}
        return {name: value.t().contiguous() if self.transposed[name] else value for name, value in found.items()}

    def looked_up(self) -> dict[str, Tensor]:
        """float32 values of the parameters, as used when they are looked up."""
        multiplied = self.multiplied()
        found = {name: multiplied[name] for name in self.halved}
        return found | {name: table.float() for name, table in self.lookups.items()}


def read_stored(bundle: Bundle) -> StoredWeights:
    """The weights that a bundle stores in another form than its module has them.

    Raises:
        BundleError: The weights file does not hold what the manifest says.
    """
    precision = bundle.manifest.precision
    stored = StoredWeights(left=dict(precision.left))
    with safe_open(bundle.file(WEIGHTS), framework="pt") as file:
        names = set(file.keys())

        def read(name: str) -> Any:
            return file.get_tensor(name) if name in names else None

        for name in precision.matrices:
            scale, packed = read(f"{name}.scale"), read(f"{name}.{precision.weights}")
            if scale is None or packed is None:
                raise BundleError(f"{bundle.path}: {WEIGHTS} holds no {name}.scale or no {name}.{precision.weights}.")
            rows = packed.numel() * (2 if precision.weights == "int4" else 1) // scale.shape[1]
            matrix = read_matrix(name, (rows, scale.shape[1]), read)
            if matrix is None:
                raise BundleError(f"{bundle.path}: {name} in {WEIGHTS} is not a matrix of {precision.weights} blocks.")
            stored.matrices[name], stored.transposed[name] = matrix, name in precision.transposed
        for name in precision.halved:
            transposed = name in precision.transposed
            half = read(half_key(name, transposed=transposed, looked_up=name in precision.lookups))
            if half is not None:
                stored.halved[name], stored.transposed[name] = half, transposed
        stored.lookups.update({name: read(name) for name in precision.lookups if name in names})
    return stored
