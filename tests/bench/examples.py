"""A result with figures that were written by hand, not measured."""

from __future__ import annotations

import functools

import numpy as np

from edgemem.bench import page, statistics
from edgemem.bench.devices.energy import RailEnergy
from edgemem.bench.devices.reader import DeviceState, Reading
from edgemem.bench.floor import Floor, FloorMethod
from edgemem.bench.positions import PositionPoint, Sweep
from edgemem.bench.result import BenchResult, NotMeasured, Section
from edgemem.bench.sections import all_sections
from edgemem.bench.sections.comparison import Baseline, Comparison, PositionBytes
from edgemem.bench.sections.conditions import Conditions
from edgemem.bench.sections.deadline import Deadline
from edgemem.bench.sections.energy import Energy
from edgemem.bench.sections.environment import Environment
from edgemem.bench.sections.gpu_time import GpuTime
from edgemem.bench.sections.idle import IdleGap
from edgemem.bench.sections.memory import Memory
from edgemem.bench.sections.opening import Opening
from edgemem.bench.sections.operators import Operator, Operators
from edgemem.bench.sections.prefill import Prefill
from edgemem.bench.sections.rates import Rate, Rates
from edgemem.bench.sections.steps import Moment, Steps
from edgemem.bench.sections.sweep import Positions
from edgemem.bench.statistics import Interval
from edgemem.bench.subject import Subject


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
    sweep = Positions(
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
            Baseline("growing@16384", "growing KV cache at 16,384", "full cache", 42.0, interval(7.75)),
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
    energy: Energy | NotMeasured = example_energy() if extras else NotMeasured("no power sensor found")
    sections: list[Section | None] = [
        Environment(
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
            others_cores=1.37 if extras else 0.02,
            loaded=extras,
            pinned=[6, 7] if extras else [],
            command="edgemem bench bundle --threads 2",
        ),
        Opening(412.0, 2.37, 9.46),
        Steps(50, latency, 178.0, [Moment(0.3, 5.41), Moment(8.7, 5.62)]),
        Rates(
            [
                Rate("prefill 512", 2, 1, 0, interval(1_503.0), 0.665),
                Rate("decode 128 @ depth 4096", 2, 1, 4_096, interval(183.4), 5.45),
            ],
            6,
            ["Not measured: 8 streams in one call. Reason: the graph is fixed to one stream."] if extras else [],
        ),
        sweep,
        Prefill(4_096, 256, 2_640.0, 1_551.0, interval(8.24)),
        Memory(
            101_900_000, 613_000, state, 41_000_000, 262_000_000, 263_500_000, 371_000_000,
            *((231_000_000, 151_000_000, True, 523_000_000) if extras else ()),
        ),
        Deadline(100.0, 1_000, 7, 3.12, latency) if extras else None,
        IdleGap(250.0, latency) if extras else None,
        comparison if baselines else None,
        Conditions(
            *(example_state(warmth) if extras else DeviceState() for warmth in (1.0, 3.0, 4.0)),
            throttled=["average current too high: 9 times"] if extras else [],
            problems=["/sys/class/thermal/thermal_zone2/temp: Input/output error"] if extras else [],
        ),
        GpuTime(517, 3.92, 0.0123, 0.0231, 3.84, 0.217, 3.71, 0.342) if extras else None,
        example_operators() if extras else None,
    ]  # fmt: skip
    measured = {type(section): section for section in sections if section is not None}
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
        outcomes={kind: energy if kind is Energy else measured.get(kind) for kind in all_sections()},
        quick=False,
        duration_s=61.0,
    )


@functools.cache
def example_page(*, baselines: bool = True, extras: bool = True) -> str:
    """The page of :func:`example_result`."""
    return page.render(example_result(baselines=baselines, extras=extras))
