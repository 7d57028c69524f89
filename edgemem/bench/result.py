"""What a benchmark measured: plain dataclasses, every unit in the field's name.

``dataclasses.asdict`` of a :class:`BenchResult` is the JSON report. A part that was not measured is ``None`` or carries
the reason in ``skipped``; no field is ever filled with a guess.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "edgemem.bench"
VERSION = 1


@dataclass(frozen=True)
class Percentile:
    """One percentile; ``value_ms`` is ``None`` where fewer than ``needed_samples`` were taken."""

    percent: float
    value_ms: float | None
    needed_samples: int


@dataclass(frozen=True)
class Histogram:
    """``counts[i]`` samples between ``edges_ms[i]`` and ``edges_ms[i + 1]``; ``beyond`` samples above the last edge."""

    edges_ms: list[float]
    counts: list[int]
    beyond: int


@dataclass(frozen=True)
class Ecdf:
    """A share ``shares[i]`` of the samples is at or below ``values_ms[i]``."""

    values_ms: list[float]
    shares: list[float]


@dataclass(frozen=True)
class Distribution:
    """Latencies of ``count`` steps."""

    count: int
    min_ms: float
    mean_ms: float
    max_ms: float
    percentiles: list[Percentile]
    histogram: Histogram
    ecdf: Ecdf

    def percentile_ms(self, percent: float) -> float | None:
        """The percentile, or ``None`` where the count cannot carry it."""
        return next((p.value_ms for p in self.percentiles if p.percent == percent), None)

    @property
    def p50_ms(self) -> float:
        """The median.

        Raises:
            ValueError: Too few samples for one.
        """
        value = self.percentile_ms(50.0)
        if value is None:
            raise ValueError(f"{self.count} samples carry no median")
        return value


@dataclass(frozen=True)
class Interval:
    """A median over ``rounds`` and the interval that holds the true one; no bounds where the rounds are too few."""

    value: float
    low: float | None
    high: float | None
    confidence: float
    rounds: int


@dataclass(frozen=True)
class Opening:
    """From the bundle on disk to the first output.

    Attributes:
        open_ms: ``edgemem.open``: hashes every file, imports the engine, loads the graph.
        stream_ms: ``session.stream()``.
        first_step_ms: The first step, before any warm-up.
    """

    open_ms: float
    stream_ms: float
    first_step_ms: float


@dataclass(frozen=True)
class Steps:
    """The loop of ``edgemem run``, one stream, step after step.

    Attributes:
        warmup_steps: Steps made before the first one that counts.
        latency: ``stream.step`` alone.
        steps_per_second: Of the whole loop, choosing the next input included.
    """

    warmup_steps: int
    latency: Distribution
    steps_per_second: float


@dataclass(frozen=True)
class Prefill:
    """``stream.feed`` of a long input, outputs of the last step only.

    Attributes:
        length: Time steps of the input.
        chunk: Most time steps the bundle takes in one call.
        p50_ms: Median time for the whole input.
        steps_per_second: Time steps taken in per second.
        speedup: Times faster than taking the same input in step by step.
    """

    length: int
    chunk: int
    p50_ms: float
    steps_per_second: float
    speedup: Interval


@dataclass(frozen=True)
class PositionPoint:
    """A step at one position of the stream."""

    position: int
    p50_ms: float
    samples: int
    state_bytes: int


@dataclass(frozen=True)
class Sweep:
    """Latency and memory against the stream's position.

    Attributes:
        points: By position.
        slope_ns_per_1000_positions: Growth of a step's latency.
        last_over_first: Latency at the last position over that at the first that is not 0.
    """

    points: list[PositionPoint]
    slope_ns_per_1000_positions: Interval
    last_over_first: Interval


@dataclass(frozen=True)
class PositionBytes:
    """Bytes of the state of one stream at a position."""

    position: int
    state_bytes: int


@dataclass(frozen=True)
class Reading:
    """One figure that a device gives: a clock, a temperature, a counter."""

    name: str
    value: float


@dataclass(frozen=True)
class DeviceState:
    """How a device stands at a moment. Empty and ``None``: it does not tell.

    Attributes:
        clocks_mhz: By domain.
        governors: Who sets the clocks: ``17000000.gpu: nvhost_podgov``.
        temperatures_c: By sensor.
        power_mode: nvpmodel's mode on a Jetson; performance state and power limit of a desktop GPU.
        throttling: What holds the clocks down now.
        throttle_events: How often clocks were held down since the start of the system, by cause.
    """

    clocks_mhz: list[Reading] = field(default_factory=list)
    governors: list[str] = field(default_factory=list)
    temperatures_c: list[Reading] = field(default_factory=list)
    power_mode: str | None = None
    throttling: list[str] = field(default_factory=list)
    throttle_events: list[Reading] = field(default_factory=list)


@dataclass(frozen=True)
class Conditions:
    """The device before, during and after the benchmark.

    Attributes:
        before: Once the bundle was opened and had made its first step.
        loaded: Right after the last step of the main loop.
        after: At the end.
        throttled: What held the clocks down, from the three; empty: nothing that the device tells of.
        problems: What is there and could not be read.
    """

    before: DeviceState
    loaded: DeviceState
    after: DeviceState
    throttled: list[str]
    problems: list[str]


@dataclass(frozen=True)
class RailEnergy:
    """Energy of one sensor over a run of steps.

    Attributes:
        name: The sensor's.
        covers: What its power is of.
        is_total: Whether it is of the whole device.
        joules_per_step: ``None`` where the readings cannot carry it; ``skipped`` says why.
        error_joules: At most so much more or less: resolution, averaging and sampling, not the sensor's calibration.
        mean_w: Over the run.
        samples: Readings taken.
        independent: How many of them say something new.
        rate_hz: Readings a second that were reached.
        skipped: Why there are no joules.
        times_s: Of the trace, from the start of the run.
        watts: The trace: power at these times.
    """

    name: str
    covers: str
    is_total: bool
    joules_per_step: float | None
    error_joules: float | None
    mean_w: float | None
    samples: int
    independent: int
    rate_hz: float | None
    skipped: str | None = None
    times_s: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Energy:
    """Joules of the whole loop, choosing the next input included; what an idle device draws is in them.

    Attributes:
        steps: Steps of the run.
        seconds: Its length.
        rails: By sensor. They are not added up: some feed others.
    """

    steps: int
    seconds: float
    rails: list[RailEnergy]


@dataclass(frozen=True)
class GpuTime:
    """A step on a GPU, taken apart: medians of steps of their own, since events cost time too.

    Attributes:
        steps: How many.
        gpu_ms: From the first work of a step in the stream to its last, by events; gaps in between are in it.
        copies_in_ms: Of that, copies from the host.
        copies_out_ms: Of that, copies to the host.
        graph_ms: Of that, captured graphs, whose copies are in it; ``None``: none was launched.
        enqueue_ms: On the host, until it begins to wait.
        wait_ms: On the host, waiting.
        host_ms: On the host, all but the waiting.
    """

    steps: int
    gpu_ms: float
    copies_in_ms: float
    copies_out_ms: float
    graph_ms: float | None
    enqueue_ms: float
    wait_ms: float
    host_ms: float


@dataclass(frozen=True)
class Operator:
    """All operators of one kind in a step.

    Attributes:
        name: Their type, as the engine calls it after it has fused some.
        reads_weights: Whether they multiply with, or look up in, stored weights; the others work on states and what
            was computed before.
        count: How many there are.
        p50_ms: Their medians, added up.
    """

    name: str
    reads_weights: bool
    count: int
    p50_ms: float


@dataclass(frozen=True)
class Operators:
    """A step's time by kind of operator, the longest first, from a run of its own.

    Attributes:
        steps: Steps that were timed.
        run_p50_ms: One run of the engine with its profiler, which makes it slower.
        kinds: The operators.
    """

    steps: int
    run_p50_ms: float
    kinds: list[Operator]


@dataclass(frozen=True)
class Memory:
    """Bytes, apart. Resident and peak are of the whole process, before any baseline was loaded.

    Attributes:
        weights_bytes: The weights file.
        graphs_bytes: The ONNX files.
        state_bytes: The state of one stream.
        resident_before_open_bytes: Python, numpy and this program alone.
        resident_opened_bytes: After opening and the first step.
        resident_measured_bytes: After the measured steps.
        peak_bytes: The most that was ever resident up to then.
        proportional_bytes: After the measured steps, pages shared with other processes counted in part (PSS).
        gpu_bytes: Memory of a discrete GPU that this process holds; ``None``: there is none, or its driver is silent.
        is_integrated: The GPU has no memory of its own: what it uses is the process's and the system's.
        available_fall_bytes: How much less memory the system had to give after the steps than before opening.
    """

    weights_bytes: int
    graphs_bytes: int
    state_bytes: int
    resident_before_open_bytes: int
    resident_opened_bytes: int
    resident_measured_bytes: int
    peak_bytes: int
    proportional_bytes: int | None = None
    gpu_bytes: int | None = None
    is_integrated: bool = False
    available_fall_bytes: int | None = None


@dataclass(frozen=True)
class Deadline:
    """A loop paced by a clock: step i is released at i / rate and must be done before the next release.

    Attributes:
        rate_hz: Releases per second.
        steps: How many were made.
        misses: Steps done after their deadline.
        worst_lateness_ms: How long after its deadline the latest step was done; 0 without a miss.
        response: From release to done: the operating system's wake-up is in it.
    """

    rate_hz: float
    steps: int
    misses: int
    worst_lateness_ms: float
    response: Distribution


@dataclass(frozen=True)
class IdleGap:
    """Latency of a step that follows ``gap_ms`` of sleep: clocks and caches have gone cold."""

    gap_ms: float
    latency: Distribution


@dataclass(frozen=True)
class Baseline:
    """Something else that could have been used, measured in the same rounds.

    Attributes:
        key: Stable name.
        name: Name for people.
        how: What was run.
        p50_ms: Median of one step; ``None`` where it was skipped.
        ratio: Its time over edgemem's, paired by round; over 1 means that edgemem is faster.
        skipped: Why it was not measured.
    """

    key: str
    name: str
    how: str
    p50_ms: float | None = None
    ratio: Interval | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class FloorMethod:
    """One way of reading every weight once, as matrix-vector products."""

    name: str
    p50_ms: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Floor:
    """The least time a step could take here: every weight read once by the fastest way found.

    Attributes:
        weight_bytes: Bytes that a step reads.
        matrices: How many matrices they are.
        counted: What was counted.
        method: The fastest way found.
        methods: All the ways tried.
        p50_ms: Its time.
        gigabytes_per_second: The bandwidth that this is.
        step_over_floor: A step's time over the floor's, paired by round.
    """

    weight_bytes: int
    matrices: int
    counted: str
    method: str
    methods: list[FloorMethod]
    p50_ms: float
    gigabytes_per_second: float
    step_over_floor: Interval


@dataclass(frozen=True)
class Comparison:
    """Baselines and the floor, in the same rounds as the bundle's own sweep over positions.

    Attributes:
        edgemem_p50_ms: The bundle's own step in these rounds.
        edgemem_position: Where its stream stood; ``None``: wherever it had come to.
        rounds: How often each contender had its turn.
        steps_per_round: Timed steps of a turn.
        baselines: What it is compared with.
        floor: ``None`` where it was not measured; ``floor_skipped`` says why.
        growing: The growing cache against position; ``None`` where it was skipped (its baseline says why).
        growing_state: What its contract says it holds, also where nothing could be measured any more.
    """

    edgemem_p50_ms: float
    edgemem_position: int | None
    rounds: int
    steps_per_round: int
    baselines: list[Baseline]
    floor: Floor | None
    floor_skipped: str | None
    growing: Sweep | None
    growing_state: list[PositionBytes]


@dataclass(frozen=True)
class Environment:
    """Where it was measured. ``None`` and ``""``: this machine does not tell."""

    date: str
    os: str
    machine: str
    cpu: str
    cores: int
    usable_cores: int
    governor: str | None
    load_average: list[float]
    load_average_after: list[float]
    threads: int | None
    python: str
    packages: dict[str, str]
    board: str | None
    memory_bytes: int


@dataclass(frozen=True)
class Subject:
    """What was measured."""

    path: str
    fingerprint: str
    source: dict[str, Any]
    runtime: str
    device: str
    input_meaning: str
    is_tokens: bool
    states: int
    has_fixed_size: bool


@dataclass(frozen=True)
class BenchResult:
    """One complete run of the benchmark."""

    subject: Subject
    environment: Environment
    opening: Opening
    steps: Steps
    sweep: Sweep
    prefill: Prefill | None
    prefill_skipped: str | None
    memory: Memory
    deadline: Deadline | None
    idle: IdleGap | None
    comparison: Comparison | None
    conditions: Conditions
    energy: Energy | None
    energy_skipped: str | None
    gpu_time: GpuTime | None
    gpu_time_skipped: str | None
    operators: Operators | None
    operators_skipped: str | None
    quick: bool
    duration_s: float
    format: str = field(default=FORMAT)
    version: int = field(default=VERSION)

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self)
