"""States pair one to one with outputs: by dtype and shape, and by name where several fit."""

import itertools

import numpy as np
import pytest

from edgemem.adopt.pairing import assign, pair_states, similarity
from edgemem.errors import ExportError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("state", "stateN"), ("h", "hn"), ("c", "cn"), ("h0", "hN"), ("conv_cache", "conv_cache_out"),
        ("cached_key_0", "new_cached_key_0"), ("cache_last_time", "cache_last_time_next"), ("state3_in", "state3_out"),
        ("past.0.window.k", "present.0.window.k"), ("past_key_values.0.conv_state", "present.0.conv_state"),
    ],
)  # fmt: skip
def test_names_of_a_state_before_and_after_a_step_are_the_same(one, other):
    assert similarity(one, other) >= 0.7


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("h", "hn", "cn"), ("h0", "hN", "cN"), ("cached_key_1", "new_cached_key_1", "new_cached_key_2")],
)
def test_a_name_tells_twins_apart(name, right, wrong):
    assert similarity(name, right) > similarity(name, wrong)


def test_the_assignment_is_the_best_of_all():
    for seed in range(40):
        generator = np.random.default_rng(seed)
        rows, columns = sorted(generator.integers(1, 6, 2).tolist())
        scores = generator.integers(0, 9, (rows, columns)).tolist()
        best = max(
            sum(scores[row][column] for row, column in enumerate(order))
            for order in itertools.permutations(range(columns), rows)
        )
        chosen = assign(scores)
        assert len(set(chosen)) == rows
        assert sum(scores[row][column] for row, column in enumerate(chosen)) == best


F, G = ("float32", (1, 3)), ("float32", (2, 3))


def test_shapes_decide_where_only_one_fits():
    pairs, undecided = pair_states({"a": F, "b": G}, {"y": ("float32", (5,)), "one": G, "two": F}, {})
    assert {pair.input: pair.output for pair in pairs} == {"a": "two", "b": "one"}
    assert all(pair.is_proved and pair.by == "the only one of its shape" for pair in pairs)
    assert not undecided


def test_names_decide_between_twins_and_do_not_prove():
    pairs, undecided = pair_states({"h": F, "c": F}, {"cn": F, "hn": F}, {})
    assert {pair.input: pair.output for pair in pairs} == {"h": "hn", "c": "cn"}
    assert [pair.verdict for pair in pairs] == ["→ hn: name, not proved", "→ cn: name, not proved"]
    assert not undecided


def test_names_that_say_nothing_leave_both_ways_open():
    _, undecided = pair_states({"p": F, "q": F}, {"u": F, "v": F}, {})
    assert set(undecided) == {"p", "q"}


def test_an_output_of_the_same_shape_that_is_no_state_leaves_a_state_open():
    _, undecided = pair_states({"p": F}, {"u": F, "v": F}, {})
    assert undecided == {"p": "v"}


def test_the_user_decides_before_names():
    pairs, undecided = pair_states({"h": F, "c": F}, {"hn": F, "cn": F}, {"h": "cn"})
    assert {pair.input: pair.output for pair in pairs} == {"h": "cn", "c": "hn"}
    assert pairs[0].by == "--state"
    assert not undecided


def test_a_cache_that_grows_is_refused_by_name():
    with pytest.raises(ExportError, match=r"the state past_k \[1, 7\] grows: present_k is \[1, 8\]") as caught:
        pair_states({"past_k": ("float32", (1, 7))}, {"present_k": ("float32", (1, 8))}, {})
    assert "fixed size" in (caught.value.hint or "")


def test_an_input_that_fits_no_output_is_named_with_what_it_may_be():
    with pytest.raises(ExportError, match="the input speaker float32") as caught:
        pair_states({"speaker": ("float32", (256,))}, {"y": F}, {})
    assert all(option in (caught.value.hint or "") for option in ("--input", "--held", "--fixed"))


def test_more_states_than_outputs_of_their_shape_are_refused():
    with pytest.raises(ExportError, match="do not pair one to one"):
        pair_states({"a": F, "b": F}, {"a_out": F, "y": G}, {})
