"""A module that breaks the protocol is told what it did, before anything is traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
        (modules.not_a_module, "returned int, wanted a torch.nn.Module"),
        (modules.NoContract, "has no contract"),
        (modules.Raises, "raised ValueError: not today"),
        (modules.ReturnsTensorAlone, r"returned Tensor, wanted \(outputs, new_state\)"),
        (modules.ForgetsState, "forgot the state 0.gru.h"),
        (modules.InventsState, "returned the state 0.gru.extra, which contract"),
        (modules.ReshapesState, r"'0.gru.h' is float32 \[2, 1, 8\], the contract has float32 \[2, 1, 16\]"),
        (modules.LayersFirst, r"'0.gru.h' is float32 \[2, 4, 16\], the contract has float32 \[4, 2, 16\]"),
        (modules.RemembersInAnAttribute, "gave other numbers when it was called again"),
        (modules.RetypesState, r"is float64 \[2, 1, 16\], the contract has float32"),
    ],
)
def test_a_module_that_breaks_it_is_refused_by_name(kind, message):
    with pytest.raises(ProtocolError, match=message):
        check_protocol(kind())


def test_an_error_inside_the_module_says_where_it_was_raised():
    with pytest.raises(ProtocolError, match=r"modules\.py:\d+"):
        check_protocol(modules.Raises())


class Tangled(nn.Module):
    """A GRU some way down, with one thing amiss beside it."""

    def __init__(self, amiss: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"body": modules.Gru(), "amiss": amiss})
        self.contract = self.encoder["body"].contract

    def forward(self, x, state):
        y, new = self.encoder["body"](self.encoder["amiss"](x), state)
        return y, new


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen = self.seen + 1
        return x * self.seen


class TakesLogarithms(nn.Module):
    def forward(self, x):
        return x.log()


class Halves(nn.Module):
    def forward(self, x):
        return x.half()


@pytest.mark.parametrize(
    ("amiss", "message"),
    [
        (Counts(), r"data and state: encoder.amiss \(Counts\) keeps encoder.amiss.seen, which changed"),
        (TakesLogarithms(), r"predictions holds NaN, which encoder.amiss \(TakesLogarithms\) made first"),
        (nn.Linear(2, 3), r"raised RuntimeError in encoder.amiss \(Linear\): "),
        (Halves(), r"raised \w+ in encoder.body.gru \(GRU\): "),
    ],
)
def test_an_error_names_the_submodule(amiss, message):
    with pytest.raises(ProtocolError, match=message):
        check_protocol(Tangled(amiss))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (modules.LayersFirst, "made in LayersFirst itself"),
        (modules.RetypesState, "made in RetypesState itself"),
        (modules.RemembersInAnAttribute, "RemembersInAnAttribute itself keeps hidden, which changed"),
    ],
)
def test_what_the_module_itself_does_wrong_is_told_apart_from_its_submodules(kind, message):
    with pytest.raises(ProtocolError, match=message):
        check_protocol(kind())
