"""One-op models that show whether an engine works here, each run in a process of its own.

``python -m edgemem.cli.probes NAME`` runs one and prints one line of JSON. An engine that crashes takes that process
with it and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np

from edgemem.errors import EdgememError, MissingDependencyError, RuntimeUnavailableError
from edgemem.machine.cuda import probe_cuda
from edgemem.runtimes.ort_import import import_onnxruntime

_X = np.array([1.0, -2.5, 1e6], dtype=np.float32)


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        works: The one-op model gave the right result.
        version: Of the engine; ``""`` where it did not get that far.
        detail: Where it ran, or why it did not work.
        missing: Whether it did not work for want of a package, which an installation would mend.
    """

    works: bool
    version: str
    detail: str
    missing: bool = False


@dataclass(frozen=True)
class Probe:
    """How to find out about one engine.

    Attributes:
        name: What ``doctor`` calls it.
        module: The Python module that it needs; where it is missing nothing is run.
        used_by: The options with which ``edgemem run`` uses the engine; ``""`` where edgemem does not drive it.
        install: The command that installs it.
        run: Runs the model and says where, or raises.
    """

    name: str
    module: str
    used_by: str
    install: str
    run: Callable[[], str]

    @property
    def installed(self) -> bool:
        """Whether the module is there; it is not imported."""
        return importlib.util.find_spec(self.module) is not None


def one_op_model() -> bytes:
    """The ONNX model ``y = x + x``, float32 ``[3]``, of opset 17 and IR version 8, which every engine reads.

    It was written by ``onnx.save(onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> one_op (float[3] x)
    => (float[3] y) { y = Add(x, x) }'), "one_op.onnx")``.
    """
    return (resources.files("edgemem.runtimes") / "one_op.onnx").read_bytes()


def _check(y: Any) -> None:
    if not np.array_equal(np.asarray(y), _X + _X):
        raise RuntimeUnavailableError(f"the one-op model gave {y}, wanted {_X + _X}.")


def _onnxruntime(provider: str) -> Callable[[], str]:
    def run() -> str:
        onnxruntime = import_onnxruntime()
        if provider not in onnxruntime.get_available_providers():
            raise MissingDependencyError(f"this build of onnxruntime has no {provider}.")
        if hasattr(onnxruntime, "preload_dlls") and provider != "CPUExecutionProvider":
            onnxruntime.preload_dlls()  # finds the CUDA libraries that came as Python packages
        session = onnxruntime.InferenceSession(one_op_model(), providers=[provider])
        # A provider that does not start is replaced by the CPU without an error.
        if session.get_providers()[0] != provider:
            raise RuntimeUnavailableError(f"{provider} does not start.")
        _check(session.run(None, {"x": _X})[0])
        return provider

    return run


def _torch(device: str) -> Callable[[], str]:
    def run() -> str:
        import torch

        if device == "cuda" and not torch.version.cuda:
            raise MissingDependencyError("this build of torch has no CUDA.")
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailableError(f"torch, built for CUDA {torch.version.cuda}, finds no CUDA device.")
        x = torch.from_numpy(_X).to(device)
        _check((x + x).cpu().numpy())
        return str(torch.cuda.get_device_name()) if device == "cuda" else "CPU"

    return run


def _tensorrt(module: str, *, compiles_without_gpu: bool) -> Callable[[], str]:
    def run() -> str:
        try:
            from cuda.bindings import runtime as cuda
        except ImportError:
            raise MissingDependencyError("cuda-python, which moves the data, is not installed.") from None
        # Before anything of TensorRT: TensorRT 11 does not fail but crash where there is no device.
        no_device = probe_cuda().problem
        if no_device and not compiles_without_gpu:
            raise RuntimeUnavailableError(f"no CUDA device: {no_device}.")
        tensorrt: Any = importlib.import_module(module)
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        plan = _compile(tensorrt, logger)
        if no_device:
            raise RuntimeUnavailableError(f"it compiles the one-op model; no CUDA device to run it on: {no_device}.")
        _check(_run_plan(tensorrt, logger, cuda, plan))
        properties = _checked(cuda, cuda.cudaGetDeviceProperties(0))
        return bytes(properties.name).decode().rstrip("\x00")

    return run


def _cuda_message(cuda: Any, status: Any) -> str:
    return str(cuda.cudaGetErrorString(status)[1].decode())


def _checked(cuda: Any, result: tuple[Any, ...]) -> Any:
    """What a call of the CUDA runtime gives beside its status."""
    if result[0] != cuda.cudaError_t.cudaSuccess:
        raise RuntimeUnavailableError(_cuda_message(cuda, result[0]))
    return result[1] if len(result) > 1 else None


def _compile(tensorrt: Any, logger: Any) -> Any:
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(one_op_model()):
        raise RuntimeUnavailableError(f"it does not read the one-op model: {parser.get_error(0)}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeUnavailableError("it does not compile the one-op model.")
    return plan


def _run_plan(tensorrt: Any, logger: Any, cuda: Any, plan: Any) -> Any:
    runtime = tensorrt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RuntimeUnavailableError("it does not load the plan that it compiled.")
    context = engine.create_execution_context()
    y = np.zeros_like(_X)
    kind = cuda.cudaMemcpyKind
    stream = _checked(cuda, cuda.cudaStreamCreate())
    addresses = {name: _checked(cuda, cuda.cudaMalloc(_X.nbytes)) for name in ("x", "y")}
    try:
        _checked(cuda, cuda.cudaMemcpy(addresses["x"], _X.ctypes.data, _X.nbytes, kind.cudaMemcpyHostToDevice))
        for name, address in addresses.items():
            context.set_tensor_address(name, int(address))
        if not context.execute_async_v3(int(stream)):
            raise RuntimeUnavailableError("it does not run the plan that it compiled.")
        _checked(cuda, cuda.cudaStreamSynchronize(stream))
        _checked(cuda, cuda.cudaMemcpy(y.ctypes.data, addresses["y"], y.nbytes, kind.cudaMemcpyDeviceToHost))
    finally:
        for address in addresses.values():
            cuda.cudaFree(address)
        cuda.cudaStreamDestroy(stream)
    return y


_CPU_BUILD = 'pip install "edgemem[onnxruntime]"'
_GPU_BUILD = 'pip uninstall --yes onnxruntime && pip install "edgemem[gpu]"'
_TORCH = 'pip install "edgemem[export]"'
_TORCH_CUDA = "pip install --force-reinstall torch"
_TENSORRT = 'pip install "edgemem[tensorrt]"'
_RTX = 'pip install "edgemem[rtx]"'

PROBES = (
    Probe(
        "onnxruntime CPU",
        "onnxruntime",
        "--runtime onnxruntime --device cpu",
        _CPU_BUILD,
        _onnxruntime("CPUExecutionProvider"),
    ),
    Probe(
        "onnxruntime CUDA",
        "onnxruntime",
        "--runtime onnxruntime --device cuda",
        _GPU_BUILD,
        _onnxruntime("CUDAExecutionProvider"),
    ),
    Probe(
        "onnxruntime TensorRT",
        "onnxruntime",
        "--runtime onnxruntime-tensorrt",
        _GPU_BUILD,
        _onnxruntime("TensorrtExecutionProvider"),
    ),
    Probe("torch CPU", "torch", "--runtime torch --device cpu", _TORCH, _torch("cpu")),
    Probe("torch CUDA", "torch", "--runtime torch --device cuda", _TORCH_CUDA, _torch("cuda")),
    Probe("tensorrt", "tensorrt", "--runtime tensorrt", _TENSORRT, _tensorrt("tensorrt", compiles_without_gpu=False)),
    Probe(
        "tensorrt_rtx",
        "tensorrt_rtx",
        "--runtime tensorrt-rtx",
        _RTX,
        _tensorrt("tensorrt_rtx", compiles_without_gpu=True),
    ),
)


def main(name: str) -> None:
    """Run the probe called ``name`` and print its :class:`Finding` as a line of JSON."""
    (probe,) = (probe for probe in PROBES if probe.name == name)
    works, missing = False, False
    try:
        detail = probe.run()
        works = True
    except EdgememError as error:
        detail, missing = error.message, isinstance(error, MissingDependencyError)
    # An engine may raise anything; whatever it is, it is the finding.
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
    version = str(getattr(sys.modules.get(probe.module), "__version__", ""))
    print("\n" + json.dumps(asdict(Finding(works, version, detail, missing))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
