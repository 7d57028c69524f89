"""Every state of CUDA on a machine is described, and none raises."""

import sys

import pytest

from edgemem.errors import RuntimeUnavailableError
from edgemem.machine.cuda import cuda_runtime, probe_cuda
from tests.machine.cuda_api import Code, cuda

UNUSABLE = {
    "no cuda-python": (None, "cuda.bindings.runtime cannot be imported", "pip install"),
    "no driver": (
        cuda(Code.cudaErrorInsufficientDriver, 0, driver=0),
        "no NVIDIA driver is loaded",
        "Install the driver",
    ),
    "old driver": (
        cuda(Code.cudaErrorInsufficientDriver, 0, driver=12020, runtime=13000),
        "the driver supports CUDA 12.2, but cuda-bindings was built for CUDA 13.0",
        'Update the driver, or: pip install "cuda-bindings<13"',
    ),
    "no device": (cuda(Code.cudaErrorNoDevice, 0), "cudaErrorNoDevice (100)", "nvidia-smi"),
    "hidden device": (cuda(count=0), "the driver reports no devices", "CUDA_VISIBLE_DEVICES"),
}


@pytest.fixture
def install(monkeypatch):
    """Makes a module the ``cuda.bindings.runtime``; ``None``: it cannot be imported."""
    return lambda api: monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", api)


def test_a_device_is_described(install):
    install(cuda())
    found = probe_cuda()
    assert found.problem == ""
    assert (found.driver, found.device, found.compute_capability) == ("12.6", "Orin", "8.7")
    assert (found.free_bytes, found.total_bytes) == (3 << 30, 8 << 30)
    found.require()


@pytest.mark.parametrize(("api", "problem", "hint"), UNUSABLE.values(), ids=UNUSABLE)
def test_every_reason_for_an_unusable_device_has_its_own_message_and_hint(install, api, problem, hint):
    install(api)
    found = probe_cuda()
    assert problem in found.problem
    assert hint in found.hint
    for raises in (found.require, cuda_runtime):
        with pytest.raises(RuntimeUnavailableError) as error:
            raises()
        assert problem in error.value.message
        assert error.value.hint == found.hint


def test_a_device_that_is_not_there_is_named_with_the_count(install):
    install(cuda(count=1))
    assert cuda_runtime(0) is sys.modules["cuda.bindings.runtime"]
    with pytest.raises(RuntimeUnavailableError, match=r"CUDA device 1 cannot be used: the driver reports 1 device\."):
        cuda_runtime(1)
