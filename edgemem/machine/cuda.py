"""Whether CUDA works here, and what its device is.

CUDA is called through ``cuda.bindings.runtime``, which returns codes; where that is missing or finds no device, through
the machine's own ``libcudart``. It is asked before any engine: TensorRT 11 ends the interpreter if CUDA does not start.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from edgemem.errors import RuntimeUnavailableError
from edgemem.machine.cudart import Cudart, find_cudart
from edgemem.machine.packages import how_to_get


@dataclass(frozen=True)
class Cuda:
    """What the CUDA runtime reports about one device.

    Attributes:
        problem: Why the device cannot be used; ``""`` if it can.
        hint: How to solve the problem.
        driver: Newest CUDA version that the driver supports, such as ``"12.6"``; ``""`` without a driver.
        device: Name of the device.
        compute_capability: Of the device, such as ``"8.7"``.
        free_bytes: Free device memory; 0 if unknown. On a Jetson the CPU uses the same memory.
        total_bytes: Device memory; 0 if unknown.
        api: Through what CUDA is called, such as ``"cuda-bindings 12.9.4"``; ``""`` if the device cannot be used.
    """

    problem: str = ""
    hint: str = ""
    driver: str = ""
    device: str = ""
    compute_capability: str = ""
    free_bytes: int = 0
    total_bytes: int = 0
    api: str = ""

    def require(self) -> None:
        """Raise if the device cannot be used.

        Raises:
            RuntimeUnavailableError: With the problem and the hint.
        """
        if self.problem:
            raise RuntimeUnavailableError(f"no CUDA device: {self.problem}.", hint=self.hint)


def probe_cuda() -> Cuda:
    """Ask the CUDA runtime about its first device. Never raises, and starts only CUDA itself."""
    api, problem, hint = _api(0)
    driver = _version(_number(api, "cudaDriverGetVersion"))
    if problem:
        return Cuda(problem, hint, driver=driver)
    free, total = _values(api, "cudaMemGetInfo") or (0, 0)
    return Cuda(
        driver=driver,
        device=_device_name(api),
        compute_capability=f"{_attribute(api, 'Major')}.{_attribute(api, 'Minor')}",
        free_bytes=int(free),
        total_bytes=int(total),
        api=_name(api),
    )


def cuda_runtime(device_id: int = 0) -> Any:
    """The module ``cuda.bindings.runtime``, or what serves as one, if the device can be used.

    Raises:
        RuntimeUnavailableError: cuda-bindings is not installed and there is no libcudart, or the device cannot be used.
    """
    api, problem, hint = _api(device_id)
    if problem:
        text = problem if api is None else f"CUDA device {device_id} cannot be used: {problem}."
        raise RuntimeUnavailableError(text, hint=hint)
    return api


def _api(device_id: int) -> tuple[Any, str, str]:
    """Through what CUDA is called, and why the device cannot be used with its hint, or two empty texts.

    A build of cuda-bindings for servers may not find a board's device, so libcudart has the last word.
    """
    api: Any = None
    try:
        api = importlib.import_module("cuda.bindings.runtime")
        problem, hint = _why_not(api, device_id)
    except ImportError as error:
        problem, hint = f"cuda.bindings.runtime cannot be imported ({error})", how_to_get("cuda.bindings")
    if problem:
        library = find_cudart()
        if library is not None and not _why_not(library, device_id)[0]:
            return library, "", ""
    return api, problem, hint


def _name(api: Any) -> str:
    if isinstance(api, Cudart):
        return api.name
    try:
        return f"cuda-bindings {metadata.version('cuda-bindings')}"
    except metadata.PackageNotFoundError:
        return "cuda.bindings"


def describe_code(code: Any) -> str:
    """A CUDA error code as ``"cudaErrorNoDevice (100)"``."""
    return f"{getattr(code, 'name', code)} ({int(code)})"


def _why_not(api: Any, device_id: int) -> tuple[str, str]:
    """The problem with a device and how to solve it; two empty texts if it can be used."""
    code, count = api.cudaGetDeviceCount()
    if int(code) == 0:
        if count and count > device_id:
            return "", ""
        found = f"the driver reports {count or 'no'} device{'s' * (count != 1)}"
        return found, "Check the GPU with nvidia-smi, and the variable CUDA_VISIBLE_DEVICES."
    driver, runtime = _number(api, "cudaDriverGetVersion"), _number(api, "cudaRuntimeGetVersion")
    if not driver:
        return (
            f"no NVIDIA driver is loaded ({describe_code(code)})",
            "Install the driver of the GPU and check it with nvidia-smi, or use the device cpu.",
        )
    if driver // 1000 < runtime // 1000:
        return (
            f"the driver supports CUDA {_version(driver)}, but cuda-bindings was built for CUDA {_version(runtime)} "
            f"({describe_code(code)})",
            f'Update the driver, or: pip install "cuda-bindings<{runtime // 1000}"',
        )
    return describe_code(code), "Check the driver with nvidia-smi, or use the device cpu."


def _values(api: Any, name: str, *arguments: Any) -> tuple[Any, ...] | None:
    """What a call returns besides its code; ``None`` if the function is missing or fails."""
    function = getattr(api, name, None)
    if function is None:
        return None
    code, *values = function(*arguments)
    return tuple(values) if int(code) == 0 else None


def _number(api: Any, name: str) -> int:
    values = _values(api, name)
    return int(values[0]) if values else 0


def _attribute(api: Any, part: str) -> int:
    which = getattr(getattr(api, "cudaDeviceAttr", None), f"cudaDevAttrComputeCapability{part}", None)
    values = _values(api, "cudaDeviceGetAttribute", which, 0) if which is not None else None
    return int(values[0]) if values else 0


def _device_name(api: Any) -> str:
    values = _values(api, "cudaGetDeviceProperties", 0)
    return bytes(values[0].name).decode(errors="replace").rstrip("\x00") if values else ""


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""
