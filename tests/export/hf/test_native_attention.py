"""One operator for each attention layer of a transformers model, whichever way it rotates its queries and keys."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgemem.export import ExportOptions, export_bundle
from edgemem.export.hf import attention_layer
from edgemem.export.hf.attention_calls import AttentionCall
from edgemem.export.hf.attention_layer import AttentionLayer
from edgemem.export.hf.bound import MemoryBound
from edgemem.export.hf.loading import load
from edgemem.export.hf.rotary import Rotation
from edgemem.memories.clock import Clock, phase_angles
from edgemem.runtimes import native
from tests.export.hf.decoders import decoder
from tests.export.hf.test_rotary import STATIC
from tests.runtimes.native.operators import run, session

WIDTH, WINDOW, HEADS = 8, 6, (4, 2, 2)
ROTATIONS = {
    "halves": Rotation((1.0, 0.3, 0.1, 0.03)),
    "neighbours behind a plain part": Rotation((1.0, 0.2), pairs=True, start=4),
    "backwards, and a plain part behind": Rotation((-1.0, -0.2, -0.1)),
    "none": Rotation(),
}
BOUNDS = [
    MemoryBound(WINDOW, 3, None),
    MemoryBound(WINDOW, 2, "cumulative"),
    MemoryBound(WINDOW, 0, "cumulative"),
    MemoryBound(WINDOW, 2, None, "absolute"),
    MemoryBound(WINDOW, 2, "cumulative", "absolute"),
]


@pytest.fixture
def marked(monkeypatch):
    """What a trace would put between its marks: the operator's inputs and attributes, and what torch computes."""
    found = {}

    def begin(inputs, attributes):
        found.update(inputs=inputs, attributes=asdict(attributes))
        return inputs[0]

    def end(outputs):
        found.update(outputs=outputs)
        return outputs[0]

    for name, value in (("begin", begin), ("end", end), ("marks_layers", lambda dims: True)):
        monkeypatch.setattr(attention_layer, name, value)
    return found


@pytest.mark.skipif(native.library() is None, reason="the native operators are not installed")
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("rotation", ROTATIONS.values(), ids=ROTATIONS)
@pytest.mark.parametrize("scaling", [1.0, 1.3])
@pytest.mark.parametrize("time", [1, 5])
def test_the_operator_reads_what_the_layer_reads(rotation, bound, scaling, time, marked):
    """``scaling`` is the factor of YaRN's cosines and sines."""
    generator = torch.Generator().manual_seed(time)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    parts = [random(3, heads, time, WIDTH) for heads in HEADS]
    layer = AttentionLayer("0", AttentionCall("layer", nn.Module(), *parts, 0.4, None), bound, rotation)
    clock = Clock(torch.tensor([0, 4, 1000]), time)
    angle = phase_angles(clock.positions, rotation.turns)[:, None]
    turned = [scaling * rotation.turn(part, angle) for part in parts[:2]]
    past = {spec.name: random(3, *spec.fixed_shape) for spec in layer.states()}
    layer.attend(clock, past, *turned, parts[2], None, None)
    inputs = {str(at): None if part is None else part.numpy() for at, part in enumerate(marked["inputs"])}
    outputs = {f"out{at}": np.float32 for at in range(len(marked["outputs"]))}
    got = run(session("MemoryAttention", inputs, outputs, **marked["attributes"]), inputs)
    for value, want in zip(got.values(), marked["outputs"], strict=True):
        np.testing.assert_allclose(value, want.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("memory", ["sinks=4,window=16", "sinks=4,window=16,summary=cumulative"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [*[(family, {}) for family in ("llama", "gemma2", "phi", "gpt_oss")], *STATIC.values()],
)
def test_every_family_has_the_operator_and_passes_the_check(family, changes, memory, tmp_path):
    decoder(family, **changes).save_pretrained(tmp_path)
    bundle = export_bundle(load(tmp_path, memory=memory), tmp_path / "bundle", ExportOptions(steps=60))
    graph = ir.load(bundle.file(bundle.manifest.graphs[0].native)).graph
    assert [node.op_type for node in graph].count("MemoryAttention") == 2
