"""Compiles the stand-in for libcudart."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("cudart.c")


def stand_in_library(factory: pytest.TempPathFactory) -> str:
    """The path of a libcudart whose device is host memory."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    path = factory.mktemp("cudart") / "libcudart.so.12"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-fno-builtin", "-o", path, SOURCE], check=True)
    return str(path)
