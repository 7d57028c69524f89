"""Attention of fixed size for every transformers model that looks its attention function up by name.

A model keeps its projections, norms, rotary layout, caps and scaling; what it hands to its attention function goes to
the memories of :mod:`edgemem.memories` instead of to a growing cache: the ring and the chunk are two score blocks
under one softmax, the ring is never copied, and the new keys and values are the entries to append.

Symbols: see :mod:`edgemem.memories.base`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.errors import ExportError
from edgemem.export.hf.attention_calls import SHIFT, AttentionCall, implementation, record_calls, register
from edgemem.export.hf.bound import MemoryOption
from edgemem.export.hf.reference import dense_attention
from edgemem.export.hf.rotary import RotaryEmbeddings, RotaryTable, Rotation, find_rotation
from edgemem.memories.attention import slot_mask
from edgemem.memories.base import Chunk, Dims, SlotMemory, Slots
from edgemem.memories.clock import Clock, phase_angles
from edgemem.memories.kinds.cumulative import CumulativeAverage
from edgemem.memories.kinds.sinks import Sinks
from edgemem.memories.kinds.window import Window
from edgemem.protocol import TORCH_DTYPES

_STREAM, _REFERENCE = "edgemem", "edgemem_reference"
_LAYERS = "edgemem_layers"
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class _HeadDims(Dims):
    """Sizes of a layer whose scores have a scaling of their own."""

    scaling: float = 1.0

    @property
    def scale(self) -> float:
        """What scores are multiplied with."""
        return self.scaling


@dataclass
class _TurnedChunk(Chunk):
    """A chunk whose queries and keys arrive turned to their positions.

    Attributes:
        rotation: How the layer turns.
        by_slot: Whether queries are turned on to other places; else they look from where they stand.
    """

    rotation: Rotation = Rotation()  # noqa: RUF009 (it cannot be changed)
    by_slot: bool = False

    def rotated_to(self, positions: Tensor, key: object) -> Tensor:
        """The scaled queries turned on from their own positions to ``positions`` [B, T]: ``[B, H, R, D]``."""
        if not self.by_slot:
            return self.q_rotated
        return self.turned(self.q_rotated, positions - self.clock.positions, key, queries=True)

    def turned(self, x: Tensor, distance: Tensor, key: object, *, queries: bool) -> Tensor:
        """Queries ``[B, H, R, D]``, or keys ``[B, H, T, D]``, turned on by ``distance`` [B, T]."""
        turns = self.rotation.turns
        if not turns:
            return x
        angle = self.clock.once(("turn", key, turns), lambda: phase_angles(distance, turns)[:, None])  # [B, 1, T, F]
        return self.rotation.turn(x, self.rows(angle) if queries else angle)


class AttentionLayer:
    """One attention layer: its memories, and what it does with them.

    Args:
        prefix: First part of its states' names.
        call: What it hands to its attention function.
        memory: What bounds it, where it has no window of its own.
        max_length: Otherwise: the most positions that it keeps.
        rotation: How it turns queries and keys; ``None`` where nobody needs to know.
    """

    def __init__(
        self,
        prefix: str,
        call: AttentionCall,
        memory: MemoryOption | None,
        max_length: int | None,
        rotation: Rotation | None,
    ) -> None:
        self.prefix = prefix
        self.name = call.name
        self.module = call.module
        self.bounded = memory if call.window is None else None
        window = call.window or (memory.window if memory is not None else max_length)
        assert window is not None
        if max_length is not None:
            window = min(window, max_length)
        self.rotation = rotation
        self.value_dim = call.v.shape[-1]
        heads, head_dim = call.q.shape[1], call.q.shape[-1]
        dtype: Any = _DTYPE_NAMES[call.k.dtype]
        dims = _HeadDims(0, heads, call.k.shape[1], head_dim, window, dtype=dtype, scaling=call.scaling)
        self.dims = dims
        self.memories: dict[str, SlotMemory] = {"window": Window(dims, window)}
        if self.bounded is not None and self.bounded.sinks:
            self.memories["sinks"] = Sinks(dims, self.bounded.sinks)
        if self.bounded is not None and self.bounded.summary is not None:
            self.memories["summary"] = CumulativeAverage(dims, bias="none")

    def states(self) -> tuple[StateSpec, ...]:
        """``<layer>.window.k``, ``<layer>.window.v``, and what else the layer keeps."""
        return tuple(
            replace(
                spec,
                name=f"{self.prefix}.{name}.{spec.name}",
                shape=(*spec.shape[:-1], self.value_dim) if spec.name == "v" else spec.shape,
            )
            for name, memory in self.memories.items()
            for spec in memory.states()
        )

    def attend(
        self,
        clock: Clock,
        past: Mapping[str, Tensor] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softcap: float | None,
        sink_logits: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Read the memories.

        Args:
            clock: Time of the call.
            past: The layer's states under their full names; ``None`` at position 0.
            q: Queries ``[B, Hq, T, D]``, turned to their positions.
            k: Keys ``[B, H, T, D]``.
            v: Values ``[B, H, T, Dv]``.
            softcap: ``c`` of ``c · tanh(score / c)`` (Gemma 2); ``None`` for plain scores.
            sink_logits: A score ``[Hq]`` for each head that takes part in the softmax and reads nothing (gpt-oss).

        Returns:
            ``[B, Hq, T, Dv]``, and the new states.
        """
        chunk = self._chunk(clock, q, k, v)
        slots: list[Slots] = []
        new: dict[str, Tensor] = {}
        for name, memory in self.memories.items():
            prefix = f"{self.prefix}.{name}"
            own = None if past is None else {spec.name: past[f"{prefix}.{spec.name}"] for spec in memory.states()}
            offered, states = memory(chunk, own)
            slots.extend(offered)
            new.update({f"{prefix}.{key}": value for key, value in states.items()})
        return self._read(chunk, slots, softcap, sink_logits), new

    def _chunk(self, clock: Clock, q: Tensor, k: Tensor, v: Tensor) -> _TurnedChunk:
        dims = self.dims
        rows = q.reshape(q.shape[0], dims.kv_heads, dims.groups * clock.time, dims.head_dim)
        by_slot = self.bounded is not None and self.bounded.positions == "slot"
        rotation = self.rotation or Rotation()
        # Summaries alone read queries that are not turned, and pairs.
        chunk = _TurnedChunk(clock, q, rows, rows * dims.scale, k, v, v, dims, rotation, by_slot)
        if "summary" in self.memories:
            chunk.q = chunk.turned(rows, -clock.positions, "back", queries=True)
            keys = chunk.turned(k, -clock.positions, "back", queries=False)
            chunk.pairs = torch.cat([keys, v], dim=1).float()
        return chunk

    def _read(self, chunk: Chunk, slots: list[Slots], softcap: float | None, sink_logits: Tensor | None) -> Tensor:
        """One softmax over all slots, in float32: ``[B, Hq, T, Dv]``."""
        dims, time = self.dims, chunk.clock.time
        scores = torch.cat([part.scores.float() for part in slots], dim=-1)  # [B, H, R, S]
        if softcap is not None:
            scores = (scores / softcap).tanh() * softcap
        scores = scores + slot_mask(chunk, slots)
        sizes = [part.scores.shape[-1] for part in slots]
        if sink_logits is not None:
            silent = sink_logits.float().reshape(1, dims.kv_heads, dims.groups, 1).expand(-1, -1, -1, time)
            silent = silent.reshape(1, dims.kv_heads, dims.groups * time, 1).expand(scores.shape[0], -1, -1, -1)
            scores = torch.cat([scores, silent], dim=-1)
            sizes.append(1)
        shares = torch.split(scores.softmax(dim=-1).to(chunk.q.dtype), sizes, dim=-1)
        read = slots[0].read(shares[0])
        for part, share in zip(slots[1:], shares[1:], strict=False):
            read = read + part.read(share)
        return read.reshape(read.shape[0], dims.heads, time, self.value_dim)


class AttentionLayers:
    """All attention layers of a model, bounded.

    Args:
        model: A transformers model in evaluation mode. Its rotary embeddings and its attention function are replaced.
        memory: What takes the place of caches that grow.
        max_length: Instead: exact attention, up to that many positions.

    Raises:
        ExportError: The model attends in a way that cannot be carried in states, has a growing cache and neither
            option was given, or an option does not suit it.
    """

    def __init__(self, model: nn.Module, memory: MemoryOption | None = None, max_length: int | None = None) -> None:
        register()
        _register()
        self.model = model
        calls = record_calls(model)
        full = [call.name for call in calls if call.window is None]
        _check_options(model, full, memory, max_length)
        moved = record_calls(model, SHIFT) if calls else []
        learned = _first_learned(calls, moved)
        if learned is not None:  # Griffin tells position 0, where it starts anew, from all others, and no more
            learned = _first_learned(moved, record_calls(model, 2 * SHIFT))
        if learned is not None:
            _check_learned(model, learned, max_length)
        span = _span([call.window for call in calls], memory, max_length)
        self.rotary = RotaryEmbeddings(model, span)
        self.layers: list[AttentionLayer] = []
        prefixes = _prefixes(calls)
        for prefix, call, later in zip(prefixes, calls, moved, strict=True):
            rotation = None
            if call.window is None and memory is not None and (memory.summary or memory.sinks):
                rotation = _rotation(call, later, self.rotary.tables, memory)
            self.layers.append(AttentionLayer(prefix, call, memory, max_length, rotation))
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
        """What the call made of every state: new entries of rings, whole new values of others."""
        if self._turn != len(self.layers):
            raise ExportError(f"the model called {self._turn} of its {len(self.layers)} attention layers.")
        new, self._new, self._past = self._new, {}, None
        return new

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Let the model's layers read the memories, within the context, and keep keys and values out of its cache."""
        with implementation(self.model, _STREAM), _caches_keep_nothing():
            yield

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Let the model attend as its authors wrote it, over a whole sequence, under the same bounds."""
        with self.rotary.in_double(), implementation(self.model, _REFERENCE):
            self._turn = 0
            yield

    def _next(self, module: nn.Module) -> AttentionLayer:
        layer = self.layers[self._turn % len(self.layers)]
        if layer.module is not module:
            raise ExportError(f"{layer.name} was to attend, {type(module).__name__} did: the order of layers changed.")
        self._turn += 1
        return layer


@contextlib.contextmanager
def _caches_keep_nothing() -> Iterator[None]:
    """Whatever cache a model hands its keys and values to gives them back, within the context, and keeps none."""
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
    return dense_attention(module, query, key, value, attention_mask, layer.bounded, layer.rotation, **options)


def _register() -> None:
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_STREAM, _attend)  # it has no mask function: such a model gets no mask
    AttentionInterface.register(_REFERENCE, _attend_reference)
    AttentionMaskInterface.register(_REFERENCE, eager_mask)


def _prefixes(calls: list[AttentionCall]) -> list[str]:
    """The layers' own numbers, or those of the calls where layers share a module."""
    numbers = [getattr(call.module, "layer_idx", None) for call in calls]
    if len(set(numbers)) < len(numbers) or any(not isinstance(number, int) or number < 0 for number in numbers):
        numbers = list(range(len(calls)))
    return [str(number) for number in numbers]


def _span(windows: list[int | None], memory: MemoryOption | None, max_length: int | None) -> int | None:
    """Largest distance, plus one, between a query and a key that it sees."""
    if max_length is not None:
        return max_length
    unbounded = None in windows and memory is not None and memory.sinks and memory.positions == "absolute"
    if unbounded:
        return None
    spans = [window or (memory.span if memory is not None else 0) for window in windows]
    return max(spans, default=0)


def _check_options(model: nn.Module, full: list[str], memory: MemoryOption | None, max_length: int | None) -> None:
    name = type(model).__name__
    if memory is not None and max_length is not None:
        raise ExportError(
            f"{name}: --memory and --max-length exclude each other.",
            hint="A bounded memory streams for ever; a maximal length keeps the whole past and ends there.",
        )
    if full and memory is None and max_length is None:
        raise ExportError(
            f"{name} has a cache that grows for ever in {len(full)} of its layers ({full[0]}, ...).",
            hint='Bound it with --memory "sinks=4,window=1024" (an approximation), or keep it exact up to a length '
            "with --max-length N.",
        )
    if not full and (memory is not None or max_length is not None):
        option = "--memory" if memory is not None else "--max-length"
        raise ExportError(f"{name} has no cache that grows: leave {option} out.")


def _first_learned(calls: list[AttentionCall], moved: list[AttentionCall]) -> str | None:
    """The first layer whose values change with the position: then positions are added to what the model reads.

    Before the first attention nothing else tells the two runs apart, so that values are equal to the last bit where
    positions are relative; behind it, rotations have left their rounding.
    """
    allowed = _EQUAL
    for call, later in zip(calls, moved, strict=True):
        if float((call.v - later.v).float().norm() / call.v.float().norm().clamp(min=1e-30)) > allowed:
            return call.name
        allowed = _ROUNDED
    return None


_EQUAL, _ROUNDED = 1e-6, 0.05
"""Relative differences; half precision rounds to 0.004, layer upon layer."""


def _check_learned(model: nn.Module, layer: str, max_length: int | None) -> None:
    config: Any = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    last = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if max_length is None:
        raise ExportError(
            f"{type(model).__name__} reads its absolute positions ({layer} changes with them): it cannot stream "
            "beyond those that it was trained with.",
            hint=f"Use --max-length N, of at most {last}." if last else "Use --max-length N.",
        )
    if last is not None and max_length > last:
        raise ExportError(f"{type(model).__name__} knows {last} positions, --max-length asks for {max_length}.")


def _rotation(
    call: AttentionCall, later: AttentionCall, tables: tuple[RotaryTable, ...], memory: MemoryOption
) -> Rotation | None:
    rotation = find_rotation(tables, call.q, later.q, SHIFT)
    if rotation is None and (memory.summary or memory.positions == "slot"):
        raise ExportError(
            f"{call.name}: its queries do not turn with the position in a way that edgemem knows.",
            hint="Place sinks by absolute positions: positions=absolute." if not memory.summary else None,
        )
    return rotation
