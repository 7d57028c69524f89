"""What a model carries is told apart by running it: states, constants, caches that grow, and hidden numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgemem.errors import ExportError
from edgemem.export.hf.find_states import find_states, forget_keys

V, H = 7, 3


class Toy(nn.Module):
    """A running sum of embeddings, carried in a cache that a test fills with further things."""

    def __init__(self, further) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, H)
        self.further = further

    def forward(self, input_ids, past_key_values=None, use_cache=True, return_dict=True):
        x = self.embed(input_ids)  # [B, T, H]
        cache = SimpleNamespace(layers=[{"sum_state": x.sum(dim=1), **self.further(x)}])
        return SimpleNamespace(logits=x, past_key_values=cache)


def states(further):
    return {spec.name: spec for spec in find_states(Toy(further), V).states.values()}


def test_a_tensor_that_keeps_its_shape_and_changes_is_a_state():
    found = states(lambda x: {"mean_cache": x.mean(dim=1).bfloat16()})
    assert {name: (spec.shape, spec.dtype) for name, spec in found.items()} == {
        "0.sum": ((H,), "float32"),
        "0.mean": ((H,), "bfloat16"),
    }


def test_a_tensor_that_nothing_changes_is_none():
    assert list(states(lambda x: {"ones": torch.ones(x.shape[0], 2), "table": torch.arange(4)})) == ["0.sum"]


def test_a_count_of_all_streams_together_is_no_state():
    assert list(states(lambda x: {"offset": torch.tensor([x.shape[1]])})) == ["0.sum"]


def test_a_tensor_that_grows_with_the_tokens_is_refused():
    with pytest.raises(ExportError, match=r"layers\[0\]\.keys grows with the tokens"):
        states(lambda x: {"keys": x})


def test_a_number_that_grows_with_the_tokens_is_refused():
    with pytest.raises(ExportError, match=r"counts in layers\[0\]\.seen as a Python number \(4, later 7\)"):
        states(lambda x: {"seen": x.shape[1]})


def test_a_tensor_with_its_streams_on_another_axis_is_refused():
    with pytest.raises(ExportError, match="streams on axis 1"):
        states(lambda x: {"turned": x.sum(dim=1).T.contiguous()})


def test_an_initial_state_of_more_than_one_value_is_refused():
    def fresh(model, batch):
        return SimpleNamespace(layers=[{"sum_state": torch.arange(float(H)).expand(batch, H)}])

    with pytest.raises(ExportError, match="starts with more than one value"):
        find_states(Toy(lambda x: {}), V, fresh)


def test_keys_and_values_are_forgotten_and_the_rest_is_kept():
    layer = SimpleNamespace(keys=torch.ones(1), values=torch.ones(1), is_initialized=True, conv=torch.ones(1))
    forget_keys(SimpleNamespace(layers=[layer]))
    assert layer.keys is None
    assert not layer.is_initialized
    assert layer.conv is not None
