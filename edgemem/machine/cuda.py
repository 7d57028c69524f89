"""Whether CUDA works here, and what its device is. Only ``cuda.bindings.runtime`` is used, which returns codes.

It is asked before any engine: TensorRT 11 ends the interpreter if CUDA does not start.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from edgemem.errors import RuntimeUnavailableError
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
    """

    problem: str = ""
    hint: str = ""
    driver: str = ""
    device: str = ""
    compute_capability: str = ""
    free_bytes: int = 0
    total_bytes: int = 0

    def require(self) -> None:
        """Raise if the device cannot be used.

        Raises:
            RuntimeUnavailableError: With the problem and the hint.
        """
        if self.problem:
            raise RuntimeUnavailableError(f"no CUDA device: {self.problem}.", hint=self.hint)


def probe_cuda() -> Cuda:
    """Ask the CUDA runtime about its first device. Never raises, and starts only CUDA itself."""
    try:
        api = _runtime()
    except ImportError as error:
        return Cuda(f"cuda.bindings.runtime cannot be imported ({error})", how_to_get("cuda.bindings"))
    driver = _version(_number(api, "cudaDriverGetVersion"))
    if why := _why_not(api, 0):
        return Cuda(*why, driver=driver)
    free, total = _values(api, "cudaMemGetInfo") or (0, 0)
    return Cuda(
        driver=driver,
        device=_device_name(api),
        compute_capability=f"{_attribute(api, 'Major')}.{_attribute(api, 'Minor')}",
        free_bytes=int(free),
        total_bytes=int(total),
    )


def cuda_runtime(device_id: int = 0) -> Any:
    """The module ``cuda.bindings.runtime``, if the device can be used.

    Raises:
        RuntimeUnavailableError: cuda-bindings is not installed, or the device cannot be used.
    """
    try:
        api = _runtime()
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"cuda.bindings.runtime cannot be imported: {error}", hint=how_to_get("cuda.bindings")
        ) from error
    if why := _why_not(api, device_id):
        raise RuntimeUnavailableError(f"CUDA device {device_id} cannot be used: {why[0]}.", hint=why[1])
    return api


def describe_code(code: Any) -> str:
    """A CUDA error code as ``"cudaErrorNoDevice (100)"``."""
    return f"{getattr(code, 'name', code)} ({int(code)})"


def _runtime() -> Any:
    return importlib.import_module("cuda.bindings.runtime")


def _why_not(api: Any, device_id: int) -> tuple[str, str] | None:
    """The problem with a device and how to solve it; ``None`` if it can be used."""
    code, count = api.cudaGetDeviceCount()
    if int(code) == 0:
        if count and count > device_id:
            return None
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
