"""Every memory, alone and in a hybrid, exports and agrees with torch: open rings, sealed rings, grouped heads."""

from __future__ import annotations

import onnx
import pytest
import torch

from edgemem import StateSpec
from edgemem.export import export_bundle, from_config
from edgemem.memories import MEMORIES, RecurrentMemory, register_memory
from edgemem.models import DecoderConfig
from tests.export.conftest import lively

WINDOW = {"type": "window", "window": 6}
KINDS = {name: list(cls.about.example) for name, cls in sorted(MEMORIES.items()) if cls.about is not None}
CONVOLUTION = [WINDOW, {"type": "compressed", "slots": 2, "rate": 3, "pooling": "convolution"}]
LISTS = KINDS | {"convolution": CONVOLUTION}
SEALED = ("sinks", "moving_average", "compressed")


def test_no_memory_is_left_out():
    assert set(KINDS) == {name for name, cls in MEMORIES.items() if cls.__module__.startswith("edgemem.")}
    assert all(name in {spec["type"] for spec in specs} for name, specs in KINDS.items())


@pytest.mark.parametrize("name", LISTS)
def test_the_exported_graph_computes_what_torch_computes(name, memory_bundle):
    report = memory_bundle(name, LISTS[name]).manifest.verification
    assert max(report["step_error"], *report["chunk_errors"].values()) < 2e-5


@pytest.mark.long
@pytest.mark.parametrize("name", SEALED)
def test_the_sealed_graph_computes_what_torch_computes(name, memory_bundle):
    report = memory_bundle(name, LISTS[name], heads=2, sealed=True).manifest.verification
    assert max(report["step_error"], *report["chunk_errors"].values()) < 2e-5


def test_layers_that_share_export_with_the_state_of_one_and_an_operator_each(tmp_path):
    memory = [{"type": "sinks", "slots": 2}, WINDOW, {"type": "cumulative"}]
    config = DecoderConfig(16, 2, 4, memory, kv_heads=2, vocab_size=20, share_with=[None, 0])
    bundle = export_bundle(lively(from_config(config, "sharing")), tmp_path / "bundle")
    report = bundle.manifest.verification
    assert max(report["step_error"], *report["chunk_errors"].values()) < 2e-5
    assert {state.name.split(".")[0] for state in bundle.contract} == {"0"}
    native = onnx.load(bundle.path / "native.model.onnx", load_external_data=False)
    assert sum(node.op_type == "MemoryAttention" for node in native.graph.node) == 2


class Peak(RecurrentMemory):
    """An f of the user's own: the largest pair so far, channel by channel."""

    type_name = "test_peak"

    def states(self):
        return (StateSpec("pair", (2 * self.dims.kv_heads, self.dims.head_dim), initial=-1e9),)

    def update(self, pair, x, state):
        peak = torch.maximum(state["pair"], pair)
        return peak, {"pair": peak}


def test_an_f_of_the_users_own_exports_as_a_scan(tmp_path, monkeypatch):
    monkeypatch.delitem(MEMORIES, Peak.type_name, raising=False)
    monkeypatch.setitem(MEMORIES, "unused", Peak)  # restores the registry afterwards
    register_memory(Peak)
    config = DecoderConfig(
        d_model=16, layers=1, heads=2, vocab_size=20, memory=[WINDOW, {"type": "cumulative"}, {"type": "test_peak"}]
    )
    report = export_bundle(lively(from_config(config, "peak")), tmp_path / "peak").manifest.verification
    assert max(report["step_error"], *report["chunk_errors"].values()) < 2e-5
    MEMORIES.pop(Peak.type_name)
