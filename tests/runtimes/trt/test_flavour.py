"""Finding a TensorRT without ever importing one that would end the interpreter."""

import sys

import pytest

from edgemem.errors import RuntimeUnavailableError
from edgemem.runtimes.trt import flavour
from edgemem.runtimes.trt.flavour import load_flavour, version_tuple
from tests.machine.cuda_api import Code, cuda


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Puts packages of the names and texts given in front of the real ones; the others are not there."""

    def install(cuda_api=None, **texts):
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda_api)  # None: it cannot be imported
        monkeypatch.syspath_prepend(tmp_path)
        for name in flavour.NAMES:
            monkeypatch.setitem(sys.modules, name, None)  # afterwards it is as it was
            del sys.modules[name]
            if name in texts:
                (tmp_path / f"{name}.py").write_text(texts[name])
        monkeypatch.setattr(flavour, "installed", lambda name: name in texts)

    return install


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
    with pytest.raises(RuntimeUnavailableError, match=r"(?s)edgemem-toolkit\[tensorrt\].*edgemem-toolkit\[rtx\]"):
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
