"""The operator gives what ``edgemem.memories.Attention`` gives in torch, over a stream that is fed back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from edgemem.memories import Attention, Clock
from edgemem.memories.site import layer_site
from tests.memories import oracle
from tests.memories.support import advance, inputs, make_layer
from tests.runtimes.native.calls import rotary_phases
from tests.runtimes.native.operators import attend
from tests.runtimes.native.oracle import Call

SIZES = oracle.Sizes(heads=4, kv_heads=2, head_dim=8)
WINDOW = 6
LISTS: list[list[dict[str, Any]]] = [
    [{"type": "window", "window": WINDOW}],
    [{"type": "sinks", "slots": 3}, {"type": "window", "window": WINDOW}],
    [{"type": "window", "window": WINDOW}, {"type": "cumulative"}, {"type": "geometric"}],
    [
        {"type": "window", "window": WINDOW},
        {"type": "geometric", "decay": 0.9, "bias": "none"},
        {"type": "cumulative", "bias": "log_count"},
        {"type": "sinks", "slots": 2},
    ],
    [{"type": "window", "window": WINDOW}, {"type": "gated_average"}, {"type": "moving_average", "window": 9}],
    [
        {"type": "window", "window": WINDOW},
        {"type": "weighted_average", "window": 7, "bias": "log_count"},
        {"type": "compressed", "slots": 3, "rate": 2},
        {"type": "weighted_average", "window": 8, "beta": [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]},
    ],
    [{"type": "window", "window": WINDOW}, {"type": "compressed", "slots": 2, "rate": 4}],
    [{"type": "sinks", "slots": 3}, {"type": "cumulative"}],
    [{"type": "compressed", "slots": 2, "rate": 4}],
]


def call_of(layer: Attention, x: torch.Tensor, start: torch.Tensor, state: Any) -> tuple[Call, tuple[str, ...]]:
    """The operator's inputs for a call of the layer, as an export gives them, and the states in its order."""
    heads, kv_heads, width = SIZES.heads, SIZES.kv_heads, SIZES.head_dim
    site = layer_site(dict(layer.named_memories()), x=x)
    assert site is not None
    qkv = (x @ layer.qkv).reshape(*x.shape[:2], heads + 2 * kv_heads, width).transpose(1, 2).numpy()
    memories, names = site.kinds.split(","), [name for name, _ in layer.named_memories()]
    order = sorted(names, key=lambda name: name != "window")
    states, parameters = {}, {}
    for entry, m in zip(site.inputs, owners(site.inputs, order), strict=True):
        if isinstance(entry, str):
            states[f"{m}.{entry.split('.')[1]}"] = state[entry].numpy()
        else:
            parameters[m] = entry.numpy()
    q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
    bias = None if site.bias is None else site.bias.numpy()
    phases = rotary_phases(width, SIZES.theta)
    call = Call(
        memories,
        q,
        k,
        v,
        start.numpy(),
        layer.dims.window,
        width**-0.5,
        states,
        phases,
        bias=bias,
        parameters=parameters,
    )
    return call, site.states


def owners(inputs: Sequence[str | torch.Tensor], order: list[str]) -> list[int]:
    """The number of the memory that each state belongs to; a parameter follows the states of its memory."""
    found: list[int] = []
    for entry in inputs:
        found.append(order.index(entry.split(".")[0]) if isinstance(entry, str) else found[-1])
    return found


@pytest.mark.parametrize("specs", LISTS, ids=lambda specs: "+".join(spec["type"] for spec in specs))
@torch.no_grad()
def test_steps_and_chunks_equal_torch(specs):
    layer = make_layer(specs, SIZES)
    state = {spec.name: torch.full((2, *spec.fixed_shape), spec.initial) for spec in layer.states()}
    start = torch.tensor([0, 0])
    for step, time in enumerate([1, 4, 1, 1, 6, 2, 1, 1, 5]):
        x = inputs(time, batch=2, seed=step)
        want, new = layer(x, Clock(start, time), state)
        call, names = call_of(layer, x, start, state)
        read, *states = attend(call).values()
        torch.testing.assert_close(torch.from_numpy(read) @ layer.out, want, rtol=3e-6, atol=3e-6)
        mine = {name: torch.from_numpy(value) for name, value in zip(names, states, strict=True)}
        for key, value in new.items():
            torch.testing.assert_close(mine[key], value, rtol=3e-6, atol=3e-6, msg=f"{key} at step {step}")
        state = advance(layer.states(), state, start, mine)
        start = start + time
