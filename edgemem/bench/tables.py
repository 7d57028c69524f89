"""The result in words: the tables and sentences that the terminal and the HTML page share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePath

from edgemem.bench.result import (
    BenchResult,
    Comparison,
    Conditions,
    Deadline,
    DeviceState,
    Distribution,
    Energy,
    Environment,
    Floor,
    GpuTime,
    IdleGap,
    Interval,
    Memory,
    Opening,
    Operator,
    Operators,
    Prefill,
    RailEnergy,
    Reading,
    Steps,
    Subject,
    Sweep,
)
from edgemem.bench.statistics import CONFIDENCE
from edgemem.console import readable_bytes

NOT_MEASURED = "–"
_MICROSECONDS_BELOW_MS = 0.1
_PROBLEMS_SHOWN = 3
_LEAST_SHARE = 0.01
"""Of a step's time: kinds of operators below it share a line."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        key: Stable name.
        title: Heading.
        columns: Headings of the columns.
        rows: The cells.
        right: Columns that hold numbers.
        notes: Sentences to read with it.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    right: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def number(value: float, digits: int = 3) -> str:
    """``value`` with that many significant digits and no exponent: ``5.31``, ``0.0042``, ``10 400``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # Rounding may carry into a new digit: 9.996 is 10.0, not 10.00.
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, decimals)}f}".replace(",", " ")


def count(value: int) -> str:
    """A whole number, thousands apart: ``10 000 000``."""
    return f"{value:,}".replace(",", " ")


def ms(value: float | None) -> str:
    """A time given in milliseconds, in a unit that suits it; a dash where there is no such figure."""
    if value is None:
        return NOT_MEASURED
    return f"{number(value * 1e3)} µs" if 0 < value < _MICROSECONDS_BELOW_MS else f"{number(value)} ms"


def times(interval: Interval) -> str:
    """A ratio: ``1.84×``."""
    return f"{number(interval.value)}×"


def spread(interval: Interval, unit: str = "") -> str:
    """The bounds of an interval: ``1.80 – 1.89``."""
    if interval.low is None or interval.high is None:
        return NOT_MEASURED
    return f"{number(interval.low)}{unit} to {number(interval.high)}{unit}"


def inverse(ratio: Interval) -> Interval:
    """The same comparison the other way round."""
    low = None if ratio.high is None else 1 / ratio.high
    high = None if ratio.low is None else 1 / ratio.low
    return Interval(1 / ratio.value, low, high, ratio.confidence, ratio.rounds)


def _bounds(interval: Interval) -> str:
    """An interval in words; ``""`` where the rounds are too few for one."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{interval.confidence:.0%} interval {spread(interval)}"


def percent_name(percent: float) -> str:
    """``p50``, ``p99.9``."""
    return f"p{percent:g}"


def name_of(subject: Subject) -> str:
    """What the model is called."""
    return PurePath(str(subject.source.get("name") or subject.path)).name


def unit_of(subject: Subject) -> str:
    """What one step takes in."""
    return "tokens" if subject.is_tokens else "steps"


def headline(result: BenchResult) -> str:
    """The result in one sentence."""
    last = result.sweep.points[-1]
    p50 = result.steps.latency.percentile_ms(50.0)
    step = f"{ms(p50)} a step" if p50 is not None else f"{ms(result.steps.latency.mean_ms)} a step on average"
    if not result.subject.has_fixed_size:
        size = readable_bytes(last.state_bytes)
        return f"{step}. The state grows: {size} at position {count(last.position)}."
    first = next(point for point in result.sweep.points if point.position > 0)
    return (
        f"{step}. At position {count(last.position)} it takes {times(result.sweep.last_over_first)} "
        f"what it takes at {count(first.position)}. The state is {readable_bytes(result.memory.state_bytes)} at each."
    )


def slope_sentence(sweep: Sweep) -> str:
    """What the sweep shows about the cost of a step."""
    slope = sweep.slope_ns_per_1000_positions
    value = f"{number(slope.value)} ns per 1 000 positions"
    if slope.low is None or slope.high is None:
        return f"Slope: {value}; {slope.rounds} rounds are too few for an interval."
    bounds = f"{value} ({slope.confidence:.0%} interval {spread(slope)}, {slope.rounds} rounds)"
    if slope.low > 0:
        return f"Slope: {bounds}. A step takes longer as the stream goes on."
    if slope.high < 0:
        return f"Slope: {bounds}. A step takes no longer as the stream goes on."
    return f"Slope: {bounds}. No growth that can be told from noise."


def tables(result: BenchResult) -> list[Table]:
    """Everything that was measured, in the order in which it is shown."""
    made = [
        _steps(result.steps, result.subject),
        _positions("positions", "Latency against position", result.sweep),
    ]
    if result.comparison is not None:
        made.append(_comparison(result.comparison))
        if result.comparison.floor is not None:
            made.append(_floor(result.comparison.floor))
        if result.comparison.growing is not None:
            made.append(_positions("growing", "Growing KV cache against position", result.comparison.growing))
        if result.comparison.growing_state:
            made.append(_growing_state(result))
    made.append(_prefill(result.prefill, result.prefill_skipped, result.subject))
    if result.deadline is not None:
        made.append(_deadline(result.deadline))
    if result.idle is not None:
        made.append(_idle(result.idle))
    if result.gpu_time is not None or result.gpu_time_skipped is not None:
        made.append(_gpu_time(result.gpu_time, result.gpu_time_skipped))
    if result.operators is not None or result.operators_skipped is not None:
        made.append(_operators(result.operators, result.operators_skipped))
    made += [_energy(result.energy, result.energy_skipped), _memory(result.memory), _opening(result.opening)]
    if _has_anything(result.conditions):
        made.append(_conditions(result.conditions))
    return [*made, _environment(result.environment, result.subject)]


def _percentile_rows(latency: Distribution) -> list[tuple[str, ...]]:
    rows = [
        (
            percent_name(p.percent),
            ms(p.value_ms),
            "" if p.value_ms is not None else f"needs {count(p.needed_samples)} samples",
        )
        for p in latency.percentiles
    ]
    return [*rows, ("max", ms(latency.max_ms), ""), ("mean", ms(latency.mean_ms), ""), ("min", ms(latency.min_ms), "")]


def _steps(steps: Steps, subject: Subject) -> Table:
    return Table(
        "steps",
        "Latency of a step",
        ("percentile", "latency", ""),
        _percentile_rows(steps.latency),
        ("latency",),
        [
            f"{count(steps.latency.count)} steps after {count(steps.warmup_steps)} to warm up, "
            f"{number(steps.steps_per_second)} {unit_of(subject)} a second with the choice of the next input."
        ],
    )


def _positions(key: str, title: str, sweep: Sweep) -> Table:
    return Table(
        key,
        title,
        ("position", "p50", "state", "samples"),
        [(count(p.position), ms(p.p50_ms), readable_bytes(p.state_bytes), count(p.samples)) for p in sweep.points],
        ("position", "p50", "state", "samples"),
        [slope_sentence(sweep)],
    )


def _comparison(comparison: Comparison) -> Table:
    where = "" if comparison.edgemem_position is None else f" at position {count(comparison.edgemem_position)}"
    rows: list[tuple[str, ...]] = [("edgemem", ms(comparison.edgemem_p50_ms), "1", "", f"this bundle{where}")]
    if comparison.floor is not None:
        own = comparison.floor.step_over_floor
        rows.append(
            (
                "floor",
                ms(comparison.floor.p50_ms),
                number(inverse(own).value),
                spread(inverse(own)),
                f"the weights read once, {comparison.floor.method}",
            )
        )
    for baseline in comparison.baselines:
        if baseline.ratio is not None:
            ratio = baseline.ratio
            rows.append((baseline.name, ms(baseline.p50_ms), number(ratio.value), spread(ratio), baseline.how))
    return Table(
        "comparison",
        "Beside what else could be run",
        ("what", "p50 of a step", "× edgemem", "interval", "how"),
        rows,
        ("p50 of a step", "× edgemem", "interval"),
        [
            f"{count(comparison.rounds)} rounds; in each, every contender takes {count(comparison.steps_per_round)} "
            "steps, in shuffled order. The ratio is the median of the rounds' own ratios, "
            f"with its {CONFIDENCE:.0%} interval.",
            *skipped_notes(comparison),
        ],
    )


def skipped_notes(comparison: Comparison) -> list[str]:
    """What was not measured and why, one sentence for each reason."""
    names: dict[str, list[str]] = {}
    if comparison.floor_skipped is not None:
        names.setdefault(comparison.floor_skipped, []).append("floor")
    for baseline in comparison.baselines:
        if baseline.skipped is not None:
            names.setdefault(baseline.skipped, []).append(baseline.name)
    return [f"Not measured: {', '.join(who)}. Reason: {reason.rstrip('.')}." for reason, who in names.items()]


def _floor(floor: Floor) -> Table:
    return Table(
        "floor",
        "The floor",
        ("way of reading the weights once", "p50", ""),
        [(m.name, ms(m.p50_ms), f"skipped: {m.skipped}" if m.skipped else "") for m in floor.methods],
        ("p50",),
        [
            f"{readable_bytes(floor.weight_bytes)} in {count(floor.matrices)} matrices ({floor.counted}), "
            f"{number(floor.gigabytes_per_second)} GB/s by {floor.method}.",
            f"A step takes {times(floor.step_over_floor)} the floor ({CONFIDENCE:.0%} interval "
            f"{spread(floor.step_over_floor)}).",
        ],
    )


def _growing_state(result: BenchResult) -> Table:
    assert result.comparison is not None
    fixed = result.memory.state_bytes
    return Table(
        "growing_state",
        "State of one stream against position",
        ("position", "this bundle", "growing KV cache"),
        [
            (count(p.position), readable_bytes(fixed), readable_bytes(p.state_bytes))
            for p in result.comparison.growing_state
        ],
        ("position", "this bundle", "growing KV cache"),
        ["What the contracts say; nothing of it is extrapolated from a measurement."],
    )


def _prefill(prefill: Prefill | None, skipped: str | None, subject: Subject) -> Table:
    if prefill is None:
        return Table("prefill", "Prefill", (), [], notes=[f"Not measured: {skipped}."])
    unit = unit_of(subject)
    return Table(
        "prefill",
        "Prefill",
        ("what", "figure", ""),
        [
            ("input", f"{count(prefill.length)} {unit}", ""),
            ("time", ms(prefill.p50_ms), "median"),
            ("throughput", f"{number(prefill.steps_per_second)} {unit}/s", ""),
            ("against stepping", times(prefill.speedup), _bounds(prefill.speedup)),
        ],
        ("figure",),
        [f"By stream.feed, {count(prefill.chunk)} time steps a call at most, output of the last step alone."],
    )


def _deadline(deadline: Deadline) -> Table:
    response = deadline.response
    return Table(
        "deadline",
        f"Deadlines at {number(deadline.rate_hz)} Hz",
        ("what", "figure", ""),
        [
            ("misses", count(deadline.misses), f"of {count(deadline.steps)} steps"),
            ("worst lateness", ms(deadline.worst_lateness_ms), "after the deadline"),
            *((f"response {name}", value, note) for name, value, note in _percentile_rows(response)),
        ],
        ("figure",),
        ["From the tick of the clock to the next input chosen; the system's wake-up is in it."],
    )


def _idle(idle: IdleGap) -> Table:
    return Table(
        "idle",
        f"A step after {number(idle.gap_ms)} ms of idling",
        ("percentile", "latency", ""),
        _percentile_rows(idle.latency),
        ("latency",),
        [f"{count(idle.latency.count)} steps, each after a pause."],
    )


def joules(value: float | None) -> str:
    """Energy in a unit that suits it; a dash where there is no such figure."""
    if value is None:
        return NOT_MEASURED
    for unit, size in (("J", 1.0), ("mJ", 1e-3)):
        if abs(value) >= size:
            return f"{number(value / size)} {unit}"
    return f"{number(value * 1e6)} µJ"


def _energy(energy: Energy | None, skipped: str | None) -> Table:
    if energy is None:
        return Table("energy", "Energy", (), [], notes=[f"Not measured: {skipped}."])
    notes = [
        f"{count(energy.steps)} steps in {number(energy.seconds)} s; the choice of the next input is in it, and what "
        "the device draws when idle. The error is that of resolution, averaging and sampling, without the sensor's "
        "calibration. Rails are not added up: some feed others.",
        *(f"{rail.name}: no joules: {rail.skipped}." for rail in energy.rails if rail.skipped is not None),
    ]
    return Table(
        "energy",
        "Energy",
        ("sensor", "a step", "error", "mean power", "readings", "of"),
        [_rail(rail) for rail in energy.rails],
        ("a step", "error", "mean power"),
        notes,
    )


def _rail(rail: RailEnergy) -> tuple[str, ...]:
    return (
        rail.name,
        joules(rail.joules_per_step),
        NOT_MEASURED if rail.error_joules is None else f"± {joules(rail.error_joules)}",
        NOT_MEASURED if rail.mean_w is None else f"{number(rail.mean_w)} W",
        f"{count(rail.samples)}" + ("" if rail.rate_hz is None else f" at {number(rail.rate_hz)} Hz"),
        rail.covers,
    )


def _gpu_time(gpu: GpuTime | None, skipped: str | None) -> Table:
    title = "A step on the GPU and on the host"
    if gpu is None:
        return Table("gpu_time", title, (), [], notes=[f"Not measured: {skipped}."])
    rows: list[tuple[str, ...]] = [
        ("GPU, first work to last", ms(gpu.gpu_ms), "by events; gaps in between are in it"),
        ("of that, copies in", ms(gpu.copies_in_ms), ""),
        ("of that, copies out", ms(gpu.copies_out_ms), ""),
    ]
    if gpu.graph_ms is not None:
        rows.append(("of that, captured graphs", ms(gpu.graph_ms), "copies inside of them included"))
    rows += [
        ("enqueueing", ms(gpu.enqueue_ms), "on the host, until it begins to wait"),
        ("waiting", ms(gpu.wait_ms), "on the host"),
        ("host", ms(gpu.host_ms), "all but the waiting"),
    ]
    return Table(
        "gpu_time",
        title,
        ("what", "median", ""),
        rows,
        ("median",),
        [f"{count(gpu.steps)} steps of their own: recording events costs time that the latencies above do not have."],
    )


def _has_anything(conditions: Conditions) -> bool:
    """Whether the device told more than nothing."""
    return conditions.loaded != DeviceState()


def _conditions(conditions: Conditions) -> Table:
    states = (conditions.before, conditions.loaded, conditions.after)

    def row(name: str, figures: list[str]) -> tuple[str, ...]:
        return (name, *(figure or NOT_MEASURED for figure in figures))

    rows = []
    for name in _names([state.clocks_mhz for state in states]):
        rows.append(row(f"clock, {name}", [_figure(state.clocks_mhz, name, "MHz") for state in states]))
    for name in _names([state.temperatures_c for state in states]):
        rows.append(row(f"temperature, {name}", [_figure(state.temperatures_c, name, "°C") for state in states]))
    if any(state.power_mode for state in states):
        rows.append(row("power mode", [state.power_mode or "" for state in states]))
    notes = []
    if conditions.loaded.governors:
        notes.append(f"Governors: {', '.join(conditions.loaded.governors)}.")
    if conditions.throttled:
        notes.append(f"Throttled: {'; '.join(conditions.throttled)}.")
    elif _tells_throttling(states):
        notes.append("Not throttled, by what this device tells.")
    if conditions.problems:
        more = len(conditions.problems) - _PROBLEMS_SHOWN
        shown = "; ".join(conditions.problems[:_PROBLEMS_SHOWN])
        notes.append(f"Not readable: {shown}{f'; and {count(more)} more' if more > 0 else ''}.")
    return Table(
        "conditions",
        "Clocks, temperatures, power mode",
        ("what", "before the steps", "after the steps", "at the end"),
        rows,
        (),
        notes,
    )


def _tells_throttling(states: tuple[DeviceState, ...]) -> bool:
    return any(state.throttling or state.throttle_events for state in states)


def _shown_as(name: str) -> str:
    """A reading's name in the table: the clocks of all cores share a line."""
    return "CPU" if name.startswith("cpu policy") else name


def _names(readings: list[list[Reading]]) -> list[str]:
    return list(dict.fromkeys(_shown_as(reading.name) for some in readings for reading in some))


def _figure(readings: list[Reading], name: str, unit: str) -> str:
    values = [reading.value for reading in readings if _shown_as(reading.name) == name]
    if not values:
        return ""
    lowest, highest = number(min(values)), number(max(values))
    return f"{lowest} {unit}" if lowest == highest else f"{lowest} to {highest} {unit}"


def _operators(operators: Operators | None, skipped: str | None) -> Table:
    title = "Where a step's time goes"
    if operators is None:
        return Table("operators", title, (), [], notes=[f"Not measured: {skipped}."])
    total = sum(kind.p50_ms for kind in operators.kinds)
    weights = sum(kind.p50_ms for kind in operators.kinds if kind.reads_weights)

    def row(name: str, reads: str, kinds: list[Operator]) -> tuple[str, ...]:
        time_ms = sum(kind.p50_ms for kind in kinds)
        share = f"{time_ms / total:.1%}" if total else NOT_MEASURED
        return name, reads, count(sum(kind.count for kind in kinds)), ms(time_ms), share

    shown = [kind for kind in operators.kinds if kind.p50_ms >= _LEAST_SHARE * total]
    rest = operators.kinds[len(shown) :]
    rows = [row(kind.name, "weights" if kind.reads_weights else "", [kind]) for kind in shown]
    if rest:
        rows.append(row(f"{count(len(rest))} more", "", rest))
    rows.append(row("all", "", operators.kinds))
    return Table(
        "operators",
        title,
        ("operator", "reads", "number", "p50", "share"),
        rows,
        ("number", "p50", "share"),
        [
            f"{ms(weights)} in operators that read weights, {ms(total - weights)} in the others. From "
            f"{count(operators.steps)} steps of a run of its own under the engine's profiler, which counts whole "
            f"microseconds and adds about one to each operator; a run took {ms(operators.run_p50_ms)} there.",
        ],
    )


def _memory(memory: Memory) -> Table:
    more: list[tuple[str, ...]] = []
    if memory.proportional_bytes is not None:
        more.append(("of that, its own share", readable_bytes(memory.proportional_bytes), "pages shared count in part"))
    if memory.gpu_bytes is not None:
        more.append(("on the GPU", readable_bytes(memory.gpu_bytes), "of this process, by its driver"))
    if memory.is_integrated and memory.available_fall_bytes is not None:
        fall = readable_bytes(max(0, memory.available_fall_bytes))
        more.append(("taken from the system", fall, "fall of what is available since before opening"))
    notes = ["Of the whole process, before anything else was loaded to compare with."]
    if memory.is_integrated:
        notes.append(
            "The GPU has no memory of its own. What its driver holds without mapping it into the process shows in what "
            "was taken from the system alone, with whatever else the system did meanwhile."
        )
    return Table(
        "memory",
        "Memory, apart",
        ("what", "bytes", ""),
        [
            ("weights file", readable_bytes(memory.weights_bytes), ""),
            ("graphs", readable_bytes(memory.graphs_bytes), ""),
            ("state of one stream", readable_bytes(memory.state_bytes), ""),
            ("resident before opening", readable_bytes(memory.resident_before_open_bytes), "Python and this program"),
            ("resident once opened", readable_bytes(memory.resident_opened_bytes), "after the first step"),
            ("resident after the steps", readable_bytes(memory.resident_measured_bytes), ""),
            *more,
            ("peak resident", readable_bytes(memory.peak_bytes), "the most up to then, loading included"),
        ],
        ("bytes",),
        notes,
    )


def _opening(opening: Opening) -> Table:
    return Table(
        "opening",
        "From the bundle to the first output",
        ("what", "time", ""),
        [
            ("open", ms(opening.open_ms), "hashes checked, engine imported, graph loaded"),
            ("stream", ms(opening.stream_ms), "buffers laid out"),
            ("first step", ms(opening.first_step_ms), "not warmed up"),
        ],
        ("time",),
    )


def _environment(environment: Environment, subject: Subject) -> Table:
    loads = ", ".join(number(load, 2) for load in environment.load_average)
    loads_after = ", ".join(number(load, 2) for load in environment.load_average_after)
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    return Table(
        "environment",
        "Environment",
        ("what", "value"),
        [
            ("bundle", f"{subject.path}, {subject.fingerprint[:16]}"),
            ("source", ", ".join(f"{key} {value}" for key, value in subject.source.items()) or "unknown"),
            ("runtime", f"{subject.runtime} on {subject.device}"),
            ("threads", count(environment.threads) if environment.threads else "the engine's choice"),
            ("board", environment.board or "unknown"),
            ("processor", f"{environment.cpu or 'unknown'}, {environment.machine}"),
            ("cores", f"{environment.cores}, {environment.usable_cores} usable"),
            ("clock governor", environment.governor or "not readable"),
            ("memory", readable_bytes(environment.memory_bytes) if environment.memory_bytes else "not readable"),
            ("load average", f"{loads} before, {loads_after} after"),
            ("system", environment.os),
            ("Python", environment.python),
            ("packages", packages),
            ("date", environment.date),
        ],
    )
