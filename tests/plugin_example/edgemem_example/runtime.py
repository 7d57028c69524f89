"""A runtime in one file: ONNX Runtime without bindings, every tensor passed and returned as a numpy array."""

from __future__ import annotations

from typing import Any, ClassVar

import onnxruntime

from edgemem.bundle import Bundle
from edgemem.runtimes import Session
from edgemem.runtimes.engine import Call, Engine, Tensors


class ExampleEngine(Engine):
    """Runs the graphs of a bundle that takes float32, float16 and integer tensors."""

    runtime: ClassVar[str] = "example"
    title: ClassVar[str] = "the example runtime"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._graphs: dict[str, Any] = {
            graph.file: onnxruntime.InferenceSession(bundle.file(graph.file)) for graph in bundle.manifest.graphs
        }

    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        """See the base class."""
        graph = self._bundle.graph_for(time)
        assert graph is not None
        loaded, names = self._graphs[graph.file], list(outputs)

        def run() -> None:
            results = loaded.run(names, {name: tensor.array for name, tensor in inputs.items()})
            for name, result in zip(names, results, strict=True):
                outputs[name].array[...] = result

        return run


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
    """Open a bundle; see :func:`edgemem.open`."""
    return Session(bundle.contract, bundle, ExampleEngine(bundle), guard=guard)
