"""Whether a bundle computes what its model computes, and loses no state on the way.

Three kinds of evidence:

* the graph: its inputs and outputs are the contract's, and every state input has a path to an output;
* probes: every state changes as the stream goes, and changing any one of them alone changes what comes out;
* parity: streams fed step by step and in several chunkings, past every window's wrap, from the initial state and from
  positions far away, equal torch's full-sequence pass. A mismatch is traced to the first step and tensor.

A bundle in reduced precision is held to torch in float32 with the weights that the bundle holds, and its outputs to the
float32 model's (:mod:`edgemem.export.verify.precision_check`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgemem.bundle import Bundle, open_bundle
from edgemem.contract import Contract
from edgemem.errors import VerificationError
from edgemem.export.source import Source
from edgemem.export.verify.effects import check_graph, check_probes
from edgemem.export.verify.parity import Comparison, Expected, FarCall, Progress, chunkings, far_positions
from edgemem.export.verify.precision_check import (
    change,
    change_tolerance,
    exact_session,
    in_float32,
    rounding_tolerance,
    running_session,
    same_states,
    with_stored_weights,
)
from edgemem.machine.paging import page_out
from edgemem.protocol import example_input
from edgemem.streaming.sealed import Sealed

_BATCH = 2  # streams that must not see each other
_LEAST_STEPS = 4  # the probes look at the state after each of the last three


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
    precision = bundle.manifest.precision
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
    generator = torch.Generator().manual_seed(seed)
    x = example_input(contract, _BATCH, steps, generator)
    data = x.numpy()
    threads = torch.get_num_threads()
    stored = partial(_stored_model, bundle, source, sealed)
    with stored() as (reference, module):
        expected = Expected.of(reference, x)
        far_calls = [FarCall(bundle, module, data, position) for position in far_positions(contract)]
    page_out(source.module)  # torch has had its say: the engine's copy of the weights takes the place of its own
    report = CheckReport(
        steps, expected.steps.size, tolerance, graph_states=len(contract.states), emulated=precision.dtype == "bfloat16"
    )
    with exact_session(bundle, threads) as session:
        comparison = Comparison(session, stored, data, expected, tolerance)
        check_probes(session, data)
        report.step_error = comparison.stream([1] * steps, "stepping", progress)
        for name, sizes in chunkings(bundle, steps, seed):
            report.chunk_errors[name] = comparison.stream(sizes, name, progress)
        for call in far_calls:
            report.far_errors[str(call.position)] = comparison.from_position(call)
    if is_original and not precision.is_plain:
        report.change_tolerance = change_tolerance(precision)
        report.change = _check_change(bundle, source, x, report.change_tolerance, threads)
    return report


@contextmanager
def _stored_model(bundle: Bundle, source: Source, sealed: bool) -> Iterator[tuple[Source, torch.nn.Module]]:
    """The source with the bundle's weights, inside the block, and its module as the bundle holds its states."""
    with with_stored_weights(bundle, source) as reference:
        yield reference, Sealed(reference.module) if sealed else reference.module


def _check_change(bundle: Bundle, source: Source, x: torch.Tensor, tolerance: float, threads: int) -> float:
    """How far the outputs are from the float32 model's, as users get them.

    Raises:
        VerificationError: Further than the precision should take them.
    """
    original = in_float32(source)
    wanted = Expected.of(original, x)
    page_out(original.module)
    with running_session(bundle, threads) as session:
        found = change(wanted.streamed(session, x.numpy()), wanted.outputs)
    if not found <= tolerance:
        raise VerificationError(
            f"the outputs differ from the float32 model's by {found:.3f} of their standard deviation, "
            f"more than this precision should take them ({tolerance:.2f}).",
            hint="The model is sensitive to rounding. Try --weights int8 in place of int4, a smaller --block-size, "
            "or --dtype fp32.",
        )
    return found
