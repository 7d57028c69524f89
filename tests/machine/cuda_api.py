"""A ``cuda.bindings.runtime`` that answers a probe as it is told to."""

from enum import IntEnum
from types import ModuleType, SimpleNamespace


class Code(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815


def cuda(code=Code.cudaSuccess, count=1, driver=12060, runtime=12060, capability=(8, 7)):
    """A ``cuda.bindings.runtime`` that answers so."""
    api = ModuleType("cuda.bindings.runtime")
    api.cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1)
    api.cudaGetDeviceCount = lambda: (code, count)
    api.cudaDriverGetVersion = lambda: (Code.cudaSuccess, driver)
    api.cudaRuntimeGetVersion = lambda: (Code.cudaSuccess, runtime)
    api.cudaMemGetInfo = lambda: (Code.cudaSuccess, 3 << 30, 8 << 30)
    api.cudaDeviceGetAttribute = lambda which, device: (Code.cudaSuccess, capability[which])
    api.cudaGetDeviceProperties = lambda device: (Code.cudaSuccess, SimpleNamespace(name=b"Orin\x00\x00"))
    return api
