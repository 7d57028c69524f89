"""What cannot become a graph is refused with its real cause."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgemem.errors import ExportError, ProtocolError
from edgemem.export import discover
from edgemem.export.graph import export_graph


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 8, proj_size=4, batch_first=True)

    def forward(self, x, state=None):
        return self.lstm(x, state)


class RunningMaximum(nn.Module):
    def forward(self, x, state):
        y = torch.cummax(torch.cat([state, x], dim=1), dim=1).values[:, 1:]
        return y, y[:, -1:]

    def initial_state(self, batch):
        return torch.full((batch, 1, 3), -1e9)


def test_a_projection_in_an_lstm_is_named():
    module = discover(Projected(), torch.zeros(1, 1, 3))
    with pytest.raises(ExportError, match=r"lstm is an nn.LSTM with proj_size=4, and ONNX's LSTM has no projection"):
        export_graph(module, module.contract())


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 5, batch_first=True)

    def forward(self, x, state=None):
        return self.rnn(x, state)


def test_a_plain_recurrent_layer_is_named_and_exported_by_single_steps():
    module = discover(Plain(), torch.zeros(1, 1, 3))
    with pytest.raises(ExportError, match=r"rnn is an nn.RNN, which torch's exporter writes for one number of steps"):
        export_graph(module, module.contract())
    module = discover(Plain(), torch.zeros(1, 1, 3), max_chunk=1)
    export_graph(module, module.contract())


def test_an_operator_that_onnx_does_not_have_is_named():
    module = discover(RunningMaximum(), torch.zeros(1, 1, 3))
    with pytest.raises(ExportError, match=r"RunningMaximum uses aten.cummax, which torch cannot express in ONNX"):
        export_graph(module, module.contract())


def test_a_scripted_module_is_told_from_a_python_module():
    scripted = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(ProtocolError, match="it is a TorchScript module"):
        discover(scripted, torch.zeros(1, 1, 3))
    with pytest.raises(ProtocolError, match="its submodule 0 is a TorchScript module"):
        discover(nn.Sequential(scripted), torch.zeros(1, 1, 3))
