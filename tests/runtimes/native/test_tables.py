"""Queries, keys and values apart, turned by cosines and sines that the model made itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.runtimes.native.calls import make_call
from tests.runtimes.native.operators import run, session, tables
from tests.runtimes.native.oracle import Array, Call, memory_attention


def attend(call: Call, turns: Array, flat: bool) -> dict[str, Array]:
    parts = {name: getattr(call, name).transpose(0, 2, 1, 3) for name in ("q", "k", "v")}
    if flat:
        parts = {name: part.reshape(*part.shape[:2], -1) for name, part in parts.items()}
    inputs = {**parts, "position": call.position, "phases": None, "tables": turns, "sink_logits": None, "bias": None}
    inputs |= call.states
    outputs = {"read": np.float32, "0.k": np.float32, "0.v": np.float32}
    heads = {"heads": call.q.shape[1], "kv_heads": call.k.shape[1], "heads_first": 0, "rotate": 1}
    heads |= {"rotary_start": 0, "neighbours": 0, "by_slot": 1}
    options = {"memories": "window", "scale": float(call.scale), "softcap": 0.0, "window": call.window}
    made = session(
        "MemoryAttention", inputs, {f"new.{name}": kind for name, kind in outputs.items()}, **heads, **options
    )
    return {name.removeprefix("new."): value for name, value in run(made, inputs).items()}


def close(got: dict[str, Array], want: dict[str, Array]) -> None:
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, atol=5e-6 * max(1.0, np.abs(value).max()), err_msg=name)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("time", [1, 5])
def test_they_give_what_phases_give(flat, time):
    call = make_call(["window"], position=[3, 1000], time=time, kv_heads=2, groups=3, width=12)
    close(attend(call, tables(call), flat), memory_attention(call))


def test_one_row_of_tables_serves_all_streams():
    call = make_call(["window"], position=[40, 40], time=4, width=8)
    close(attend(call, tables(call)[:1], True), memory_attention(call))


def test_tables_may_be_narrower_than_heads():
    call = make_call(["window"], position=[7], time=3, width=8)
    narrow = replace(call, phases=call.phases[:2])
    first = memory_attention(replace(narrow, **{name: getattr(call, name)[..., :4] for name in ("q", "k")}, states={
        "0.k": call.states["0.k"][..., :4], "0.v": call.states["0.v"]}))["0.k"]  # fmt: skip
    got = attend(call, tables(narrow), True)["0.k"]
    np.testing.assert_allclose(got[..., :4], first, atol=1e-5)
    np.testing.assert_array_equal(got[..., 4:], call.k[..., 4:])


@pytest.mark.parametrize("shape", [(3, 4, 16), (2, 3, 16), (2, 4, 6), (2, 4, 40)])
def test_tables_of_another_shape_are_refused(shape):
    call = make_call(["window"], position=[3, 4], time=4, width=8)
    with pytest.raises(Exception, match="tables"):
        attend(call, np.zeros(shape, np.float32), True)
