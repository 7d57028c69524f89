"""Attention of fixed size for every transformers model that looks up its attention function by name.

A model keeps its projections, norms, rotary layout, caps and scaling. What it passes to its attention function is
attended to with the memories of :mod:`edgemem.export.hf.attention_layer` instead of a growing cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.errors import ExportError
from edgemem.export.hf.attention_calls import SHIFT, AttentionCall, implementation, record_calls, register
from edgemem.export.hf.attention_layer import AttentionLayer
from edgemem.export.hf.bound import Bound, check_bound, max_positions, span
from edgemem.export.hf.layer_positions import check_positions, layer_rotation
from edgemem.export.hf.reference import dense_attention
from edgemem.export.hf.rotary import RotaryEmbeddings
from edgemem.memories.clock import Clock

_STREAM, _REFERENCE = "edgemem", "edgemem_reference"
_LAYERS = "edgemem_layers"


class AttentionLayers:
    """All attention layers of a model, with a bound on each.

    Args:
        model: A transformers model in evaluation mode. Its rotary embeddings and its attention function are replaced.
        bound: What bounds caches that grow.

    Raises:
        ExportError: The attention cannot be expressed with states, a cache grows and has no bound, or the bound does
            not suit the model.
    """

    def __init__(self, model: nn.Module, bound: Bound | None = None) -> None:
        register()
        _register()
        self.model = model
        calls = record_calls(model)
        check_bound(type(model).__name__, [call.name for call in calls if call.window is None], bound)
        moved = record_calls(model, SHIFT) if calls else []
        check_positions(model, calls, moved, max_positions(bound))
        self.rotary = RotaryEmbeddings(model, span([call.window for call in calls], bound))
        self.layers: list[AttentionLayer] = []
        for prefix, call, later in zip(_prefixes(calls), calls, moved, strict=True):
            rotation = layer_rotation(call, later, self.rotary.tables, bound) if call.window is None else None
            self.layers.append(AttentionLayer(prefix, call, bound, rotation))
        for layer in self.layers:
            layer.module.__dict__[_LAYERS] = self
        self.rotary.install()
        self._past: Mapping[str, Tensor] | None = None
        self._clock: Clock | None = None
        self._new: dict[str, Tensor] = {}
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self.layers)

    def states(self) -> tuple[StateSpec, ...]:
        """The states of all layers."""
        return tuple(spec for layer in self.layers for spec in layer.states())

    def bind(self, past: Mapping[str, Tensor] | None, positions: Tensor) -> None:
        """Prepare for a call of the model.

        Args:
            past: The states by name (others are ignored); ``None`` at position 0.
            positions: Positions of the call's tokens, int64 ``[B, T]``.
        """
        self._past = past
        self._clock = Clock(positions[:, 0], positions.shape[1])
        self._new = {}
        self._turn = 0

    def collect(self) -> dict[str, Tensor]:
        """The new value of every state after the call: the new entries of rings, the whole value of others."""
        if self._turn != len(self.layers):
            raise ExportError(f"the model called {self._turn} of its {len(self.layers)} attention layers.")
        new, self._new, self._past = self._new, {}, None
        return new

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Let the model's layers read the memories, and keep keys and values out of its cache, within the context."""
        with implementation(self.model, _STREAM), _caches_keep_nothing():
            yield

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Let the model attend over a whole sequence with its own code, under the same bound, within the context."""
        with self.rotary.in_double(), implementation(self.model, _REFERENCE):
            self._turn = 0
            yield

    def _next(self, module: nn.Module) -> AttentionLayer:
        layer = self.layers[self._turn % len(self.layers)]
        if layer.module is not module:
            raise ExportError(
                f"{layer.name} was next, but a {type(module).__name__} attends: the order of layers changed."
            )
        self._turn += 1
        return layer


@contextlib.contextmanager
def _caches_keep_nothing() -> Iterator[None]:
    """Let every cache return the keys and values of the call without keeping them, within the context."""
    from transformers.cache_utils import Cache

    kept = Cache.update

    def give_back(_: Cache, key_states: Tensor, value_states: Tensor, *__: Any, **___: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    Cache.update = give_back  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Cache.update = kept  # type: ignore[method-assign]


def _layers_of(module: nn.Module) -> AttentionLayers:
    layers: AttentionLayers = module.__dict__[_LAYERS]
    return layers


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of streams, as transformers calls it."""
    layers = _layers_of(module)
    assert layers._clock is not None
    out, new = layers._next(module).attend(layers._clock, layers._past, query, key, value, softcap, s_aux)
    layers._new.update(new)
    return out.transpose(1, 2).contiguous(), None


def _attend_reference(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """The attention function of whole sequences, as transformers calls it."""
    layer = _layers_of(module)._next(module)
    return dense_attention(module, query, key, value, attention_mask, layer.memory, layer.rotation, **options)


def _register() -> None:
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_STREAM, _attend)  # it has no mask function: such a model gets no mask
    AttentionInterface.register(_REFERENCE, _attend_reference)
    AttentionMaskInterface.register(_REFERENCE, eager_mask)


def _prefixes(calls: list[AttentionCall]) -> list[str]:
    """The layers' own numbers; if layers share a module, the numbers of their calls."""
    numbers = [getattr(call.module, "layer_idx", None) for call in calls]
    if len(set(numbers)) < len(numbers) or any(not isinstance(number, int) or number < 0 for number in numbers):
        numbers = list(range(len(calls)))
    return [str(number) for number in numbers]
