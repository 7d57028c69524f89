"""ONNX Runtime's execution providers, and the options that edgemem gives them."""

from __future__ import annotations

import contextlib
from typing import Any

from edgemem.bundle import Bundle, GraphFile
from edgemem.errors import RuntimeUnavailableError
from edgemem.machine.packages import how_to_get, is_jetson
from edgemem.runtimes.memory import Memory

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


def cuda_options(memory: Memory) -> dict[str, str]:
    """Options of the CUDA provider.

    One stream for the engine's kernels and the arena's copies keeps them in order without synchronising. TF32 keeps 10
    bits of a mantissa: float32 summaries and running means need all 23.
    """
    return {"device_id": "0", "user_compute_stream": str(getattr(memory, "stream", 0)), "use_tf32": "0"}


def recordable(providers: list[Any]) -> list[Any]:
    """The same providers; loading fails unless every operator can be recorded into a CUDA graph."""
    (name, options), *rest = providers
    return [(name, {**options, "enable_cuda_graph": "1"}), *rest]


def tensorrt_options(bundle: Bundle, graph: GraphFile, memory: Memory) -> dict[str, str]:
    """Options of the TensorRT provider: the caller's stream, a cache of engines, and the shapes to build for.

    Without shapes the provider would build an engine for those of the first call, and again for every longer chunk.
    """
    from edgemem.runtimes.trt.cache import cache_folder
    from edgemem.runtimes.trt.options import BuildOptions
    from edgemem.runtimes.trt.profiles import profiles

    folder = cache_folder() / "onnxruntime" / bundle.fingerprint[:16]
    with contextlib.suppress(OSError):  # without a cache it builds at every start
        folder.mkdir(parents=True, exist_ok=True)
    widest = profiles(bundle.contract, graph, BuildOptions())[-1]

    def shapes(which: str) -> str:
        sizes = {name: getattr(shape, which) for name, shape in widest.items()}
        return ",".join(f"{name}:{'x'.join(map(str, size))}" for name, size in sizes.items())

    return {
        "device_id": "0",
        "user_compute_stream": str(getattr(memory, "stream", 0)),
        "trt_engine_cache_enable": str(int(folder.is_dir())),
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": str(int(folder.is_dir())),
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": shapes("smallest"),
        "trt_profile_opt_shapes": shapes("usual"),
        "trt_profile_max_shapes": shapes("largest"),
    }


def no_cuda(why: str) -> RuntimeUnavailableError:
    """The error for a CUDA device that cannot be used."""
    return RuntimeUnavailableError(
        f"device 'cuda' cannot be used: {why}.",
        hint=how_to_get("onnxruntime-gpu"),
    )


def not_started(provider: str) -> RuntimeUnavailableError:
    """The error for a provider that this ONNX Runtime has, and that did not start."""
    what, command = {
        CUDA: ("cuBLAS, cuDNN and the rest of CUDA", 'pip install "onnxruntime-gpu[cuda,cudnn]"'),
        TENSORRT: ("TensorRT's libraries", "pip install tensorrt"),
    }[provider]
    how = how_to_get("onnxruntime-gpu") if is_jetson() else f"{command}\nOr use device='cpu'."
    return RuntimeUnavailableError(
        f"device 'cuda' cannot be used: ONNX Runtime could not start {provider}.",
        hint=f"It needs {what}, in the versions that it was built for:\n{how}",
    )
