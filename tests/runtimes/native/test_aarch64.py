"""The kernels of an emulated processor (NEON) compute the formulas: a small program runs them without ONNX Runtime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgemem.runtimes.native import build
from tests.runtimes.native.calls import LISTS, make_call
from tests.runtimes.native.operators import attention_inputs, tensors
from tests.runtimes.native.oracle import Array, Call
from tests.runtimes.native.test_memory_attention import hold

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
KINDS = {"window": 0, "sinks": 1, "cumulative": 2, "cumulative:log_count": 2, "geometric": 3}
ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    if shutil.which(COMPILER) is None or shutil.which(EMULATOR[0]) is None:
        pytest.skip(f"{COMPILER} or {EMULATOR[0]} is not installed")
    made = tmp_path_factory.mktemp("aarch64") / "driver"
    sources = [Path(__file__).with_name("driver.c"), *(build.SOURCES / name for name in build.FOR_EACH_LEVEL)]
    options = ["-DLEVEL=neon", "-DKERNELS=kernels_neon", f"-I{build.SOURCES}"]
    subprocess.run([COMPILER, *build.FLAGS, *options, *map(str, sources), "-lm", "-o", str(made)], check=True)
    return made


def packed(call: Call) -> bytes:
    """A call as driver.c reads it."""
    inputs = attention_inputs(call, heads_first=True)
    batch, heads, time, width = call.q.shape
    kv_heads = call.k.shape[1]
    summaries = 0 if call.bias is None else len(call.bias)
    parts = [np.array([batch, time, kv_heads, heads // kv_heads, width, call.window, summaries])]
    parts += [np.array([call.scale, call.softcap], np.float32), call.q, call.k, call.v, call.position]
    for name in ("phases", "sink_logits"):
        parts += [np.array([inputs[name] is not None]).astype(np.int64)]
        parts += [] if inputs[name] is None else [inputs[name]]
    parts += [] if call.bias is None else [call.bias]
    parts += [np.array([len(call.memories)])]
    for m, memory in enumerate(call.memories):
        first = call.states[f"{m}.{tensors(call, m)[0]}"]
        parts += [np.array([KINDS[memory], memory.endswith("log_count"), ELEMENTS[first.dtype], first.shape[2]])]
        parts += [call.states[f"{m}.{tensor}"] for tensor in tensors(call, m)]
        parts += [call.log_decay[m]] if m in call.log_decay else []
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def unpacked(call: Call, output: bytes) -> dict[str, Array]:
    batch, heads, time, width = call.q.shape
    shapes = {"read": ((batch, time, heads * width), np.dtype(np.float32))}
    for m, memory in enumerate(call.memories):
        for tensor in tensors(call, m):
            state = call.states[f"{m}.{tensor}"]
            shape = (*state.shape[:2], time, state.shape[3]) if memory == "window" else state.shape
            shapes[f"{m}.{tensor}"] = (shape, state.dtype)
    results, place = {}, 0
    for name, (shape, dtype) in shapes.items():
        size = int(np.prod(shape)) * dtype.itemsize
        results[name] = np.frombuffer(output[place : place + size], dtype).reshape(shape)
        place += size
    assert place == len(output)
    return results


@pytest.mark.long
@pytest.mark.parametrize("ring", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("time", [1, 3, 33])
@pytest.mark.parametrize("width", [6, 24, 64, 128])
def test_the_kernels_of_aarch64_compute_the_formulas(program, width, time, ring):
    options = {"time": time, "groups": 3, "width": width, "window": 40, "ring": ring}
    if ring is np.int8:  # where a rotated key is rounded to depends on its last bit
        options["phases"] = None
    for index, memories in enumerate(LISTS):
        call = make_call(memories, position=[3, 2**41 + 7], seed=index, **options)
        run = subprocess.run([*EMULATOR, str(program)], input=packed(call), stdout=subprocess.PIPE, check=True)
        hold(call, unpacked(call, run.stdout), tolerance=2e-3 if ring is np.float16 else 5e-6)
