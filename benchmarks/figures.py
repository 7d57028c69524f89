"""The figures that edgemem must reach, measured in one run on this machine.

``python benchmarks/figures.py`` exports the reference model (25M parameters: d 512, 8 layers, 8 heads, window 256 and
one cumulative summary, bytes, float32; random weights) and prints each figure with its target. It uses one thread, and
measures with :mod:`edgemem.bench`.
"""

from __future__ import annotations

import os

# numpy's BLAS takes its number of threads when it is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import contextlib
import json
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import click
import numpy as np

import edgemem
from edgemem.bench import measure, statistics
from edgemem.bench.baselines import Ready
from edgemem.bench.floor import FloorReady, prepare_floor
from edgemem.bench.loop import Loop
from edgemem.bench.measure import Contender, Progress
from edgemem.bench.numpy_loop import NumpyLoop
from edgemem.bench.positions import steps_to_fill, sweep_contenders, sweep_of
from edgemem.bench.rewritten import sealed
from edgemem.bench.rounds import EDGEMEM
from edgemem.bench.sections.comparison import compare
from edgemem.bench.sections.environment import Environment
from edgemem.bench.sections.memory import resident_growth
from edgemem.bench.sections.prefill import Prefill
from edgemem.bench.statistics import Interval
from edgemem.bench.words import count, number, spread
from edgemem.bundle import WEIGHTS, Bundle, open_bundle
from edgemem.cli.bench_command import progress_bars
from edgemem.console import console, print_table
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import EdgememError
from edgemem.export import ExportOptions, export_bundle, from_config, load_source, source_of
from edgemem.machine.facts import load_average
from edgemem.runtimes import Session
from edgemem.runtimes.engine import Call, Engine, Tensors
from edgemem.runtimes.ort.engine import OrtEngine
from edgemem.runtimes.ort.load import LoadOptions
from edgemem.text.sampling import Sampler
from edgemem.text.scoring import score_text
from edgemem.text.tokenizer import ByteTokenizer

THREADS = 1
REFERENCE = Path(__file__).with_name("reference.json")
BEFORE = Path(__file__).with_name("before")
"""Manifest and graph of the reference bundle as commit 2a5ca8f exported it."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: Turns of each contender.
        pairs: Single steps that measure what ``stream.step`` adds.
        memory_steps: Steps during which memory must not grow.
        prefill: Time steps of the long input.
        prefill_rounds: How often it is fed.
        prefill_steps: Single steps that are timed in each round.
        parity_steps: Steps compared with torch.
        openings: How often the bundle is opened.
        scored_bytes: Bytes of text that a trained model predicts.
    """

    rounds: int = 40
    pairs: int = 400
    memory_steps: int = 200_000
    prefill: int = 4_096
    prefill_rounds: int = 7
    prefill_steps: int = 256
    parity_steps: int = 2_000
    openings: int = 9
    scored_bytes: int = 60_000


QUICK = Effort(
    rounds=9,
    pairs=60,
    memory_steps=20_000,
    prefill=1_024,
    prefill_rounds=3,
    prefill_steps=32,
    parity_steps=600,
    openings=3,
    scored_bytes=20_000,
)


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        key: Its name for scripts.
        name: What was measured.
        value: In ``unit``.
        unit: ``"×"``, ``"µs"``, ``"MiB"`` or ``""``.
        target: In ``unit``.
        at_least: Whether more is better.
        interval: Over the rounds, in ``unit``; ``None`` if there are none.
        details: What was run.
    """

    key: str
    name: str
    value: float
    unit: str
    target: float
    at_least: bool
    interval: Interval | None
    details: str

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.at_least else self.value <= self.target


def one_step(bundle: Bundle, effort: Effort, folder: Path, progress: Progress) -> list[Figure]:
    """A step against the floor and against the hand-written loop, in the same rounds."""
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(edgemem.open(bundle.path, threads=THREADS))
        loop = Loop(session.stream(), session.contract)
        by_hand = NumpyLoop(sealed(bundle, folder / "sealed"), THREADS)
        floor = prepare_floor(bundle, THREADS, stack)
        if not isinstance(floor, FloorReady):
            raise EdgememError(f"the floor cannot be measured: {floor.reason}")
        numpy_loop = Ready(
            "numpy_loop", "hand-written numpy loop", "", [Contender("numpy_loop", by_hand.step, after=by_hand.choose)]
        )
        measure.run_loop(loop, steps_to_fill(session.contract), progress, "warm-up")
        samples = measure.interleave(
            [Contender(EDGEMEM, loop.step, after=loop.choose), *numpy_loop.contenders, *floor.contenders],
            rounds=effort.rounds,
            steps=10,
            progress=progress,
            what="step, floor, numpy",
        )
    made = compare([numpy_loop], floor, samples, EDGEMEM, ())
    assert made.floor is not None
    ratio = made.baselines[0].ratio
    assert ratio is not None
    assert made.floor.step_over_all is not None
    own = f"step {number(made.edgemem_p50_ms)} ms"
    bandwidth = f"{number(made.floor.gigabytes_per_second)} GB/s by {made.floor.method}"
    floor_ms = made.floor.p50_ms * (1 + made.floor.state_bytes / made.floor.weight_bytes)
    return [
        Figure(
            "step_over_floor", "step over reading weights and state once", made.floor.step_over_all.value, "×", 1.10,
            False, made.floor.step_over_all, f"{own}, floor {number(floor_ms)} ms ({bandwidth})",
        ),
        Figure(
            "numpy_over_step_reference", "hand-written numpy loop, sealed graph, over a step", ratio.value, "×", 1.35,
            True, ratio, f"{own}, numpy loop {number(made.baselines[0].p50_ms or 0.0)} ms",
        ),
    ]  # fmt: skip


def small_step(bundle: Bundle, effort: Effort, folder: Path, progress: Progress) -> list[Figure]:
    """A step of a small model, with native operators and without, against the hand-written loop."""
    with contextlib.ExitStack() as stack:
        loops = {}
        for name, native in (("native", True), ("standard", False)):
            options = LoadOptions(THREADS, native=native)
            session = stack.enter_context(Session(bundle.contract, bundle, OrtEngine(bundle, "cpu", options)))
            loops[name] = loop = Loop(session.stream(), session.contract)
            measure.run_loop(loop, steps_to_fill(session.contract), progress, f"warm-up, {name}")
        by_hand = NumpyLoop(sealed(bundle, folder / "sealed_small"), THREADS)
        samples = measure.interleave(
            [
                *(Contender(name, loop.step, after=loop.choose) for name, loop in loops.items()),
                Contender("numpy_loop", by_hand.step, after=by_hand.choose),
            ],
            rounds=effort.rounds,
            steps=20,
            progress=progress,
            what="small step, numpy",
        )
    figures = []
    for key, name, target, title in (
        ("numpy_over_step_small", "native", 3.0, "numpy loop over a step, small model"),
        ("fallback_numpy_over_step_small", "standard", 1.5, "the same without native operators"),
    ):
        ratio = statistics.ratio(samples["numpy_loop"], samples[name])
        p50, loop_p50 = statistics.median_ms(samples[name]), statistics.median_ms(samples["numpy_loop"])
        details = f"step {number(p50)} ms, numpy loop {number(loop_p50)} ms"
        figures.append(Figure(key, title, ratio.value, "×", target, True, ratio, details))
    return figures


class TimedEngine(Engine):
    """An engine that times every run of another one.

    Attributes:
        inside_ns: What the runs took.
    """

    def __init__(self, inner: Engine) -> None:
        self.runtime, self.title, self.memory = inner.runtime, inner.title, inner.memory  # type: ignore[misc]
        self._inner = inner
        self._steps: list[Call] = []
        self._next = 0
        self.inside_ns: list[int] = []

    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        """The call of the other engine, with a clock around it."""
        call, side = self._inner.bind(time, inputs, outputs), len(self._steps)
        if time == 1:
            self._steps.append(call)
        clock, inside = perf_counter_ns, self.inside_ns

        def run() -> None:
            start = clock()
            call()
            inside.append(clock() - start)
            self._next = 1 - side

        return run

    def bare(self) -> None:
        """The run of the next step, without its commit."""
        self._steps[self._next]()


def overhead(bundle: Bundle, effort: Effort, progress: Progress) -> Figure:
    """What ``stream.step`` adds to ONNX Runtime's own run of the stream's own binding.

    The run inside each step is timed too, and taken away from that step: what is left does not drown in the jitter of
    the run. Beside it, as a check, steps and bare runs in turns.
    """
    timed = TimedEngine(OrtEngine(bundle, "cpu", LoadOptions(THREADS)))
    with Session(bundle.contract, bundle, timed) as session:
        loop = Loop(session.stream(), session.contract)
        measure.run_loop(loop, 50, progress, "warm-up")
        in_turns = measure.interleave(
            [
                Contender("step", loop.step, after=loop.choose),
                # Its outputs lie where the next step puts its own: the stream's state stays what it was.
                Contender("bare", timed.bare),
            ],
            rounds=effort.pairs,
            steps=1,
            warm=1,
            warm_ms=0.0,
            progress=progress,
            what="step, bare run",
        )
        timed.inside_ns.clear()
        whole = measure.time_steps(loop.step, np.zeros(effort.pairs, dtype=np.int64), loop.choose)
        inside = list(timed.inside_ns)
        loop.check()
    added = statistics.median_interval((whole - np.array(inside)) / 1e3)
    turns = statistics.difference_ns(in_turns["step"], in_turns["bare"])
    bare = float(np.median(in_turns["bare"])) / 1e6
    return Figure(
        "stream_step_us", "what stream.step adds to the bare run of the engine", added.value, "µs", 10.0, False, added,
        f"bare run {number(bare)} ms; in turns {number(turns.value / 1e3)} µs",
    )  # fmt: skip


def constancy(session: Session, effort: Effort, progress: Progress) -> Figure:
    """A step at position 1,000,000 against one at 1,000, with injected states."""
    positions = (1_000, 1_000_000)
    loop = Loop(session.stream(), session.contract)
    contenders = sweep_contenders(EDGEMEM, loop, session.contract, positions, steps_to_fill(session.contract))
    samples = measure.interleave(contenders, rounds=effort.rounds, steps=10, progress=progress, what="positions")
    sweep = sweep_of(EDGEMEM, samples, session.contract, positions)
    first, last = sweep.points
    return Figure(
        "position", "step p50 at position 1,000,000 over that at 1,000", sweep.last_over_first.value, "×", 1.03, False,
        sweep.last_over_first, f"{number(first.p50_ms)} ms and {number(last.p50_ms)} ms",
    )  # fmt: skip


def memory_growth(bundle: Bundle, effort: Effort, progress: Progress) -> Figure:
    """Growth of resident memory while a small model makes steps, in a new process."""
    progress("resident memory", 0, 1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        before, grown = fresh.submit(resident_growth, bundle.path, effort.memory_steps, THREADS).result()
    progress("resident memory", 1, 1)
    return Figure(
        "memory_growth", f"growth of resident memory over {count(effort.memory_steps)} steps of a small model",
        max(0.0, grown / 2**20), "MiB", 1.0, False, None, f"{count(grown)} bytes on {before >> 20} MiB resident",
    )  # fmt: skip


def prefill(session: Session, effort: Effort, progress: Progress) -> Figure:
    """A long input by ``feed`` against stepping."""
    made = Prefill.of(session, effort.prefill, effort.prefill_rounds, effort.prefill_steps, progress)
    return Figure(
        "prefill", f"prefill of {count(effort.prefill)} tokens by feed against stepping them",
        made.speedup.value, "×", 6.0, True, made.speedup,
        f"{number(made.p50_ms)} ms, {number(made.steps_per_second)} tokens/s",
    )  # fmt: skip


def parity(bundle: Bundle, session: Session, effort: Effort, progress: Progress) -> Figure:
    """Logits of single steps and of chunks against one pass of torch over the whole sequence."""
    import torch

    steps = effort.parity_steps
    sampler = Sampler(seed=0)
    stream = session.stream()
    tokens = np.zeros(steps, dtype=np.int64)
    stepped = np.zeros((steps, *session.contract.output.shape), dtype=np.float32)
    for i in range(steps):
        stepped[i] = stream.step(int(tokens[i]))[0]
        if i + 1 < steps:
            tokens[i + 1] = sampler(stepped[i])
        progress("fed-back steps", i + 1, steps)
    rng = np.random.default_rng(0)
    chunked = np.zeros_like(stepped)
    stream.reset()
    done = 0
    while done < steps:
        size = int(rng.integers(1, session.contract.max_chunk + 1))
        part = stream.feed(tokens[done : done + size], outputs="all")
        assert part is not None
        chunked[done : done + part.shape[1]] = part[0]
        done += part.shape[1]
    with torch.inference_mode():
        wanted = source_of(bundle).module(torch.from_numpy(tokens)[None])[0][0].numpy()
    by_step, by_chunk = (float(np.abs(got - wanted).max()) for got in (stepped, chunked))
    return Figure(
        "parity", f"parity with torch, {count(steps)} fed-back steps, logits",
        max(by_step, by_chunk), "", 1e-4, False, None,
        f"largest difference by steps {by_step:.1e}, by chunks {by_chunk:.1e}; logits up to {np.abs(wanted).max():.2g}",
    )  # fmt: skip


def before(bundle: Bundle, folder: Path) -> Bundle:
    """The reference bundle as commit 2a5ca8f exported it: its graph, and the weights of ``bundle``, which are equal."""
    shutil.copytree(BEFORE, folder)
    os.link(bundle.file(WEIGHTS), folder / WEIGHTS)
    return open_bundle(folder)


def quantised(bundle: Bundle, effort: Effort, folder: Path, progress: Progress) -> list[Figure]:
    """Steps with 8-bit and 4-bit weights against float32 as it was, in the same rounds, and the size of the bundle."""
    kinds = {
        "int8": (2.7, ExportOptions(weights="int8", verify=False)),
        "int4": (4.0, ExportOptions(weights="int4", verify=False)),
        "int4_half_rings": (5.0, ExportOptions(weights="int4", memory_dtype="fp16", verify=False)),
    }
    source = source_of(bundle)
    bundles = {"before": before(bundle, folder / "before"), "float32": bundle}
    for number_done, (kind, (_, options)) in enumerate(kinds.items()):
        progress("quantising", number_done, len(kinds))
        bundles[kind] = export_bundle(source, folder / kind, options)
    progress("quantising", len(kinds), len(kinds))
    with contextlib.ExitStack() as stack:
        contenders = []
        for name, one in bundles.items():
            session = stack.enter_context(edgemem.open(one.path, threads=THREADS))
            loop = Loop(session.stream(), session.contract)
            measure.run_loop(loop, steps_to_fill(session.contract), progress, f"warm-up, {name}")
            contenders.append(Contender(name, loop.step, after=loop.choose))
        samples = measure.interleave(
            contenders, rounds=effort.rounds, steps=10, progress=progress, what="step, float32 and quantised"
        )
    p50 = {name: statistics.median_ms(values) for name, values in samples.items()}
    figures = []
    for kind, target in {"float32": 1.0, **{kind: target for kind, (target, _) in kinds.items()}}.items():
        faster = statistics.ratio(samples["before"], samples[kind])
        details = f"step {number(p50[kind])} ms, before {number(p50['before'])} ms"
        weights, _, rings = kind.partition("_")
        key = f"{weights}_speedup{'_' * bool(rings)}{rings}"
        title = f"float32 step of commit 2a5ca8f over one with {kind.replace('_', ', ')}"
        figures.append(Figure(key, title, faster.value, "×", target, True, faster, details))
    sizes = {name: sum(size for _, size in one.manifest.files.values()) for name, one in bundles.items()}
    details = f"{number(sizes['int4'] / 2**20)} MiB and {number(sizes['float32'] / 2**20)} MiB"
    share = sizes["int4"] / sizes["float32"]
    figures.append(
        Figure("int4_bytes", "bundle with int4 weights over float32", share, "×", 0.17, False, None, details)
    )
    return figures


def int8_rings(trained: Path, effort: Effort, folder: Path, progress: Progress) -> Figure:
    """What rings of integers cost a trained model: bits for each byte of text that it has not seen."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from text import load_text

    source, held_out = load_source(str(trained)), load_text()[1][: effort.scored_bytes]
    text, scores = bytes(held_out.tolist()).decode(errors="ignore"), {}
    for kind in (None, "int8"):
        bundle = export_bundle(source, folder / f"rings-{kind}", ExportOptions(memory_dtype=kind, verify=False))
        with edgemem.open(bundle.path, threads=THREADS) as session:
            scores[kind] = score_text(session, ByteTokenizer(), text, lambda at, of: progress("scoring", at, of))
    share = 100 * (scores["int8"].bits_per_byte / scores[None].bits_per_byte - 1)
    return Figure(
        "int8_rings_bits_per_byte", "bits per byte that int8 rings add, trained model", share, "%", 0.5, False, None,
        f"{scores['int8'].bits_per_byte:.4f} and {scores[None].bits_per_byte:.4f} on "
        f"{count(scores[None].text_bytes)} held-out bytes",
    )  # fmt: skip


def opening(bundle: Bundle, effort: Effort, progress: Progress) -> Figure:
    """The time to open the reference bundle and make its first step, files in the page cache."""
    times = []
    for done in range(effort.openings):
        progress("opening", done, effort.openings)
        start = perf_counter_ns()
        with edgemem.open(bundle.path, threads=THREADS) as session:
            session.stream().step(0)
        times.append(perf_counter_ns() - start)
    progress("opening", effort.openings, effort.openings)
    taken = statistics.median_interval(np.array(times) / 1e9)
    return Figure("open_s", "open the bundle, and the first step", taken.value, "s", 0.3, False, taken, "")


def measure_all(effort: Effort, trained: Path | None, progress: Progress) -> list[Figure]:
    """Every figure, in the order of the table; those of a trained model where there is one."""
    config = DecoderConfig.load(REFERENCE)
    memory: list[dict[str, Any]] = [{"type": "window", "window": 32}, {"type": "cumulative"}]
    small = replace(config, d_model=64, layers=2, heads=4, memory=memory)
    with tempfile.TemporaryDirectory(prefix="edgemem-figures-") as name:
        folder = Path(name)
        progress("exporting", 0, 2)
        reference_bundle = export_bundle(
            from_config(config, REFERENCE.name), folder / "reference", ExportOptions(verify=False)
        )
        progress("exporting", 1, 2)
        small_bundle = export_bundle(from_config(small, "small"), folder / "small", ExportOptions(verify=False))
        progress("exporting", 2, 2)
        demo = replace(config, d_model=128, layers=3, heads=4, memory=[{"type": "window", "window": 64}, memory[1]])
        demo_bundle = export_bundle(from_config(demo, "demo"), folder / "demo", ExportOptions(verify=False))
        figures = one_step(reference_bundle, effort, folder, progress)
        figures += small_step(demo_bundle, effort, folder, progress)
        figures.append(opening(reference_bundle, effort, progress))
        figures.append(overhead(reference_bundle, effort, progress))
        with edgemem.open(reference_bundle.path, threads=THREADS) as session:
            figures.append(constancy(session, effort, progress))
            figures.append(memory_growth(small_bundle, effort, progress))
            figures.append(prefill(session, effort, progress))
            figures.append(parity(reference_bundle, session, effort, progress))
        figures += quantised(reference_bundle, effort, folder, progress)
        if trained is not None:
            figures.append(int8_rings(trained, effort, folder, progress))
    return figures


def shown(value: float, unit: str) -> str:
    """A value with its unit."""
    if unit == "":
        return f"{value:.1e}"
    return f"{number(value)}{'' if unit == '×' else ' '}{unit}"


def rows(figures: list[Figure]) -> list[tuple[str, ...]]:
    """The table's cells."""
    return [
        (
            figure.name,
            shown(figure.value, figure.unit),
            spread(figure.interval) if figure.interval else "",
            f"{'≥' if figure.at_least else '≤'} {shown(figure.target, figure.unit)}",
            "yes" if figure.reached else "no",
            figure.details,
        )
        for figure in figures
    ]


def report(figures: list[Figure], quick: bool, as_json: bool, load_before: list[float]) -> None:
    """Print the figures; the exit code is 1 if a target is missed."""
    machine = Environment.of(THREADS, load_before, load_average())
    if as_json:
        data: dict[str, Any] = {
            "quick": quick,
            "environment": asdict(machine),
            "figures": [{**asdict(figure), "reached": figure.reached} for figure in figures],
        }
        click.echo(json.dumps(data, indent=1, ensure_ascii=False))
    else:
        on = console()
        columns = ("figure", "measured", "95% interval", "target", "reached", "details")
        print_table(on, "Figures and targets", columns, rows(figures), right=("measured", "95% interval", "target"))
        click.echo(
            f"{machine.cpu}, {THREADS} thread, load {machine.load_average[0]} before and "
            f"{machine.load_average_after[0]} after, {machine.date}{'; quick: rough figures' if quick else ''}"
        )
    if not all(figure.reached for figure in figures):
        raise SystemExit(1)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer steps: rough figures in about a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--trained",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoint of `make demo-text`: also measure what int8 rings cost it on text.",
)
def main(quick: bool, as_json: bool, trained: Path | None) -> None:
    """Measure every figure and print it with its target. The exit code is 1 if a target is missed."""
    import torch

    torch.set_num_threads(THREADS)
    load_before = load_average()
    with progress_bars(console(stderr=True)) as progress:
        figures = measure_all(QUICK if quick else Effort(), trained, progress)
    report(figures, quick, as_json, load_before)


if __name__ == "__main__":
    main()
