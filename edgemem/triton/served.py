"""What Triton's Python backend runs: edgemem's own runtime behind Triton's requests.

Triton imports ``model.py`` of a model's folder, which makes one of the two classes its ``TritonPythonModel``. The
bundle lies in the folder of the model's version. The backend's module exists only inside the server.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edgemem
from edgemem.contract import Contract
from edgemem.contract.items import as_passed, results_by_name
from edgemem.errors import EdgememError
from edgemem.runtimes.memory import Array
from edgemem.triton.config import BUNDLE, SNAPSHOT

if TYPE_CHECKING:
    from edgemem.runtimes.pool import PoolStream

_START, _END = 1, 2
"""Bits of a request's flags: the first request of a sequence, and the last."""


class _Model:
    """What both have in common.

    Attributes:
        contract: The contract of the bundle.
    """

    contract: Contract

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle; Triton calls this once."""
        import triton_python_backend_utils as triton

        self._triton = triton
        parameters = json.loads(args["model_config"])["parameters"]
        self._values = {name: int(value["string_value"]) for name, value in parameters.items()}
        path = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        self.session = edgemem.open(path, threads=1)
        self.contract = self.session.contract

    def finalize(self) -> None:
        """Let go of the bundle."""
        self.session.close()

    def _given(self, request: Any) -> tuple[dict[str, Array], dict[str, Array], bytes | None]:
        """Data ``[1, N, ...]`` and held inputs ``[1, ...]`` by name, and the snapshot, of a request."""
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        data = {spec.name: tensors[spec.name] for spec in self.contract.data}
        held = {
            spec.name: tensors[spec.name].reshape(1, *spec.shape) for spec in self.contract.held if spec.name in tensors
        }
        snapshot = tensors[SNAPSHOT].tobytes() if SNAPSHOT in tensors else b""
        return data, held, snapshot or None

    def _answer(self, request: Any, result: Any, snapshot: bytes | None) -> Any:
        """The outputs that a request asks for."""
        found = results_by_name(self.contract, result)
        if snapshot is not None:
            found[SNAPSHOT] = np.frombuffer(snapshot, np.uint8)[None]
        wanted = request.requested_output_names()
        tensors = [self._triton.Tensor(name, value) for name, value in found.items() if name in wanted]
        return self._triton.InferenceResponse(tensors)

    def _refusal(self, error: EdgememError) -> Any:
        text = f"{error.message} {error.hint or ''}".strip()
        return self._triton.InferenceResponse(error=self._triton.TritonError(text))


class WithState(_Model):
    """The state travels with every request as a snapshot; without one, a request begins a stream."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle and the one stream that answers requests in turn."""
        super().initialize(args)
        self._stream = self.session.stream()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each by itself."""
        return [self._one(request) for request in requests]

    def _one(self, request: Any) -> Any:
        stream = self._stream
        try:
            data, held, snapshot = self._given(request)
            if snapshot is None:
                stream.reset()
            else:
                stream.restore(snapshot)
            if held:
                stream.hold(held)
            result = stream.feed(as_passed(self.contract, data), "all")
            return self._answer(request, result, stream.snapshot())
        except EdgememError as error:
            return self._refusal(error)


class WithSequences(_Model):
    """A pool holds a stream for each sequence; requests that come together step together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle and the pool."""
        super().initialize(args)
        self._pool = self.session.pool(slots=self._values["slots"])
        self._streams: OrderedDict[Any, PoolStream] = OrderedDict()  # the one that was used last stands last

    def finalize(self) -> None:
        """Let go of the pool and the bundle."""
        self._pool.close()
        super().finalize()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Begin a step for each request, then answer all; their sequences differ."""
        begun = [self._begin(request) for request in requests]
        return [self._end(request, future) for request, future in zip(requests, begun, strict=True)]

    def _begin(self, request: Any) -> Any:
        """The future of a request's outputs, or the error."""
        name = request.correlation_id()
        try:
            data, held, snapshot = self._given(request)
            if request.flags() & _START:
                self._drop(name)
                self._drop_idle()
                self._streams[name] = self._pool.open(held=held or None, restore=snapshot)
            elif name not in self._streams:
                raise EdgememError(
                    f"sequence {name} is not known here: it was idle for too long, or another server has it.",
                    hint="Begin it again with sequence_start, and with its last snapshot if there is one.",
                )
            self._streams.move_to_end(name)
            return self._streams[name].soon.feed(as_passed(self.contract, data), "all")
        except EdgememError as error:
            return error

    def _end(self, request: Any, future: Any) -> Any:
        name = request.correlation_id()
        try:
            if isinstance(future, EdgememError):
                raise future
            result = self._pool.wait(future)
            wants = SNAPSHOT in request.requested_output_names()
            snapshot = self._streams[name].snapshot() if wants else None
            return self._answer(request, result, snapshot)
        except EdgememError as error:
            return self._refusal(error)
        finally:
            if request.flags() & _END:
                self._drop(name)

    def _drop(self, name: Any) -> None:
        if (stream := self._streams.pop(name, None)) is not None:
            stream.close()

    def _drop_idle(self) -> None:
        """Make room for one more: Triton has dropped the sequence that was idle for longest, and tells no model."""
        while len(self._streams) >= self._values["slots"]:
            self._drop(next(iter(self._streams)))
