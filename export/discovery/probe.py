"""Calls of an unknown module on random data like the user's example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.contract import InputSpec
from edgemem.dtypes import element_type
from edgemem.errors import ContractError, ProtocolError
from edgemem.origins import Origins, has_nan
from edgemem.protocol import described, raised_at, random_values
from edgemem.streaming.leaves import flatten

_SHAPES = "[B, T] of token ids or [B, T, F] of real values"


@dataclass(frozen=True)
class Example:
    """The user's example, read.

    Attributes:
        specs: The inputs that it shows. ``takes`` holds how many items of each data input belong together: 4 and 1
            where the example has 8 items of one input and 2 of the other.
        units: How often it holds these: 2 in that case.
    """

    specs: tuple[InputSpec, ...]
    units: int

    @classmethod
    def read(
        cls,
        module: nn.Module,
        example: Tensor | Mapping[str, Tensor],
        held: Sequence[str],
        fixed: Sequence[str],
        vocab_size: int | Mapping[str, int] | None,
    ) -> Example:
        """Read the arguments of :func:`edgemem.export.discover`.

        Raises:
            ProtocolError: The example is not a tensor or tensors by name, has no data input, or lacks a name that
                another argument has.
        """
        tensors = dict(example) if isinstance(example, Mapping) else {"": example}
        for name, tensor in tensors.items():
            least = 2 if name not in (*held, *fixed) else 1 if name in held else 0
            if not isinstance(tensor, Tensor) or tensor.ndim < least:
                of = f" of {name!r}" if name else ""
                raise ProtocolError(f"the example{of} must be a tensor {_SHAPES if least == 2 else '[B, ...]'}.")
        given = {*held, *fixed, *(vocab_size if isinstance(vocab_size, Mapping) else ())}
        if unknown := sorted(given - set(tensors)):
            raise ProtocolError(
                f"the example has no input {unknown[0]!r}: it has {', '.join(filter(None, tensors)) or 'no names'}.",
                hint='Pass the example as {"name": tensor, ...}.',
            )
        lengths = {name: tensor.shape[1] for name, tensor in tensors.items() if name not in (*held, *fixed)}
        if not lengths or 0 in lengths.values():
            raise ProtocolError("the example needs a data input with one item or more.")
        units = gcd(*lengths.values())
        specs = []
        for name, tensor in tensors.items():
            role = "held" if name in held else "fixed" if name in fixed else "data"
            takes = lengths[name] // units if name in lengths else 1
            specs.append(_spec(module, name, tensor, role, takes, vocab_size))
        return cls(tuple(specs), units)


def _spec(
    module: nn.Module,
    name: str,
    tensor: Tensor,
    role: Any,
    takes: int,
    vocab_size: int | Mapping[str, int] | None,
) -> InputSpec:
    dtype: Any = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape[{"data": 2, "held": 1, "fixed": 0}[role] :])
    name = name or ("features" if tensor.is_floating_point() else "tokens")
    size = None
    if role != "fixed" and not tensor.is_floating_point() and tensor.dtype != torch.bool:
        size = vocab_size.get(name) if isinstance(vocab_size, Mapping) else vocab_size
        embeddings = (layer.num_embeddings for layer in module.modules() if isinstance(layer, nn.Embedding))
        size = size or next(embeddings, None)
        if size is None:
            raise ProtocolError(f"the number of different ids of {name!r} is not known.", hint="Give vocab_size=.")
    value = _tuples(tensor.tolist()) if role == "fixed" else None
    try:
        return InputSpec(name, shape, dtype, size, role, takes, value=value)
    except ContractError as error:
        raise ProtocolError(error.message, hint=error.hint) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class Probe:
    """Calls a module, and describes what goes wrong.

    Args:
        module: The module.
        specs: Its inputs. ``takes`` is what one step consumes, as far as it is known.
        single: Whether only calls of one step are allowed.
    """

    def __init__(self, module: nn.Module, specs: Sequence[InputSpec], single: bool) -> None:
        self.module = module
        self.specs = tuple(specs)
        self.single = single

    @property
    def name(self) -> str:
        """The module's class."""
        return type(self.module).__name__

    @property
    def data_specs(self) -> tuple[InputSpec, ...]:
        """The inputs that every step consumes."""
        return tuple(spec for spec in self.specs if spec.role == "data")

    @property
    def few(self) -> int:
        """Steps of a short call: several where that is allowed."""
        return 1 if self.single else 3

    def data(self, batch: int, steps: int) -> dict[str, Tensor]:
        """Random data of so many steps, the same at every call."""
        found = {}
        for spec in self.specs:
            generator = torch.Generator().manual_seed(batch * 1000 + steps)
            lead = {"data": (batch, steps * spec.takes), "held": (batch,), "fixed": ()}[spec.role]
            found[spec.name] = random_values(spec, (*lead, *spec.shape), generator)
        return found

    def split(self, data: Mapping[str, Tensor], sizes: Sequence[int]) -> list[dict[str, Tensor]]:
        """Data cut into calls of so many steps."""
        parts = [dict(data) for _ in sizes]
        for spec in self.data_specs:
            cut = torch.split(data[spec.name], [size * spec.takes for size in sizes], dim=1)
            for part, tensor in zip(parts, cut, strict=True):
                part[spec.name] = tensor
        return parts

    def argument(self, data: Mapping[str, Tensor]) -> Any:
        """What ``forward`` gets as ``x``."""
        return data[self.specs[0].name] if len(self.specs) == 1 else dict(data)

    def call(self, data: Mapping[str, Tensor], state: Any) -> tuple[dict[str, Tensor], Any]:
        """One call: its outputs by name, and the new state.

        Raises:
            ProtocolError: It raised an error, or did not return outputs ``[B, N, ...]`` without NaN and a new state.
        """
        call = f"{self.name}.forward on {described(self.specs, data)}"
        with torch.no_grad(), Origins(self.module, find_nan=True) as origins:
            try:
                result = self.module(self.argument(data), state)
            except ProtocolError:
                raise
            except Exception as error:
                place = origins.place(origins.running)
                started = " and no state (None)" if state is None else ""
                raise ProtocolError(
                    f"{call}{started} raised {type(error).__name__}{f' in {place}' if place else ''}: {error}",
                    hint="If it cannot start from None, give state=lambda batch: ..., or the module a method "
                    "initial_state(batch)."
                    if state is None
                    else raised_at(error),
                ) from error
        if not isinstance(result, tuple) or len(result) != 2:
            kinds = [type(part).__name__ for part in result] if isinstance(result, tuple) else type(result).__name__
            raise ProtocolError(f"{call} returned {kinds}, wanted (outputs, new state).")
        outputs = self._outputs(call, result[0], data[self.data_specs[0].name].shape[0])
        if any(has_nan(tensor) for tensor in (*outputs.values(), *tensors(result[1]))):
            place = origins.place(origins.first_nan)
            raise ProtocolError(
                f"{call} gave NaN{f', which {place} made first' if place else ''}.",
                hint="On standard normal data: check the weights, divisions and logarithms.",
            )
        return outputs, result[1]

    def _outputs(self, call: str, output: Any, batch: int) -> dict[str, Tensor]:
        """The outputs of a call by name: the names of a dict or a namedtuple, else default names."""
        if isinstance(output, Tensor):
            name = "predictions" if element_type(self.data_specs[0].dtype).is_float else "logits"
            found: dict[str, Any] = {name: output}
        elif isinstance(output, Mapping):
            found = dict(output)
        elif isinstance(output, tuple) and hasattr(output, "_asdict"):
            found = output._asdict()
        elif isinstance(output, tuple | list):
            found = {f"output_{index}" if index else "output": value for index, value in enumerate(output)}
        else:
            found = {}
        if not found or not all(isinstance(value, Tensor) for value in found.values()):
            kinds = {name: type(value).__name__ for name, value in found.items()} or type(output).__name__
            raise ProtocolError(
                f"{call} returned the outputs {kinds}, wanted a tensor, or tensors in a tuple or a dict."
            )
        for name, value in found.items():
            if value.ndim < 2 or value.shape[0] != batch:
                raise ProtocolError(
                    f"{call} gave {name!r} of shape {list(value.shape)}, wanted [{batch}, N, ...].",
                    hint="Every output has the streams on its first axis and its items in time on its second.",
                )
        return found


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested containers and dataclasses."""
    return [leaf for _, leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]
