"""The exact cache: what it keeps, and what it needs."""

from __future__ import annotations

import pytest
import torch

from edgemem.errors import ConfigError
from tests.memories import oracle
from tests.memories.support import inputs, make_layer, stream

SIZES = oracle.Sizes(heads=2, kv_heads=1, head_dim=4)
SPECS = [{"type": "exact", "slots": 2}, {"type": "gated_delta"}]


def test_the_delta_rule_must_be_in_the_list() -> None:
    with pytest.raises(ConfigError, match="'exact' needs a 'gated_delta' in the same list") as refusal:
        make_layer([{"type": "window", "window": 4}, {"type": "exact"}], SIZES)
    assert refusal.value.hint == 'Add {"type": "gated_delta"} to the list.'


@pytest.mark.parametrize("chunks", [[1] * 12, [12], [5, 1, 6]])
def test_the_slots_are_sorted_by_surprise_however_the_steps_are_cut_into_calls(chunks: list[int]) -> None:
    layer, x = make_layer(SPECS, SIZES), inputs(12)
    want, got = stream(layer, x, [3, 4, 5])[1], stream(layer, x, chunks)[1]
    assert torch.allclose(got["exact.slots"], want["exact.slots"], atol=1e-6)
    surprise = got["exact.surprise"].flatten().tolist()
    assert surprise == sorted(surprise, reverse=True)


def test_what_the_matrix_holds_already_surprises_less_than_what_it_does_not() -> None:
    layer, x = make_layer(SPECS, SIZES), inputs(2)
    with torch.no_grad():
        layer.get_submodule("memories.gated_delta.gates").weight.zero_()
        layer.get_submodule("memories.gated_delta.gates").bias.fill_(8.0)  # keep all, write all
    twice = torch.cat([x[:, :1], x[:, :1], x[:, 1:]], dim=1)
    surprise = stream(layer, twice, [1] * 3)[1]["exact.surprise"].flatten()
    assert surprise.min() > 0.1, "the second of two equal pairs would have been the least"
