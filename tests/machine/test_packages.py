"""How to get a package on this machine."""

import pytest

from edgemem.machine import packages
from edgemem.machine.packages import how_to_get

JETPACK_6 = "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64"


@pytest.fixture
def jetson(monkeypatch):
    """Makes this machine a Jetson with that line in its release file."""

    def become(release: str | None) -> None:
        monkeypatch.setattr(packages, "board", lambda: "NVIDIA Jetson Orin Nano")
        monkeypatch.setattr(packages, "read", lambda path: release)

    return become


def test_elsewhere_an_extra_brings_it(monkeypatch):
    monkeypatch.setattr(packages, "board", lambda: None)
    assert how_to_get("tensorrt") == 'pip install "edgemem-toolkit[tensorrt]"'
    assert how_to_get("tensorrt_rtx") == 'pip install "edgemem-toolkit[rtx]"'
    assert "pip uninstall onnxruntime; pip install" in how_to_get("onnxruntime-gpu")


def test_on_a_jetson_nothing_is_installed_that_would_hide_jetpacks(jetson):
    jetson(JETPACK_6)
    assert how_to_get("tensorrt").startswith("sudo apt install python3-libnvinfer")
    for package in ("tensorrt_rtx", "torch", "onnxruntime-gpu"):
        assert "pip install" not in how_to_get(package)
    assert how_to_get("onnxruntime") == 'pip install "edgemem-toolkit[device]"'


@pytest.mark.parametrize(
    ("release", "wanted"),
    [(JETPACK_6, ">=12.6,<13"), ("# R38 (release), REVISION: 2.0", ">=13,<14"), (None, ">=12.6"), ("odd", ">=12.6")],
)
def test_cuda_bindings_are_those_of_jetpacks_cuda(jetson, release, wanted):
    jetson(release)
    assert how_to_get("cuda.bindings") == f'pip install "cuda-bindings{wanted}"'
