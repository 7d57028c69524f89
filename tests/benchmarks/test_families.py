"""Families of transformers' models stream what their own full-sequence pass computes, with no code for a family.

Graphs are exported in test_export.py, for a few; here every family runs in torch, past its windows.
"""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks.families import VOCAB, causal_families, find, stream_error, tiny_model  # noqa: E402
from edgemem.errors import ExportError  # noqa: E402
from edgemem.export.hf.bound import MemoryBound  # noqa: E402
from edgemem.export.hf.chunk import chunk_error  # noqa: E402
from edgemem.export.hf.loading import adapt  # noqa: E402
from edgemem.protocol import initial_tensors  # noqa: E402

RECURRENT = ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma")
HYBRID = (
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_text",
    "qwen3_next",
    "zamba",
    "zamba2",
)
STEPS = 40
BOUND = MemoryBound(window=12)


def known(*families: str) -> list[str]:
    return [family for family in families if family in causal_families()]


@pytest.mark.parametrize("family", known(*RECURRENT, *HYBRID))
def test_a_family_streams_what_its_full_sequence_computes(family):
    hybrid = family in HYBRID
    module = adapt(tiny_model(family), BOUND if hybrid else None)
    assert stream_error(module, STEPS) <= 1e-4
    assert any(spec.update == "replace" for spec in module.contract())
    assert any(spec.update == "append" for spec in module.contract()) == (hybrid or family == "recurrent_gemma")


@pytest.mark.parametrize("family", known("zamba2", "nemotron_h"))
def test_a_step_bounds_its_step_size_where_the_full_sequence_does(family):
    # transformers' own step does not: with this bound it is off by a tenth.
    module = adapt(tiny_model(family, time_step_min=0.5), BOUND)
    assert stream_error(module, STEPS) <= 1e-4
    assert chunk_error(module, "own") <= 1e-5


@pytest.mark.parametrize("family", known("mamba", "falcon_mamba", "jamba"))
def test_where_a_models_own_chunk_forgets_the_state_a_scan_keeps_it(family):
    module = adapt(tiny_model(family), BOUND if family == "jamba" else None)
    assert chunk_error(module, "own") > 1e-3
    assert chunk_error(module, "scan") <= 1e-5


@pytest.mark.parametrize("family", known("mamba2", "rwkv", "zamba2", "qwen3_next", "kimi_linear", "zamba"))
def test_a_scan_computes_what_the_steps_compute(family):
    module = adapt(tiny_model(family), BOUND if family in HYBRID else None)
    assert chunk_error(module, "scan") <= 1e-5


def test_outputs_are_computed_for_the_wanted_steps_alone():
    module = adapt(tiny_model("mamba2"))
    x = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    state = initial_tensors(module.contract(), 2)
    with torch.inference_mode(), module.in_form("own"):
        everything = module(x, state)[0]
        wanted = module(x, state, torch.tensor([1, 5]))[0]
    torch.testing.assert_close(wanted, everything[:, [1, 5]])


def test_an_initial_state_may_be_something_other_than_zero():
    contract = adapt(tiny_model("rwkv")).contract()
    assert contract["1.maximum"].initial == pytest.approx(-1e30)
    assert contract["1.numerator"].initial == 0


def test_a_recurrent_state_stays_in_single_precision_under_half_weights():
    contract = adapt(tiny_model("recurrent_gemma").bfloat16()).contract()
    assert contract["0.conv1d"].dtype == "bfloat16"
    assert contract["0.recurrent"].dtype == "float32"
    assert contract["2.window.k"].dtype == "bfloat16"


def test_a_hybrid_without_a_bound_for_its_attention_is_refused_with_the_way_out():
    with pytest.raises(ExportError, match="grows") as caught:
        adapt(tiny_model("lfm2"))
    assert "--memory" in str(caught.value.hint)


def test_a_cache_that_grows_where_no_attention_can_be_bounded_is_refused():
    with pytest.raises(ExportError, match=r"keys grows with the tokens"):
        adapt(tiny_model("bloom"))


def test_what_is_found_says_why_a_family_is_refused():
    finding = find("bloom")
    assert finding.kind == "refused"
    assert "grows" in finding.reason
    assert find("mamba").states == ("conv", "recurrent")
