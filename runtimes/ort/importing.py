"""ONNX Runtime as edgemem imports it: nothing is sent anywhere.

From 1.29 on its official builds for Linux start a thread that uploads events of use. A device that streams for ever
must not call home, and the thread's memory is not the model's. The variable counts only before the first import.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

OPT_OUT = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module ``onnxruntime``, its telemetry off unless the environment says otherwise.

    Raises:
        ImportError: It is not installed, or does not load.
    """
    os.environ.setdefault(OPT_OUT, "1")
    import onnxruntime

    return onnxruntime


def load_cuda_libraries(onnxruntime: Any) -> None:
    """Load cuBLAS, cuDNN and the rest from pip's packages, where they are installed.

    The dynamic loader finds those of the system by itself, but not those that ``onnxruntime-gpu[cuda,cudnn]`` or torch
    bring. What is missing is no error here: ONNX Runtime says so when it starts its provider.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)  # from 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            preload()
