"""What streams wrong is refused, whatever the scale of its outputs; what streams right passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgemem.errors import ProtocolError, VerificationError
from edgemem.export import discover, export_bundle
from edgemem.export.sources import from_module
from tests.export import wrong_models

WRONG = {
    "ReturnsTheFirstState": "chunks of 8: y at step 8 differs",
    "Forgets": "y at step [12] differs",
    "RescalesTheState": "y at step [12] differs",
    "DelaysTheState": "y at step [12] differs",
    "RoundsTheState": "y at step [0-9]+ differs",
    "SwapsRows": "y at step [12] differs",
    "MixesRows": "y at step [12] differs",
    "LosesOneElement": "y at step [12] differs",
    "SwapsElements": "y at step [12] differs",
    "AveragesOverTheCall": "y at step 0 differs",
    "LooksAhead": "y at step 0 differs",
    "KeepsACallCounter": "KeepsACallCounter itself keeps calls, which changed",
    "SwapsStates": "y at step [12] differs",
    "CountsInFloat": "the state 'count' counts in float32, which stops at 16,777,216",
    "CountsDown": "the state 'count' counts in float32, which stops at 16,777,216",
    "CountsEvents": "the state 'count' counts in float32, which stops at 16,777,216",
    "CountsInInt32": "the state 'count' counts in int32, which wraps at 2,147,483,647",
    "SharesACallCounter": r"keeps SharesACallCounter\.calls, which changed",
    "KeepsACallCounterElsewhere": r"keeps global _calls\[0\], which changed",
    "CastsACounter": "from position 16777215, the model's y differs by .* CastsACounter itself makes float32 of it",
}


def exported(name, folder):
    module = getattr(wrong_models, name)().eval()
    return export_bundle(from_module(module, name), folder / name)


@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_streams_wrong_is_refused(name, tmp_path):
    with pytest.raises(VerificationError, match=WRONG[name]):
        exported(name, tmp_path)


@pytest.mark.parametrize("name", ["Heads", "CountsRight", "FadesIn", "CountsEventsToALimit", "KeepsTheLargest"])
def test_a_model_that_streams_right_passes(name, tmp_path):
    report = exported(name, tmp_path).manifest.verification
    assert 0 <= report["step_error"] <= report["tolerance"]
    assert 0 <= report["state_error"] <= report["tolerance"]
    assert report["float64"]


def test_a_model_that_does_not_run_in_float64_is_exported_and_the_report_says_so(tmp_path):
    assert not exported("InsistsOnFloat32", tmp_path).manifest.verification["float64"]


def test_a_counter_that_is_declared_as_ignored_may_change(tmp_path):
    module = wrong_models.KeepsACallCounter().eval()
    module.ignored = ("call*",)
    export_bundle(from_module(module, "ignored"), tmp_path / "bundle")


class Nested(nn.Module):
    """A module of this file behind ``forward(x, state)`` with one state, for :func:`discover`."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x, state=None):
        y, new = self.inside(x, {"h": torch.zeros(len(x), 8) if state is None else state})
        return y, new["h"]


@pytest.mark.parametrize("name", ["Forgets", "ReturnsTheFirstState", "RoundsTheState", "AveragesOverTheCall"])
def test_small_outputs_do_not_hide_it_from_the_search_for_states_either(name):
    module = Nested(getattr(wrong_models, name)())
    with pytest.raises(ProtocolError, match="differ"):
        discover(module, torch.zeros(1, 1, 3))


class WrongStepAlone(nn.Module):
    """Right in calls of two steps or more, and silent in a call of one."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, state=None):
        y, new = self.gru(x, state)
        return self.head(y) * 2e-5 * (torch.ones_like(x[0, :, 0]).sum() > 1.5), new


def test_a_module_whose_single_steps_are_wrong_is_no_module_of_longer_steps():
    with pytest.raises(ProtocolError, match="output differs between"):
        discover(WrongStepAlone(), torch.zeros(1, 1, 3))


def test_a_right_module_of_any_scale_is_found():
    for scale in (1e-8, 1.0, 1e8):
        module = Nested(wrong_models.Recurrent())
        module.inside.scale = scale
        assert [spec.shape for spec in discover(module, torch.zeros(1, 1, 3)).contract()] == [(8,)]
