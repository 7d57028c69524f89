"""Execution contexts: what runs an engine with one set of shapes and addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemem.errors import EdgememError, EngineError
from edgemem.runtimes.cuda import CudaMemory
from edgemem.runtimes.trt.flavour import Flavour
from edgemem.runtimes.trt.kernels import KernelCache

Bound = Mapping[str, tuple[int, tuple[int, ...]]]
"""Name of a tensor → its address and its shape."""


class Contexts:
    """Makes the execution contexts of one engine.

    Args:
        flavour: The TensorRT that the engine is of.
        engine: An ``ICudaEngine``.
        name: What to call it in messages.
        kernels: Where its compiled kernels are kept (TensorRT-RTX).

    Raises:
        EngineError: The engine wants an input or output in host memory.
    """

    def __init__(self, flavour: Flavour, engine: Any, name: str, kernels: KernelCache | None = None) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        if shapes := [each for each in names if engine.is_shape_inference_io(each)]:
            raise EngineError(
                f"{name}: the engine takes {', '.join(shapes)} as shapes, which it reads on the host.",
                hint="Compute with their values in the model, rather than size tensors by them.",
            )
        self.engine = engine
        self._flavour = flavour
        self._name = name
        self._kernels = kernels

    def max_batch(self, input_name: str, profile: int) -> int:
        """Most streams that the engine takes in one call."""
        return int(self.engine.get_tensor_profile_shape(input_name, profile)[2][0])

    def new(self, profile: int, memory: CudaMemory, *, captures: bool = False) -> Any:
        """An ``IExecutionContext``.

        Args:
            profile: The optimisation profile; device memory is taken for this one alone.
            memory: Whose stream sets it up; it has done so on return.
            captures: Whether the engine is to keep its own CUDA graph (TensorRT-RTX).

        Raises:
            EdgememError: It cannot be made, for want of device memory most often.
        """
        trt = self._flavour.module
        on_demand = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        if self._flavour.is_rtx:
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(on_demand)
            strategy = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if captures else strategy.DISABLED
            if self._kernels is not None:
                self._kernels.attach(config)
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context(on_demand)
        if context is None or not context.set_optimization_profile_async(profile, memory.stream):
            raise self._refused(profile, memory)
        memory.synchronize()
        return context

    def close(self) -> None:
        """Keep what was compiled for its contexts."""
        if self._kernels is not None:
            self._kernels.save()

    def _refused(self, profile: int, memory: CudaMemory) -> EdgememError:
        size_for = getattr(self.engine, "get_device_memory_size_for_profile_v2", None)  # some versions lack it
        asked = f" (it asks for {int(size_for(profile)):,} bytes of device memory)" if size_for else ""
        return EdgememError(
            f"{self._flavour.name} makes no execution context for {self._name}: {self._flavour.errors()}{asked}; "
            f"{memory.free_text()}.",
            hint="Close what else uses the GPU, take fewer streams, or export with a smaller --max-chunk.",
        )


def bind(context: Any, inputs: Bound, outputs: Bound) -> None:
    """Give a context its shapes and addresses.

    Raises:
        EdgememError: The engine has no such tensor, or does not take the shape.
    """
    for name, (address, shape) in inputs.items():
        if not context.set_input_shape(name, shape):
            raise EdgememError(f"TensorRT does not take {name!r} of shape {list(shape)}.")
        _set_address(context, name, address)
    for name, (address, _) in outputs.items():
        _set_address(context, name, address)


def _set_address(context: Any, name: str, address: int) -> None:
    if not context.set_tensor_address(name, address):
        raise EdgememError(f"TensorRT does not take an address for {name!r}.")
