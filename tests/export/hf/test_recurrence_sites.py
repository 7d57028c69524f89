"""Between the marks around recurrences, an operator stands in the native form, and nothing of it in the other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.models.mamba import modeling_mamba as mamba  # noqa: E402
from transformers.models.mamba2 import modeling_mamba2 as mamba2  # noqa: E402
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next  # noqa: E402
from transformers.models.rwkv import modeling_rwkv as rwkv  # noqa: E402

from edgemem.export.hf import recurrence_sites as sites  # noqa: E402
from edgemem.export.passes.native_form import native_form  # noqa: E402
from edgemem.export.passes.sites import remove_sites  # noqa: E402
from edgemem.runtimes import native  # noqa: E402

B, E, N, H, P = 2, 8, 4, 2, 4
HEADS = {"D": torch.tensor([0.5, 2.0]), "dt_bias": torch.tensor([0.1, 0.2]), "dt_softplus": True}


def decay(*shape: int) -> torch.Tensor:
    return -torch.rand(shape).exp()


class Step(nn.Module):
    """Every recurrence of a step, one after the other, on tensors that lie as transformers' models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bias, self.a, self.skip = torch.randn(E, 4), torch.randn(E), decay(E, N), torch.randn(E)

    def forward(self, x, conv, one, many, matrix, past):  # x: [B, 1, E]
        conv, one, many = conv.clone(), one.clone(), many.clone()
        columns = x.transpose(1, 2)
        y = sites.convolution_step(mamba.causal_conv1d_update)(columns, conv, self.conv, self.bias, "silu")
        flat, shared = y[..., 0], y[:, :N, 0]
        options = {"z": columns[..., 0], "dt_bias": self.bias, "dt_softplus": True}
        update = sites.selective_step(mamba.mamba_selective_state_update)
        y = update(one, flat, x[:, 0], self.a, shared, shared, self.skip, **options)
        repeated = {name: v[:, None].expand(-1, P) if name != "dt_softplus" else v for name, v in HEADS.items()}
        update = sites.selective_step(mamba2.mamba2_selective_state_update)
        dt, a = y[:, :H, None].expand(-1, -1, P), self.a[:H, :1, None].expand(-1, P, N)
        y = update(many, y.view(-1, H, P), dt, a, shared[:, None], shared[:, None], **repeated)
        heads = y.reshape(-1, 1, H, P)
        rule = sites.delta_rule(qwen3_next.torch_recurrent_gated_delta_rule)
        gate = -heads[..., 0].exp()
        options = {"initial_state": matrix, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
        y, after = rule(heads, heads, heads, gate, gate.exp(), **options)
        y = y.flatten(2)
        average = sites.weighted_past(rwkv.rwkv_linear_attention)
        y, last = average(self.bias, self.skip, y, x, list(past.unbind(0)), return_state=True)
        return 2 * y, conv, one, many, after, torch.stack(last)


def test_the_operators_of_a_step_compute_what_the_functions_do():
    states = [torch.randn(B, E, N), torch.randn(B, H, P, N), torch.randn(B, H, P, P), torch.randn(3, B, E).abs()]
    given = (torch.randn(B, 1, E), torch.randn(B, E, 4), *states)
    model = torch.onnx.export(Step().eval(), given, dynamo=True, opset_version=20, verbose=False).model
    form = native_form(model)
    remove_sites(model)
    own = Counter(node.op_type for node in form.graph if node.domain == "edgemem")
    assert own == {"CausalConv": 1, "SelectiveState": 2, "GatedDelta": 1, "WeightedPast": 1}
    assert "edgemem" not in {node.domain for node in model.graph}
    assert {"Conv", "Softplus", "ReduceSum"}.isdisjoint(node.op_type for node in form.graph)
    if native.library() is None:
        pytest.skip(native.why())
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(native.library()))
    results = []
    for one in (form, model):
        session = onnxruntime.InferenceSession(ir.to_proto(one).SerializeToString(), options)
        fed = dict(zip([value.name for value in session.get_inputs()], given, strict=True))
        results.append(session.run(None, {name: value.numpy() for name, value in fed.items()}))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
