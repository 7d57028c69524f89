"""The operators under AddressSanitizer and UndefinedBehaviorSanitizer: the tests of this folder, in another process."""

import os
import subprocess
import sys

import pytest

from edgemem.runtimes.native import build
from tests import house

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")


@pytest.mark.long
def test_no_access_out_of_bounds_and_no_undefined_behaviour(tmp_path):
    command = build.compiler()
    runtime = subprocess.run([*command, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip(f"{command[0]} has no AddressSanitizer")
    assert build.build(tmp_path / build.LIBRARY, FLAGS) is None
    names = (
        "memory_attention",
        "elementwise",
        "errors",
        "levels",
        "rings",
        "tables",
        "matmul",
        "matmul_int4",
        "layers",
        "recurrences",
    )
    tests = [f"tests/runtimes/native/test_{name}.py" for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=house.ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": f"{runtime} libstdc++.so.6",  # for the exceptions of ONNX Runtime
            "ASAN_OPTIONS": "detect_leaks=0",
            "EDGEMEM_TEST_NATIVE_LIBRARY": str(tmp_path / build.LIBRARY),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
