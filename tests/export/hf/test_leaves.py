"""What a model carries is found by walking, and rebuilt around other tensors."""

from __future__ import annotations

import torch
from torch import nn

from edgemem.export.hf.leaves import module_attributes, rebuild, scalars, set_attribute, state_name, tensors


class Layer:
    def __init__(self, value: float) -> None:
        self.conv_states = {0: torch.full((2, 3), value), 1: None}
        self.seen = {0: True}
        self.count = 4


class Holder:
    def __init__(self) -> None:
        self.layers = [Layer(1.0), Layer(2.0)]
        self.pair = (torch.zeros(1), "name")
        self.owner = self


def test_every_tensor_is_found_by_its_path():
    assert list(tensors(Holder())) == [("layers", 0, "conv_states", 0), ("layers", 1, "conv_states", 0), ("pair", 0)]


def test_numbers_that_a_trace_would_bake_in_are_found_too():
    found = scalars(Holder())
    assert found["layers", 0, "count"] == 4
    assert found["pair", 1] == "name"


def test_a_rebuilt_object_holds_the_given_tensors_and_the_old_one_is_as_it_was():
    holder, given = Holder(), torch.full((2, 3), 7.0)
    new = rebuild(holder, {("layers", 1, "conv_states", 0): given})
    assert new.layers[1].conv_states[0] is given
    assert new.owner is new
    new.layers[0].conv_states[0] += 1  # not given: a copy
    assert holder.layers[0].conv_states[0].eq(1.0).all()
    assert holder.layers[1].conv_states[0].eq(2.0).all()


def test_tensors_that_modules_keep_as_attributes_are_found_and_set():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert module_attributes(model) == {}
    set_attribute(model, "1.kept", torch.ones(2))
    assert list(module_attributes(model)) == ["1.kept"]


def test_a_state_is_named_by_its_layer_and_kind():
    assert state_name(("layers", 3, "conv_states", 0)) == "3.conv"
    assert state_name(("layers", 3, "recurrent_states", 1)) == "3.recurrent.1"
    assert state_name(("rnn_state", 0, 2)) == "0.rnn.2"
    assert state_name(("model.layers.5.temporal_block.conv1d_state",)) == "5.conv1d"
    assert state_name(("maximum", "layers", 1)) == "1.maximum"
