"""Matrix memories, and updates of a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.errors import ConfigError
from edgemem.memories import MEMORIES, Attention, Chunk, Clock, Dims, Memory, RecurrentMemory, register_memory
from edgemem.memories.kinds.gated_delta import GatedDelta
from edgemem.memories.kinds.linear_attention import LinearAttention
from tests.memories import oracle
from tests.memories.support import TOLERANCE, WIDTH, chunkings, error, inputs, make_layer, parallel, stream, truth

SIZES = oracle.Sizes(heads=4, kv_heads=2, head_dim=4)


def run(memory: Memory, q: Tensor, k: Tensor, v: Tensor, chunk: int, start: int = 0, state: Any = None) -> Any:
    """Reads ``[1, 1, T, D]`` of a one-head memory given its queries, keys and values, and the last state."""
    dims, reads = memory.dims, []
    if state is None:
        state = {s.name: torch.full((1, *s.fixed_shape), s.initial) for s in memory.states()}
    with torch.no_grad():
        for at in range(0, q.shape[2], chunk):
            part = slice(at, at + chunk)
            clock = Clock(torch.tensor([start + at]), q[:, :, part].shape[2])
            x = torch.zeros(1, clock.time, dims.model)
            pairs = torch.cat([k[:, :, part], v[:, :, part]], dim=1)
            own = q[:, :, part]
            read, state = memory(Chunk(clock, x, own, own, k[:, :, part], v[:, :, part], pairs, dims), state)
            reads.append(read)
    return torch.cat(reads, dim=2), state


def delta(head_dim: int, a_logit: float, b_logit: float) -> GatedDelta:
    memory = GatedDelta(Dims(WIDTH, 1, 1, head_dim))
    with torch.no_grad():
        memory.gates.weight.zero_()
        memory.gates.bias.copy_(torch.tensor([a_logit, b_logit]))
    return memory


# The gated delta rule


@settings(max_examples=40, deadline=None)
@given(time=st.integers(1, 70), seed=st.integers(0, 999), exporting=st.booleans())
def test_the_system_is_solved_in_torch_and_in_a_graph(time: int, seed: int, exporting: bool) -> None:
    time = min(time, 64) if exporting else time
    a = torch.randn(2, 3, time, time, generator=torch.Generator().manual_seed(seed)).tril(-1) * time**-0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_exporting", lambda: exporting)
        got = delta(4, 0, 0)._solved(a, torch.eye(time), Clock(torch.tensor([0]), time))
    want = np.linalg.inv(np.eye(time) + a.double().numpy())
    assert np.abs(got.double().numpy() - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("chunk", [1, 7, 64, 128])
def test_writing_one_key_again_and_again_is_stable_and_leaves_the_last_value(chunk: int) -> None:
    time, size = 128, 8
    memory = delta(size, a_logit=20.0, b_logit=20.0)  # keep all, write all: the hardest system to solve
    key = torch.randn(1, 1, 1, size, generator=torch.Generator().manual_seed(0)).expand(1, 1, time, size)
    values = torch.randn(1, 1, time, size, generator=torch.Generator().manual_seed(1))
    read, state = run(memory, key, key, values, chunk)
    assert (read - values).abs().max() < 1e-4
    assert torch.isfinite(state["matrix"]).all()


@pytest.mark.parametrize("chunk", [1, 4])
def test_values_written_under_orthogonal_keys_are_all_read_back(chunk: int) -> None:
    size = 8
    keys, values = torch.eye(size)[None, None], torch.randn(1, 1, size, size)
    memory = delta(size, a_logit=30.0, b_logit=30.0)
    _, state = run(memory, keys, keys, values, chunk)
    assert (state["matrix"][0, 0] - values[0, 0]).abs().max() < 1e-5


def test_a_longer_chunk_than_the_exported_limit_is_right_in_the_parallel_form() -> None:
    specs = [{"type": "gated_delta"}]
    layer, x = make_layer(specs, SIZES), inputs(130)
    assert error(parallel(layer, x), truth(layer, specs, SIZES, x)) < TOLERANCE
    assert error(stream(layer, x, [64, 64, 2])[0], truth(layer, specs, SIZES, x)) < TOLERANCE
    assert layer.memories["gated_delta"].max_chunk == 64


# Linear attention


@pytest.mark.parametrize("start", [(1 << 24) + 1, (1 << 26) + 1, (1 << 31) + 1])
@pytest.mark.parametrize("chunk", [1, 7])
def test_linear_attention_follows_a_shift_that_a_plain_float32_mean_misses(start: int, chunk: int) -> None:
    steps, size = 1_000, 2
    memory = LinearAttention(Dims(WIDTH, 1, 1, size))
    k, v = torch.zeros(1, 1, steps, size), torch.full((1, 1, steps, size), 1.5)  # φ(0) = 1
    state = {"mean": torch.ones(1, 1, size, size + 1), "carry": torch.zeros(1, 1, size, size + 1)}
    read, state = run(memory, k, k, v, chunk, start, state)
    exact = 1.0 + 0.5 * steps / (start + steps)
    kept = (state["mean"].double() + state["carry"].double())[0, 0]
    assert (kept[:, :size] - exact).abs().max() < 1e-2 * (exact - 1.0)
    assert (kept[:, size] - 1.0).abs().max() < 1e-12, "the mass of equal keys does not change"
    assert (read[0, 0, -1].double() - exact).abs().max() < 3e-7


# An update of one's own


class Peak(RecurrentMemory):
    """The running maximum, channel by channel."""

    type_name = "peak_of_a_test"

    def states(self) -> tuple[StateSpec, ...]:
        return (StateSpec("pair", (2 * self.dims.kv_heads, self.dims.head_dim), initial=-1e9),)

    def update(self, pair: Tensor, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        peak = torch.maximum(state["pair"], pair)
        return peak, {"pair": peak}


class EverySecond(RecurrentMemory):
    """The newest pair of an even step, scaled by what the input says: a counter, and a look at ``x``."""

    type_name = "every_second_of_a_test"

    def states(self) -> tuple[StateSpec, ...]:
        heads = 2 * self.dims.kv_heads
        return (StateSpec("held", (heads, self.dims.head_dim)), StateSpec("count", (1,), dtype="int64"))

    def update(self, pair: Tensor, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        even = (state["count"] % 2 == 0)[:, :, None]
        held = torch.where(even, pair * torch.sigmoid(x[:, :1, None]), state["held"])
        return held, {"held": held, "count": state["count"] + 1}


@pytest.fixture(params=[Peak, EverySecond])
def own(request: pytest.FixtureRequest) -> Iterator[type[RecurrentMemory]]:
    cls = register_memory(request.param)
    yield request.param
    assert MEMORIES.pop(cls.type_name) is cls


def test_an_update_of_ones_own_works_beside_a_window_in_every_form(own: type[RecurrentMemory]) -> None:
    layer = make_layer([{"type": "window", "window": 3}, {"type": own.type_name, "bias": "none"}], SIZES)
    x = inputs(11, batch=2)
    want = literally(layer, own, x)
    assert error(parallel(layer, x), want) < TOLERANCE
    for sizes in ([1] * 11, [3, 3, 3, 2], [2, 1, 3, 3, 1, 1]):
        state = {
            s.name: torch.full((2, *s.fixed_shape), s.initial, dtype=getattr(torch, s.dtype)) for s in layer.states()
        }
        assert error(stream(layer, x, sizes, state=state)[0], want) < TOLERANCE


def literally(layer: Attention, own: type[RecurrentMemory], x: Tensor) -> np.ndarray[Any, Any]:
    """Softmax over a window of 3 and the user's pair, computed pair by pair."""
    rows = []
    for stream_x in x.double().numpy():
        parameters = {name: value.detach().double().numpy() for name, value in layer.state_dict().items()}
        q, k, v = np.split(stream_x @ parameters["qkv"], [16, 24], axis=-1)
        out = []
        for i in range(len(stream_x)):
            read = np.zeros((4, 4))
            for head in range(4):
                h = slice(4 * (head // 2), 4 * (head // 2) + 4)
                query = q[i, 4 * head : 4 * head + 4] / 2
                turned = oracle.rotated(query, i, SIZES.theta)
                seen = range(max(0, i - 2), i + 1)
                scores = [turned @ oracle.rotated(k[j, h], j, SIZES.theta) for j in seen]
                values = [v[j, h] for j in seen]
                if own is Peak:
                    key, value = k[: i + 1, h].max(axis=0), v[: i + 1, h].max(axis=0)
                else:
                    even = i - i % 2
                    gate = oracle.sigmoid(stream_x[even, 0])
                    key, value = gate * k[even, h], gate * v[even, h]
                weights = np.exp([*scores, query @ key])
                read[head] = weights @ np.stack([*values, value]) / weights.sum()
            out.append(read.reshape(-1) @ parameters["out"])
        rows.append(np.stack(out))
    return np.stack(rows)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), time=st.integers(1, 16))
def test_any_chunking_of_ones_own_update_equals_stepping(data: st.DataObject, time: int) -> None:
    MEMORIES[Peak.type_name] = Peak
    try:
        layer, x = make_layer([{"type": Peak.type_name}, {"type": "sinks"}], SIZES), inputs(time)
        steps = stream(layer, x, [1] * time)[0]
        assert torch.allclose(stream(layer, x, data.draw(chunkings(time, time)))[0], steps, atol=1e-6)
        assert torch.allclose(parallel(layer, x), steps, atol=1e-6)
    finally:
        del MEMORIES[Peak.type_name]


def test_two_memories_cannot_have_one_name(own: type[RecurrentMemory]) -> None:
    assert register_memory(own) is own, "the same class again is no harm"
    other = type("Other", (Peak,), {"type_name": own.type_name})
    with pytest.raises(ConfigError, match=own.type_name):
        register_memory(other)
    assert MEMORIES[own.type_name] is own


def test_a_built_in_name_cannot_be_taken() -> None:
    with pytest.raises(ConfigError, match="window"):
        register_memory(type("Mine", (Peak,), {"type_name": "window"}))


def test_an_unknown_memory_is_refused_with_the_names_that_are_known() -> None:
    with pytest.raises(ConfigError) as refusal:
        Attention(Dims(WIDTH, 4, 2, 4), [{"type": "peak_of_a_test"}])
    assert refusal.value.hint is not None
    assert set(MEMORIES) <= set(refusal.value.hint.removeprefix("Known: ").rstrip(".").split(", "))
