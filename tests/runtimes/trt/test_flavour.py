"""Finding a TensorRT without ever importing one that would end the interpreter."""

import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import pytest

from edgemem.errors import RuntimeUnavailableError
from edgemem.runtimes.trt import flavour
from edgemem.runtimes.trt.flavour import load_flavour, probe_cuda, version_tuple


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


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Puts packages of the names and texts given in front of the real ones; the others are not there."""

    def install(cuda_api=None, **texts):
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda_api)  # None: it cannot be imported
        monkeypatch.syspath_prepend(tmp_path)
        for name in flavour.NAMES:
            monkeypatch.delitem(sys.modules, name, raising=False)
            if name in texts:
                (tmp_path / f"{name}.py").write_text(texts[name])
        monkeypatch.setattr(flavour, "installed", lambda name: name in texts)

    return install


def test_a_device_is_described(packages):
    packages(cuda())
    found = probe_cuda()
    assert found.problem == ""
    assert (found.driver, found.device, found.compute_capability) == ("12.6", "Orin", "8.7")
    assert (found.free_bytes, found.total_bytes) == (3 << 30, 8 << 30)


@pytest.mark.parametrize(
    ("api", "problem", "hint"),
    [
        (None, "cannot be imported", "pip install"),
        (cuda(Code.cudaErrorInsufficientDriver, 0, driver=0), "no NVIDIA driver is loaded", "Install the driver"),
        (
            cuda(Code.cudaErrorInsufficientDriver, 0, driver=12020, runtime=13000),
            "the driver serves CUDA 12.2, cuda-python here is of CUDA 13.0",
            "Update the driver",
        ),
        (cuda(Code.cudaErrorNoDevice, 0), "cudaErrorNoDevice", "nvidia-smi"),
        (cuda(count=0), "the driver reports none", "CUDA_VISIBLE_DEVICES"),
    ],
    ids=["no cuda-python", "no driver", "old driver", "no device", "hidden device"],
)
def test_every_want_of_a_device_has_its_own_words_and_remedy(packages, api, problem, hint):
    packages(api)
    found = probe_cuda()
    assert problem in found.problem
    assert hint in found.hint


def test_classic_tensorrt_is_not_imported_where_cuda_does_not_start(packages):
    packages(cuda(Code.cudaErrorNoDevice, 0), tensorrt="raise SystemExit('imported')")
    with pytest.raises(RuntimeUnavailableError, match="no CUDA device"):
        load_flavour("tensorrt")
    assert "tensorrt" not in sys.modules


def test_classic_tensorrt_loads_where_cuda_starts(packages):
    packages(cuda(), tensorrt="__version__ = '10.3.0.post1'")
    loaded = load_flavour("tensorrt")
    assert (loaded.name, loaded.version, loaded.is_rtx) == ("tensorrt", "10.3.0.post1", False)
    assert loaded.cuda.compute_capability == "8.7"


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.0"])
def test_a_version_not_known_is_refused(packages, version):
    packages(cuda(), tensorrt=f"__version__ = {version!r}")
    with pytest.raises(RuntimeUnavailableError, match=rf"version {version}, wanted 10\.3 to 11"):
        load_flavour("tensorrt")


@pytest.mark.parametrize("error", ["ImportError('libnvinfer.so.10')", "OSError('no library')", "RuntimeError('odd')"])
def test_a_package_that_does_not_load_is_an_error_and_no_traceback(packages, error):
    packages(cuda(), tensorrt=f"raise {error}")
    with pytest.raises(RuntimeUnavailableError, match="tensorrt cannot be imported"):
        load_flavour("tensorrt")


def test_the_classic_one_is_taken_where_cuda_works_and_the_portable_one_elsewhere(packages):
    both = {"tensorrt": "__version__ = '10.13.0'", "tensorrt_rtx": "__version__ = '1.7.1'"}
    packages(cuda(), **both)
    assert load_flavour().name == "tensorrt"
    packages(cuda(Code.cudaErrorNoDevice, 0), **both)
    assert load_flavour().name == "tensorrt_rtx"


def test_without_any_the_error_names_both_extras(packages):
    packages(cuda())
    with pytest.raises(RuntimeUnavailableError, match=r"edgemem\[tensorrt\].*edgemem\[rtx\]"):
        load_flavour()
    with pytest.raises(RuntimeUnavailableError, match="tensorrt_rtx is not installed"):
        load_flavour("tensorrt_rtx")
    with pytest.raises(RuntimeUnavailableError, match="no TensorRT flavour 'other'"):
        load_flavour("other")


def test_deserialising_needs_a_device(packages):
    packages(cuda(Code.cudaErrorNoDevice, 0), tensorrt_rtx="__version__ = '1.7.1'")
    with pytest.raises(RuntimeUnavailableError, match="no CUDA device"):
        load_flavour("tensorrt_rtx").deserialize(b"plan")


def test_a_builder_that_cannot_be_made_is_an_error(packages):
    packages(cuda(), tensorrt="__version__ = '10.3.0'\ndef Builder(logger): raise TypeError('nullptr')")
    with pytest.raises(RuntimeUnavailableError, match=r"cannot make a builder: nullptr[^§]*CUDA 12\.6"):
        load_flavour("tensorrt").builder(None)


def test_versions_compare_by_number():
    assert version_tuple("10.13.0.post1") > version_tuple("10.3.0")
    assert version_tuple("10.3.0.post1") == (10, 3, 0)
