"""Whatever a module's state is nested in, the protocol sees flat tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgemem import InputSpec, OutputSpec
from edgemem.errors import ProtocolError
from edgemem.protocol import check_protocol, initial_tensors
from edgemem.streaming import Streaming
from edgemem.streaming.leaves import flatten

IN, OUT = InputSpec("features", (3,)), OutputSpec("y", (1,))


class Pair(NamedTuple):
    h: object
    c: object


@dataclass
class Cell:
    read: object
    write: object


class Sums(nn.Module):
    """Adds the sum of its inputs to every tensor of its state; the output is the mean of all of them."""

    def __init__(self, axes: dict[str, int]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor, state: object) -> tuple[Tensor, object]:
        leaves, spec = flatten(state)
        total = x.sum(dim=2).cumsum(dim=1)  # [B, T]
        new, read = [], torch.zeros(())
        for path, value in leaves:
            value = value.movedim(self.axes[path], 0)
            read = read + value.reshape(value.shape[0], -1).mean(dim=1)[:, None] + total
            value = value + total[:, -1].reshape(-1, *(1 for _ in value.shape[1:]))
            new.append(value.movedim(0, self.axes[path]))
        return read[..., None], torch.utils._pytree.tree_unflatten(new, spec)


leaf = st.tuples(st.lists(st.integers(1, 4), max_size=3), st.integers(0, 3)).map(
    lambda drawn: (tuple(drawn[0]), min(drawn[1], len(drawn[0])))
)
trees = st.recursive(
    leaf.map(lambda drawn: ("leaf", drawn)),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["h", "conv1", "a_b"]), inner, min_size=1, max_size=3).map(
            lambda items: ("dict", items)
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: ("list", items)),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: ("tuple", items)),
        st.tuples(inner, inner).map(lambda items: ("pair", items)),
        st.tuples(inner, inner).map(lambda items: ("cell", items)),
    ),
    max_leaves=5,
)


def build(tree, batch, fill=0.0):
    kind, content = tree
    if kind == "leaf":
        shape, axis = content
        return torch.full((*shape[:axis], batch, *shape[axis:]), fill)
    if kind == "dict":
        return {key: build(item, batch, fill) for key, item in content.items()}
    items = [build(item, batch, fill) for item in content]
    return {"list": list, "tuple": tuple, "pair": lambda i: Pair(*i), "cell": lambda i: Cell(*i)}[kind](items)


def wanted_axes(tree):
    """The axes that the leaves were drawn with, by path."""
    two, three = flatten(build(tree, 2))[0], flatten(build(tree, 3))[0]
    return {
        path: next(axis for axis, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b)
        for (path, one), (_, other) in zip(two, three, strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(trees, st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_a_state_of_any_nesting_streams_in_any_chunks(tree, batch, chunks):
    adapter = Streaming(Sums(wanted_axes(tree)), state=lambda b: build(tree, b), inputs=IN, outputs=OUT)
    check_protocol(adapter)
    contract = adapter.contract()
    x = torch.randn(batch, sum(chunks), 3, generator=torch.Generator().manual_seed(0))
    whole, last = adapter(x, initial_tensors(contract, batch))
    assert all(last[spec.name].movedim(spec.batch_axis, 0).shape == (batch, *spec.shape) for spec in contract)
    state, parts = initial_tensors(contract, batch), []
    for part in x.split(chunks, dim=1):
        y, state = adapter(part, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(trees, st.integers(1, 4))
def test_nesting_what_was_flattened_gives_the_module_its_own_state_back(tree, batch):
    adapter = Streaming(Sums({}), state=lambda b: build(tree, b), inputs=IN, outputs=OUT)
    before, spec = flatten(build(tree, batch, fill=2.5))
    after, same = flatten(adapter.nest(adapter.flatten(build(tree, batch, fill=2.5))))
    assert spec == same
    assert [path for path, _ in before] == [path for path, _ in after]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True))


@settings(max_examples=40, deadline=None)
@given(trees, st.sampled_from([0.0, 1.0, -2.5]))
def test_the_declaration_makes_the_same_adapter_again(tree, fill):
    adapter = Streaming(Sums({}), state=lambda b: build(tree, b, fill), inputs=IN, outputs=OUT, max_chunk=9)
    names = {
        "torch": torch,
        "module": adapter.module,
        "Pair": Pair,
        "Cell": Cell,
        **{kind.__name__: kind for kind in (Streaming, InputSpec, OutputSpec)},
    }
    again = eval(adapter.declaration(), names)
    assert again.contract() == adapter.contract()
    assert again.leaves[0].batch_axis == adapter.leaves[0].batch_axis
    assert flatten(again.start(3))[1] == flatten(build(tree, 3))[1]


@pytest.mark.parametrize(
    ("state", "names"),
    [
        (lambda b: torch.zeros(b, 2), ["state"]),
        (lambda b: (torch.zeros(b, 2), torch.zeros(b, 3)), ["state.0", "state.1"]),
        (lambda b: {"lstm": Pair(torch.zeros(1, b, 2), torch.zeros(1, b, 2))}, ["lstm.h", "lstm.c"]),
        (lambda b: {"a b": [Cell(torch.zeros(b), torch.zeros(b))]}, ["a_b.0.read", "a_b.0.write"]),
    ],
)
def test_the_names_are_the_paths(state, names):
    adapter = Streaming(nn.Identity(), state=state, inputs=IN, outputs=OUT)
    assert [spec.name for spec in adapter.contract()] == [name.replace("a_b", "a.b") for name in names]


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def initial_state(self, batch: int) -> Tensor:
        return self.first.expand(batch, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        hs = h[:, None] + x.cumsum(dim=1)
        return hs.sum(dim=2, keepdim=True), hs[:, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_state_whose_elements_start_at_different_values_has_an_initial_tensor(dtype):
    first = torch.tensor([[1.0, 2.0, 3.0], [4.0, -5.0, 6.0]]).to(dtype)
    adapter = Streaming(nn.Identity(), state=lambda b: first[:, None].expand(2, b, 3), inputs=IN, outputs=OUT)
    contract = adapter.contract()
    assert contract.position == "none"
    assert len(contract["state"].initial) == 6 * dtype.itemsize
    found = initial_tensors(contract, 2)["state"]
    assert found.dtype == dtype
    assert torch.equal(adapter.nest({"state": found}), first[:, None].expand(2, 2, 3))


def test_a_learned_initial_state_is_where_a_stream_begins_and_has_no_effect_later():
    module = Learned()
    adapter = Streaming(module, state=module.initial_state, inputs=IN, outputs=OUT)
    y, state = adapter(torch.zeros(2, 1, 3), initial_tensors(adapter.contract(), 2))
    assert y.flatten().tolist() == [6.0, 6.0]
    y, state = adapter(torch.zeros(2, 1, 3), {"state": torch.full((2, 3), 10.0)})
    assert y.flatten().tolist() == [30.0, 30.0]
    assert state["state"].tolist() == [[10.0, 10.0, 10.0]] * 2
    assert list(adapter.state_dict()) == ["module.first"]


def test_a_state_is_declared_with_the_batch_axis_that_it_has():
    adapter = Streaming(nn.Identity(), state=lambda b: [torch.zeros(2, b, 4), torch.zeros(b)], inputs=IN, outputs=OUT)
    assert [(spec.shape, spec.batch_axis) for spec in adapter.contract()] == [((2, 4), 1), ((), 0)]
    assert initial_tensors(adapter.contract(), 3)["state.0"].shape == (2, 3, 4)


def test_a_state_that_starts_at_one_value_needs_no_position():
    adapter = Streaming(nn.Identity(), state=lambda b: torch.full((b, 2), -1.5), inputs=IN, outputs=OUT)
    assert adapter.contract().position == "none"
    assert adapter.contract()["state"].initial == -1.5


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda b: torch.zeros(1, 4), r"initial state 'state' has no batch axis: \[1, 4\] for two streams"),
        (lambda b: torch.zeros(4 * b, 3), r"batch folded into another axis: \[8, 3\] for two streams, \[12, 3\]"),
        (lambda b: torch.zeros(b, b), "more than one axis that depends on the batch"),
        (lambda b: torch.zeros([3] * b), "more than one axis that depends on the batch"),
        (lambda b: {"a": torch.arange(b * 2.0).reshape(b, 2)}, "initial state 'a' differs from stream to stream"),
        (lambda b: {"n": 0, "h": torch.zeros(b)}, "initial state 'n' is an int, wanted a tensor"),
        (lambda b: [torch.zeros(b)] * b, "nested differently for two streams and for three"),
        (lambda b: {}, "holds no tensor"),
        (lambda b: torch.zeros(b, 3, dtype=torch.float64), "dtype 'float64' is not one of"),
        (lambda b: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_start_that_cannot_be_carried_is_refused_by_name(state, message):
    with pytest.raises(ProtocolError, match=message):
        Streaming(nn.Identity(), state=state, inputs=IN, outputs=OUT)


def test_as_many_names_are_wanted_as_there_are_states():
    with pytest.raises(ProtocolError, match=r"1 names for 2 states: \[0\], \[1\]"):
        Streaming(nn.Identity(), state=lambda b: [torch.zeros(b)] * 2, inputs=IN, outputs=OUT, names=["h"])


class Returns(nn.Module):
    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor, state: object) -> object:
        return self.result


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(2, 1, 1), r"Returns.forward returned a Tensor, wanted \(outputs, new state\)"),
        ((torch.zeros(2, 1, 1),), "returned a tuple of 1, wanted"),
        ((torch.zeros(2, 1, 1), [torch.zeros(2, 4)]), r"was given the state \['h'\], and returned \[0\]"),
        (
            (torch.zeros(2, 1, 1), {"h": torch.zeros(2)}),
            r"given the state 'h' as \[batch, 4\], and returned a tensor of shape \[2\]",
        ),
        ((torch.zeros(2, 1, 1), {"h": 3}), r"given the state 'h' as \[batch, 4\], and returned an int"),
    ],
)
def test_a_module_that_gives_its_state_back_otherwise_is_refused(result, message):
    adapter = Streaming(Returns(result), state=lambda b: {"h": torch.zeros(b, 4)}, inputs=IN, outputs=OUT)
    with pytest.raises(ProtocolError, match=message):
        adapter(torch.zeros(2, 1, 3), initial_tensors(adapter.contract(), 2))
