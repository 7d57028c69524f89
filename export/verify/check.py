"""Whether a bundle computes what its model computes, and loses no state.

Three kinds of evidence:

* the graph: its inputs and outputs are the contract's, and every state input has a path to an output;
* effects: every state changes as the stream advances, and changing any one of them alone changes the outputs;
* parity: streams fed step by step and in several chunkings, past every window's wrap, from the initial state and from
  far positions, equal torch's full-sequence pass, and the states equal those of torch's own steps. A mismatch is traced
  to the first step and tensor.

All forms of the graphs that can run here are checked: that of ONNX's own operators, and the native one.

Every error is a share of what its channel varies by (:mod:`edgemem.measure`). The module itself is held
to float64 where it counts (:mod:`edgemem.export.verify.counting`), and may keep nothing that is not a declared state.

A bundle in reduced precision is compared with torch in float32 with the weights that the bundle stores, and its outputs
with those of the float32 model (:mod:`edgemem.measure`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgemem.bundle import Bundle, open_bundle
from edgemem.contract import Contract
from edgemem.dtypes import element_type
from edgemem.errors import VerificationError
from edgemem.export.sources import Source
from edgemem.export.verify.effects import check_effects
from edgemem.export.verify.expected import Expected
from edgemem.export.verify.far import FarCalls
from edgemem.export.verify.hidden import refuse_hidden
from edgemem.export.verify.parity import Comparison, Progress, chunkings
from edgemem.export.verify.paths import check_paths
from edgemem.export.verify.sequences import Sequences
from edgemem.export.verify.sessions import exact_session, forms, running_session
from edgemem.export.verify.states import Stored, TorchStates
from edgemem.export.verify.widened import in_float64
from edgemem.machine.paging import page_out
from edgemem.measure import Array, Measure, change, change_tolerance, rounding_tolerance
from edgemem.precision import Precision
from edgemem.streaming.narrow import NarrowRings
from edgemem.streaming.sealed import Sealed

_BATCH = 2  # streams that must not see each other
_SENSITIVE = (
    "The model is sensitive to rounding. Try --weights int8 instead of int4, a smaller --block-size, or --dtype fp32. "
    "To measure a device with a model that is not trained yet: --allow-change."
)
_LEAST_STEPS = 4  # the effects are looked at after each of the last three


@dataclass
class CheckReport:
    """What a check measured.

    Attributes:
        steps: Steps streamed.
        compared: The number of these steps whose outputs are compared with the full-sequence pass.
        tolerance: The largest error that was allowed.
        step_error: Largest difference on outputs, stepping, as a share of the channel's spread.
        state_error: Largest difference on states from torch's own steps, as a share of the state's spread, and on
            everything in a call from a random state.
        chunk_errors: The same for each chunking, by its description.
        far_errors: The same for calls from far positions, by position.
        graph_states: Number of states whose path through the graph was followed.
        change: How far the outputs of a bundle in reduced precision are from the float32 model's, as a share of their
            standard deviation; ``None`` if there was no such model to compare with.
        change_tolerance: The largest change that is allowed.
        unverified: Why the bundle should only be used to measure a device; ``""`` if it passed everything.
        float64: Whether the model also runs in float64. If not, nobody knows whether it counts in float32.
        emulated: Whether bfloat16 was emulated in float32, because ONNX Runtime has no kernels for it.
    """

    steps: int
    compared: int
    tolerance: float
    step_error: float = 0.0
    state_error: float = 0.0
    chunk_errors: dict[str, float] = field(default_factory=dict)
    far_errors: dict[str, float] = field(default_factory=dict)
    graph_states: int = 0
    change: float | None = None
    change_tolerance: float | None = None
    unverified: str = ""
    float64: bool = True
    emulated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def default_steps(contract: Contract) -> int:
    """Enough steps to pass the longest ring's wrap twice, and for one call of the most time steps."""
    longest = max((state.window or 0 for state in contract), default=0)
    return max(64, 2 * longest + 3, contract.max_chunk + 3)


def check(
    path: str | Path,
    source: Source,
    *,
    steps: int | None = None,
    tolerance: float | None = None,
    is_original: bool = True,
    allow_change: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Compare a bundle with its model.

    Args:
        path: The bundle.
        source: The model that it was exported from.
        steps: Steps to stream; by default twice past the longest ring's wrap.
        tolerance: Largest difference allowed, as a share of a channel's spread; by default what the precision allows.
        is_original: Whether ``source`` has the weights that the model had before the export, not the bundle's.
        allow_change: Whether reduced precision may change the outputs by more than it should. The report says so.
        seed: Seed of the random data.
        progress: Called with a phase's name, the steps done and the steps in all.

    Raises:
        VerificationError: A state is lost, never changes or has no effect, or the numbers differ: the message names
            the first step and tensor.
    """
    bundle = open_bundle(path)
    contract, precision = bundle.contract, bundle.manifest.precision
    stored = partial(_stored_model, bundle, source, _is_sealed(bundle, source))
    check_paths(bundle)
    batch = _BATCH if contract.has_batches else 1
    given = Sequences.random(contract, batch, _steps(steps, source, contract), seed)
    tolerance = rounding_tolerance(precision) if tolerance is None else tolerance
    threads = torch.get_num_threads()
    with stored() as (reference, module), refuse_hidden(source.module):
        expected = Expected.of(reference, given)
        states = TorchStates.of(contract, module, given, bundle.max_time)
        far = FarCalls(bundle, module, given)
    page_out(source.module)  # torch is no longer needed: the engine's copy of the weights replaces its own
    measure = Measure(expected.outputs, tolerance, partial(_in_float64, stored, given), precision.dtype)
    report = CheckReport(given.steps, expected.steps.size, tolerance, graph_states=len(contract.states))
    report.float64 = far.near is None or far.near.precise is not None
    report.emulated = precision.dtype == "bfloat16"
    for native in forms(bundle):
        with exact_session(bundle, threads, native=native) as session:
            comparison = Comparison(session, stored, given, expected, measure)
            check_effects(session, given)
            stepping = comparison.stream([1] * report.steps, "stepping", progress)
            report.step_error = max(report.step_error, stepping)
            for name, sizes in chunkings(bundle, report.steps, seed):
                _keep_larger(report.chunk_errors, {name: comparison.stream(sizes, name, progress)})
            if states.agree(expected, measure):
                state_error = states.compare(session, given, stored, tolerance, precision.dtype)
                report.state_error = max(report.state_error, state_error)
            found, errors = far.compare(session, precision.dtype, measure)
            report.state_error = max(report.state_error, found)
            _keep_larger(report.far_errors, errors)
    if is_original and not precision.is_plain:
        report.change_tolerance = change_tolerance(precision)
        report.change = _change(bundle, source, given, threads)
        if not report.change <= report.change_tolerance:
            report.unverified = _too_much(report.change, report.change_tolerance)
            if not allow_change:
                raise VerificationError(report.unverified, hint=_SENSITIVE)
    return report


def _keep_larger(errors: dict[str, float], found: Mapping[str, float]) -> None:
    errors.update({name: max(errors.get(name, 0.0), error) for name, error in found.items()})


def _is_sealed(bundle: Bundle, source: Source) -> bool:
    """Whether the bundle has the states of the source with its rings written inside.

    Raises:
        VerificationError: It has neither these nor the source's own states.
    """
    contract, precision = bundle.contract, bundle.manifest.precision
    if _same_states(_as_stored(source.module, precision, False), contract, precision):
        return False
    if not _same_states(Sealed(source.module), contract, precision):
        raise VerificationError(
            f"{bundle.path} has other states than {source.name} declares.",
            hint="Check the bundle against the source that it was exported from.",
        )
    return True


def _as_stored(module: torch.nn.Module, precision: Precision, sealed: bool) -> torch.nn.Module:
    """A module with the states that a bundle of it has."""
    if precision.memory is not None:
        return NarrowRings(module, precision.memory)
    return Sealed(module) if sealed else module


def _same_states(module: Any, contract: Contract, precision: Precision) -> bool:
    """Whether a module has the states of a contract, apart from the dtypes that the precision changes."""

    def plain(contract: Contract) -> list[object]:
        narrow = ("float32", precision.dtype)
        return [replace(s, dtype="float32" if s.dtype in narrow else s.dtype) for s in contract.states]

    return plain(module.contract()) == plain(contract)


def _steps(wanted: int | None, source: Source, contract: Contract) -> int:
    """The number of steps to stream."""
    # The source's own contract: a sealed one does not tell its rings from other states.
    steps = max(wanted or default_steps(source.contract), _LEAST_STEPS)
    return steps if contract.max_position is None else min(steps, contract.max_position)


@contextmanager
def _stored_model(bundle: Bundle, source: Source, sealed: bool) -> Iterator[tuple[Source, torch.nn.Module]]:
    """The source with the bundle's weights, within the context, and a module with the bundle's states."""
    with source.with_stored_weights(bundle) as reference:
        yield reference, _as_stored(reference.module, bundle.manifest.precision, sealed)


def _in_float64(stored: Stored, given: Sequences) -> dict[str, Array] | None:
    """The outputs of the full-sequence pass, computed in float64."""
    with stored() as (reference, _):
        return in_float64(reference.module, lambda: Expected.of(reference, given).outputs)


def _change(bundle: Bundle, source: Source, given: Sequences, threads: int) -> float:
    """How far the outputs, as users get them, are from those of the float32 model."""
    original = source.in_float32()
    wanted = Expected.of(original, given)
    page_out(original.module)
    with running_session(bundle, threads) as session:
        got = wanted.streamed(session, given)
    real = [spec.name for spec in bundle.contract.output_specs if element_type(spec.dtype).is_float]
    return max((change(got[name], wanted.outputs[name]) for name in real), default=0.0)


def _too_much(found: float, allowed: float) -> str:
    return (
        f"the outputs differ from the float32 model's by {found:.3f} of their standard deviation, "
        f"more than this precision allows ({allowed:.2f})."
    )
