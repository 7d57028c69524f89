"""The decoder: any way of cutting a sequence gives what the whole sequence gives, and it can be trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgemem.dtypes import numpy_dtype
from edgemem.models import Decoder, DecoderConfig
from edgemem.models.decoder import GatedMLP, RMSNorm
from edgemem.runtimes.torch_reference import TorchSession
from tests.memories.support import FIXED, advance, chunkings, complete, initial, memory_spec

pytestmark = pytest.mark.filterwarnings("ignore::edgemem.memories.LoneSummaryWarning")

WINDOW = {"type": "window", "window": 4}
HYBRID: list[dict[str, Any]] = [{"type": "sinks", "slots": 2}, WINDOW, {"type": "cumulative"}]
MIXED = [
    [{"type": "gated_delta"}, WINDOW],
    [{"type": "compressed", "slots": 2, "rate": 3}, {"type": "window", "window": 6}],
]


def make(seed: int = 0, **changes: Any) -> Decoder:
    """A decoder with every number drawn, large enough that nothing hides."""
    fields: dict[str, Any] = {"d_model": 16, "layers": 2, "heads": 4, "memory": HYBRID, "vocab_size": 11}
    model = Decoder(DecoderConfig(**{**fields, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def tokens(time: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(0, 11, (batch, time), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stream(model: Decoder, x: Tensor, sizes: list[int]) -> Tensor:
    specs, done, outputs = model.contract().states, 0, []
    state = {**initial(specs, x.shape[0]), "position": torch.zeros(x.shape[0], dtype=torch.int64)}
    for size in sizes:
        output, new = model(x[:, done : done + size], state)
        state = {**advance(specs, state, state["position"], new), "position": state["position"] + size}
        outputs.append(output)
        done += size
    return torch.cat(outputs, dim=1)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), kv_heads=st.sampled_from([1, 2, 4]), batch=st.integers(1, 2), time=st.integers(1, 20))
def test_any_chunking_equals_the_whole_sequence_for_memories_that_differ_by_layer(
    data: st.DataObject, kv_heads: int, batch: int, time: int
) -> None:
    memories = st.lists(memory_spec(kv_heads, FIXED), min_size=1, max_size=3).map(complete)
    model = make(memory=[data.draw(memories), data.draw(memories)], kv_heads=kv_heads)
    x = tokens(time, batch)
    with torch.no_grad():
        whole, _ = model(x)
    chunks = data.draw(chunkings(time, model.contract().max_chunk))
    for sizes in ([1] * time, chunks):
        assert (stream(model, x, sizes) - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("chunks", [[1] * 12, [4, 3, 4, 1]])
def test_layers_that_share_have_the_state_of_one_and_stream_as_the_whole_sequence(chunks: list[int]) -> None:
    model = make(layers=3, share_with=[None, 0, 0])
    assert {state.name.split(".")[0] for state in model.contract()} == {"0"}
    assert model.contract().state_bytes * 3 == make(layers=3).contract().state_bytes
    x = tokens(12, batch=2)
    with torch.no_grad():
        whole, _ = model(x)
    assert (stream(model, x, chunks) - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))
    assert not torch.equal(whole, make(layers=3)(x)[0])


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("memory", [HYBRID, MIXED])
def test_tokens_become_logits_over_the_vocabulary(tie: bool, memory: Any) -> None:
    model = make(memory=memory, tie_embeddings=tie)
    logits, new = model(tokens(5, batch=2))
    assert logits.shape == (2, 5, 11)
    assert {f"past.{name}" for name in new} == {state.input_name for state in model.contract()}
    assert ("head" in dict(model.named_parameters())) is not tie


def test_features_become_predictions() -> None:
    model = make(vocab_size=None, features=3, outputs=2)
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(x)
    assert whole.shape == (2, 9, 2)
    assert (stream(model, x, [1, 3, 2, 3]) - whole).abs().max() < 1e-5
    contract = model.contract()
    assert (contract.input.name, contract.input.shape, contract.input.is_tokens) == ("features", (3,), False)
    assert (contract.output.name, contract.output.shape) == ("predictions", (2,))


@settings(max_examples=20, deadline=None)
@given(time=st.integers(1, 12), data=st.data())
def test_output_indices_choose_which_time_steps_are_computed(time: int, data: st.DataObject) -> None:
    model, x = make(), tokens(time, batch=2)
    wanted = data.draw(st.lists(st.integers(0, time - 1), min_size=1, max_size=5))
    with torch.no_grad():
        whole, states = model(x)
        some, same_states = model(x, None, torch.tensor(wanted))
    assert torch.allclose(some, whole[:, wanted], atol=1e-6)
    assert all(torch.equal(states[name], same_states[name]) for name in states)


def test_the_contract_lists_every_state_of_every_layer_and_the_shortest_ring_bounds_a_chunk() -> None:
    contract = make(memory=MIXED).contract()
    assert [state.name for state in contract] == [
        "0.gated_delta.matrix",
        "0.window.k",
        "0.window.v",
        "1.compressed.slots",
        "1.compressed.partial",
        "1.window.k",
        "1.window.v",
    ]
    assert contract.max_chunk == 4
    assert make(memory=[{"type": "cumulative"}, {"type": "sinks"}], max_chunk=17).contract().max_chunk == 17
    assert make(memory=[{"type": "gated_delta"}]).contract().max_chunk == 64
    assert not make(memory=[{"type": "full"}]).contract().has_fixed_size


def test_grouped_heads_share_keys_and_values() -> None:
    assert make(kv_heads=1).contract()["0.window.k"].shape == (1, 4, 4)
    assert make(kv_heads=4).contract()["0.window.k"].shape == (4, 4, 4)
    assert make(kv_heads=1).get_parameter("layers.0.attention.qkv").shape == (16, (4 + 2) * 4)


def test_streams_of_a_batch_do_not_touch_each_other() -> None:
    model, x = make(), tokens(10, batch=3)
    changed = x.clone()
    changed[1] = (changed[1] + 1) % 11
    before, after = stream(model, x, [1] * 10), stream(model, changed, [1] * 10)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_the_norm_and_the_mlp_are_their_formulas() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    norm, mlp = RMSNorm(5, 1e-3), GatedMLP(5, 7)
    with torch.no_grad():
        for parameter in (norm.weight, mlp.gate_up, mlp.down):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        got_norm, got_mlp = norm(x).numpy(), mlp(x).numpy()
    wide = x.double().numpy()
    want = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-3) * norm.weight.detach().double().numpy()
    np.testing.assert_allclose(got_norm, want, rtol=1e-5)
    gate, up = np.split(wide @ mlp.gate_up.detach().double().numpy(), 2, axis=-1)
    want = (gate / (1 + np.exp(-gate)) * up) @ mlp.down.detach().double().numpy()
    np.testing.assert_allclose(got_mlp, want, rtol=1e-4, atol=1e-5)


def test_it_starts_out_knowing_nothing() -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_model=64, layers=2, heads=4, memory=HYBRID, vocab_size=50))
    x = torch.randint(0, 50, (4, 32))
    with torch.no_grad():
        logits, _ = model(x)
    assert float(F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())) == pytest.approx(
        np.log(50), abs=0.1
    )


@pytest.mark.parametrize(
    "memory", [[WINDOW], HYBRID, MIXED, [{"type": "linear_attention"}], [{"type": "gated_average"}, WINDOW]]
)
def test_training_lowers_the_loss_and_reaches_every_parameter(memory: Any) -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_model=32, layers=2, heads=4, memory=memory, vocab_size=11))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    x = torch.arange(24).remainder(7)[None].expand(4, -1) + torch.arange(4)[:, None]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(15):
        logits, _ = model(x)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(parameter, before[name]), name


EVERY = [
    [{"type": "sinks", "slots": 2}, WINDOW, {"type": "cumulative"}, {"type": "moving_average", "window": 4}],
    [WINDOW, {"type": "gated_delta"}, {"type": "gated_average"}, {"type": "compressed", "slots": 2, "rate": 2}],
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.15)])
@pytest.mark.parametrize("features", [False, True])
def test_a_decoder_in_half_precision_steps_to_what_float32_gives(dtype: Any, tolerance: float, features: bool) -> None:
    kind: dict[str, Any] = {"vocab_size": None, "features": 3, "outputs": 2} if features else {}
    wide = make(memory=EVERY, **kind)
    half = wide.converted(dtype)
    assert wide.converted("float32") is wide
    x = torch.arange(24).reshape(2, 12) % 11
    if features:
        x = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = wide(x)[0].numpy()
    stream = TorchSession(half.contract(), half).stream(2)
    for t in range(12):
        got = stream.step(x[:, t].numpy())
        assert got.dtype == np.float32
        assert np.abs(got - wanted[:, t]).max() < tolerance * (1 + np.abs(wanted).max())
    for spec in half.contract():
        assert stream.state()[spec.name].dtype == numpy_dtype(spec.dtype), spec.name


def test_half_precision_is_for_matrices_rings_and_sinks_alone() -> None:
    half = make(memory=EVERY).converted("float16", untie=True)
    narrow = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float16}
    matrices = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
    assert narrow == {"embedding", "head", *(f"layers.{layer}.{name}" for layer in (0, 1) for name in matrices)}
    states = {spec.name for spec in half.contract() if spec.dtype == "float16"}
    assert states == {
        "0.sinks.k", "0.sinks.v", "0.window.k", "0.window.v", "0.moving_average.pairs", "1.window.k", "1.window.v"
    }  # fmt: skip
    assert half.config.tie_embeddings is False


def test_an_untied_decoder_computes_the_same() -> None:
    model = make()
    untied = model.converted("float32", untie=True)
    x = torch.arange(6)[None]
    assert untied.head is not None
    torch.testing.assert_close(untied(x)[0], model(x)[0])
