"""What a bundle is compared with, each ready to take its turn, or the reason why it is not.

Every baseline has the shape of the same model and gets the same number of threads. They are opened after the bundle's
own measurement, so that they neither warm nor crowd it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgemem
from edgemem.bench import floor
from edgemem.bench.devices.bandwidth import CopyPass
from edgemem.bench.measure import Contender, Inputs, Loop, sweep_contenders
from edgemem.bench.result import Baseline
from edgemem.bundle import Bundle, open_bundle
from edgemem.contract import OUTPUT_INDICES, POSITION, Contract, initial_state
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.machine.memory import available_bytes
from edgemem.runtimes import Session
from edgemem.runtimes.cuda import CudaMemory
from edgemem.runtimes.ort_import import import_onnxruntime

GROWING_POSITIONS = (16, 256, 1_024, 4_096, 16_384, 65_536)
GROWING_LIMIT_BYTES = 256 << 20
FLOOR = "floor"
# Weights in the engine's own layout, the file's pages while they are read, and what the engine needs beside them.
_COPIES_OF_WEIGHTS = 3
_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Skipped:
    """A baseline that is not measured, and why."""

    key: str
    name: str
    how: str
    reason: str

    def result(self) -> Baseline:
        """As it stands in the result."""
        return Baseline(self.key, self.name, self.how, skipped=self.reason)


@dataclass(frozen=True)
class Ready:
    """A baseline whose contenders can take their turns.

    Attributes:
        key: Stable name.
        name: Name for people.
        how: What is run.
        contenders: One; for the growing cache, one for each position; for the floor, one for each way.
        positions: Of the growing cache's contenders.
        contract: The growing cache's.
    """

    key: str
    name: str
    how: str
    contenders: list[Contender]
    positions: tuple[int, ...] = ()
    contract: Contract | None = None


@dataclass
class FloorReady:
    """The ways of reading the weights once that can take their turns, and why others cannot.

    Attributes:
        reads: The weights.
        contenders: The ways.
        skipped: Way → why it cannot.
        moved_bytes: Contender → bytes that one of its steps moves, where they are others than the weights' own: its
            time is taken in proportion.
    """

    reads: floor.WeightReads
    contenders: list[Contender] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    moved_bytes: dict[str, int] = field(default_factory=dict)

    def share_of(self, name: str) -> float:
        """By how much a contender's time is multiplied to make it that of reading the weights."""
        return self.reads.nbytes / self.moved_bytes.get(name, self.reads.nbytes)


class NumpyLoop:
    """The loop that users write by hand: ``session.run(None, feeds)``, whole states in and out as numpy arrays.

    Args:
        bundle: A sealed bundle: every state goes in whole and comes out whole.
        threads: Threads of the engine; ``None``: its own choice.
        device: ``"cpu"`` or ``"cuda"``.

    Attributes:
        output: The last output ``[1, *output.shape]``; ``None`` before the first step.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EdgememError: The bundle's states cannot be held as numpy arrays, or no graph takes one step.
    """

    def __init__(self, bundle: Bundle, threads: int | None, device: str = "cpu") -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise MissingDependencyError("onnxruntime is not installed.", hint="pip install onnxruntime") from error
        contract = bundle.contract
        graph = bundle.graph_for(1)
        odd = [s.name for s in contract if s.dtype == "bfloat16" or s.update != "replace" or s.growing_axis is not None]
        if contract.input.dtype == "bfloat16":
            odd.append(contract.input.name)
        if graph is None or odd:
            raise EdgememError(f"no graph takes one step with whole numpy arrays in and out: {', '.join(odd)}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        self._session = onnxruntime.InferenceSession(str(bundle.file(graph.file)), options, providers=[provider])
        self._inputs = Inputs(contract)
        self._data = contract.input.name
        self._feeds: dict[str, NDArray[Any]] = {spec.input_name: initial_state(spec, 1) for spec in contract}
        if contract.output_indices:
            self._feeds[OUTPUT_INDICES] = np.zeros(1, dtype=np.int64)
        self._position = np.zeros(1, dtype=np.int64) if contract.position == "input" else None
        if self._position is not None:
            self._feeds[POSITION] = self._position
        past = {spec.output_name: spec.input_name for spec in contract}
        names = [output.name for output in self._session.get_outputs()]
        self._output = names.index(contract.output.name)
        self._past = [(i, past[name]) for i, name in enumerate(names) if name in past]
        self.output: NDArray[Any] | None = None
        self._feed(self._inputs.first())

    def _feed(self, x: Any) -> None:
        self._feeds[self._data] = np.asarray(x)[None, None]

    def step(self) -> None:
        """One step."""
        outputs = self._session.run(None, self._feeds)
        for index, name in self._past:
            self._feeds[name] = outputs[index]
        self.output = outputs[self._output][:, -1]

    def choose(self) -> None:
        """Choose the next input."""
        if self.output is not None:
            self._feed(self._inputs.after(self.output))
        if self._position is not None:
            self._position += 1


def _room(copies_bytes: int) -> str | None:
    """Why a baseline of that many bytes is not started, or ``None``: the kernel would end the whole run."""
    available = available_bytes()
    if available is None or copies_bytes + _RESERVE_BYTES <= available:
        return None
    return f"it needs about {copies_bytes >> 20} MiB, and {available >> 20} MiB are free"


def prepare(session: Session, threads: int | None, folder: Path, stack: contextlib.ExitStack) -> list[Ready | Skipped]:
    """The baselines of a session, ready or skipped.

    Args:
        session: The session that is compared.
        threads: Its threads.
        folder: Where bundles may be written for the time of the comparison.
        stack: Closes what is opened here.
    """
    return [
        _numpy_loop(session, threads, folder),
        _torch(session, threads, stack),
        _growing(session, threads, folder, stack),
    ]


def _numpy_loop(session: Session, threads: int | None, folder: Path) -> Ready | Skipped:
    about = ("numpy_loop", "hand-written numpy loop", "onnxruntime.InferenceSession.run(None, feeds), sealed graph")
    try:
        _exportable(session)
        from edgemem.export import sealed_twin

        loop = NumpyLoop(open_bundle(sealed_twin(session.bundle, folder / "sealed")), threads, session.device)
    except (EdgememError, ImportError) as error:
        return Skipped(*about, _reason(error))
    return Ready(*about, [Contender("numpy_loop", loop.step, after=loop.choose)])


def _torch(session: Session, threads: int | None, stack: contextlib.ExitStack) -> Ready | Skipped:
    about = ("torch", "torch, eager", 'edgemem.open(bundle, runtime="torch")')
    if session.runtime == "torch":
        return Skipped(*about, "it is the runtime that is measured")
    try:
        _exportable(session)
        other = edgemem.open(session.bundle.path, runtime="torch", threads=threads, device=session.device)
    except (EdgememError, ImportError) as error:
        return Skipped(*about, _reason(error))
    stack.callback(other.close)
    loop = Loop(other.stream(), other.contract)
    return Ready(*about, [Contender("torch", loop.step, after=loop.choose)])


def _growing(session: Session, threads: int | None, folder: Path, stack: contextlib.ExitStack) -> Ready | Skipped:
    how = f"a decoder of the same shape with a full key/value cache, runtime {session.runtime}"
    about = ("growing", "growing KV cache", how)
    if not session.contract.has_fixed_size:
        return Skipped(*about, "the bundle has one itself")
    try:
        _exportable(session)
        from edgemem.export import growing_twin

        path = growing_twin(session.bundle, folder / "growing")
        other = edgemem.open(path, runtime=session.runtime, threads=threads, device=session.device)
    except (EdgememError, ImportError) as error:
        return Skipped(*about, _reason(error))
    stack.callback(other.close)
    positions = tuple(
        p
        for p in GROWING_POSITIONS
        if p == GROWING_POSITIONS[0] or other.contract.state_bytes_at(p) <= GROWING_LIMIT_BYTES
    )
    contenders = sweep_contenders(
        "growing", Loop(other.stream(), other.contract), other.contract, positions, seed_steps=GROWING_POSITIONS[0]
    )
    return Ready(*about, contenders, positions, other.contract)


def _exportable(session: Session) -> None:
    if session.bundle.manifest.model is None:
        raise EdgememError(
            "the bundle comes from a module of the user's own: there is no configuration to build it from"
        )
    if reason := _room(_COPIES_OF_WEIGHTS * session.bundle.weights_bytes):
        raise EdgememError(reason)


def prepare_floor(bundle: Bundle, threads: int | None, stack: contextlib.ExitStack) -> FloorReady | Skipped:
    """The ways of reading the weights once.

    Args:
        bundle: Whose weights.
        threads: Threads to read them with; ``None``: as each way chooses.
        stack: Ends what is begun here.
    """
    about = (FLOOR, "floor", "one pass over the weights as matrix-vector products")
    try:
        reads = floor.weight_reads(bundle)
    except EdgememError as error:
        return Skipped(*about, _reason(error))
    if reason := _room(_COPIES_OF_WEIGHTS * reads.nbytes):
        return Skipped(*about, reason)
    ready = FloorReady(reads)
    obstacle = stack.enter_context(floor.blas_threads(threads))
    if obstacle is None:
        ready.contenders.append(Contender(f"{FLOOR}:numpy", floor.NumpyPass(reads).step))
    else:
        ready.skipped["numpy"] = obstacle
    try:
        ready.contenders.append(Contender(f"{FLOOR}:onnxruntime", floor.OnnxRuntimePass(reads, threads).step))
    except EdgememError as error:
        ready.skipped["onnxruntime"] = _reason(error)
    if not ready.contenders:
        return Skipped(*about, "; ".join(f"{name}: {reason}" for name, reason in ready.skipped.items()))
    return ready


def prepare_device_floor(session: Session) -> FloorReady | Skipped:
    """The floor on a GPU: the bytes of the weights at the speed at which its memory copies.

    Args:
        session: A session on a CUDA device.
    """
    about = (FLOOR, "floor", "the weights' bytes at the speed of a copy within the device")
    try:
        reads = floor.weight_reads(session.bundle)
        way = CopyPass(CudaMemory())
    except EdgememError as error:
        return Skipped(*about, _reason(error))
    name = f"{FLOOR}:{way.name}"
    return FloorReady(reads, [Contender(name, way.step)], moved_bytes={name: way.traffic_bytes})


def _reason(error: BaseException) -> str:
    if isinstance(error, EdgememError):
        return " ".join([error.message, *([error.hint] if error.hint else [])])
    return str(error)
