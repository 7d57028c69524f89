"""What two model families need beyond the generic adapter.

All others (mamba, mamba2, falcon_mamba, xlstm, ...) need no entry: their states are found by running the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """How a family differs.

    Attributes:
        new_cache: Makes the cache of a new stream from the model and the batch; ``None`` if the model's own cache can
            be used. If the cache has a method ``before_call``, it gets the number of time steps of every call.
    """

    new_cache: Callable[[nn.Module, int], Any] | None = None


class LayerTensors:
    """Replaces a tensor ``[B, H, L]`` with the layers on its last axis by one tensor per layer.

    RWKV reads and writes ``state[:, :, layer]``: a graph would copy the states of all layers for each layer.

    Args:
        batch: ``B``.
        size: ``H``.
        layers: ``L``.
        dtype: The dtype of the tensors.
        initial: Value at position 0.
    """

    def __init__(self, batch: int, size: int, layers: int, dtype: torch.dtype, initial: float) -> None:
        self.layers = [torch.full((batch, size), initial, dtype=dtype) for _ in range(layers)]
        self.with_time = False

    def __getitem__(self, index: tuple[slice, slice, int]) -> Tensor:
        value = self.layers[index[2]]
        return value[:, None] if self.with_time else value

    def __setitem__(self, index: tuple[slice, slice, int], value: Tensor) -> None:
        self.layers[index[2]] = value


class RwkvState:
    """RWKV's five states of every layer; see the RWKV paper (Peng et al. 2023), equations 14 to 19.

    The channel mix and the time mix each keep the last input; the weighted average keeps its numerator and denominator,
    both divided by the exponential of their running maximum.
    """

    def __init__(self, model: nn.Module, batch: int) -> None:
        config: Any = model.config
        hidden, layers = config.hidden_size, config.num_hidden_layers
        attention = config.attention_hidden_size or hidden
        dtype = next(model.parameters()).dtype
        self.channel_shift = LayerTensors(batch, hidden, layers, dtype, 0.0)
        self.time_shift = LayerTensors(batch, hidden, layers, dtype, 0.0)
        self.numerator = LayerTensors(batch, attention, layers, torch.float32, 0.0)
        self.denominator = LayerTensors(batch, attention, layers, torch.float32, 0.0)
        self.maximum = LayerTensors(batch, attention, layers, torch.float32, -1e30)

    def before_call(self, time: int) -> None:
        """In a step, read the shifts as ``[B, 1, H]``: the model would broadcast ``[B, H]`` across streams."""
        self.channel_shift.with_time = self.time_shift.with_time = time == 1

    def __getitem__(self, index: int | slice) -> Any:
        return [self.channel_shift, self.time_shift, self.numerator, self.denominator, self.maximum][index]


def dynamic_cache(model: nn.Module, batch: int) -> Any:
    """The cache of a model that makes one and does not return it."""
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config)


FAMILIES: dict[str, Family] = {
    "recurrent_gemma": Family(new_cache=dynamic_cache),
    "rwkv": Family(new_cache=RwkvState),
}


def family_of(model_type: str) -> Family:
    """The entry of a family; most have none and need none."""
    return FAMILIES.get(model_type, Family())
