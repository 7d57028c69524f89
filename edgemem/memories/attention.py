"""Attention over a list of memories: one softmax over all their slots.

``Att(q_i, Mem)`` with ``Mem`` the concatenation of what each memory offers. Matrix memories have no slots: a learned
gate for each head mixes their reads in, as in Infini-attention (Munkhdalai et al. 2024, eq. 10; a softmax over gates
where there is more than one).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.errors import ConfigError
from edgemem.memories.base import Chunk, Dims, MatrixMemory, Memory, SlotMemory, Slots, States, own_states
from edgemem.memories.clock import Clock, phase_steps, rotary_turns, rotate
from edgemem.memories.kinds.window import Window
from edgemem.memories.registry import build_memory
from edgemem.memories.site import SiteAttributes, begin, begin_recurrence, end, layer_site, marks_layers
from edgemem.memories.summary import Summary

MASKED = -1e9
"""Added to the score of a slot that a query must not see: exp() of it is 0, and a row of nothing else stays finite."""


class LoneSummaryWarning(UserWarning):
    """A summary is a layer's only slot: the softmax over it is 1, whatever the query is."""


class Attention(nn.Module):
    """Projects to queries, keys and values, reads the memories, and projects back.

    Args:
        dims: Sizes of the layer; ``window`` is taken from the list's own window.
        memories: The list, as in a configuration: ``[{"type": "window", "window": 256}, {"type": "cumulative"}]``.
        source: An earlier layer with the same list, whose memories are read instead of own ones: its keys, values and
            gates, with this layer's queries. The layer has no states then, and ``qkv`` holds queries alone.

    Raises:
        ConfigError: A memory's type or options are wrong, or a memory lacks the one that it stands beside.
    """

    def __init__(self, dims: Dims, memories: Sequence[Mapping[str, Any]], source: Attention | None = None) -> None:
        super().__init__()
        self._source = () if source is None else (source,)  # in a tuple, it is no submodule of this layer
        windows = [spec.get("window") for spec in memories if spec.get("type") == Window.type_name]
        # A window that is no number is refused where it is built.
        self.dims = replace(dims, window=max((w for w in windows if isinstance(w, int)), default=0))
        self.memories = nn.ModuleDict(
            {}
            if source is not None
            else {n: build_memory(spec, self.dims) for n, spec in zip(memory_names(memories), memories, strict=True)}
        )
        for _, memory in self.named_memories():
            if memory.beside is not None and memory.beside not in {spec["type"] for spec in memories}:
                raise ConfigError(
                    f"memory {memory.type_name!r} needs a {memory.beside!r} in the same list.",
                    hint=f'Add {{"type": "{memory.beside}"}} to the list.',
                )
        heads = dims.heads + 2 * dims.kv_heads * (source is None)
        self.qkv = nn.Parameter(torch.empty(dims.model, heads * dims.head_dim))
        self.out = nn.Parameter(torch.empty(dims.heads * dims.head_dim, dims.model))
        read = [memory for _, memory in self.named_memories()]
        matrices = sum(isinstance(memory, MatrixMemory) for memory in read)
        self.has_slots = matrices < len(read)
        self.may_see_nothing = self.has_slots and not any(
            isinstance(memory, SlotMemory) and memory.always_seen for memory in read
        )
        reads = matrices + self.has_slots
        self.mix = nn.Parameter(torch.zeros(reads, dims.kv_heads, dims.groups)) if reads > 1 else None
        if len(read) == 1 and isinstance(read[0], Summary):
            warnings.warn(
                f"a {memories[0]['type']} summary alone is degenerate: a softmax over one slot is 1, so the output "
                "does not depend on the query and the keys get no gradient. List it beside a window or sinks.",
                LoneSummaryWarning,
                stacklevel=2,
            )

    def named_memories(self) -> Iterator[tuple[str, Memory]]:
        """Name and memory, in the list's order; those of the layer that is shared with, if there is one."""
        for name, memory in (self._source or (self,))[0].memories.items():
            assert isinstance(memory, Memory)
            yield name, memory

    def states(self) -> tuple[StateSpec, ...]:
        """The states of all own memories, named ``<memory>.<tensor>``."""
        return tuple(
            replace(spec, name=f"{name}.{spec.name}")
            for name, memory in self.named_memories()
            for spec in memory.states()
            if not self._source
        )

    def forward(self, x: Tensor, clock: Clock, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Read the memories.

        Args:
            x: Normalised input ``[B, T, C]``.
            clock: Time of the call.
            past: The states of the memories by name; ``None`` at position 0.

        Returns:
            ``[B, T, C]``, and the new value of every own state.
        """
        x, qkv = self._project(x, clock)
        chunk = self._chunk(x, qkv, clock)
        if past is not None and marks_layers(self.dims):
            chunk.marked = qkv
        reads: list[Tensor] = []  # [B, T, Hq D] each
        new: dict[str, Tensor] = {}
        for name, memory in self.named_memories():
            if isinstance(memory, MatrixMemory):
                read, states = self._read_matrix(memory, chunk, own_states(name, memory, past))
                reads.append(read)
                new.update({f"{name}.{key}": value for key, value in states.items()})
        if self.has_slots:
            read, states = self._read_slots(chunk, past)
            reads.insert(0, read)
            new.update(states)
        return self._mix(reads) @ self.out, {} if self._source else new

    def _project(self, x: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """What gates look at ``[B, T, C]``, and queries, keys and values ``[B, T, (Hq + 2H) D]``."""
        projected = x @ self.qkv
        if not self._source:
            return clock.once(("projected", id(self)), lambda: (x, projected))
        given, qkv = clock.once(("projected", id(self._source[0])), _not_called)
        return given, torch.cat([projected, qkv[..., projected.shape[-1] :]], dim=-1)

    def _read_matrix(self, memory: MatrixMemory, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What is read of a matrix memory ``[B, T, Hq D]``, and its new states."""
        operator = None if chunk.marked is None else memory.operator(chunk.x, chunk.clock)
        if operator is None or past is None:
            read, states = memory(chunk, past)
            return self._merged(read), states
        inputs = [chunk.marked, *operator.inputs, *past.values()]
        # A part of its own: other memories may store the pairs, and must not store what the mark gives.
        pairs = begin_recurrence(operator.name, chunk.pairs, inputs, operator.attributes)
        part = replace(chunk, pairs=pairs)
        read, states = memory(part, past)
        outputs = [self._merged(read), *states.values()]
        if part.written is not None and part.written is not chunk.written:
            outputs.append(_join_heads(part.written))
            chunk.written = outputs[-1].reshape(read.shape[0], -1, *chunk.v.shape[1::2]).transpose(1, 2)
        return end(outputs), states

    def _read_slots(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What the softmax over all slots reads ``[B, T, Hq D]``, and the new states of their memories."""
        memories = {name: memory for name, memory in self.named_memories() if isinstance(memory, SlotMemory)}
        order = () if chunk.marked is None or past is None else self._begin(memories, chunk, chunk.marked, past)
        slots: list[Slots] = []
        new: dict[str, Tensor] = {}
        for name, memory in sorted(memories.items(), key=lambda item: item[1].beside is not None):
            offered, states = memory(chunk, own_states(name, memory, past))
            slots.extend(offered)
            new.update({f"{name}.{key}": value for key, value in states.items()})
        read = self._merged(self._attend(chunk, slots))
        if order and self._source:  # its source gives the states; the operator gives them again
            read = end([read], unused=len(order))
        elif order:
            read = end([read, *(new[name] for name in order)])
        return read, new

    def _begin(self, memories: Mapping[str, SlotMemory], chunk: Chunk, qkv: Tensor, past: States) -> tuple[str, ...]:
        """Mark where an operator can compute these memories: the states in its order (none: it cannot)."""
        site, dims = layer_site(memories, x=chunk.x, written=chunk.written), self.dims
        if site is None:
            return ()
        attributes = SiteAttributes(site.kinds, dims.heads, dims.kv_heads, dims.scale, 0.0, 1, 0, dims.window)
        phases = torch.tensor(phase_steps(rotary_turns(dims.head_dim, dims.theta)), device=qkv.device)
        inputs = [qkv, None, None, chunk.clock.start, phases, None, None, site.bias, *site.given(past)]
        if dims.window:
            chunk.q_rotated = begin(inputs, attributes, chunk.q_rotated)  # which only a window takes
        else:
            chunk.q = begin(inputs, attributes, chunk.q)
        return site.states

    def _merged(self, read: Tensor) -> Tensor:
        """``[B, H, R, D]`` as ``[B, T, Hq D]``."""
        if self.dims.groups > 1:
            read = read.reshape(read.shape[0], self.dims.heads, -1, self.dims.head_dim)
        return _join_heads(read)

    def _chunk(self, x: Tensor, qkv: Tensor, clock: Clock) -> Chunk:
        dims = self.dims
        heads, kv_heads, size = dims.heads, dims.kv_heads, dims.head_dim
        qkv = qkv.reshape(x.shape[0], clock.time, heads + 2 * kv_heads, size).transpose(1, 2)
        # All heads are turned at once; the tables scale the queries and leave the values as they are.
        turned = rotate(qkv, *_rotary_tables(clock, dims))
        q_rotated, k_rotated, v = torch.split(turned, [heads, kv_heads, kv_heads], dim=1)
        q, pairs = torch.split(qkv, [heads, 2 * kv_heads], dim=1)
        if dims.groups > 1:  # [B, Hq, T, D] -> [B, H, G·T, D]
            rows = (x.shape[0], kv_heads, dims.groups * clock.time, size)
            q, q_rotated = q.reshape(rows), q_rotated.reshape(rows)
        return Chunk(clock, x.float(), q, q_rotated, k_rotated, v, pairs.float(), dims)

    def _attend(self, chunk: Chunk, slots: list[Slots]) -> Tensor:
        """One softmax over all slots: ``[B, H, R, D]``."""
        scores = torch.cat([part.scores.float() for part in slots], dim=-1)  # [B, H, R, S]
        mask = slot_mask(chunk, slots)
        weights = (scores + mask).softmax(dim=-1)
        if self.may_see_nothing:  # such a query reads zero, not the mean of what is masked
            weights = weights * (mask == 0)
        shares = torch.split(weights.to(chunk.q.dtype), [part.scores.shape[-1] for part in slots], dim=-1)
        read = slots[0].read(shares[0])
        for part, share in zip(slots[1:], shares[1:], strict=True):
            read = read + part.read(share)
        return read

    def _mix(self, reads: list[Tensor]) -> Tensor:
        """The reads ``[B, T, Hq D]``, mixed by each head's shares."""
        if self.mix is None:
            return reads[0]
        shares = self.mix.softmax(dim=0).flatten(1).repeat_interleave(self.dims.head_dim, dim=1)  # [reads, Hq D]
        mixed = reads[0] * shares[0].to(reads[0].dtype)
        for read, share in zip(reads[1:], shares[1:], strict=True):
            mixed = mixed + read * share.to(read.dtype)
        return mixed


def _join_heads(x: Tensor) -> Tensor:
    """``[B, H, T, D]`` as ``[B, T, H D]``."""
    return x.transpose(1, 2).flatten(2)


def _not_called() -> tuple[Tensor, Tensor]:
    raise AssertionError("the layer that this one shares with has not been called with this clock")


def _rotary_tables(clock: Clock, dims: Dims) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for queries (times ``D^-1/2``), keys and values (1 and 0), ``[B, Hq + 2H, T, D]``."""

    def make() -> tuple[Tensor, Tensor]:
        cos, sin = clock.rotary(clock.positions, "absolute", dims.head_dim, dims.theta)
        scale = torch.tensor([dims.scale] * dims.heads + [1.0] * dims.kv_heads, device=cos.device)
        scale = scale[:, None, None]
        still = torch.zeros_like(cos).expand(-1, dims.kv_heads, -1, -1)
        return torch.cat([cos * scale, still + 1], dim=1), torch.cat([sin * scale, still], dim=1)

    return clock.once(("rotary_tables", dims.heads, dims.kv_heads, dims.head_dim, dims.theta), make)


def slot_mask(chunk: Chunk, slots: list[Slots]) -> Tensor:
    """0 where a query may see a slot, :data:`MASKED` where not, ``[B, 1 or H, R, S]``; made once for equal lists."""
    clock = chunk.clock

    def make() -> tuple[Tensor, list[Tensor | None]]:
        batch = chunk.q.shape[0]
        heads = max((part.live.shape[1] for part in slots if part.live is not None), default=1)
        parts = [
            torch.zeros(batch, heads, clock.time, part.scores.shape[-1], device=chunk.q.device)
            if part.live is None
            else torch.where(part.live, 0.0, MASKED).expand(batch, heads, -1, -1)
            for part in slots
        ]
        return chunk.rows(torch.cat(parts, dim=-1)), [part.live for part in slots]

    # An id means one mask only while its tensor lives: hence the tensors are kept beside the mask.
    key = tuple((part.live is None, part.scores.shape[-1] if part.live is None else id(part.live)) for part in slots)
    return clock.once(("mask", key, chunk.dims.groups), make)[0]


def memory_names(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for every memory of a list: its type, with a number where a type occurs again."""
    seen: dict[str, int] = {}
    names = []
    for spec in specs:
        kind = str(spec.get("type"))
        seen[kind] = seen.get(kind, 0) + 1
        names.append(kind if seen[kind] == 1 else f"{kind}_{seen[kind]}")
    return names
