"""Whether a bundle computes what its model computes, and loses no state on the way.

Three kinds of evidence:

* the graph: its inputs and outputs are the contract's, and every state input has a path to an output;
* probes: every state changes as the stream goes, and changing any one of them alone changes what comes out;
* parity: streams fed step by step and in several chunkings, past every window's wrap, from the initial state and from
  positions far away, equal torch's full-sequence pass. A mismatch is traced to the first step and tensor.

A bundle in reduced precision is held to torch in float32 with the weights that the bundle holds, and its outputs to the
float32 model's (:mod:`edgemem.export.precision_check`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgemem.bundle import Bundle, open_bundle
from edgemem.contract import POSITION, Contract, StateSpec, initial_state
from edgemem.errors import VerificationError
from edgemem.export.graph import Sealed
from edgemem.export.paging import page_out
from edgemem.export.precision import Precision
from edgemem.export.precision_check import (
    change,
    change_tolerance,
    check_counters,
    exact_session,
    in_float32,
    rounding_tolerance,
    running_session,
    same_states,
    with_stored_weights,
)
from edgemem.export.source import Source
from edgemem.protocol import TORCH_DTYPES, example_input, initial_tensors
from edgemem.runtimes import Session, Stream, bfloat16

FAR_POSITIONS = (2**24 - 1, 2**31 - 1, 10**12)

_BATCH = 2  # streams that must not see each other
_LEAST_STEPS = 4  # the probes look at the state after each of the last three
_COMPARED_BYTES = 256 << 20
"""Outputs of a whole sequence that are held in memory to compare with; those of a large vocabulary are thinned out."""

Progress = Callable[[str, int, int], None]


@dataclass
class CheckReport:
    """What a check measured.

    Attributes:
        steps: Steps streamed.
        compared: Those of them whose outputs are compared with the full-sequence pass.
        tolerance: What the errors were held to.
        step_error: Largest difference on outputs, stepping.
        chunk_errors: The same for each chunking, by its description.
        far_errors: The same for calls from positions far away, by position.
        graph_states: Number of states whose path through the graph was followed.
        change: How far the outputs of a bundle in reduced precision are from the float32 model's, as a share of their
            standard deviation; ``None`` where there was no such model to compare with.
        change_tolerance: What it was held to.
        emulated: Whether bfloat16 was computed as float32 and rounded, for want of kernels.
    """

    steps: int
    compared: int
    tolerance: float
    step_error: float = 0.0
    chunk_errors: dict[str, float] = field(default_factory=dict)
    far_errors: dict[str, float] = field(default_factory=dict)
    graph_states: int = 0
    change: float | None = None
    change_tolerance: float | None = None
    emulated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def default_steps(contract: Contract) -> int:
    """Enough steps to pass the longest ring's wrap twice, and to make a call of the most time steps."""
    longest = max((state.window or 0 for state in contract), default=0)
    return max(64, 2 * longest + 3, contract.max_chunk + 3)


def check(
    path: str | Path,
    source: Source,
    *,
    steps: int | None = None,
    tolerance: float | None = None,
    is_original: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Hold a bundle to its model.

    Args:
        path: The bundle.
        source: The model that it was exported from.
        steps: Steps to stream; by default past the longest ring's wrap, twice.
        tolerance: Largest difference allowed on outputs, times ``1 + |output|``; by default what the precision allows.
        is_original: Whether ``source`` has its own weights, which a reduced precision changed, not the bundle's.
        seed: Seed of the random data.
        progress: Called with a phase's name, the steps done and the steps in all.

    Raises:
        VerificationError: A state is lost, never changes or has no effect, or the numbers differ: the message names
            the first step and tensor.
    """
    bundle = open_bundle(path)
    contract = bundle.contract
    precision = Precision.from_json(bundle.manifest.precision)
    sealed = not same_states(source.contract, contract, precision)
    if sealed and not same_states(Sealed(source.module).contract(), contract, precision):
        raise VerificationError(
            f"{path} carries other states than {source.name} declares.", hint="Check it against its own source."
        )
    check_graph(bundle)
    # The module's own contract: a sealed one does not tell its rings from other states.
    steps = max(steps or default_steps(source.contract), _LEAST_STEPS)
    if contract.max_position is not None:
        steps = min(steps, contract.max_position)
    tolerance = rounding_tolerance(precision) if tolerance is None else tolerance
    compared = compared_steps(contract, _BATCH, steps)
    report = CheckReport(
        steps, compared.size, tolerance, graph_states=len(contract.states), emulated=precision.dtype == "bfloat16"
    )
    generator = torch.Generator().manual_seed(seed)
    x = example_input(contract, _BATCH, steps, generator)
    data = x.numpy()
    threads = torch.get_num_threads()
    stored = partial(_stored_model, bundle, source, sealed)
    with stored() as (reference, module):
        expected = _full_pass(reference, x, compared)
        far_calls = [_FarCall(bundle, module, data, position) for position in _far_positions(contract)]
    page_out(source.module)  # torch has had its say: the engine's copy of the weights takes the place of its own
    with exact_session(bundle, threads) as session:
        comparison = _Comparison(session, stored, data, compared, expected, tolerance)
        check_probes(session, data)
        report.step_error = comparison.stream([1] * steps, "stepping", progress)
        for name, sizes in _chunkings(bundle, steps, seed):
            report.chunk_errors[name] = comparison.stream(sizes, name, progress)
        for call in far_calls:
            report.far_errors[str(call.position)] = comparison.from_position(call)
    if is_original and not precision.is_plain:
        report.change_tolerance = change_tolerance(precision)
        report.change = _check_change(bundle, source, x, compared, report.change_tolerance, threads)
    return report


@contextmanager
def _stored_model(bundle: Bundle, source: Source, sealed: bool) -> Iterator[tuple[Source, torch.nn.Module]]:
    """The source with the bundle's weights, inside the block, and its module as the bundle holds its states."""
    with with_stored_weights(bundle, source) as reference:
        yield reference, Sealed(reference.module) if sealed else reference.module


def compared_steps(contract: Contract, batch: int, steps: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The time steps whose outputs are compared: all, or so many as memory should hold, the first and the last too."""
    most = _COMPARED_BYTES // (4 * batch * math.prod(contract.output.shape))
    return np.unique(np.linspace(0, steps - 1, min(steps, max(most, 64))).astype(np.int64))


def _full_pass(source: Source, x: torch.Tensor, compared: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The source's outputs ``[B, S, ...]`` at the compared steps of a whole sequence ``[B, T, ...]`` from position 0.

    One stream after the other: what a whole sequence takes is never held twice, and no stream can see another.
    """
    indices = torch.from_numpy(compared)
    with torch.inference_mode():
        return np.concatenate([_outputs(source, row[None], indices).float().numpy() for row in x])


def _outputs(source: Source, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    if source.reference is not None:
        return source.reference(x, indices)
    initial = None if source.config else initial_tensors(source.contract, x.shape[0])
    if source.contract.output_indices:
        return source.module(x, initial, indices)[0]  # type: ignore[no-any-return]
    return source.module(x, initial)[0].index_select(1, indices)  # type: ignore[no-any-return]


def _check_change(
    bundle: Bundle,
    source: Source,
    x: torch.Tensor,
    compared: np.ndarray[Any, Any],
    tolerance: float,
    threads: int,
) -> float:
    """How far the outputs are from the float32 model's, as users get them.

    Raises:
        VerificationError: Further than the precision should take them.
    """
    original = in_float32(source)
    wanted = _full_pass(original, x, compared)
    page_out(original.module)
    got = np.empty_like(wanted)
    with running_session(bundle, threads) as session:
        stream = session.stream(x.shape[0])
        done = 0
        for size in _cut(x.shape[1], lambda: session.max_time):
            here = _within(compared, done, size)
            part = stream.feed(x.numpy()[:, done : done + size], outputs="all")
            assert part is not None
            got[:, here] = part[:, compared[here] - done]
            done += size
    found = change(got, wanted)
    if not found <= tolerance:
        raise VerificationError(
            f"the outputs differ from the float32 model's by {found:.3f} of their standard deviation, "
            f"more than this precision should take them ({tolerance:.2f}).",
            hint="The model is sensitive to rounding. Try --weights int8 in place of int4, a smaller --block-size, "
            "or --dtype fp32.",
        )
    return found


def check_graph(bundle: Bundle) -> None:
    """Follow every state through every graph: it must be an input, reach an output, and come out.

    Raises:
        VerificationError: A state is missing from the graph, or nothing depends on it.
    """
    import onnx_ir as ir

    contract = bundle.contract
    for graph in bundle.manifest.graphs:
        model = ir.load(bundle.file(graph.file))
        inputs = {value.name: value for value in model.graph.inputs}
        outputs = {value.name for value in model.graph.outputs}
        if missing := [name for name in contract.graph_inputs if name not in inputs]:
            raise VerificationError(f"{graph.file}: the input {missing[0]} was dropped from the graph.")
        if missing := [name for name in contract.graph_outputs if name not in outputs]:
            raise VerificationError(f"{graph.file}: the output {missing[0]} is not in the graph.")
        for state in contract:
            if not inputs[state.input_name].uses():
                raise VerificationError(
                    f"{graph.file}: nothing reads {state.input_name}: the model ignores its past.",
                    hint="The module must use the state that it is given, not one that it keeps as an attribute.",
                )
        for state in contract:
            value = next(value for value in model.graph.outputs if value.name == state.output_name)
            if value.producer() is None:
                raise VerificationError(
                    f"{graph.file}: {state.output_name} is an input or a constant: the state never changes."
                )
        check_counters(model, graph.file)


def check_probes(session: Session, data: np.ndarray[Any, Any]) -> None:
    """Run the stream warm; every state must have changed, and each alone must have an effect.

    Args:
        session: The bundle, opened.
        data: ``[B, T, ...]``: enough steps to fill the rings.

    Raises:
        VerificationError: A state kept its initial value, or no output depends on it.
    """
    contract = session.contract
    warm = session.stream(data.shape[0])
    warm.feed(data[:, :-3], outputs="none")
    unchanged = set(contract)
    for step in (-3, -2):  # a state may pass through its initial value, but not stay there
        warm.feed(data[:, step : step + 1], outputs="none")
        state, positions = warm.state(), warm.positions
        unchanged -= {
            spec for spec in unchanged if not np.array_equal(state[spec.name], initial_state(spec, warm.batch))
        }
    if unchanged:
        name = min(spec.name for spec in unchanged)
        raise VerificationError(
            f"state {name!r} still has its initial value after {data.shape[1] - 1} steps: it never changes."
        )
    baseline = _step(warm, data[:, -1:])
    for spec in contract:
        if spec.update == "replace" and spec.growing_axis is None and spec.shape == () and spec.dtype == "int64":
            continue  # a counter; whether it has an effect shows in the parity past the wrap
        probe = session.stream(data.shape[0])
        probe.load_state({**state, spec.name: _changed(state[spec.name], spec.dtype)}, positions)
        if _equal(baseline, _step(probe, data[:, -1:]), spec):
            raise VerificationError(
                f"state {spec.name!r} has no effect: neither the output nor another state depends on it.",
                hint="Remove it from the contract, or use it in forward().",
            )


def _step(stream: Stream, x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    output = stream.step(x[:, 0]).copy()
    return {"": output, **stream.state()}


def _equal(a: Mapping[str, np.ndarray[Any, Any]], b: Mapping[str, np.ndarray[Any, Any]], probed: StateSpec) -> bool:
    """Whether nothing differs; an appended state may differ from itself, which says nothing."""
    return all(
        np.array_equal(a[name], b[name]) for name in a if not (name == probed.name and probed.update == "append")
    )


def _changed(value: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        return bfloat16.encode(bfloat16.decode(value) * 1.5 + 0.25)
    if value.dtype == np.bool_:
        return np.asarray(~value)
    if value.dtype.kind == "f":
        return np.asarray(value * 1.5 + 0.25, dtype=value.dtype)
    return np.asarray(value + 1, dtype=value.dtype)


def _chunkings(bundle: Bundle, steps: int, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Ways to cut ``steps`` into calls: as long as they go, all of three, and a random mix."""
    longest = min(bundle.max_time, bundle.contract.max_chunk, steps)
    if longest == 1:
        return
    yield f"chunks of {longest}", _cut(steps, lambda: longest)
    if longest > 3:
        yield "chunks of 3", _cut(steps, lambda: 3)
        generator = np.random.default_rng(seed)
        yield f"mixed chunks of 1 to {longest}", _cut(steps, lambda: int(generator.integers(1, longest + 1)))


def _within(compared: np.ndarray[Any, Any], start: int, size: int) -> slice:
    """Which of the compared steps lie in a call of ``size`` steps."""
    first, end = np.searchsorted(compared, (start, start + size))
    return slice(int(first), int(end))


def _cut(steps: int, size: Callable[[], int]) -> list[int]:
    sizes: list[int] = []
    while (left := steps - sum(sizes)) > 0:
        sizes.append(min(left, size()))
    return sizes


class _FarCall:
    """One call from a synthetic state at a far position, and torch's outputs.

    Args:
        bundle: The bundle that will get the same call.
        module: What it was exported from.
        data: ``[B, T, ...]``, of which the call takes the first steps.
        position: Of the first stream; every other stream of the batch has its own.
    """

    def __init__(self, bundle: Bundle, module: torch.nn.Module, data: np.ndarray[Any, Any], position: int) -> None:
        contract = bundle.contract
        self.position = position
        self.part = data[:, : min(bundle.max_time, 5)]
        generator = torch.Generator().manual_seed(position % 2**31)
        self.state = {
            name: torch.rand(value.shape, generator=generator).to(value.dtype) + 0.5
            for name, value in initial_tensors(contract, data.shape[0]).items()
        }
        self.state[POSITION] = torch.tensor([position + 7 * row for row in range(data.shape[0])])
        # A graph in half precision keeps some states narrower than the module.
        dtypes = {spec.name: TORCH_DTYPES[spec.dtype] for spec in module.contract()}  # type: ignore[operator]
        wanted = {name: value.to(dtypes.get(name, value.dtype)) for name, value in self.state.items()}
        with torch.inference_mode():
            self.expected = module(_tensor(self.part, contract), wanted)[0].float().numpy()


class _Comparison:
    """Streams the same data through the bundle in different ways, and compares with the full-sequence outputs."""

    def __init__(
        self,
        session: Session,
        stored: Callable[[], AbstractContextManager[tuple[Source, torch.nn.Module]]],
        data: np.ndarray[Any, Any],
        compared: np.ndarray[Any, Any],
        expected: np.ndarray[Any, Any],
        tolerance: float,
    ) -> None:
        self.session = session
        self.stored = stored
        self.data = data
        self.compared = compared
        self.expected = expected
        self.tolerance = tolerance

    def stream(self, sizes: list[int], name: str, progress: Progress | None) -> float:
        """Feed the data in calls of ``sizes``; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        stream = self.session.stream(self.data.shape[0])
        worst, done = 0.0, 0
        for size in sizes:
            part = self.data[:, done : done + size]
            got = stream.step(part[:, 0])[:, None] if size == 1 else stream.feed(part, outputs="all")
            assert got is not None
            worst = max(worst, self._held(got, done, name, sizes))
            done += size
            if progress is not None:
                progress(name, done, self.data.shape[1])
        return worst

    def _held(self, got: np.ndarray[Any, Any], start: int, name: str, sizes: list[int]) -> float:
        """The largest error of a call's outputs, at those of its steps that are compared."""
        here = _within(self.compared, start, got.shape[1])
        steps = self.compared[here]
        if not steps.size:
            return 0.0
        error = self._error(got[:, steps - start], self.expected[:, here])
        if not (error <= self.tolerance).all():  # NaN is not within the tolerance either
            first = int(np.argmax(~(error <= self.tolerance)))
            self._fail(name, sizes, int(steps[first]), float(error[first]))
        return float(error.max())

    def from_position(self, call: _FarCall) -> float:
        """The same call in the engine; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        contract = self.session.contract
        stream = self.session.stream(call.part.shape[0])
        stream.load_state({spec.name: _array(call.state[spec.name]) for spec in contract}, call.state[POSITION].numpy())
        got = stream.feed(call.part, outputs="all")
        assert got is not None
        error = self._error(got, call.expected)
        if not (error <= self.tolerance).all():
            raise VerificationError(
                f"{contract.output.name} differs by {error.max():.2e} from torch's in a call from position "
                f"{call.position} (tolerance {self.tolerance:.0e}): a counter is not exact."
            )
        return float(error.max())

    @staticmethod
    def _error(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Largest error of each time step, in the scale of ``1 + |expected|``: ``[T]``."""
        error = np.abs(got.astype(np.float64) - expected) / (1 + np.abs(expected))
        return np.asarray(error.reshape(error.shape[0], error.shape[1], -1).max(axis=(0, 2)))

    def _fail(self, name: str, sizes: list[int], step: int, error: float) -> None:
        """Stream again beside torch's own step to find the first tensor that differs, and raise."""
        first = self._first_difference(sizes, step)
        where = f"the first tensor to differ is {first}" if first else "every state agrees with torch's own step"
        raise VerificationError(
            f"{name}: {self.session.contract.output.name} at step {step} differs by {error:.2e} from torch's "
            f"full-sequence pass (tolerance {self.tolerance:.0e}); {where}.",
            hint="If torch's own step differs from its full-sequence pass too, the module's two forms disagree."
            if not first
            else None,
        )

    def _first_difference(self, sizes: list[int], last: int) -> str | None:
        from edgemem.runtimes.torch_reference import TorchSession

        batch = self.data.shape[0]
        ours = self.session.stream(batch)
        with self.stored() as (_, module):
            contract = replace(self.session.contract, states=module.contract().states)  # type: ignore[operator]
            theirs = TorchSession(contract, module).stream(batch)
            done = 0
            for size in sizes:
                part = self.data[:, done : done + size]
                ours.feed(part, outputs="none")
                theirs.feed(part, outputs="none")
                reference = theirs.state()
                for name, value in ours.state().items():
                    if self.session.contract[name].dtype == "bfloat16":
                        value = bfloat16.decode(value)
                    wanted = reference[name].astype(np.float64)
                    error = np.abs(value.astype(np.float64) - wanted) / (1 + np.abs(wanted))
                    if not (error <= self.tolerance).all():
                        return f"{name} after step {done + size - 1} (by {error.max():.2e})"
                done += size
                if done > last:
                    return None
        return None


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A state as runtimes take it: bfloat16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        return bfloat16.encode(tensor.float().numpy())
    return np.asarray(tensor.numpy())


def _tensor(data: np.ndarray[Any, Any], contract: Contract) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(data)).to(TORCH_DTYPES[contract.input.dtype])


def _far_positions(contract: Contract) -> tuple[int, ...]:
    """Where counters are tried: nowhere, if there are none or if the stream ends before."""
    counts = contract.position == "input" or any(spec.name == POSITION for spec in contract)
    return FAR_POSITIONS if counts and contract.has_fixed_size and contract.max_position is None else ()
