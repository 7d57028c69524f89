"""Two small bundles written by hand, whose outputs are known beforehand, and ways to call the command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from edgemem.bundle import GraphFile, Manifest, write_bundle
from edgemem.cli import main
from edgemem.contract import METADATA_KEY, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.manifest import SourceInfo

RECITED = "the naïve café serves 東京 tea. "
"""What the reciting model says for ever, whatever it reads, in UTF-8: at position p it says byte p + 1."""

RECITER = Contract(
    input_specs=(InputSpec("tokens", (), "int64", vocab_size=256),),
    output_specs=(OutputSpec("logits", (256,)),),
    states=(StateSpec("0.sum.total", (1,)),),
    max_chunk=16,
)
SUMMER = Contract(
    input_specs=(InputSpec("features", (2,)),),
    output_specs=(OutputSpec("sums", (2,)),),
    states=(StateSpec("0.sum.total", (2,)),),
    max_chunk=16,
    position="none",
)

# A test run in the background may have SIGINT ignored, which children inherit.
_PROGRAM = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from edgemem.cli import main; main()
"""

_RECITER_GRAPH = """
<ir_version: 8, opset_import: ["" : 20]>
reciter (int64[batch, time] tokens, int64[batch] position, float[batch, 1] "past.0.sum.total")
    => (float[batch, time, 256] logits, float[batch, 1] "present.0.sum.total")
<int64[N] text, int64[1] length, int64 zero = {0}, int64 one = {1}, int64[1] last = {-1}, int64[1] ids = {256},
 float[2] levels = {0, 8}>
{
    shape = Shape<start = 1>(tokens)
    time = Squeeze(shape)
    steps = Range(zero, time, one)
    column = Unsqueeze(position, last)
    now = Add(column, steps)
    next = Add(now, one)
    place = Mod(next, length)
    said = Gather(text, place)
    logits = OneHot(said, ids, levels)
    numbers = Cast<to = 1>(tokens)
    added = ReduceSum<keepdims = 1>(numbers, last)
    "present.0.sum.total" = Add("past.0.sum.total", added)
}
"""
_SUMMER_GRAPH = """
<ir_version: 8, opset_import: ["" : 20]>
summer (float[batch, time, 2] features, float[batch, 2] "past.0.sum.total")
    => (float[batch, time, 2] sums, float[batch, 2] "present.0.sum.total")
<int64[1] time = {1}, int64 axis = {1}>
{
    running = CumSum(features, axis)
    past = Unsqueeze("past.0.sum.total", time)
    sums = Add(running, past)
    added = ReduceSum<keepdims = 0>(features, time)
    "present.0.sum.total" = Add("past.0.sum.total", added)
}
"""


def _write(
    folder: Path,
    text: str,
    contract: Contract,
    tensors: dict[str, Any],
    files: Mapping[str, str] | None = None,
    **manifest: Any,
) -> Path:
    model = onnx.parser.parse_model(text)
    for tensor in list(model.graph.initializer):
        if tensor.name in tensors:
            model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(contract.to_json())})
    onnx.checker.check_model(model, full_check=True)
    with write_bundle(folder) as writer:
        onnx.save(model, writer.folder / "model.onnx")
        for name, content in (files or {}).items():
            (writer.folder / name).write_text(content, encoding="utf-8")
        writer.finish(Manifest(contract, (GraphFile("model.onnx", 1, contract.max_chunk),), **manifest))
    return folder


def write_reciter(folder: Path, tokenizer: str | None = "bytes") -> Path:
    """A model of tokens that says :data:`RECITED` over and over."""
    data = np.frombuffer(RECITED.encode(), dtype=np.uint8).astype(np.int64)
    tensors = {"text": data, "length": np.array([len(data)])}
    facts = {"source": SourceInfo("factory", "reciter"), "input_meaning": "UTF-8 bytes", "tokenizer": tokenizer}
    return _write(folder, _RECITER_GRAPH, RECITER, tensors, **facts)


def write_token_reciter(
    folder: Path, ids: Sequence[int], vocab_size: int, files: Mapping[str, str], **manifest: Any
) -> Path:
    """A model of ``vocab_size`` tokens that says ``ids`` over and over: at position p it says id p + 1."""
    contract = replace(
        RECITER,
        input_specs=(InputSpec("tokens", (), "int64", vocab_size=vocab_size),),
        output_specs=(OutputSpec("logits", (vocab_size,)),),
    )
    graph = _RECITER_GRAPH.replace("256", str(vocab_size))
    tensors = {"text": np.array(ids, dtype=np.int64), "length": np.array([len(ids)])}
    return _write(folder, graph, contract, tensors, files, tokenizer="tokenizer.json", **manifest)


def write_summer(folder: Path) -> Path:
    """A model of features that puts out the sum of every row so far."""
    return _write(folder, _SUMMER_GRAPH, SUMMER, {}, source=SourceInfo("factory", "summer"))


@pytest.fixture(scope="session")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("bundles") / "reciter")


@pytest.fixture(scope="session")
def id_reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("bundles") / "id_reciter", tokenizer=None)


@pytest.fixture(scope="session")
def summer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_summer(tmp_path_factory.mktemp("bundles") / "summer")


def edgemem(*arguments: object) -> Result:
    """Call the command line in this process, for fixtures that outlive a test."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Call the command line in this process; every failure must be one that it foresees."""

    def call(*arguments: object, input: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


def signal_until(process: subprocess.Popen[bytes], number: int, is_heard: Callable[[float], bool]) -> None:
    """Send a signal to a program that waits for input, until ``is_heard(timeout_s)`` says that it was heard.

    Python sees a signal that comes just before the system call that waits only when that call returns: whoever sits
    there presses the keys again.
    """
    for _ in range(6):
        process.send_signal(number)
        if is_heard(5.0):
            return
    raise AssertionError(f"signal {number} was not heard")


def end_by_signal(process: subprocess.Popen[bytes], number: int) -> int:
    """The exit code of a program that waits for input and gets a signal."""

    def is_heard(timeout_s: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        return process.returncode is not None

    signal_until(process, number, is_heard)
    return int(process.returncode)


@pytest.fixture
def start() -> Any:
    """Start the command line in a process of its own, with pipes; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def call(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            bufsize=0,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
