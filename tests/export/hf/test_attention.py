"""Bounded decoders against transformers' own full-sequence pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.errors import ExportError
from edgemem.export.hf.bound import MemoryBound
from edgemem.export.hf.loading import adapt, load, load_model
from edgemem.runtimes.torch_reference import TorchSession
from tests.export.hf.decoders import DECODERS, LEARNED, decoder, tokens

STEPS = 256
WINDOW, SINKS = 16, 4
MEMORY = f"sinks={SINKS},window={WINDOW}"
WINDOWS_ALONE = {"mistral"}  # all layers slide: there is nothing to bound


def saved(folder, family, **changes):
    """A checkpoint as a user's download would lie there."""
    decoder(family, **changes).save_pretrained(folder)
    return folder


def error(got, expected):
    """Largest difference in the scale of ``1 + |expected|``."""
    return float(np.abs((got - expected) / (1 + np.abs(expected))).max())


def stepped(stream, ids):
    return np.stack([stream.step(row).copy() for row in ids.T.numpy()], axis=1)


def fed(stream, ids, sizes):
    parts, done = [], 0
    while done < ids.shape[1]:
        part = ids[:, done : done + sizes[len(parts) % len(sizes)]]
        parts.append(stream.feed(part.numpy(), outputs="all"))
        done += part.shape[1]
    return np.concatenate(parts, axis=1)


def check_streams(source, ids, sizes=(7, 1, 5, 9, 2)):
    """Steps, and mixed chunks from the state that half of the steps left, are the full-sequence pass."""
    session = TorchSession(source.contract, source.module)
    with torch.no_grad():
        expected = source.reference(ids).numpy()
    stream, half = session.stream(ids.shape[0]), ids.shape[1] // 2
    assert error(stepped(stream, ids[:, :half]), expected[:, :half]) < 1e-4
    warm = stream.fork()
    assert error(stepped(stream, ids[:, half:]), expected[:, half:]) < 1e-4
    assert error(fed(warm, ids[:, half:], sizes), expected[:, half:]) < 1e-4
    return expected


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_streams_with_a_bounded_memory(family, tmp_path):
    memory = None if family in WINDOWS_ALONE else MEMORY
    source = load(saved(tmp_path, family), memory=memory)
    expected = check_streams(source, tokens(STEPS))
    assert source.contract.has_fixed_size
    if memory:  # the bound matters: what is compared is not full attention
        with torch.no_grad():
            full = load_model(tmp_path)(tokens(STEPS), use_cache=False).logits.numpy()
        assert error(full[:, :WINDOW], expected[:, :WINDOW]) < 1e-4
        assert error(full, expected) > 1e-2


@pytest.mark.parametrize("family", [*LEARNED, "llama", "gemma3_text"])
def test_up_to_a_length_attention_is_exact(family, tmp_path):
    source = load(saved(tmp_path, family), max_length=100)
    expected = check_streams(source, tokens(100))
    with torch.no_grad():
        own = load_model(tmp_path)(tokens(100), use_cache=False).logits.numpy()
    assert error(own, expected) < 1e-5
    assert source.contract.max_position == 100


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "cohere", "smollm3"])
def test_the_same_memory_as_a_mask_on_an_untouched_model(family, tmp_path):
    """Sinks at their absolute positions are a mask of four dimensions, which transformers takes from anybody."""
    source = load(saved(tmp_path, family), memory=f"{MEMORY},positions=absolute")
    ids = tokens(96)
    check_streams(source, ids)
    age = torch.arange(96)[:, None] - torch.arange(96)
    seen = (age >= 0) & ((age < WINDOW) | (torch.arange(96) < SINKS))
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None].expand(2, -1, -1, -1)
    with torch.no_grad():
        expected = load_model(tmp_path)(ids, attention_mask=mask, use_cache=False).logits.numpy()
    got = stepped(TorchSession(source.contract, source.module).stream(2), ids)
    assert error(got, expected) < 1e-4


@pytest.mark.parametrize("text", ["window=6", "window=6,summary=cumulative", "sinks=1,window=40,summary=cumulative"])
@pytest.mark.parametrize("family", ["llama", "smollm3"])
def test_every_memory_streams(family, text, tmp_path):
    check_streams(load(saved(tmp_path, family), memory=text), tokens(120), sizes=(6, 1, 4, 2))


@given(
    window=st.integers(1, 14),
    sinks=st.integers(0, 6),
    positions=st.sampled_from(["slot", "absolute"]),
    sizes=st.lists(st.integers(1, 14), min_size=1, max_size=5),
)
@settings(max_examples=12, deadline=None)
def test_any_window_any_sinks_and_any_chunks_agree(window, sinks, positions, sizes):
    adapter = adapt(decoder("llama"), MemoryBound(window, sinks, None, positions))
    ids = tokens(40, batch=1)
    with torch.no_grad():
        expected = adapter.full_sequence(ids).numpy()
    assert error(fed(TorchSession(adapter.contract(), adapter).stream(), ids, sizes), expected) < 1e-4


def test_layers_with_a_window_keep_it(tmp_path):
    contract = load(saved(tmp_path, "gemma2"), memory=MEMORY).contract
    assert contract["0.window.k"].shape == (2, 9, 8)  # as the checkpoint has it
    assert contract["1.window.k"].shape == (2, WINDOW, 8)
    assert contract["1.sinks.v"].shape == (2, SINKS, 8)
    assert "0.sinks.k" not in {state.name for state in contract}
    assert contract.max_chunk == 9
    assert {state.update for state in contract if ".window." in state.name} == {"append"}


@pytest.mark.parametrize("family", ["llama", "cohere", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("far", [2**24 - 3, 2**31 - 3, 10**12])
def test_far_positions_say_what_near_ones_say(family, far, tmp_path):
    """A stream depends on its sinks and on as many tokens as its windows reach: not on where it stands."""
    source = load(saved(tmp_path, family), memory=MEMORY)
    session = TorchSession(source.contract, source.module)
    near, distant = session.stream(), session.stream()
    warm, ids = tokens(40, batch=1, seed=1), tokens(2 * WINDOW + 40, batch=1)
    near.feed(warm.numpy())
    state = {name: value if ".sinks." in name else np.zeros_like(value) for name, value in near.state().items()}
    distant.load_state(state, far)
    last = slice(2 * WINDOW + 1, None)  # two layers look back that far
    expected = fed(near, ids, [8])[:, last]
    assert error(fed(distant, ids, [8])[:, last], expected) < 1e-4


def test_streams_of_one_batch_may_stand_at_different_positions(tmp_path):
    source = load(saved(tmp_path, "llama"), memory=MEMORY)
    session = TorchSession(source.contract, source.module)
    one, other, both = session.stream(), session.stream(), session.stream(2)
    ids, early = tokens(50), tokens(21, batch=1, seed=2)
    one.feed(early.numpy())
    state, fresh = one.state(), other.state()
    both.load_state({name: np.concatenate([state[name], fresh[name]]) for name in state}, np.array([21, 0]))
    alone = np.concatenate([fed(one, ids[:1], [8]), fed(other, ids[1:], [8])])
    assert error(fed(both, ids, [8]), alone) < 1e-5


def test_a_norm_behind_the_rotation_leaves_sinks_where_they_were(tmp_path):
    """Its weights differ from element to element: such queries cannot be turned on to another position."""
    saved(tmp_path, "hunyuan_v1_dense")
    with pytest.raises(ExportError, match="does not recognise how its queries rotate with the position") as refused:
        load(tmp_path, memory=MEMORY)
    assert "positions=absolute" in refused.value.hint
    check_streams(load(tmp_path, memory=f"{MEMORY},positions=absolute"), tokens(60))


def test_half_precision_keeps_its_rings_in_half(tmp_path):
    source = load(saved(tmp_path, "llama"), memory=f"{MEMORY},summary=cumulative", dtype="bf16")
    dtypes = {state.name.partition(".")[2]: state.dtype for state in source.contract}
    assert {dtypes[name] for name in ("window.k", "window.v", "sinks.k", "sinks.v")} == {"bfloat16"}
    assert dtypes["summary.mean"] == "float32"
    # Rounding may add up in another order: it may not add more than transformers' own rounding.
    ids = tokens(64)
    with torch.no_grad():
        exact = load(tmp_path, memory=f"{MEMORY},summary=cumulative").reference(ids).numpy()
        rounded = source.reference(ids).float().numpy()
    got = fed(TorchSession(source.contract, source.module).stream(2), ids, [8]).astype(np.float32)
    assert np.abs(got - exact).mean() < 1.2 * np.abs(rounded - exact).mean()
