"""A module that breaks the protocol is told what it did, before anything is traced."""

from __future__ import annotations

import pytest

from edgemem.errors import ProtocolError
from edgemem.protocol import check_protocol
from tests.export import modules


@pytest.mark.parametrize("kind", [modules.Gru, modules.Lstm, modules.RingSum])
def test_a_module_that_follows_the_protocol_passes_in_evaluation_mode(kind):
    module = kind().train()
    assert check_protocol(module) is module
    assert not module.training


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (modules.not_a_module, "returned a int, wanted a torch.nn.Module"),
        (modules.NoContract, "has no contract"),
        (modules.Raises, "raised ValueError: not today"),
        (modules.ReturnsTensorAlone, r"returned Tensor, wanted \(outputs, new_state\)"),
        (modules.ForgetsState, "forgot the state 0.gru.h"),
        (modules.InventsState, "returned the state 0.gru.extra, which contract"),
        (modules.ReshapesState, r"'0.gru.h' came out as float32 \[2, 1, 8\], the contract says float32 \[2, 1, 16\]"),
        (modules.LayersFirst, r"'0.gru.h' came out as float32 \[2, 4, 16\], the contract says float32 \[4, 2, 16\]"),
        (modules.RemembersInAnAttribute, "gave other numbers when it was called again"),
        (modules.RetypesState, r"came out as float64 \[2, 1, 16\], the contract says float32"),
    ],
)
def test_a_module_that_breaks_it_is_refused_by_name(kind, message):
    with pytest.raises(ProtocolError, match=message):
        check_protocol(kind())


def test_an_error_inside_the_module_says_where_it_was_raised():
    with pytest.raises(ProtocolError, match=r"modules\.py:\d+"):
        check_protocol(modules.Raises())
