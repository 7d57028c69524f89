"""A layer of any memories computes what the formulas say, however its input is cut into chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.errors import ConfigError
from edgemem.memories import MEMORIES, Attention, Clock, Dims, LoneSummaryWarning
from edgemem.memories.summary import Summary
from tests.memories import oracle
from tests.memories.kind import kind_of
from tests.memories.support import (
    ANY,
    FIXED,
    TOLERANCE,
    WIDTH,
    chunk_limit,
    chunkings,
    complete,
    error,
    history_at,
    initial,
    inputs,
    layer_sizes,
    make_layer,
    memory_spec,
    parallel,
    parameters_of,
    state_at,
    stream,
    truth,
    usual,
)

SMALL = oracle.Sizes(heads=4, kv_heads=2, head_dim=4)


def check(data: st.DataObject, sizes: oracle.Sizes, specs: list[dict[str, Any]], most: int = 24) -> None:
    """Parallel form, steps and a chunking drawn from ``data`` agree with the oracle."""
    specs = complete(specs)
    seed, time = data.draw(st.integers(0, 1000)), data.draw(st.integers(1, most))
    layer, x = make_layer(specs, sizes, seed), inputs(time, seed=seed)
    want = truth(layer, specs, sizes, x)
    assert error(parallel(layer, x), want) < TOLERANCE
    assert error(stream(layer, x, [1] * time)[0], want) < TOLERANCE
    chunks = data.draw(chunkings(time, chunk_limit(layer)))
    assert error(stream(layer, x, chunks)[0], want) < TOLERANCE


def test_every_registered_memory_is_tested() -> None:
    files = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "kinds").glob("test_*.py")}
    assert files == set(ANY)


@pytest.mark.parametrize("kind", ANY)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), sizes=layer_sizes())
def test_a_memory_alone_computes_its_formula_in_parallel_by_steps_and_in_chunks(
    kind: str, data: st.DataObject, sizes: oracle.Sizes
) -> None:
    check(data, sizes, [data.draw(memory_spec(sizes.kv_heads, [kind]))])


@pytest.mark.parametrize("kind", ANY)
@settings(max_examples=10, deadline=None)
@given(data=st.data(), sizes=layer_sizes())
def test_a_memory_beside_a_window_computes_its_formula(kind: str, data: st.DataObject, sizes: oracle.Sizes) -> None:
    own = data.draw(memory_spec(sizes.kv_heads, [kind]))
    check(data, sizes, [own, {"type": "window", "window": data.draw(st.integers(1, 6))}])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=layer_sizes())
def test_any_hybrid_of_two_to_four_memories_computes_one_softmax_over_them_all(
    data: st.DataObject, sizes: oracle.Sizes
) -> None:
    check(data, sizes, data.draw(st.lists(memory_spec(sizes.kv_heads, ANY), min_size=2, max_size=4)))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), sizes=layer_sizes())
def test_streams_of_one_batch_at_different_positions_equal_the_same_streams_alone(
    data: st.DataObject, sizes: oracle.Sizes
) -> None:
    specs = complete(data.draw(st.lists(memory_spec(sizes.kv_heads, FIXED), min_size=1, max_size=3)))
    before = data.draw(st.lists(st.integers(0, 12), min_size=2, max_size=3))
    time = data.draw(st.integers(1, 10))
    layer = make_layer(specs, sizes)
    chunks = data.draw(chunkings(time, chunk_limit(layer)))
    alone, states = [], []
    for row, steps in enumerate(before):
        x = inputs(steps + time, seed=row)
        states.append(stream(layer, x[:, :steps], [1] * steps)[1] if steps else initial(layer.states(), 1))
        alone.append(truth(layer, specs, sizes, x)[:, steps:])
    x = torch.cat([inputs(steps + time, seed=row)[:, steps:] for row, steps in enumerate(before)])
    together = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    got, _ = stream(layer, x, chunks, start=before, state=together)
    for row, want in enumerate(alone):
        assert error(got[row : row + 1], want) < TOLERANCE


@pytest.mark.parametrize("kind", FIXED)
def test_streaming_stays_on_the_formula_long_after_every_ring_has_wrapped(kind: str) -> None:
    specs = [{"type": "window", "window": 3}, *usual(kind)]
    layer, x = make_layer(specs, SMALL), inputs(120)
    want = truth(layer, specs, SMALL, x)
    assert error(stream(layer, x, [1, 2, 3] * 20)[0], want) < TOLERANCE


START = [0, 1, 7, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 40]


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("kind", FIXED)
def test_a_stream_may_start_from_any_position(kind: str, start: int) -> None:
    specs = [{"type": "window", "window": 5}, {"type": "sinks", "slots": 3}, *usual(kind, **kind_of(kind).far)]
    layer, x, history = make_layer(specs, SMALL), inputs(9), history_at(start, specs, SMALL)
    want = truth(layer, specs, SMALL, x, [history])
    for chunks in ([1] * 9, [4, 1, 4], [2, 3, 1, 3]):
        got, _ = stream(layer, x, chunks, start, state_at(layer, specs, SMALL, history))
        assert error(got, want) < TOLERANCE


# Queries that see nothing


@pytest.mark.parametrize(
    "specs",
    [
        [{"type": "compressed", "slots": 2, "rate": 4}],
        [{"type": "compressed", "rate": 4}, {"type": "linear_attention"}],
    ],
)
def test_a_query_that_sees_no_slot_reads_nothing_and_above_all_not_the_future(specs: list[dict[str, Any]]) -> None:
    layer, x = make_layer(specs, SMALL), inputs(12)
    changed = x.clone()
    changed[:, 3:] = 7.0
    assert torch.equal(parallel(layer, x)[:, :3], parallel(layer, changed)[:, :3])
    assert error(parallel(layer, x), truth(layer, specs, SMALL, x)) < TOLERANCE
    if len(specs) == 1:
        assert torch.equal(parallel(layer, x)[:, :3], torch.zeros(1, 3, WIDTH))
        assert parallel(layer, x)[:, 3:].abs().min(dim=-1).values.gt(0).all()


@pytest.mark.parametrize("kind", ANY)
def test_no_output_depends_on_a_later_input(kind: str) -> None:
    layer, x = make_layer(usual(kind), SMALL), inputs(12)
    for cut in (1, 5, 8):
        changed = x.clone()
        changed[:, cut:] += 1.0
        assert torch.allclose(parallel(layer, x)[:, :cut], parallel(layer, changed)[:, :cut], atol=1e-6)
        assert not torch.allclose(parallel(layer, x)[:, cut:], parallel(layer, changed)[:, cut:], atol=1e-3)


def test_a_mask_is_never_reused_for_another_memory_of_the_same_call() -> None:
    # The cache's mask is made anew in every layer; a freed tensor's id must not lead to it.
    x, clock = inputs(2), Clock(torch.tensor([4]), 2)
    cache = make_layer([{"type": "full"}], SMALL)
    past = {name: torch.randn(1, 2, 4, 4) for name in ("full.k", "full.v")}
    sinks = make_layer([{"type": "sinks", "slots": 6}], SMALL)
    state = {name: torch.randn(1, 2, 6, 4) for name in ("sinks.k", "sinks.v")}
    want, _ = sinks(x, Clock(torch.tensor([4]), 2), state)
    for _ in range(5):
        cache(x, clock, past)
    got, _ = sinks(x, clock, state)
    assert torch.equal(got, want)
    kept = [value for key, value in clock._made.items() if isinstance(key, tuple) and key[0] == "mask"]
    assert len(kept) == 6, "five caches and the sinks, each with its own mask"


# Gradients


@pytest.mark.parametrize("kind", ANY)
def test_the_parallel_form_gives_every_parameter_a_finite_gradient_that_is_not_zero(kind: str) -> None:
    specs = [{"type": "window", "window": 4}, *usual(kind)]
    layer, x = make_layer(specs, SMALL), inputs(24, batch=2)
    output, _ = layer(x, Clock(torch.zeros(2, dtype=torch.int64), 24), None)
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("kind", ["linear_attention", "gated_delta", "gated_average"])
def test_gradients_equal_finite_differences_of_the_formula(kind: str) -> None:
    specs: list[dict[str, Any]] = [{"type": "window", "window": 3}, {"type": kind}]
    sizes = oracle.Sizes(heads=2, kv_heads=1, head_dim=2)
    layer, x = make_layer(specs, sizes), inputs(9)
    weights = torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(5))
    output, _ = layer(x, Clock(torch.zeros(1, dtype=torch.int64), 9), None)
    (output * weights).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        index = tuple(int(i) for i in torch.nonzero(parameter.grad.abs() == parameter.grad.abs().max())[0])
        losses = []
        for shift in (1e-6, -1e-6):
            shifted = parameters_of(layer)
            shifted[name][index] += shift
            rows = oracle.attention_layer(sizes, specs, shifted, x[0].double().numpy())
            losses.append(float((rows * weights[0].numpy()).sum()))
        assert float(parameter.grad[index]) == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4), name


SUMMARIES = [name for name in ANY if issubclass(MEMORIES[name], Summary)]


@pytest.mark.parametrize("kind", SUMMARIES)
def test_a_lone_summary_warns_works_and_gives_queries_and_keys_no_gradient(kind: str) -> None:
    with pytest.warns(LoneSummaryWarning, match=kind):
        Attention(Dims(WIDTH, 4, 2, 4), usual(kind))
    layer, x = make_layer(usual(kind), SMALL), inputs(6)
    output, _ = layer(x, Clock(torch.zeros(1, dtype=torch.int64), 6), None)
    output.square().sum().backward()
    gradient = layer.qkv.grad
    assert gradient is not None
    queries_and_keys, values = gradient[:, : (4 + 2) * 4], gradient[:, (4 + 2) * 4 :]
    assert queries_and_keys.abs().max() < 1e-6 * values.abs().max()


@pytest.mark.filterwarnings("error::edgemem.memories.LoneSummaryWarning")
@pytest.mark.parametrize("other", [{"type": "window", "window": 2}, {"type": "cumulative"}, {"type": "gated_delta"}])
def test_a_summary_beside_anything_else_does_not_warn(other: dict[str, Any]) -> None:
    Attention(Dims(WIDTH, 4, 2, 4), [{"type": "cumulative"}, other])


# Names and bad options


def test_states_are_named_by_memory_and_tensor_with_a_number_where_a_type_occurs_again() -> None:
    layer = make_layer(
        [{"type": "geometric", "decay": 0.5}, {"type": "window", "window": 2}, {"type": "geometric"}], SMALL
    )
    assert [spec.name for spec in layer.states()] == [
        "geometric.sum",
        "geometric.mass",
        "window.k",
        "window.v",
        "geometric_2.sum",
        "geometric_2.mass",
    ]


def test_a_layer_starts_where_its_own_window_ends_and_not_another_layers() -> None:
    layer = make_layer([{"type": "sinks"}, {"type": "window", "window": 5}, {"type": "window", "window": 3}], SMALL)
    assert {memory.dims.window for _, memory in layer.named_memories()} == {5}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"type": "windw", "window": 4}, "windw"),
    ({"type": ["window"]}, "window"),
    ({"window": 4}, "None"),
    *(({"type": name, **options}, named) for name in ANY for options, named in kind_of(name).bad),
]


@pytest.mark.parametrize(("spec", "named"), BAD)
def test_a_bad_option_is_refused_by_name(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"(memory '{spec.get('type')}'.*|called .*){named}"):
        Attention(Dims(WIDTH, 4, 2, 4), [spec, {"type": "window", "window": 4}])
