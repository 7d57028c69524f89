"""The way to the Python model that `edgemem build --target triton` writes, over gRPC."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemem.client.link import LinkLostError, Op, numbers
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.triton.config import SNAPSHOT

try:
    import tritonclient.grpc as triton
    from tritonclient.utils import triton_to_np_dtype
except ImportError as error:
    raise MissingDependencyError("tritonclient is not installed.", hint=how_to_install("tritonclient")) from error

_LOST = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
_FORGOTTEN = ("START flag", "is not known here")
_FOR_AGES_S = 600.0


class TritonLink:
    """One sequence of a model.

    Args:
        server: ``"HOST:PORT"`` of gRPC.
        stream: The sequence's name.
        model: The model that holds sequences.
    """

    def __init__(self, server: str, stream: str, model: str) -> None:
        self._server, self._stream, self._model = server, stream, model
        self._client: Any = None
        self._inputs: dict[str, tuple[str, list[int]]] = {}
        self._outputs: list[str] = []
        self._first: bytes | None = None
        self._starts = True

    def open(self, snapshot: bytes | None) -> None:
        """See :class:`~edgemem.client.link.Link`: the next request begins the sequence."""
        self.close()
        try:
            self._client = triton.InferenceServerClient(self._server)
            config = self._client.get_model_config(self._model, as_json=True)["config"]
        except triton.InferenceServerException as error:
            raise self._as_ours(error) from error
        given = [tensor for tensor in config["input"] if not tensor.get("optional")]
        self._inputs = {
            t["name"]: (t["data_type"].removeprefix("TYPE_"), [int(size) for size in t["dims"]]) for t in given
        }
        self._outputs = [tensor["name"] for tensor in config["output"] if tensor["name"] != SNAPSHOT]
        self._first, self._starts = snapshot, True

    def resume(self) -> bytes | None:
        """See :class:`~edgemem.client.link.Link`. Triton cannot say whether it has a sequence: it begins."""
        self.open(None)
        return None

    def send(self, op: Op, x: Any, outputs: str, wants_snapshot: bool) -> tuple[Any, bytes | None]:
        """See :class:`~edgemem.client.link.Link`."""
        given = x if isinstance(x, dict) else {next(iter(self._inputs)): x}
        tensors = [self._tensor(name, numbers(value, name)) for name, value in given.items()]
        if self._starts and self._first is not None:
            snapshot = np.frombuffer(self._first, np.uint8)[None]
            tensors.append(triton.InferInput(SNAPSHOT, snapshot.shape, "UINT8"))
            tensors[-1].set_data_from_numpy(snapshot)
        wanted = [*self._outputs, *([SNAPSHOT] if wants_snapshot else [])]
        found = self._infer(tensors, wanted, sequence_start=self._starts)
        self._starts = False
        results = {name: found.as_numpy(name)[0] for name in self._outputs}
        if op == "step":
            results = {name: value[0] if len(value) == 1 else value for name, value in results.items()}
        elif outputs == "last":
            results = {name: value[-1] for name, value in results.items()}
        elif outputs == "none":
            results = {}
        result = next(iter(results.values()), None) if len(self._outputs) == 1 else results
        return result, found.as_numpy(SNAPSHOT).tobytes() if wants_snapshot else None

    def forget(self) -> None:
        """See :class:`~edgemem.client.link.Link`: Triton drops a sequence that is idle."""

    def close(self) -> None:
        """See :class:`~edgemem.client.link.Link`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _infer(self, tensors: list[Any], wanted: list[str], sequence_start: bool) -> Any:
        if self._client is None:
            raise LinkLostError("not connected")
        try:
            return self._client.infer(
                self._model,
                tensors,
                outputs=[triton.InferRequestedOutput(name) for name in wanted],
                sequence_id=self._stream,
                sequence_start=sequence_start,
                client_timeout=_FOR_AGES_S,
            )
        except triton.InferenceServerException as error:
            raise self._as_ours(error) from error

    def _tensor(self, name: str, value: Any) -> Any:
        """A request's tensor ``[1, N, *item_shape]`` from the items of one stream."""
        if name not in self._inputs:
            raise EdgememError(f"{self._model} has no input {name!r}; it has {', '.join(self._inputs)}.")
        dtype, dims = self._inputs[name]
        items = value.reshape(1, *([1] * (len(dims) - value.ndim)), *value.shape)
        tensor = triton.InferInput(name, items.shape, dtype)
        tensor.set_data_from_numpy(np.ascontiguousarray(items, triton_to_np_dtype(dtype)))
        return tensor

    def _as_ours(self, error: Any) -> Exception:
        text = f"{self._server}: {error.message()}"
        lost = any(word in (error.status() or "") for word in _LOST) or any(word in text for word in _FORGOTTEN)
        return LinkLostError(text) if lost else EdgememError(text)
