"""What is special about ONNX Runtime's runs on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class RunOptions:
    """How a graph is run: alone, or into a recording.

    ONNX Runtime is told to record nothing itself: its recordings belong to threads, and are never released. A run that
    is recorded must not wait for the device.

    Args:
        onnxruntime: The package.

    Attributes:
        now: The ``onnxruntime.RunOptions`` for the next run.
    """

    def __init__(self, onnxruntime: Any) -> None:
        self._plain, self._recorded = onnxruntime.RunOptions(), onnxruntime.RunOptions()
        for options in (self._plain, self._recorded):
            options.add_run_config_entry("gpu_graph_id", "-1")
        self._recorded.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.now = self._plain

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Runs in the block are recorded; no other thread may run anything meanwhile."""
        self.now = self._recorded
        try:
            yield
        finally:
            self.now = self._plain


def inputs_on_host(loaded: Any) -> frozenset[str]:
    """The inputs that a loaded graph reads on the host, though its other inputs are on the device.

    ONNX Runtime computes some operators on whole numbers there. Before 1.23 it does not tell which inputs they read:
    then every input of whole numbers may be one.
    """
    inputs = loaded.get_inputs()
    if hasattr(loaded, "get_input_memory_infos"):
        memories = loaded.get_input_memory_infos()
        return frozenset(
            tensor.name for tensor, memory in zip(inputs, memories, strict=True) if "cpu" in memory.name.lower()
        )
    return frozenset(tensor.name for tensor in inputs if "int" in tensor.type or "bool" in tensor.type)
