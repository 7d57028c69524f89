"""The masked whole-sequence pass against the formula, in float64, one query at a time."""

import math

import pytest
import torch

from edgemem.export.hf.bound import MemoryBound
from edgemem.export.hf.reference import dense_attention
from edgemem.export.hf.rotary import Rotation
from tests.export.hf.decoders import decoder

TIME, HEADS, KV_HEADS, WIDTH = 23, 4, 2, 8
FREQUENCIES = (1.0, 0.3, 0.1, 0.02)


def turned(x, position, frequencies=FREQUENCIES):
    """RoFormer's rotation of one head's vector to ``position``, written out."""
    half = len(frequencies)
    out = list(x)
    for f, frequency in enumerate(frequencies):
        a, b = float(x[f]), float(x[f + half])
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        out[f], out[f + half] = a * cos - b * sin, b * cos + a * sin
    return torch.tensor(out, dtype=torch.float64)


def oracle(q, k, v, option, scaling):
    """``Att(q_i, Mem_i)`` from un-rotated queries and keys ``[Hq or H, T, D]``: ``[T, Hq, D]``."""
    rows = []
    for i in range(TIME):
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            scores, values = [], []
            for j in range(i + 1):
                if i - j < option.window:
                    scores.append(turned(q[head, i], i) @ turned(k[group, j], j))
                elif j < option.sinks:
                    stand = i if option.positions == "absolute" else min(i, option.sinks + option.window - 1)
                    scores.append(turned(q[head, i], stand) @ turned(k[group, j], j))
                else:
                    continue
                values.append(v[group, j])
            if option.summary:
                scores.append(q[head, i] @ k[group, : i + 1].mean(dim=0))
                values.append(v[group, : i + 1].mean(dim=0))
            share = (torch.stack(scores) * scaling).softmax(dim=0)
            heads.append(share @ torch.stack(values))
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "option",
    [
        MemoryBound(window=5),
        MemoryBound(window=5, sinks=3),
        MemoryBound(window=5, sinks=3, positions="absolute"),
        MemoryBound(window=4, sinks=2, summary="cumulative"),
        MemoryBound(window=1, sinks=1),
        MemoryBound(window=30, sinks=3),
    ],
    ids=str,
)
def test_the_masked_pass_is_the_formula(option):
    module = decoder("llama").double().model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(HEADS, TIME, WIDTH, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, KV_HEADS, TIME, WIDTH, generator=generator, dtype=torch.float64)
    at_place = [
        torch.stack([torch.stack([turned(row, i) for i, row in enumerate(head)]) for head in part])[None]
        for part in (q, k)
    ]
    with torch.no_grad():
        got, _ = dense_attention(
            module, *at_place, v[None], None, option, Rotation(FREQUENCIES), scaling=0.3, dropout=0.0
        )
    torch.testing.assert_close(
        got[0], oracle(q, k, v, option, 0.3), atol=1e-6, rtol=0
    )  # Llama's own softmax is float32
