"""Another form of a bundle, made of its own graph, computes what the bundle computes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.bench.loop import Inputs, new_stream
from edgemem.bench.numpy_loop import NumpyLoop
from edgemem.bench.rewritten import bounded_rings, growing_contract, sealed, with_whole_past
from edgemem.bundle import Bundle
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.runtimes import native
from tests.bench.tiny import write_attention

BOUNDS: list[dict[str, Any]] = [{"max_length": 8}, {"memory": "sinks=0,window=8,positions=slot"}]


def test_a_graph_that_writes_its_rings_goes_on_as_the_stream_does_past_the_end_of_a_ring(
    tokens: Bundle, tmp_path: Path
) -> None:
    whole = sealed(tokens, tmp_path / "sealed")
    assert [state.update for state in whole.contract] == ["replace", "replace"]
    by_hand, inputs = NumpyLoop(whole, threads=1), Inputs(tokens.contract)
    with edgemem.open(tokens.path, threads=1) as session:
        stream, x = session.stream(), inputs.first()
        for step in range(11):
            wanted = stream.step(x)
            np.testing.assert_allclose(by_hand.step_with(x), wanted, atol=1e-5, err_msg=f"step {step}")
            x = inputs.after(wanted)


def test_a_bundle_without_rings_is_its_own_sealed_form(growing: Bundle, tmp_path: Path) -> None:
    assert sealed(growing, tmp_path / "sealed") is growing


@pytest.mark.skipif(native.library() is None, reason=native.why())
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_model_with_its_whole_past_sees_more_than_its_window_and_the_same_before(
    tmp_path: Path, bound: dict[str, Any]
) -> None:
    bundle = write_attention(tmp_path / "bundle", 8, **bound)
    whole = with_whole_past(bundle, 24, tmp_path / "whole")
    longest = write_attention(tmp_path / "longest", 24, max_length=24)
    history = np.random.default_rng(0).integers(0, 16, 24).tolist()
    outputs = []
    for each in (bundle, whole, longest):
        with edgemem.open(each.path, threads=1) as session:
            stream = new_stream(session)
            limit = each.contract.max_position or len(history)
            outputs.append(np.concatenate([stream.step(token).copy() for token in history[:limit]]))
    bounded, kept, wanted = outputs
    np.testing.assert_array_equal(kept, wanted)
    np.testing.assert_array_equal(kept[:8], bounded[:8])
    assert len(bounded) == 8 or np.abs(kept[12:] - bounded[12:]).max() > 1e-3


def test_the_bytes_of_a_cache_that_grows_follow_from_its_rings(tmp_path: Path) -> None:
    bundle = write_attention(tmp_path / "bundle", 8, max_length=8)
    assert bounded_rings(bundle) == {"0.window.k", "0.window.v"}
    assert growing_contract(bundle, bounded_rings(bundle)).state_bytes_at(1_000) == 1_000 * 2 * 8 * 4


def test_a_bundle_without_native_operators_has_no_form_with_its_whole_past(tokens: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EdgememError, match="only native operators"):
        with_whole_past(tokens, 24, tmp_path / "whole")


def test_without_onnx_ir_the_hint_names_what_brings_it(
    tokens: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingDependencyError, match="onnx_ir") as raised:
        sealed(tokens, tmp_path / "sealed")
    assert raised.value.hint == 'pip install "edgemem-toolkit[export]"'
