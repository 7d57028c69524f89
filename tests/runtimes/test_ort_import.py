"""ONNX Runtime calls nobody: its uploader is not started. It finds CUDA's libraries that pip installed."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("onnxruntime")
from edgemem.runtimes.ort.importing import load_cuda_libraries

COUNT_THREADS = """
import os
from edgemem.runtimes.ort.importing import import_onnxruntime
import_onnxruntime()
print(os.environ["ORT_DISABLE_TELEMETRY"], len(os.listdir("/proc/self/task")))
"""


def imported(**environment: str) -> list[str]:
    """The variable and the number of threads of a fresh process that has imported it."""
    variables = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS],
        env={**variables, **quiet, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_importing_it_starts_no_thread() -> None:
    assert imported() == ["1", "1"]


def test_who_wants_its_telemetry_keeps_it() -> None:
    assert imported(ORT_DISABLE_TELEMETRY="0")[0] == "0"


def test_what_preloading_prints_is_not_for_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []
    load_cuda_libraries(SimpleNamespace(preload_dlls=lambda: calls.append(print("Failed to load libcudnn.so.9"))))
    assert len(calls) == 1
    assert capsys.readouterr().out == ""


def test_an_onnxruntime_that_cannot_preload_is_left_alone() -> None:
    load_cuda_libraries(SimpleNamespace())
