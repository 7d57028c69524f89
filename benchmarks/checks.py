"""What the checks of a step add to it, under every policy, and what saving a stream as it runs costs.

``python benchmarks/checks.py`` prints each figure with its target, as ``figures.py`` does. The checks are those of a
row of 64 real values: that no other thread is in a call of the stream, and that every value is finite. Policy "stop" is
the default; "hold" keeps a copy of the row as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Any, get_args

import click
import numpy as np
from figures import REFERENCE, THREADS, Figure, report

import edgemem
from edgemem.bench import measure, statistics
from edgemem.bench.measure import Contender, Progress
from edgemem.bench.words import count, number
from edgemem.bundle import Bundle
from edgemem.cli.bench_command import progress_bars
from edgemem.cli.snapshots import SAVE_EVERY_S
from edgemem.console import console
from edgemem.decoder_config import DecoderConfig
from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.machine.facts import load_average
from edgemem.runtimes import Session, Stream
from edgemem.runtimes.engine import Call, Engine, Tensors
from edgemem.runtimes.on_nan import OnNan

VALUES = 64
ROW = np.random.default_rng(0).normal(size=VALUES).astype(np.float32)


class IdleEngine(Engine):
    """An engine that computes nothing: what is left of a step is edgemem's own code."""

    runtime, title = "idle", "nothing"

    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        """A call that returns at once."""
        return lambda: None


def unchecked(stream: Stream) -> Callable[[Any], Any]:
    """``stream.step`` of a plain model without the checks that are on by default."""
    take, step = stream._take, stream._step

    def run(x: Any) -> Any:
        take(x)
        return step()

    return run


def alone(bundle: Bundle, on_nan: OnNan, rounds: int, steps: int, progress: Progress) -> Figure:
    """Thread CPU time of the checks: steps of an engine that computes nothing, with and without them, in turns."""
    with Session(bundle.contract, None, IdleEngine()) as session:
        calls = (session.stream(on_nan=on_nan).step, unchecked(session.stream(on_nan="pass")))
        spent = np.zeros((2, rounds))
        for round_ in range(rounds):
            for which in (0, 1) if round_ % 2 else (1, 0):
                step = calls[which]
                began = thread_time_ns()
                for _ in range(steps):
                    step(ROW)
                spent[which, round_] = (thread_time_ns() - began) / steps / 1e3
            progress(f"checks alone, {on_nan}", round_ + 1, rounds)
    added = statistics.median_interval(spent[0] - spent[1])
    with_us, without_us = (number(float(np.median(each))) for each in spent)
    return Figure(
        f"checks_{on_nan}_us", f"thread CPU time of the checks of a row of {VALUES} values, --on-nan {on_nan}",
        added.value, "µs", 2.0, False, added,
        f"a step without an engine: {with_us} µs with them, {without_us} µs without",
    )  # fmt: skip


def whole_step(bundle: Bundle, rounds: int, progress: Progress) -> Figure:
    """A step with the checks over one without, in the same rounds."""
    with edgemem.open(bundle.path, threads=THREADS) as session:
        checked, bare = session.stream(), unchecked(session.stream(on_nan="pass"))
        samples = measure.interleave(
            [Contender("checked", lambda: checked.step(ROW)), Contender("bare", lambda: bare(ROW))],
            rounds=rounds,
            steps=50,
            progress=progress,
            what="step, with and without checks",
        )
    made = statistics.ratio(samples["checked"], samples["bare"])
    p50 = {name: number(statistics.median_ms(values)) for name, values in samples.items()}
    details = f"{p50['checked']} ms and {p50['bare']} ms, {VALUES} values, a model of 2 layers"
    return Figure(
        "checks", "step p50 with the default checks over one without", made.value, "×", 1.05, False, made, details
    )


def saving(bundle: Bundle, folder: Path, rounds: int, progress: Progress) -> Figure:
    """The share of the time that saves take, at the default interval."""
    with edgemem.open(bundle.path, threads=THREADS) as session:
        stream, taken_ms = session.stream(), []
        for round_ in range(rounds):
            stream.step(ROW)
            began = perf_counter_ns()
            stream.save(folder / "state")
            taken_ms.append((perf_counter_ns() - began) / 1e6)
            progress("saves", round_ + 1, rounds)
    shares = statistics.median_interval(np.array(taken_ms) / (SAVE_EVERY_S * 1e3))
    state_bytes = (folder / "state").stat().st_size
    return Figure(
        f"saving_{bundle.path.name}", f"share of the time that saves every {SAVE_EVERY_S:.0f} s take", shares.value,
        "×", 0.01, False, shares,
        f"{number(float(np.median(taken_ms)))} ms for {count(state_bytes)} bytes, to {folder.parent}",
    )  # fmt: skip


def measure_all(quick: bool, progress: Progress) -> list[Figure]:
    """Every figure, in the order of the table."""
    rounds = 9 if quick else 41
    config = replace(DecoderConfig.load(REFERENCE), vocab_size=None, tokenizer=None, features=VALUES, outputs=8)
    memory: list[dict[str, Any]] = [{"type": "window", "window": 32}, {"type": "cumulative"}]
    small = replace(config, d_model=64, layers=2, heads=4, memory=memory)
    with tempfile.TemporaryDirectory(prefix="edgemem-checks-") as name:
        folder = Path(name)
        bundles = []
        for made, (title, one) in enumerate((("small", small), ("large", replace(config, mlp_hidden=64)))):
            progress("exporting", made, 2)
            bundles.append(export_bundle(from_config(one, title), folder / title, ExportOptions(verify=False)))
        progress("exporting", 2, 2)
        return [
            *(alone(bundles[0], on_nan, rounds, 2_000, progress) for on_nan in get_args(OnNan) if on_nan != "pass"),
            whole_step(bundles[0], rounds, progress),
            *(saving(bundle, folder, rounds, progress) for bundle in bundles),
        ]


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds: rough figures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(quick: bool, as_json: bool) -> None:
    """Measure every figure and print it with its target. The exit code is 1 if a target is missed."""
    load_before = load_average()
    with progress_bars(console(stderr=True)) as progress:
        figures = measure_all(quick, progress)
    report(figures, quick, as_json, load_before)


if __name__ == "__main__":
    main()
