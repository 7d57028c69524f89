"""The floor of a step: every weight read once, by the fastest way found."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import statistics
from edgemem.bench.baselines import COPIES_OF_WEIGHTS, Skipped, reason_of, too_large
from edgemem.bench.devices.bandwidth import CopyPass
from edgemem.bench.measure import Contender
from edgemem.bench.statistics import CONFIDENCE, Interval
from edgemem.bench.table import Table
from edgemem.bench.weights import NumpyPass, OnnxRuntimePass, WeightReads, blas_threads, weight_reads
from edgemem.bench.words import ms, number, spread, times
from edgemem.bundle import Bundle
from edgemem.console import readable_bytes
from edgemem.errors import EdgememError
from edgemem.runtimes import Session
from edgemem.runtimes.cuda import CudaMemory
from edgemem.wording import counted

FLOOR = "floor"


@dataclass(frozen=True)
class FloorMethod:
    """One way to read every weight once."""

    name: str
    p50_ms: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Floor:
    """The least time a step could take on this machine.

    Attributes:
        weight_bytes: Bytes that a step reads.
        matrices: Number of matrices.
        counted: Which weights were counted.
        method: The fastest way found.
        methods: All ways that were tried.
        p50_ms: Time of the fastest way.
        gigabytes_per_second: Its bandwidth.
        step_over_floor: Time of a step over that of the floor, paired by round.
        state_bytes: Bytes of one stream's state, which a step reads too.
        step_over_all: Time of a step over that of reading the weights and the state at the same bandwidth.
    """

    weight_bytes: int
    matrices: int
    counted: str
    method: str
    methods: list[FloorMethod]
    p50_ms: float
    gigabytes_per_second: float
    step_over_floor: Interval
    state_bytes: int = 0
    step_over_all: Interval | None = None

    def table(self) -> Table:
        """The ways that were tried."""
        return Table(
            FLOOR,
            "Floor: time to read the weights once",
            ("method", "p50", ""),
            [(m.name, ms(m.p50_ms), f"not measured: {m.skipped}" if m.skipped else "") for m in self.methods],
            ("p50",),
            [
                f"{readable_bytes(self.weight_bytes)} in {counted(self.matrices, 'matrix', 'matrices')} "
                f"({self.counted}), {number(self.gigabytes_per_second)} GB/s by {self.method}.",
                f"A step takes {times(self.step_over_floor)} the floor ({CONFIDENCE:.0%} interval "
                f"{spread(self.step_over_floor)}).",
                *self._with_state(),
            ],
        )

    def _with_state(self) -> list[str]:
        if self.step_over_all is None:
            return []
        return [
            f"It reads {readable_bytes(self.state_bytes)} of state too: {times(self.step_over_all)} the time of both "
            f"at that bandwidth ({spread(self.step_over_all)})."
        ]


@dataclass
class FloorReady:
    """The ways to read the weights once that can be measured, and why others cannot.

    Attributes:
        reads: The weights.
        contenders: The ways.
        skipped: Way → why it cannot be measured.
        moved_bytes: Contender → bytes that one of its steps moves, if they differ from those of the weights: its time
            is scaled in proportion.
        state_bytes: Bytes of one stream's state; 0 where it grows.
    """

    reads: WeightReads
    contenders: list[Contender] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    moved_bytes: dict[str, int] = field(default_factory=dict)
    state_bytes: int = 0

    def floor(self, samples: Mapping[str, NDArray[np.int64]], own: NDArray[np.int64]) -> Floor:
        """The floor that was measured.

        Args:
            samples: Nanoseconds ``[R, K]`` of each contender.
            own: Nanoseconds ``[R, K']`` of the bundle's steps, in the same rounds.
        """
        nbytes = self.reads.nbytes
        tried = {
            contender.name.removeprefix(f"{FLOOR}:"): samples[contender.name].astype(np.float64)
            * (nbytes / self.moved_bytes.get(contender.name, nbytes))
            for contender in self.contenders
        }
        fastest = min(tried, key=lambda name: float(np.median(tried[name])))
        p50_ms = statistics.median_ms(tried[fastest])
        return Floor(
            weight_bytes=nbytes,
            matrices=len(self.reads.shapes),
            counted=self.reads.counted,
            method=fastest,
            methods=[
                *(FloorMethod(name, statistics.median_ms(ns)) for name, ns in tried.items()),
                *(FloorMethod(name, skipped=reason) for name, reason in self.skipped.items()),
            ],
            p50_ms=p50_ms,
            gigabytes_per_second=nbytes / p50_ms / 1e6,
            step_over_floor=statistics.ratio(own, tried[fastest]),
            state_bytes=self.state_bytes,
            step_over_all=statistics.ratio(own, tried[fastest] * (1 + self.state_bytes / nbytes)),
        )


def prepare_floor(bundle: Bundle, threads: int | None, stack: contextlib.ExitStack) -> FloorReady | Skipped:
    """The floor on a CPU: matrix-vector products with every weight matrix.

    Args:
        bundle: Whose weights.
        threads: Threads that read them; ``None``: each way chooses.
        stack: Ends what is started here.
    """
    about = (FLOOR, "floor", "one pass over the weights as matrix-vector products")
    try:
        reads = weight_reads(bundle)
    except EdgememError as error:
        return Skipped(*about, reason_of(error))
    if reason := too_large(COPIES_OF_WEIGHTS * reads.nbytes):
        return Skipped(*about, reason)
    ready = FloorReady(reads, state_bytes=_state_bytes(bundle))
    obstacle = stack.enter_context(blas_threads(threads))
    if obstacle is None:
        ready.contenders.append(Contender(f"{FLOOR}:numpy", NumpyPass(reads).step))
    else:
        ready.skipped["numpy"] = obstacle
    try:
        ready.contenders.append(Contender(f"{FLOOR}:onnxruntime", OnnxRuntimePass(reads, threads).step))
    except EdgememError as error:
        ready.skipped["onnxruntime"] = reason_of(error)
    if not ready.contenders:
        return Skipped(*about, "; ".join(f"{name}: {reason}" for name, reason in ready.skipped.items()))
    return ready


def prepare_device_floor(session: Session) -> FloorReady | Skipped:
    """The floor on a GPU: the bytes of the weights at the speed at which its memory copies.

    Args:
        session: A session on a CUDA device.
    """
    about = (FLOOR, "floor", "the bytes of the weights at the speed of a copy within the device")
    try:
        reads = weight_reads(session.bundle)
        way = CopyPass(CudaMemory())
    except EdgememError as error:
        return Skipped(*about, reason_of(error))
    name = f"{FLOOR}:{way.name}"
    contenders = [Contender(name, way.step)]
    return FloorReady(
        reads, contenders, moved_bytes={name: way.traffic_bytes}, state_bytes=_state_bytes(session.bundle)
    )


def _state_bytes(bundle: Bundle) -> int:
    contract = bundle.contract
    return contract.state_bytes if contract.has_fixed_size else 0
