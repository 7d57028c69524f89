import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.errors import ExportError
from edgemem.export.hf.rotary import RotaryEmbeddings, RotaryTable, Rotation, find_rotation
from edgemem.memories.clock import phase_angles
from tests.export.hf.decoders import decoder

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 5e5,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 128,
    "factor": 4.0,
    "rope_theta": 1e4,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
STATIC = {
    "default": ("llama", {}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "yarn": ("qwen3", {"rope_parameters": YARN}),
    "neighbouring pairs": ("cohere", {}),
    "each angle once": ("gpt_oss", {}),
    "a part of the head": ("phi", {}),
    "a table for each kind of layer": ("gemma3_text", {}),
}


def embeddings(model):
    return [module for name, module in model.named_modules() if name.endswith("rotary_emb")]


@pytest.mark.parametrize(("family", "changes"), STATIC.values(), ids=STATIC)
def test_near_the_beginning_the_angles_are_the_models_own(family, changes):
    model = decoder(family, **changes)
    (embedding,) = embeddings(model)
    positions = torch.arange(200)[None]
    kinds = ["full_attention", "sliding_attention"] if family == "gemma3_text" else [None]

    def ask():
        asked = [{} if kind is None else {"layer_type": kind} for kind in kinds]
        return torch.stack([part for kind in asked for part in embedding(torch.zeros(1), positions, **kind)])

    own = ask()
    rotary = RotaryEmbeddings(model, None)
    rotary.install()
    exact = ask()
    torch.testing.assert_close(exact, own, atol=3e-5, rtol=0)
    assert not torch.equal(exact, own)  # they are another computation
    with rotary.in_double():
        torch.testing.assert_close(ask(), exact, atol=1e-6, rtol=0)
        assert not torch.equal(ask(), exact)
    assert torch.equal(ask(), exact)


@given(position=st.integers(0, 2**40), distance=st.integers(-5000, 5000))
@settings(max_examples=30, deadline=None)
def test_distances_far_away_are_as_exact_as_near_ones(position, distance):
    table = RotaryTable((1.0, 0.1, 0.01, 1e-4), 1.0, "once")
    angles = phase_angles(torch.tensor([position, position + distance]), table.turns).double()
    turned = (angles[1] - angles[0]) - distance * torch.tensor(table.frequencies, dtype=torch.float64)
    away = torch.remainder(turned + math.pi, 2 * math.pi) - math.pi
    assert away.abs().max() < 2e-5


def test_frequencies_that_follow_the_length_are_refused_beyond_it():
    model = decoder("llama", rope_parameters=DYNAMIC, max_position_embeddings=64)
    with pytest.raises(ExportError, match="dynamic rotary positions change with the length of the text beyond 64"):
        RotaryEmbeddings(model, 65)
    with pytest.raises(ExportError, match="dynamic"):
        RotaryEmbeddings(model, None)


def test_frequencies_that_follow_the_length_are_fixed_within_it():
    model = decoder("llama", rope_parameters=DYNAMIC, max_position_embeddings=64)
    (embedding,) = embeddings(model)
    own = embedding(torch.zeros(1), torch.arange(64)[None])
    RotaryEmbeddings(model, 64)
    far = embedding(torch.zeros(1), torch.arange(200)[None])  # the model's own forward, past its length
    assert all(torch.equal(a, b[:, :64]) for a, b in zip(own, far, strict=True))


@pytest.mark.parametrize(("span", "length"), [(128, 100), (129, 200)])
def test_longrope_takes_the_table_of_the_span(span, length):
    model = decoder("phi3", rope_parameters=LONGROPE, max_position_embeddings=512)
    (embedding,) = embeddings(model)
    own = embedding(torch.zeros(1), torch.arange(length)[None])  # of a text of that length
    rotary = RotaryEmbeddings(model, span)
    rotary.install()
    for ours, theirs in zip(embedding(torch.zeros(1), torch.arange(length)[None]), own, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=0)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_rotation_of_a_layer_is_found_from_what_it_does(pairs, start, sign):
    table = RotaryTable((1.0, 0.3), 1.0, "halves")
    other = RotaryTable((0.8, 0.02), 1.0, "halves")
    x = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    rotation = Rotation(tuple(sign * frequency for frequency in table.frequencies), pairs, start)
    moved = rotation.turn(x, 7 * torch.tensor(rotation.frequencies))
    assert find_rotation((other, table), x, moved, 7) == rotation
    assert find_rotation((other, table), x, x, 7) == Rotation()
    assert find_rotation((other, table), x, moved * 1.1, 7) is None


@given(first=st.floats(-50, 50), second=st.floats(-50, 50), pairs=st.booleans())
@settings(max_examples=30, deadline=None)
def test_turning_twice_is_turning_by_the_sum(first, second, pairs):
    rotation = Rotation((1.0, 0.25), pairs, 2)
    x = torch.arange(8, dtype=torch.float64)
    frequencies = torch.tensor(rotation.frequencies, dtype=torch.float64)
    twice = rotation.turn(rotation.turn(x, first * frequencies), second * frequencies)
    torch.testing.assert_close(twice, rotation.turn(x, (first + second) * frequencies))
    torch.testing.assert_close(twice.norm(), x.norm())
