"""A layer that reads the memories of an earlier layer with its own queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgemem.memories import Attention, Clock, Dims
from tests.memories import oracle
from tests.memories.support import (
    TOLERANCE,
    WIDTH,
    Specs,
    advance,
    error,
    initial,
    inputs,
    make_layer,
    parameters_of,
)

SIZES = oracle.Sizes(heads=4, kv_heads=2, head_dim=4)
LISTS: list[Specs] = [
    [{"type": "sinks", "slots": 2}, {"type": "window", "window": 4}, {"type": "cumulative"}],
    [{"type": "exact", "slots": 2}, {"type": "gated_delta"}, {"type": "gated_average"}],
    [{"type": "window", "window": 3}, {"type": "compressed", "slots": 2, "rate": 2, "pooling": "convolution"}],
    [{"type": "full"}],
]


def two_layers(specs: Specs) -> tuple[Attention, Attention]:
    source = make_layer(specs, SIZES)
    sharing = Attention(Dims(WIDTH, SIZES.heads, SIZES.kv_heads, SIZES.head_dim), specs, source)
    with torch.no_grad():
        for number, parameter in enumerate(sharing.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.4)
    return source, sharing


def truth(source: Attention, sharing: Attention, specs: Specs, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """The oracle of the first layer, with queries, mix and output of the second."""
    own = parameters_of(sharing)
    layer = oracle.Layer(SIZES, specs, parameters_of(source), x[0].double().numpy(), oracle.History())
    layer.parameters = {**layer.parameters, **own}
    for i, row in enumerate(y[0].double().numpy()):
        layer.q[i] = (row @ own["qkv"]).reshape(SIZES.kv_heads, SIZES.groups, SIZES.head_dim)
    return layer.output()[None]


@pytest.mark.parametrize("specs", LISTS, ids=lambda specs: specs[0]["type"])
@pytest.mark.parametrize("chunks", [None, [1] * 10, [3, 1, 2, 3, 1]])
def test_the_second_layer_asks_what_the_first_one_keeps(specs: Specs, chunks: list[int] | None) -> None:
    source, sharing = two_layers(specs)
    x, y = inputs(10), inputs(10, seed=7)
    want = truth(source, sharing, specs, x, y)
    if chunks is None:
        clock = Clock(torch.zeros(1, dtype=torch.int64), 10)
        source(x, clock, None)
        assert error(sharing(y, clock, None)[0].detach(), want) < TOLERANCE
        return
    done, outputs, state = 0, [], initial(source.states(), 1)
    for size in chunks:
        start = torch.tensor([done])
        clock = Clock(start, size)
        with torch.no_grad():
            _, new = source(x[:, done : done + size], clock, state)
            output, nothing = sharing(y[:, done : done + size], clock, state)
        assert nothing == {}
        outputs.append(output)
        state, done = advance(source.states(), state, start, new), done + size
    assert error(torch.cat(outputs, dim=1), want) < TOLERANCE


def test_it_has_no_states_and_no_parameters_of_memories() -> None:
    _, sharing = two_layers(LISTS[0])
    assert sharing.states() == ()
    names: Any = dict(sharing.named_parameters())
    assert set(names) == {"qkv", "out"}
    assert names["qkv"].shape == (WIDTH, SIZES.heads * SIZES.head_dim)


def test_training_the_second_layer_also_trains_what_the_first_one_keeps() -> None:
    source, sharing = two_layers(LISTS[1])
    clock = Clock(torch.zeros(1, dtype=torch.int64), 10)
    source(inputs(10), clock, None)
    sharing(inputs(10, seed=7), clock, None)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in sharing.named_parameters())
    assert source.get_submodule("memories.gated_delta.gates").weight.grad.abs().max() > 0  # type: ignore[union-attr]
