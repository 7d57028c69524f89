"""The kernels of an emulated processor (NEON) compute the formulas: a small program runs them without ONNX Runtime."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgemem.runtimes.native import build
from tests.runtimes.native.calls import LISTS, make_call
from tests.runtimes.native.operators import TENSORS, attention_inputs, int4_tensor, tensors
from tests.runtimes.native.oracle import Array, Call
from tests.runtimes.native.test_matmul_int4 import drawn, matrix, rounding_bound, widened
from tests.runtimes.native.test_memory_attention import hold

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}


def compiled(made: Path, compiler: str, level: str, *flags: str, driver: str = "driver.c") -> Path:
    """A program, for one processor."""
    if shutil.which(compiler) is None or shutil.which(EMULATOR[0]) is None:
        pytest.skip(f"{compiler} or {EMULATOR[0]} is not installed")
    sources = [Path(__file__).with_name(driver), *(build.SOURCES / name for name in build.FOR_EACH_LEVEL)]
    options = [f"-DLEVEL={level}", f"-DKERNELS=kernels_{level}", f"-I{build.SOURCES}", *flags]
    subprocess.run([compiler, *build.FLAGS, *options, *map(str, sources), "-lm", "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return compiled(tmp_path_factory.mktemp("aarch64") / "driver", COMPILER, "neon")


def shape_after(call: Call, name: str) -> tuple[int, ...]:
    """Of rings, only the entries of the call are written."""
    state, memory = call.states[name], call.memories[int(name.split(".")[0])]
    is_ring = memory == "window" or "pairs" in name
    return (*state.shape[:2], call.q.shape[2], state.shape[3]) if is_ring else state.shape


def packed(call: Call) -> bytes:
    """A call as driver.c reads it."""
    inputs = attention_inputs(call, heads_first=True)
    batch, heads, time, width = call.q.shape
    kv_heads = call.k.shape[1]
    summaries = 0 if call.bias is None else len(call.bias)
    parts = [np.array([batch, time, kv_heads, heads // kv_heads, width, call.window, summaries])]
    parts += [np.array([call.scale, call.softcap], np.float32), inputs["q"], inputs["k"], call.v, call.position]
    pairs = 0 if call.phases is None else len(call.phases)
    parts += [np.array([pairs, call.rotary_start, call.neighbours, call.given == "plain", call.by_slot])]
    parts += [call.phases] if pairs else []
    parts += [np.array([call.sink_logits is not None]).astype(np.int64)]
    parts += [] if call.sink_logits is None else [call.sink_logits]
    parts += [] if call.bias is None else [call.bias]
    parts += [np.array([len(call.memories)])]
    for m, memory in enumerate(call.memories):
        kind, *options = memory.split(":")
        names = [f"{m}.{tensor}" for tensor in tensors(call, m)]
        shown, rate = (0, 0) if kind != "compressed" else map(int, options)
        first, parameter = call.states[names[0]], call.parameters.get(m)
        per_head = parameter.shape[1] if parameter is not None and parameter.ndim == 2 and len(parameter) > 1 else 0
        head = [list(TENSORS).index(kind), options == ["log_count"], ELEMENTS[first.dtype], first.shape[2]]
        parts += [np.array([*head, shown, rate, per_head, len(names)])]
        for name in names:
            past = call.states[name]
            parts += [np.array([past.nbytes, int(np.prod(shape_after(call, name))) * past.itemsize]), past]
        parts += [np.array([0])] if parameter is None else [np.array([parameter.nbytes]), parameter]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def unpacked(call: Call, output: bytes) -> dict[str, Array]:
    batch, heads, time, width = call.q.shape
    shapes = {"read": ((batch, time, heads * width), np.dtype(np.float32))}
    for m in range(len(call.memories)):
        for tensor in tensors(call, m):
            shapes[f"{m}.{tensor}"] = (shape_after(call, f"{m}.{tensor}"), call.states[f"{m}.{tensor}"].dtype)
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
        given = ("plain", "rotated")[index % 2]
        call = make_call(memories, position=[3, 2**41 + 7], seed=index, given=given, **options)
        run = subprocess.run([*EMULATOR, str(program)], input=packed(call), stdout=subprocess.PIPE, check=True)
        hold(call, unpacked(call, run.stdout), tolerance=2e-3 if ring is np.float16 else 5e-6)


@pytest.mark.long
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with the kernels of x86-64")
def test_without_contraction_both_processors_compute_the_same_bits(tmp_path):
    """What is left between the two builds is that NEON multiplies and adds with one rounding."""
    there = compiled(tmp_path / "aarch64", COMPILER, "neon", "-ffp-contract=off")
    here = compiled(tmp_path / "x86-64", "gcc", "sse2", "-ffp-contract=off", "-msse2")
    for index, memories in enumerate(LISTS):
        given = ("plain", "rotated")[index % 2]
        options = {"time": 3, "groups": 3, "width": 24, "window": 40, "ring": np.float32}
        data = packed(make_call(memories, position=[3, 2**41 + 7], seed=index, given=given, **options))
        outputs = [
            subprocess.run([*command, str(program)], input=data, stdout=subprocess.PIPE, check=True).stdout
            for command, program in ((EMULATOR, there), ((), here))
        ]
        assert outputs[0] == outputs[1], memories


def int4_product(command: tuple[str, ...], rows: int, columns: int, panel: int) -> Array:
    """What a driver computes ``[rows, columns]``, which must be the formula but for the rounding of ``x``."""
    x, (numbers, scale) = drawn(rows, rows, 160), matrix(columns, 160, columns, 32)
    data = [np.array([rows, 160, columns, 32, panel]), x, int4_tensor("w", numbers).raw_data, scale]
    text = b"".join(part if isinstance(part, bytes) else part.tobytes() for part in data)
    output = subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True).stdout
    w = widened(numbers, scale)
    got = np.frombuffer(output, np.float32).reshape(rows, columns)
    assert (np.abs(got - x.astype(np.float64) @ w) <= 1e-4 + 1.001 * rounding_bound(x, w, 32)).all()
    return got


@pytest.mark.long
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with the kernels of x86-64")
def test_products_with_4_bit_integers_are_the_same_bits_on_both_processors(tmp_path):
    driver = "product_driver.c"
    there = compiled(tmp_path / "aarch64", COMPILER, "neon", "-ffp-contract=off", driver=driver)
    here = compiled(tmp_path / "x86-64", "gcc", "sse2", "-ffp-contract=off", "-msse2", driver=driver)
    for rows, columns, panel in ((1, 256, 256), (1, 330, 330), (5, 330, 128), (17, 34, 64)):
        emulated = int4_product((*EMULATOR, str(there)), rows, columns, panel)
        np.testing.assert_array_equal(emulated, int4_product((str(here),), rows, columns, panel))
