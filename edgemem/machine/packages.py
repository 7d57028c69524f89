"""How to get a package on this machine. JetPack includes some, and PyPI's builds of others are not for a Jetson."""

from __future__ import annotations

import re

from edgemem.extras import how_to_install
from edgemem.machine.facts import board
from edgemem.machine.kernel import read

_RELEASE = "/etc/nv_tegra_release"
_CUDA_13_FROM = 38
"""Release of Jetson Linux that came with CUDA 13: JetPack 7. JetPack 6 is release 36 with CUDA 12."""
_ON_A_JETSON = {
    "tensorrt": "sudo apt install python3-libnvinfer\n(in an environment made with --system-site-packages)",
    "tensorrt_rtx": "TensorRT-RTX does not serve a Jetson. Use the runtime tensorrt.",
    "torch": "Nothing: a device does not need it.",
    "onnxruntime-gpu": "NVIDIA builds ONNX Runtime for each JetPack: docs/jetson.md. Or use device='cpu'.",
}


def is_jetson() -> bool:
    """Whether the firmware says that this is a Jetson."""
    return "Jetson" in (board() or "")


def how_to_get(package: str) -> str:
    """What to do on this machine to get a package.

    Args:
        package: A module of :data:`edgemem.extras.CAPABILITIES`, or ``"onnxruntime-gpu"``, the build for NVIDIA GPUs.
    """
    if is_jetson():
        if package == "cuda.bindings":
            return f'pip install "cuda-bindings{_cuda_of_jetpack()}"'
        if package in _ON_A_JETSON:
            return _ON_A_JETSON[package]
    if package == "onnxruntime-gpu":
        return f"pip uninstall onnxruntime; {how_to_install('cuda.bindings')}\nOr use device='cpu'."
    return how_to_install(package)


def _cuda_of_jetpack() -> str:
    """Which versions of cuda-bindings serve the CUDA of this JetPack, as pip wants them."""
    found = re.match(r"# R(\d+)", read(_RELEASE) or "")
    if found is None:
        return ">=12.6"
    return ">=13,<14" if int(found[1]) >= _CUDA_13_FROM else ">=12.6,<13"
