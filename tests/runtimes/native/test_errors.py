"""What does not fit is an error that says what was given and what is wanted; nothing crashes."""

from dataclasses import replace

import numpy as np
import pytest

from tests.runtimes.native.calls import make_call
from tests.runtimes.native.operators import attend, run, session

CALL = make_call(["window", "sinks", "cumulative", "geometric"], position=[9, 2], kv_heads=2, groups=2, width=8)


LIST = ["window", "gated_average", "moving_average", "weighted_average"]
AVERAGES = make_call(LIST, position=[9, 2], kv_heads=2, groups=2, width=8)
COMPRESSED = make_call(["window", "compressed:3:2"], position=[9, 2], kv_heads=2, groups=2, width=8)

EXACT = make_call(["exact"], position=[9, 2], kv_heads=2, groups=2, width=8)


def exact(**changed):
    return replace(EXACT, states={**EXACT.states, **{f"0.{name}": value for name, value in changed.items()}})


def compressed(**changed):
    return replace(COMPRESSED, states={**COMPRESSED.states, **{f"1.{name}": value for name, value in changed.items()}})


def states(**changed):
    return replace(CALL, states={**CALL.states, **{name.replace("_", "."): value for name, value in changed.items()}})


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (replace(CALL, position=np.array([1])), r"input 3 \(position\) is int64 \[1\], and must be int64 \[2\]"),
        (replace(CALL, position=np.array([1, -1])), "position -1 is not in 0"),
        (replace(CALL, position=np.array([1, 2**62 + 1])), "position 4611686018427387905 is not in 0"),
        (replace(CALL, phases=np.array([1, 2, 3, 4, 5])), r"phases\) has 5 pairs from element 0 on; heads are 8 wide"),
        (replace(CALL, rotary_start=1), r"phases\) has 4 pairs from element 1 on; heads are 8 wide"),
        (replace(CALL, phases=np.array([[1, 2]])), r"phases\) is int64 \[1, 2\], and must be int64"),
        (replace(CALL, window=9), r"keys of the window\) is float32 \[2, 2, 8, 8\], and must be .*\[2, 2, 9, 8\]"),
        (replace(CALL, bias=zeros(1, 4)), r"bias\) is float32 \[1, 4\], and must be float32 \[2, 4\]"),
        (replace(CALL, sink_logits=zeros(3)), r"sink_logits\) is float32 \[3\]"),
        (replace(CALL, q=CALL.q[:1]), "input 1"),
        (states(**{"0_k": zeros(1, 2, 8, 8)}), "keys of the window"),
        (states(**{"0_v": zeros(2, 2, 8, 6)}), "values of the window"),
        (states(**{"0_k": zeros(2, 2, 8, 8, dtype=np.int64)}), "must be float32, int8 or float16"),
        (states(**{"1_k": zeros(2, 2, 3)}), "keys of sinks"),
        (states(**{"1_v": zeros(2, 2, 4, 8)}), "values of sinks"),
        (
            states(**{"2_mean": zeros(2, 2, 1, 8)}),
            r"mean\) is float32 \[2, 2, 1, 8\], and must be float32 \[2, 4, 1, 8\]",
        ),
        (states(**{"2_carry": zeros(2, 4, 8)}), "carry"),
        (states(**{"3_sum": zeros(0, 4, 1, 8)}), "sum"),
        (states(**{"3_mass": zeros(2, 2, 1, 8)}), "mass"),
        (replace(CALL, parameters={3: zeros(5)}), "log_decay"),
        (compressed(slots=zeros(2, 4, 6, 8)), r"slots\) is float32 \[2, 4, 6, 8\], and must be float32 \[2, 4, 8, 8\]"),
        (compressed(partial=zeros(2, 4, 8)), "partial"),
        (exact(slots=zeros(2, 2, 5, 8)), r"slots\) is float32 \[2, 2, 5, 8\], and must be float32 \[2, 4, 5, 8\]"),
        (exact(slots=zeros(2, 4, 8)), "slots"),
        (exact(surprise=zeros(2, 2, 4, 1)), r"surprise\) is float32 \[2, 2, 4, 1\], and must be .*\[2, 2, 5, 1\]"),
        (
            replace(EXACT, parameters={0: zeros(2, 1, 8)}),
            r"written\) is float32 \[2, 1, 8\], and must be .*\[2, 1, 16\]",
        ),
        (replace(AVERAGES, parameters={**AVERAGES.parameters, 1: zeros(2, 3, 2)}), "gate"),
        (replace(AVERAGES, parameters={**AVERAGES.parameters, 3: zeros(3, 6)}), "log_beta"),
        (replace(AVERAGES, states={**AVERAGES.states, "2.pairs": zeros(2, 4, 0, 8)}), "pairs"),
    ],
)
def test_a_wrong_tensor(call, message):
    with pytest.raises(Exception, match=message):
        attend(call, heads_first=True)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"memories": "window,other"}, "the memory 'other' is not known"),
        ({"memories": "sinks,window"}, "a window must be the first memory of its list"),
        ({"memories": ""}, "the memory '' is not known"),
        ({"memories": "window,compressed"}, "compressed:<slots>:<rate>"),
        ({"memories": "window,compressed:3:1"}, "a rate of 2 or more"),
        ({"memories": "window,compressed:3:4x"}, "compressed:<slots>:<rate>"),
        ({"memories": "window,geometric:log_count"}, "'geometric' has no option 'log_count'"),
        ({"memories": "window,cumulative:other"}, "'cumulative' has no option 'other'"),
        ({"memories": ",".join(["window"] + ["sinks"] * 16)}, "at most 16 memories"),
        ({"memories": "window," * 300}, "longer than"),
        ({"memories": "window,sinks"}, r"17 inputs and 9 outputs; this list of memories has 12 and 5"),
        ({"heads": 3}, "3 query heads cannot share 2"),
        ({"kv_heads": 0}, "kv_heads is 0, and must be from 1 to 4"),
        ({"rotate": 2}, "rotate is 2"),
        ({"neighbours": 2}, "neighbours is 2"),
        ({"by_slot": 2}, "by_slot is 2"),
        ({"rotary_start": -1}, "rotary_start is -1"),
        ({"window": 0}, "window is 0"),
        ({"window": 7}, "keys of the window"),
        ({"kv_heads": 1}, "input 1"),
    ],
)
def test_a_wrong_attribute(attributes, message):
    with pytest.raises(Exception, match=message):
        attend(CALL, heads_first=True, **attributes)


def test_a_width_that_is_not_supported():
    with pytest.raises(Exception, match="514 wide; supported are 1 to 512"):
        attend(make_call(["window"], position=[1], width=514))


@pytest.mark.parametrize(
    ("given", "rotate", "message"),
    [("rotated", 1, "rotate is 1 and there are neither phases nor tables"), ("tables", 0, "rotate is 0 and there are")],
)
def test_a_rotation_that_is_half_described(given, rotate, message):
    call = replace(CALL, given=given, phases=CALL.phases if given == "tables" else None)
    with pytest.raises(Exception, match=message):
        attend(call, heads_first=True, rotate=rotate)


def test_a_packed_input_whose_heads_do_not_fit():
    call = make_call(["window"], position=[1], width=10)  # 30 numbers for each step
    with pytest.raises(Exception, match=r"a last one of 30; it must be \[B, T, 4 \* D\]"):
        attend(call, heads=2, kv_heads=1)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "message"),
    [
        ("SwiGLU", {"gate": zeros(2, 4), "up": zeros(2, 3)}, {}, r"is float32 \[2, 3\], and must be float32 \[2, 4\]"),
        ("SwiGLU", {"gate": zeros(2, 5)}, {}, "5 numbers"),
        ("SwiGLU", {"gate": zeros()}, {}, "scalar"),
        ("RMSNorm", {"x": zeros(2, 4), "weight": zeros(3)}, {"eps": 1e-5}, r"must be float32 \[4\]"),
        ("RMSNorm", {"x": zeros(2, 4), "weight": zeros(4), "delta": zeros(4)}, {"eps": 1e-5}, "delta"),
        ("RMSNorm", {"x": zeros(), "weight": zeros(1)}, {"eps": 1e-5}, "scalar"),
        ("RMSNorm", {"x": zeros(2, 4), "weight": zeros(4)}, {}, "the attribute eps is missing"),
    ],
)
def test_the_other_operators(operator, inputs, attributes, message):
    with pytest.raises(Exception, match=message):
        run(session(operator, inputs, {"out": np.float32}, **attributes), inputs)
