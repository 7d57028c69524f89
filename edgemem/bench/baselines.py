"""What a bundle is compared with: each is ready to be measured, or has a reason why it cannot be.

Every baseline has the shape of the model and gets the same number of threads. Baselines are opened after the bundle
itself was measured, so that they do not affect it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgemem
from edgemem.bench.loop import Inputs, Loop, new_stream
from edgemem.bench.measure import Contender, Progress, silent
from edgemem.bench.numpy_loop import NumpyLoop
from edgemem.bench.positions import sweep_contenders
from edgemem.bench.rewritten import bounded_rings, growing_contract, sealed, with_whole_past
from edgemem.bench.subject import is_decoder
from edgemem.contract import Contract
from edgemem.errors import EdgememError
from edgemem.machine.memory import available_bytes
from edgemem.manifest import TRANSFORMERS
from edgemem.measure import change, change_tolerance
from edgemem.runtimes import Session

Array = NDArray[np.float32]
GROWING = "growing"
GROWING_POSITIONS = (16, 256, 1_024, 4_096, 16_384, 65_536)
GROWING_LIMIT_BYTES = 256 << 20
COPIES_OF_WEIGHTS = 3
"""The weights as the engine lays them out, the pages of the file while it is read, and other memory of the engine."""
_RESERVE_BYTES = 256 << 20
_COMPARED_STEPS, _ROUNDING = 16, 1e-3


@dataclass(frozen=True)
class Skipped:
    """A baseline that is not measured, and why."""

    key: str
    name: str
    how: str
    reason: str


@dataclass(frozen=True)
class Ready:
    """A baseline that can be measured.

    Attributes:
        key: Stable name.
        name: Name for people.
        how: What is run.
        contenders: One; for the growing cache, one for each position.
        positions: Of the growing cache's contenders.
        contract: The growing cache's.
    """

    key: str
    name: str
    how: str
    contenders: list[Contender]
    positions: tuple[int, ...] = ()
    contract: Contract | None = None


def prepare(
    session: Session, threads: int | None, folder: Path, stack: contextlib.ExitStack, progress: Progress = silent
) -> list[Ready | Skipped]:
    """The baselines of a session, ready or skipped.

    Args:
        session: The session that is compared.
        threads: Its threads.
        folder: Where bundles may be written during the comparison.
        stack: Closes what is opened here.
        progress: Called before and after each of them.
    """
    makers: tuple[tuple[str, Callable[[], Ready | Skipped]], ...] = (
        ("numpy loop", lambda: _numpy_loop(session, threads, folder)),
        ("torch", lambda: _torch(session, threads, stack)),
        ("growing KV cache", lambda: _growing(session, threads, folder, stack)),
    )
    prepared = []
    for name, make in makers:
        progress(f"preparing: {name}", 0, 1)
        prepared.append(make())
        progress(f"preparing: {name}", 1, 1)
    return prepared


def too_large(needed_bytes: int) -> str | None:
    """Why a baseline of that many bytes is not started; ``None`` if it fits. The kernel would kill the whole run."""
    available = available_bytes()
    if available is None or needed_bytes + _RESERVE_BYTES <= available:
        return None
    return f"it needs about {needed_bytes >> 20} MiB, and {available >> 20} MiB are free"


def reason_of(error: BaseException) -> str:
    """An error as the reason why a baseline is skipped."""
    if isinstance(error, EdgememError):
        return " ".join([error.message, *([error.hint] if error.hint else [])])
    return str(error)


def _numpy_loop(session: Session, threads: int | None, folder: Path) -> Ready | Skipped:
    graph = "sealed graph" if any(state.update == "append" for state in session.contract) else "this graph"
    frames = "" if session.contract.is_plain else ", frames by numpy"
    about = ("numpy_loop", "hand-written numpy loop", f"onnxruntime.InferenceSession.run(None, feeds), {graph}{frames}")
    try:
        _require_memory(session)
        loop = NumpyLoop(sealed(session.bundle, folder / "sealed"), threads, session.device)
        _require_agreement(session, loop.step_with)
    except (EdgememError, ImportError) as error:
        return Skipped(*about, reason_of(error))
    return Ready(*about, [Contender("numpy_loop", loop.step, after=loop.choose)])


def _torch(session: Session, threads: int | None, stack: contextlib.ExitStack) -> Ready | Skipped:
    about = ("torch", "torch, eager", 'edgemem.open(bundle, runtime="torch")')
    if session.runtime == "torch":
        return Skipped(*about, "it is the runtime that is measured")
    try:
        _require_twins(session)
        other = edgemem.open(session.bundle, runtime="torch", threads=threads, device=session.device)
    except (EdgememError, ImportError) as error:
        return Skipped(*about, reason_of(error))
    stack.callback(other.close)
    loop = Loop(other.stream(), other.contract)
    return Ready(*about, [Contender("torch", loop.step, after=loop.choose)])


def _growing(session: Session, threads: int | None, folder: Path, stack: contextlib.ExitStack) -> Ready | Skipped:
    bundle, is_own = session.bundle, is_decoder(session.bundle)
    what = "a decoder of the same shape with a full key/value cache" if is_own else "this model with its whole past"
    about = (GROWING, "growing KV cache", f"{what}, runtime {session.runtime}")
    if not session.contract.has_fixed_size:
        return Skipped(*about, "the bundle has such a cache itself")
    try:
        if is_own:
            _require_memory(session)
            from edgemem.export import growing_twin

            path, contract = growing_twin(bundle, folder / "growing"), None
        else:
            contract = _require_bounded_past(session)
            _require_memory(session)
            path = with_whole_past(bundle, _lengths(contract)[-1] + contract.max_chunk, folder / "growing").path
        other = edgemem.open(path, runtime=session.runtime, threads=threads, device=session.device)
        stack.callback(other.close)
        if not is_own:
            _require_agreement(session, new_stream(other).step)
    except (EdgememError, ImportError) as error:
        return Skipped(*about, reason_of(error))
    contract = contract or other.contract
    positions = _lengths(contract)
    contenders = sweep_contenders(
        GROWING, Loop(other.stream(), other.contract), other.contract, positions, positions[0]
    )
    return Ready(*about, contenders, positions, contract)


def _lengths(contract: Contract) -> tuple[int, ...]:
    """The positions at which a cache that grows is measured: those where its bytes are not too many."""
    first, *others = GROWING_POSITIONS
    return (first, *(p for p in others if contract.state_bytes_at(p) <= GROWING_LIMIT_BYTES))


def _require_bounded_past(session: Session) -> Contract:
    """The contract of a Hugging Face model as if its caches grew; refuse other bundles."""
    rings = bounded_rings(session.bundle)
    if session.bundle.manifest.source.kind != TRANSFORMERS:
        raise EdgememError("only decoders of edgemem and Hugging Face models have a cache that can be made to grow")
    if not rings:
        raise EdgememError("no layer of the model keeps its whole past, so it has no cache that grows")
    return growing_contract(session.bundle, rings)


def _require_agreement(session: Session, step: Callable[[Any], Any]) -> None:
    """Refuse a baseline that computes something else: its first steps, and those of a stream, on the same inputs.

    Args:
        session: The session that is compared.
        step: Makes a step of the baseline, and gives its output ``[1, *output.shape]``, or outputs by name.
    """
    contract = session.contract
    stream, inputs = new_stream(session), Inputs(contract)
    steps = min(_COMPARED_STEPS, contract.max_position or _COMPARED_STEPS)
    found: list[Array] = []
    wanted: list[Array] = []
    x = inputs.first()
    for _ in range(steps):
        output = stream.step(x)
        for values, made in ((wanted, output), (found, step(x))):
            first = made[contract.output.name] if isinstance(made, Mapping) else made
            values.append(np.array(first, np.float32).reshape(1, 1, -1))
        x = inputs.after(output)
    share = change(np.concatenate(found, 1), np.concatenate(wanted, 1))
    allowed = max(_ROUNDING, change_tolerance(session.bundle.manifest.precision))
    if not share <= allowed:
        raise EdgememError(
            f"its outputs differ from the bundle's by {share:.2g} of their spread, and {allowed:.2g} is rounding"
        )


def _require_twins(session: Session) -> None:
    """Refuse a bundle that torch cannot run."""
    if not is_decoder(session.bundle):
        raise EdgememError("torch runs only decoders of edgemem: the bundle has no configuration to build one from")
    _require_memory(session)


def _require_memory(session: Session) -> None:
    if reason := too_large(COPIES_OF_WEIGHTS * session.bundle.weights_bytes):
        raise EdgememError(reason)
