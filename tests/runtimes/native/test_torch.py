"""The operator gives what ``edgemem.memories.Attention`` gives in torch, over a stream that is fed back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgemem.memories import Attention, Clock
from edgemem.memories.summary import Summary
from tests.memories import oracle
from tests.memories.support import advance, inputs, make_layer
from tests.runtimes.native.calls import rotary_phases
from tests.runtimes.native.operators import attend
from tests.runtimes.native.oracle import Call

SIZES = oracle.Sizes(heads=4, kv_heads=2, head_dim=8)
WINDOW = 6
LISTS: list[list[dict[str, Any]]] = [
    [{"type": "window", "window": WINDOW}],
    [{"type": "window", "window": WINDOW}, {"type": "sinks", "slots": 3}],
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
]


def call_of(layer: Attention, specs: list[dict[str, Any]], x: torch.Tensor, start: torch.Tensor, state: Any) -> Call:
    """The operator's inputs for a call of the layer."""
    heads, kv_heads, width = SIZES.heads, SIZES.kv_heads, SIZES.head_dim
    qkv = (x @ layer.qkv).reshape(*x.shape[:2], heads + 2 * kv_heads, width).transpose(1, 2).numpy()
    memories, biases, parameters = [], [], {}
    for m, (spec, (_, memory)) in enumerate(zip(specs, layer.named_memories(), strict=True)):
        kind, counts = spec["type"], spec.get("bias") == "log_count"
        options = f":{spec['slots']}:{spec['rate']}" if kind == "compressed" else ":log_count" if counts else ""
        memories.append(kind + options)
        if isinstance(memory, Summary):
            biases.append(np.zeros(heads) if memory.bias is None else memory.bias.flatten().numpy())
        if kind == "geometric":
            parameters[m] = torch.nn.functional.logsigmoid(memory.decay_logit).numpy()
        if kind == "gated_average":
            parameters[m] = memory.gate(x).numpy()
        if kind == "weighted_average":
            parameters[m] = memory.log_beta.numpy()
    order = {name: m for m, (name, _) in enumerate(layer.named_memories())}
    states = {f"{order[key.split('.')[0]]}.{key.split('.')[1]}": value.numpy() for key, value in state.items()}
    q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
    bias = np.stack(biases).astype(np.float32) if biases else None
    phases = rotary_phases(width, SIZES.theta)
    return Call(memories, q, k, v, start.numpy(), WINDOW, width**-0.5, states, phases, bias=bias, parameters=parameters)


@pytest.mark.parametrize("specs", LISTS, ids=lambda specs: "+".join(spec["type"] for spec in specs[1:]))
@torch.no_grad()
def test_steps_and_chunks_equal_torch(specs):
    layer = make_layer(specs, SIZES)
    names = [name for name, _ in layer.named_memories()]
    state = {spec.name: torch.full((2, *spec.fixed_shape), spec.initial) for spec in layer.states()}
    start = torch.tensor([0, 0])
    for step, time in enumerate([1, 4, 1, 1, 6, 2, 1, 1, 5]):
        x = inputs(time, batch=2, seed=step)
        want, new = layer(x, Clock(start, time), state)
        got = attend(call_of(layer, specs, x, start, state))
        torch.testing.assert_close(torch.from_numpy(got["read"]) @ layer.out, want, rtol=3e-6, atol=3e-6)
        mine = {
            f"{names[int(m)]}.{tensor}": torch.from_numpy(value)
            for key, value in got.items()
            if "." in key
            for m, tensor in [key.split(".")]
        }
        for key, value in new.items():
            torch.testing.assert_close(mine[key], value, rtol=3e-6, atol=3e-6, msg=f"{key} at step {step}")
        state = advance(layer.states(), state, start, mine)
        start = start + time
