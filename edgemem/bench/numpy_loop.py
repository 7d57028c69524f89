"""The loop that users write by hand, without edgemem."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bench.hand_ends import HandEnds
from edgemem.bench.loop import Inputs
from edgemem.bundle import Bundle
from edgemem.contract import OUTPUT_INDICES, POSITION, initial_state
from edgemem.contract.axes import in_graph
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.runtimes.ort.importing import import_onnxruntime


class NumpyLoop:
    """The loop that users write by hand: ``session.run(None, feeds)``, with whole states as numpy arrays.

    Args:
        bundle: A sealed or adopted bundle: every state is a whole input and a whole output.
        threads: Threads of the engine; ``None``: the engine chooses.
        device: ``"cpu"`` or ``"cuda"``.

    Attributes:
        output: The last output ``[1, *output.shape]``, of models with frames the samples of a step; ``None`` before the
            first step.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EdgememError: A state cannot be a numpy array, or no graph takes one step.
    """

    def __init__(self, bundle: Bundle, threads: int | None, device: str = "cpu") -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise MissingDependencyError("onnxruntime is not installed.", hint=how_to_install("onnxruntime")) from error
        contract = bundle.contract
        graph = bundle.graph_for(1)
        odd = [s.name for s in contract if s.dtype == "bfloat16" or s.update != "replace" or s.growing_axis is not None]
        if contract.input.dtype == "bfloat16":
            odd.append(contract.input.name)
        if graph is None or odd:
            raise EdgememError(f"no graph takes one step with whole states as numpy arrays: {', '.join(odd)}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        try:
            self._session = onnxruntime.InferenceSession(str(bundle.file(graph.file)), options, providers=[provider])
        except Exception as error:
            raise EdgememError(f"onnxruntime cannot load its graph: {str(error).splitlines()[0]}") from error
        self._inputs, self._contract = Inputs(contract), contract
        self._ends = None if contract.is_plain else HandEnds(contract, graph)
        self._feeds: dict[str, NDArray[Any]] = {
            spec.input_name: in_graph(initial_state(spec, 1), spec.batch_axis) for spec in contract
        }
        rng = np.random.default_rng(1)
        for held in contract.held:
            self._feeds[held.name] = in_graph(rng.standard_normal((1, *held.shape)).astype(held.dtype), held.batch_axis)
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
        self.feed(self._inputs.first())

    def feed(self, x: Any) -> None:
        """Give the input of the next step."""
        self._x = x
        if self._ends is None:
            self._feeds[self._contract.input.name] = np.asarray(x)[None, None]

    def step(self) -> None:
        """One step: frames are cut and transformed in it."""
        if self._ends is not None:
            self._feeds.update(self._ends.given(self._x))
        outputs = self._session.run(None, self._feeds)
        for index, name in self._past:
            self._feeds[name] = outputs[index]
        if self._position is not None:
            self._position += 1
        made = outputs[self._output]
        self.output = made[:, -1] if self._ends is None else self._ends.made(self._contract.output.name, made)

    def step_with(self, x: Any) -> Any:
        """A step with that input; gives its output."""
        self.feed(x)
        self.step()
        return self.output

    def choose(self) -> None:
        """Choose the next input."""
        if self.output is not None:
            self.feed(self._inputs.after(self.output))
