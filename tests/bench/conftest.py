"""Small bundles written by hand, so that the benchmark is tested without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from safetensors.numpy import save_file

import edgemem.export
from edgemem.bench import statistics
from edgemem.bench.result import (
    Baseline,
    BenchResult,
    Comparison,
    Conditions,
    Deadline,
    DeviceState,
    Energy,
    Environment,
    Floor,
    FloorMethod,
    GpuTime,
    IdleGap,
    Interval,
    Memory,
    Opening,
    Operator,
    Operators,
    PositionBytes,
    PositionPoint,
    Prefill,
    RailEnergy,
    Reading,
    Steps,
    Subject,
    Sweep,
)
from edgemem.bundle import WEIGHTS, Bundle, GraphFile, Manifest, open_bundle, write_bundle
from edgemem.contract import METADATA_KEY, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.decoder_config import DecoderConfig
from edgemem.manifest import SourceInfo

VOCAB, WIDTH, WINDOW = 16, 8, 4
Kind = Literal["append", "sealed", "growing"]
UNTIED = DecoderConfig(
    WIDTH, layers=1, heads=1, vocab_size=VOCAB, memory=[{"type": "window", "window": WINDOW}], tie_embeddings=False
)


def contract_of(kind: Kind) -> Contract:
    total = StateSpec("0.sum", (WIDTH,))
    ring = StateSpec("0.ring.k", (1, WINDOW, WIDTH), update="append" if kind == "append" else "replace")
    states = {
        "append": (total, ring),
        "sealed": (total, ring, StateSpec("position", (), "int64")),
        "growing": (total, StateSpec("0.kv.k", (1, None, WIDTH))),
    }[kind]
    return Contract(
        (InputSpec("tokens", (), "int64", VOCAB),),
        (OutputSpec("logits", (VOCAB,)),),
        states,
        max_chunk=WINDOW if kind == "append" else 1,
        position="none" if kind == "sealed" else "input",
    )


def write_tiny(
    path: Path,
    kind: Kind = "append",
    *,
    model: DecoderConfig | None = None,
    bias: float = 0.0,
    folded: np.ndarray[Any, Any] | None = None,
    max_position: int | None = None,
) -> Bundle:
    """logits = (embedding + decayed sum + sum of the ring) · head; the ring gets the embedding."""
    contract = replace(contract_of(kind), max_position=max_position)
    ring = contract.states[1]
    rng = np.random.default_rng(0)
    weights = {
        "embedding": rng.standard_normal((VOCAB, WIDTH), dtype=np.float32),
        "head": rng.standard_normal((WIDTH, VOCAB), dtype=np.float32),
    }
    constants: dict[str, Any] = {
        "one": np.array([1], dtype=np.int64),
        "two": np.array([2], dtype=np.int64),
        "far": np.array([2**40], dtype=np.int64),
        "half": np.float32(0.5),
        "bias": np.float32(bias),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["h"]),
        helper.make_node("ReduceSum", ["h", "one"], ["added"], keepdims=0),
        helper.make_node("Mul", ["past.0.sum", "half"], ["decayed"]),
        helper.make_node("Add", ["decayed", "added"], ["present.0.sum"]),
        helper.make_node("Unsqueeze", ["past.0.sum", "one"], ["sum"]),
        helper.make_node("ReduceSum", [ring.input_name, "two"], ["seen"], keepdims=0),
        helper.make_node("Add", ["h", "sum"], ["h1"]),
        helper.make_node("Add", ["h1", "seen"], ["h2"]),
        helper.make_node("MatMul", ["h2", "head"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["logits"]),
        helper.make_node("Unsqueeze", ["h", "one"], ["append.0.ring.k" if kind == "append" else "entry"]),
    ]
    if kind == "growing":
        nodes.append(helper.make_node("Concat", [ring.input_name, "entry"], [ring.output_name], axis=2))
    if kind == "sealed":
        nodes += [
            helper.make_node("Slice", [ring.input_name, "one", "far", "two"], ["kept"]),
            helper.make_node("Concat", ["kept", "entry"], [ring.output_name], axis=2),
            helper.make_node("Add", ["past.position", "one"], ["present.position"]),
        ]
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "time"])]
    if contract.position == "input":
        inputs.append(helper.make_tensor_value_info("position", TensorProto.INT64, ["batch"]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "time", VOCAB])]
    for state in contract:
        shape = ["batch", *("past" if size is None else size for size in state.shape)]
        inputs.append(helper.make_tensor_value_info(state.input_name, types[state.dtype], shape))
        if state.update == "append":
            shape[2] = "time"
        outputs.append(
            helper.make_tensor_value_info(
                state.output_name, types[state.dtype], ["total" if size == "past" else size for size in shape]
            )
        )
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights | constants).items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializer=initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(proto, {METADATA_KEY: json.dumps(contract.to_json())})
    with write_bundle(path) as writer:
        save_file(weights | ({} if folded is None else {"mask": folded}), writer.folder / WEIGHTS)
        save(proto, writer.folder / "model.onnx")
        writer.finish(
            Manifest(
                contract,
                (GraphFile("model.onnx", 1, contract.max_chunk),),
                source=SourceInfo("factory", "tiny"),
                model=model,
            )
        )
    return open_bundle(path)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a module of the user's own: nothing can be built from its manifest."""
    return write_tiny(tmp_path_factory.mktemp("bench") / "tokens")


@pytest.fixture(scope="session")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny(tmp_path_factory.mktemp("bench") / "growing", "growing")


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose logits are NaN."""
    return write_tiny(tmp_path_factory.mktemp("bench") / "broken", bias=float("nan"))


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with a decoder's configuration, whose twins are written by hand."""

    def twin(kind: Kind) -> Callable[[Bundle, Path], Path]:
        return lambda bundle, out: write_tiny(out, kind).path

    monkeypatch.setattr(edgemem.export, "sealed_twin", twin("sealed"), raising=False)
    monkeypatch.setattr(edgemem.export, "growing_twin", twin("growing"), raising=False)
    return write_tiny(tmp_path / "decoder", model=UNTIED)


def example_state(warmth: float) -> DeviceState:
    """A device's state with figures that were written, not read."""
    return DeviceState(
        clocks_mhz=[
            Reading("cpu policy0", 1510.4),
            Reading("cpu policy4", 731.0),
            Reading("17000000.gpu", 612.0 + warmth),
        ],
        governors=["17000000.gpu: nvhost_podgov", "cpu: schedutil"],
        temperatures_c=[Reading("tj-thermal", 43.2 + warmth)],
        power_mode="MAXN_SUPER (2)",
        throttle_events=[Reading("average current too high", 3.0 * warmth)],
    )


def example_energy() -> Energy:
    """Energy of three sensors, one of them too slow, with figures that were written, not measured."""
    times = [0.06 * i for i in range(200)]
    return Energy(
        steps=2_137,
        seconds=12.0,
        rails=[
            RailEnergy(
                "VDD_IN", "the whole module", True, 0.0523, 0.0012, 9.31, 241, 239, 19.8,
                times_s=times, watts=[9.31 + 0.2 * np.sin(t) for t in times],
            ),
            RailEnergy(
                "VDD_CPU_GPU_CV", "one rail", False, 0.0151, 0.0004, 2.69, 241, 239, 19.8,
                times_s=times, watts=[2.69 + 0.1 * np.cos(t) for t in times],
            ),
            RailEnergy("VIN2", "one rail", False, None, None, None, 12, 6, 2.3, "6 independent readings are too few"),
        ],
    )  # fmt: skip


def example_operators() -> Operators:
    """Four operators that read weights, and four kinds too small to be shown."""
    small = [Operator(f"Small{i}", False, 1, 0.005) for i in range(4)]
    return Operators(100, 1.1, [Operator("MatMul", True, 4, 0.98), *small])


def example_result(*, baselines: bool = True, extras: bool = True) -> BenchResult:
    """A complete result with numbers that were written, not measured."""
    rng = np.random.default_rng(3)
    latency = statistics.distribution((5.2e6 + 3e5 * rng.lognormal(0, 0.7, 2_000)).astype(np.int64))
    state = 8_396_800

    def interval(value: float) -> Interval:
        return Interval(value, value * 0.97, value * 1.04, statistics.CONFIDENCE, 15)

    positions = (0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    lengths = (16, 256, 1_024, 4_096, 16_384)
    sweep = Sweep(
        [PositionPoint(p, 5.31 + 0.01 * i, 150, state) for i, p in enumerate(positions)],
        Interval(0.0021, -0.0035, 0.0062, statistics.CONFIDENCE, 15),
        interval(1.004),
    )
    growing = Sweep(
        [PositionPoint(p, 5.6 + p / 450, 150, p * 32_768) for p in lengths], interval(2_222.0), interval(7.07)
    )
    comparison = Comparison(
        edgemem_p50_ms=5.42,
        edgemem_position=1_000,
        rounds=15,
        steps_per_round=10,
        baselines=[
            Baseline("numpy_loop", "hand-written numpy loop", "session.run(None, feeds)", 9.87, interval(1.82)),
            Baseline("torch", "torch, eager", "runtime torch", None, None, "torch is not installed."),
            Baseline("growing@16384", "growing KV cache at 16 384", "full cache", 42.0, interval(7.75)),
        ],
        floor=Floor(
            weight_bytes=101_187_584,
            matrices=33,
            counted="every weight matrix once",
            method="numpy",
            methods=[FloorMethod("numpy", 4.91), FloorMethod("onnxruntime", skipped="onnx is not installed.")],
            p50_ms=4.91,
            gigabytes_per_second=20.6,
            step_over_floor=interval(1.104),
        ),
        floor_skipped=None,
        growing=growing,
        growing_state=[PositionBytes(p, p * 32_768) for p in sorted({*positions, *lengths})],
    )
    return BenchResult(
        subject=Subject(
            path="bundle",
            fingerprint="ab" * 32,
            source={"kind": "config", "name": "reference", "random_weights": True},
            runtime="onnxruntime",
            device="cpu",
            input_meaning="bytes of text",
            is_tokens=True,
            states=49,
            has_fixed_size=True,
        ),
        environment=Environment(
            date="2025-03-04T05:06:07+00:00",
            os="Linux 6.12",
            machine="aarch64",
            cpu="Cortex <A78AE> & co",
            cores=12,
            usable_cores=8,
            governor="schedutil",
            load_average=[0.31, 0.22, 0.13],
            load_average_after=[1.04, 0.65, 0.36],
            threads=2,
            python="3.11.7",
            packages={"numpy": "2.4.6", "onnxruntime": "1.32.0"},
            board="NVIDIA Jetson Orin NX",
            memory_bytes=16_441_651_200,
        ),
        opening=Opening(412.0, 2.37, 9.46),
        steps=Steps(50, latency, 178.0),
        sweep=sweep,
        prefill=Prefill(4_096, 256, 2_640.0, 1_551.0, interval(8.24)),
        prefill_skipped=None,
        memory=Memory(
            101_900_000, 613_000, state, 41_000_000, 262_000_000, 263_500_000, 371_000_000,
            *((231_000_000, 151_000_000, True, 523_000_000) if extras else ()),
        ),
        deadline=Deadline(100.0, 1_000, 7, 3.12, latency) if extras else None,
        idle=IdleGap(250.0, latency) if extras else None,
        comparison=comparison if baselines else None,
        conditions=Conditions(
            *(example_state(warmth) if extras else DeviceState() for warmth in (1.0, 3.0, 4.0)),
            throttled=["average current too high: 9 times"] if extras else [],
            problems=["/sys/class/thermal/thermal_zone2/temp: Input/output error"] if extras else [],
        ),
        energy=example_energy() if extras else None,
        energy_skipped=None if extras else "no power sensor found",
        gpu_time=GpuTime(517, 3.92, 0.0123, 0.0231, 3.84, 0.217, 3.71, 0.342) if extras else None,
        gpu_time_skipped=None,
        operators=example_operators() if extras else None,
        operators_skipped=None,
        quick=False,
        duration_s=61.0,
    )  # fmt: skip
