"""One loaded model, and the streams that run on it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgemem.bundle import Bundle, GraphFile
from edgemem.contract import Contract
from edgemem.errors import EdgememError, InputError
from edgemem.runtimes.engine import Engine
from edgemem.runtimes.on_nan import OnNan
from edgemem.runtimes.stream import Outputs, Stream

if TYPE_CHECKING:
    from edgemem.runtimes.pool.pool import Pool

__all__ = ["Outputs", "Session", "Stream"]


class Session:
    """One loaded model; many streams share its weights. Streams of one session may run in different threads.

    Args:
        contract: The state contract.
        bundle: The bundle it was opened from; ``None`` for a live torch module.
        engine: What computes it.
        guard: Check inputs, outputs and new state for NaN and infinity in every call.
    """

    def __init__(self, contract: Contract, bundle: Bundle | None, engine: Engine, *, guard: bool = False) -> None:
        self.contract = contract
        self.engine = engine
        self.guard = guard
        self._bundle = bundle
        self._graphs = bundle.manifest.graphs if bundle else (GraphFile("", 1, contract.max_chunk),)
        self._closed = False
        self._streams: weakref.WeakSet[Stream | Pool] = weakref.WeakSet()

    def __repr__(self) -> str:
        model = str(self._bundle.path) if self._bundle else "a live module"
        return f"Session({model!r}, {self.runtime} on {self.device}{', closed' if self._closed else ''})"

    @property
    def runtime(self) -> str:
        """Name of the runtime."""
        return self.engine.runtime

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return self.engine.memory.device

    @property
    def bundle(self) -> Bundle:
        """The bundle that the session was opened from."""
        if self._bundle is None:
            raise EdgememError("this session runs a live module: it has no bundle.")
        return self._bundle

    @cached_property  # every snapshot needs it
    def fingerprint(self) -> str:
        """Identity of the model, which snapshots hold: the bundle's, or a live module's contract's."""
        return self._bundle.fingerprint if self._bundle else self.contract.fingerprint

    @property
    def max_time(self) -> int:
        """Most steps of one call to the engine; longer chunks are split."""
        return min(self.contract.max_chunk, max(graph.max_time for graph in self._graphs))

    def stream(self, batch: int = 1, held: Mapping[str, Any] | None = None, on_nan: OnNan = "stop") -> Stream:
        """A new stream at position 0.

        Args:
            batch: Streams that advance together, each at its own position.
            held: The inputs that a stream is given once, by name; see :meth:`Stream.hold`.
            on_nan: What happens to a row of real-valued data that holds NaN or infinity, while the other rows of the
                batch go on. ``"stop"`` raises :class:`~edgemem.errors.NonFiniteError`, before anything has changed.
                ``"skip"`` leaves that row's state and position as they were; its output is NaN, or 0 for integers.
                ``"hold"`` feeds the last good row again, and skips where there was none. ``"pass"`` checks nothing,
                unless the guard is on.

        Raises:
            InputError: The model computes one stream at a time, an input is wrong, or the policy does not fit.
        """
        if not isinstance(batch, int) or batch < 1:
            raise InputError(f"a stream needs a batch of 1 or more, got {batch!r}.")
        if batch > 1 and not self.contract.has_batches:
            raise InputError(
                f"a stream of batch {batch}: the graph has tensors without a batch axis, so it computes one stream.",
                hint="Open several streams: they share the weights.",
            )
        stream = self.new_stream(batch, on_nan)
        stream.reset()
        if held is not None:
            stream.hold(held)
        return stream

    def pool(
        self,
        slots: int = 64,
        *,
        on_nan: OnNan = "stop",
        queue: int = 16,
        wait_ms: float = 0.0,
        chunk: int | None = None,
    ) -> Pool:
        """Many streams that come and go, advanced together; see :class:`~edgemem.runtimes.pool.Pool`.

        Args:
            slots: Streams at a time, each with its state in memory.
            on_nan: See :meth:`stream`.
            queue: Calls that may wait for one stream.
            wait_ms: How long a step waits for the other streams' steps, in milliseconds.
            chunk: Steps of a long feed that run between two steps of the others; by default as many as one call takes.

        Raises:
            InputError: The model's state grows, it computes one stream, or a number is out of range.
        """
        from edgemem.runtimes.pool.pool import Pool

        if self._closed:
            raise _closed()
        pool = Pool(self, slots, on_nan=on_nan, queue=queue, wait_ms=wait_ms, chunk=chunk)
        self._streams.add(pool)
        return pool

    def new_stream(self, batch: int, on_nan: OnNan = "stop") -> Stream:
        """A stream whose state is undefined."""
        if self._closed:
            raise _closed()
        stream = Stream(self, self.engine.for_stream(batch), batch, on_nan)
        self._streams.add(stream)
        return stream

    def pieces(self, time: int) -> Iterator[int]:
        """Lengths, each as long as a graph takes, that sum to ``time``."""
        while time:
            cap = min(time, self.contract.max_chunk)
            length = max(min(graph.max_time, cap) for graph in self._graphs if graph.min_time <= cap)
            yield length
            time -= length

    def close(self) -> None:
        """Release the model. Streams of this session cannot be used any more."""
        self._closed = True
        for stream in list(self._streams):
            stream._let_go()
        self.engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _closed() -> EdgememError:
    return EdgememError("the session is closed.", hint="Open the bundle again.")
