"""A chunk made of the step's own graph is bit-equal to stepping."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgemem.bundle import GraphFile, Manifest, write_bundle
from edgemem.contract import METADATA_KEY, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.export.graph import export_graph
from edgemem.export.hf.lift import lift, unseal
from edgemem.runtimes import open as open_session
from edgemem.streaming.sealed import Sealed

W, H, D, V = 4, 2, 3, 11


class Mixed(nn.Module):
    """A leaky sum, and the mean of a ring of the last four embeddings; the position decides which slots count."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, H * D)
        self.out = nn.Linear(2 * H * D, V)

    def contract(self) -> Contract:
        return Contract(
            (InputSpec("tokens", (), "int64", V),),
            (OutputSpec("logits", (V,)),),
            (
                StateSpec("0.leaky.sum", (H * D,), initial=0.5),
                StateSpec("0.window.k", (H, W, D), update="append"),
            ),
            max_chunk=W,
            position="input",
            output_indices=True,
        )

    def forward(self, x, state, output_indices=None):
        new = self.embed(x)  # [B, 1, H * D]: a step
        leaky = state["0.leaky.sum"] * 0.9 + new[:, 0]
        entries = new.reshape(-1, 1, H, D).transpose(1, 2)
        seen = torch.arange(W) < state["position"][:, None]  # [B, W]
        ring = state["0.window.k"] * seen[:, None, :, None]
        mean = (ring.sum(dim=2) + entries[:, :, 0]).flatten(1) / 5
        hidden = torch.cat([leaky, mean], dim=-1)[:, None]
        if output_indices is not None:
            hidden = hidden.index_select(1, output_indices)
        return self.out(hidden), {"0.leaky.sum": leaky, "0.window.k": entries}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    module = Mixed().eval()
    contract = module.contract()
    sealed = Sealed(module)
    whole = replace(sealed.contract(), output_indices=True)
    step = export_graph(module, contract, max_time=1)
    chunk = lift(export_graph(sealed, whole, max_time=1), whole)
    unseal(chunk, whole, contract)
    path = tmp_path_factory.mktemp("lifted") / "bundle"
    with write_bundle(path) as writer:
        for name, model in (("step.onnx", step), ("chunk.onnx", chunk)):
            model.metadata_props[METADATA_KEY] = json.dumps(contract.to_json())
            ir.save(model, writer.folder / name)
        writer.finish(Manifest(contract, (GraphFile("step.onnx", 1, 1), GraphFile("chunk.onnx", 2, W))))
    return path


def test_a_lifted_chunk_is_bit_equal_to_its_steps_past_the_rings_end(bundle):
    data = np.random.default_rng(0).integers(0, V, (3, 11))
    with open_session(bundle, "onnxruntime") as session:
        stepping, feeding = session.stream(3), session.stream(3)
        stepped = np.stack([stepping.step(data[:, t]).copy() for t in range(data.shape[1])], axis=1)
        fed = np.concatenate([feeding.feed(part, outputs="all") for part in np.split(data, [2, 6, 9], axis=1)], axis=1)
        np.testing.assert_array_equal(fed, stepped)
        for name, value in stepping.state().items():
            np.testing.assert_array_equal(feeding.state()[name], value)


def test_the_output_layer_stays_outside_of_the_loop(bundle):
    graph = ir.load(bundle / "chunk.onnx").graph
    (loop,) = [node for node in graph if node.op_type == "Scan"]
    inside = [node.op_type for node in loop.attributes["body"].as_graph()]
    outside = [node.op_type for node in graph]
    assert not {"Gemm", "MatMul"} & set(inside)
    assert {"Gemm", "MatMul"} & set(outside)


def test_the_lifted_graph_takes_and_gives_what_the_contract_says(bundle):
    graph, contract = ir.load(bundle / "chunk.onnx").graph, Mixed().contract()
    assert tuple(value.name for value in graph.inputs) == contract.graph_inputs
    assert tuple(value.name for value in graph.outputs) == contract.graph_outputs
