"""Replaces the recurrences of a model while it is called: by the scans and blocks of :mod:`edgemem.export.hf.scans`.

A function is found by its name in the model's own module: no model family is named.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.export.hf.recurrence_sites import (
    STEPS,
    delta_rule,
    duality_chunk,
    selective_chunk,
    selective_step,
    weighted_past,
)
from edgemem.export.hf.scans import gated_delta_rule, rwkv_linear_attention, selective_scan, state_space_duality

Function = Callable[..., Any]


class Recurrences:
    """Replaces the recurrences of one model while it is called.

    Args:
        model: The model whose modules are searched for functions to replace.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = {sys.modules[type(module).__module__] for module in model.modules()}
        self._chunk: dict[str, Function] = {
            "mamba_selective_scan": self._selective_scan,
            "mamba2_chunk_scan": duality_chunk(state_space_duality),
            "torch_chunk_gated_delta_rule": delta_rule(gated_delta_rule),
            "chunk_kimi_delta_attention": delta_rule(gated_delta_rule),
            "rwkv_linear_attention": weighted_past(rwkv_linear_attention),
        }
        self._limits: dict[int, tuple[float, float]] = {
            layer: tuple(limit)
            for module in model.modules()
            if (limit := getattr(module, "time_step_limit", None)) is not None
            and isinstance(layer := getattr(module, "layer_idx", None), int)
            and tuple(limit) != (0.0, float("inf"))
        }
        self._layer, self._head = 0, 0
        self._state: Tensor | None = None

    def __bool__(self) -> bool:
        """Whether the model has a known recurrence over a chunk."""
        return any(hasattr(module, name) for module in self._modules for name in self._chunk)

    @property
    def loop(self) -> bool:
        """Whether any of them is a loop over the time steps."""
        names = self._chunk.keys() - {"mamba2_chunk_scan"}
        return any(hasattr(module, name) for module in self._modules for name in names)

    @contextlib.contextmanager
    def of_chunk(self, cache: Any) -> Iterator[None]:
        """Replace the functions that compute a chunk, within the context.

        Args:
            cache: The cache of the call. Functions without an initial state get the state that was last read from it.
        """
        with self._listening(cache), self._replaced({name: _give(new) for name, new in self._chunk.items()}):
            yield

    @contextlib.contextmanager
    def of_step(self, cache: Any) -> Iterator[None]:
        """Mark the recurrences of a step, and limit its step sizes as those of the full sequence, within the context.

        transformers' step of Mamba-2 leaves out the limits, which matters if a model has any.
        """
        functions = dict(STEPS)
        if self._limits:
            functions["mamba2_selective_state_update"] = lambda update: self._bounded(selective_step(update))
        with self._listening(cache), self._replaced(functions):
            yield

    @contextlib.contextmanager
    def _replaced(self, functions: Mapping[str, Callable[[Function], Function]]) -> Iterator[None]:
        """Replace functions, by name, with functions made from them."""
        own = [(module, name) for module in self._modules for name in functions if hasattr(module, name)]
        originals = [getattr(module, name) for module, name in own]
        try:
            for (module, name), original in zip(own, originals, strict=True):
                setattr(module, name, functions[name](original))
            yield
        finally:
            for (module, name), original in zip(own, originals, strict=True):
                setattr(module, name, original)

    @contextlib.contextmanager
    def _listening(self, cache: Any) -> Iterator[None]:
        """Remember the layer whose state was last read, and the state."""
        read = getattr(cache, "get_recurrent_state", None)
        if read is None:
            yield
            return

        def remember(layer_idx: int, *args: Any, **kwargs: Any) -> Tensor | None:
            state: Tensor | None = read(layer_idx, *args, **kwargs)
            self._layer, self._head, self._state = layer_idx, 0, state
            return state

        cache.get_recurrent_state = remember
        try:
            yield
        finally:
            del cache.get_recurrent_state
            self._layer, self._head, self._state = 0, 0, None  # what a call leaves would look like a hidden state

    def _selective_scan(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
        state = self._state
        if state is not None and state.dim() == 4:  # [B, heads, E, N]: Zamba scans one head after the other
            state, self._head = state[:, self._head], self._head + 1
        scanned: Tensor | tuple[Tensor, Tensor] = selective_chunk(selective_scan)(
            *args, **{**kwargs, "initial_state": state}
        )
        return scanned

    def _bounded(self, update: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def bounded(
            state: Tensor,
            hidden_states: Tensor,
            dt: Tensor,
            *args: Any,
            dt_bias: Tensor | None = None,
            dt_softplus: bool = False,
            **kwargs: Any,
        ) -> Tensor:
            if dt_bias is not None:
                dt = dt + dt_bias.to(dt.dtype)
            if dt_softplus:
                dt = F.softplus(dt)
            least, most = self._limits.get(self._layer, (0.0, float("inf")))
            return update(state, hidden_states, torch.clamp(dt, min=least, max=most), *args, **kwargs)

        return bounded


def _give(new: Function) -> Callable[[Function], Function]:
    return lambda _: new
