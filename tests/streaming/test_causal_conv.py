"""A streamed convolution is torch's own, with zeros on the left."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgemem.streaming import CausalConv1d


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(2, 5),
    dilation=st.integers(1, 4),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    chunks=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    stride=st.integers(1, 4),
)
def test_chunks_of_any_length_give_what_torch_gives_over_the_whole(kernel, dilation, groups, bias, chunks, stride):
    torch.manual_seed(0)
    stride = min(stride, (kernel - 1) * dilation)
    ours = CausalConv1d(4, 6, kernel, dilation, stride, groups=groups, bias=bias)
    theirs = nn.Conv1d(4, 6, kernel, stride, dilation=dilation, groups=groups, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    chunks = [stride * steps for steps in chunks]
    x = torch.randn(2, 4, sum(chunks))
    past, parts = None, []
    with torch.no_grad():
        for part in x.split(chunks, dim=2):
            y, past = ours(part, past)
            assert past.shape == ours.initial_state(2).shape == (2, 4, (kernel - 1) * dilation + 1 - stride)
            assert y.shape[2] == part.shape[2] // stride
            parts.append(y)
        whole = theirs(F.pad(x, ((kernel - 1) * dilation + 1 - stride, 0)))
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)


def test_the_past_is_the_last_inputs():
    layer = CausalConv1d(1, 1, 3)
    _, past = layer(torch.arange(1.0, 6).reshape(1, 1, 5))
    assert past.tolist() == [[[4.0, 5.0]]]
    _, past = layer(torch.tensor([[[6.0]]]), past)
    assert past.tolist() == [[[5.0, 6.0]]]


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (0, 1), (3, 0)])
def test_a_convolution_without_a_past_is_refused(kernel, dilation):
    with pytest.raises(ValueError, match="kernel_size must be 2 or more"):
        CausalConv1d(1, 1, kernel, dilation)


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_no_past_is_refused(stride):
    with pytest.raises(ValueError, match="stride must be from 1 to 4, got"):
        CausalConv1d(1, 1, 3, dilation=2, stride=stride)


@pytest.mark.parametrize("option", ["padding", "padding_mode"])
def test_what_would_not_stream_is_refused(option):
    with pytest.raises(TypeError, match=option):
        CausalConv1d(1, 1, 3, **{option: 2})
