"""A whole graph in a loop by hand, as any host would drive it, computes what the formula says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgemem.bundle import Bundle
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import ExportError, VerificationError
from edgemem.triton.ports import Port, Ports
from edgemem.triton.proof import compare, compare_ports
from edgemem.triton.whole_graph import MODEL, whole_graph, write_whole_graph
from tests.runtimes import tiny
from tests.runtimes.test_rates import START, Oracle, two_tensor_model


def written(bundle: Bundle, folder: Path) -> tuple[onnxruntime.InferenceSession, Ports]:
    model, ports = whole_graph(bundle, 8)
    folder.mkdir()
    write_whole_graph(model, bundle, folder)
    compare_ports(folder / MODEL, ports)
    return onnxruntime.InferenceSession(str(folder / MODEL)), ports


def steps(session: Any, ports: Ports, calls: Iterator[dict[str, Any]], streams: int) -> Iterator[list[Any]]:
    states = {s.past.name: np.repeat(s.initial[None], streams, 0) for s in ports.states}
    names = [port.name for port in ports.outputs] + [s.present.name for s in ports.states]
    for call in calls:
        found = session.run(names, {**call, **states})
        states = dict(zip(states, found[len(ports.outputs) :], strict=True))
        yield found[: len(ports.outputs)]


@pytest.fixture
def tokens(tmp_path: Path) -> Bundle:
    return tiny.save_bundle(tmp_path / "tokens", tiny.TOKENS, tiny.tokens_model())


@pytest.mark.parametrize("size", [1, 3])
def test_rings_are_written_and_positions_counted_inside_the_graph(tokens: Bundle, tmp_path: Path, size: int) -> None:
    session, ports = written(tokens, tmp_path / "whole")
    history = np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 24))
    calls = ({"tokens": history[:, at : at + size]} for at in range(0, 24, size))
    found = [outputs[0] for outputs in steps(session, ports, calls, 2)]
    wanted = np.stack([tiny.tokens_outputs(row.tolist()) for row in history])[:, size - 1 :: size]
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, rtol=1e-4, atol=1e-4)


def test_the_pairs_of_states_stay_together_in_sorted_order(tokens: Bundle) -> None:
    _, ports = whole_graph(tokens, 8)
    pairs = [(state.past.name, state.present.name) for state in ports.states]
    assert list(zip(sorted(p for p, _ in pairs), sorted(q for _, q in pairs), strict=True)) == sorted(pairs)
    assert ("past.position", "present.position") in pairs


def test_axes_lie_anywhere_and_states_start_where_they_are_told(tmp_path: Path) -> None:
    contract, model = two_tensor_model()
    session, ports = written(tiny.save_bundle(tmp_path / "two", contract, model), tmp_path / "whole")
    assert [(port.name, port.dims) for port in ports.inputs] == [("samples", (4,)), ("pair", (2,)), ("voice", (3,))]
    assert [(port.name, port.dims) for port in ports.outputs] == [("total", (2, 3)), ("means", (2,))]
    np.testing.assert_array_equal(ports.states[0].initial, START)
    generator = np.random.default_rng(1)
    samples, pair, voice = (generator.normal(size=size).astype(np.float32) for size in [(3, 5, 4), (3, 5, 2), (3, 3)])
    calls = ({"samples": samples[:, t], "pair": pair[:, t], "voice": voice} for t in range(5))
    oracles = [Oracle(row) for row in voice]
    for t, (total, means) in enumerate(steps(session, ports, calls, 3)):
        for row, oracle in enumerate(oracles):
            wanted = oracle.step(samples[row, t], pair[row, t])
            np.testing.assert_allclose(total[row], wanted[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(means[row], wanted[1], rtol=1e-4, atol=1e-5)


def test_a_graph_of_one_stream_gets_a_batch_axis_of_1(tmp_path: Path) -> None:
    contract = Contract(
        (InputSpec("frame", (4,), batch_axis=None, time_axis=None),),
        (OutputSpec("energy", (), batch_axis=None, time_axis=None),),
        (StateSpec("0.sum.s", (), batch_axis=None, initial=3.0),),
        max_chunk=1,
        position="none",
    )
    n = tiny.Nodes()
    n.Add("past.0.sum.s", n.ReduceSum("frame", keepdims=0), out="present.0.sum.s")
    n.Mul("present.0.sum.s", n.const(np.float32(2)), out="energy")
    bundle = tiny.save_bundle(tmp_path / "one", contract, tiny.model_proto(contract, n))
    session, ports = written(bundle, tmp_path / "whole")
    assert ports.max_batch == 1
    calls = ({"frame": np.full((1, 4), value, np.float32)} for value in (1, 2))
    assert [outputs[0].tolist() for outputs in steps(session, ports, calls, 1)] == [[[14]], [[30]]]


def test_a_whole_graph_is_held_to_its_bundle(tokens: Bundle) -> None:
    model, ports = whole_graph(tokens, 8)
    compare(tokens, model, ports)
    for node in model.graph:
        if node.op_type == "Mod":
            node.replace_input_with(1, next(n for n in model.graph if n.op_type == "Sub").inputs[1])
    with pytest.raises(VerificationError, match="of the whole graph differs from the bundle"):
        compare(tokens, model, ports)


def test_a_file_with_other_tensors_than_declared_is_refused(tokens: Bundle, tmp_path: Path) -> None:
    model, ports = whole_graph(tokens, 8)
    write_whole_graph(model, tokens, tmp_path)
    wrong = Ports((Port("tokens", "int32", (-1,)),), ports.outputs, ports.states, 8)
    with pytest.raises(VerificationError, match="input tokens of the whole graph is INT64"):
        compare_ports(tmp_path / MODEL, wrong)


def test_a_state_that_grows_is_refused(tmp_path: Path) -> None:
    growing = tiny.save_bundle(tmp_path / "growing", tiny.GROWING, tiny.growing_model())
    with pytest.raises(ExportError, match="the state grows"):
        whole_graph(growing, 8)
