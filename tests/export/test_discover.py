"""What a module carries is found by running it, and what would stream wrong is refused with its place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgemem
from edgemem.errors import ProtocolError
from edgemem.export import ExportOptions, discover, export_bundle, from_module, load_source
from edgemem.protocol import initial_tensors
from edgemem.streaming import CausalConv1d, Streaming

ROWS = torch.zeros(1, 1, 3)


class Recurrent(nn.Module):
    """One of torch's recurrent layers with a layer behind it."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, width: int = 8, layers: int = 1) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"cell": kind(3, width, layers, batch_first=True)})
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        y, state = self.body["cell"](x, state)
        return self.head(y), state


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]), st.integers(1, 6), st.integers(1, 4))
def test_the_states_of_torchs_recurrent_layers_are_found(kind, width, layers):
    found = discover(Recurrent(kind, width, layers), ROWS)
    contract = found.contract()
    names = ["body.cell.h", "body.cell.c"] if kind is nn.LSTM else ["body.cell.h"]
    assert [state.name for state in contract] == names
    assert {state.shape for state in contract} == {(layers, width)}
    assert {leaf.batch_axis for leaf in found.leaves} == {1}
    assert (contract.input.shape, contract.output.shape, contract.position) == ((3,), (2,), "none")


def test_the_declaration_that_is_shown_makes_the_same_contract():
    found = discover(Recurrent(), ROWS)
    names = {"torch": torch, "module": found.module, "Streaming": Streaming}
    again = eval(found.declaration(), {**names, "InputSpec": edgemem.InputSpec, "OutputSpec": edgemem.OutputSpec})
    assert again.contract() == found.contract()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.gru = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, h = self.gru(self.embed(x), h)
        return y @ self.gru.weight_ih_l0[:5], h


def test_token_ids_come_from_the_first_embedding():
    contract = discover(Tokens(), torch.zeros(1, 1, dtype=torch.int64)).contract()
    assert (contract.input.vocab_size, contract.input.shape) == (11, ())
    assert (contract.output.name, contract.output.shape) == ("logits", (4,))


def test_the_size_of_the_vocabulary_is_asked_for_where_nothing_tells_it():
    class Counts(nn.Module):
        def forward(self, x: Tensor, n: Tensor | None = None) -> tuple[Tensor, Tensor]:
            total = x.cumsum(dim=1) + (0 if n is None else n[:, None])
            return total[..., None].float(), total[:, -1]

    example = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ProtocolError, match="Give vocab_size="):
        discover(Counts(), example)
    (state,) = discover(Counts(), example, vocab_size=7, names=["count"]).contract()
    assert (state.name, state.shape, state.dtype) == ("count", (), "int64")


class Filter(NamedTuple):
    past: Tensor
    cell: dict[str, list[Tensor]]


class Nested(nn.Module):
    """A convolution and an LSTM of two layers whose initial state is learned, all in one namedtuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = CausalConv1d(3, 4, 3, dilation=2)
        self.lstm = nn.LSTM(4, 5, 2, batch_first=True)
        self.first = nn.Parameter(torch.randn(2, 1, 5))

    def initial_state(self, batch: int) -> Filter:
        h = self.first.expand(-1, batch, -1)
        return Filter(self.conv.initial_state(batch), {"lstm": [h, torch.zeros_like(h)]})

    def forward(self, x: Tensor, state: Filter) -> tuple[Tensor, Filter]:
        y, past = self.conv(x.mT, state.past)
        h, c = state.cell["lstm"]
        y, (h, c) = self.lstm(torch.relu(y).mT, (h.contiguous(), c))
        return y, Filter(past, {"lstm": [h, c]})


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    torch.manual_seed(0)
    adapter = discover(Nested(), ROWS)
    return adapter, export_bundle(
        from_module(adapter, "nested"), tmp_path_factory.mktemp("own") / "nested", ExportOptions(steps=40)
    )


def test_a_nested_state_with_a_learned_start_is_exported_and_streams_as_in_torch(nested):
    adapter, bundle = nested
    assert [state.name for state in bundle.contract] == ["past", "cell.lstm.0", "cell.lstm.1"]
    x = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = adapter.module(x, adapter.module.initial_state(1))[0][0].numpy()
    with edgemem.open(bundle.path) as session:
        stream = session.stream()
        chunk = stream.feed(x[0, :13].numpy(), outputs="all")
        steps = np.stack([stream.step(row)[0].copy() for row in x[0, 13:].numpy()])
        np.testing.assert_allclose(np.concatenate([chunk[0], steps]), whole, atol=1e-5)
        stream.reset()
        np.testing.assert_allclose(stream.step(x[0, 0].numpy())[0], whole[0], atol=1e-5)


def test_a_sealed_export_of_it_is_held_to_the_same(nested, tmp_path):
    adapter, _ = nested
    sealed = export_bundle(from_module(adapter, "nested"), tmp_path / "sealed", ExportOptions(sealed=True, steps=20))
    assert sealed.contract.position == "none"
    assert sealed.manifest.verification["step_error"] < 1e-4


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x[:, 0], h)
        return h[:, None], h


def test_a_module_of_single_steps_is_exported_with_a_chunk_of_one(tmp_path):
    with pytest.raises(ProtocolError, match=r"2 of features gave 1 of pred[\s\S]*one step a call, set max_chunk=1"):
        discover(Steps(), ROWS)
    bundle = export_bundle(
        from_module(discover(Steps(), ROWS, max_chunk=1), "steps"), tmp_path / "steps", ExportOptions(steps=20)
    )
    assert bundle.max_time == 1
    assert bundle.manifest.verification["step_error"] < 1e-4


class Wraps(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, state: object = None) -> object:
        return self.inner(x, state)


class InABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(3))

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        self.level += x.mean(dim=(0, 1))
        return x + self.level, x[:, -1]


class AtRandom(nn.Module):
    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return x + torch.rand_like(x), x[:, -1]


class Shrinks(nn.Module):
    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 4)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return x, state[:, :-1]


class NotFromZeros(nn.Module):
    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.cumsum(dim=1) + (torch.ones(3) if state is None else state[:, None])
        return total, total[:, -1]


class Raises(nn.Module):
    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        raise ValueError("not today")


class Summary(nn.Module):
    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.mean(dim=1), x[:, -1]


class Stateless(nn.Module):
    def forward(self, x: Tensor, state: object) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {}


class Window(nn.Module):
    """Keeps the last three inputs, or as many as there were."""

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        known = x if state is None else torch.cat([state, x], dim=1)
        return x + known[:, : x.shape[1]], known[:, -3:]


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (InABuffer(), r"same data and state: inner \(InABuffer\) keeps inner.level, which changed"),
        (AtRandom(), "same data and state.\nIt keeps nothing between calls, so something in it is random"),
        (
            Shrinks(),
            r"changes: float32 \[2, 4\] before a call of 1 step, float32 \[2, 3\] after it; made in inner \(Shri",
        ),
        (Window(), r"grows: float32 \[2, 1, 3\] before .* \[2, 2, 3\] after it; made in inner \(Window\)"),
        (NotFromZeros(), "does not start from zeros"),
        (Raises(), r"and no state \(None\) raised ValueError in inner \(Raises\): not today"),
        (Summary(), "1 of features gave 3 of predictions; 2 of features gave 3 of predictions"),
        (Stateless(), "returned no state"),
        (nn.LSTM(3, 4, batch_first=True, bidirectional=True), r"first difference is in the output of inner \(LSTM\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_would_stream_wrong_is_refused_with_the_path_of_the_submodule(inner, message):
    module = Wraps(inner)
    if hasattr(inner, "initial_state"):
        module.initial_state = inner.initial_state
    with pytest.raises(ProtocolError, match=message):
        discover(module, ROWS)


def test_a_cache_that_changes_no_number_is_no_hidden_state():
    class Caches(Recurrent):
        seen: Tensor | None = None

        def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
            self.seen = x.detach()
            return super().forward(x, state)

    assert [state.name for state in discover(Caches(), ROWS).contract()] == ["body.cell.h", "body.cell.c"]


def test_a_start_that_is_given_is_taken_before_all_others():
    module = NotFromZeros()
    (state,) = discover(module, ROWS, state=lambda batch: torch.ones(batch, 3)).contract()
    assert state.initial == 1


def test_a_window_that_starts_full_keeps_its_size():
    found = discover(Window(), ROWS, state=lambda batch: torch.zeros(batch, 3, 3))
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    _, state = found(x, initial_tensors(found.contract(), 2))
    torch.testing.assert_close(state["state"], x[:, -3:])


@pytest.mark.parametrize("kind", ["Recurrent", "Tokens"])
def test_a_factory_without_a_contract_is_told_the_declaration(kind):
    with pytest.raises(ProtocolError, match="has no contract") as error:
        load_source(f"{__name__}:{kind}")
    assert error.value.hint is not None
    code = error.value.hint.partition("\n\n")[2]
    names = {"module": globals()[kind]()}
    exec(code.replace("Streaming(\n", "found = Streaming(\n"), names)
    assert names["found"].contract().input == (
        edgemem.InputSpec("features", (3,))
        if kind == "Recurrent"
        else edgemem.InputSpec("tokens", dtype="int64", vocab_size=11)
    )


def test_a_factory_of_which_nothing_can_be_found_is_told_why():
    with pytest.raises(ProtocolError, match=r"discover\(module, example\)[\s\S]*does not start from zeros"):
        load_source(f"{__name__}:with_a_linear_layer")


def with_a_linear_layer() -> nn.Module:
    module = NotFromZeros()
    module.head = nn.Linear(3, 3)
    return module


@pytest.mark.parametrize("example", [torch.zeros(3), [[0.0]]])
def test_the_example_is_a_batch_of_sequences(example):
    with pytest.raises(ProtocolError, match="the example must be a tensor"):
        discover(Recurrent(), example)
