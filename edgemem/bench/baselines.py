"""What a bundle is compared with: each is ready to be measured, or has a reason why it cannot be.

Every baseline has the shape of the model and gets the same number of threads. Baselines are opened after the bundle
itself was measured, so that they do not affect it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import edgemem
from edgemem.bench.loop import Loop
from edgemem.bench.measure import Contender
from edgemem.bench.numpy_loop import NumpyLoop
from edgemem.bench.positions import sweep_contenders
from edgemem.bench.subject import is_decoder
from edgemem.bundle import open_bundle
from edgemem.contract import Contract
from edgemem.errors import EdgememError
from edgemem.machine.memory import available_bytes
from edgemem.runtimes import Session

GROWING = "growing"
GROWING_POSITIONS = (16, 256, 1_024, 4_096, 16_384, 65_536)
GROWING_LIMIT_BYTES = 256 << 20
COPIES_OF_WEIGHTS = 3
"""The weights as the engine lays them out, the pages of the file while it is read, and other memory of the engine."""
_RESERVE_BYTES = 256 << 20


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


def prepare(session: Session, threads: int | None, folder: Path, stack: contextlib.ExitStack) -> list[Ready | Skipped]:
    """The baselines of a session, ready or skipped.

    Args:
        session: The session that is compared.
        threads: Its threads.
        folder: Where bundles may be written during the comparison.
        stack: Closes what is opened here.
    """
    return [
        _numpy_loop(session, threads, folder),
        _torch(session, threads, stack),
        _growing(session, threads, folder, stack),
    ]


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
    is_own = is_decoder(session.bundle)
    graph = "sealed graph" if is_own else "this graph" + ("" if session.contract.is_plain else ", frames by numpy")
    about = ("numpy_loop", "hand-written numpy loop", f"onnxruntime.InferenceSession.run(None, feeds), {graph}")
    try:
        _require_memory(session)
        bundle = session.bundle
        if is_own:
            from edgemem.export import sealed_twin

            bundle = open_bundle(sealed_twin(bundle, folder / "sealed"))
        loop = NumpyLoop(bundle, threads, session.device)
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
    how = f"a decoder of the same shape with a full key/value cache, runtime {session.runtime}"
    about = (GROWING, "growing KV cache", how)
    if not session.contract.has_fixed_size:
        return Skipped(*about, "the bundle has such a cache itself")
    try:
        _require_twins(session)
        from edgemem.export import growing_twin

        path = growing_twin(session.bundle, folder / "growing")
        other = edgemem.open(path, runtime=session.runtime, threads=threads, device=session.device)
    except (EdgememError, ImportError) as error:
        return Skipped(*about, reason_of(error))
    stack.callback(other.close)
    contract = other.contract
    positions = tuple(
        p for p in GROWING_POSITIONS if p == GROWING_POSITIONS[0] or contract.state_bytes_at(p) <= GROWING_LIMIT_BYTES
    )
    loop = Loop(other.stream(), contract)
    contenders = sweep_contenders(GROWING, loop, contract, positions, seed_steps=GROWING_POSITIONS[0])
    return Ready(*about, contenders, positions, contract)


def _require_twins(session: Session) -> None:
    """Refuse a bundle of which no other decoders can be built."""
    if not is_decoder(session.bundle):
        raise EdgememError("the bundle has no configuration to build it from: it is not of a decoder of edgemem")
    _require_memory(session)


def _require_memory(session: Session) -> None:
    if reason := too_large(COPIES_OF_WEIGHTS * session.bundle.weights_bytes):
        raise EdgememError(reason)
