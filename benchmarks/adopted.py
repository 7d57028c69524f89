"""Models that others exported: a step of edgemem against the loop that their users write by hand.

``python benchmarks/adopted.py`` downloads the models (see ``examples/packages.py``), adopts them, and measures them,
interleaved, with one thread. Framing, Fourier transforms and overlap-add count on both sides.
"""

from __future__ import annotations

import os
import shutil

# numpy's BLAS takes its number of threads when it is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import THREADS, Figure, report
from numpy.typing import NDArray

import edgemem
from edgemem.adopt import AdoptOptions, adopt
from edgemem.bench import measure, statistics
from edgemem.bench.measure import Contender, Progress
from edgemem.bench.words import number
from edgemem.cli.bench_command import progress_bars
from edgemem.console import console
from edgemem.contract import Stft
from edgemem.machine.facts import load_average
from edgemem.runtimes.ort.importing import import_onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import packages

Floats = NDArray[np.float32]
Step = Callable[[Floats], object]
STREAMS = 16
CHUNKS = 32
"""Different inputs, which are given again and again."""


def load(path: Path) -> Any:
    """A session as its users open it, with one thread."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options)


# The loops, each from its publisher's documented use.


def silero_loop(session: Any, batch: int = 1) -> Step:
    """512 samples ``[B, 512]``, and before them the last 64 of the step before."""
    sr = np.array(16_000)
    state, context = np.zeros((2, batch, 128), np.float32), np.zeros((batch, 64), np.float32)
    has_sr = len(session.get_inputs()) == 3

    def step(samples: Floats) -> object:
        nonlocal state, context
        x = np.concatenate([context, samples], axis=1)
        inputs = {"input": x, "state": state, "sr": sr} if has_sr else {"input": x, "state": state}
        out, state = session.run(None, inputs)
        context = x[:, -64:]
        return out

    return step


def legacy_loop(session: Any) -> Step:
    """vad-web's older model: 1,536 samples ``[1, 1536]``, and two states."""
    sr, states = np.array(16_000), [np.zeros((2, 1, 64), np.float32), np.zeros((2, 1, 64), np.float32)]

    def step(samples: Floats) -> object:
        nonlocal states
        out, *states = session.run(["output", "hn", "cn"], {"input": samples, "sr": sr, "h": states[0], "c": states[1]})
        return out

    return step


def deepfilter_loop(path: Path) -> Step:
    """512 samples ``[512]`` at 48 kHz; all states in one array."""
    session, limit, states = load(path), np.array(0, np.float32), np.zeros(46_136, np.float32)

    def step(samples: Floats) -> object:
        nonlocal states
        out, states, _ = session.run(None, {"input_frame": samples, "states": states, "atten_lim_db": limit})
        return out

    return step


def gtcrn_loop(path: Path) -> Step:
    """256 samples ``[256]``; frames of 512, with a square-root Hann window before and behind the model."""
    session = load(path)
    caches = [np.zeros(shape, np.float32) for shape in ((2, 1, 16, 16, 33), (2, 3, 1, 1, 16), (2, 1, 33, 16))]
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)).astype(np.float32)
    before, rest = np.zeros(256, np.float32), np.zeros(256, np.float32)

    def step(samples: Floats) -> object:
        nonlocal before, rest, caches
        spectrum = np.fft.rfft(np.concatenate([before, samples]) * window)
        mix = np.stack([spectrum.real, spectrum.imag], axis=-1).astype(np.float32)[None, :, None]
        inputs = {"mix": mix, "conv_cache": caches[0], "tra_cache": caches[1], "inter_cache": caches[2]}
        enhanced, *caches = session.run(None, inputs)
        piece = np.fft.irfft(enhanced[0, :, 0, 0] + 1j * enhanced[0, :, 0, 1]).astype(np.float32) * window
        out = rest + piece[:256]
        before, rest = samples, piece[256:]
        return out

    return step


def dtln_loop(first: Path, second: Path) -> Step:
    """128 samples ``[128]``; a mask for the spectrum of the last 512, then a second network for the masked samples."""
    masking, cleaning = load(first), load(second)
    states = [np.zeros((1, 2, 128, 2), np.float32), np.zeros((1, 2, 128, 2), np.float32)]
    block, out = np.zeros(512, np.float32), np.zeros(512, np.float32)

    def step(samples: Floats) -> object:
        block[:-128] = block[128:]
        block[-128:] = samples
        spectrum = np.fft.rfft(block.astype(np.float64))  # complex128, as the publisher notes
        magnitude = np.abs(spectrum).reshape(1, 1, 257).astype(np.float32)
        mask, states[0] = masking.run(None, {"input_2": magnitude, "input_3": states[0]})
        masked = np.fft.irfft(mask.reshape(257) * spectrum, 512).astype(np.float32).reshape(1, 1, 512)
        cleaned, states[1] = cleaning.run(None, {"input_4": masked, "input_5": states[1]})
        out[:-128] = out[128:]
        out[-128:] = 0
        out[:] += cleaned.reshape(512)
        return out[:128].copy()

    return step


def plain_loop(path: Path, data: str, pairs: Sequence[tuple[str, str]], held: dict[str, Any]) -> Step:
    """A model without a front end: its inputs are given, its states fed back."""
    session = load(path)
    outputs = [each.name for each in session.get_outputs()]
    sizes = {each.name: [size if isinstance(size, int) else 1 for size in each.shape] for each in session.get_inputs()}
    states = {name: np.zeros(sizes[name], np.float32) for name, _ in pairs}
    places = [(name, outputs.index(after)) for name, after in pairs]

    def step(x: Floats) -> object:
        found = session.run(None, {data: x, **states, **held})
        for name, place in places:
            states[name] = found[place]
        return found[0]

    return step


@dataclass(frozen=True)
class Model:
    """A model to compare.

    Attributes:
        title: What it is called.
        path: The file, or two.
        options: How it is adopted.
        loop: The loop by hand.
        shape: Shape of a step's input, without the batch axis that the loop by hand gives it, if ``batched``.
        batched: Whether the loop by hand takes ``[1, *shape]``.
        held: Inputs that a stream is given once.
    """

    title: str
    path: Path | list[Path]
    options: AdoptOptions
    loop: Step
    shape: tuple[int, ...]
    batched: bool = True
    held: dict[str, Any] | None = None


CHECKED = AdoptOptions(steps=200)
FRAMED = replace(CHECKED, fixed={"sr": 16_000}, takes=512, context=64)


def models() -> Iterator[Model]:
    """The models, downloaded one after the other."""
    for title, name in (("silero-vad", "silero_vad.onnx"), ("silero-vad without If", "silero_vad_op18_ifless.onnx")):
        path = packages.silero(name)
        yield Model(title, path, FRAMED, silero_loop(load(path)), (512,))
    if shutil.which("npm"):
        for version in ("v5", "v6"):
            path = packages.web(version)
            yield Model(f"vad-web {version}", path, FRAMED, silero_loop(load(path)), (512,))
        path, options = packages.web("legacy"), replace(CHECKED, fixed={"sr": 16_000}, takes=1536)
        yield Model("vad-web legacy", path, options, legacy_loop(load(path)), (1536,))
    path = packages.gtcrn()
    yield Model(
        "GTCRN", path, replace(CHECKED, stft=Stft(512, 256, "sqrt_hann")), gtcrn_loop(path), (256,), batched=False
    )
    for stage, data, pair in (
        (1, "input_2", ("input_3", "tf_op_layer_stack_2")),
        (2, "input_4", ("input_5", "tf_op_layer_stack_5")),
    ):
        path = packages.dtln(stage)
        shape = (1, 257 if stage == 1 else 512)
        yield Model(f"DTLN {stage}", path, CHECKED, plain_loop(path, data, [pair], {}), shape)
    stages = [packages.dtln(1), packages.dtln(2)]
    between = replace(CHECKED, between="spectral-mask", takes=128, context=384)
    yield Model("DTLN, both stages", stages, between, dtln_loop(*stages), (128,), batched=False)
    path, options = packages.deepfilter(), replace(CHECKED, fixed={"atten_lim_db": 0}, takes=512)
    yield Model("DeepFilterNet", path, options, deepfilter_loop(path), (512,), batched=False)
    path, speaker = packages.voicefilter(), {"dvec": np.full((1, 256), 0.05, np.float32)}
    by_hand = plain_loop(path, "stacked_logmel", [("h0", "hN"), ("c0", "cN")], speaker)
    yield Model("VoiceFilter-Lite", path, replace(CHECKED, held=("dvec",)), by_hand, (1, 512), held=speaker)


@dataclass(frozen=True)
class Reachable(Figure):
    """A figure that is reached where the upper end of its interval is."""

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        high = self.value if self.interval is None or self.interval.high is None else self.interval.high
        return high >= self.target


def feeding(step: Step, chunks: Floats) -> Callable[[], object]:
    """Calls of ``step`` with one chunk after the other."""
    following = itertools.cycle(list(chunks))
    return lambda: step(next(following))


def one_step(model: Model, folder: Path, rounds: int, progress: Progress) -> Figure:
    """A step of one stream."""
    progress(f"{model.title}: adopting", 0, 1)
    bundle = adopt(model.path, folder / model.title, model.options)
    chunks = np.random.default_rng(0).normal(0, 0.1, (CHUNKS, *model.shape)).astype(np.float32)
    with edgemem.open(bundle.path, "onnxruntime", threads=THREADS, device="cpu") as session:
        stream = session.stream(held=model.held)
        contenders = [
            Contender("by hand", feeding(model.loop, chunks[:, np.newaxis] if model.batched else chunks)),
            Contender("edgemem", feeding(stream.step, chunks)),
        ]
        samples = measure.interleave(contenders, rounds=rounds, steps=30, progress=progress, what=model.title)
    made = statistics.ratio(samples["by hand"], samples["edgemem"])
    p50 = {name: number(statistics.median_ms(values)) for name, values in samples.items()}
    return Reachable(
        model.title, f"{model.title}: the loop by hand over a step", made.value, "×", 1.0, True, made,
        f"{p50['by hand']} ms by hand, {p50['edgemem']} ms with edgemem",
    )  # fmt: skip


def batched(folder: Path, rounds: int, progress: Progress) -> list[Figure]:
    """Streams of silero-vad in one batch, against as many alone, and against the batch by hand."""
    path = packages.silero()
    bundle = adopt(path, folder / "batched", FRAMED)
    chunks = np.random.default_rng(0).normal(0, 0.1, (CHUNKS, STREAMS, 512)).astype(np.float32)
    with edgemem.open(bundle.path, "onnxruntime", threads=THREADS, device="cpu") as session:
        alone = [session.stream() for _ in range(STREAMS)]

        by_hand = load(path)  # one model, as for the streams
        loops = [silero_loop(by_hand) for _ in range(STREAMS)]

        def each(samples: Floats) -> None:
            for stream, row in zip(alone, samples, strict=True):
                stream.step(row)

        def each_by_hand(samples: Floats) -> None:
            for loop, row in zip(loops, samples, strict=True):
                loop(row[np.newaxis])

        contenders = [
            Contender("alone", feeding(each, chunks)),
            Contender("alone by hand", feeding(each_by_hand, chunks)),
            Contender("batch", feeding(session.stream(STREAMS).step, chunks)),
            Contender("by hand", feeding(silero_loop(by_hand, STREAMS), chunks)),
        ]
        samples = measure.interleave(contenders, rounds=rounds, steps=10, progress=progress, what="batches")
    p50 = {name: number(statistics.median_ms(values)) for name, values in samples.items()}
    gain, whole, raw = (
        statistics.ratio(samples[name], samples["batch"]) for name in ("alone", "alone by hand", "by hand")
    )
    return [
        Figure(
            "loops_over_batch", f"silero-vad: {STREAMS} loops by hand over a batch", whole.value, "×", 2.0, True, whole,
            f"{p50['alone by hand']} ms by hand",
        ),
        Figure(
            "alone_over_batch", f"silero-vad: {STREAMS} streams alone over a batch", gain.value, "×", 2.0, True, gain,
            f"{p50['alone']} ms alone, {p50['batch']} ms in a batch",
        ),
        Reachable(
            "batch_by_hand", "silero-vad: the batch by hand over that batch", raw.value, "×", 1.0, True, raw,
            f"{p50['by hand']} ms by hand",
        ),
    ]  # fmt: skip


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds: rough figures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(quick: bool, as_json: bool) -> None:
    """Measure every figure and print it with its target. The exit code is 1 if a target is missed."""
    load_before, rounds = load_average(), 9 if quick else 41
    with (
        tempfile.TemporaryDirectory(prefix="edgemem-adopted-") as name,
        progress_bars(console(stderr=True)) as progress,
    ):
        figures = [one_step(model, Path(name), rounds, progress) for model in models()]
        figures += batched(Path(name), rounds, progress)
    report(figures, quick, as_json, load_before)


if __name__ == "__main__":
    main()
